// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// registration is what an entry demands, for both attestors; zero fields demand nothing.
type registration struct {
	id, digest, parent, path, cgroup string
	root                             bool
	more                             []string // selectors that the old attestor has nothing for, or checks as root
}

// peerCred is an attestor of the old kind: SO_PEERCRED tells the PID, /proc the rest, when the
// first request comes.
type peerCred struct {
	socket  string
	entries []registration
}

func startPeerCred(t *testing.T, dir string, entries []registration) *peerCred {
	p := &peerCred{socket: filepath.Join(dir, "peercred", "api.sock"), entries: entries}
	check(os.Mkdir(filepath.Dir(p.socket), 0o755))
	l := must(net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"}))
	check(os.Chmod(p.socket, 0o777))
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			go p.serve(c)
		}
	}()
	return p
}

func (p *peerCred) serve(c *net.UnixConn) {
	defer c.Close()
	for {
		if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			return
		}
		if _, err := c.Read(make([]byte, 1<<12)); err != nil {
			return
		}
		ids := p.attest(c)
		if len(ids) == 0 {
			return
		}
		if _, err := c.Write(appendFrame(nil, frameData, 0, 1, []byte(strings.Join(ids, " ")))); err != nil {
			return
		}
	}
}

func (p *peerCred) attest(c *net.UnixConn) (ids []string) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }) != nil || err != nil {
		return nil
	}
	pid := int(cred.Pid)
	path, _ := os.Readlink(proc(pid, "exe"))
	stat, _ := os.ReadFile(proc(pid, "stat"))
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	var parent int
	if f := bytes.Fields(rest); len(f) > 1 {
		parent, _ = strconv.Atoi(string(f[1]))
	}
	cgroups, _ := os.ReadFile(proc(pid, "cgroup"))
	digest, parentDigest := digestOf(proc(pid, "exe")), digestOf(proc(parent, "exe"))
	for _, e := range p.entries {
		if (e.digest == "" || e.digest == digest) && (e.parent == "" || e.parent == parentDigest) && (e.path == "" || e.path == path) &&
			(!e.root || cred.Uid == 0) && (e.cgroup == "" || strings.Contains(string(cgroups), "0::"+e.cgroup+"\n")) {
			ids = append(ids, e.id)
		}
	}
	return ids
}

func proc(pid int, name string) string { return fmt.Sprintf("/proc/%d/%s", pid, name) }

// digests remembers what was read, by what stat(2) tells of a file.
var digests sync.Map

// digestOf is no digest for a file that can not be read.
func digestOf(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return "unreadable"
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "unreadable"
	}
	key := fmt.Sprint(st.Dev, st.Ino, st.Size, st.Ctim)
	if d, ok := digests.Load(key); ok {
		return d.(string)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "unreadable"
	}
	d := fmt.Sprintf("%x", sum.Sum(nil))
	digests.Store(key, d)
	return d
}
