// SPDX-License-Identifier: Apache-2.0

package keys

import (
	"context"
	"crypto"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync"
)

// Memory keeps keys until the process ends: each start of the server makes new authorities. The
// zero Memory is ready.
type Memory struct {
	mu   sync.Mutex
	keys map[string]crypto.Signer
}

// Generate implements Manager.
func (m *Memory) Generate(_ context.Context, name string, t Type) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	key, err := generate(t)
	if err != nil {
		return nil, fmt.Errorf("make key %s: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys[name] != nil {
		return nil, fmt.Errorf("make key %s: %w", name, fs.ErrExist)
	}
	if m.keys == nil {
		m.keys = map[string]crypto.Signer{}
	}
	m.keys[name] = key
	return key, nil
}

// Open implements Manager.
func (m *Memory) Open(_ context.Context, name string) (crypto.Signer, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if key := m.keys[name]; key != nil {
		return key, nil
	}
	return nil, fmt.Errorf("open key %s: %w", name, fs.ErrNotExist)
}

// Delete implements Manager.
func (m *Memory) Delete(_ context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.keys, name)
	return nil
}

// List implements Manager.
func (m *Memory) List(context.Context) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.keys)), nil
}

// Close implements Manager.
func (m *Memory) Close() error { return nil }
