// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/idna"

	"github.com/assay-id/assay/selectors"
)

// InvalidError is an entry that can not be stored. Its text is SPIRE's where SPIRE has one.
type InvalidError struct {
	Reason string
	// Stored: SPIRE finds this one in its datastore and not in the message, and says so.
	Stored bool
}

func (e *InvalidError) Error() string { return e.Reason }

func invalid(format string, args ...any) error {
	return &InvalidError{Reason: fmt.Sprintf(format, args...)}
}

func invalidStored(format string, args ...any) error {
	return &InvalidError{Reason: fmt.Sprintf("invalid registration entry: "+format, args...), Stored: true}
}

const (
	maxID       = 255
	maxHint     = 1024
	maxSPIFFEID = 2048 // bytes (SPIFFE-ID §2.3)
)

// validate applies the rules for what an entry may hold.
func (r *Registry) validate(e *selectors.Entry) error {
	for _, rule := range []func(*selectors.Entry) error{r.validateIDs, r.validateSelectors, validateDNS, r.validateBundles} {
		if err := rule(e); err != nil {
			return err
		}
	}
	switch {
	case len(e.Hint) > maxHint:
		return invalid("invalid hint: hint is too long, max length is %d characters", maxHint)
	case e.X509SVIDTTL < 0:
		return invalidStored("X509SvidTtl is negative")
	case e.JWTSVIDTTL < 0:
		return invalidStored("JwtSvidTtl is negative")
	case len(e.ID) > maxID:
		return invalidStored("entry ID too long")
	case strings.ContainsFunc(e.ID, func(c rune) bool { return !idChar(c) }):
		return invalidStored("entry ID contains invalid characters")
	}
	return nil
}

func idChar(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("-._", c)
}

func (r *Registry) validateIDs(e *selectors.Entry) error {
	if err := r.member(e.ParentID); err != nil {
		return invalid("invalid parent ID: %v", err)
	}
	if err := r.member(e.SPIFFEID); err != nil {
		return invalid("invalid spiffe ID: %v", err)
	}
	if p := e.SPIFFEID.Path(); p == "/spire" || strings.HasPrefix(p, "/spire/") {
		return invalid("invalid spiffe ID: %q is not a workload in trust domain %q; path is in the reserved namespace", e.SPIFFEID, r.cfg.TrustDomain.Name())
	}
	return nil
}

func (r *Registry) member(id spiffeid.ID) error {
	switch {
	case id.IsZero():
		return fmt.Errorf("request must specify SPIFFE ID")
	case id.TrustDomain() != r.cfg.TrustDomain:
		return fmt.Errorf("%q is not a member of trust domain %q", id, r.cfg.TrustDomain.Name())
	case id.Path() == "":
		return fmt.Errorf("%q is not a member of trust domain %q; path is empty", id, r.cfg.TrustDomain.Name())
	case len(id.String()) > maxSPIFFEID:
		return fmt.Errorf("SPIFFE ID has %d bytes; the limit is %d", len(id.String()), maxSPIFFEID)
	}
	return nil
}

func (r *Registry) validateSelectors(e *selectors.Entry) error {
	if len(e.Selectors) == 0 {
		return invalid("selector list is empty")
	}
	for _, s := range e.Selectors {
		switch {
		case s.Type == "":
			return invalid("missing selector type")
		case strings.Contains(s.Type, ":"):
			return invalid("selector type contains ':'")
		case s.Value == "":
			return invalid("missing selector value")
		case e.StoreSVID && s.Type != e.Selectors[0].Type:
			return invalidStored("selector types must be the same when store SVID is enabled")
		}
		if err := r.known(e, s); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(e.Selectors, func(s selectors.Selector) bool { return s.Type != "hint" }) {
		return invalid("all selectors are hints, which are a process's own word: anybody on the node could claim the identity; add what the kernel proves, such as unix:uid, unix:sha256 or parent:sha256")
	}
	if e.StoreSVID && e.Attributes != nil && e.Attributes.DisableX509SVIDPrefetch {
		return invalidStored("disable_x509_svid_prefetch can not be used when store SVID is enabled")
	}
	return nil
}

// known refuses selectors that nothing can match, which SPIRE stores.
func (r *Registry) known(e *selectors.Entry, s selectors.Selector) error {
	if slices.Contains(r.cfg.ForeignSelectors, s.Type) || e.SPIFFEID.Path() == capabilityProbe && e.ParentID == e.SPIFFEID {
		return nil
	}
	err := s.Known()
	if unknown, ok := errors.AsType[*selectors.UnknownError](err); ok && unknown.Type {
		return invalid("%v; if an attestor of yours has it, add it to foreign_selectors in the server's configuration", err)
	} else if err != nil {
		return invalid("%v", err)
	}
	return nil
}

// capabilityProbe: spire-controller-manager creates an entry like this with the selector a:1 and deletes it, to learn
// which fields a server knows. As its own parent it gives nobody an identity.
const capabilityProbe = "/spire-controller-manager/unsupported-fields-test"

// dnsProfile is what a certificate's DNS name may be: already in its ASCII form.
var dnsProfile = idna.New(idna.StrictDomainName(true), idna.ValidateLabels(true), idna.VerifyDNSLength(true), idna.BidiRule())

func validateDNS(e *selectors.Entry) error {
	for _, name := range e.DNSNames {
		if err := ValidateDNSName(name); err != nil {
			return invalid("invalid DNS name: %v", err)
		}
	}
	return nil
}

// ValidateDNSName checks a name for a certificate; "*." may stand before it.
func ValidateDNSName(name string) error {
	bare := strings.TrimPrefix(name, "*.")
	switch {
	case bare == "" || strings.HasSuffix(bare, "."):
		return fmt.Errorf("%q is empty or ends with a dot", name)
	case strings.Contains(bare, "*"):
		return fmt.Errorf("%q: a wildcard may only be the first label", name)
	}
	ascii, err := dnsProfile.ToASCII(bare)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	if ascii != bare {
		return fmt.Errorf("%q is not in its ASCII form %q", name, ascii)
	}
	return nil
}

func (r *Registry) validateBundles(e *selectors.Entry) error {
	for _, name := range e.FederatesWith {
		td, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return invalid("invalid federated trust domain: %v", err)
		}
		if !r.cfg.HasBundle(td) {
			return fmt.Errorf("%w %q", ErrNoBundle, td.IDString())
		}
	}
	return nil
}

// unique refuses repetitions inside one entry. Create asks after the similar-entry rule.
func (r *Registry) unique(e *selectors.Entry) error {
	if len(e.SelectorSet()) != len(e.Selectors) {
		return fmt.Errorf("%w selector", ErrDuplicate)
	}
	names := slices.Sorted(slices.Values(e.DNSNames))
	if len(slices.Compact(names)) != len(e.DNSNames) {
		return fmt.Errorf("%w DNS name", ErrDuplicate)
	}
	return nil
}
