// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/agent/broker"
	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/selectors"
)

// BrokerConfig is the block `broker`: the SPIFFE Broker API, for proxies that ask for the identities of workloads. Without
// the block there is none.
type BrokerConfig struct {
	// SocketPath (default /run/assay/agent/broker.sock, or none if Listen is set), Mode (default "0770"), User and Group: as
	// of a block socket. Who connects shows an X509-SVID all the same.
	SocketPath string `hcl:"socket_path,optional"`
	Mode       string `hcl:"mode,optional"`
	User       string `hcl:"user,optional"`
	Group      string `hcl:"group,optional"`
	// Listen is host:port, for brokers on other machines.
	Listen string `hcl:"listen,optional"`
	// Allow names the brokers.
	Allow []BrokerAllow `hcl:"allow,block"`
}

// BrokerAllow is a block `allow "spiffe://…"`: one broker, of whatever trust domain.
type BrokerAllow struct {
	ID string `hcl:"id,label"`
	// ReferenceTypes it may use (default and all there are: ["pid"]).
	ReferenceTypes []string `hcl:"reference_types,optional"`
	// AllowOverTCP lets it refer to this machine's workloads over TCP also.
	AllowOverTCP bool `hcl:"allow_over_tcp,optional"`
}

// brokers is a BrokerConfig that was understood.
type brokers struct {
	path   string
	mode   fs.FileMode
	owner  *caller.Owner
	listen string
	rights map[spiffeid.ID]broker.Rights
}

func (p *prepared) prepareBrokers() error {
	c := p.Broker
	if c == nil {
		return nil
	}
	if c.SocketPath == "" && c.Listen == "" {
		c.SocketPath = "/run/assay/agent/broker.sock"
	}
	b, err := c.prepare()
	if err != nil {
		return fmt.Errorf("block broker: %w", err)
	}
	if b.path != "" && (b.path == p.AdminSocketPath || slices.ContainsFunc(p.sockets, func(s *socket) bool { return s.Path == b.path })) {
		return fmt.Errorf("block broker: another socket has the path %s: give each its own", b.path)
	}
	p.brokers = b
	return nil
}

func (c *BrokerConfig) prepare() (b *brokers, err error) {
	b = &brokers{path: strings.TrimPrefix(c.SocketPath, "unix://"), listen: c.Listen, rights: map[spiffeid.ID]broker.Rights{}}
	if b.path != "" && !filepath.IsAbs(b.path) {
		return nil, fmt.Errorf("socket_path %q: write an absolute path", c.SocketPath)
	}
	mode, err := strconv.ParseUint(cmp.Or(c.Mode, "0770"), 8, 32)
	if err != nil || mode > 0o777 {
		return nil, fmt.Errorf("mode %q: write permissions in octal, for example \"0660\"", c.Mode)
	}
	b.mode = fs.FileMode(mode)
	if c.User != "" || c.Group != "" {
		if b.owner, err = findOwner(c.User, c.Group); err != nil {
			return nil, err
		}
	}
	if _, _, err := net.SplitHostPort(c.Listen); c.Listen != "" && err != nil {
		return nil, fmt.Errorf("listen %q: write host:port", c.Listen)
	}
	if len(c.Allow) == 0 {
		return nil, errors.New("nobody could use it: name a broker in a block allow \"spiffe://…\" { }")
	}
	for _, a := range c.Allow {
		id, err := spiffeid.FromString(a.ID)
		if err != nil {
			return nil, fmt.Errorf("allow %q: write one SPIFFE ID: %w", a.ID, err)
		}
		if a.AllowOverTCP && c.Listen == "" {
			return nil, fmt.Errorf("allow %q: allow_over_tcp needs listen = \"host:port\"", a.ID)
		}
		if a.ReferenceTypes == nil {
			a.ReferenceTypes = broker.References
		}
		for _, r := range a.ReferenceTypes {
			if !slices.Contains(broker.References, r) {
				return nil, fmt.Errorf("allow %q: reference type %q: there are %s", a.ID, r, strings.Join(broker.References, ", "))
			}
		}
		b.rights[id] = broker.Rights{References: a.ReferenceTypes, OverTCP: a.AllowOverTCP}
	}
	return b, nil
}

// served is a gRPC server on one of its listeners.
type served struct {
	server   *grpc.Server
	listener net.Listener
}

// listenBrokers opens what the block broker says, if there is one.
func (a *Agent) listenBrokers(ctx context.Context) (list []served, err error) {
	b := a.conf.brokers
	if b == nil {
		return nil, nil
	}
	desk := delivery.New(delivery.Config{SVIDs: a.svids, History: a.history, Memory: a.memory, View: forOthers, Logger: a.log, Now: time.Now})
	remote := limits.Caller{UID: ^uint32(0)} // whose attestations take turns: no user's of this machine
	server := broker.New(broker.Config{
		Desk: desk, Identity: a.server, Bundle: a.svids.Bundle, Brokers: b.rights, Logger: a.log,
		Process: func(ctx context.Context, pid int) (delivery.Workload, error) { return a.referenced(ctx, remote, pid) },
	}).GRPC()
	if b.path != "" {
		l, err := listenUnix("block broker", b.path, b.mode, b.owner)
		if err != nil {
			return nil, err
		}
		list = append(list, served{server, l})
	}
	if b.listen != "" {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", b.listen)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("block broker: %w", err), closeServed(list))
		}
		list = append(list, served{server, l})
		a.log.Info("brokers can come over the network", "address", l.Addr())
	}
	return list, nil
}

func closeServed(list []served) (err error) {
	for _, s := range list {
		err = errors.Join(err, s.listener.Close())
	}
	return err
}

// forOthers keeps identities with rights at the server for the workloads themselves.
func forOthers(e *selectors.Entry) bool { return !e.Admin && !e.Downstream }

// referenced attests a process that somebody else named, in his turn, and holds it until ctx ends.
func (a *Agent) referenced(ctx context.Context, who limits.Caller, pid int) (delivery.Workload, error) {
	giveBack, err := a.turns.Take(ctx, who)
	if err != nil {
		return nil, err
	}
	defer giveBack()
	began := time.Now()
	w, err := a.attestor.Process(ctx, pid)
	a.metrics.Attested(err, time.Since(began))
	if err != nil {
		return nil, err
	}
	return w, nil
}

// listenUnix opens a socket that the kernel need not watch. The Workload API's socket is already ours, so a file that is
// left here belongs to an agent that is gone. Nobody but the agent's own user can connect before it has mode and owner.
func listenUnix(setting, path string, mode fs.FileMode, owner *caller.Owner) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", setting, err)
	}
	if owner != nil {
		err = os.Chown(path, owner.UID, owner.GID)
	}
	if err := errors.Join(err, os.Chmod(path, mode)); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", setting, err), l.Close())
	}
	return l, nil
}
