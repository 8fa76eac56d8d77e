// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// TestReady: a daemon that no longer answers is not fed to the watchdog.
func TestReady(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000")
	ctx, cancel := context.WithCancel(t.Context())
	hangs := make(chan struct{})
	Ready(ctx, func(context.Context) error {
		select {
		case <-hangs:
			return errors.New("it hangs")
		default:
			return nil
		}
	})
	said := func(within time.Duration) string {
		buf := make([]byte, 100)
		_ = manager.SetReadDeadline(time.Now().Add(within))
		n, err := manager.Read(buf)
		if err != nil {
			return ""
		}
		return string(buf[:n])
	}
	for _, want := range []string{"READY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := said(30 * time.Second); got != want {
			t.Fatalf("the service manager was told %q, want %q", got, want)
		}
	}
	close(hangs)
	for said(time.Second) != "" { // what was on its way
	}
	cancel()
	if got := said(30 * time.Second); got != "STOPPING=1" {
		t.Errorf("at the end it was told %q", got)
	}
}
