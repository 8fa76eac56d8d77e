// SPDX-License-Identifier: Apache-2.0

// Package measured boots machines whose firmware measures what it starts: OVMF under
// software-emulated QEMU with a software TPM, in the three ways that Linux is started. The
// server runs outside of the machine, as a real one does.
package measured

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/assay-id/assay/tests/guest"
	"github.com/assay-id/assay/tpm/swtpm"
)

// Host is where a machine finds this one: its connections to Host go to 127.0.0.1 here (QEMU's
// user-mode network).
const Host = "10.0.2.2"

// Software is what a machine is to boot.
type Software struct {
	Kernel, Initrd, CommandLine string
}

// Way is how the firmware gets to the kernel.
type Way struct {
	Name string
	// Secure is Secure Boot with Microsoft's keys.
	Secure bool
	// install puts the software where the firmware finds it, and returns arguments for QEMU.
	install func(ctx context.Context, dir string, s Software, d Downloads) ([]string, error)
}

// Ways are all that are tested.
var Ways = []Way{
	{"direct", false, installDirect},
	{"uki", false, installUKI},
	{"secure", true, installGRUB},
}

// installDirect has QEMU hand kernel, initial RAM disk and command line to the firmware.
func installDirect(_ context.Context, _ string, s Software, _ Downloads) ([]string, error) {
	return []string{"-kernel", s.Kernel, "-initrd", s.Initrd, "-append", s.CommandLine}, nil
}

// installUKI builds a unified kernel image (UAPI.5) as the removable medium's boot loader.
func installUKI(ctx context.Context, dir string, s Software, d Downloads) ([]string, error) {
	out := filepath.Join(dir, "EFI/BOOT/BOOTX64.EFI")
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return nil, err
	}
	cmdline := filepath.Join(filepath.Dir(dir), "cmdline")
	if err := os.WriteFile(cmdline, []byte(s.CommandLine), 0o644); err != nil {
		return nil, err
	}
	stub := filepath.Join(d["systemd-boot-efi"], "usr/lib/systemd/boot/efi/linuxx64.efi.stub")
	at, err := endOfSections(ctx, stub)
	if err != nil {
		return nil, err
	}
	var args []string
	for _, section := range []struct{ name, path string }{{".cmdline", cmdline}, {".linux", s.Kernel}, {".initrd", s.Initrd}} {
		st, err := os.Stat(section.path)
		if err != nil {
			return nil, err
		}
		const page = 4096
		at = (at + page - 1) / page * page
		args = append(args, "--add-section", section.name+"="+section.path, "--change-section-vma", fmt.Sprintf("%s=%#x", section.name, at))
		at += st.Size()
	}
	if err := run(ctx, "objcopy", append(args, stub, out)...); err != nil {
		return nil, err
	}
	return disk(dir), nil
}

// endOfSections is where an image's last section ends.
func endOfSections(ctx context.Context, image string) (end int64, err error) {
	out, err := exec.CommandContext(ctx, "objdump", "-h", image).Output()
	if err != nil {
		return 0, fmt.Errorf("objdump %s: %w", filepath.Base(image), err)
	}
	for line := range strings.Lines(string(out)) {
		var index int
		var name string
		var size, vma int64
		if n, _ := fmt.Sscanf(line, "%d %s %x %x", &index, &name, &size, &vma); n == 4 {
			end = max(end, vma+size)
		}
	}
	if end == 0 {
		return 0, fmt.Errorf("objdump finds no section in %s", filepath.Base(image))
	}
	return end, nil
}

// installGRUB lays out what Debian installs: shim, GRUB and the kernel, each signed.
func installGRUB(_ context.Context, dir string, s Software, d Downloads) ([]string, error) {
	config := filepath.Join(filepath.Dir(dir), "grub.cfg")
	if err := os.WriteFile(config, []byte("linux /vmlinuz "+s.CommandLine+"\ninitrd /initrd.img\nboot\n"), 0o644); err != nil {
		return nil, err
	}
	for to, from := range map[string]string{
		"EFI/BOOT/BOOTX64.EFI": filepath.Join(d["shim-signed"], "usr/lib/shim/shimx64.efi.signed"),
		"EFI/BOOT/grubx64.efi": filepath.Join(d["grub-efi-amd64-signed"], "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
		"EFI/debian/grub.cfg":  config,
		"vmlinuz":              s.Kernel,
		"initrd.img":           s.Initrd,
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(to)), 0o755); err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o644); err != nil {
			return nil, err
		}
	}
	return disk(dir), nil
}

// disk shows a folder to the machine as a disk with one FAT partition.
func disk(dir string) []string {
	return []string{"-drive", "file=fat:rw:" + dir + ",format=raw,if=virtio"}
}

// Downloads are unpacked Debian packages, by name.
type Downloads map[string]string

