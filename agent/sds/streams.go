// SPDX-License-Identifier: Apache-2.0

package sds

import (
	"context"
	"crypto/rand"
	"maps"
	"slices"
	"strconv"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
)

// wanted are the names that a client asks for.
type wanted struct {
	all   bool
	names map[string]bool
}

func (w *wanted) named(name string) bool { return w.names[name] }

// replace takes the names of a state-of-the-world request. None are all of them, if none were ever named.
func (w *wanted) replace(names []string) {
	first := w.names == nil
	w.names = map[string]bool{}
	w.add(names)
	w.all = len(w.names) == 0 && (first || w.all)
}

func (w *wanted) add(names []string) {
	for _, n := range names {
		if n != "" {
			w.names[n] = true
		}
	}
}

func (w *wanted) missing(have []found) []string {
	rest := maps.Clone(w.names)
	for _, f := range have {
		delete(rest, f.name)
	}
	return slices.Sorted(maps.Keys(rest))
}

// client is what both kinds of streams remember of theirs.
type client struct {
	want    wanted
	plain   bool
	nonce   string // of the last response
	missing []string
}

// reads one request: its node, which may come in the first one only, and its verdict on the last response. It reports
// whether the rest of the request counts: one that answers an older response does not.
func (c *client) reads(s *Server, w *delivery.Session, node *core.Node, nonce string, failed *rpcstatus.Status) bool {
	if node != nil {
		c.plain = s.plain(node)
	}
	if failed != nil {
		s.cfg.Logger.Warn("Envoy could not use the secrets it was sent", "pid", w.Facts().Process.TGID, "error", failed.Message)
	}
	return nonce == c.nonce || nonce == ""
}

// lacks says once in the log which names there is nothing for.
func (c *client) lacks(s *Server, w *delivery.Session, list []found) {
	now := c.want.missing(list)
	if len(now) > 0 && !slices.Equal(now, c.missing) {
		s.cfg.Logger.Warn("Envoy asks for secrets that its entries do not give it", "pid", w.Facts().Process.TGID, "names", now)
	}
	c.missing = now
}

// StreamSecrets sends all secrets that were asked for, and again when one of them changes or others are asked for.
func (s *Server) StreamSecrets(st secret.SecretDiscoveryService_StreamSecretsServer) error {
	var c client
	var last *discovery.DiscoveryResponse
	var sent []found
	asked, version := false, 0
	return converse(s, st, func(ctx context.Context, w *delivery.Session, came []*discovery.DiscoveryRequest) (*discovery.DiscoveryResponse, []*svids.SVID, error) {
		moved := false
		for _, req := range came {
			if err := checkType(req.TypeUrl); err != nil {
				return nil, nil, err
			}
			if !c.reads(s, w, req.Node, req.ResponseNonce, req.ErrorDetail) {
				continue
			}
			before := c.want
			c.want.replace(req.ResourceNames)
			moved = moved || !asked || before.all != c.want.all || !maps.Equal(before.names, c.want.names)
			asked = true
		}
		if !asked {
			return nil, nil, nil
		}
		have, err := s.secrets(ctx, w, c.want, c.plain)
		if err != nil {
			return nil, nil, err
		}
		c.lacks(s, w, have)
		if !moved && slices.EqualFunc(have, sent, same) || len(have) == 0 {
			return last, nil, nil
		}
		version++
		c.nonce, sent = rand.Text(), have
		last = &discovery.DiscoveryResponse{TypeUrl: secretType, VersionInfo: strconv.Itoa(version), Nonce: c.nonce, Resources: resources(have)}
		return last, inside(have), nil
	})
}

func same(a, b found) bool { return a.name == b.name && a.version == b.version }

// DeltaSecrets sends each secret when it is asked for, unless the client has this version, and when it changes; and the names of
// those that there is nothing for.
func (s *Server) DeltaSecrets(st secret.SecretDiscoveryService_DeltaSecretsServer) error {
	var c client
	var last *discovery.DeltaDiscoveryResponse
	asked, version := false, 0
	has := map[string]string{} // name → the version that the client has; "" is that there is none
	return converse(s, st, func(ctx context.Context, w *delivery.Session, came []*discovery.DeltaDiscoveryRequest) (*discovery.DeltaDiscoveryResponse, []*svids.SVID, error) {
		for _, req := range came {
			if err := checkType(req.TypeUrl); err != nil {
				return nil, nil, err
			}
			c.reads(s, w, req.Node, req.ResponseNonce, req.ErrorDetail) // what is subscribed counts in any order
			c.subscribe(req, !asked, has)
			asked = true
		}
		if !asked {
			return nil, nil, nil
		}
		have, err := s.secrets(ctx, w, c.want, c.plain)
		if err != nil {
			return nil, nil, err
		}
		c.lacks(s, w, have)
		next, told := delta(c.want, have, has)
		if len(next.Resources) == 0 && len(next.RemovedResources) == 0 {
			return last, nil, nil
		}
		version++
		c.nonce = rand.Text()
		next.Nonce, next.SystemVersionInfo = c.nonce, strconv.Itoa(version)
		last = next
		return last, inside(told), nil
	})
}

// subscribe takes what a delta request changes. A first one that names nothing, or "*", is for all.
func (c *client) subscribe(req *discovery.DeltaDiscoveryRequest, first bool, has map[string]string) {
	if first {
		c.want = wanted{all: len(req.ResourceNamesSubscribe) == 0, names: map[string]bool{}}
		maps.Copy(has, req.InitialResourceVersions)
	}
	for _, n := range req.ResourceNamesSubscribe {
		if n == "*" {
			c.want.all = true
			continue
		}
		c.want.add([]string{n})
		if !first {
			delete(has, n) // asked for again: sent again
		}
	}
	for _, n := range req.ResourceNamesUnsubscribe {
		if n == "*" {
			c.want.all = false
		}
		delete(c.want.names, n)
		delete(has, n)
	}
}

// delta is what a client that has some versions is told, with the secrets in it; it has those then.
func delta(want wanted, have []found, has map[string]string) (out *discovery.DeltaDiscoveryResponse, told []found) {
	out = &discovery.DeltaDiscoveryResponse{TypeUrl: secretType}
	there := map[string]bool{}
	for _, f := range have {
		there[f.name] = true
		if has[f.name] != f.version {
			has[f.name] = f.version
			told = append(told, f)
			out.Resources = append(out.Resources, &discovery.Resource{Name: f.name, Version: f.version, Resource: f.resource})
		}
	}
	for _, n := range want.missing(have) {
		if v, known := has[n]; !known || v != "" {
			has[n] = ""
			out.RemovedResources = append(out.RemovedResources, n)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(has)) {
		if has[n] != "" && !there[n] { // of those that it has because it wants all
			delete(has, n)
			out.RemovedResources = append(out.RemovedResources, n)
		}
	}
	return out, told
}
