// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/hooks"
)

var update = flag.Bool("update", false, "write programs.txt anew")

// size is what a program costs the verifier and the kernel's memory.
type size struct{ verified, xlated int }

// sizes loads every program that this kernel takes.
func sizes(t *testing.T) map[string]size {
	t.Helper()
	spec, err := loadSensor()
	check(err)
	kernel := hooks.New(spec, "", "")
	needKernel(t, kernel.MakeMaps())
	defer kernel.Close()
	out := map[string]size{}
	for name := range spec.Programs {
		p, err := kernel.Load(name)
		if err != nil {
			continue // refused here
		}
		info, err := p.Info()
		check(err)
		verified, ok := info.VerifiedInstructions()
		xlated, err := info.Instructions()
		if !ok || err != nil {
			t.Errorf("%s: the kernel does not tell its size: %v", name, err)
		}
		out[name] = size{int(verified), len(xlated)}
		check(p.Close())
	}
	return out
}

func within(a, b int) bool { return 10*a <= 11*b && 10*b <= 11*a }

// TestProgramSizes compares the sizes with programs.txt, so that growth is seen in review. The
// verifier differs between kernels, so the comparison is for the kernel that the file names.
func TestProgramSizes(t *testing.T) {
	var kernel unix.Utsname
	check(unix.Uname(&kernel))
	series := strings.Join(strings.Split(unix.ByteSliceToString(kernel.Release[:]), ".")[:2], ".")
	if *update {
		writeSizes(t, series)
	}
	f, err := os.Open("programs.txt")
	if errors.Is(err, os.ErrNotExist) && os.Getenv("ASSAY_GUEST") == "1" {
		return // the guest has the test binary alone, and another kernel
	}
	check(err)
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Scan()
	var of string
	if _, err := fmt.Sscanf(lines.Text(), "# Linux %s", &of); err != nil {
		t.Fatalf("programs.txt does not name its kernel: %v", err)
	}
	have := sizes(t)
	for lines.Scan() {
		var name string
		var want size
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		if _, err := fmt.Sscan(lines.Text(), &name, &want.verified, &want.xlated); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		got, ok := have[name]
		delete(have, name)
		if of == series && (!ok || !within(got.verified, want.verified) || !within(got.xlated, want.xlated)) {
			t.Errorf("%s: %+v, programs.txt says %+v: run go test ./bpf -run TestProgramSizes -update", name, got, want)
		}
	}
	for name := range have {
		if of == series {
			t.Errorf("%s is not in programs.txt: run go test ./bpf -run TestProgramSizes -update", name)
		}
	}
}

func writeSizes(t *testing.T, series string) {
	var b strings.Builder
	fmt.Fprintf(&b, "# Linux %s\n# program, instructions that the verifier processed, instructions loaded; those that this kernel takes\n", series)
	have := sizes(t)
	names := make([]string, 0, len(have))
	for name := range have {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%-18s %6d %6d\n", name, have[name].verified, have[name].xlated)
	}
	check(os.WriteFile("programs.txt", []byte(b.String()), 0o644))
}

// BenchmarkPrograms tells what each program takes per call while processes are started and
// connect: BPF run-time statistics, of samples of some calls each, which include the clock (a
// program that does nothing shows 65 ns). The share of all of them in fork+exec+wait is a ratio that
// holds in an emulated guest, too.
func BenchmarkPrograms(b *testing.B) {
	s := load(b)
	stats, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	check(err)
	defer stats.Close()
	programs := map[string]*ebpf.Program{}
	for name, l := range s.kernel.Links {
		info, err := l.Info()
		check(err)
		if programs[name], err = ebpf.NewProgramFromID(info.Program); err != nil {
			b.Fatal(err)
		}
		defer programs[name].Close()
	}
	l, path := listen(b, s, 64)
	samples := map[string][]float64{}
	runs := map[string]uint64{}
	var inExec, execs time.Duration
	for b.Loop() {
		before, began := runtimes(programs), time.Now()
		for range 5 {
			check(exec.Command("/bin/true").Run())
		}
		execs += time.Since(began)
		for name, now := range runtimes(programs) {
			inExec += now.Runtime - before[name].Runtime
		}
		p := start(b, "connect", "ASSAY_SOCKET="+path)
		p.word(b)
		conn, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		check(err)
		for range 20 {
			_, err = s.Binding(conn)
			check(err)
			client := clientSocket()
			check(unix.Connect(client, &unix.SockaddrUnix{Name: path}))
			accepted, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			check(err)
			check(errors.Join(unix.Close(client), unix.Close(accepted)))
		}
		check(unix.Close(conn))
		p.stop()
		for name, now := range runtimes(programs) {
			if n := now.RunCount - before[name].RunCount; n > 0 {
				samples[name] = append(samples[name], float64(now.Runtime-before[name].Runtime)/float64(n))
				runs[name] += n
			}
		}
	}
	for name, all := range samples {
		slices.Sort(all)
		fmt.Printf("%-18s p10 %6.0f ns  median %6.0f ns  p90 %6.0f ns  %d calls\n", name, all[len(all)/10], all[len(all)/2], all[len(all)*9/10], runs[name])
	}
	b.ReportMetric(100*float64(inExec)/float64(execs), "%of-exec")
}

func runtimes(programs map[string]*ebpf.Program) map[string]ebpf.ProgramStats {
	out := map[string]ebpf.ProgramStats{}
	for name, p := range programs {
		st, err := p.Stats()
		check(err)
		out[name] = *st
	}
	return out
}
