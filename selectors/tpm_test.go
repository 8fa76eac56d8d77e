// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"slices"
	"strings"
	"testing"
)

func TestDeriveNode(t *testing.T) {
	d := func(b byte) Digest { return Digest{31: b} }
	hex := func(b string) string { return strings.Repeat("0", 62) + b }
	pcrs := map[int]Digest{}
	for n := range 24 {
		pcrs[n] = d(byte(n))
	}
	got := DeriveNode(&NodeFacts{EKHash: d(0xaa), EKIssuer: d(0xbb), Manufacturer: "id:00001014", Model: "SLB 9670", Version: "id:00070055",
		Firmware: 0x2019102300163636, PCRs: pcrs, KeyResident: true}).Strings()
	want := []string{
		"tpm:ek:spki-sha256:" + hex("aa"), "tpm:ek:issuer:" + hex("bb"), "tpm:manufacturer:id:00001014", "tpm:model:SLB 9670",
		"tpm:version:id:00070055", "tpm:firmware:2019102300163636", "tpm:key:tpm-resident",
		"tpm:pcr:sha256:0:" + hex("00"), "tpm:pcr:sha256:1:" + hex("01"), "tpm:pcr:sha256:2:" + hex("02"), "tpm:pcr:sha256:3:" + hex("03"),
		"tpm:pcr:sha256:4:" + hex("04"), "tpm:pcr:sha256:5:" + hex("05"), "tpm:pcr:sha256:6:" + hex("06"), "tpm:pcr:sha256:7:" + hex("07"),
		"tpm:pcr:sha256:9:" + hex("09"), "tpm:pcr:sha256:11:" + hex("0b"), "tpm:pcr:sha256:12:" + hex("0c"), "tpm:pcr:sha256:14:" + hex("0e"),
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestDeriveNodeSaysOnlyWhatIsKnown(t *testing.T) {
	if got := DeriveNode(nil); got != nil {
		t.Errorf("nil facts: %s", got)
	}
	if got := DeriveNode(&NodeFacts{Manufacturer: "id:1", KeyResident: true}); got != nil {
		t.Errorf("facts without an EK: %s", got)
	}
	got := DeriveNode(&NodeFacts{EKHash: Digest{1}, Model: "line\nbreak", Version: "\xff"})
	if len(got) != 1 || !strings.HasPrefix(got[0].Value, "ek:spki-sha256:01") {
		t.Errorf("got %s", got)
	}
}

func TestDeriveNodeFromLogs(t *testing.T) {
	hex := func(b string) string { return strings.Repeat("0", 62) + b }
	d := func(b byte) Digest { return Digest{31: b} }
	got := DeriveNode(&NodeFacts{EKHash: d(1),
		Boot: BootFacts{Sealed: true, SecureBoot: "enabled", SetupMode: true, PK: d(2), KEK: d(3), DB: d(4), DBX: d(5), Authorities: []Digest{d(6), d(7)}, SBAT: d(8),
			Applications: []Digest{d(9), d(0xa)}, KernelImage: d(0xa), Kernel: d(0xb), Initrd: d(0xc), CommandLine: "ro quiet", Arguments: []string{"ro", "quiet", "a\nb"}},
		Files: FileFacts{NoViolations: true, AllowLists: []string{"debian"}, Agent: d(0xd)},
	}).Strings()
	want := []string{"tpm:ek:spki-sha256:" + hex("01"), "tpm:secureboot:enabled", "tpm:secureboot:setup-mode", "tpm:ima:boot-aggregate-ok",
		"tpm:pk:" + hex("02"), "tpm:kek:" + hex("03"), "tpm:db:" + hex("04"), "tpm:dbx:" + hex("05"), "tpm:authority:" + hex("06"), "tpm:authority:" + hex("07"),
		"tpm:sbat:" + hex("08"), "tpm:boot-app:0:" + hex("09"), "tpm:boot-app:1:" + hex("0a"), "tpm:kernel-image:" + hex("0a"), "tpm:kernel:" + hex("0b"),
		"tpm:initrd:" + hex("0c"), "tpm:cmdline:sha256:ef371752225262b34c15e7c8a9610467ac8bf9d4f97577e585dcbe18c5032855", "tpm:cmdline:has:ro", "tpm:cmdline:has:quiet",
		"tpm:ima:no-violations", "tpm:ima:allowlist:debian", "tpm:agent:sha256:" + hex("0d")}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
