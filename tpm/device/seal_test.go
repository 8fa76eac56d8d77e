// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"errors"
	"testing"

	"github.com/assay-id/assay/tpm/swtpmtest"
)

var bootPCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}

// What is sealed opens again after a reboot of the same, and IMA's measurements do not matter; nothing is left in the TPM.
func TestSeal(t *testing.T) {
	p := swtpmtest.New(t)
	p.Extend(4, [32]byte{1})
	d := open(t, p.Path)
	secret := bytes.Repeat([]byte{7}, 32)
	sealed, err := d.Seal(bootPCRs, secret)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(sealed, secret) {
		t.Error("the secret is in what is sealed")
	}
	opens := func(when string, d *Device) {
		t.Helper()
		if got, err := d.Unseal(bootPCRs, sealed); err != nil || !bytes.Equal(got, secret) {
			t.Errorf("%s: %x, %v", when, got, err)
		}
		noHandles(t, d, when)
	}
	opens("at once", d)
	p.Extend(10, [32]byte{9})
	opens("after a measured file", d)
	p.Off()
	p.On()
	p.Extend(4, [32]byte{1})
	opens("after a reboot", open(t, p.Path))
}

func TestSealed(t *testing.T) {
	p := swtpmtest.New(t)
	p.Extend(4, [32]byte{1})
	d := open(t, p.Path)
	sealed, err := d.Seal(bootPCRs, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	refuses := func(what string, d *Device, pcrs []int, sealed []byte) error {
		t.Helper()
		got, err := d.Unseal(pcrs, sealed)
		if err == nil || got != nil {
			t.Errorf("%s: opened %q", what, got)
		}
		noHandles(t, d, what)
		return err
	}
	if err := refuses("fewer PCRs", d, []int{4}, sealed); !errors.Is(err, ErrOtherState) {
		t.Error(err)
	}
	for at := 2; at < len(sealed); at += 11 {
		broken := bytes.Clone(sealed)
		broken[at] ^= 1
		refuses("a changed byte", d, bootPCRs, broken)
	}
	refuses("half of it", d, bootPCRs, sealed[:len(sealed)/2])
	refuses("nothing", d, bootPCRs, nil)
	other := swtpmtest.Other(t)
	other.Extend(4, [32]byte{1})
	refuses("another TPM", open(t, other.Path), bootPCRs, sealed)
	p.Extend(7, [32]byte{2})
	if err := refuses("other PCRs", d, bootPCRs, sealed); !errors.Is(err, ErrOtherState) {
		t.Error(err)
	}
	p.Off()
	p.On()
	p.Extend(4, [32]byte{3})
	if err := refuses("another boot", open(t, p.Path), bootPCRs, sealed); !errors.Is(err, ErrOtherState) {
		t.Error(err)
	}
	for _, bad := range [][]int{nil, {1, 0}, {99}} {
		if _, err := d.Seal(bad, []byte("x")); err == nil {
			t.Errorf("sealed to the PCRs %v", bad)
		}
	}
	if _, err := d.Seal(bootPCRs, make([]byte, 129)); err == nil {
		t.Error("sealed too much")
	}
}
