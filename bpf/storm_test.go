// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// tiny writes a static program: an ELF header, one loadable segment, and the code.
func tiny(t *testing.T, code []byte) string {
	t.Helper()
	const base, header = 0x400000, 64 + 56
	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	for _, v := range []any{
		uint16(2), uint16(elfMachine), uint32(1), uint64(base + header), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(64), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), uint64(header + len(code)), uint64(header + len(code)), uint64(1 << 16),
	} {
		check(binary.Write(&b, binary.LittleEndian, v))
	}
	b.Write(code)
	path := filepath.Join(t.TempDir(), "tiny")
	check(os.WriteFile(path, b.Bytes(), 0o755))
	return path
}

// TestExecStorm: while programs are executed as fast as the machine can, the ring buffer is full
// and nobody reads it, every answer about a process is right; only history loses events, and says so.
func TestExecStorm(t *testing.T) {
	s := load(t)
	l, path := listen(t, s, 8)
	caller := start(t, "connect", "ASSAY_SOCKET="+path)
	defer caller.stop()
	caller.word(t)
	conn := accept(t, l)
	want, err := s.Binding(conn)
	check(err)
	script, scriptPath := startScript(t, "wait")
	before, err := s.counters()
	check(err)
	began := time.Now()
	var storm []*exec.Cmd
	for range 2 {
		c := exec.Command(tiny(t, execsItself))
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		check(c.Start())
		defer func() { _ = c.Process.Kill(); _ = c.Wait() }() // if it fails below
		storm = append(storm, c)
	}
	for full := false; time.Since(began) < 3*time.Second || !full; {
		got, err := s.Binding(conn)
		if err != nil || got.Task.Process != want.Task.Process || got.Credentials.UID != want.Credentials.UID {
			t.Fatalf("binding %+v, %v; want %+v", got.Task, err, want.Task)
		}
		checkScript(t, s, script.pidfd, scriptPath)
		p := start(t, "connect", "ASSAY_SOCKET="+path)
		p.word(t)
		fresh, err := s.Binding(accept(t, l))
		check(err)
		if task := mustTask(t, s, p.pidfd); fresh.Task.Process != task.Process || !task.Flags.Has(record.Observed) {
			t.Fatalf("a fresh caller is bound as %+v, its record is %+v", fresh.Task, task)
		}
		p.stop()
		now, err := s.counters()
		check(err)
		full = now.EventsLost > before.EventsLost
	}
	took := time.Since(began)
	for _, c := range storm {
		check(c.Process.Kill())
		_ = c.Wait()
	}
	after, err := s.counters()
	check(err)
	if after.RecordsLost != before.RecordsLost {
		t.Errorf("%d records lost", after.RecordsLost-before.RecordsLost)
	}
	if s.Lost() != after.EventsLost+after.RecordsLost {
		t.Errorf("Lost() = %d, counted %+v", s.Lost(), after)
	}
	n := after.NextExecID - before.NextExecID
	t.Logf("%d execs in %s: %.0f/s; %d events lost, no record", n, took.Round(time.Millisecond), float64(n)/took.Seconds(), after.EventsLost-before.EventsLost)
	seesAgain(t, s)
}

// seesAgain: after the storm, history goes on.
func seesAgain(t *testing.T, s *Sensor) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read := 0
	var p *program
	var want selectors.ProcessKey
	_ = s.Events(ctx, func(e record.Event) {
		if read++; read == 1000 { // there is room now
			p = start(t, "wait")
			p.word(t)
			want = mustTask(t, s, p.pidfd).Process
		}
		if e.Kind == record.EventExec && e.Process == want {
			cancel()
		}
	})
	if p != nil {
		p.stop()
	}
	if ctx.Err() != context.Canceled {
		t.Error("no event of a process that was started after the storm")
	}
}

