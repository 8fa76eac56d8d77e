// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/assay-id/assay/server/store/member"
)

// Join makes the store on this machine, which must have no data yet, a member of the cluster
// that printed the ticket. With replaces it takes the place of a member that is lost, by name.
// Then the server can be started; its member votes as soon as it has all of the content.
func Join(ctx context.Context, c Config, text, replaces string) error {
	if err := c.needCluster(); err != nil {
		return err
	}
	t, err := parseTicket(text)
	if err != nil {
		return err
	}
	if t.TrustDomain != c.TrustDomain {
		return fmt.Errorf("the ticket is of trust domain %s and this server of %s: correct one of them", t.TrustDomain, c.TrustDomain)
	}
	if err := member.MakeDirs(c.Dir); err != nil {
		return err
	}
	lock, err := member.LockServer(c.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := os.Stat(member.DataDir(c.Dir)); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s holds a store already, which a new member must not have: move it away first", c.Dir)
	}
	a, err := t.present(ctx, request{Secret: t.Secret, Name: c.Name, Address: c.Address, Replaces: replaces})
	if err != nil {
		return err
	}
	if err := a.Join.Write(c.Dir); err != nil {
		return err
	}
	return a.Authority.Write(c.Dir)
}

// present asks the member that printed the ticket, and nobody else.
func (t ticket) present(ctx context.Context, req request) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	body, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+t.Address+"/join", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The ticket names the one certificate, which is more than any authority could say.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			return t.verify(s.PeerCertificates)
		},
	}}}
	resp, err := client.Do(post)
	if err != nil {
		return nil, fmt.Errorf("present the ticket: %w; `assay-server store invite` must be waiting there", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("present the ticket: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the store does not let this server in: %s", strings.TrimSpace(string(data)))
	}
	var a answer
	if err := json.Unmarshal(data, &a); err != nil {
		return nil, fmt.Errorf("read the answer to the ticket: %w", err)
	}
	return &a, nil
}

func (t ticket) verify(certs []*x509.Certificate) error {
	if len(certs) == 1 {
		if sum := sha256.Sum256(certs[0].Raw); subtle.ConstantTimeCompare(sum[:], t.Certificate) == 1 {
			return nil
		}
	}
	return fmt.Errorf("the server at %s is not the one that printed the ticket", t.Address)
}
