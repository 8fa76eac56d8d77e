// SPDX-License-Identifier: Apache-2.0

// Package octets reads structures of integers and byte strings, as TPMs, firmware and IMA write them.
package octets

import "encoding/binary"

// Reader takes values off data. After the first that is not there whole it gives zeros, and Short is set:
// so that a structure can be read to its end and judged then.
type Reader struct {
	// Rest is what was not read yet.
	Rest []byte
	// Short says that data ended too early, or that a size was over its limit.
	Short bool

	order binary.ByteOrder
}

// Little reads little-endian integers (event logs, IMA logs).
func Little(data []byte) Reader { return Reader{Rest: data, order: binary.LittleEndian} }

// Big reads big-endian integers (TPM structures).
func Big(data []byte) Reader { return Reader{Rest: data, order: binary.BigEndian} }

// Done reports whether all values were there, and nothing else.
func (r *Reader) Done() bool { return !r.Short && len(r.Rest) == 0 }

// Bytes takes the next n bytes, which alias the data.
func (r *Reader) Bytes(n uint64) []byte {
	if r.Short || n > uint64(len(r.Rest)) {
		r.Short = true
		return nil
	}
	b := r.Rest[:n:n]
	r.Rest = r.Rest[n:]
	return b
}

// Sized32 takes a 32-bit size and so many bytes, at most limit.
func (r *Reader) Sized32(limit uint32) []byte { return r.sized(uint64(r.U32()), uint64(limit)) }

// Sized16 takes a 16-bit size and so many bytes, at most limit.
func (r *Reader) Sized16(limit uint16) []byte { return r.sized(uint64(r.U16()), uint64(limit)) }

// Sized8 takes an 8-bit size and so many bytes.
func (r *Reader) Sized8() []byte { return r.Bytes(uint64(r.U8())) }

func (r *Reader) sized(n, limit uint64) []byte {
	if n > limit {
		r.Short = true
	}
	return r.Bytes(n)
}

// U8 takes a byte.
func (r *Reader) U8() uint8 {
	if b := r.Bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// U16 takes a 16-bit integer.
func (r *Reader) U16() uint16 {
	if b := r.Bytes(2); b != nil {
		return r.order.Uint16(b)
	}
	return 0
}

// U32 takes a 32-bit integer.
func (r *Reader) U32() uint32 {
	if b := r.Bytes(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

// U64 takes a 64-bit integer.
func (r *Reader) U64() uint64 {
	if b := r.Bytes(8); b != nil {
		return r.order.Uint64(b)
	}
	return 0
}
