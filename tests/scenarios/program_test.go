// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program is an agent or a server that a test runs beside the machine's own.
type program struct {
	cmd  *exec.Cmd
	out  logBuffer
	done chan struct{}
}

// launch starts a command and kills it when the test ends.
func launch(t *testing.T, command ...string) *program {
	t.Helper()
	p := &program{cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{})}
	if command[0] == self {
		p.cmd.Env = append(os.Environ(), "ASSAY_ROLE=powerless")
	}
	return launched(t, p)
}

func launched(t *testing.T, p *program) *program {
	t.Helper()
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait() // the state says how
		close(p.done)
	}()
	t.Cleanup(p.stop)
	return p
}

func (p *program) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// refuses waits for the command to end with code 1 and one sentence that holds all wants.
func refuses(t *testing.T, p *program, wants ...string) {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("it goes on: %s", &p.out)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	var said []string
	for line := range strings.Lines(p.out.String()) {
		if !strings.HasPrefix(line, "time=") {
			said = append(said, strings.TrimSpace(line))
		}
	}
	if len(said) != 1 {
		t.Fatalf("%d sentences in:\n%s", len(said), &p.out)
	}
	t.Log(said[0])
	contains(t, "the sentence", said[0], wants...)
}

// says waits until the program, which goes on, has logged the text.
func (p *program) says(t *testing.T, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%q", text), func() bool {
		select {
		case <-p.done:
			t.Fatalf("it ended: %s", &p.out)
		default:
		}
		return strings.Contains(p.out.String(), text)
	})
}

// set replaces the line of a key in a configuration; an empty value removes it.
func set(conf, key, value string) string {
	line := regexp.MustCompile(`(?m)^\s*` + key + ` = .*\n`)
	if !line.MatchString(conf) {
		panic("no key " + key + " in " + conf)
	}
	if value != "" {
		value = key + " = " + value + "\n"
	}
	return line.ReplaceAllLiteralString(conf, value)
}

// place is where a second program of a test keeps its things.
type place struct{ dir, pins string }

func (m *machine) place(t *testing.T) place {
	p := place{t.TempDir(), filepath.Join(m.Dir, "bpf", filepath.Base(t.Name()))}
	t.Cleanup(func() {
		for _, left := range []string{p.pins, p.path("api.sock"), p.path("admin.sock")} {
			if _, err := os.Lstat(left); err == nil {
				t.Errorf("%s was left behind", left)
			}
		}
	})
	return p
}

func (p place) path(name string) string { return filepath.Join(p.dir, name) }

// agent is the configuration of an agent in this place.
func (p place) agent(m *machine) string {
	conf := m.AgentConfig()
	for key, path := range map[string]string{"data_dir": p.path("agent"), "socket_path": p.path("api.sock"), "admin_socket_path": p.path("admin.sock"), "pin_dir": p.pins} {
		conf = set(conf, key, fmt.Sprintf("%q", path))
	}
	return conf
}

// server is the configuration of a server in this place, on the given port.
func (p place) server(m *machine, port string) string {
	conf := m.ServerConfig()
	for key, path := range map[string]string{"data_dir": p.path("server"), "socket_path": p.path("admin.sock")} {
		conf = set(conf, key, fmt.Sprintf("%q", path))
	}
	return set(conf, "bind_port", port)
}

// command writes the configuration and returns what runs the program with it.
func (p place) command(t *testing.T, name, conf string) []string {
	t.Helper()
	file := p.path(name + ".hcl")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{bin(name), "run", "--config", file}
}
