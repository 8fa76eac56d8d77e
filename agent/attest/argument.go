// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/selectors"
)

// argumentFiles finds the file that a process says it works on. A digest is remembered as long
// as the file's inode number, size and ctime stay: enough for what is no evidence.
type argumentFiles struct {
	mu      sync.Mutex
	digests map[content]selectors.Digest
}

type content struct {
	dev, ino uint64
	size     int64
	changed  syscall.Timespec
}

const (
	maxTried         = 64       // arguments
	maxArgumentFile  = 64 << 20 // bytes; a larger file has no hint
	maxArgumentFiles = 4096     // remembered
	maxPath          = 4096     // PATH_MAX
)

// of returns the first argument of the process that names a regular file; none is no error.
func (a *argumentFiles) of(p *process.Process) (selectors.Executable, error) {
	words, err := p.Arguments()
	if err != nil {
		return selectors.Executable{}, err
	}
	for _, word := range words[:min(len(words), maxTried)] {
		if word == "" || len(word) >= maxPath {
			continue
		}
		f, err := p.OpenPath(word, nil)
		if errors.Is(err, process.ErrPath) {
			continue
		} else if err != nil {
			return selectors.Executable{}, err
		}
		defer f.Close()
		return a.read(word, f)
	}
	return selectors.Executable{}, nil
}

func (a *argumentFiles) read(path string, f *os.File) (selectors.Executable, error) {
	st, err := f.Stat()
	if err != nil {
		return selectors.Executable{}, fmt.Errorf("stat an argument: %w", err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || st.Size() > maxArgumentFile {
		return selectors.Executable{}, nil
	}
	key := content{sys.Dev, sys.Ino, st.Size(), sys.Ctim}
	a.mu.Lock()
	d, ok := a.digests[key]
	a.mu.Unlock()
	if ok {
		return selectors.Executable{Path: path, SHA256: d, Size: key.size}, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxArgumentFile)); err != nil {
		return selectors.Executable{}, nil // its own file, its own loss
	}
	d = selectors.Digest(h.Sum(nil))
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.digests == nil || len(a.digests) >= maxArgumentFiles {
		a.digests = map[content]selectors.Digest{}
	}
	a.digests[key] = d
	return selectors.Executable{Path: path, SHA256: d, Size: key.size}, nil
}
