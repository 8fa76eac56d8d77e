// SPDX-License-Identifier: Apache-2.0

package device

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"github.com/assay-id/assay/tpm"
)

// Logs are the files that tell what led to the PCRs' values. One that does not exist is a log
// that the machine does not have, and so is an empty path.
type Logs struct {
	// Boot is the firmware's event log.
	Boot string
	// IMA is the kernel's log of measured files. It holds the template data of each entry, from
	// which the digest in any bank follows. Since Linux 6.10 the kernel also shows the log with the
	// digests of one bank (…_sha256); the file without a suffix is there in all kernels.
	IMA string
	// CommandLine is /proc/cmdline.
	CommandLine string
	// Program is the agent's own, whose digest is claimed.
	Program string
}

// MachineLogs are the logs about the TPM at a path: those of this machine for /dev/tpmrm<n>. A TPM
// behind a socket is not the machine's, and has none.
func MachineLogs(path string) Logs {
	n, ok := strings.CutPrefix(path, "/dev/tpmrm")
	if !ok {
		return Logs{}
	}
	return Logs{
		Boot:        "/sys/kernel/security/tpm" + n + "/binary_bios_measurements",
		IMA:         "/sys/kernel/security/ima/binary_runtime_measurements",
		CommandLine: "/proc/cmdline",
		Program:     "/proc/self/exe",
	}
}

// BootLog reads the firmware's event log.
func (l *Logs) BootLog() ([]byte, error) {
	log, more, err := readPart(l.Boot, 0, tpm.MaxBootLog)
	if more {
		return nil, fmt.Errorf("the firmware's event log has more than %d bytes", tpm.MaxBootLog)
	}
	return log, err
}

// IMALog reads the IMA log from a byte on.
func (l *Logs) IMALog(offset int64) (tpm.IMALog, error) {
	part, more, err := readPart(l.IMA, offset, tpm.MaxIMAChunk)
	return tpm.IMALog{IMA: part, IMAMore: more}, err
}

// CommandLineText reads the kernel's command line, without the line feed that the kernel adds.
func (l *Logs) CommandLineText() (string, error) {
	text, _, err := readPart(l.CommandLine, 0, 16<<10)
	return strings.TrimSuffix(string(text), "\n"), err
}

// readPart reads up to limit bytes of a file, and reports whether it goes on. No file is no bytes.
func readPart(path string, offset int64, limit int) (part []byte, more bool, err error) {
	if path == "" {
		return nil, false, nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%w; run the agent as root, since a TPM's logs are for root only", err)
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, false, err
	}
	part, err = io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, false, err
	}
	if len(part) > limit {
		return part[:limit], true, nil
	}
	return part, false, nil
}

// programDigest is read once: the program is the one that runs.
type programDigest struct {
	once   sync.Once
	digest []byte
	err    error
}

func (p *programDigest) of(path string) ([]byte, error) {
	p.once.Do(func() {
		if path == "" {
			return
		}
		f, err := os.Open(path)
		if err != nil {
			p.err = err
			return
		}
		defer f.Close()
		h := sha256.New()
		if _, p.err = io.Copy(h, f); p.err == nil {
			p.digest = h.Sum(nil)
		}
	})
	return p.digest, p.err
}
