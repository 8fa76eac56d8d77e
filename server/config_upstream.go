// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"time"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/ca/upstream"
)

// UpstreamConfig is the block `upstream_authority "disk"` or `"spire"`.
type UpstreamConfig struct {
	Type string `hcl:"type,label"`
	// CertFilePath and KeyFilePath are the upstream CA's, PEM; they are read for each authority.
	CertFilePath string `hcl:"cert_file_path,optional"`
	KeyFilePath  string `hcl:"key_file_path,optional"`
	// BundleFilePath holds its roots; needed if it is not a root itself.
	BundleFilePath string `hcl:"bundle_file_path,optional"`

	// ServerAddress and ServerPort (default 8081) of the server above, Assay's or SPIRE's, and
	// WorkloadAPISocket of an agent of its, where ours gets its SVID.
	ServerAddress     string `hcl:"server_address,optional"`
	ServerPort        int    `hcl:"server_port,optional"`
	WorkloadAPISocket string `hcl:"workload_api_socket,optional"`
}

func (p *prepared) readUpstream() error {
	u := p.UpstreamAuthority
	if u == nil {
		return nil
	}
	disk, spire := u.CertFilePath+u.KeyFilePath+u.BundleFilePath != "", u.ServerAddress+u.WorkloadAPISocket != "" || u.ServerPort != 0
	switch {
	case u.Type != "disk" && u.Type != "spire":
		return fmt.Errorf("there is no upstream_authority %q: write \"disk\" or \"spire\"", u.Type)
	case u.Type == "disk" && spire || u.Type == "spire" && disk:
		return fmt.Errorf("upstream_authority %q has settings of the other type: remove them", u.Type)
	case u.Type == "spire":
		return p.readUpstreamSPIRE(u)
	}
	return p.readUpstreamDisk(u)
}

func (p *prepared) readUpstreamSPIRE(u *UpstreamConfig) error {
	port := u.ServerPort
	if port == 0 {
		port = 8081
	}
	switch {
	case u.ServerAddress == "":
		return errors.New("upstream_authority: server_address is missing: write the host of the server above")
	case port < 1 || port > 65535:
		return fmt.Errorf("upstream_authority: server_port %d: write a port from 1 to 65535", port)
	case !filepath.IsAbs(u.WorkloadAPISocket):
		return fmt.Errorf("upstream_authority: workload_api_socket %q: write an absolute path", u.WorkloadAPISocket)
	}
	p.upstream = &upstream.SPIRE{
		TrustDomain: p.trustDomain, Address: net.JoinHostPort(u.ServerAddress, strconv.Itoa(port)), WorkloadAPI: "unix://" + u.WorkloadAPISocket,
	}
	return nil
}

func (p *prepared) readUpstreamDisk(u *UpstreamConfig) error {
	disk := &upstream.Disk{TrustDomain: p.trustDomain, CertPath: u.CertFilePath, KeyPath: u.KeyFilePath, BundlePath: u.BundleFilePath, Now: time.Now}
	if err := disk.Check(); err != nil {
		return fmt.Errorf("upstream_authority: %w", err)
	}
	p.upstream = disk
	return nil
}

func (s *Server) openUpstream() ca.Upstream {
	if u, ok := s.conf.upstream.(*upstream.SPIRE); ok {
		u.Logger = s.log
	}
	return s.conf.upstream
}

func (s *Server) closeUpstream() error {
	if u, ok := s.conf.upstream.(io.Closer); ok {
		return u.Close()
	}
	return nil
}
