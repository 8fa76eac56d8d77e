// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/descriptorpb"
)

func TestWorkloadAPI(t *testing.T) {
	point(t, "A-1", func(p *probe) { x509Response(p); fetchJWT(p, "db") })
	point(t, "A-2", func(p *probe) {
		for _, rpc := range rpcs {
			if rpc.wit && !at.wit {
				code(p, rpc.name, ask(call(p), at.conn, service+rpc.name, rpc.req(), rpc.resp()), codes.Unimplemented)
			}
		}
	})
	point(t, "A-3", func(p *probe) {
		got, want := shape(served(p)), shape(standard())
		for _, line := range got {
			if !slices.Contains(want, line) {
				p.Errorf("not in the standard: %s", line)
			}
		}
		for _, line := range want {
			// A server from before the WIT profile has none of it.
			if !slices.Contains(got, line) && !strings.Contains(line, "WIT") {
				p.Errorf("missing: %s", line)
			}
		}
	})
	point(t, "A-6", func(p *probe) {
		for range 3 {
			within(p, 5*time.Second, "the first message", func() { x509Response(p); jwtBundle(p) })
		}
		code(p, "a request from a later version of the standard", ask(call(p), at.conn, service+"FetchX509SVID", unknownField(), &pb.X509SVIDResponse{}), codes.OK)
	})
	point(t, "A-10", func(p *probe) {
		_, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{})
		code(p, "FetchJWTSVID without audience", err, codes.InvalidArgument)
		if _, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{""}}); err == nil {
			p.Errorf("a token for the audience %q", "")
		}
		_, err = at.api.ValidateJWTSVID(call(p), &pb.ValidateJWTSVIDRequest{Svid: fetchJWT(p, "db")[0].raw})
		code(p, "ValidateJWTSVID without audience", err, codes.InvalidArgument)
		_, err = at.api.ValidateJWTSVID(call(p), &pb.ValidateJWTSVIDRequest{Audience: "db"})
		code(p, "ValidateJWTSVID without token", err, codes.InvalidArgument)
	})
	point(t, "A-28", func(p *probe) {
		long := strings.Repeat("h", 1025)
		id, err := at.create(p.Context(), &types.Entry{SpiffeId: at.id("/conformance/long-hint"), Hint: long})
		if err == nil {
			at.delete(id)
			p.Errorf("an entry with a hint of 1,025 bytes is accepted")
		}
		for _, s := range x509Response(p).Svids {
			if len(s.Hint) > 1024 {
				p.Errorf("hint of %d bytes", len(s.Hint))
			}
		}
	}, withServer)
}

// shape are the methods and fields of a description, one a line.
func shape(fd *descriptorpb.FileDescriptorProto) (lines []string) {
	for _, s := range fd.Service {
		for _, m := range s.Method {
			lines = append(lines, fmt.Sprintf("%s.%s(%s) %s stream %t,%t", s.GetName(), m.GetName(), m.GetInputType(), m.GetOutputType(), m.GetClientStreaming(), m.GetServerStreaming()))
		}
	}
	for _, m := range fd.MessageType {
		for _, f := range m.Field {
			lines = append(lines, fmt.Sprintf("%s.%s %d %s %s %s", m.GetName(), f.GetName(), f.GetNumber(), f.GetLabel(), f.GetType(), f.GetTypeName()))
		}
	}
	return append(lines, "package "+fd.GetPackage())
}

