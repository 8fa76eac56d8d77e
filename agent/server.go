// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/assay-id/assay/agent/bootstrap"
	"github.com/assay-id/assay/agent/servers"
	"github.com/assay-id/assay/agent/upstream"
)

// prepareServers is which servers there are, and how they are known.
func (p *prepared) prepareServers() (err error) {
	names := p.ServerAddresses
	if p.ServerAddress != "" {
		if len(names) > 0 {
			return errors.New("set server_address or server_addresses, not both")
		}
		names = []string{p.ServerAddress}
	}
	if p.servers, err = servers.New(names, net.DefaultResolver.LookupHost); err != nil {
		return err
	}
	p.bootstrap, err = bootstrap.New(bootstrap.Config{TrustDomain: p.trustDomain, Path: p.TrustBundlePath, URL: p.TrustBundleURL,
		UnixSocket: p.TrustBundleUnixSocket, Format: p.TrustBundleFormat, Insecure: p.InsecureBootstrap})
	if err != nil {
		return err
	}
	return p.prepareRebootstrap()
}

func (p *prepared) prepareRebootstrap() error {
	r := upstream.Rebootstrap{Mode: p.RebootstrapMode, Delay: 10 * time.Minute}
	switch r.Mode {
	case "":
		r.Mode = upstream.Never
	case upstream.Never, upstream.Auto, upstream.Always:
	default:
		return fmt.Errorf("rebootstrap_mode %q: write \"never\", \"auto\" or \"always\"", r.Mode)
	}
	if p.RebootstrapDelay != "" {
		d, err := time.ParseDuration(p.RebootstrapDelay)
		if err != nil || d < 0 {
			return fmt.Errorf("rebootstrap_delay %q: write a duration such as \"10m\"", p.RebootstrapDelay)
		}
		r.Delay = d
	}
	switch {
	case r.Mode != upstream.Never && p.InsecureBootstrap:
		return errors.New("rebootstrap_mode with insecure_bootstrap would let whoever answers for long enough become the server: set trust_bundle_path or trust_bundle_url, or rebootstrap_mode = \"never\"")
	case r.Mode == upstream.Always && p.JoinToken != nil:
		return upstream.ErrNoReturn
	}
	p.rebootstrap = r
	return nil
}
