// SPDX-License-Identifier: Apache-2.0

package sds

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tls "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// found is one secret that the caller may have.
type found struct {
	name     string
	resource *anypb.Any
	version  string      // of its content
	svid     *svids.SVID // that is in it; nil of a bundle
}

func resources(list []found) []*anypb.Any {
	out := make([]*anypb.Any, len(list))
	for i, f := range list {
		out[i] = f.resource
	}
	return out
}

// inside returns the SVIDs in the secrets.
func inside(list []found) (out []*svids.SVID) {
	for _, f := range list {
		if f.svid != nil {
			out = append(out, f.svid)
		}
	}
	return out
}

// secrets returns those that are wanted and that the caller may have, in a fixed order.
func (s *Server) secrets(ctx context.Context, w *delivery.Session, want wanted, plain bool) (out []found, _ error) {
	entries, err := w.Entitled(spiffeid.ID{})
	if err != nil {
		return nil, err
	}
	if out, err = s.contexts(w.Bundles(entries), want, plain); err != nil {
		return nil, err
	}
	names := s.certificates(entries, want)
	if len(names) == 0 {
		return out, nil
	}
	asked := slices.DeleteFunc(slices.Clone(entries), func(e *selectors.Entry) bool { return len(names[e.ID]) == 0 })
	list, err := w.X509(ctx, asked)
	if err != nil {
		return nil, err
	}
	for _, v := range list {
		for _, name := range names[v.EntryID] {
			f, err := newSecret(name, certificate(v))
			if err != nil {
				return nil, err
			}
			f.svid = v
			out = append(out, f)
		}
	}
	return out, nil
}

// certificates says under which names the certificate of each entry is wanted. A SPIFFE ID that several
// entries have is the first one's.
func (s *Server) certificates(entries []*selectors.Entry, want wanted) map[string][]string {
	names, taken := map[string][]string{}, map[string]bool{}
	for i, e := range entries {
		if i == 0 && want.named(s.cfg.DefaultSVIDName) {
			names[e.ID] = append(names[e.ID], s.cfg.DefaultSVIDName)
		}
		if id := e.SPIFFEID.String(); !taken[id] && (want.all || want.named(id)) {
			taken[id] = true
			names[e.ID] = append(names[e.ID], id)
		}
	}
	return names
}

// contexts returns the validation contexts that are wanted; the first bundle is our trust domain's.
func (s *Server) contexts(bundles []*trust.Bundle, want wanted, plain bool) (out []found, _ error) {
	add := func(name string, of []*trust.Bundle) error {
		c, err := validation(of, plain)
		if err != nil {
			return err
		}
		f, err := newSecret(name, c)
		out = append(out, f)
		return err
	}
	for i, b := range bundles {
		if i == 0 && want.named(s.cfg.DefaultBundleName) {
			if err := add(s.cfg.DefaultBundleName, bundles[:1]); err != nil {
				return nil, err
			}
		}
		if id := b.TrustDomain().IDString(); want.all || want.named(id) {
			if err := add(id, []*trust.Bundle{b}); err != nil {
				return nil, err
			}
		}
	}
	if !want.named(s.cfg.DefaultAllBundlesName) {
		return out, nil
	}
	if plain {
		return nil, status.Errorf(codes.InvalidArgument, "%s needs Envoy's SPIFFE certificate validator, or one trust domain could speak for another: use Envoy 1.18 or later, enable the validator, or ask for each bundle by the SPIFFE ID of its trust domain", s.cfg.DefaultAllBundlesName)
	}
	return out, add(s.cfg.DefaultAllBundlesName, bundles)
}

func newSecret(name string, content *tls.Secret) (found, error) {
	content.Name = name
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(content)
	if err != nil {
		return found{}, fmt.Errorf("encode the secret %s: %w", name, err)
	}
	sum := sha256.Sum256(raw)
	return found{name: name, resource: &anypb.Any{TypeUrl: secretType, Value: raw}, version: hex.EncodeToString(sum[:8])}, nil
}

func certificate(v *svids.SVID) *tls.Secret {
	return &tls.Secret{Type: &tls.Secret_TlsCertificate{TlsCertificate: &tls.TlsCertificate{
		CertificateChain: inline(certificatesPEM(v.Chain)),
		PrivateKey:       inline(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: v.Key})),
	}}}
}

// validation is the context for the bundles; plain takes one only.
func validation(bundles []*trust.Bundle, plain bool) (*tls.Secret, error) {
	c := &tls.CertificateValidationContext{}
	if plain {
		c.TrustedCa = inline(certificatesPEM(bundles[0].X509()))
		return &tls.Secret{Type: &tls.Secret_ValidationContext{ValidationContext: c}}, nil
	}
	validator := &tls.SPIFFECertValidatorConfig{}
	for _, b := range bundles {
		validator.TrustDomains = append(validator.TrustDomains, &tls.SPIFFECertValidatorConfig_TrustDomain{
			Name: b.TrustDomain().Name(), TrustBundle: inline(certificatesPEM(b.X509()))})
	}
	typed, err := anypb.New(validator)
	if err != nil {
		return nil, fmt.Errorf("encode the SPIFFE certificate validator: %w", err)
	}
	c.CustomValidatorConfig = &core.TypedExtensionConfig{Name: "envoy.tls.cert_validator.spiffe", TypedConfig: typed}
	return &tls.Secret{Type: &tls.Secret_ValidationContext{ValidationContext: c}}, nil
}

func inline(b []byte) *core.DataSource {
	return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
}

// certificatesPEM encodes concatenated DER.
func certificatesPEM(der []byte) []byte {
	list, err := x509.ParseCertificates(der)
	if err != nil {
		return nil // ours: parsed before
	}
	var out bytes.Buffer
	for _, c := range list {
		out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return out.Bytes()
}

// validatorSwitch is the node metadata by which an Envoy overrides DisableSPIFFECertValidation, a
// boolean or its text. Anything else is as if it were not there.
const validatorSwitch = "disable_spiffe_cert_validation"

// plain reports whether an Envoy gets plain authorities instead of the SPIFFE certificate validator.
func (s *Server) plain(node *core.Node) bool {
	if v := node.GetUserAgentBuildVersion().GetVersion(); v != nil && (v.MajorNumber < 1 || v.MajorNumber == 1 && v.MinorNumber < 18) {
		return true
	}
	switch v := node.GetMetadata().GetFields()[validatorSwitch].GetKind().(type) {
	case *structpb.Value_BoolValue:
		return v.BoolValue
	case *structpb.Value_StringValue:
		if b, err := strconv.ParseBool(v.StringValue); err == nil {
			return b
		}
	}
	return s.cfg.DisableSPIFFECertValidation
}
