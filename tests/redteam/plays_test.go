// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// plays direct the actors of each attack and return what the attacker got.
var plays = map[string]func(*scene) verdict{
	"control":          victimIn("fetch"),
	"control-blocking": victimIn("fetch-block"),
	"control-guarded":  func(s *scene) verdict { return s.start(s.guarded, "fetch").verdict() },
	"other-program":    attackerIn("fetch"),
	"other-parent":     otherParent,

	"pid-reuse":             func(s *scene) verdict { return reuse(s, false) },
	"exit-before-accept":    func(s *scene) verdict { return reuse(s, true) },
	"exec-into-victim":      execIntoVictim,
	"exec-after-connect":    victimIn("exec"),
	"exec-from-thread":      victimIn("exec-thread"),
	"exec-between-calls":    victimIn("call-exec"),
	"inherit-between-calls": victimIn("call-inherit"),
	"fd-passing":            victimIn("pass"),
	"fork":                  victimIn("fork"),
	"fork-read":             victimIn("fork-read"),
	"fork-queued":           victimIn("fork-queued"),
	"inherit":               victimIn("inherit"),
	"dup-in-child":          victimIn("inherit-dup"),
	"forged-credentials":    victimIn("inherit-cred"),
	"pidfd-getfd":           pidfdGetFD,
	"vfork":                 victimIn("vfork"),
	"clone-vm":              victimIn("clone-vm"),
	"clone-files":           victimIn("clone-files"),
	"prefork":               victimIn("prefork"),
	"shared-socket":         attackerIn("share"),
	"io-uring":              victimIn("inherit-ring"),

	"argv":               argv,
	"mm-exe-file":        attackerIn("mm-exe-file"),
	"bind-mount":         bindMount,
	"rename-over":        func(s *scene) verdict { return replaceRunning(s, os.Rename) },
	"deleted":            func(s *scene) verdict { return replaceRunning(s, deleteAndRename) },
	"chroot":             inChroot,
	"container":          container,
	"path-only":          container,
	"overlay-lower":      overlayLower,
	"overlay-swap":       overlaySwap,
	"memfd-writer":       attackerIn("memfd"),
	"memfd-sealed":       attackerIn("memfd", "REDTEAM_SEAL=1"),
	"script-path":        func(s *scene) verdict { return script(s, s.self) },
	"script-interpreter": func(s *scene) verdict { return script(s, s.guarded) },

	"ld-preload":        func(s *scene) verdict { return inject(s, "LD_PRELOAD", "preload.so") },
	"ld-audit":          func(s *scene) verdict { return inject(s, "LD_AUDIT", "audit.so") },
	"ptrace":            tamper("ptrace"),
	"proc-mem":          tamper("proc-mem"),
	"process-vm-writev": tamper("vm-writev"),

	"user-namespace": userNamespace,
	"control-root":   func(s *scene) verdict { return s.start(s.rootOnly, "fetch").verdict() },
	"setuid":         setuid,
	"cgroup-move-in": func(s *scene) verdict { return moveCgroup(s, "/", s.cgroup) },
	"cgroup-escape":  func(s *scene) verdict { return moveCgroup(s, s.cgroup, "/") },
	"cgroup-enter":   func(s *scene) verdict { return moveCgroup(s, s.cgroup, s.cgroup) },
}

func victimIn(role string) func(*scene) verdict {
	return func(s *scene) verdict { return s.start(s.victim, role).verdict() }
}

func attackerIn(role string, env ...string) func(*scene) verdict {
	return func(s *scene) verdict { return s.start(s.self, role, env...).verdict() }
}

func otherParent(s *scene) verdict {
	c := s.prepare("/bin/busybox", "fetch")
	c.Args = []string{"sh", "-c", s.victim + "; exit $?"}
	return s.run(c).verdict()
}

