// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"errors"
	"slices"

	pb "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/process"
)

// PID is the standard's reference to a local process by its number (SPIFFE Broker API, section 3.1.3). The number is that of
// the agent's PID namespace, the host's.
const PID = "pid"

// References are the types of references that are understood.
var References = []string{PID}

// The reasons of the SPIFFE Broker API, section 4.8.
const (
	invalid     = "WORKLOAD_REFERENCE_INVALID"
	notFound    = "WORKLOAD_NOT_FOUND"
	notEntitled = "WORKLOAD_NOT_ENTITLED"
)

// because is a status with an ErrorInfo of the standard's.
func because(code codes.Code, reason, text string) error {
	st, err := status.New(code, text).WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "spiffe.io"})
	if err != nil { // only for codes.OK
		return status.Error(code, text)
	}
	return st.Err()
}

// subject is a referenced workload that a broker is served for.
type subject struct {
	delivery.Workload
	// broker returns an error once the broker can not be served any more.
	broker func() error
}

// Check judges the broker, too.
func (s *subject) Check() error {
	if err := s.broker(); err != nil {
		return err
	}
	return s.Workload.Check()
}

// open resolves the reference of a request: the process that it names is pinned until ctx ends.
func (s *Server) open(ctx context.Context, ref *pb.WorkloadReference) (*delivery.Session, error) {
	c, err := s.enter(ctx)
	if err != nil {
		return nil, err
	}
	pid, err := c.read(ref)
	if err != nil {
		return nil, err
	}
	w, err := s.cfg.Process(ctx, pid)
	switch {
	case ctx.Err() != nil:
		return nil, status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, process.ErrGone), errors.Is(err, process.ErrReplaced):
		return nil, because(codes.NotFound, notFound, err.Error())
	case err != nil:
		s.cfg.Logger.Warn("a broker's workload can not be attested", "broker", c.id, "pid", pid, "error", err)
		return nil, status.Error(codes.Unavailable, "the workload can not be attested now, try again")
	}
	session, err := s.cfg.Desk.Open(ctx, &subject{w, func() error { return s.verify(c) }})
	if err != nil {
		return nil, err
	}
	session.Via = c.id
	return session, nil
}

// read returns the number of the process that a reference names, if the broker may use one like it.
func (c *client) read(ref *pb.WorkloadReference) (int, error) {
	if ref.GetReference().GetTypeUrl() == "" {
		return 0, because(codes.InvalidArgument, invalid, "the request has no reference to a workload")
	}
	var m pb.WorkloadPIDReference
	if !ref.Reference.MessageIs(&m) {
		return 0, because(codes.InvalidArgument, invalid, "references of the type "+ref.Reference.TypeUrl+" are not known here: send a spiffe.broker.WorkloadPIDReference")
	}
	if err := ref.Reference.UnmarshalTo(&m); err != nil {
		return 0, because(codes.InvalidArgument, invalid, "the reference is malformed: "+err.Error())
	}
	if m.Pid <= 0 {
		return 0, because(codes.InvalidArgument, invalid, "a process number is positive")
	}
	if !slices.Contains(c.rights.References, PID) {
		return 0, status.Errorf(codes.PermissionDenied, "%s may not refer to workloads by process number", c.id)
	}
	if c.tcp && !c.rights.OverTCP {
		return 0, status.Errorf(codes.PermissionDenied, "%s may refer to workloads by process number over the Unix socket only: over a network the number may be another machine's", c.id)
	}
	return int(m.Pid), nil
}

// explain says an error of delivery in the standard's words.
func explain(w *delivery.Session, err error) error {
	if status.Code(err) != codes.PermissionDenied {
		return err
	}
	text := status.Convert(err).Message()
	if subject := w.Workload.(*subject); subject.broker() != nil {
		return status.Error(codes.Unauthenticated, text)
	}
	select {
	case <-w.Done():
		return because(codes.NotFound, notFound, text)
	default:
	}
	if w.Check() != nil {
		return because(codes.NotFound, notFound, text)
	}
	return because(codes.PermissionDenied, notEntitled, text)
}
