// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	revocationv1 "github.com/assay-id/assay/proto/revocation"
	"github.com/assay-id/assay/server/revocation"
)

// RevocationError gives an error of server/revocation its code.
func RevocationError(err error) error {
	switch {
	case errors.Is(err, revocation.ErrInvalid):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, revocation.ErrTooMany):
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return Error(err)
}

// Revoked returns one revocation.
func Revoked(i revocation.Item) *revocationv1.Revoked {
	return &revocationv1.Revoked{
		AuthorityId: i.Authority, Serial: i.Serial, SpiffeId: i.SPIFFEID, EntryId: i.Entry, NodeId: i.Node,
		RevokedAt: unixSeconds(i.At), ExpiresAt: unixSeconds(i.NotAfter), Reason: int32(i.Reason), Why: i.Why, By: i.By, Listed: i.Listed,
	}
}
