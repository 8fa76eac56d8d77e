// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/selectors"
)

// The test program is this binary, executed again: it says its name and waits for lines;
// at "exec PATH" it becomes that program.
func TestMain(m *testing.M) {
	if os.Getenv("ASSAY_ROLE") == "wait" {
		fmt.Println("ready")
		in := bufio.NewScanner(os.Stdin)
		for in.Scan() {
			if dir, ok := strings.CutPrefix(in.Text(), "chroot "); ok {
				check(errors.Join(unix.Chroot(dir), os.Chdir("/")))
				fmt.Println("ready")
			}
			if path, ok := strings.CutPrefix(in.Text(), "exec "); ok {
				panic(syscall.Exec(path, []string{path}, os.Environ()))
			}
		}
		return
	}
	os.Exit(m.Run())
}

// kernel is the far side: it tells processes apart as the sensor does, start time and program
// file from /proc standing in for the kernel's own record. The real sensor is used in agent/caller.
type kernel struct{}

func (kernel) Key(pidfd int) (selectors.ProcessKey, error) {
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		return selectors.ProcessKey{}, err
	}
	var pid int
	for line := range strings.Lines(string(info)) {
		_, _ = fmt.Sscanf(line, "Pid: %d", &pid)
	}
	if pid <= 0 {
		return selectors.ProcessKey{}, errors.New("no record")
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return selectors.ProcessKey{}, err
	}
	key := selectors.ProcessKey{BootID: "b", TGID: uint32(pid)}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	_, _ = fmt.Sscan(fields[19], &key.StartBoottime)
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", pid), &st); err != nil {
		return selectors.ProcessKey{}, err
	}
	key.ExecID = st.Ino
	return key, nil
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

type program struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func copyOf(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "program")
	raw, err := os.ReadFile("/proc/self/exe")
	check(err)
	check(os.WriteFile(path, raw, 0o755))
	return path
}

func start(t *testing.T, path string, groups ...uint32) *program {
	t.Helper()
	p := &program{Cmd: exec.Command(path)}
	p.Env = append(os.Environ(), "ASSAY_ROLE=wait")
	if groups != nil {
		p.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: groups}}
	}
	p.in = must(p.StdinPipe())
	p.attachOut()
	check(p.Start())
	t.Cleanup(p.stop)
	p.ready()
	return p
}

func (p *program) attachOut() { p.out = bufio.NewReader(must(p.StdoutPipe())) }

func (p *program) ready() { _, err := p.out.ReadString('\n'); check(err) }

