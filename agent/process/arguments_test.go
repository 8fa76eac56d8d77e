// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestArguments(t *testing.T) {
	prog := &program{Cmd: exec.Command(copyOf(t), "-jar", "", "app.jar")}
	prog.Env = append(prog.Environ(), "ASSAY_ROLE=wait")
	prog.in = must(prog.StdinPipe())
	prog.attachOut()
	check(prog.Start())
	t.Cleanup(prog.stop)
	prog.ready()
	p := pin(t, prog.Process.Pid)
	if got, err := p.Arguments(); err != nil || !slices.Equal(got, []string{"-jar", "", "app.jar"}) {
		t.Errorf("got %q, %v", got, err)
	}
	check(prog.Process.Kill())
	_ = prog.Wait()
	if got, err := p.Arguments(); err == nil {
		t.Errorf("a process that is gone: %q", got)
	}
}

func TestParseArguments(t *testing.T) {
	for in, want := range map[string][]string{
		"": {}, "a": {}, "a\x00": {}, "a\x00b\x00": {"b"}, "a\x00b\x00cut": {"b"}, "\x00b\x00\x00": {"b", ""},
	} {
		if got := parseArguments([]byte(in)); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzParseArguments(f *testing.F) {
	f.Add([]byte("python3\x00app.py\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, a := range parseArguments(raw) {
			if strings.Contains(a, "\x00") {
				t.Errorf("argument %q", a)
			}
		}
	})
}