func TestWorkloadAPIX509(t *testing.T) {
	point(t, "A-12", func(p *probe) {
		got := idsOf(x509Response(p).Svids)
		if !sameSet(got, at.ids) {
			p.Errorf("got %q, want %q", got, at.ids)
		}
	})
	point(t, "A-13", func(p *probe) {
		for _, m := range x509Response(p).Svids {
			s := readSVID(p, m)
			verify(p, s)
			if !samePublic(s.key.Public(), s.leaf().PublicKey) || len(s.bundle) == 0 {
				p.Errorf("%s: another key, or no bundle", s.id)
			}
			if re, err := x509.MarshalPKCS8PrivateKey(s.key); err != nil || !bytes.Equal(re, m.X509SvidKey) {
				p.Errorf("%s: the key is not DER in PKCS#8: %v", s.id, err)
			}
		}
	})
	point(t, "A-14", func(p *probe) {
		if at.server != nil { // an entry with a hint that is taken, and then one that shows that both have come
			entry(p, &types.Entry{SpiffeId: at.id("/conformance/double"), Hint: "internal"})
			entry(p, &types.Entry{SpiffeId: at.id("/conformance/thereafter")})
			eventually(p, "the last entry", func() bool {
				return slices.Contains(idsOf(x509Response(p).Svids), "spiffe://"+at.td+"/conformance/thereafter")
			})
		}
		var hints []string
		for _, s := range x509Response(p).Svids {
			hints = append(hints, "X.509 "+s.Hint)
		}
		r, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{"db"}})
		p.must("FetchJWTSVID", err)
		for _, s := range r.Svids {
			hints = append(hints, "JWT "+s.Hint)
		}
		if at.wit {
			for _, s := range fetchWIT(p, "").Svids {
				hints = append(hints, "WIT "+s.Hint)
			}
		}
		seen := map[string]bool{}
		for _, h := range hints {
			if seen[h] && !strings.HasSuffix(h, " ") {
				p.Errorf("hint %q is there twice", h)
			}
			seen[h] = true
		}
		if at.server != nil && (!seen["X.509 internal"] || !seen["X.509 external"]) {
			p.Errorf("hints %q, want internal and external", hints)
		}
	}, withTwo)
	point(t, "A-16", func(p *probe) {
		st, err := at.api.FetchX509Bundles(call(p), &pb.X509BundlesRequest{})
		m := first(p, st, err)
		want := []string{"spiffe://" + at.td}
		if at.far != nil {
			want = append(want, "spiffe://"+at.far.td)
		}
		for _, td := range want {
			list, err := x509.ParseCertificates(m.Bundles[td])
			if err != nil || len(list) == 0 {
				p.Errorf("bundle of %s: %d certificates, %v", td, len(list), err)
			}
		}
	})
	point(t, "A-27", func(p *probe) {
		for range 5 {
			if got := idsOf(x509Response(p).Svids); !slices.Equal(got, at.ids) {
				p.Errorf("got %q, want %q", got, at.ids)
			}
		}
	})
}

func idsOf(list []*pb.X509SVID) (ids []string) {
	for _, s := range list {
		ids = append(ids, s.SpiffeId)
	}
	return ids
}

func TestWorkloadAPIJWT(t *testing.T) {
	point(t, "A-18", func(p *probe) {
		want := []string{"db", "spiffe://" + at.td + "/cache"}
		for _, t := range fetchJWT(p, want...) {
			if got := audience(t); !slices.Equal(got, want) {
				p.Errorf("aud %q, want %q", got, want)
			}
			verified(p, t, jwtBundle(p))
		}
	})
	point(t, "A-19", func(p *probe) {
		if got := fetchJWT(p, "db"); len(got) != len(at.ids) {
			p.Errorf("%d tokens for %d identities", len(got), len(at.ids))
		}
		for _, id := range at.ids {
			r, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{"db"}, SpiffeId: id})
			p.must("FetchJWTSVID for "+id, err)
			if list := jwtTokens(p, r); len(list) != 1 || list[0].claims["sub"] != id {
				p.Errorf("for %s: %d tokens, the first for %v", id, len(list), list[0].claims["sub"])
			}
		}
		_, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{"db"}, SpiffeId: "spiffe://" + at.td + "/conformance/of-somebody-else"})
		code(p, "another identity", err, codes.PermissionDenied)
	})
	point(t, "A-20", func(p *probe) {
		_, list := rawJWKS(p, jwtBundle(p))
		var set jose.JSONWebKeySet
		p.must("RFC 7517", json.Unmarshal(jwtBundle(p), &set))
		if len(list) == 0 || len(set.Keys) != len(list) {
			p.Errorf("%d keys, of which %d can be read", len(list), len(set.Keys))
		}
	})
	point(t, "A-21", func(p *probe) {
		_, list := rawJWKS(p, jwtBundle(p))
		for _, k := range list {
			if use, ok := k["use"]; ok && use != "jwt-svid" || k["x5c"] != nil {
				p.Errorf("key %v has the use %v", k["kid"], use)
			}
			for _, c := range svids(p)[0].bundle {
				if x, _ := k["x"].(string); x != "" && x == coordinate(c) {
					p.Errorf("key %v is that of a CA", k["kid"])
				}
			}
		}
	})
	point(t, "A-22", func(p *probe) {
		for _, t := range fetchJWT(p, "db") {
			if r := valid(p, "our token", t.raw); r.SpiffeId != t.claims["sub"] {
				p.Errorf("the token of %v is said to be of %s", t.claims["sub"], r.SpiffeId)
			}
			invalid(p, "a changed signature", t.raw[:len(t.raw)-8]+"AAAAAAAA")
			invalid(p, "no token at all", "x.y.z")
			_, err := at.api.ValidateJWTSVID(call(p), &pb.ValidateJWTSVIDRequest{Audience: "other", Svid: t.raw})
			code(p, "for another audience", err, codes.InvalidArgument)
		}
	})
	point(t, "A-23", func(p *probe) {
		t := fetchJWT(p, "db")[0]
		claims := valid(p, "our token", t.raw).Claims.AsMap()
		if claims["sub"] != t.claims["sub"] || claims["exp"] != t.claims["exp"] || claims["aud"] == nil {
			p.Errorf("claims %v of the token's %v", claims, t.claims)
		}
	})
	point(t, "A-24", func(p *probe) {
		f := at.far
		valid(p, "a token of far", f.token(p, farHeader(), jose.ES256, f.jwtKey, nil))
		invalid(p, "a token for us by far", f.token(p, farHeader(), jose.ES256, f.jwtKey, map[string]any{"sub": at.ids[0]}))
		invalid(p, "a token of an unknown trust domain", f.token(p, farHeader(), jose.ES256, f.jwtKey, map[string]any{"sub": "spiffe://unknown.test/w"}))
	}, withServer)
}

