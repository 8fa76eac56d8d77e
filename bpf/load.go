// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/cgroup"
	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// Config says where the sensor lives and how strong it must be.
type Config struct {
	// PinDir is a folder on a BPF file system, for example /sys/fs/bpf/assay; made if absent.
	PinDir string
	// CgroupRoot is the mount of cgroup v2; "" finds it.
	CgroupRoot string
	// MinimumTier is the weakest tier that is acceptable; zero is T2.
	MinimumTier selectors.Tier
	// SocketNames are other last components of paths that lead to the agent's sockets: symbolic
	// links to their files, and mounts of them under another name. With the sockets' own, 8 at most.
	SocketNames []string
	// KernelDigests has the kernel hash each executable at its execve (IMA, fs-verity), where it
	// can (T1); it makes the first execve of each file slower.
	KernelDigests bool
	// Protect has the kernel refuse others, root included, to debug or kill the agent, to use its
	// pins and DataDir, and to get at its sensor by bpf(2), while it lives (T1 with BPF LSM, else
	// Load fails). SIGTERM and process 1 may end it: that is the way out.
	Protect bool
	// DataDir is the agent's own folder; only needed by Protect.
	DataDir string
	// ConnectFrom lists cgroups (v2), as absolute paths in the hierarchy, that may connect to the
	// watched sockets, from there and below; they need not exist yet. Empty is all. T1 with BPF
	// LSM, else Load fails.
	ConnectFrom []string
	Logger      *slog.Logger
}

// Validate finds lists that no kernel could follow.
func (c Config) Validate() error {
	if err := checkNames(c.SocketNames); err != nil {
		return fmt.Errorf("socket_names: %w", err)
	}
	if err := checkCgroupPaths(c.ConnectFrom); err != nil {
		return fmt.Errorf("connect_from: %w", err)
	}
	return nil
}

// Sensor is the loaded sensor. Its methods may be called from several goroutines, except
// that questions about one socket (Binding) must not overlap.
type Sensor struct {
	config Config
	dir    string
	lock   *os.File
	bootID string
	cgroup *cgroup.Tree
	kernel *hooks.Object
	tier   selectors.Tier
	log    *slog.Logger
	// watched says since when, and which tampering, the hooks never miss.
	watched watched
	host    record.NamespaceNumbers
	names   []string   // of sockets, which connects are recorded by
	guarded []*os.File // folders that are marked as the agent's
	walking sync.Mutex // one question at a time that walks over everything
	buffers sync.Pool  // of bytes of bindings (T1)
	answer  answer     // T2
}

// Load attaches the sensor, or takes over the pinned one that an agent of the same build
// left. It fails when neither T1 nor T2 works here or the tier is below the minimum; errors
// are sentences for the operator and wrap ErrPrivilege, ErrNoBTF, ErrNotBPFFS, ErrInUse,
// ErrNoCgroup2, ErrKernel or ErrTier.
func Load(c Config) (*Sensor, error) {
	if c.MinimumTier == selectors.TierNone {
		c.MinimumTier = selectors.TierT2
	}
	if err := checkHost(c.PinDir); err != nil {
		return nil, err
	}
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Sensor{config: c, dir: c.PinDir, log: c.Logger, names: slices.Clone(c.SocketNames),
		buffers: sync.Pool{New: func() any { return new([record.BindingSize]byte) }}}
	if err := s.load(c); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Sensor) load(c Config) (err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("reading the boot id: %w", err)
	}
	s.bootID = strings.TrimSpace(string(boot))
	if s.cgroup, err = cgroup.Open(c.CgroupRoot); err != nil {
		return &problem{kind: ErrNoCgroup2, cause: err, sentence: err.Error()}
	}
	spec, err := loadSensor()
	if err != nil {
		return fmt.Errorf("reading the built-in sensor: %w", err)
	}
	s.kernel = hooks.New(spec, s.dir, s.cgroup.Mount)
	if pinned, err := hooks.Pinned(s.dir); !pinned && (err == nil || errors.Is(err, os.ErrNotExist)) {
		if err := checkMayLoad(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("making the pin directory: %w", err)
	}
	if s.lock, err = lockDir(s.dir); err != nil {
		return err
	}
	if pinned, err := hooks.Pinned(s.dir); err != nil {
		return fmt.Errorf("looking for pins: %w", err)
	} else if pinned {
		why, err := s.takeOver()
		if why == "" {
			s.log.Info("kernel sensor taken over from its pins", "tier", s.tier, "pins", s.dir)
			if err := s.checkConfig(); err != nil {
				return err
			}
			return s.defend()
		}
		if errMay := checkMayLoad(); errMay != nil {
			return errors.Join(errMay, fmt.Errorf("the sensor that is pinned can not be taken over: %s: %w", why, err))
		}
		s.log.Warn("kernel sensor starts anew, lineage before this moment is seeded", "because", why, "pins", s.dir, "error", err)
	}
	if err := s.startAnew(); err != nil {
		return errors.Join(err, s.kernel.Close(), hooks.Remove(s.dir), os.Remove(s.dir))
	}
	s.log.Info("kernel sensor attached", "tier", s.tier, "pins", s.dir)
	return nil
}

