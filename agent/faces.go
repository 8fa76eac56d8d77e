// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/delegated"
	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/agent/sds"
	"github.com/assay-id/assay/agent/workloadapi"
	"github.com/assay-id/assay/selectors"
)

// face is what workloads see behind one socket.
type face struct {
	listener *caller.Listener
	server   *grpc.Server
}

// listen opens all sockets, or takes over those that systemd opened.
func (a *Agent) listen(ctx context.Context) (faces []*face, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeFaces(faces))
		}
	}()
	inherited, err := a.inherited()
	if err != nil {
		return nil, err
	}
	l := a.conf.Limits
	connections := limits.NewCount(a.roomFor(l.Connections), l.ConnectionsPerCaller)
	bounds := delivery.NewLimits(caller.Who, limits.NewCount(l.Streams, l.StreamsPerCaller), l.rates(time.Now), a.log)
	a.turns = limits.NewTurns(attestAtATime, max(2, runtime.GOMAXPROCS(0)/2))
	for _, s := range a.conf.sockets {
		if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
			return faces, fmt.Errorf("%s: %w", s.where(), err)
		}
		listener, err := caller.Listen(ctx, caller.Config{Path: s.Path, Mode: s.mode, Owner: s.owner, Inherited: inherited[s.Path],
			Binder: a.evidence, Connections: connections, Logger: a.log})
		if err != nil {
			return faces, fmt.Errorf("%s: %w", s.where(), err)
		}
		faces = append(faces, &face{listener, a.faceServer(s, bounds)})
	}
	return faces, nil
}

// ownFiles are descriptors that the agent needs beside those of connections, which take a socket and a pidfd each.
const ownFiles = 512

// roomFor is how many connections may be open at most: with none left for a file, nobody could be attested.
func (a *Agent) roomFor(connections int) int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil { // never, for a limit that there is
		return connections
	}
	most := max(int(min(files.Cur, 1<<30))-ownFiles, 2) / 2
	if most >= connections {
		return connections
	}
	a.log.Warn("fewer connections than configured: the agent may not open enough files; set LimitNOFILE in its unit, or connections in its block limits",
		"connections", most, "configured", connections, "files", files.Cur)
	return most
}

func closeFaces(faces []*face) (err error) {
	for _, f := range faces {
		err = errors.Join(err, f.listener.Close())
	}
	return err
}

// inherited are the sockets that systemd opened, by path. One that the configuration does not name is an error.
func (a *Agent) inherited() (map[string]*os.File, error) {
	all := map[string]*os.File{}
	for _, f := range activation.Files(true) {
		path, err := caller.PathOf(f)
		if err != nil {
			return nil, err
		}
		path = filepath.Clean(path)
		if !slices.ContainsFunc(a.conf.sockets, func(s *socket) bool { return s.Path == path }) {
			return nil, fmt.Errorf("%s, which systemd passed, listens at %s: write that path as socket_path or into a block socket \"name\" { path = … }, or remove ListenStream=", f.Name(), path)
		}
		all[path] = f
		a.log.Info("a socket of systemd's is taken over", "path", path, "name", f.Name())
	}
	return all, nil
}

const (
	// attestAtATime bounds the callers that are looked at together. Most take some 100 µs; a program that was never seen
	// is read once, which takes as long as its disk.
	attestAtATime = 64
	// streamsPerConnection is what HTTP/2 allows a connection at a time.
	streamsPerConnection = 64
	// streamsPerDelegate is more: one for each workload that it serves.
	streamsPerDelegate = 4096
	// preface is how long a connection may take to say that it speaks HTTP/2.
	preface = 20 * time.Second
	// readBuffer in bytes, of each connection: what workloads send is short. Those to write are shared by gRPC.
	readBuffer = 2 << 10
)

func (a *Agent) faceServer(s *socket, bounds *delivery.Limits) *grpc.Server {
	streams := uint32(streamsPerConnection)
	if len(s.delegates) > 0 {
		streams = streamsPerDelegate
	}
	options := slices.Concat(a.tracing.Server(false), a.metrics.Calls.Options(), bounds.Options(), workloadapi.Interceptors(), []grpc.ServerOption{
		grpc.Creds(caller.Credentials()), grpc.MaxConcurrentStreams(streams), grpc.ConnectionTimeout(preface),
		grpc.ReadBufferSize(readBuffer),
	})
	server := grpc.NewServer(options...)
	desk := a.desk(s.view)
	if !s.DisableWorkloadAPI {
		workloadapi.New(workloadapi.Config{Desk: desk, ForeignClaims: a.conf.AllowedForeignJWTClaims}).Register(server)
	}
	if c := a.conf.SDS; !c.Disable && !s.DisableSDS {
		sds.New(sds.Config{Desk: desk, DefaultSVIDName: c.DefaultSVIDName, DefaultBundleName: c.DefaultBundleName, DefaultAllBundlesName: c.DefaultAllBundlesName,
			DisableSPIFFECertValidation: c.DisableSPIFFECertValidation, Logger: a.log}).Register(server)
	}
	if len(s.delegates) > 0 {
		delegated.New(delegated.Config{
			Callers: a.desk(nil), Workloads: a.desk(func(e *selectors.Entry) bool { return forOthers(e) && (s.view == nil || s.view(e)) }), Delegates: s.delegates,
			Process: func(ctx context.Context, pid int) (delivery.Workload, error) {
				return a.referenced(ctx, caller.Who(ctx), pid)
			},
			WantsEvidence: a.server.WantsEvidence, Bundles: a.svids.AllBundles, Logger: a.log,
		}).Register(server)
	}
	workloadapi.RegisterHealth(server, desk.Ready())
	return server
}

// desk returns one whose callers are on the sockets; view says which entries it deals in.
func (a *Agent) desk(view func(*selectors.Entry) bool) *delivery.Desk {
	return delivery.New(delivery.Config{Attest: a.workload, SVIDs: a.svids, History: a.history, Memory: a.memory, View: view,
		HangUp: caller.HangUp, Tampered: a.tampered, Logger: a.log, Now: time.Now})
}

// workload attests the caller of a request, in its turn.
func (a *Agent) workload(ctx context.Context) (delivery.Workload, error) {
	giveBack, err := a.turns.Take(ctx, caller.Who(ctx))
	if err != nil {
		return nil, err
	}
	defer giveBack()
	began := time.Now()
	w, err := a.attestor.Caller(ctx)
	a.metrics.Attested(err, time.Since(began))
	if err != nil {
		return nil, err
	}
	a.streams.Add(1)
	context.AfterFunc(ctx, func() { a.streams.Add(-1) })
	return w, nil
}
