// SPDX-License-Identifier: Apache-2.0

// Package deploy starts what `make install` installed as its units say, under a real systemd.
package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/swtpm"
)

const patience = 40 * time.Second

// host is a machine's files with Assay installed, and a systemd that manages nothing else.
type host struct {
	dir, name string
	manager   *exec.Cmd
	done      chan struct{}
	ekCA      []byte
}

// startHost makes a host with a software TPM at /run/tpm/tpm.sock.
func startHost(t *testing.T) *host {
	t.Helper()
	needs(t, "/lib/systemd/systemd", "/usr/bin/systemd-sysusers", "/usr/bin/unshare")
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{dir: t.TempDir(), name: fmt.Sprintf("assay-deploy-%d", os.Getpid()), done: make(chan struct{})}
	h.startTPM(t)
	log, err := os.Create(h.dir + "/tpm/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	h.manager = exec.Command("unshare", "--net", "--mount", "--propagation", "private", repo+"/tests/deploy/testdata/host.sh", repo, h.dir, h.name)
	h.manager.Stdout, h.manager.Stderr = log, log
	if err := h.manager.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = h.manager.Wait()
		close(h.done)
	}()
	t.Cleanup(func() { h.stop(t) })
	h.eventually(t, "systemd to be ready", func() error {
		_, err := h.try("systemctl", "--user", "is-active", "basic.target")
		return err
	})
	return h
}

// needs skips the test on a machine without some programs, and fails it where nothing may be skipped.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := os.Stat(p); err == nil && os.Geteuid() == 0 {
			continue
		}
		why := p + " is needed, and root"
		if os.Getenv("ASSAY_NO_SKIP") == "1" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
}

// log is what systemd and its services have said.
func (h *host) log() string {
	out, err := os.ReadFile(h.dir + "/tpm/log")
	if err != nil {
		return err.Error()
	}
	return string(out)
}

// since is what was said after the first bytes.
func (h *host) since(bytes int) string { return h.log()[bytes:] }

func (h *host) startTPM(t *testing.T) {
	t.Helper()
	dir := filepath.Join(h.dir, "tpm")
	var err error
	if h.ekCA, err = swtpm.Manufacture(t.Context(), filepath.Join(h.dir, "ca"), dir); err != nil {
		t.Fatal(err)
	}
	chip, err := swtpm.Start(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := chip.Stop(); err != nil {
			t.Error(err)
		}
	})
	// As the group tss may use a machine's TPM.
	socket := strings.TrimPrefix(chip.Path(), "unix:")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(socket, 0o666), os.Symlink(filepath.Base(socket), filepath.Join(dir, "tpm.sock"))); err != nil {
		t.Fatal(err)
	}
}

// try runs a command on the host and returns what it printed.
func (h *host) try(command ...string) (string, error) {
	cmd := exec.Command("nsenter", append([]string{"--net", "--mount", "--target", fmt.Sprint(h.manager.Process.Pid),
		"env", "XDG_RUNTIME_DIR=/run"}, command...)...)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

func (h *host) must(t *testing.T, command ...string) string {
	t.Helper()
	out, err := h.try(command...)
	if err != nil {
		t.Fatalf("%v\n--- logs\n%s", err, h.log())
	}
	return out
}

// write puts a file onto the host.
func (h *host) write(t *testing.T, path, content string) {
	t.Helper()
	h.must(t, "sh", "-c", `mkdir -p "$(dirname "$1")" && printf %s "$2" > "$1"`, "sh", path, content)
}

func (h *host) systemctl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := h.try(append([]string{"systemctl", "--user"}, args...)...)
	if err != nil {
		status, _ := h.try("systemctl", "--user", "status", "--no-pager", "assay-*")
		t.Fatalf("%v\n%s\n--- logs\n%s", err, status, h.log())
	}
	return out
}

// limit sets lines of a unit's section [Service], none for the unit as it is.
func (h *host) limit(t *testing.T, unit string, lines ...string) {
	t.Helper()
	path := "/etc/systemd/user/" + unit + ".d/test.conf"
	h.write(t, path, "[Service]\n"+strings.Join(lines, "\n")+"\n")
	h.systemctl(t, "daemon-reload")
}

func (h *host) eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
		select {
		case <-h.done:
			t.Fatalf("waiting for %s: systemd ended\n%s", what, h.log())
		default:
		}
	}
	t.Fatalf("waiting for %s: %v\n--- logs\n%s", what, err, h.log())
}

// stop ends the services and systemd, and removes their cgroups.
func (h *host) stop(t *testing.T) {
	_, _ = h.try("systemctl", "--user", "exit")
	select {
	case <-h.done:
	case <-time.After(30 * time.Second):
		t.Error("systemd did not end")
		_ = h.manager.Process.Kill()
		<-h.done
	}
	mounts, _ := filepath.Glob("/sys/fs/cgroup/*/" + h.name)
	for _, top := range append(mounts, "/sys/fs/cgroup/"+h.name) {
		if err := removeCgroups(top); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.Logf("--- logs\n%s", h.log())
	}
}

func removeCgroups(top string) error {
	var dirs []string
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		for tries := 0; ; tries++ { // a process that was killed may not be reaped yet
			e := os.Remove(dirs[i])
			if !errors.Is(e, syscall.EBUSY) || tries == 100 {
				err = errors.Join(err, e)
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return err
}
