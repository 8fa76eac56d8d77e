// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/agent/upstream/wire"
)

// saved is DataDir/agent.json. Key is the attestor's; a TPM's names a key and is no secret,
// a join token's is the private key itself. A crash while writing leaves the former file.
type saved struct {
	Attestor     string   `json:"attestor"`
	Chain        [][]byte `json:"chain"`
	Key          []byte   `json:"key"`
	Bundle       []byte   `json:"bundle"` // SPIFFE bundle format
	Reattestable bool     `json:"reattestable"`
	Word         string   `json:"word,omitempty"` // the operator's, by which Bundle began (Bootstrap)
}

func (c *Client) statePath() string { return filepath.Join(c.cfg.DataDir, "agent.json") }

// load restores what the last run left. A file that is not whole is put aside; a node that can not be restored is no error
// either: it attests. One that can attest again does so at every start, because the machine may have booted
// something else since; then only the bundle is used.
func (c *Client) load() {
	c.word = c.cfg.Bootstrap.Word()
	s, bundle, err := c.read()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return
	case err != nil:
		aside := c.statePath() + ".broken"
		c.cfg.Logger.Warn("what the last run left can not be read and is put aside; attesting anew", "file", aside, "error", errors.Join(err, os.Rename(c.statePath(), aside)))
		return
	}
	c.again = s.Reattestable
	n, err := c.restore(s, bundle)
	switch {
	case err != nil:
		c.cfg.Logger.Info("not using the identity of the last run, attesting anew", "reason", err)
	case !n.reattestable:
		c.mu.Lock()
		c.node, c.proved = n, true
		c.mu.Unlock()
		return
	}
	if s.Word != "" && s.Word != c.word {
		c.cfg.Logger.Info("what authenticates the server is configured in another way than before: using that, not the bundle of the last run")
		return
	}
	c.mu.Lock()
	c.kept, c.proved = bundle, true
	c.mu.Unlock()
}

// read returns the file, whose bundle has authorities.
func (c *Client) read() (s saved, _ *spiffebundle.Bundle, _ error) {
	data, err := os.ReadFile(c.statePath())
	if err != nil {
		return s, nil, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, nil, err
	}
	b, err := spiffebundle.Parse(c.cfg.TrustDomain, s.Bundle)
	if err != nil {
		return s, nil, err
	}
	if len(b.X509Authorities()) == 0 {
		return s, nil, errors.New("its bundle has no X.509 authorities")
	}
	return s, b, nil
}

func (c *Client) restore(s saved, bundle *spiffebundle.Bundle) (*node, error) {
	if s.Attestor != c.cfg.Attestor.Type() {
		return nil, fmt.Errorf("%s was written by attestor %q", c.statePath(), s.Attestor)
	}
	chain, err := wire.Chain(s.Chain)
	if err != nil {
		return nil, err
	}
	if !c.cfg.Now().Before(chain[0].NotAfter) {
		return nil, fmt.Errorf("it expired at %s", chain[0].NotAfter)
	}
	id, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return nil, err
	}
	key, err := c.cfg.Attestor.Restore(s.Key)
	if err != nil {
		return nil, fmt.Errorf("the node's key: %w", err)
	}
	return &node{svid: &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, bundle: bundle, reattestable: s.Reattestable}, nil
}

func (c *Client) save(n *node) error {
	key, err := c.cfg.Attestor.Save(n.svid.PrivateKey)
	if err != nil {
		return fmt.Errorf("save the node's key: %w", err)
	}
	bundle, err := n.bundle.Marshal()
	if err != nil {
		return fmt.Errorf("encode bundle: %w", err)
	}
	s := saved{Attestor: c.cfg.Attestor.Type(), Key: key, Bundle: bundle, Reattestable: n.reattestable, Word: c.word}
	for _, cert := range n.svid.Certificates {
		s.Chain = append(s.Chain, cert.Raw)
	}
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode agent state: %w", err)
	}
	tmp := c.statePath() + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("save agent state: %w", err)
	}
	if err := os.Rename(tmp, c.statePath()); err != nil {
		return fmt.Errorf("save agent state: %w", err)
	}
	return nil
}

// unsave removes what save wrote. A file that can not be removed is harmless: the server
// refuses what is in it, and the agent attests anew.
func (c *Client) unsave() { _ = os.Remove(c.statePath()) }

// newBundle replaces the authorities that authenticate the server, on open connections too. If the agent's
// own SVID is by one that is tainted, it is due for renewal.
func (c *Client) newBundle(b *trust.Bundle) {
	c.mu.Lock()
	n := c.node
	c.mu.Unlock()
	if n == nil {
		return
	}
	if b.TaintsChain(n.svid.Certificates) && !n.tainted {
		n.tainted = true
		wait := rand.N(taintSpread)
		if n.renewed { // and the server still signs by it
			wait += taintAgain
		}
		time.AfterFunc(wait, c.due)
	}
	all := b.SPIFFE()
	if n.bundle.Equal(all) {
		return
	}
	n.bundle.SetX509Authorities(all.X509Authorities())
	c.ClockSet() // which may have waited for them
	n.bundle.SetJWTAuthorities(all.JWTAuthorities())
	n.bundle.SetWITAuthorities(all.WITAuthorities())
	n.bundle.SetSequenceNumber(b.Sequence())
	if err := c.save(n); err != nil {
		c.cfg.Logger.Warn("bundle is in use but could not be kept for the next start", "error", err)
	}
}

const (
	// taintSpread is the time over which agents replace SVIDs by a tainted authority: all hear of it at once.
	taintSpread = time.Second
	// taintAgain is added where that gave one by a tainted authority.
	taintAgain = time.Minute
)
