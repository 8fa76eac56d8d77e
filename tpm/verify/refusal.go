// SPDX-License-Identifier: Apache-2.0

package verify

import "fmt"

// Refusal says which check failed. It is the error of Begin and Finish whenever the agent,
// and not this server, is at fault.
type Refusal struct {
	// Check is the name of the check; see Verdict.Checks.
	Check string
	// Detail is one sentence: what is wrong and, where somebody can, what to do about it.
	Detail string
}

func (r *Refusal) Error() string { return "TPM attestation refused (" + r.Check + "): " + r.Detail }

func refuse(check, format string, args ...any) *Refusal {
	return &Refusal{Check: check, Detail: fmt.Sprintf(format, args...)}
}

// Check is a check that passed.
type Check struct {
	// Name is stable and made for machines.
	Name string `json:"name"`
	// Detail is for people.
	Detail string `json:"detail"`
}

// The checks, in the order in which they are made.
const (
	checkVersion     = "version"
	checkEKTemplate  = "ek-template"
	checkEKCert      = "ek-certificate"
	checkEKInventory = "ek-inventory"
	checkAK          = "ak-attributes"
	checkKey         = "key-attributes"
	checkSession     = "session"
	checkConnection  = "connection"
	checkCSR         = "csr-key"
	checkCredential  = "credential-activation"
	checkCertify     = "key-certified"
	checkQuote       = "quote-signature"
	checkHierarchy   = "ak-hierarchy"
	checkSelection   = "quote-selection"
	checkPCRs        = "quote-digest"
	checkBoot        = "one-boot"
	checkIMALog      = "ima-log"
	checkBootLog     = "boot-log"
)