func TestWorkloadAPIWIT(t *testing.T) {
	point(t, "A-25", func(p *probe) {
		all := fetchWIT(p, "")
		if len(all.Svids) != len(at.ids) {
			p.Errorf("%d WIT-SVIDs for %d identities", len(all.Svids), len(at.ids))
		}
		for _, s := range append(all.Svids, fetchWIT(p, at.ids[0]).Svids...) {
			t := readToken(p, s.WitSvid)
			privateOf(p, s.WitSvidKey, t)
			if t.claims["sub"] != s.SpiffeId {
				p.Errorf("%s: sub %v", s.SpiffeId, t.claims["sub"])
			}
		}
		err := ask(call(p), at.conn, service+"FetchWITSVID", &pb.WITSVIDRequest{SpiffeId: "spiffe://" + at.td + "/conformance/of-somebody-else"}, &pb.WITSVIDResponse{})
		code(p, "another identity", err, codes.PermissionDenied)
	}, withWIT)
	point(t, "A-26", func(p *probe) {
		_, list := rawJWKS(p, witBundle(p))
		unique(p, list)
		if len(list) == 0 {
			p.Errorf("no key")
		}
	}, withWIT)
}

// What happens on open streams takes entries that come and go.
func TestWorkloadAPIStreams(t *testing.T) {
	point(t, "A-5", func(p *probe) {
		st, err := at.api.FetchX509SVID(call(p), &pb.X509SVIDRequest{})
		before := first(p, st, err)
		id := entry(p, &types.Entry{SpiffeId: at.id("/conformance/four"), Hint: "four"})
		m := until(p, st, func(m *pb.X509SVIDResponse) bool { return len(m.Svids) == len(before.Svids)+1 })
		if len(m.FederatedBundles) != len(before.FederatedBundles) {
			p.Errorf("%d federated bundles after %d", len(m.FederatedBundles), len(before.FederatedBundles))
		}
		at.delete(id)
		m = until(p, st, func(m *pb.X509SVIDResponse) bool { return len(m.Svids) == len(before.Svids) })
		if got := idsOf(m.Svids); !slices.Equal(got, idsOf(before.Svids)) {
			p.Errorf("after the entry went: %q", got)
		}
	}, withServer)
	point(t, "A-7", func(p *probe) {
		st, err := at.api.FetchX509Bundles(call(p), &pb.X509BundlesRequest{})
		first(p, st, err)
		f, err := newFar("late.test")
		p.must("far trust domain", err)
		p.must("set its bundle", at.setBundle(p.Context(), f.bundle()))
		p.Cleanup(func() { at.deleteBundle("late.test") })
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/five"), FederatesWith: []string{"late.test"}})
		until(p, st, func(m *pb.X509BundlesResponse) bool { return m.Bundles["spiffe://late.test"] != nil })
	}, withServer)
	point(t, "A-15", func(p *probe) {
		own := readSelectors(fmt.Sprintf("unix:uid:%d", *strangerFlag))
		id := entry(p, &types.Entry{SpiffeId: at.id("/conformance/stranger"), Selectors: own})
		want := "spiffe://" + at.td + "/conformance/stranger"
		var answers <-chan answer
		eventually(p, "the stranger's identity", func() bool { // an agent that polls knows it later
			_, answers = play(p, "watcher")
			a := <-answers
			return slices.Equal(a.IDs, []string{want})
		})
		at.delete(id)
		deadline := time.After(patience)
		for {
			select {
			case a, ok := <-answers:
				if !ok {
					p.Fatalf("the stranger ended without a status")
				}
				if a.Code == "OK" && len(a.IDs) > 0 {
					continue // a renewal
				}
				if a.Code != codes.PermissionDenied.String() {
					p.Errorf("the stream ended with %s %s", a.Code, a.Message)
				}
				return
			case <-deadline:
				p.Fatalf("the stream is open %s after its last entry went", patience)
			}
		}
	}, withServer, withRoot)
}

// until receives messages to the one that is wanted.
func until[M any](p *probe, st interface{ Recv() (*M, error) }, ok func(*M) bool) *M {
	p.Helper()
	for {
		m, err := st.Recv()
		p.must("a message that was waited for", err)
		if ok(m) {
			return m
		}
	}
}
