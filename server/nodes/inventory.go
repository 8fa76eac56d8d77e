// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/tpm"
)

// Device is one place in the inventory: a TPM that may attest, whoever made it.
type Device struct {
	// EK is the SHA-256 of the endorsement key's SubjectPublicKeyInfo; in the store it is the key.
	EK selectors.Digest `json:"-"`
	// Label is the operator's name for the machine, Group the node_group that it belongs to.
	Label   string    `json:"label,omitempty"`
	Group   string    `json:"group,omitempty"`
	Note    string    `json:"note,omitempty"`
	AddedAt time.Time `json:"added_at"`
	By      string    `json:"by,omitempty"`
}

func (d *Device) key() string { return inventoryPrefix + d.EK.String() }

// ParseEK reads an EK hash: 64 hexadecimal digits.
func ParseEK(text string) (selectors.Digest, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != len(selectors.Digest{}) {
		return selectors.Digest{}, fmt.Errorf("%q is not an EK hash of 64 hexadecimal digits; `assay tpm ek` prints it on the machine", text)
	}
	return selectors.Digest(b), nil
}

// ekOf returns the EK hash that the ID of an agent that attested by its TPM ends in.
func ekOf(id spiffeid.ID) (selectors.Digest, error) {
	hash, ok := strings.CutPrefix(id.Path(), agentPrefix+tpm.AttestorType+"/")
	if !ok {
		return selectors.Digest{}, fmt.Errorf("%s did not attest by a TPM; only such nodes are approved", id)
	}
	return ParseEK(hash)
}

// Inventory holds the TPMs that operators listed. Reads are answered from memory; its methods
// are safe for concurrent use.
type Inventory struct {
	devices replica[*Device]
	now     func() time.Time
}

// OpenInventory reads the inventory and follows its changes until Close.
func OpenInventory(ctx context.Context, s Store, log *slog.Logger, now func() time.Time) (*Inventory, error) {
	inv := &Inventory{now: now}
	inv.devices = replica[*Device]{store: s, log: log, prefix: inventoryPrefix, what: "inventory", decode: decodeDevice, changed: func([]*Device) {}}
	if err := inv.devices.open(ctx); err != nil {
		return nil, err
	}
	return inv, nil
}

// Close stops following the store.
func (inv *Inventory) Close() { inv.devices.close() }

func decodeDevice(key string, value []byte) (*Device, error) {
	ek, err := ParseEK(strings.TrimPrefix(key, inventoryPrefix))
	if err != nil {
		return nil, err
	}
	d := &Device{}
	if err := json.Unmarshal(value, d); err != nil {
		return nil, err
	}
	d.EK = ek
	return d, nil
}

// Known reports whether the EK is in the inventory.
func (inv *Inventory) Known(ek selectors.Digest) bool { return inv.Get(ek) != nil }

// Get returns the place of the EK, or nil. It does not change.
func (inv *Inventory) Get(ek selectors.Digest) *Device {
	return inv.devices.get((&Device{EK: ek}).key()).value
}

// List returns all devices, ordered by EK.
func (inv *Inventory) List() []*Device {
	all := inv.devices.all(func(*Device) bool { return true })
	slices.SortFunc(all, func(a, b *Device) int { return bytes.Compare(a.EK[:], b.EK[:]) })
	return all
}

// Add writes devices, replacing those with the same EK. AddedAt and by are set here. When it
// fails, a part of a long list may have been added.
func (inv *Inventory) Add(ctx context.Context, devices []Device, by string) error {
	byKey := map[string]int{} // in the order of the list; the last of a key counts
	var puts []store.KV
	for _, d := range devices {
		d.AddedAt, d.By = inv.now().UTC(), by
		value, err := json.Marshal(d)
		if err != nil {
			return fmt.Errorf("encoding an inventory entry: %w", err)
		}
		kv := store.KV{Key: d.key(), Value: value}
		if i, ok := byKey[kv.Key]; ok {
			puts[i] = kv
			continue
		}
		byKey[kv.Key] = len(puts)
		puts = append(puts, kv)
	}
	for chunk := range slices.Chunk(puts, store.MaxOps) {
		revision, err := inv.devices.store.Commit(ctx, store.Txn{Puts: chunk})
		if err != nil {
			return fmt.Errorf("writing the inventory: %w", err)
		}
		if err := inv.devices.seen(ctx, revision); err != nil {
			return err
		}
	}
	return nil
}

// Remove takes EKs out and returns how many of them were there.
func (inv *Inventory) Remove(ctx context.Context, eks []selectors.Digest) (int, error) {
	var keys []string
	for _, ek := range eks {
		if d := inv.Get(ek); d != nil {
			keys = append(keys, d.key())
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	for chunk := range slices.Chunk(keys, store.MaxOps) {
		revision, err := inv.devices.store.Commit(ctx, store.Txn{Deletes: chunk})
		if err != nil {
			return 0, fmt.Errorf("writing the inventory: %w", err)
		}
		if err := inv.devices.seen(ctx, revision); err != nil {
			return 0, err
		}
	}
	return len(keys), nil
}
