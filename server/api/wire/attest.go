// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"errors"
	"fmt"
	"strings"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/nodes"
)

// CheckAttestParams says what the first message of AttestAgent lacks.
func CheckAttestParams(p *agentv1.AttestAgentRequest_Params) error {
	missing := ""
	switch {
	case p == nil:
		missing = "params"
	case p.Data == nil:
		missing = "attestation data"
	case p.Params == nil:
		missing = "X509-SVID parameters"
	case len(p.Params.Csr) == 0:
		missing = "CSR"
	case p.Data.Type == "":
		missing = "attestation data type"
	case len(p.Data.Payload) == 0:
		missing = "attestation data payload"
	default:
		return nil
	}
	return status.Error(codes.InvalidArgument, "malformed param: missing "+missing)
}

// RefusedToAttest words why an agent that proved itself gets no SVID.
func RefusedToAttest(err error) error {
	if d, ok := errors.AsType[*nodes.DeniedError](err); ok && d.Reason == nodes.Banned {
		return status.Error(codes.PermissionDenied, "failed to attest: agent is banned") // SPIRE's text, and no details
	} else if ok {
		return AgentError(err)
	}
	return AgentError(fmt.Errorf("failed to record the agent: %w", err))
}

// AttestError gives an attestor's verdict its code. An attestor that is unable for the moment
// must not answer PermissionDenied: SPIRE's agent ends its process on it.
func AttestError(err error) error {
	var a *nodes.AttestError
	if !errors.As(err, &a) {
		return Error(err)
	}
	code := codeOf(err) // the store may be away
	switch a.Fault {
	case nodes.FaultMessage:
		code = codes.InvalidArgument
	case nodes.FaultRefused:
		code = codes.PermissionDenied
	case nodes.FaultBusy:
		code = codes.ResourceExhausted
	}
	return status.Error(code, strings.TrimSpace(a.Error()))
}