// checkConfig compares what the kernel gave with what the configuration demands.
func (s *Sensor) checkConfig() error {
	least := s.config.MinimumTier
	if s.tier >= least && s.config.Protect && !s.protects() {
		return s.noLSM("protect the agent", slices.Concat(protectSets...), "set protect to false")
	}
	if s.tier >= least && wantGate(&s.config) && !s.kernel.On("on_gate") {
		return s.noLSM("refuse connects by cgroup", gatePrograms, "remove connect_from")
	}
	if s.tier >= least {
		return nil
	}
	return &problem{kind: ErrTier, sentence: fmt.Sprintf(
		"this kernel gives evidence of tier %s but the configuration demands %s (%s): boot a kernel that allows BPF LSM programs, with \"bpf\" in its lsm= parameter, or lower the minimum tier",
		s.tier, least, s.kernel.Refusal(doors[0].programs...))}
}

// noLSM says why something that only BPF LSM programs can do is not done.
func (s *Sensor) noLSM(what string, programs []string, orElse string) error {
	return &problem{kind: ErrKernel, sentence: fmt.Sprintf(
		"this kernel can not %s (%s): boot a kernel that allows BPF LSM programs, with \"bpf\" in its lsm= parameter, or %s",
		what, cmp.Or(s.kernel.Refusal(programs...), s.kernel.Refusal(doors[0].programs...)), orElse)}
}

// GiveTo makes a user and group the owner of everything that is pinned: an agent of that user takes the
// sensor over, without a capability to load programs.
func (s *Sensor) GiveTo(uid, gid int) error { return hooks.GiveTo(s.dir, uid, gid) }

// lockDir keeps other agents away from the pins while the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err == nil {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		f.Close()
	}
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EPERM) { // EPERM: that agent is protected
		return nil, &problem{kind: ErrInUse, cause: err, sentence: fmt.Sprintf("another agent uses the pin directory %s: stop it first, or set another pin directory", dir)}
	}
	return nil, fmt.Errorf("locking the pin directory: %w", err)
}

