// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// maxAudience bounds the audiences of one request together, in bytes: they go into the history.
const maxAudience = 8 << 10

// ReadAudience returns the audiences of a request without empty values, which SPIRE leaves out too. None, or too many, is
// InvalidArgument.
func ReadAudience(given []string) (audience []string, _ error) {
	size := 0
	for _, a := range given {
		if size += len(a); a != "" {
			audience = append(audience, a)
		}
	}
	switch {
	case len(audience) == 0:
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	case size > maxAudience || len(audience) > maxAudience/64:
		return nil, status.Errorf(codes.InvalidArgument, "too many audiences: at most %d, of %d bytes together", maxAudience/64, maxAudience)
	}
	return audience, nil
}
