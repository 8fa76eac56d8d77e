// SPDX-License-Identifier: Apache-2.0

package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// maxPIN is the longest PIN, in bytes.
const maxPIN = 255

// PINFile is the file that holds a token's PIN. A PIN that was refused is not tried again until the
// file changes, however often the server starts: a token locks itself after a few tries.
type PINFile struct {
	// Path of the file: the PIN and perhaps a newline; its owner alone may read it.
	Path string
	// Refused is where a refusal is remembered. It says which state of the file, not what was in it.
	Refused string
}

// read returns the PIN, and the state of the file that it stood in.
func (f PINFile) read() (pin []byte, state string, err error) {
	file, err := os.OpenFile(f.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", fmt.Errorf("pin_path: %w", err)
	}
	defer file.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(file.Fd()), &st); err != nil {
		return nil, "", fmt.Errorf("pin_path %s: %w", f.Path, err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG || st.Mode&0o077 != 0 {
		return nil, "", fmt.Errorf("pin_path %s must be a file that its owner alone may read: chmod 600 it, and change the PIN if others may have read it", f.Path)
	}
	if pin, err = io.ReadAll(io.LimitReader(file, maxPIN+2)); err != nil {
		return nil, "", fmt.Errorf("pin_path %s: %w", f.Path, err)
	}
	if pin = bytes.TrimSuffix(pin, []byte("\n")); len(pin) == 0 || len(pin) > maxPIN {
		return nil, "", fmt.Errorf("pin_path %s: write the PIN into it, 1 to %d bytes", f.Path, maxPIN)
	}
	state = fmt.Sprintf("%d:%d %d.%09d\n", st.Dev, st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
	before, err := os.ReadFile(f.Refused)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, "", fmt.Errorf("whether the PIN was refused before: %w", err)
	}
	if string(before) == state {
		return nil, "", &Error{PIN, fmt.Sprintf("the token refused the PIN in %s, which is not tried again lest the token lock: write the right one into the file (or touch it, if the token has been set right), then start the server", f.Path)}
	}
	return pin, state, nil
}

// refuse remembers that the PIN of that state was refused.
func (f PINFile) refuse(state string) error {
	if err := os.WriteFile(f.Refused, []byte(state), 0o600); err != nil {
		return fmt.Errorf("remember that the PIN was refused (do not start the server again with this PIN): %w", err)
	}
	return nil
}
