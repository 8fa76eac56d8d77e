// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/store"
)

// TestAttestError: agents go by the code: after PermissionDenied SPIRE's give up, after others they try again.
func TestAttestError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want codes.Code
	}{
		{&nodes.AttestError{Fault: nodes.FaultMessage, Text: "x"}, codes.InvalidArgument},
		{&nodes.AttestError{Fault: nodes.FaultRefused, Text: "x"}, codes.PermissionDenied},
		{&nodes.AttestError{Fault: nodes.FaultBusy, Text: "x"}, codes.ResourceExhausted},
		{&nodes.AttestError{Fault: nodes.FaultServer, Text: "x", Err: errors.New("y")}, codes.Internal},
		{&nodes.AttestError{Fault: nodes.FaultServer, Text: "x", Err: fmt.Errorf("y: %w", store.ErrUnavailable)}, codes.Unavailable},
		{status.Error(codes.DataLoss, "of the stream"), codes.DataLoss},
	} {
		if got := status.Code(AttestError(c.err)); got != c.want {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
	}
}
