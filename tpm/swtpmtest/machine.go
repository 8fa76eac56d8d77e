// SPDX-License-Identifier: Apache-2.0

package swtpmtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
)

// Machine is what a software TPM lacks: firmware and a kernel that measure. It has the logs of a
// genuine boot, and its TPM's PCRs are extended as that machine's were.
type Machine struct {
	*TPM
	Logs Logs
}

// Logs are files, in the shape of tpm/device.Logs: converted, they are that.
type Logs struct{ Boot, IMA, CommandLine, Program string }

const plain = "console=ttyS0 panic=-1 rootfstype=ramfs ima_policy=tcb ima_hash=sha256"

// Boot boots like one of the machines in tpm/eventlog/testdata and tpm/ima/testdata: "direct",
// "uki" or "secure". The TPM must have been powered on just before.
func (p *TPM) Boot(like string) *Machine {
	p.t.Helper()
	_, here, _, _ := runtime.Caller(0)
	data := filepath.Dir(filepath.Dir(here))
	log := p.read(data, "eventlog", "testdata", like, "binary_bios_measurements")
	parsed, err := eventlog.Parse(log)
	check(p.t, err)
	for _, e := range parsed.Events {
		if e.Type != eventlog.NoAction {
			p.Extend(int(e.PCR), e.Digest)
		}
	}
	files := p.read(data, "ima", "testdata", like, "binary_runtime_measurements")
	commandLine := map[string]string{"direct": plain + "  initrd=initrd", "uki": plain, "secure": "BOOT_IMAGE=/vmlinuz " + plain}[like]
	m := &Machine{TPM: p, Logs: Logs{
		Boot: p.write("boot", log), CommandLine: p.write("cmdline", []byte(commandLine+"\n")), IMA: p.write("ima", nil), Program: "/proc/self/exe",
	}}
	for len(files) > 0 {
		m.measured(nextEntry(files))
		files = files[len(nextEntry(files)):]
	}
	return m
}

// nextEntry cuts the first entry off a log.
func nextEntry(log []byte) []byte {
	at := 24
	for range 2 { // name and data of the template
		at += 4 + int(binary.LittleEndian.Uint32(log[at:]))
	}
	return log[:at]
}

// Measure does what IMA does when a file is executed.
func (m *Machine) Measure(file [32]byte, name string) {
	m.t.Helper()
	m.measured(Entry(file, name))
}

// Violate does what IMA does when a file is written while it is measured.
func (m *Machine) Violate() {
	m.t.Helper()
	e := Entry([32]byte{}, "/tmp/x")
	copy(e[4:24], make([]byte, sha1.Size))
	m.measured(e)
}

// Entry is one of an IMA log, of template ima-ng.
func Entry(file [32]byte, name string) []byte {
	sized := func(b, part []byte) []byte {
		return append(binary.LittleEndian.AppendUint32(b, uint32(len(part))), part...)
	}
	data := sized(nil, append([]byte("sha256:\x00"), file[:]...))
	data = sized(data, append([]byte(name), 0))
	sum := sha1.Sum(data)
	e := append(binary.LittleEndian.AppendUint32(nil, 10), sum[:]...)
	return sized(sized(e, []byte("ima-ng")), data)
}

// measured appends an entry to the log and extends PCR 10, in the kernel's order.
func (m *Machine) measured(entry []byte) {
	m.t.Helper()
	f, err := os.OpenFile(m.Logs.IMA, os.O_APPEND|os.O_WRONLY, 0)
	check(m.t, err)
	_, err = f.Write(entry)
	check(m.t, err)
	check(m.t, f.Close())
	m.Extend(10, extends(entry))
}

// extends is what an entry extends PCR 10 with.
func extends(entry []byte) [32]byte {
	if [sha1.Size]byte(entry[4:24]) == [sha1.Size]byte{} { // a violation
		return [32]byte(bytes.Repeat([]byte{0xff}, 32))
	}
	return sha256.Sum256(entry[24+4+int(binary.LittleEndian.Uint32(entry[24:]))+4:])
}

// Extend extends a PCR of the SHA-256 bank.
func (p *TPM) Extend(pcr int, digest [32]byte) {
	p.t.Helper()
	t, err := linuxudstpm.Open(strings.TrimPrefix(p.Path, "unix:"))
	check(p.t, err)
	defer t.Close()
	_, err = tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: digest[:]}}},
	}.Execute(t)
	check(p.t, err)
}

// Learned is the list of the files that the machine measured until now.
func (m *Machine) Learned() *ima.AllowList {
	m.t.Helper()
	var pcr10 ima.Digest
	log := m.read(m.Logs.IMA)
	for rest := log; len(rest) > 0; rest = rest[len(nextEntry(rest)):] {
		pcr10 = eventlog.Extend(pcr10, extends(nextEntry(rest)))
	}
	_, entries, err := ima.State{}.Advance(log, pcr10)
	check(m.t, err)
	list, err := ima.Learn(entries)
	check(m.t, err)
	return list
}

func (p *TPM) read(path ...string) []byte {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	check(p.t, err)
	return b
}

func (p *TPM) write(name string, content []byte) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	check(p.t, os.WriteFile(path, content, 0o600))
	return path
}
