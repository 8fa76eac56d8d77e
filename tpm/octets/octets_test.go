// SPDX-License-Identifier: Apache-2.0

package octets

import (
	"bytes"
	"testing"
)

func TestOrders(t *testing.T) {
	data := []byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	little, big := Little(data), Big(data)
	if a, b, c, d := little.U8(), little.U16(), little.U32(), little.U64(); a != 1 || b != 0x0302 || c != 0x07060504 || d != 0x0f0e0d0c0b0a0908 || !little.Done() {
		t.Errorf("little-endian: %x %x %x %x %+v", a, b, c, d, little)
	}
	if a, b, c, d := big.U8(), big.U16(), big.U32(), big.U64(); a != 1 || b != 0x0203 || c != 0x04050607 || d != 0x08090a0b0c0d0e0f || !big.Done() {
		t.Errorf("big-endian: %x %x %x %x %+v", a, b, c, d, big)
	}
}

func TestSizes(t *testing.T) {
	r := Big([]byte{0, 0, 0, 1, 7, 0, 2, 8, 9, 1, 10, 0})
	if a, b, c, d := r.Sized32(1), r.Sized16(2), r.Sized8(), r.Sized8(); !bytes.Equal(a, []byte{7}) || !bytes.Equal(b, []byte{8, 9}) || !bytes.Equal(c, []byte{10}) || len(d) != 0 || !r.Done() {
		t.Errorf("%x %x %x %x %+v", a, b, c, d, r)
	}
	r = Big([]byte{0, 2, 8, 9})
	if got := r.Sized16(1); got != nil || !r.Short {
		t.Errorf("a size over its limit gave %x", got)
	}
}

// TestShort: after the first failure there is nothing more, and what was taken can not grow into the rest.
func TestShort(t *testing.T) {
	r := Little([]byte{1, 2, 3})
	if r.U32() != 0 || !r.Short || r.U8() != 0 || r.U16() != 0 || r.U64() != 0 || r.Bytes(0) != nil || r.Done() {
		t.Errorf("a reader went on after its end: %+v", r)
	}
	r = Little([]byte{1, 2})
	_ = append(r.Bytes(1), 9)
	if r.U8() != 2 {
		t.Error("what was taken reached into the rest")
	}
}