func (p *program) stop() {
	if p.ProcessState == nil {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

func pin(t *testing.T, pid int) *Process {
	t.Helper()
	p, err := PinPID(kernel{}, pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestReadings(t *testing.T) {
	path := copyOf(t)
	groups := []uint32{7, 1234, 4000000000}
	if os.Geteuid() != 0 {
		groups = nil
	}
	prog := start(t, path, groups...)
	p := pin(t, prog.Process.Pid)
	if got, err := p.ExecutablePath(); err != nil || got != path {
		t.Errorf("path %q, %v; want %q", got, err, path)
	}
	f, err := p.OpenExecutable()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := f.Stat()
	check(err)
	if want, _ := os.Stat(path); !os.SameFile(got, want) {
		t.Error("the opened executable is another file")
	}
	if got, err := p.SupplementaryGroups(); err != nil || groups != nil && !slices.Equal(got, groups) {
		t.Errorf("groups %v, %v; want %v", got, err, groups)
	}
	check(os.Remove(path))
	if got, err := p.ExecutablePath(); !errors.Is(err, ErrNoPath) {
		t.Errorf("path of a deleted program: %q, %v", got, err)
	}
	if f, err := p.OpenExecutable(); err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
}

func TestReplacedByExec(t *testing.T) {
	prog := start(t, copyOf(t))
	p := pin(t, prog.Process.Pid)
	check(p.Still())
	fmt.Fprintf(prog.in, "exec %s\n", copyOf(t))
	prog.ready()
	if err := p.Still(); !errors.Is(err, ErrReplaced) {
		t.Errorf("after execve: %v, want ErrReplaced", err)
	}
	if f, err := p.OpenExecutable(); !errors.Is(err, ErrReplaced) || f != nil {
		t.Errorf("reading after execve: %v, want ErrReplaced", err)
	}
	if _, err := Pin(kernel{}, p.Key()); !errors.Is(err, ErrReplaced) {
		t.Errorf("pinning the former image: %v, want ErrReplaced", err)
	}
}

func TestGone(t *testing.T) {
	prog := start(t, copyOf(t))
	p := pin(t, prog.Process.Pid)
	done := p.Done()
	select {
	case <-done:
		t.Fatal("done while the process lives")
	case <-time.After(20 * time.Millisecond):
	}
	check(prog.Process.Kill())
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the exit was not noticed")
	}
	if err := p.Still(); !errors.Is(err, ErrGone) { // a zombie: its number is still taken
		t.Errorf("a dead process: %v, want ErrGone", err)
	}
	_ = prog.Wait()
	if err := p.Still(); !errors.Is(err, ErrGone) {
		t.Errorf("a reaped process: %v, want ErrGone", err)
	}
	if _, err := Pin(kernel{}, p.Key()); !errors.Is(err, ErrGone) {
		t.Errorf("pinning a dead process: %v, want ErrGone", err)
	}
	if _, err := p.SupplementaryGroups(); !errors.Is(err, ErrGone) {
		t.Errorf("reading a dead process: %v, want ErrGone", err)
	}
}

func TestCloseEndsDone(t *testing.T) {
	p := pin(t, os.Getpid())
	done := p.Done()
	check(p.Close())
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("Close did not end Done")
	}
	if err := p.Still(); err == nil {
		t.Error("a closed process is still used")
	}
	<-p.Done()
}

func TestThreadNumber(t *testing.T) {
	for _, task := range must(os.ReadDir("/proc/self/task")) {
		var tid int
		_, _ = fmt.Sscan(task.Name(), &tid)
		if tid == os.Getpid() {
			continue
		}
		if _, err := PinPID(kernel{}, tid); !errors.Is(err, ErrGone) {
			t.Errorf("pinning thread %d: %v, want ErrGone", tid, err)
		}
	}
}

func must[T any](v T, err error) T { check(err); return v }

const rights = "Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t4294967295\nGroups:\t0 4294967295 \nNStgid:\t1\nCapInh:\t0\nCapPrm:\t00000000000000ff\nCapEff:\t8000000000000000\nNoNewPrivs:\t1\n"

func TestParseStatus(t *testing.T) {
	want := Status{UIDs: [4]uint32{1, 2, 3, 4}, GIDs: [4]uint32{5, 6, 7, 4294967295}, Groups: []uint32{0, 4294967295},
		Permitted: 0xff, Effective: 1 << 63, NoNewPrivs: true}
	if got, err := parseStatus([]byte("Name:\tUid: 9\n" + rights)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	want.Groups, want.Seccomp = []uint32{}, 2
	if got, err := parseStatus([]byte(strings.Replace(rights, "0 4294967295", "", 1) + "Seccomp:\t2\n")); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("no groups: %+v, %v", got, err)
	}
	for name, in := range map[string]string{
		"empty": "", "negative": strings.Replace(rights, "Groups:\t0", "Groups:\t-1", 1), "too large": strings.Replace(rights, "4294967295 ", "4294967296", 1),
		"a line is missing": strings.Replace(rights, "Groups", "groups", 1), "three": strings.Replace(rights, "1\t2\t3\t4", "1\t2\t3", 1),
		"no hex": strings.Replace(rights, "ff", "xx", 1), "no word": strings.Replace(rights, "NoNewPrivs:\t1", "NoNewPrivs:", 1),
	} {
		if got, err := parseStatus([]byte(in)); err == nil {
			t.Errorf("%s was read as %+v", name, got)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(rights))
	f.Add([]byte("Groups:"))
	f.Fuzz(func(t *testing.T, status []byte) {
		s, err := parseStatus(status)
		if err != nil && s.Groups != nil {
			t.Errorf("%v and %v", s, err)
		}
		if len(s.Groups) > len(status) {
			t.Errorf("%d groups out of %d bytes", len(s.Groups), len(status))
		}
	})
}
