// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/agent/process"
)

// named is a process that somebody names; it waits for a line.
type named struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func name(t *testing.T, script string) *named {
	t.Helper()
	c := exec.Command("/bin/sh", "-c", "echo ready; read x; "+script)
	in, err := c.StdinPipe()
	check(t, err)
	out, err := c.StdoutPipe()
	check(t, err)
	check(t, c.Start())
	n := &named{c, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	_, err = n.out.ReadString('\n')
	check(t, err)
	return n
}

func (n *named) goOn(t *testing.T) {
	t.Helper()
	_, err := io.WriteString(n.in, "go\n")
	check(t, err)
}

// refuses wants the error, from Check and, within a few glances, by Changed.
func refuses(t *testing.T, r *Reference, want error, text string) {
	t.Helper()
	select {
	case <-r.Changed():
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is told")
	}
	if err := r.Check(); !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
		t.Errorf("Check says %v, want %v: %s", err, want, text)
	}
}

func TestReference(t *testing.T) {
	a, _ := attestor(t)
	of := func(t *testing.T, n *named) *Reference {
		t.Helper()
		r, err := a.Process(t.Context(), n.Process.Pid)
		check(t, err)
		check(t, r.Check())
		if f := r.Facts(); f.Process.TGID != uint32(n.Process.Pid) || f.Executable.SHA256.IsZero() || len(r.Selectors()) == 0 {
			t.Errorf("facts %+v", f)
		}
		return r
	}
	t.Run("exits", func(t *testing.T) {
		n := name(t, "exit")
		r := of(t, n)
		n.goOn(t)
		refuses(t, r, process.ErrGone, "")
		<-r.Done()
	})
	t.Run("executes another program", func(t *testing.T) {
		n := name(t, "exec /bin/sleep 600")
		r := of(t, n)
		n.goOn(t)
		refuses(t, r, process.ErrReplaced, "")
	})
	t.Run("is debugged", func(t *testing.T) {
		n := name(t, "exit")
		r := of(t, n)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		check(t, unix.PtraceSeize(n.Process.Pid))
		check(t, unix.PtraceInterrupt(n.Process.Pid))
		_, err := unix.Wait4(n.Process.Pid, nil, 0, nil)
		check(t, err)
		refuses(t, r, process.ErrReplaced, fmt.Sprintf("process %d did", os.Getpid()))
		check(t, unix.PtraceDetach(n.Process.Pid))
	})
	t.Run("moves to another cgroup", func(t *testing.T) {
		n := name(t, "exit")
		r := of(t, n)
		root := "/sys/fs/cgroup"
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil { // both hierarchies
			root += "/unified"
		}
		dir := filepath.Join(root, fmt.Sprintf("assay-reference-%d", os.Getpid()))
		needKernel(t, os.Mkdir(dir, 0o755))
		t.Cleanup(func() {
			_ = n.Process.Kill()
			_ = n.Wait()
			check(t, os.Remove(dir))
		})
		check(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, n.Process.Pid), 0))
		if err := r.Check(); !errors.Is(err, process.ErrReplaced) || !strings.Contains(err.Error(), "moved from cgroup") {
			t.Errorf("Check says %v", err)
		}
		<-r.Changed()
	})
	t.Run("is let go", func(t *testing.T) {
		n := name(t, "exit")
		ctx, cancel := context.WithCancel(t.Context())
		r, err := a.Process(ctx, n.Process.Pid)
		check(t, err)
		cancel()
		<-r.Done()
		if err := r.Check(); err == nil {
			t.Error("a reference that was let go holds")
		}
	})
	t.Run("is not there", func(t *testing.T) {
		if _, err := a.Process(t.Context(), 1<<22+1); !errors.Is(err, process.ErrGone) {
			t.Error(err)
		}
	})
}