// Download unpacks packages that need not be installed, from cache or from Debian's archive.
func Download(ctx context.Context, cache string) (Downloads, error) {
	d := Downloads{}
	for _, name := range []string{"systemd-boot-efi", "shim-signed", "grub-efi-amd64-signed"} {
		d[name] = filepath.Join(cache, "deb-"+name)
		if _, err := os.Stat(d[name]); err == nil {
			continue
		}
		unpacked, err := guest.FetchPackage(ctx, cache, name)
		if err != nil {
			return nil, err
		}
		if err := os.Rename(unpacked, d[name]); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Machine is one that runs. Its shell takes commands over a serial line.
type Machine struct {
	qemu    *exec.Cmd
	tpm     *swtpm.Process
	shell   net.Conn
	lines   *bufio.Reader
	console io.Writer
}

// Boot starts a machine. Its folder holds its disk and its firmware's variables; tpm is
// that of its software TPM.
func Boot(ctx context.Context, w Way, s Software, d Downloads, dir, tpm string, console io.Writer) (*Machine, error) {
	esp := filepath.Join(dir, "esp")
	if err := errors.Join(os.RemoveAll(esp), os.Mkdir(esp, 0o755)); err != nil {
		return nil, err
	}
	args, err := w.install(ctx, esp, s, d)
	if err != nil {
		return nil, fmt.Errorf("install the software: %w", err)
	}
	const firmware = "/usr/share/OVMF/"
	machine, code, variables := "q35", firmware+"OVMF_CODE_4M.fd", firmware+"OVMF_VARS_4M.fd"
	if w.Secure {
		machine, code, variables = "q35,smm=on", firmware+"OVMF_CODE_4M.secboot.fd", firmware+"OVMF_VARS_4M.ms.fd"
		args = append(args, "-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1")
	}
	vars := filepath.Join(dir, "vars.fd")
	data, err := os.ReadFile(variables)
	if err != nil {
		return nil, fmt.Errorf("%w (make setup-tests installs it)", err)
	}
	if err := os.WriteFile(vars, data, 0o600); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "shell.sock")
	_ = os.Remove(socket)
	m := &Machine{console: console}
	if m.tpm, err = swtpm.StartForQEMU(ctx, tpm); err != nil {
		return nil, err
	}
	m.qemu = exec.CommandContext(ctx, "qemu-system-x86_64", append([]string{
		"-machine", machine + ",accel=tcg", "-cpu", "max,-cx16", "-smp", "2", "-m", "2048", "-nodefaults", "-display", "none", "-no-reboot",
		"-drive", "if=pflash,unit=0,format=raw,readonly=on,file=" + code, "-drive", "if=pflash,unit=1,format=raw,file=" + vars,
		"-chardev", "socket,id=tpm,path=" + m.tpm.Socket(), "-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm0",
		"-nic", "user,model=virtio-net-pci",
		"-serial", "stdio", "-chardev", "socket,id=shell,path=" + socket + ",server=on,wait=off", "-serial", "chardev:shell",
	}, args...)...)
	m.qemu.Stdout, m.qemu.Stderr = console, console
	if err := m.qemu.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("qemu: %w (make setup-tests installs it)", err), m.tpm.Stop())
	}
	if err := m.connect(ctx, socket); err != nil {
		m.Kill()
		return nil, err
	}
	return m, nil
}

// connect waits for the machine's shell.
func (m *Machine) connect(ctx context.Context, socket string) (err error) {
	for range 100 {
		if m.shell, err = net.Dial("unix", socket); err == nil {
			m.lines = bufio.NewReader(m.shell)
			_, err = m.until(ctx, "SHELL ready", 8*time.Minute)
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("the machine has no serial line: %w", err)
}

// until reads lines up to one that ends so (the firmware wrote to this line, too), and returns those before it.
func (m *Machine) until(ctx context.Context, mark string, timeout time.Duration) (string, error) {
	deadline := time.Now().Add(timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := m.shell.SetReadDeadline(deadline); err != nil {
		return "", err
	}
	var out strings.Builder
	for {
		line, err := m.lines.ReadString('\n')
		if err != nil {
			return out.String(), fmt.Errorf("waiting for %q: %w; the machine said: %s", mark, err, out.String())
		}
		line = strings.TrimRight(line, "\r\n")
		fmt.Fprintln(m.console, "shell:", line)
		if strings.HasSuffix(line, mark) {
			return out.String(), nil
		}
		out.WriteString(line + "\n")
	}
}

// Do has the machine's shell run a command and returns what it prints.
func (m *Machine) Do(ctx context.Context, command string) (string, error) {
	if _, err := fmt.Fprintln(m.shell, command); err != nil {
		return "", fmt.Errorf("machine: %w", err)
	}
	return m.until(ctx, "SHELL done", 2*time.Minute)
}

// Kill switches the machine off.
func (m *Machine) Kill() {
	if m.shell != nil {
		m.shell.Close()
	}
	_ = m.qemu.Process.Kill()
	_ = m.qemu.Wait()
	_ = m.tpm.Stop()
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
