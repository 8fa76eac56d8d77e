// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/store"
)

// Error gives an error of the layers below its gRPC code; nil stays nil.
func Error(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

// ErrorTo is Error for something that failed; an error that has a code already stays as it is.
func ErrorTo(do string, err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return Error(fmt.Errorf("failed to %s: %w", do, err))
}

func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, store.ErrFull):
		return codes.ResourceExhausted
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, ca.ErrStale), errors.Is(err, ca.ErrNotReady):
		return codes.Unavailable
	case errors.Is(err, store.ErrConflict):
		return codes.Aborted
	case errors.Is(err, ca.ErrInvalid), errors.Is(err, federation.ErrInvalid), errors.Is(err, federation.ErrOwn):
		return codes.InvalidArgument
	case errors.Is(err, ca.ErrPrecondition), errors.Is(err, federation.ErrFederated):
		return codes.FailedPrecondition
	case errors.Is(err, federation.ErrExists):
		return codes.AlreadyExists
	case errors.Is(err, federation.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

// ItemStatus words the outcome of one item of a batch.
func ItemStatus(err error) *types.Status {
	if err == nil {
		return &types.Status{Code: int32(codes.OK), Message: "OK"}
	}
	st := status.Convert(err)
	return itemStatus(st.Code(), st.Message())
}

func itemStatus(code codes.Code, text string) *types.Status {
	return &types.Status{Code: int32(code), Message: text}
}

// EntryStatus words the outcome of one entry of a batch as SPIRE does; what is "create",
// "update" or "delete".
func EntryStatus(what string, err error) *types.Status {
	var inv *entries.InvalidError
	failed := "failed to " + what + " entry"
	switch {
	case err == nil, status.Code(err) != codes.Unknown:
		return ItemStatus(err)
	case errors.As(err, &inv) && inv.Stored:
		return itemStatus(codes.InvalidArgument, failed+": datastore-validation: "+inv.Reason)
	case errors.As(err, &inv):
		return itemStatus(codes.InvalidArgument, "failed to convert entry: "+inv.Reason)
	case errors.Is(err, entries.ErrSimilar):
		return itemStatus(codes.AlreadyExists, err.Error())
	case errors.Is(err, entries.ErrDuplicate):
		return itemStatus(codes.AlreadyExists, failed+": datastore-sql: "+err.Error())
	case errors.Is(err, entries.ErrNotFound) && what == "delete":
		return itemStatus(codes.NotFound, "entry not found")
	case errors.Is(err, entries.ErrNotFound):
		return itemStatus(codes.NotFound, failed)
	}
	return itemStatus(codeOf(err), failed+": "+err.Error())
}

// AgentError gives an error of server/nodes its code and, for a denial, its reason.
func AgentError(err error) error {
	var d *nodes.DeniedError
	var st *nodes.StateError
	switch {
	case errors.As(err, &d):
		return Denied(d, status.Error(codes.PermissionDenied, d.Error()))
	case errors.As(err, &st):
		return status.Error(codes.FailedPrecondition, st.Error())
	case errors.Is(err, nodes.ErrTooManyPending):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, nodes.ErrNotFound):
		return status.Error(codes.NotFound, "agent not found")
	}
	return Error(err)
}

// Denied adds to a denial the reason that agents decide on: SPIRE's, to attest again or
// give up, and ours for states that SPIRE does not know.
func Denied(d *nodes.DeniedError, denial error) error {
	var details []protoadapt.MessageV1
	switch d.Reason {
	case nodes.Pending, nodes.Suspended:
		state := nodes.StatePending
		if d.Reason == nodes.Suspended {
			state = nodes.StateSuspended
		}
		details = append(details, protoadapt.MessageV1Of(&nodev1.Standing{State: string(state), Reason: d.Detail, AttestAgain: d.Reattest}))
		if d.Reattest {
			details = append(details, protoadapt.MessageV1Of(&types.PermissionDeniedDetails{Reason: types.PermissionDeniedDetails_AGENT_MUST_REATTEST}))
		}
	default: // reasons are numbered as in the protocol
		details = append(details, protoadapt.MessageV1Of(&types.PermissionDeniedDetails{Reason: types.PermissionDeniedDetails_Reason(d.Reason)}))
	}
	st, err := status.Convert(denial).WithDetails(details...)
	if err != nil {
		return status.Errorf(codes.Internal, "encode the reason of a denial: %v", err)
	}
	return st.Err()
}
