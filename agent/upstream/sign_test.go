// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// An agent waits as a busy server bids it, where there is time for that.
func TestBidden(t *testing.T) {
	busy := func(code codes.Code, delay time.Duration) error {
		st, err := status.New(code, "busy").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
		if err != nil {
			t.Fatal(err)
		}
		return st.Err()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for what, c := range map[string]struct {
		err  error
		want time.Duration
	}{
		"a moment":      {busy(codes.ResourceExhausted, 2*time.Second), 2 * time.Second},
		"too long":      {busy(codes.ResourceExhausted, time.Hour), 0},
		"nonsense":      {busy(codes.ResourceExhausted, -time.Second), 0},
		"another error": {busy(codes.Unavailable, time.Second), 0},
		"no word":       {status.Error(codes.ResourceExhausted, "busy"), 0},
		"no error":      {nil, 0},
	} {
		wait, ok := bidden(ctx, c.err)
		if ok != (c.want > 0) || ok && wait != c.want {
			t.Errorf("%s: %v, %v", what, wait, ok)
		}
	}
}
