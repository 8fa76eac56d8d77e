// SPDX-License-Identifier: Apache-2.0

package api

import (
	"fmt"
	"sync"

	"google.golang.org/protobuf/proto"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server/api/wire"
	"github.com/assay-id/assay/server/gate"
)

// encodedBundle is the trust bundle as the bytes of a WatchResponse, the same for all agents.
type encodedBundle struct {
	sequence uint64
	changed  <-chan struct{} // closed when there is another
	fields   gate.Encoded
}

// broadcast encodes each bundle once, not for each of thousands of streams.
type broadcast struct {
	mu   sync.Mutex
	last encodedBundle
}

// bundle returns the present one.
func (s *Server) bundle() (encodedBundle, error) {
	b, changed := s.cfg.Signer.Bundle()
	s.broadcast.mu.Lock()
	defer s.broadcast.mu.Unlock()
	if s.broadcast.last.changed == changed {
		return s.broadcast.last, nil
	}
	fields, err := proto.Marshal(&nodev1.WatchResponse{Bundle: wire.Bundle(s.cfg.TrustDomain, b, nil)})
	if err != nil {
		return encodedBundle{}, fmt.Errorf("encode the trust bundle: %w", err)
	}
	s.broadcast.last = encodedBundle{b.Sequence, changed, fields}
	return s.broadcast.last, nil
}
