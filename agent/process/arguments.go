// SPDX-License-Identifier: Apache-2.0

package process

import (
	"io"
	"os"
	"strings"
)

// maxArguments bounds what is read of a command line, in bytes.
const maxArguments = 64 << 10

// Arguments returns the process's command line without its first word (proc_pid_cmdline(5)).
// The process can write what it likes there.
func (p *Process) Arguments() ([]string, error) {
	f, err := os.Open(p.proc("cmdline"))
	var raw []byte
	if err == nil {
		raw, err = io.ReadAll(io.LimitReader(f, maxArguments))
		f.Close()
	}
	if err := p.after("reading the arguments", err); err != nil {
		return nil, err
	}
	return parseArguments(raw), nil
}

func parseArguments(raw []byte) []string {
	words := strings.Split(string(raw), "\x00")
	return words[1:max(len(words)-1, 1)] // the last word is ended, too; one that was cut is left out
}
