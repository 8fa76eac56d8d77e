// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"fmt"
	"strconv"
	"unicode"
)

// NodeFacts is what an attestation proved of a node's TPM. A zero field yields no selector.
type NodeFacts struct {
	// EKHash is the SHA-256 of the endorsement key's DER SubjectPublicKeyInfo; it names the node.
	EKHash Digest `json:"ek_hash"`
	// EKIssuer is the SHA-256 of the DER issuer name of an EK certificate whose path was verified.
	EKIssuer Digest `json:"ek_issuer,omitzero"`
	// Manufacturer, Model and Version are TPMManufacturer, TPMModel and TPMVersion in that
	// certificate's subject alternative name (TCG EK Credential Profile 2.5, 3.1.2).
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Version      string `json:"version,omitempty"`
	// Firmware is TPMS_ATTEST.firmwareVersion, signed by an attestation key of the endorsement hierarchy.
	Firmware uint64 `json:"firmware,omitempty"`
	// PCRs are quoted values of the SHA-256 bank.
	PCRs map[int]Digest `json:"pcrs,omitempty"`
	// KeyResident says that the agent's key was certified to live in this TPM only.
	KeyResident bool `json:"key_resident,omitempty"`
}

// bootPCRs are those whose value alone says what was booted. Left out: 8 holds boot loader
// commands and 10 the IMA log, which change with every boot; 13 and 15 are for the system's
// own use; 16 and above can be reset by software.
var bootPCRs = [...]int{0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 14}

// DeriveNode emits the family `tpm`: the selectors of a node.
//
//	selector                      example                        evidence                               does not prove
//	tpm:ek:spki-sha256:<hex>      tpm:ek:spki-sha256:9f86d0…      credential activation with that EK      where the TPM is: it may be in another machine
//	tpm:ek:issuer:<hex>           tpm:ek:issuer:4355a4…           EK certificate path; SHA-256 of the     that the maker still vouches: no revocation
//	                                                             issuer's DER name                       is looked at
//	tpm:manufacturer:<id>         tpm:manufacturer:id:00001014    EK certificate, signed by the maker     as tpm:ek:issuer
//	tpm:model:<text>              tpm:model:SLB9670               the same                               the same
//	tpm:version:<id>              tpm:version:id:00070055         the same; version when it was made      the version running now: that is tpm:firmware
//	tpm:firmware:<16 hex>         tpm:firmware:2019102300163636   TPMS_ATTEST of an endorsement AK        that the firmware has no flaw
//	tpm:pcr:sha256:<n>:<hex>      tpm:pcr:sha256:7:65caf8…        quote; n in 0-7, 9, 11, 12, 14          which events led there: that needs the log
//	tpm:key:tpm-resident          tpm:key:tpm-resident            Certify of the agent's key              that only the agent uses it: root may too
//
// Facts without an EK yield nothing.
func DeriveNode(f *NodeFacts) Set {
	if f == nil || f.EKHash.IsZero() {
		return nil
	}
	ss := make([]Selector, 0, 20)
	emit := func(value string) { ss = append(ss, Selector{Type: "tpm", Value: value}) }
	emit("ek:spki-sha256:" + f.EKHash.String())
	if !f.EKIssuer.IsZero() {
		emit("ek:issuer:" + f.EKIssuer.String())
	}
	for _, v := range [...]struct{ name, text string }{{"manufacturer", f.Manufacturer}, {"model", f.Model}, {"version", f.Version}} {
		if v.text != "" && printable(v.text) {
			emit(v.name + ":" + v.text)
		}
	}
	if f.Firmware != 0 {
		emit(fmt.Sprintf("firmware:%016x", f.Firmware))
	}
	for _, n := range bootPCRs {
		if d, ok := f.PCRs[n]; ok {
			emit("pcr:sha256:" + strconv.Itoa(n) + ":" + d.String())
		}
	}
	if f.KeyResident {
		emit("key:tpm-resident")
	}
	return NewSet(ss...)
}

// printable refuses text that would look like something else in a log or on a terminal.
func printable(s string) bool {
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
