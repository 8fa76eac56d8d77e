// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/agent/limits"
)

// peers is an agent at T3, without a sensor whose descriptors would count, too.
func peers(t *testing.T, c Config) *Listener {
	t.Helper()
	if before6_5() {
		t.Skip("native only: there is no tier T3 before Linux 6.5")
	}
	b, err := NewPeers()
	needKernel(t, err)
	c.Binder, c.Logger = b, quiet
	l, err := Listen(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// open are the numbers of this process's descriptors.
func open(t *testing.T) int {
	t.Helper()
	return len(must(os.ReadDir("/proc/self/fd")))
}

// TestConnectionLimit: beyond the limit connections end at once, over all sockets, and nothing of them is left.
func TestConnectionLimit(t *testing.T) {
	leak := goleak.IgnoreCurrent()
	_ = must(net.Dial("udp", "127.0.0.1:9")).Close() // Go's poller has its descriptors now
	before := open(t)
	count := limits.NewCount(100, 4)
	dir := t.TempDir()
	var listeners []*Listener
	accepted := make(chan net.Conn, 100)
	for _, name := range []string{"a", "b"} {
		l := peers(t, Config{Path: filepath.Join(dir, name), Mode: 0o700, Connections: count})
		listeners = append(listeners, l)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepted <- c
			}
		}()
	}
	var clients, servers []net.Conn
	accepts := func(i int) bool {
		t.Helper()
		client := must(net.Dial("unix", filepath.Join(dir, []string{"a", "b"}[i%2])))
		clients = append(clients, client)
		select {
		case server := <-accepted:
			servers = append(servers, server)
			return true
		case <-time.After(200 * time.Millisecond):
		}
		check(client.SetReadDeadline(time.Now().Add(10 * time.Second)))
		if _, err := client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a connection beyond the limit: %v", err)
		}
		return false
	}
	for i, want := range []bool{true, true, true, true, false, false} {
		if got := accepts(i); got != want {
			t.Fatalf("connection %d was accepted: %v", i, got)
		}
	}
	servers[0].Close()
	servers[0].Close() // counts once
	if !accepts(0) || accepts(1) {
		t.Error("there is not room for one after one was closed, twice")
	}
	for _, c := range append(clients, servers...) {
		c.Close()
	}
	for _, l := range listeners {
		check(l.Close())
	}
	goleak.VerifyNone(t, leak)
	for deadline := time.Now().Add(10 * time.Second); open(t) > before; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d descriptors are open, %d were", open(t), before)
		}
	}
}

// TestInherited: a socket that somebody else listens on is taken over, and left in its place.
func TestInherited(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	made := must(net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}))
	defer made.Close()
	check(os.Chmod(path, 0o640))
	file := must(made.File())
	if got, err := PathOf(file); err != nil || got != path {
		t.Fatalf("%q, %v", got, err)
	}
	early := must(net.Dial("unix", path))
	defer early.Close()
	l := peers(t, Config{Path: path, Mode: 0o777, Inherited: file})
	conn := must(l.Accept()).(*Conn)
	defer conn.Close()
	c, err := conn.Caller()
	if err != nil || c.Key().TGID != uint32(os.Getpid()) {
		t.Fatalf("who connected before: %v", err)
	}
	must(early.Write([]byte("x")))
	if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
		t.Errorf("read %d, %v", n, err)
	}
	check(l.Close())
	if info := must(os.Stat(path)); info.Mode().Perm() != 0o640 {
		t.Errorf("the socket's permissions became %v", info.Mode())
	}
}

// TestPathOf: what can not be one of the agent's sockets is refused.
func TestPathOf(t *testing.T) {
	tcp := must(net.Listen("tcp", "127.0.0.1:0")).(*net.TCPListener)
	defer tcp.Close()
	abstract := must(net.ListenUnix("unix", &net.UnixAddr{Name: "@assay-test-" + filepath.Base(t.TempDir()), Net: "unix"}))
	defer abstract.Close()
	datagram := must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "d"), Net: "unixgram"}))
	defer datagram.Close()
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	defer unix.Close(pair[1])
	files := []*os.File{must(tcp.File()), must(abstract.File()), must(datagram.File()), os.NewFile(uintptr(pair[0]), "pair"), must(os.Open("/dev/null"))}
	for _, f := range files {
		if path, err := PathOf(f); err == nil {
			t.Errorf("%s is taken for a socket at %q", f.Name(), path)
		} else {
			t.Log(err)
		}
		f.Close()
	}
}

// TestStuckWriter: who does not read loses the connection.
func TestStuckWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := peers(t, Config{Path: path, Mode: 0o700})
	defer l.Close()
	client := must(net.Dial("unix", path))
	defer client.Close()
	conn := must(l.Accept()).(*Conn)
	defer conn.Close()
	conn.writeTimeout = 100 * time.Millisecond
	sent := 0
	for {
		n, err := conn.Write(make([]byte, 4096))
		if sent += n; err != nil {
			if !os.IsTimeout(err) {
				t.Error(err)
			}
			break
		}
	}
	if sent > 4*sendBuffer {
		t.Errorf("%d bytes are held for a client who does not read", sent)
	}
}