// startAnew removes what is pinned and attaches everything: first the hooks, then the seed,
// so that no process falls between them. The build is written last: pins without it are not
// complete.
func (s *Sensor) startAnew() error {
	if err := hooks.Remove(s.dir); err != nil {
		return err
	}
	if err := s.makeMaps(); err != nil {
		return err
	}
	if err := s.kernel.Attach(lineagePrograms...); err != nil {
		return &problem{kind: ErrKernel, cause: err, sentence: "this kernel can not record forks and execs (" + s.kernel.Refusal(lineagePrograms...) +
			"): use a kernel ≥ 5.11 with CONFIG_BPF_SYSCALL, CONFIG_BPF_EVENTS and CONFIG_DEBUG_INFO_BTF"}
	}
	if !slices.ContainsFunc(threadExecSets, s.attachSet) {
		s.log.Warn("execve from a thread will lose its lineage", "because", s.kernel.Refusal(slices.Concat(threadExecSets...)...))
	}
	if err := s.seed(); err != nil {
		return &problem{kind: ErrKernel, cause: err, sentence: "this kernel can not list its processes to the sensor (" + s.kernel.Section(seedProgram) + ": " + err.Error() + "): use a kernel ≥ 5.11"}
	}
	if err := s.chooseDoor(); err != nil {
		return err
	}
	s.attachFeatures()
	for _, program := range walkers {
		if err := s.kernel.KeepWalker(program); err != nil {
			s.log.Warn("who holds a connection, or how a process is now, will not be found out", "because", err)
		}
	}
	if err := s.noteWatched(); err != nil {
		return err
	}
	s.noteTheRest("not tried, because another hook that it needs is refused")
	if err := s.checkConfig(); err != nil {
		return err
	}
	if err := s.defend(); err != nil {
		return err
	}
	return s.writeSettings(build())
}

func (s *Sensor) makeMaps() error {
	if err := s.kernel.MakeMaps(); err != nil {
		return &problem{kind: ErrKernel, cause: err, sentence: "this kernel can not hold the sensor's maps (" + err.Error() + "): use a kernel ≥ 5.11 with CONFIG_BPF_SYSCALL"}
	}
	if err := s.answer.open(s.kernel.Maps["answer"].FD()); err != nil {
		return err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return fmt.Errorf("reading the boot clock: %w", err)
	}
	ns := uint64(now.Nano())
	if err := s.kernel.Maps["state"].Put(uint32(0), [record.StateSize / 8]uint64{ns, ns / 1e6, 5: 1}); err != nil {
		return fmt.Errorf("writing the sensor's state: %w", err)
	}
	return s.kernel.PinMaps()
}

// chooseDoor takes the first door whose hooks attach and are seen to work.
func (s *Sensor) chooseDoor() error {
	for _, d := range doors {
		if s.kernel.Attach(d.programs...) != nil {
			continue
		}
		s.tier = d.tier
		err := s.prove()
		if err == nil {
			return nil
		}
		s.tier = selectors.TierNone
		if err := s.kernel.Detach(d.programs...); err != nil {
			return fmt.Errorf("detaching hooks that do not work: %w", err)
		}
		s.kernel.Note(hooks.Unavailable, "attached, but did not work: "+err.Error(), d.programs...)
	}
	var refusals []string
	for _, d := range doors {
		refusals = append(refusals, s.kernel.Refusal(d.programs...))
	}
	return &problem{kind: ErrKernel, sentence: fmt.Sprintf(
		"this kernel can not tell who connects to a socket: boot with \"bpf\" in the lsm= parameter (CONFIG_BPF_LSM=y; running now: %s), or use a kernel ≥ 6.18 with CONFIG_CGROUP_BPF (%s)",
		runningLSMs(), strings.Join(refusals, "; "))}
}

func runningLSMs() string {
	list, err := os.ReadFile("/sys/kernel/security/lsm")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(list))
}

// Close releases the sensor. The hooks stay attached and go on recording; see Unpin.
func (s *Sensor) Close() error {
	errs := []error{s.answer.close()}
	for _, f := range s.guarded {
		errs = append(errs, f.Close())
	}
	if s.kernel != nil {
		errs = append(errs, s.kernel.Close())
	}
	if s.cgroup != nil {
		errs = append(errs, s.cgroup.Close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Unpin detaches every hook pinned in pinDir and removes the folder. No agent may be using
// it (ErrInUse). It is no error if the folder does not exist.
func Unpin(pinDir string) error {
	if err := checkPinDir(pinDir); err != nil {
		return err
	}
	lock, err := lockDir(pinDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer lock.Close()
	if err := hooks.Remove(pinDir); err != nil {
		return err
	}
	if err := os.Remove(pinDir); err != nil {
		return fmt.Errorf("removing the pin directory: %w", err)
	}
	return nil
}