// reuse: the thief has the connection, its maker's number goes to the victim.
func reuse(s *scene, before bool) verdict {
	if before {
		s.hold()
	}
	held := before
	defer func() {
		if held {
			s.release()
		}
	}()
	c := s.prepare(s.self, "abandon")
	c.SysProcAttr = nil // the number of a process group that lives is not given again
	attacker := s.run(c)
	attacker.word("ready")
	attacker.exited()
	s.victimAs(attacker.pid())
	if held {
		s.release()
		held = false
	}
	attacker.say("ask")
	return attacker.verdict()
}

// victimAs starts the victim under a number that is free.
func (s *scene) victimAs(pid int) {
	for range 2000 {
		check(os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0))
		a := s.start(s.victim, "sleep")
		if a.pid() == pid {
			a.word("ready")
			return
		}
		a.stop()
		s.actors = s.actors[:len(s.actors)-1]
	}
	s.t.Fatalf("number %d could not be had again", pid)
}

func execIntoVictim(s *scene) verdict {
	a := s.start(s.self, "become")
	a.word("ready") // the thief, or
	a.word("ready") // the victim that its parent became
	a.say("ask")
	return a.verdict()
}

// pidfdGetFD takes the connection of a victim that holds it and does nothing.
func pidfdGetFD(s *scene) verdict {
	a := s.start(s.victim, "connect-wait")
	var fd int
	must(fmt.Sscan(a.word("ready"), &fd))
	pidfd := must(unix.PidfdOpen(a.pid(), 0))
	defer unix.Close(pidfd)
	taken, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return verdict{denied: true, detail: "pidfd_getfd: " + errno(err)}
	}
	c := s.prepare(s.self, "thief")
	c.ExtraFiles = []*os.File{os.NewFile(uintptr(taken), "taken")}
	defer c.ExtraFiles[0].Close()
	return s.run(c).verdict()
}

func argv(s *scene) verdict {
	c := s.prepare(s.self, "liar")
	c.Args = []string{s.victim}
	return s.run(c).verdict()
}

func bindMount(s *scene) verdict {
	check(unix.Mount(s.self, s.victim, "", unix.MS_BIND, ""))
	defer func() { check(unix.Unmount(s.victim, unix.MNT_DETACH)) }()
	return s.start(s.victim, "fetch").verdict()
}

// replaceRunning puts the attacker's program where a running victim's was, and starts the path.
// The running victim must go on to be served.
func replaceRunning(s *scene, replace func(from, to string) error) verdict {
	path, mine := filepath.Join(s.dir, "victim"), filepath.Join(s.dir, "mine")
	check(os.WriteFile(path, must(os.ReadFile(s.victim)), 0o755))
	check(os.WriteFile(mine, must(os.ReadFile(s.self)), 0o755))
	victim := s.start(path, "wait")
	victim.word("ready")
	check(replace(mine, path))
	v := s.start(path, "fetch").verdict()
	victim.say("ask")
	if served := victim.verdict(); !served.delivered {
		s.t.Errorf("the running victim is not served any more: %s", served)
	}
	return v
}

func deleteAndRename(from, to string) error {
	if err := os.Remove(to); err != nil {
		return err
	}
	return os.Rename(from, to)
}

// inChroot: the attacker's program lies at the victim's path in another root.
func inChroot(s *scene) verdict {
	root := filepath.Join(s.dir, "root")
	path, sockets := filepath.Join(root, s.victim), filepath.Join(root, "s")
	check(os.MkdirAll(filepath.Dir(path), 0o755))
	check(os.MkdirAll(sockets, 0o755))
	check(os.WriteFile(path, must(os.ReadFile(s.self)), 0o755))
	check(unix.Mount(filepath.Dir(s.socket), sockets, "", unix.MS_BIND, ""))
	defer func() { check(unix.Unmount(sockets, unix.MNT_DETACH)) }()
	c := s.prepare(s.victim, "fetch", "REDTEAM_SOCKET=/s/"+filepath.Base(s.socket))
	c.SysProcAttr.Chroot = root
	c.Dir = "/" // the program must need nothing of the root: build the tests with CGO_ENABLED=0
	return s.run(c).verdict()
}

