// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/nodes"
)

// readID reads an ID; a nil or empty message is an error.
func readID(p *types.SPIFFEID) (spiffeid.ID, error) {
	if p == nil {
		return spiffeid.ID{}, fmt.Errorf("request must specify SPIFFE ID")
	}
	td, err := spiffeid.TrustDomainFromString(p.TrustDomain)
	if err != nil {
		return spiffeid.ID{}, err
	}
	return spiffeid.FromPath(td, p.Path)
}

// ID returns the message for an ID.
func ID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

// ReadAgentID reads an ID that must be one of an agent.
func ReadAgentID(td spiffeid.TrustDomain, p *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := readID(p)
	if err == nil && (id.TrustDomain() != td || !nodes.IsAgentID(id)) {
		err = fmt.Errorf("%q is not an agent in trust domain %q", id, td.Name())
	}
	if err != nil {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "invalid agent ID: %v", err)
	}
	return id, nil
}

// ReadWorkloadID reads an ID that may be registered for a workload.
func ReadWorkloadID(td spiffeid.TrustDomain, p *types.SPIFFEID) (spiffeid.ID, error) {
	id, err := readID(p)
	if err != nil {
		return spiffeid.ID{}, err
	}
	return id, checkWorkload(td, id)
}

// checkWorkload says why an ID may not be registered for a workload; nil if it may.
func checkWorkload(td spiffeid.TrustDomain, id spiffeid.ID) error {
	path := id.Path()
	switch {
	case id.TrustDomain() != td:
		return fmt.Errorf("%q is not a member of trust domain %q", id, td.Name())
	case path == "":
		return fmt.Errorf("%q is not a workload in trust domain %q; path is empty", id, td.Name())
	case path == "/spire" || strings.HasPrefix(path, "/spire/"):
		return fmt.Errorf("%q is not a workload in trust domain %q; path is in the reserved namespace", id, td.Name())
	}
	return nil
}

// ParseAgentID reads the text of an ID that must be one of an agent.
func ParseAgentID(td spiffeid.TrustDomain, text string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return spiffeid.ID{}, status.Errorf(codes.InvalidArgument, "%q is not a SPIFFE ID: %v", text, err)
	}
	return ReadAgentID(td, ID(id))
}
