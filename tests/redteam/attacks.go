// SPDX-License-Identifier: Apache-2.0

package redteam

// Attack is a row of the table.
type Attack struct {
	ID, Name string
	// Attacker is who does it, Does is what, from his point of view.
	Attacker, Does string
	// Wants is the path of the identity that he is after; "" is /victim.
	Wants string
	// Control rows are no attacks: the identity must be delivered.
	Control bool
	// Price says by tier why a control is refused.
	Price map[string]string
	// Limit says by tier why a delivered identity is no defect.
	Limit map[string]string
	// Open says by tier what is missing where an identity is delivered and should not be. A row
	// that is open and holds all the same fails the test, so that no note outlives its reason.
	Open map[string]string
}

// both is a note for both tiers.
func both(note string) map[string]string { return map[string]string{"T1": note, "T2": note} }

const (
	user    = "same user"
	root    = "root"
	insider = "victim's author"
)

const (
	noMaps  = "this tier does not see which files a program maps; who starts a program decides what is loaded into it, so demand a trusted parent"
	guarded = "/guarded" // demands integrity:memory-unwritten and exec:binary, too
)

// Attacks are all rows, in the document's order. An "insider" is a victim that was written to
// give its connection away, or was talked into it.
var Attacks = []Attack{
	{ID: "control", Name: "No attack", Attacker: "nobody", Does: "the victim asks", Control: true},
	{ID: "control-blocking", Name: "No attack, blocking reads", Attacker: "nobody", Does: "the victim has threads, asks, and blocks in read(2)", Control: true},
	{ID: "control-guarded", Name: "No attack, more demanded", Attacker: "nobody", Does: "the victim asks, against an entry that demands `integrity:memory-unwritten` and `exec:binary`", Wants: guarded, Control: true},
	{ID: "other-program", Name: "Another program", Attacker: user, Does: "asks as what he is"},
	{ID: "other-parent", Name: "Another parent", Attacker: user, Does: "starts the true victim from a shell"},

	// Who holds the connection.
	{ID: "pid-reuse", Name: "PID reuse", Attacker: root, Does: "connects, leaves the connection to a child, exits, and has the victim started under his number"},
	{ID: "exit-before-accept", Name: "Exit before accept", Attacker: root, Does: "as PID reuse, all of it before the agent accepts"},
	{ID: "exec-into-victim", Name: "Exec into the victim", Attacker: user, Does: "connects, leaves the connection to a child, and executes the victim's program himself"},
	{ID: "exec-after-connect", Name: "Exec after connect", Attacker: insider, Does: "the victim connects and executes the thief, who asks"},
	{ID: "exec-from-thread", Name: "Exec from a thread that is not the leader", Attacker: insider, Does: "as exec after connect, by another thread"},
	{ID: "exec-between-calls", Name: "Exec between two calls", Attacker: insider, Does: "the victim gets its SVID, executes the thief, who calls again on the same connection"},
	{ID: "inherit-between-calls", Name: "Inherit between two calls", Attacker: insider, Does: "the victim gets its SVID, the thief inherits the connection and calls again"},
	{ID: "fd-passing", Name: "SCM_RIGHTS", Attacker: insider, Does: "the victim sends its connection to the thief"},
	{ID: "fork", Name: "Fork", Attacker: insider, Does: "a forked child asks over the victim's connection"},
	{ID: "fork-read", Name: "Fork, read side only", Attacker: insider, Does: "the victim has a child, then asks; the child reads the answer"},
	{ID: "fork-queued", Name: "Fork after the answer", Attacker: insider, Does: "the victim asks and has a child when the answer lies in its socket; the child reads it",
		Limit: map[string]string{"T2": "what was pushed to the right caller belongs to it; a victim that gives away what it received could as well give away the key"}},
	{ID: "inherit", Name: "Inherit over exec", Attacker: insider, Does: "the thief is executed with the victim's connection as descriptor 3"},
	{ID: "dup-in-child", Name: "Dup in a child", Attacker: insider, Does: "as inherit; the thief moves it to another number first"},
	{ID: "forged-credentials", Name: "Forged SCM_CREDENTIALS", Attacker: root, Does: "as inherit; the thief sends with the victim's PID as credentials"},
	{ID: "pidfd-getfd", Name: "pidfd_getfd", Attacker: root, Does: "takes the connection out of the running victim"},
	{ID: "vfork", Name: "vfork child", Attacker: insider, Does: "a child that shares the victim's memory asks, while the victim is suspended"},
	{ID: "clone-vm", Name: "CLONE_VM", Attacker: insider, Does: "a process that shares the victim's memory asks"},
	{ID: "clone-files", Name: "CLONE_FILES without CLONE_THREAD", Attacker: insider, Does: "a process that shares the victim's descriptor table asks"},
	{ID: "prefork", Name: "Prefork server", Attacker: insider, Does: "a forked worker asks while the process that connected is stopped"},
	{ID: "shared-socket", Name: "Second connect on a shared socket", Attacker: user, Does: "makes the socket, lets the victim connect it, connects it again and asks"},
	{ID: "io-uring", Name: "io_uring", Attacker: insider, Does: "as inherit; the thief writes and reads by io_uring"},

	// What the program is.
	{ID: "argv", Name: "argv and PR_SET_NAME", Attacker: user, Does: "calls himself by the victim's path and name"},
	{ID: "mm-exe-file", Name: "PR_SET_MM_EXE_FILE", Attacker: root, Does: "unmaps his own program and makes the victim's file his /proc/PID/exe"},
	{ID: "bind-mount", Name: "Bind mount over the binary", Attacker: root, Does: "mounts his program over the victim's path and starts that path"},
	{ID: "rename-over", Name: "Rename over the binary", Attacker: "owner of the file", Does: "renames his program over the running victim's, starts the path"},
	{ID: "deleted", Name: "Deleted binary", Attacker: "owner of the file", Does: "deletes the running victim's file, puts his own in its place, starts the path"},
	{ID: "chroot", Name: "chroot with fake paths", Attacker: root, Does: "runs his program at the victim's path in another root"},
	{ID: "container", Name: "Container with the host's PID namespace", Attacker: root, Does: "own mount, UTS, IPC and network namespace, and his program at the victim's path"},
	{ID: "path-only", Name: "Entry that demands only a path", Attacker: root, Does: "as container, against an entry with nothing but `unix:path:`", Wants: "/by-path",
		Limit: both("a path is a name in the caller's mount namespace, not evidence of content (the selector's table says so): demand `unix:sha256:`")},
	{ID: "overlay-lower", Name: "Overlay, lower file written", Attacker: root, Does: "writes to the lower file while the victim runs from an overlay"},
	{ID: "overlay-swap", Name: "Overlay, lower file written and restored", Attacker: root, Does: "changes the running victim's code in the lower file, lets it run once, and restores the file before the victim asks",
		Limit: both("who may write to the layers of a container changes running code without any trace in the file; the digest, read anew at each attestation, is of the file. Layers with fs-verity can not be written")},
	{ID: "memfd-writer", Name: "memfd with a writer left open", Attacker: user, Does: "copies the victim into a memfd, keeps it open for writing, executes it"},
	{ID: "memfd-sealed", Name: "Sealed memfd", Attacker: user, Does: "the same, sealed against writing"},
	{ID: "script-path", Name: "Script in the victim's place", Attacker: "owner of the file", Does: "a script at the victim's path with his interpreter"},
	{ID: "script-interpreter", Name: "Script that names the victim", Attacker: user, Does: "a script of his own whose `#!` is the victim's program, against an entry that demands `exec:binary`", Wants: guarded},

	// What is in the process.
	{ID: "ld-preload", Name: "LD_PRELOAD", Attacker: "who starts the victim", Does: "loads his library into a dynamic victim, against an entry that demands its `code:libraries:` at T1", Wants: "/dynamic", Limit: map[string]string{"T2": noMaps}},
	{ID: "ld-audit", Name: "LD_AUDIT", Attacker: "who starts the victim", Does: "loads his library as an auditor of a dynamic victim, against an entry that demands its `code:libraries:` at T1", Wants: "/dynamic", Limit: map[string]string{"T2": noMaps}},
	{ID: "ptrace", Name: "ptrace", Attacker: root, Does: "attaches, overwrites code by POKETEXT, detaches; then the victim asks, against an entry that demands `integrity:memory-unwritten`", Wants: guarded},
	{ID: "proc-mem", Name: "/proc/PID/mem", Attacker: root, Does: "overwrites code of the victim; then the victim asks, against an entry that demands `integrity:memory-unwritten`", Wants: guarded},
	{ID: "process-vm-writev", Name: "process_vm_writev", Attacker: root, Does: "overwrites data of the victim; then the victim asks, against an entry that demands `integrity:memory-unwritten`", Wants: guarded},

	// Where and as whom it runs.
	{ID: "user-namespace", Name: "User namespace with a fake uid 0", Attacker: "nobody (65534)", Does: "is root in a namespace of his own, against an entry that demands `unix:uid:0`", Wants: "/root-only"},
	{ID: "control-root", Name: "No attack, the true root", Attacker: "nobody", Does: "the registered program asks, started by root, against the entry of its neighbours here", Wants: "/root-only", Control: true},
	{ID: "setuid", Name: "Set-uid helper", Attacker: "nobody (65534)", Does: "starts the registered program, which is set-uid root, against an entry that demands `unix:uid:0` and `exec:no-set-id`", Wants: "/root-only"},
	{ID: "cgroup-move-in", Name: "Moved into the victim's cgroup after connect", Attacker: root, Does: "connects elsewhere, moves, asks, against an entry that demands `cgroup:path:`", Wants: "/in-cgroup"},
	{ID: "cgroup-escape", Name: "Cgroup escape after connect", Attacker: root, Does: "connects in the victim's cgroup, leaves it, asks", Wants: "/in-cgroup"},
	{ID: "cgroup-enter", Name: "Cgroup entered before connect", Attacker: root, Does: "moves the registered program into the victim's cgroup, connects, asks", Wants: "/in-cgroup",
		Limit: both("who may write cgroup.procs decides who is in a cgroup; the kernel's record says where the caller was, and it was there")},
}

// Judge tells what is wrong with a result, "" if it is as expected.
func (a Attack) Judge(r Result) string {
	delivered, excused := r.Outcome == Delivered, a.Open[r.Tier] != "" || a.Limit[r.Tier] != "" || a.Price[r.Tier] != ""
	switch {
	case a.Control && r.PeerCred != Delivered:
		return "the victim itself got nothing from the attestor by SO_PEERCRED"
	case delivered == a.Control && excused:
		return "holds now: take its note out of attacks.go"
	case a.Control && !delivered && !excused:
		return "the victim itself got nothing"
	case !a.Control && delivered && !excused:
		return "the victim's identity was delivered"
	}
	return ""
}
