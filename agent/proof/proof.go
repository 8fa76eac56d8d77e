// SPDX-License-Identifier: Apache-2.0

// Package proof is how a node proves which one it is: by its TPM, by a DevID certificate in the TPM, by a
// certificate in files, or by a join token. Each is an attestor for agent/upstream, which carries its messages
// in SPIRE's AttestAgent stream, and holds the node's own key.
package proof
