// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

// malformed IDs by requirement; TD stands for a trust domain. The server API takes an ID in two parts: those that it
// can be asked about are in parts.
var malformed = []struct {
	id    string
	uris  []string
	parts []*types.SPIFFEID
}{
	{"ID-1", []string{"http://TD/w", "spiffes://TD/w", "TD/w", "//TD/w"}, nil},
	{"ID-2", []string{"spiffe:///w", "spiffe://", "spiffe:w"}, []*types.SPIFFEID{{Path: "/w"}}},
	{"ID-3", []string{"spiffe://TD/w?a=b", "spiffe://TD/w?", "spiffe://TD/w#f", "spiffe://TD/w#"}, []*types.SPIFFEID{{TrustDomain: "TD", Path: "/w?a=b"}, {TrustDomain: "TD", Path: "/w#f"}}},
	{"ID-4", []string{"spiffe://user@TD/w", "spiffe://user:pass@TD/w", "spiffe://TD:443/w", "spiffe://TD:/w", "spiffe://@TD/w"}, []*types.SPIFFEID{{TrustDomain: "user@TD", Path: "/w"}, {TrustDomain: "TD:443", Path: "/w"}}},
	{"ID-6", []string{"spiffe://TD!/w", "spiffe://TD~/w", "spiffe://T\u00e4D/w", "spiffe://TD$/w"}, []*types.SPIFFEID{{TrustDomain: "TD!", Path: "/w"}, {TrustDomain: "T D", Path: "/w"}}},
	{"ID-7", []string{"spiffe://%TD/w", "spiffe://TD%2e/w"}, []*types.SPIFFEID{{TrustDomain: "TD%2e", Path: "/w"}}},
	{"ID-9", []string{"spiffe://TD/%77", "spiffe://TD/a%2Fb", "spiffe://TD/a%"}, []*types.SPIFFEID{{TrustDomain: "TD", Path: "/%77"}, {TrustDomain: "TD", Path: "/a%2Fb"}}},
	{"ID-10", []string{"spiffe://TD//w", "spiffe://TD/a//w", "spiffe://TD/./w", "spiffe://TD/a/../w", "spiffe://TD/..", "spiffe://TD/a/."}, []*types.SPIFFEID{
		{TrustDomain: "TD", Path: "//w"}, {TrustDomain: "TD", Path: "/a/../w"}, {TrustDomain: "TD", Path: "/."}, {TrustDomain: "TD", Path: "/a/./w"}}},
	{"ID-11", []string{"spiffe://TD/w/", "spiffe://TD/"}, []*types.SPIFFEID{{TrustDomain: "TD", Path: "/w/"}, {TrustDomain: "TD", Path: "/"}}},
	{"ID-12", []string{"spiffe://TD/w!", "spiffe://TD/a:b", "spiffe://TD/w~", "spiffe://TD/\u00e4", "spiffe://TD/a b", "spiffe://TD/a\x00"}, []*types.SPIFFEID{
		{TrustDomain: "TD", Path: "/w!"}, {TrustDomain: "TD", Path: "/a:b"}, {TrustDomain: "TD", Path: "/\u00e4"}, {TrustDomain: "TD", Path: "/a b"}}},
}

// A malformed ID is refused where a workload asks for it, in a well signed token, and by the server.
func TestSPIFFEIDMalformed(t *testing.T) {
	for _, c := range malformed {
		point(t, c.id, func(p *probe) {
			for _, uri := range c.uris {
				notServed(p, strings.ReplaceAll(uri, "TD", at.td))
				if at.far != nil {
					notASubject(p, strings.ReplaceAll(uri, "TD", at.far.td))
				}
			}
			if at.server == nil {
				return
			}
			for _, id := range c.parts {
				id := &types.SPIFFEID{TrustDomain: strings.ReplaceAll(id.TrustDomain, "TD", at.td), Path: id.Path}
				noEntry(p, id.String(), &types.Entry{SpiffeId: id})
			}
		})
	}
}

func notServed(p *probe, id string) {
	p.Helper()
	if strings.ToValidUTF8(id, "") != id || id == "" {
		return // no message can carry it, or it means another thing
	}
	_, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{"db"}, SpiffeId: id})
	code(p, "a token for "+id, err, codes.InvalidArgument, codes.PermissionDenied)
}

func notASubject(p *probe, id string) {
	p.Helper()
	valid(p, "a good token", at.far.token(p, farHeader(), jose.ES256, at.far.jwtKey, nil))
	invalid(p, "a token of "+id, at.far.token(p, farHeader(), jose.ES256, at.far.jwtKey, map[string]any{"sub": id}))
}

