// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/assay-id/assay/selectors"
)

func TestTypes(t *testing.T) {
	p := Pool{cold: true}
	for kind, bits := range map[selectors.KeyType]int{selectors.KeyECP256: 256, selectors.KeyECP384: 384, selectors.KeyRSA2048: 2048, selectors.KeyRSA4096: 4096} {
		key, err := p.Take(kind)
		if err != nil {
			t.Fatal(err)
		}
		der, err := PKCS8(key)
		if err != nil {
			t.Fatal(err)
		}
		again, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		switch k := again.(type) {
		case *ecdsa.PrivateKey:
			got = k.Curve.Params().BitSize
		case *rsa.PrivateKey:
			got = k.N.BitLen()
		}
		if got != bits || len(der) > len(vault{}) {
			t.Errorf("%v: %d bits, PKCS#8 of %d bytes", kind, got, len(der))
		}
	}
	for _, kind := range []selectors.KeyType{selectors.KeyDefault, selectors.KeyRSA4096 + 1} {
		if key, err := p.Take(kind); err == nil {
			t.Errorf("type %d: %v", kind, key)
		}
	}
}

// The pool fills itself off the caller's path, is bounded, and gives each key once.
func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pool
		kind := selectors.KeyECP256
		p.Expect(kind)
		p.Expect(selectors.KeyDefault) // of an entry that leaves it to the agent
		synctest.Wait()
		if n := len(p.shelves[kind].keys); n != ready[kind] {
			t.Errorf("%d keys are ready, want %d", n, ready[kind])
		}
		if n := len(p.shelves[selectors.KeyRSA2048].keys); n != 0 {
			t.Errorf("%d RSA keys that nobody asked for", n)
		}
		var mu sync.Mutex
		seen := map[string]bool{}
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				key, err := p.Take(kind)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				seen[text(t, key)] = true
			})
		}
		wg.Wait()
		synctest.Wait()
		if len(seen) != 200 || len(p.shelves[kind].keys) != ready[kind] || p.shelves[kind].filling {
			t.Errorf("%d keys of 200 differ; %d are ready", len(seen), len(p.shelves[kind].keys))
		}
	})
}

func text(t *testing.T, key crypto.Signer) string {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Error(err)
	}
	return string(der)
}

// Memory of a secret is zero once nothing refers to it, and not before.
func TestSecretIsWiped(t *testing.T) {
	source := bytes.Repeat([]byte{0xa5}, 64)
	part := Secret(source)[10:20]
	if !bytes.Equal(source, make([]byte, 64)) {
		t.Error("the source was not wiped")
	}
	wiped := make(chan bool, 1)
	v := (*vault)(unsafe.Add(unsafe.Pointer(&part[0]), -10))
	runtime.SetFinalizer(v, nil)
	runtime.SetFinalizer(v, func(v *vault) {
		v.wipe()
		wiped <- bytes.Equal(v[:], make([]byte, len(v)))
	})
	v = nil
	collect := func(d time.Duration) bool {
		for deadline := time.Now().Add(d); time.Now().Before(deadline); {
			runtime.GC()
			select {
			case ok := <-wiped:
				if !ok {
					t.Error("not all of it was wiped")
				}
				return true
			case <-time.After(time.Millisecond):
			}
		}
		return false
	}
	if collect(20*time.Millisecond) || part[0] != 0xa5 {
		t.Fatal("wiped while a part of it is in use")
	}
	runtime.KeepAlive(part)
	part = nil
	if !collect(30 * time.Second) {
		t.Error("not wiped")
	}
}

// What a workload waits for its key, with keys that are ready and without.
func BenchmarkTake(b *testing.B) {
	for _, kind := range []selectors.KeyType{selectors.KeyECP256, selectors.KeyRSA2048} {
		for _, cold := range []bool{false, true} {
			b.Run(fmt.Sprintf("%v/pool=%v", kind, !cold), func(b *testing.B) {
				p := Pool{cold: cold}
				for range b.N {
					b.StopTimer()
					for p.Expect(kind); !cold; time.Sleep(time.Millisecond) { // as if workloads came now and then
						p.mu.Lock()
						n := len(p.shelves[kind].keys)
						p.mu.Unlock()
						if n > 0 {
							break
						}
					}
					b.StartTimer()
					if _, err := p.Take(kind); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
