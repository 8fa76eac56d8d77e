// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

const nobody = 65534

// asNobody is a user other than root who may find the paths of cgroups, and load no program.
func asNobody() syscall.SysProcAttr {
	return syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH},
	}
}

// playTakeOver uses what somebody else loaded, in every way that an agent does.
func playTakeOver() {
	s, err := Load(Config{PinDir: os.Getenv("ASSAY_PINS"), Logger: slog.New(slog.DiscardHandler)})
	var p *problem
	if errors.As(err, &p) {
		fmt.Println(p.kind, p.sentence)
		return
	}
	check(err)
	me, err := s.self()
	check(err)
	now, err := s.Now(me)
	check(err)
	_, err = s.walk("held", record.AskHolders(&record.Binding{}), holdersProgram, ringsProgram)
	check(err)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(err)
	check(s.Watch(fd, "/run/any.sock"))
	fmt.Println("tier", s.Tier(), "user", now.Credentials.UID, "lost", s.Lost())
	check(s.Close())
}

func TestTakenOverWithoutPower(t *testing.T) {
	dir := bpffs(t)
	check(os.Chmod(dir, 0o755))
	pins := filepath.Join(dir, "assay")
	p := startAs(t, "take-over", nil, asNobody(), "ASSAY_PINS="+pins)
	if said := p.word(t); !strings.HasPrefix(said, ErrPrivilege.Error()) || !strings.Contains(said, "CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN") || !strings.Contains(said, "assay-agent load") {
		t.Errorf("where nothing is pinned it says %q", said)
	}

	s, err := Load(Config{PinDir: pins, Logger: testLogger(t)})
	needKernel(t, err)
	tier := s.Tier()
	check(errors.Join(s.GiveTo(nobody, nobody), s.Close()))
	p = startAs(t, "take-over", nil, asNobody(), "ASSAY_PINS="+pins)
	if said, want := p.word(t), fmt.Sprintf("tier %s user %d lost 0", tier, nobody); said != want {
		t.Errorf("it says %q, want %q", said, want)
	}
	_ = p.Wait()

	// Whoever loaded it takes it over, too, and it stays another's.
	s, err = Load(Config{PinDir: pins, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	check(s.kernel.Maps["settings"].Put(uint32(0), record.Settings{Build: 12345, AgentTGID: 1, Tier: uint32(tier)}))
	check(s.Close())
	p = startAs(t, "take-over", nil, asNobody(), "ASSAY_PINS="+pins)
	if said := p.word(t); !strings.HasPrefix(said, ErrPrivilege.Error()) {
		t.Errorf("of another build's pins it says %q", said)
	}
	check(Unpin(pins))
}
