// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"math/bits"
	"strconv"
)

// deriveProcess emits `process` and `namespace`: rights and surroundings at connect.
//
//	selector                        example                            evidence                          does not prove
//	process:capability:<name>       process:capability:cap_net_admin   effective set, kernel record      use: only possession
//	process:no-capabilities         process:no-capabilities            effective and permitted are empty that none comes by execve
//	process:no-new-privs            process:no-new-privs               kernel record                     –
//	process:seccomp:<mode>          process:seccomp:filter             kernel record: disabled, strict,  what the filter allows
//	                                                                   filter
//	process:login-uid:<n>           process:login-uid:1000             audit: who logged in, survives su that the login was by a person
//	process:session:<n>             process:session:4                  audit session                     as login-uid
//	process:security-label:<label>  process:security-label:…           /proc of the pinned process       what the LSM's policy allows it
//	namespace:<kind>:host           namespace:pid:host                 kernel record; kinds: pid, mount, that files or names look like the host's
//	namespace:<kind>:own            namespace:user:own                 net, user, cgroup, ipc            that it is a container
func deriveProcess(f *Facts, emit func(family, value string)) {
	if c := &f.Credentials; c.Known {
		deriveRights(c, func(v string) { emit("process", v) })
	}
	n := f.Namespaces
	if !n.Known {
		return
	}
	for _, k := range []struct {
		kind string
		host bool
	}{{"pid", n.HostPID}, {"mount", n.HostMount}, {"net", n.HostNet}, {"user", n.HostUser}, {"cgroup", n.HostCgroup}, {"ipc", n.HostIPC}} {
		if k.host {
			emit("namespace", k.kind+":host")
		} else {
			emit("namespace", k.kind+":own")
		}
	}
}

func deriveRights(c *Credentials, emit func(string)) {
	for set := c.Effective; set != 0; set &= set - 1 {
		emit(capabilitySelectors[bits.TrailingZeros64(set)])
	}
	if c.Effective|c.Permitted == 0 {
		emit("no-capabilities")
	}
	if c.NoNewPrivs {
		emit("no-new-privs")
	}
	if modes := [...]string{"disabled", "strict", "filter"}; int(c.Seccomp) < len(modes) {
		emit("seccomp:" + modes[c.Seccomp])
	}
	if c.LoginUID != Unset {
		emit("login-uid:" + strconv.FormatUint(uint64(c.LoginUID), 10))
	}
	if c.SessionID != Unset {
		emit("session:" + strconv.FormatUint(uint64(c.SessionID), 10))
	}
	if c.SecurityLabel != "" {
		emit("security-label:" + c.SecurityLabel)
	}
}

// capabilitySelectors are the values for each bit, by the names of capabilities(7) in lower case.
var capabilitySelectors = func() (values [64]string) {
	for bit := range values {
		name := strconv.Itoa(bit)
		if bit < len(capabilities) {
			name = capabilities[bit]
		}
		values[bit] = "capability:cap_" + name
	}
	return values
}()

// capabilities are numbered as in linux/capability.h.
var capabilities = [...]string{
	"chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
	"setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
	"sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
	"sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
	"mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
	"checkpoint_restore",
}