func container(s *scene) verdict {
	target := s.victim
	if strings.HasSuffix(s.id, "/by-path") {
		target = s.named
	}
	c := s.prepare(s.self, "contain", "REDTEAM_VICTIM="+target)
	c.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC
	return s.run(c).verdict()
}

func script(s *scene, interpreter string) verdict {
	path := filepath.Join(s.dir, "victim")
	check(os.WriteFile(path, []byte("#!"+interpreter+"\n"), 0o755))
	return s.start(path, "fetch").verdict()
}

func inject(s *scene, variable, library string) verdict {
	path := filepath.Join(s.dir, "request")
	check(os.WriteFile(path, request, 0o644))
	libraries := os.Getenv("ASSAY_REDTEAM_LIBRARIES")
	if libraries == "" {
		libraries = s.dir
		check(BuildLibraries(s.t.Context(), "testdata/inject.c", libraries))
	}
	c := s.prepare(s.dynamic, "", "REDTEAM_REQUEST="+path, variable+"="+filepath.Join(libraries, library))
	c.Args = append(c.Args, "1")
	return s.run(c).verdict()
}

// tamper: a victim runs, a second process changes its memory, the victim asks.
func tamper(role string) func(*scene) verdict {
	return func(s *scene) verdict {
		victim := s.start(s.guarded, "wait")
		addresses := victim.word("ready")
		tool := s.start(s.self, role, "REDTEAM_PID="+strconv.Itoa(victim.pid()), "REDTEAM_ADDRESSES="+addresses)
		select {
		case line := <-tool.lines:
			if v, ok := parseVerdict(line); ok {
				return v
			}
			if line != "done" {
				s.t.Fatalf("the tool says %q", line)
			}
		case <-time.After(patience()):
			s.t.Fatal("the tool says nothing")
		}
		tool.stop()
		victim.say("ask")
		if changed := victim.word("changed"); changed != "true" {
			s.t.Fatal("the victim's memory was not changed")
		}
		v := victim.verdict()
		s.flagged(victim.pid())
		return v
	}
}

// flagged demands that the agent tells of tampering with a process, whatever it got.
func (s *scene) flagged(pid int) {
	out, err := exec.Command(filepath.Join(s.bin, "assay"), "--agent-socket", s.AgentSocket, "explain", "--pid", strconv.Itoa(pid)).CombinedOutput()
	flags := regexp.MustCompile(`integrity:(traced|memory-written|memory-read)`).FindAllString(string(out), -1)
	if err != nil || len(flags) == 0 {
		s.t.Errorf("the process is not flagged: %v, %s", err, out)
	}
	s.note = "; it carries " + strings.Join(flags, " and ")
}

const nobody = 65534

// userNamespace: uid 0 inside is nobody outside.
func userNamespace(s *scene) verdict {
	c := s.prepare(s.rootOnly, "fetch")
	a := c.SysProcAttr
	a.Cloneflags = unix.CLONE_NEWUSER
	a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
	a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: nobody, Size: 1}}
	a.Credential = &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true}
	return s.run(c).verdict()
}

// setuid: nobody starts the registered program, which its owner made set-uid root.
func setuid(s *scene) verdict {
	path := filepath.Join(s.dir, "helper")
	check(os.WriteFile(path, must(os.ReadFile(s.rootOnly)), 0o755))
	check(os.Chmod(path, 0o755|os.ModeSetuid))
	c := s.prepare(s.self, "start", "REDTEAM_VICTIM="+path)
	c.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	return s.run(c).verdict()
}

// moveCgroup: the registered program connects in one cgroup and asks in another.
func moveCgroup(s *scene, from, to string) verdict {
	enter := func(pid int, cgroup string) {
		check(os.WriteFile(filepath.Join(s.cgroups, cgroup, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
	dir := must(os.Open(filepath.Join(s.cgroups, from)))
	defer dir.Close()
	c := s.prepare(s.inCgroup, "connect-wait")
	c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(dir.Fd())
	a := s.run(c)
	a.word("ready")
	enter(a.pid(), to)
	a.say("ask")
	return a.verdict()
}
