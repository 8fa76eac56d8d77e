// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
)

// slowDisk is a folder that is kept elsewhere and takes its time to make anything durable.
type slowDisk struct {
	fuse.RawFileSystem
	delay atomic.Int64 // nanoseconds
}

func (d *slowDisk) set(delay time.Duration) { d.delay.Store(int64(delay)) }

// Fsync is fdatasync(2), too.
func (d *slowDisk) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	time.Sleep(time.Duration(d.delay.Load()))
	return d.RawFileSystem.Fsync(cancel, in)
}

// rehouse moves the data of a server that does not run to what mount puts in its place.
func (s *server) rehouse(mount func(data, old string)) {
	s.h.t.Helper()
	data, old := filepath.Join(s.dir, "data"), filepath.Join(s.dir, "old")
	if err := os.Rename(data, old); err != nil {
		s.h.t.Fatal(err)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		s.h.t.Fatal(err)
	}
	mount(data, old)
	s.h.t.Cleanup(func() { s.kill(); run(s.h.t, "umount", data) })
}

// slow restarts the server on a disk whose speed can be set.
func (s *server) slow() *slowDisk {
	s.h.t.Helper()
	d := &slowDisk{}
	s.kill()
	s.rehouse(func(data, old string) {
		root, err := fs.NewLoopbackRoot(old)
		if err != nil {
			s.h.t.Fatal(err)
		}
		d.RawFileSystem = fs.NewNodeFS(root, &fs.Options{})
		disk, err := fuse.NewServer(d, data, &fuse.MountOptions{DirectMountStrict: true, FsName: "slow", Name: "assay-faults"})
		if err != nil {
			s.h.t.Fatal(err)
		}
		go disk.Serve()
		if err := disk.WaitMount(); err != nil {
			s.h.t.Fatal(err)
		}
	})
	s.start()
	return d
}

// signs checks that the server signs, and returns how long it took.
func (s *server) signs() time.Duration {
	s.h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.h.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/minted"}}}, key)
	if err != nil {
		s.h.t.Fatal(err)
	}
	began := time.Now()
	if _, err := svidv1.NewSVIDClient(s.conn).MintX509SVID(bounded(s.h.t, 30*time.Second), &svidv1.MintX509SVIDRequest{Csr: csr}); err != nil {
		s.h.t.Errorf("%s does not sign: %v", s.name, err)
	}
	return time.Since(began)
}

// says waits for words in the server's log.
func (s *server) says(words string) {
	s.h.t.Helper()
	eventually(s.h.t, s.name+" to say: "+words, func() bool {
		log, _ := os.ReadFile(s.dir + "/log")
		return strings.Contains(string(log), words)
	})
}

// TestSlowDisk of the only server: writes are slow and none is lost, not even by its end while they wait; signing goes on; the
// server says what is wrong.
func TestSlowDisk(t *testing.T) {
	all(t)
	h := build(t, 1)
	s := h.servers[0]
	disk := s.slow()
	w := h.writePatiently(time.Minute)
	w.more(t, 50)
	disk.set(700 * time.Millisecond) // a write is one such wait for the log, and up to two for the database
	w.more(t, 6)
	for range 5 {
		if took := s.signs(); took > 10*time.Second {
			t.Errorf("signing took %v", took)
		}
	}
	s.says("writes to the store take")
	s.kill()
	disk.set(0)
	s.start()
	w.end(t, h)
	w = h.write()
	w.more(t, 50)
	w.end(t, h)
}

// TestSlowLeader: a leader whose disk is a little slow stays, one whose disk is too slow to lead is followed by one other, and
// the server that it belongs to goes on.
func TestSlowLeader(t *testing.T) {
	all(t)
	h := build(t, 3)
	s := h.servers[0]
	disk := s.slow()
	eventually(t, "it to lead", func() bool {
		l := h.leader()
		if l != s { // the next may be the one
			l.kill()
			l.start()
		}
		return l == s
	})
	w := h.write()
	w.more(t, 50)
	disk.set(200 * time.Millisecond)
	if leaders := h.leaders(5 * time.Second); len(leaders) != 1 {
		t.Errorf("with a disk that takes 200 ms: %v lead", leaders)
	}
	disk.set(4 * time.Second)
	w.more(t, 50)
	leaders := h.leaders(15 * time.Second)
	if len(leaders) > 3 {
		t.Errorf("with a disk that takes 4 s: %v lead, one after the other", leaders)
	}
	w.more(t, 100)
	t.Logf("%v lead; %s signs in %v", leaders, s.name, s.signs())
	disk.set(0)
	w.end(t, h)
}

// leaders are who lead in some time, each as often as it came to.
func (h *house) leaders(d time.Duration) (names []string) {
	h.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if l := h.leader().name; len(names) == 0 || names[len(names)-1] != l {
			names = append(names, l)
		}
	}
	return names
}

// TestFullDisk of one member: the others go on, and it comes back when there is room.
func TestFullDisk(t *testing.T) {
	all(t)
	h := build(t, 3)
	s := h.leader()
	s.kill()
	s.rehouse(func(data, old string) {
		run(t, "mount", "-t", "tmpfs", "-o", "size=320m,mode=0700", "tmpfs", data)
		run(t, "cp", "-a", old+"/.", data)
	})
	s.start()
	w := h.write()
	w.more(t, 50)
	ballast := filepath.Join(s.dir, "data", "ballast")
	fill(t, ballast)
	err := s.create(bounded(t, 10*time.Second), "/no-room")
	if err == nil || !strings.Contains(err.Error(), "the store has no room") {
		t.Errorf("on a full disk: %v", err)
	}
	// The others' writes use up what its files have in reserve, and end the member.
	var names []string
	for i := range 200 {
		names = append(names, fmt.Sprintf("%s-%d.example.org", strings.Repeat("x", 50), i))
	}
	other := h.servers[s.n%len(h.servers)]
	eventually(t, "the member to find no room", func() bool {
		for i := range 50 {
			if err := other.create(t.Context(), fmt.Sprintf("/large/%d/%d", time.Now().UnixNano(), i), names...); err != nil {
				t.Log(err)
			}
		}
		log, _ := os.ReadFile(s.dir + "/log")
		return strings.Contains(string(log), "has no room; free space or move data_dir")
	})
	w.more(t, 50)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it to take entries again", func() bool {
		return s.create(bounded(t, 3*time.Second), fmt.Sprintf("/room/%d", time.Now().UnixNano())) == nil
	})
	w.end(t, h)
}

// fill takes all of the file system.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize); err != nil {
		t.Fatal(err)
	}
}