func TestSPIFFEID(t *testing.T) {
	point(t, "ID-5", func(p *probe) {
		noEntry(p, "upper case", &types.Entry{SpiffeId: &types.SPIFFEID{TrustDomain: strings.ToUpper(at.td), Path: "/w"}})
		for _, s := range svids(p) {
			if u, err := url.Parse(s.id); err != nil || u.Host != strings.ToLower(u.Host) {
				p.Errorf("%s: %v", s.id, err)
			}
		}
	}, withServer)
	point(t, "ID-8", func(p *probe) {
		for _, name := range []string{"192.0.2.1", "a_b", "UPPER", "[2001:db8::1]", "2001:db8::1"} {
			f, err := newFar(strings.Trim(strings.ReplaceAll(strings.ToLower(name), ":", "-"), "[]"))
			p.must("far trust domain", err)
			b := f.bundle()
			b.TrustDomain = name
			err = at.setBundle(p.Context(), b)
			at.deleteBundle(name)
			if good := f.td == name; good != (err == nil) {
				p.Errorf("a bundle of trust domain %q: %v", name, err)
			}
		}
	}, withServer)
	point(t, "ID-13", func(p *probe) {
		id := at.id("/" + strings.Repeat("x", 2048-len("spiffe://"+at.td+"/")))
		entry(p, &types.Entry{SpiffeId: id})
		eventually(p, "an SVID with an ID of 2048 bytes", func() bool {
			for _, m := range x509Response(p).Svids {
				if m.SpiffeId == "spiffe://"+at.td+id.Path {
					return readSVID(p, m).leaf().URIs[0].String() == m.SpiffeId
				}
			}
			return false
		})
	}, withServer)
	point(t, "ID-14", func(p *probe) {
		noEntry(p, "an ID of 2049 bytes", &types.Entry{SpiffeId: at.id("/" + strings.Repeat("x", 2049-len("spiffe://"+at.td+"/")))})
	}, withServer)
	point(t, "ID-15", func(p *probe) {
		for n, good := range map[int]bool{255: true, 256: false} {
			f, err := newFar(strings.Repeat("x", n))
			p.must("far trust domain", err)
			err = at.setBundle(p.Context(), f.bundle())
			at.deleteBundle(f.td)
			if good != (err == nil) {
				p.Errorf("a trust domain of %d bytes: %v", n, err)
			}
		}
	}, withServer)
}

func TestSPIFFEIDIssued(t *testing.T) {
	point(t, "ID-16", func(p *probe) {
		path := strings.TrimPrefix(at.ids[0], "spiffe://"+at.td)
		_, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{"db"}, SpiffeId: "spiffe://" + at.td + strings.ToUpper(path)})
		code(p, "our path in upper case", err, codes.PermissionDenied)
		for _, id := range []string{"SPIFFE://" + at.td + path, "spiffe://" + strings.ToUpper(at.td) + path} {
			// Accepted as the same one or, by sections 2 and 2.1, refused.
			r, err := at.api.FetchJWTSVID(call(p), &pb.JWTSVIDRequest{Audience: []string{"db"}, SpiffeId: id})
			if err == nil && (len(r.Svids) != 1 || r.Svids[0].SpiffeId != at.ids[0]) {
				p.Errorf("%s gives %v", id, r.Svids)
			}
		}
	})
	point(t, "ID-17", func(p *probe) {
		for _, s := range svids(p) {
			for _, ca := range s.bundle {
				if len(ca.URIs) != 1 || ca.URIs[0].Scheme != "spiffe" {
					p.Errorf("authority %s has the URIs %v", ca.Subject, ca.URIs)
				}
			}
		}
	})
	point(t, "ID-18", func(p *probe) {
		for _, s := range svids(p) {
			for _, ca := range s.bundle {
				if len(ca.URIs) != 1 || ca.URIs[0].String() != "spiffe://"+at.td {
					p.Errorf("authority %s has the URIs %v, want spiffe://%s", ca.Subject, ca.URIs, at.td)
				}
			}
		}
	})
	point(t, "ID-19", func(p *probe) {
		for _, s := range svids(p) {
			verify(p, s)
			if s.leaf().URIs[0].String() != s.id || !samePublic(s.key.Public(), s.leaf().PublicKey) {
				p.Errorf("%s: the certificate names %s or another key", s.id, s.leaf().URIs[0])
			}
		}
		for _, t := range tokens(p) {
			verified(p, t, jwtBundle(p))
		}
	})
}
