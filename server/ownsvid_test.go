// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/tls"
	"encoding/hex"
	"testing"
	"time"

	localv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
)

// TestOwnSVIDLeavesATaintedAuthority: after a forced rotation those who know only the new authority
// still recognise the server, at once.
func TestOwnSVIDLeavesATaintedAuthority(t *testing.T) {
	e := start(t, nil)
	issuer := func() string {
		conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}}).DialContext(t.Context(), "tcp", e.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return hex.EncodeToString(conn.(*tls.Conn).ConnectionState().PeerCertificates[0].AuthorityKeyId)
	}
	local := localv1.NewLocalAuthorityClient(e.admin.conn)
	prepared, err := local.PrepareX509Authority(t.Context(), &localv1.PrepareX509AuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	old, next := issuer(), prepared.PreparedAuthority.AuthorityId
	if _, err := local.ActivateX509Authority(t.Context(), &localv1.ActivateX509AuthorityRequest{AuthorityId: next}); err != nil {
		t.Fatal(err)
	}
	if got := issuer(); got != old {
		t.Errorf("before the taint the server's SVID is by %s, want %s: agents that poll may not know another", got, old)
	}
	if _, err := local.TaintX509Authority(t.Context(), &localv1.TaintX509AuthorityRequest{AuthorityId: old}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Second); issuer() != next; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("a second after the taint the server's SVID is by %s, want %s", issuer(), next)
		}
	}
}
