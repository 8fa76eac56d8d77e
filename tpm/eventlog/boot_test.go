// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// machine is one genuine boot.
type machine struct {
	name  string
	log   []byte
	quote Quote
}

const plainCommandLine = "console=ttyS0 panic=-1 rootfstype=ramfs ima_policy=tcb ima_hash=sha256"

// machines are the genuine boots: what the kernel's IMA log began with, and /proc/cmdline.
func machines(t testing.TB) []machine {
	return []machine{
		load(t, "direct", "961ece0ecd4203a75244d62c916d0999a6095394e40591fa696dbbd28dbbe5fd", plainCommandLine+"  initrd=initrd"),
		load(t, "uki", "7bbf32ae38759033f2216b040fd82bd5966b342e9b6c78827aff2bbeeaac655b", plainCommandLine),
		load(t, "secure", "f7e7a034c7b5aa82519b35682a42ca1eb61d2dbe4ecc48cd212ac80e5fc02875", "BOOT_IMAGE=/vmlinuz "+plainCommandLine),
	}
}

func load(t testing.TB, name, aggregate, commandLine string) machine {
	t.Helper()
	m := machine{name, read(t, name, "binary_bios_measurements"), Quote{PCRs: map[int]Digest{}, BootAggregate: digest(t, aggregate), CommandLine: commandLine}}
	for line := range strings.Lines(string(read(t, name, "pcrs.txt"))) {
		index, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(index)); err == nil {
			m.quote.PCRs[n] = digest(t, strings.TrimPrefix(strings.TrimSpace(value), "0x"))
		}
	}
	return m
}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func digest(t testing.TB, text string) Digest {
	t.Helper()
	b, err := hex.DecodeString(strings.ToLower(text))
	if err != nil || len(b) != 32 {
		t.Fatalf("%q is not a SHA-256", text)
	}
	return Digest(b)
}

func (m machine) boot(t testing.TB) *Boot {
	t.Helper()
	l, err := Parse(m.log)
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Replay(m.quote)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestPCRsAreQuoted: the PCRs that the tests replay to are those that a TPM signed.
func TestPCRsAreQuoted(t *testing.T) {
	for _, m := range machines(t) {
		public, err := tpm2.Unmarshal[tpm2.TPMTPublic](read(t, m.name, "ak.tpmt_public"))
		if err != nil {
			t.Fatal(err)
		}
		key, err := tpm2.Pub(*public)
		if err != nil {
			t.Fatal(err)
		}
		raw := read(t, m.name, "quote.attest")
		signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](read(t, m.name, "quote.sig"))
		if err != nil {
			t.Fatal(err)
		}
		s, err := signature.Signature.ECDSA()
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(raw)
		if !ecdsa.Verify(key.(*ecdsa.PublicKey), sum[:], new(big.Int).SetBytes(s.SignatureR.Buffer), new(big.Int).SetBytes(s.SignatureS.Buffer)) {
			t.Fatalf("%s: the quote's signature is wrong", m.name)
		}
		attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](raw)
		if err != nil {
			t.Fatal(err)
		}
		quote, err := attest.Attested.Quote()
		if err != nil {
			t.Fatal(err)
		}
		all := sha256.New()
		for n := range 24 {
			d := m.quote.PCRs[n]
			all.Write(d[:])
		}
		if string(all.Sum(nil)) != string(quote.PCRDigest.Buffer) {
			t.Errorf("%s: pcrs.txt is not what was quoted", m.name)
		}
	}
}

