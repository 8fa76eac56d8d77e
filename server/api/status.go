// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"errors"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
)

// rpcError gives an error of the layers below its gRPC code; nil stays nil.
func rpcError(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, store.ErrFull):
		return codes.ResourceExhausted
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, ca.ErrStale):
		return codes.Unavailable
	case errors.Is(err, store.ErrConflict):
		return codes.Aborted
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

func itemOK() *types.Status { return &types.Status{Code: int32(codes.OK), Message: "OK"} }

func itemStatus(code codes.Code, text string) *types.Status {
	return &types.Status{Code: int32(code), Message: text}
}

// entryStatus words the outcome of one entry of a batch as SPIRE does; what is "create",
// "update" or "delete".
func entryStatus(what string, err error) *types.Status {
	var inv *entries.InvalidError
	failed := "failed to " + what + " entry"
	switch {
	case err == nil:
		return itemOK()
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
