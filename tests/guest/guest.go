// SPDX-License-Identifier: Apache-2.0

// Package guest boots stock Debian kernels under software-emulated QEMU with a software TPM,
// so that what this machine's kernel refuses (BPF LSM programs) and lacks (a TPM device) is
// tested for real. One boot per kernel runs everything: the initramfs holds busybox, the
// programs, and the static test binaries, and the serial line brings back what they print.
package guest

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/assay-id/assay/tpm/swtpm"
)

// Kernel is a Debian package with a kernel to boot.
type Kernel struct {
	Name string
	// Package is a package that depends on the newest image of a series, or the image itself.
	Package string
	// CPU is QEMU's CPU model.
	CPU string
	// Suites run on it, in this order.
	Suites []string
	// Modules are what the tests need of it beside its image.
	Modules []string
}

// Kernels are those that the guests run.
var Kernels = []Kernel{
	{"6.1", "linux-image-cloud-amd64", "max", []string{"bpf", "caller", "digest", "attest", "scenarios", "redteam", "clock", "demo"}, fileModules},
	// QEMU 7.2 double-faults 6.12 in a cmpxchg16b path.
	// The scenarios are about the agent and the server, not about the kernel: once is enough.
	{"6.12", "linux-image-6.12-cloud-amd64", "max,-cx16", []string{"bpf", "caller", "digest", "attest", "redteam", "demo"}, append(networkModules, fileModules...)},
}

var (
	fileModules    = []string{"fs/overlayfs/overlay.ko", "drivers/block/loop.ko"}
	networkModules = []string{"net/core/failover.ko", "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko"}
)

// Fetch returns a folder with the kernel's image, "vmlinuz", and its modules by their last
// names, from cache or from Debian's archive.
func (k Kernel) Fetch(ctx context.Context, cache string) (string, error) {
	dir := filepath.Join(cache, "kernel-"+k.Name)
	if _, err := os.Stat(filepath.Join(dir, "vmlinuz")); err == nil { // written last
		return dir, nil
	}
	image, err := k.image(ctx)
	if err != nil {
		return "", err
	}
	tmp, err := FetchPackage(ctx, cache, image)
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("fetch kernel: %w", err)
	}
	for _, m := range k.Modules {
		if err := unpack(ctx, filepath.Join(tmp, "lib/modules/*/kernel", m+"*"), filepath.Join(dir, filepath.Base(m))); err != nil {
			return "", err
		}
	}
	return dir, unpack(ctx, filepath.Join(tmp, "boot/vmlinuz-*"), filepath.Join(dir, "vmlinuz"))
}

// FetchPackage downloads a package from Debian's archive and unpacks it into a new folder in
// cache, which the caller removes or renames.
func FetchPackage(ctx context.Context, cache, name string) (dir string, err error) {
	if dir, err = os.MkdirTemp(cache, "deb-"); err != nil {
		return "", fmt.Errorf("fetch %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if err := run(ctx, dir, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", name); err != nil {
		return "", err
	}
	debs, _ := filepath.Glob(filepath.Join(dir, "*.deb"))
	if len(debs) != 1 {
		return "", fmt.Errorf("apt-get download %s left %d files", name, len(debs))
	}
	if err := run(ctx, dir, "dpkg-deb", "-x", debs[0], "."); err != nil {
		return "", err
	}
	return dir, os.Remove(debs[0])
}

// unpack writes the one file that a pattern finds, compressed or not.
func unpack(ctx context.Context, pattern, out string) error {
	found, _ := filepath.Glob(pattern)
	if len(found) != 1 {
		return fmt.Errorf("the kernel's package has %d files %s", len(found), filepath.Base(pattern))
	}
	if strings.HasSuffix(found[0], ".xz") {
		if err := run(ctx, filepath.Dir(found[0]), "xz", "-d", found[0]); err != nil {
			return err
		}
		found[0] = strings.TrimSuffix(found[0], ".xz")
	}
	if err := copyFile(out+".new", found[0]); err != nil {
		return fmt.Errorf("fetch kernel: %w", err)
	}
	return os.Rename(out+".new", out)
}

// image resolves a package that only depends on the real one.
func (k Kernel) image(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", k.Package).Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends %s: %w (run apt-get update)", k.Package, err)
	}
	for line := range strings.Lines(string(out)) {
		if _, dep, ok := strings.Cut(line, "Depends: linux-image-"); ok {
			return "linux-image-" + strings.TrimSpace(dep), nil
		}
	}
	return k.Package, nil
}

// Initramfs packs files (path in the guest → path here) and an init script into a compressed
// cpio archive. Folders are made as needed.
func Initramfs(ctx context.Context, out, init string, files map[string]string) error {
	root, err := os.MkdirTemp(filepath.Dir(out), "root-")
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer os.RemoveAll(root)
	if err := os.Chmod(root, 0o755); err != nil { // users other than root look up paths, too
		return fmt.Errorf("initramfs: %w", err)
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "etc", "bin"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	for name, src := range files {
		if err := copyFile(filepath.Join(root, name), src); err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "init"), []byte(init), 0o755); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	var list bytes.Buffer
	if err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(root, path)
		list.WriteString(rel + "\x00")
		return err
	}); err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	f, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	defer f.Close()
	z, _ := gzip.NewWriterLevel(f, gzip.BestSpeed)
	cpio := exec.CommandContext(ctx, "cpio", "--null", "-o", "-H", "newc", "--quiet")
	cpio.Dir, cpio.Stdin, cpio.Stdout, cpio.Stderr = root, &list, z, os.Stderr
	if err := cpio.Run(); err != nil {
		return fmt.Errorf("cpio: %w (make setup-tests installs it)", err)
	}
	return errors.Join(z.Close(), f.Close())
}

// Machine is one boot.
type Machine struct {
	Kernel    Kernel
	Vmlinuz   string
	Initramfs string
	// Append is more kernel command line.
	Append string
	// TPM is the folder of a software TPM, which runs as long as the machine.
	TPM     string
	Timeout time.Duration
}

// Boot runs the machine until it powers off, and copies its serial line to console.
func (m Machine) Boot(ctx context.Context, console io.Writer) (err error) {
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	chip, err := swtpm.StartForQEMU(ctx, m.TPM)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, chip.Stop()) }()
	args := []string{"-machine", "q35,accel=tcg", "-cpu", m.Kernel.CPU, "-smp", "2", "-m", "3072", "-nodefaults", "-display", "none", "-no-reboot", "-nic", "none",
		"-kernel", m.Vmlinuz, "-initrd", m.Initramfs, "-append", "console=ttyS0 panic=-1 quiet rootfstype=ramfs " + m.Append, "-serial", "stdio",
		"-chardev", "socket,id=chrtpm,path=" + chip.Socket(), "-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", "tpm-tis,tpmdev=tpm0"}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", args...)
	qemu.Stdout, qemu.Stderr = console, console
	if err := qemu.Run(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("the guest did not power off within %s", m.Timeout)
		}
		return fmt.Errorf("qemu: %w (make setup-tests installs it)", err)
	}
	return nil
}

func copyFile(dst, src string) error {
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}