// TestGenuine: every fact of the three boots. Two of them started the same kernel: a section of the
// UKI and a file that GRUB read have the digest of the same vmlinuz, and its image in PCR 4 is the same.
func TestGenuine(t *testing.T) {
	vmlinuz := digest(t, "51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275")
	image := digest(t, "5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31")
	none := Digest(sha256.Sum256(nil))
	for _, m := range machines(t) {
		b := m.boot(t)
		if !b.Sealed || !b.ExitedBootServices || len(b.Absent) > 0 || len(b.Later) > 0 || b.Locality != 0 || b.CommandLine != m.quote.CommandLine {
			t.Errorf("%s: sealed %v, exited %v, absent %q, later %v, locality %d, command line %q", m.name, b.Sealed, b.ExitedBootServices, b.Absent, b.Later, b.Locality, b.CommandLine)
		}
		if m.name != "secure" && (b.SecureBoot != SecureBootDisabled || !b.SetupMode || b.PK.SHA256 != none || b.DBX.SHA256 != none || b.Authorities != nil) {
			t.Errorf("%s: Secure Boot %q, setup mode %v, PK %v, dbx %v", m.name, b.SecureBoot, b.SetupMode, b.PK, b.DBX)
		}
		switch m.name {
		case "direct":
			want(t, "profile", b.Profile, ProfileStub)
			want(t, "applications", b.Applications, []Digest{digest(t, "1a51da9fad6a1635d1131d13c0a04b7281bdf220fb3b670f7d41c15fedf6f202")})
			want(t, "initrd", b.Initrd, digest(t, "e11dfad6d49bf9a85490c72f963fea1da581fa52f44f66274dc81cb6b7268209"))
			want(t, "kernel image", b.KernelImage, b.Applications[0])
			want(t, "kernel", b.Kernel, Digest{})
		case "uki":
			want(t, "profile", b.Profile, ProfileStub)
			want(t, "applications", b.Applications, []Digest{digest(t, "d144bbc4a8db2bc2f1b1c90579947cd196df4ed6a965c01fbfed9edfbcc6837b"), image})
			want(t, "kernel image", b.KernelImage, image)
			want(t, "kernel", b.Kernel, Digest{})
			initrd := digest(t, "4865985f3fcee245356b3f2097f72f737baaad9b4d2d023f303fdeb17f39c6bb")
			want(t, "initrd", b.Initrd, initrd)
			want(t, "sections", b.Sections, []Section{{".linux", vmlinuz}, {".osrel", digest(t, "f5ef5ebc75241c89f8698f03f031b01a6a70cd5d7d93f386f28364dcda95b5e0")},
				{".cmdline", sha256.Sum256([]byte(plainCommandLine + " "))}, {".initrd", initrd}})
		case "secure":
			want(t, "profile", b.Profile, ProfileGRUB)
			want(t, "secure boot", b.SecureBoot, SecureBootEnabled)
			want(t, "setup mode", b.SetupMode, false)
			want(t, "kernel", b.Kernel, vmlinuz)
			want(t, "initrd", b.Initrd, digest(t, "e1dec3a3d666f08b6b5f34180219b4b750dd7bb9569810e975cb580a00350e11"))
			want(t, "applications", b.Applications[2:], []Digest{image, image})
			want(t, "sbat", b.SBAT, "sbat,1,2025021800\nshim,4\ngrub,5\n")
			want(t, "number of MOK lists", len(b.MOK), 3)
			want(t, "first command", b.Commands[0], "[ -z (hd0,gpt1)/EFI/debian -o ! -e (hd0,gpt1)/EFI/debian ]")
			want(t, "number of files", len(b.Files), 3)
			checkKeys(t, b)
		}
	}
}

// checkKeys checks the authorities: the certificate that signed shim, by the fingerprint that
// Microsoft publishes, and Debian's, which must be what it calls itself.
func checkKeys(t *testing.T, b *Boot) {
	t.Helper()
	if len(b.Authorities) != 2 {
		t.Fatalf("authorities: %v", b.Authorities)
	}
	want(t, "first authority", b.Authorities[0].Variable+" "+b.Authorities[0].SHA256.String(), "db 48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507")
	cert, err := x509.ParseCertificate(b.Authorities[1].Certificate)
	if err != nil {
		t.Fatal(err)
	}
	want(t, "second authority", b.Authorities[1].Variable+" "+cert.Subject.CommonName, "MokListRT Debian Secure Boot CA")
	if err := cert.CheckSignatureFrom(cert); err != nil {
		t.Error(err)
	}
	signatures, err := b.DB.Signatures()
	if err != nil {
		t.Fatal(err)
	}
	want(t, "certificates in db", len(signatures), 2)
	if !b.DBX.Covers(b.DBX) || b.DBX.Covers(b.DB) || (Variable{}).Covers(b.DBX) {
		t.Error("Covers is wrong")
	}
}

func want(t *testing.T, what string, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestArguments(t *testing.T) {
	b := Boot{CommandLine: `root=/dev/sda1  quiet dyndbg="file a.c +p lockdown=integrity" x="y -- init=/bin/sh`}
	want(t, "open quote", b.Arguments(), []string{"root=/dev/sda1", "quiet", "dyndbg=file a.c +p lockdown=integrity"})
	b.CommandLine = "a -- b"
	want(t, "after --", b.Arguments(), []string{"a"})
}