// TestForkBomb: what the sensor keeps of processes is bounded by how many live: bomb after
// bomb takes the same memory, which the kernel frees some time after the processes. It charges it
// to the memory cgroup in which the maps were made.
func TestForkBomb(t *testing.T) {
	const (
		processes, rounds = 1500, 4
		perProcess        = 6144 // bytes; a task_record takes half a KiB, a code_record (T1) 2 KiB, the rest waits to be freed
	)
	pins := filepath.Join(bpffs(t), "assay")
	group, usage := memoryCgroup(t)
	holder := start(t, "load", "ASSAY_PINS="+pins, "ASSAY_CGROUP="+group)
	holder.word(t)
	t.Cleanup(func() { holder.stop(); check(Unpin(pins)) })
	base := usage()
	first := 0
	for round := range rounds {
		bomb := start(t, "bomb", "ASSAY_TINY="+tiny(t, forksItself), "ASSAY_PROCESSES="+strconv.Itoa(processes))
		defer bomb.stop()
		bomb.word(t)
		alive := settled(func() int { return ofUser(bombUser) }, func(n int) bool { return n >= processes*9/10 })
		peak := usage() - base
		if alive < processes*9/10 || peak > alive*perProcess {
			t.Errorf("round %d: %d bytes for %d processes, want at most %d each", round, peak, alive, perProcess)
		}
		_, err := bomb.in.Write([]byte("stop\n"))
		check(err)
		bomb.word(t)
		if round == 0 {
			first = peak
		}
		t.Logf("round %d: %d processes: %d bytes, %d each", round, alive, peak, peak/max(alive, 1))
	}
	if left := settled(func() int { return usage() - base }, func(n int) bool { return n <= first*3/2 }); left > first*3/2 {
		t.Errorf("%d bytes are left after %d bombs; the first one took %d", left, rounds, first)
	}
}

// settled waits until a figure is as it should be, and returns it; the last one after 20 s.
func settled(figure func() int, good func(int) bool) int {
	for range 200 {
		if good(figure()) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return figure()
}

const bombUser = 54321

// playBomb starts a fork bomb that the kernel stops at so many processes. When told to, it ends
// them all and waits until nothing of them is left.
func playBomb() {
	n, err := strconv.Atoi(os.Getenv("ASSAY_PROCESSES"))
	check(err)
	check(unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)}))
	check(unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
	program, err := unix.Open(os.Getenv("ASSAY_TINY"), unix.O_PATH, 0) // its folder is closed to that user
	check(err)
	bomb := exec.Command("/proc/self/fd/" + strconv.Itoa(program))
	bomb.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: bombUser, Gid: bombUser}}
	check(bomb.Start())
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 8))
	check(syscall.Kill(-bomb.Process.Pid, syscall.SIGKILL))
	for err = nil; err != unix.ECHILD; {
		_, err = unix.Wait4(-1, nil, 0, nil)
	}
	fmt.Println("gone")
}

// ofUser counts the processes of a user.
func ofUser(uid uint32) (n int) {
	dirs, err := os.ReadDir("/proc")
	check(err)
	for _, d := range dirs {
		var st unix.Stat_t
		if d.Name()[0] <= '9' && unix.Stat("/proc/"+d.Name(), &st) == nil && st.Uid == uid {
			n++
		}
	}
	return n
}

// memoryCgroup makes a cgroup in which the kernel's own memory is counted, v1 or v2.
func memoryCgroup(t *testing.T) (dir string, usage func() int) {
	t.Helper()
	dir, file, field := "/sys/fs/cgroup/memory/assay-test", "memory.kmem.usage_in_bytes", ""
	if _, err := os.Stat(filepath.Dir(dir)); err != nil {
		dir, file, field = "/sys/fs/cgroup/assay-test", "memory.stat", "kernel "
		check(os.WriteFile("/sys/fs/cgroup/cgroup.subtree_control", []byte("+memory"), 0))
	}
	check(os.Mkdir(dir, 0o755))
	t.Cleanup(func() {
		settled(func() int { _ = os.Remove(dir); return 0 }, func(int) bool { _, err := os.Stat(dir); return err != nil })
	})
	return dir, func() int {
		raw, err := os.ReadFile(filepath.Join(dir, file))
		check(err)
		for line := range strings.Lines(string(raw)) {
			if v, ok := strings.CutPrefix(line, field); ok {
				n, err := strconv.Atoi(strings.TrimSpace(v))
				check(err)
				return n
			}
		}
		t.Fatalf("%s has no line %q", file, field)
		return 0
	}
}

// playLoad loads a sensor from within a cgroup, and keeps it.
func playLoad() {
	check(os.WriteFile(filepath.Join(os.Getenv("ASSAY_CGROUP"), "cgroup.procs"), []byte("0"), 0))
	s, err := Load(Config{PinDir: os.Getenv("ASSAY_PINS"), Logger: slog.New(slog.DiscardHandler)})
	check(err)
	defer s.Close()
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
}
