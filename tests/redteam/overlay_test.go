// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// onOverlay starts a victim on an overlay and hands over it, the file below and what it said of
// its addresses. The kernel protects a running file of an overlay against writing through the
// overlay, not the file below.
func onOverlay(s *scene, attack func(victim *actor, lower *os.File, addresses string) verdict) verdict {
	base := filepath.Join(s.dir, "overlay")
	check(os.Mkdir(base, 0o755))
	check(unix.Mount("layers", base, "tmpfs", 0, "")) // overlayfs may not lie on ramfs or another overlay
	defer func() { check(unix.Unmount(base, unix.MNT_DETACH)) }()
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		check(os.Mkdir(filepath.Join(base, d), 0o755))
	}
	lower, merged := filepath.Join(base, "lower/victim"), filepath.Join(base, "merged")
	check(os.WriteFile(lower, must(os.ReadFile(s.victim)), 0o755))
	if err := unix.Mount("overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", base)); err != nil {
		s.t.Fatalf("mount an overlay: %v", err)
	}
	defer func() { check(unix.Unmount(merged, unix.MNT_DETACH)) }()
	victim := s.start(filepath.Join(merged, "victim"), "wait")
	defer victim.stop()
	addresses := victim.word("ready")
	victim.say("ask")
	if v := victim.verdict(); !v.delivered {
		s.t.Errorf("a victim on an overlay gets nothing: %s", v)
	}
	f := must(os.OpenFile(lower, os.O_RDWR, 0))
	defer f.Close()
	return attack(victim, f, addresses)
}

func overlayLower(s *scene) verdict {
	return onOverlay(s, func(victim *actor, lower *os.File, _ string) verdict {
		must(lower.Seek(0, io.SeekEnd))
		must(lower.WriteString("changed"))
		victim.say("ask")
		return victim.verdict()
	})
}

func overlaySwap(s *scene) verdict {
	return onOverlay(s, func(victim *actor, lower *os.File, addresses string) verdict {
		var code, data uint64
		must(fmt.Sscan(addresses, &code, &data))
		at := fileOffset(lower, code)
		// mov byte [marker], 'x'; mov eax, 1; ret
		patch := binary.LittleEndian.AppendUint32([]byte{0xc6, 0x04, 0x25}, uint32(data))
		patch = append(append(patch, 'x'), returnOne...)
		was := make([]byte, len(patch))
		must(lower.ReadAt(was, at))
		must(lower.WriteAt(patch, at))
		victim.say("work")
		if worked := victim.word("worked"); worked != "1" {
			s.t.Fatal("the victim's code was not changed")
		}
		must(lower.WriteAt(was, at))
		victim.say("ask")
		if changed := victim.word("changed"); changed != "true" {
			s.t.Fatal("the changed code left no trace")
		}
		return victim.verdict()
	})
}

// fileOffset is where an executable's file has what is at an address.
func fileOffset(f *os.File, address uint64) int64 {
	for _, p := range must(elf.NewFile(f)).Progs {
		if p.Type == elf.PT_LOAD && p.Vaddr <= address && address < p.Vaddr+p.Filesz {
			return int64(address - p.Vaddr + p.Off)
		}
	}
	panic("the address is in no segment")
}
