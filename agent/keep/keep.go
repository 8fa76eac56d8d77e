// SPDX-License-Identifier: Apache-2.0

// Package keep writes what an agent may know again after a restart while its server is away: entries, bundles and X.509-SVIDs
// with their keys, where the operator allows that (offline_restart). Each file has a fresh key, which a TPM seals, or
// which stands in the file for whoever may read it.
//
//	"assay-keep" 1 | kind | size16, key as sealed | nonce[12] | AES-256-GCM (JSON; all before it is authenticated)
//
// What holds: with a TPM, nobody reads or makes a file without that TPM in that state of its PCRs. An older file of the same
// agent can be put back by whoever writes to data_dir: its SVIDs end at their own time, and all of it max_age after
// the server was last heard. Nothing here protects from root on the same machine in the same state.
package keep

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/tpm/octets"
)

// Sealer encrypts a short secret so that only this machine opens it (tpm/device).
type Sealer interface {
	Seal(secret []byte) ([]byte, error)
	Unseal(sealed []byte) ([]byte, error)
}

// Kept is what a file holds.
type Kept struct {
	// Agent is whose it is.
	Agent spiffeid.ID `json:"agent"`
	// Heard is when the server was last heard.
	Heard time.Time `json:"heard"`
	svids.Kept
}

// Config is what a Store needs.
type Config struct {
	// Dir is the agent's data_dir.
	Dir string
	// Sealer may be nil: then the key stands in the file.
	Sealer Sealer
	// MaxAge is how long after the server was last heard a file is of use.
	MaxAge time.Duration
	Now    func() time.Time
}

// Store is one agent's file. It is for one goroutine.
type Store struct{ cfg Config }

// New returns a Store, whose file need not exist.
func New(cfg Config) *Store { return &Store{cfg} }

const (
	magic    = "assay-keep\x01"
	plain    = 1
	sealed   = 2
	keySize  = 32
	maxKey   = 1 << 12
	nonce    = 12
	maxFile  = 256 << 20
	maxAhead = time.Minute // of Heard: the clock was set back since
)

// ErrNotFor is wrapped by Load where the file is whole, and not for this agent now.
var ErrNotFor = errors.New("the kept identities are not for this agent now")

func (s *Store) path() string { return filepath.Join(s.cfg.Dir, "keep.bin") }

// Save replaces the file: there is the former one or the new one, whenever the machine stops.
func (s *Store) Save(k Kept) error {
	data, err := s.encode(k)
	if err == nil {
		err = replace(s.path(), data)
	}
	if err != nil {
		return fmt.Errorf("keeping identities for the next start: %w", err)
	}
	return nil
}

// Load returns what was saved for the agent, fs.ErrNotExist if nothing was. It never returns a part of it.
func (s *Store) Load(agent spiffeid.ID) (Kept, error) {
	data, err := readFile(s.path())
	if err != nil {
		return Kept{}, fmt.Errorf("kept identities: %w", err)
	}
	k, err := s.decode(data)
	if err != nil {
		return Kept{}, fmt.Errorf("kept identities in %s: %w", s.path(), err)
	}
	switch now := s.cfg.Now(); {
	case k.Agent != agent:
		return Kept{}, fmt.Errorf("%w: they are of %q, this is %q", ErrNotFor, k.Agent, agent)
	case k.Own == nil || k.Own.TrustDomain() != agent.TrustDomain():
		return Kept{}, fmt.Errorf("%w: they have no bundle of its trust domain", ErrNotFor)
	case k.Heard.After(now.Add(maxAhead)):
		return Kept{}, fmt.Errorf("%w: they were kept at %s, and the clock says %s", ErrNotFor, k.Heard.UTC(), now.UTC())
	case now.Sub(k.Heard) > s.cfg.MaxAge:
		return Kept{}, fmt.Errorf("%w: the server was last heard at %s, more than offline_max_age (%s) ago", ErrNotFor, k.Heard.UTC(), s.cfg.MaxAge)
	}
	return k, nil
}

// Remove removes the file; none is no error.
func (s *Store) Remove() error {
	if err := os.Remove(s.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing kept identities: %w", err)
	}
	return syncDir(s.cfg.Dir)
}

func (s *Store) encode(k Kept) ([]byte, error) {
	text, err := json.Marshal(k)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	return s.seal(text)
}

// seal makes the file of a text, with a key that nothing else has.
func (s *Store) seal(text []byte) (_ []byte, err error) {
	key := make([]byte, keySize)
	defer clear(key)
	if _, err := rand.Read(key); err != nil {
		return nil, err
	}
	kind, shown := byte(plain), key
	if s.cfg.Sealer != nil {
		kind = sealed
		if shown, err = s.cfg.Sealer.Seal(key); err != nil {
			return nil, err
		}
		if len(shown) > maxKey {
			return nil, fmt.Errorf("a sealed key of %d bytes", len(shown))
		}
	}
	gcm, err := newGCM(key)
	if err != nil {
		return nil, err
	}
	out := append([]byte(magic), kind, byte(len(shown)>>8), byte(len(shown)))
	out = append(out, shown...)
	out = append(out, make([]byte, nonce)...)
	if _, err := rand.Read(out[len(out)-nonce:]); err != nil {
		return nil, err
	}
	return gcm.Seal(out, out[len(out)-nonce:], text, out), nil
}

func (s *Store) decode(data []byte) (k Kept, err error) {
	r := octets.Big(data)
	if string(r.Bytes(uint64(len(magic)))) != magic {
		return k, errors.New("this is no file of this version of the agent")
	}
	kind, key, iv := r.U8(), r.Sized16(maxKey), r.Bytes(nonce)
	if r.Short {
		return k, errors.New("the file is not whole")
	}
	want := byte(plain)
	if s.cfg.Sealer != nil {
		want = sealed
	}
	if kind != want { // who can write a file with the key in it must not pass for the TPM
		return k, errors.New("it was written under another offline_restart")
	}
	if s.cfg.Sealer != nil {
		if key, err = s.cfg.Sealer.Unseal(key); err != nil {
			return k, err
		}
		defer clear(key)
	}
	if len(key) != keySize {
		return k, fmt.Errorf("a key of %d bytes", len(key))
	}
	gcm, err := newGCM(key)
	if err != nil {
		return k, err
	}
	text, err := gcm.Open(nil, iv, r.Rest, data[:len(data)-len(r.Rest)])
	if err != nil {
		return k, errors.New("it was changed, or is not whole")
	}
	defer clear(text)
	if err := json.Unmarshal(text, &k); err != nil {
		return Kept{}, err
	}
	return k, nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return data, err
}

func replace(path string, data []byte) error {
	next := path + ".new"
	f, err := os.OpenFile(next, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(next))
	}
	if err := os.Rename(next, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
