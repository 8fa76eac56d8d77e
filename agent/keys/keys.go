// SPDX-License-Identifier: Apache-2.0

// Package keys makes the private keys of workloads' SVIDs. It keeps a few of each type ready that somebody asked
// for, so that no workload waits for an RSA key while others are idle, and holds what is given to workloads in memory that is
// wiped.
//
// A key is handed out once. The pool is bounded, and holds keys that are nobody's yet: they are worth nothing until
// the server signs one.
package keys

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"runtime"
	"sync"

	"github.com/assay-id/assay/selectors"
)

// ready is how many keys of a type are kept: an ECDSA key takes some 20 µs, an RSA key 0.1 s to some seconds.
var ready = map[selectors.KeyType]int{selectors.KeyECP256: 8, selectors.KeyECP384: 4, selectors.KeyRSA2048: 4, selectors.KeyRSA4096: 2}

// Pool makes keys. The zero Pool is ready. It is safe for concurrent use.
type Pool struct {
	mu      sync.Mutex
	shelves [selectors.KeyRSA4096 + 1]shelf
	cold    bool // of benchmarks: keeps none
}

type shelf struct {
	keys    []crypto.Signer
	filling bool
}

// Expect has keys of the type made in the background, until a few are there.
func (p *Pool) Expect(t selectors.KeyType) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fill(t)
}

// Take returns a key that nobody else has, at once if one is there. The type must not be KeyDefault.
func (p *Pool) Take(t selectors.KeyType) (crypto.Signer, error) {
	if ready[t] == 0 {
		return nil, fmt.Errorf("make a private key: %v is no type of keys", t)
	}
	p.mu.Lock()
	s := &p.shelves[t]
	if n := len(s.keys); n > 0 {
		key := s.keys[n-1]
		s.keys[n-1], s.keys = nil, s.keys[:n-1]
		p.fill(t)
		p.mu.Unlock()
		return key, nil
	}
	p.fill(t)
	p.mu.Unlock()
	return generate(t)
}

// fill starts to make keys until the shelf is full. With mu held.
func (p *Pool) fill(t selectors.KeyType) {
	if ready[t] == 0 || p.cold || p.shelves[t].filling || len(p.shelves[t].keys) >= ready[t] {
		return
	}
	p.shelves[t].filling = true
	go func() {
		for {
			key, err := generate(t)
			p.mu.Lock()
			s := &p.shelves[t]
			if err == nil {
				s.keys = append(s.keys, key)
			}
			full := err != nil || len(s.keys) >= ready[t] // who takes a key of a type that fails gets the error
			s.filling = !full
			p.mu.Unlock()
			if full {
				return
			}
		}
	}()
}

func generate(t selectors.KeyType) (key crypto.Signer, err error) {
	switch t {
	case selectors.KeyECP384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case selectors.KeyRSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case selectors.KeyRSA4096:
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("make a private key of type %v: %w", t, err)
	}
	return key, nil
}

// PKCS8 returns the key as PKCS#8 DER, in memory that is wiped (Secret).
func PKCS8(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a private key: %w", err)
	}
	return Secret(der), nil
}

// Secret moves b to memory that is wiped before it is used for anything else: when nothing refers to any part of
// what is returned any more and the garbage has been collected. b is wiped at once.
//
// That is as far as Go lets: the numbers inside crypto/ecdsa and crypto/rsa, what gRPC makes of a message on its way,
// and the socket's buffers are copies that nobody can wipe. They are short-lived, and memory of the agent that only root
// can read; with protect, not even root (docs/evidence.md).
func Secret(b []byte) []byte {
	if len(b) > len(vault{}) {
		return b
	}
	v := new(vault)
	n := copy(v[:], b)
	clear(b)
	runtime.SetFinalizer(v, (*vault).wipe)
	return v[:n:n]
}

// vault has room for an RSA-4096 key as PKCS#8.
type vault [2560]byte

func (v *vault) wipe() { clear(v[:]) }
