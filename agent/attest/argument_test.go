// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"crypto/sha256"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// keys tells images apart without a sensor.
type keys struct{}

func (keys) Key(pidfd int) (selectors.ProcessKey, error) { return process.KeyOf("boot", pidfd) }

// started starts an interpreter with arguments in a folder and pins it.
func started(t *testing.T, dir string, arguments ...string) *process.Process {
	t.Helper()
	c := exec.Command("/bin/sh", append([]string{"-c", "echo ready; read x", "sh"}, arguments...)...)
	c.Dir = dir
	in, err := c.StdinPipe()
	check(t, err)
	out, err := c.StdoutPipe()
	check(t, err)
	check(t, c.Start())
	t.Cleanup(func() {
		in.Close()
		_ = c.Wait() // read fails at the end of its input
	})
	_, err = out.Read(make([]byte, len("ready"))) // the execve is complete
	check(t, err)
	p, err := process.PinPID(keys{}, c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestArgumentFile(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) selectors.Digest {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256([]byte(text))
	}
	app, other := write("app.py", "print(1)"), write("other.py", "print(2)")
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, maxArgumentFile+1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		arguments []string
		path      string
		want      selectors.Digest
	}{
		{[]string{"-u", "app.py", "other.py"}, "app.py", app},
		{[]string{"-jar", "./other.py"}, "./other.py", other},
		{[]string{"", "missing", ".", filepath.Join(dir, "app.py")}, filepath.Join(dir, "app.py"), app},
		{[]string{"--flag"}, "", selectors.Digest{}},
		{[]string{"large", "app.py"}, "", selectors.Digest{}},
		{[]string{"/proc/self/exe", "/dev/null"}, "", selectors.Digest{}},
	} {
		var a argumentFiles
		p := started(t, dir, c.arguments...)
		for range 2 { // the second time from memory
			if got, err := a.of(p); err != nil || got.SHA256 != c.want || got.Path != c.path {
				t.Errorf("%q: %+v, %v", c.arguments, got, err)
			}
		}
	}
	var a argumentFiles
	p := started(t, dir, "app.py")
	before, _ := a.of(p)
	changed := write("app.py", "print(3)")
	if got, err := a.of(p); err != nil || got.SHA256 != changed || got == before {
		t.Errorf("after an edit: %+v, %v", got, err)
	}
}
