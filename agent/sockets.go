// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"fmt"
	"io/fs"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/selectors"
)

// SocketConfig is a block `socket "name"`: one more socket of the Workload API and SDS beside socket_path, for others.
type SocketConfig struct {
	Name string `hcl:"name,label"`
	Path string `hcl:"path"`
	// Mode of the file in octal (default "0777").
	Mode string `hcl:"mode,optional"`
	// User and Group own the file, by name or number (default: the agent's). Not for a socket that systemd makes.
	User  string `hcl:"user,optional"`
	Group string `hcl:"group,optional"`
	// Only narrows what this socket gives.
	Only *OnlyConfig `hcl:"only,block"`
	// DisableWorkloadAPI and DisableSDS leave one of the two out.
	DisableWorkloadAPI bool `hcl:"disable_workload_api,optional"`
	DisableSDS         bool `hcl:"disable_sds,optional"`
	// AuthorizedDelegates are SPIFFE IDs whose workloads may ask here for the identities of other processes (SPIRE's Delegated
	// Identity API). Without any the socket has no such API.
	AuthorizedDelegates []string `hcl:"authorized_delegates,optional"`
}

// OnlyConfig is the block `only`. An entry must satisfy each list that is not empty.
type OnlyConfig struct {
	// SPIFFEIDPrefixes are SPIFFE IDs: they and those below them.
	SPIFFEIDPrefixes []string `hcl:"spiffe_id_prefixes,optional"`
	// Hints of entries.
	Hints []string `hcl:"hints,optional"`
}

// LimitsConfig is the block `limits`. A caller is the processes of one user in one cgroup (unit, container).
type LimitsConfig struct {
	// Connections (10000) and streams (20000) that are open at a time, and those of one caller (1000 and 4000). No user gets
	// more than half of all.
	Connections          int `hcl:"connections,optional"`
	ConnectionsPerCaller int `hcl:"connections_per_caller,optional"`
	Streams              int `hcl:"streams,optional"`
	StreamsPerCaller     int `hcl:"streams_per_caller,optional"`
	// CallsPerSecond of one caller, of each method that is named below and of all others together (1000). The names are those
	// of SPIRE's experimental.ratelimit and two more.
	CallsPerSecond   int `hcl:"calls_per_second,optional"`
	FetchX509SVID    int `hcl:"fetch_x509_svid,optional"`
	FetchX509Bundles int `hcl:"fetch_x509_bundles,optional"`
	FetchJWTSVID     int `hcl:"fetch_jwt_svid,optional"`
	FetchJWTBundles  int `hcl:"fetch_jwt_bundles,optional"`
	ValidateJWTSVID  int `hcl:"validate_jwt_svid,optional"`
	StreamSecrets    int `hcl:"stream_secrets,optional"`
	DeltaSecrets     int `hcl:"delta_secrets,optional"`
	FetchSecrets     int `hcl:"fetch_secrets,optional"`
}

// socket is a SocketConfig that was understood; socket_path is one without a name.
type socket struct {
	SocketConfig
	mode  fs.FileMode
	owner *caller.Owner               // nil: the agent's
	view  func(*selectors.Entry) bool // nil: all

	delegates []spiffeid.ID
}

func (s *socket) where() string {
	if s.Name == "" {
		return "socket_path"
	}
	return fmt.Sprintf("block socket %q", s.Name)
}

// prepareSockets understands socket_path and the blocks.
func (p *prepared) prepareSockets() error {
	all := append([]SocketConfig{{Path: p.SocketPath}}, p.Sockets...)
	for _, c := range all {
		s := &socket{SocketConfig: c}
		if err := s.prepare(p.trustDomain); err != nil {
			return fmt.Errorf("%s: %w", s.where(), err)
		}
		if slices.ContainsFunc(p.sockets, func(o *socket) bool { return o.Path == s.Path || o.Name == s.Name }) || s.Path == p.AdminSocketPath {
			return fmt.Errorf("%s: another socket has its name or its path %s: give each its own", s.where(), s.Path)
		}
		p.sockets = append(p.sockets, s)
	}
	return nil
}

func (s *socket) prepare(td spiffeid.TrustDomain) error {
	if err := s.checkPath(); err != nil {
		return err
	}
	mode, err := strconv.ParseUint(cmp.Or(s.Mode, "0777"), 8, 32)
	if err != nil || mode > 0o777 {
		return fmt.Errorf("mode %q: write permissions in octal, for example \"0660\"", s.Mode)
	}
	s.mode = fs.FileMode(mode)
	if s.User != "" || s.Group != "" {
		if s.owner, err = findOwner(s.User, s.Group); err != nil {
			return err
		}
	}
	for _, text := range s.AuthorizedDelegates {
		id, err := spiffeid.FromString(text)
		if err != nil || !id.MemberOf(td) {
			return fmt.Errorf("authorized_delegates %q: write a SPIFFE ID of %s", text, td)
		}
		s.delegates = append(s.delegates, id)
	}
	if s.DisableSDS && s.DisableWorkloadAPI && len(s.delegates) == 0 {
		return fmt.Errorf("disable_sds and disable_workload_api leave nothing: remove the socket")
	}
	if s.Only != nil {
		s.view, err = s.Only.view(td)
	}
	return err
}

