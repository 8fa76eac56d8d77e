// SPDX-License-Identifier: Apache-2.0

// Package storetest gives tests a real store: an etcd member in a child process.
package storetest

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"testing"
	"time"

	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/store/member"
)

// Main is a TestMain: it lets the test binary serve as its own store-member.
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
func Main(m *testing.M) int {
	if len(os.Args) > 1 && os.Args[1] == member.Command {
		return member.Main(os.Args[2:])
	}
	flag.Parse()
	return m.Run()
}

// Open opens a new, empty store that ends with the test.
func Open(t testing.TB) *store.Store { return OpenDir(t, t.TempDir()) }

// OpenDir opens the store in a folder. It ends with the test, or earlier by Close.
func OpenDir(t testing.TB, dir string) *store.Store {
	t.Helper()
	return OpenConfig(t, store.Config{Dir: dir})
}

// OpenConfig opens a store that errors are logged of. It ends as OpenDir's does.
func OpenConfig(t testing.TB, cfg store.Config) *store.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cfg.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError}))
	s, err := store.Open(ctx, cfg)
	if err != nil {
		t.Fatalf("open a store: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}
