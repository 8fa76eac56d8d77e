// SPDX-License-Identifier: Apache-2.0

// Package federation knows the trust bundles of other trust domains, keeps them fresh and serves our
// own to them (SPIFFE Federation, Trust Domain and Bundle).
//
//	their endpoint ──https──▶ Registry.Run ──▶ store ──watch──▶ every server's replica ──▶ agents
//	our bundle ──▶ Endpoint ──https──▶ them
//
// Keys in the store:
//
//	f/bundle/<trust domain>        its bundle as JSON
//	f/relationship/<trust domain>  where its bundle is fetched from
//	f/poll/<trust domain>          when a server last took it upon itself to fetch; the others leave
//	                               it to that one until the next time is due. A server that dies
//	                               while it fetches costs one interval.
package federation

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Why one item of a batch was not done. Store errors pass through as they are.
var (
	// ErrExists: there is one for that trust domain already.
	ErrExists = errors.New("already exists")
	// ErrNotFound: there is none for that trust domain.
	ErrNotFound = errors.New("not found")
	// ErrOwn: the trust domain is the server's own.
	ErrOwn = errors.New("is the server's own trust domain")
	// ErrInvalid: a bundle or relationship that can not be.
	ErrInvalid = errors.New("invalid")
	// ErrFederated: entries federate with the trust domain, and Restrict was asked for.
	ErrFederated = errors.New("registration entries federate with it")
	// ErrOlder: the endpoint served a bundle with a lower sequence number than the one that is known.
	ErrOlder = errors.New("the endpoint serves an older bundle")
	// ErrToken is a page token that no List returned.
	ErrToken = errors.New("could not parse token")
)

// Bundle of one trust domain. It is not changed once it was given to, or taken from, a Registry.
type Bundle struct {
	TrustDomain spiffeid.TrustDomain
	// X509 authorities sign X509-SVIDs. A bundle with none (or no authority at all) is valid and
	// means that nothing of that kind is trusted (SPIFFE Trust Domain and Bundle §4.1.3).
	X509 []*x509.Certificate
	// JWT and WIT authorities; no two have the same ID.
	JWT, WIT []Authority
	// RefreshHint is how often consumers should look; zero: not said.
	RefreshHint time.Duration
	// Sequence rises with every change of the content, as far as the publisher says it at all.
	Sequence uint64

	// sequenced: the document that it was read from states a sequence number.
	sequenced bool
}

// Authority signs JWT-SVIDs or WIT-SVIDs.
type Authority struct {
	ID        string // kid
	PublicKey crypto.PublicKey
	// ExpiresAt is zero where it is not known: bundle documents do not say it.
	ExpiresAt time.Time
}

// Equal reports whether both hold the same authorities in the same order; sequence and hint aside.
func (b *Bundle) Equal(o *Bundle) bool {
	same := func(x, y Authority) bool {
		k, ok := x.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
		return ok && x.ID == y.ID && x.ExpiresAt.Equal(y.ExpiresAt) && k.Equal(y.PublicKey)
	}
	return b.TrustDomain == o.TrustDomain && slices.EqualFunc(b.X509, o.X509, (*x509.Certificate).Equal) &&
		slices.EqualFunc(b.JWT, o.JWT, same) && slices.EqualFunc(b.WIT, o.WIT, same)
}

func (b *Bundle) empty() bool { return len(b.X509)+len(b.JWT)+len(b.WIT) == 0 }

// Validate reports what makes the bundle impossible, as ErrInvalid.
func (b *Bundle) Validate() error {
	if b.TrustDomain.IsZero() {
		return fmt.Errorf("%w bundle: it names no trust domain", ErrInvalid)
	}
	for _, cert := range b.X509 {
		if err := validateX509(b.TrustDomain, cert); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, a := range slices.Concat(b.JWT, b.WIT) {
		switch {
		case a.ID == "":
			return fmt.Errorf("%w bundle: a JWT or WIT authority has no key ID", ErrInvalid)
		case seen[a.ID]:
			return fmt.Errorf("%w bundle: key ID %q is there twice", ErrInvalid, a.ID)
		}
		if _, err := x509.MarshalPKIXPublicKey(a.PublicKey); err != nil {
			return fmt.Errorf("%w bundle: authority %q: %w", ErrInvalid, a.ID, err)
		}
		seen[a.ID] = true
	}
	return nil
}

// validateX509 refuses what is not an authority, and one that says it belongs to another trust
// domain: an endpoint mistaken for another must not be able to sign for both.
func validateX509(td spiffeid.TrustDomain, cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || !cert.IsCA {
		return fmt.Errorf("%w bundle: certificate %q is not a certificate authority", ErrInvalid, cert.Subject)
	}
	for _, uri := range cert.URIs {
		if id, err := spiffeid.FromURI(uri); err == nil && id.TrustDomain() != td {
			return fmt.Errorf("%w bundle: an authority is of trust domain %q, not of %q; check which endpoint or file belongs to which", ErrInvalid, id.TrustDomain().Name(), td.Name())
		}
	}
	return nil
}

// Profile is how a bundle endpoint proves itself (SPIFFE Federation §5.2).
type Profile string

// The profiles.
const (
	Web    Profile = "https_web"    // by a certificate for its host name
	SPIFFE Profile = "https_spiffe" // by an X509-SVID
)

// Relationship says where the bundle of a trust domain is fetched. None of its fields is inferred
// from another.
type Relationship struct {
	TrustDomain spiffeid.TrustDomain
	URL         string
	Profile     Profile
	// EndpointID is the endpoint's SPIFFE ID in the profile https_spiffe. Its trust domain may be
	// another one, whose bundle must then be known too.
	EndpointID spiffeid.ID
}

// Validate reports what is wrong with the relationship, as ErrInvalid.
func (r Relationship) Validate() error {
	if r.TrustDomain.IsZero() {
		return fmt.Errorf("%w federation relationship: it names no trust domain", ErrInvalid)
	}
	u, err := url.Parse(r.URL)
	if err == nil {
		err = validateURL(u)
	}
	if err != nil {
		return fmt.Errorf("%w bundle endpoint URL: %w", ErrInvalid, err)
	}
	switch {
	case r.Profile != Web && r.Profile != SPIFFE:
		return fmt.Errorf("%w bundle endpoint profile %q: it is %s or %s", ErrInvalid, r.Profile, Web, SPIFFE)
	case r.Profile == SPIFFE && r.EndpointID.IsZero():
		return fmt.Errorf("%w federation relationship: profile %s needs the endpoint's SPIFFE ID", ErrInvalid, SPIFFE)
	case r.Profile == SPIFFE && r.EndpointID.Path() == "": // X509-SVID §5.2, which go-spiffe leaves to its callers
		return fmt.Errorf("%w federation relationship: %s is a trust domain, and no endpoint can show an X509-SVID for that", ErrInvalid, r.EndpointID)
	case r.Profile == Web && !r.EndpointID.IsZero():
		return fmt.Errorf("%w federation relationship: profile %s takes no endpoint SPIFFE ID", ErrInvalid, Web)
	}
	return nil
}

// validateURL holds for configured endpoints and for where they redirect to (§5.2.1.1, §5.2.1.3).
func validateURL(u *url.URL) error {
	switch {
	case u.Scheme != "https":
		return fmt.Errorf("%q does not begin with https://", u.Redacted())
	case u.Hostname() == "":
		return fmt.Errorf("%q names no host", u.Redacted())
	case u.User != nil:
		return fmt.Errorf("%q must not hold a user name or password", u.Redacted())
	}
	return nil
}
