// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/assay-id/assay/server/store/member"
)

// request is what a new member asks, once it has checked Invite's certificate.
type request struct {
	Secret        []byte
	Name, Address string
	// Replaces is the name of the member whose place it takes; "" for one more.
	Replaces string
}

// answer lets it in.
type answer struct {
	Authority member.Authority
	Join      member.Join
}

const (
	maxRequest = 16 << 10
	// maxWrong secrets end an invitation: somebody is guessing.
	maxWrong = 10
)

// Invite lets one new member into the cluster and returns its name. It hands the ticket to show
// and waits for the member until ctx ends, listening at an address that the new member reaches;
// nothing listens there at other times.
func Invite(ctx context.Context, c Config, listen string, show func(ticket string)) (string, error) {
	if err := c.needCluster(); err != nil {
		return "", err
	}
	client, err := c.connect()
	if err != nil {
		return "", err
	}
	defer client.Close()
	if err := c.inCluster(ctx, client); err != nil {
		return "", err
	}
	cert, sum, err := oneTimeCertificate()
	if err != nil {
		return "", err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return "", fmt.Errorf("wait for the new member: %w; choose another address with --listen", err)
	}
	secret := make([]byte, secretSize)
	_, _ = rand.Read(secret) // never fails
	i := &invitation{conf: c, client: client, secret: secret, done: make(chan outcome, 1)}
	srv := &http.Server{
		Handler: i, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13},
		ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
	}
	go func() { _ = srv.ServeTLS(l, "", "") }()
	defer func() { // let the answer out
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_ = srv.Shutdown(bounded)
	}()
	show(ticket{Address: c.reachable(l.Addr().(*net.TCPAddr)), Certificate: sum, Secret: secret, TrustDomain: c.TrustDomain}.String())
	select {
	case o := <-i.done:
		return o.name, o.err
	case <-ctx.Done():
		return "", fmt.Errorf("no new member came: %w", ctx.Err())
	}
}

// reachable is the listener's address for others.
func (c Config) reachable(at *net.TCPAddr) string {
	host := at.IP.String()
	if at.IP.IsUnspecified() {
		host, _, _ = net.SplitHostPort(c.Address) // checked with the configuration
	}
	return net.JoinHostPort(host, strconv.Itoa(at.Port))
}

// inCluster waits until the server has told the others where its member is.
func (c Config) inCluster(ctx context.Context, client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for {
		all, err := c.members(ctx, client)
		if err != nil {
			return err
		}
		for _, m := range all {
			if m.Self && m.Address == c.Address {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server that runs here is not at %s: start it again with the block cluster in its configuration", c.Address)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

type outcome struct {
	name string
	err  error
}

// invitation answers one new member.
type invitation struct {
	conf   Config
	client *clientv3.Client
	secret []byte
	wrong  int
	used   bool
	done   chan outcome
	mu     sync.Mutex
}

// ServeHTTP serves POST /join.
func (i *invitation) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var req request
	err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(&req)
	switch {
	case r.Method != http.MethodPost || r.URL.Path != "/join" || err != nil:
		http.Error(w, "this is an assay-server that waits for a new member of its store", http.StatusBadRequest)
		return
	case i.used || subtle.ConstantTimeCompare(req.Secret, i.secret) != 1:
		i.refuse(w)
		return
	}
	i.used = true
	a, err := i.admit(r.Context(), req)
	if err != nil {
		i.used = false // nothing happened; the operator corrects it and tries again
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	err = json.NewEncoder(w).Encode(a)
	i.done <- outcome{req.Name, err}
}

func (i *invitation) refuse(w http.ResponseWriter) {
	http.Error(w, "the ticket is not valid, or has been used: have `assay-server store invite` print another", http.StatusForbidden)
	if i.wrong++; i.wrong == maxWrong && !i.used {
		i.used = true
		i.done <- outcome{err: errors.New("somebody tried wrong tickets; this one is void")}
	}
}

// admit makes the new one a learner: it has no vote before it has the content.
func (i *invitation) admit(ctx context.Context, req request) (*answer, error) {
	authority, err := member.ReadAuthority(i.conf.Dir)
	if err != nil {
		return nil, fmt.Errorf("read the authority of the store's members: %w", err)
	}
	all, err := i.conf.members(ctx, i.client)
	if err != nil {
		return nil, err
	}
	if err := i.makePlace(ctx, req, all); err != nil {
		return nil, err
	}
	spec := member.Spec{Name: req.Name, Address: req.Address}
	var added *clientv3.MemberAddResponse
	err = change(ctx, func(ctx context.Context) (err error) {
		added, err = i.client.MemberAddAsLearner(ctx, []string{spec.PeerURL()})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("add the member %s: %w", req.Name, explain(err))
	}
	var members []string
	for _, m := range added.Members {
		name := m.Name
		switch {
		case m.ID == added.Member.ID:
			name = req.Name
		case name == "":
			name = fmt.Sprintf("%x", m.ID)
		}
		members = append(members, name+"="+strings.Join(m.PeerURLs, ","))
	}
	return &answer{Authority: authority, Join: member.Join{Members: strings.Join(members, ",")}}, nil
}

// makePlace removes the member that the new one replaces, and what an attempt before left.
func (i *invitation) makePlace(ctx context.Context, req request, all []Member) error {
	if req.Name == "" || strings.ContainsAny(req.Name, "=,") || strings.ContainsAny(req.Address, "=,/ ") {
		return errors.New("the new member has no proper name or address")
	}
	if req.Replaces != "" {
		old, err := find(all, req.Replaces)
		switch {
		case err != nil:
			return err
		case old.Self || old.Trouble == "":
			return fmt.Errorf("the member %s still answers: stop it first", old.Name)
		}
		if err := remove(ctx, i.client, old); err != nil {
			return err
		}
	}
	for _, m := range all {
		switch {
		case req.Replaces != "" && (m.Name == req.Replaces || m.Address == req.Replaces):
		case m.Role == Invited && m.Address == req.Address:
			if err := remove(ctx, i.client, m); err != nil {
				return err
			}
		case m.Name == req.Name || m.Address == req.Address:
			return fmt.Errorf("the store has a member %s at %s already: if it is lost, run `assay-server store replace TICKET`; else choose another cluster.name and address", m.Name, m.Address)
		}
	}
	return nil
}

func oneTimeCertificate() (cert tls.Certificate, sum []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "assay-server store invite"}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	s := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, s[:], err
}
