// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/octets"
)

// Limits of a log that is accepted. Logs of real machines have 20 to 400 events in 4 to 100 kB.
const (
	MaxLog    = 1 << 20 // bytes
	MaxEvents = 1 << 13
	maxBanks  = 8
)

// Digest is a SHA-256 digest.
type Digest = selectors.Digest

// Log is a log that was read, but not yet compared with a quote.
type Log struct {
	// Events are the events in order, without the spec id event at the head.
	Events []Event
}

// Event is one TCG_PCR_EVENT2.
type Event struct {
	// Number is the event's place in the log. The spec id event has number 0.
	Number int
	// PCR is 0 to 23, except for events of type NoAction, where it can be anything.
	PCR uint32
	// Type is a label: no digest covers it.
	Type EventType
	// Digest is what was extended into the PCR's SHA-256 bank.
	Digest Digest
	// Data is a label too, unless Verified says that it hashes to Digest. It aliases the log.
	Data     []byte
	Verified bool
}

const (
	algSHA256 = 0x000b // TCG Algorithm Registry
	maxDigest = 128    // bytes of a digest of any bank
)

var errShort = errors.New("it ends within an event")

// Parse reads a log. It accepts whole logs only: no byte may be missing or left over.
// Data of the events aliases log.
func Parse(log []byte) (*Log, error) {
	if len(log) > MaxLog {
		return nil, fmt.Errorf("event log: it has %d bytes; the limit is %d", len(log), MaxLog)
	}
	r := octets.Little(log)
	banks, err := specID(&r)
	if err != nil {
		return nil, fmt.Errorf("event log: event 0: %w", err)
	}
	l := &Log{}
	for len(r.Rest) > 0 {
		if len(l.Events) == MaxEvents {
			return nil, fmt.Errorf("event log: it has more than %d events", MaxEvents)
		}
		e, err := readEvent(&r, banks)
		e.Number = len(l.Events) + 1
		if err != nil {
			return nil, fmt.Errorf("event log: event %d: %w", e.Number, err)
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

// specID reads the event that heads the log, a TCG_PCClientPCREvent of the older format with a
// TCG_EfiSpecIdEvent in it (PFP 10.4.5.1), and returns the banks' digest sizes by algorithm.
func specID(r *octets.Reader) (map[uint16]int, error) {
	pcr, kind, digest := r.U32(), EventType(r.U32()), r.Bytes(20)
	body := octets.Little(r.Bytes(uint64(r.U32())))
	if r.Short {
		return nil, errShort
	}
	signature := body.Bytes(16)
	if pcr != 0 || kind != NoAction || [20]byte(digest) != [20]byte{} || string(signature) != "Spec ID Event03\x00" {
		return nil, errors.New("it is not the head of a crypto-agile log; the machine's TPM must be a TPM 2.0")
	}
	body.Bytes(8) // platform class, version, errata, size of UINTN
	count := body.U32()
	if count > maxBanks {
		return nil, fmt.Errorf("it names %d PCR banks; the limit is %d", count, maxBanks)
	}
	banks := make(map[uint16]int, count)
	for range count {
		algorithm, size := body.U16(), int(body.U16())
		if body.Short {
			return nil, errShort
		}
		if _, twice := banks[algorithm]; twice || size == 0 || size > maxDigest || (algorithm == algSHA256 && size != len(Digest{})) {
			return nil, fmt.Errorf("it names a PCR bank 0x%04x twice, or with digests of %d bytes", algorithm, size)
		}
		banks[algorithm] = size
	}
	if body.Sized8(); !body.Done() {
		return nil, errors.New("its vendor information is cut short or too long")
	}
	if banks[algSHA256] == 0 {
		return nil, errors.New("it has no SHA-256 bank; enable the TPM's SHA-256 bank in the firmware's setup")
	}
	return banks, nil
}

// readEvent reads one TCG_PCR_EVENT2 (PFP 10.2.2).
func readEvent(r *octets.Reader, banks map[uint16]int) (Event, error) {
	e := Event{PCR: r.U32(), Type: EventType(r.U32())}
	count := r.U32()
	if r.Short {
		return e, errShort
	}
	if uint64(count) > uint64(len(banks)) {
		return e, fmt.Errorf("it has %d digests, and the log %d PCR banks", count, len(banks))
	}
	var seen [maxBanks]uint16
	for i := range count {
		algorithm := r.U16()
		size, known := banks[algorithm]
		digest := r.Bytes(uint64(size))
		if r.Short {
			return e, errShort
		}
		if !known || slices.Contains(seen[:i], algorithm) {
			return e, fmt.Errorf("it has a digest of algorithm 0x%04x, which has no bank or came before", algorithm)
		}
		if seen[i] = algorithm; algorithm == algSHA256 {
			e.Digest = Digest(digest)
		}
	}
	e.Data = r.Bytes(uint64(r.U32()))
	if r.Short {
		return e, errShort
	}
	switch {
	case e.Type == NoAction:
	case e.PCR > 23:
		return e, fmt.Errorf("there is no PCR %d", e.PCR)
	case !slices.Contains(seen[:count], algSHA256):
		return e, errors.New("it has no SHA-256")
	}
	e.Verified = sha256.Sum256(e.Data) == e.Digest
	return e, nil
}
