// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/x509"
	"time"

	"github.com/assay-id/assay/agent/svids"
)

const (
	keyCompromise = 1 // RFC 5280, section 5.3.1
	reportTimeout = 30 * time.Second
)

// tampered has an SVID revoked whose process another one got at. Only SVIDs of one process are: one that many share
// would let whoever can debug one of them revoke it for all.
func (a *Agent) tampered(s *svids.SVID, why string) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), reportTimeout)
		defer cancel()
		log := a.log.With("spiffe_id", s.ID, "serial", s.Serial, "because", why)
		chain, err := x509.ParseCertificates(s.Chain)
		if err == nil {
			err = a.server.RevokeSVID(ctx, chain[0].Raw, keyCompromise, why)
		}
		if err != nil {
			log.Warn("a process was tampered with, and its SVID could not be revoked", "error", err)
			return
		}
		log.Warn("a process was tampered with; its SVID is revoked")
	}()
}
