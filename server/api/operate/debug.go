// SPDX-License-Identifier: Apache-2.0

package operate

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"

	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/nodes"
)

// debugService is spire.api.server.debug.v1.Debug.
type debugService struct {
	debugv1.UnimplementedDebugServer
	*Services
}

// GetInfo returns what an operator asks first.
func (s *debugService) GetInfo(context.Context, *debugv1.GetInfoRequest) (*debugv1.GetInfoResponse, error) {
	agents, err := s.Nodes.Count(nodes.Filter{})
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to count agents: %w", err))
	}
	own, err := s.ServerSVID()
	if err != nil {
		return nil, wire.Error(fmt.Errorf("failed to get the server's SVID: %w", err))
	}
	info := &debugv1.GetInfoResponse{
		Uptime:                int32(s.Now().Sub(s.Started) / time.Second),
		AgentsCount:           int32(agents),
		EntriesCount:          int32(s.Entries.Count(entries.Filter{})),
		FederatedBundlesCount: int32(s.Federation.CountBundles()),
	}
	for _, der := range own.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, wire.Error(fmt.Errorf("failed to read the server's SVID: %w", err))
		}
		id, err := x509svid.IDFromCert(cert)
		if err != nil {
			return nil, wire.Error(fmt.Errorf("failed to read the server's SVID: %w", err))
		}
		info.SvidChain = append(info.SvidChain, &debugv1.GetInfoResponse_Cert{Id: wire.ID(id), ExpiresAt: cert.NotAfter.Unix(), Subject: cert.Subject.String()})
	}
	return info, nil
}
