// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func BenchmarkBinding(b *testing.B) {
	s := load(b)
	l, path := listen(b, s, 8)
	fd := clientSocket()
	defer unix.Close(fd)
	check(unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
	conn := accept(b, l)
	for b.Loop() {
		if _, err := s.Binding(conn); err != nil {
			b.Fatal(err)
		}
	}
}

// withAndWithout runs a benchmark on the bare kernel and under the sensor.
func withAndWithout(b *testing.B, run func(b *testing.B)) {
	b.Run("bare", run)
	load(b)
	b.Run("sensor", run)
}

func BenchmarkExecCost(b *testing.B) {
	withAndWithout(b, func(b *testing.B) {
		for b.Loop() {
			check(exec.Command("/bin/true").Run())
		}
	})
}

func BenchmarkConnectCost(b *testing.B) {
	withAndWithout(b, func(b *testing.B) {
		l := clientSocket()
		defer unix.Close(l)
		name := &unix.SockaddrUnix{Name: filepath.Join(b.TempDir(), "api.sock")}
		check(unix.Bind(l, name))
		check(unix.Listen(l, 8))
		for b.Loop() {
			c := clientSocket()
			check(unix.Connect(c, name))
			conn, _, err := unix.Accept(l)
			check(err)
			check(unix.Close(conn))
			check(unix.Close(c))
		}
	})
}