func (s *socket) checkPath() error {
	s.Path = strings.TrimPrefix(s.Path, "unix://")
	switch {
	case strings.HasPrefix(s.Path, "@"):
		return fmt.Errorf("%q is an abstract socket: %w", s.Path, caller.ErrAbstract)
	case strings.Contains(s.Path, "://"):
		return fmt.Errorf("%q: over a network the kernel does not name the caller: write the absolute path of a Unix socket", s.Path)
	case !filepath.IsAbs(s.Path):
		return fmt.Errorf("%q: write an absolute path", s.Path)
	}
	s.Path = filepath.Clean(s.Path)
	return nil
}

func findOwner(name, group string) (*caller.Owner, error) {
	o := &caller.Owner{UID: -1, GID: -1}
	number := func(text string, look func(string) (string, error), into *int) error {
		if text == "" {
			return nil
		}
		if found, err := look(text); err == nil {
			text = found
		}
		n, err := strconv.ParseUint(text, 10, 31)
		*into = int(n)
		return err
	}
	if err := number(name, func(n string) (string, error) {
		u, err := user.Lookup(n)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	}, &o.UID); err != nil {
		return nil, fmt.Errorf("user %q is not known here: write a name of /etc/passwd or a number", name)
	}
	if err := number(group, func(n string) (string, error) {
		g, err := user.LookupGroup(n)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	}, &o.GID); err != nil {
		return nil, fmt.Errorf("group %q is not known here: write a name of /etc/group or a number", group)
	}
	return o, nil
}

// view says which entries the lists let through.
func (c *OnlyConfig) view(td spiffeid.TrustDomain) (func(*selectors.Entry) bool, error) {
	if len(c.SPIFFEIDPrefixes) == 0 && len(c.Hints) == 0 {
		return nil, fmt.Errorf("block only: write spiffe_id_prefixes or hints")
	}
	prefixes := make([]string, len(c.SPIFFEIDPrefixes))
	for i, text := range c.SPIFFEIDPrefixes {
		id, err := spiffeid.FromString(strings.TrimSuffix(text, "/"))
		if err != nil || !id.MemberOf(td) {
			return nil, fmt.Errorf("spiffe_id_prefixes %q: write a SPIFFE ID of %s, for example %q", text, td, td.IDString()+"/ci")
		}
		prefixes[i] = id.String()
	}
	return func(e *selectors.Entry) bool {
		id := e.SPIFFEID.String()
		below := func(p string) bool { return id == p || strings.HasPrefix(id, p+"/") }
		return (len(prefixes) == 0 || slices.ContainsFunc(prefixes, below)) && (len(c.Hints) == 0 || slices.Contains(c.Hints, e.Hint))
	}, nil
}

// methods are the limits that have a name, by the method's.
func (c *LimitsConfig) methods() map[string]*int {
	return map[string]*int{
		"FetchX509SVID": &c.FetchX509SVID, "FetchX509Bundles": &c.FetchX509Bundles, "FetchJWTSVID": &c.FetchJWTSVID, "FetchJWTBundles": &c.FetchJWTBundles,
		"ValidateJWTSVID": &c.ValidateJWTSVID, "StreamSecrets": &c.StreamSecrets, "DeltaSecrets": &c.DeltaSecrets, "FetchSecrets": &c.FetchSecrets,
	}
}

// prepare fills in defaults.
func (c *LimitsConfig) prepare() error {
	fields := map[*int]int{&c.Connections: 10_000, &c.ConnectionsPerCaller: 1000, &c.Streams: 20_000, &c.StreamsPerCaller: 4000}
	c.CallsPerSecond = cmp.Or(c.CallsPerSecond, 1000)
	fields[&c.CallsPerSecond] = c.CallsPerSecond
	for _, n := range c.methods() {
		fields[n] = c.CallsPerSecond
	}
	for field, fallback := range fields {
		if *field = cmp.Or(*field, fallback); *field < 1 {
			return fmt.Errorf("block limits: %d is no limit: write a positive number, or leave it out for the default", *field)
		}
	}
	return nil
}

func (c *LimitsConfig) rates(now func() time.Time) map[string]*limits.Rate {
	all := map[string]*limits.Rate{"": limits.NewRate(c.CallsPerSecond, now)}
	for name, n := range c.methods() {
		all[name] = limits.NewRate(*n, now)
	}
	return all
}
