// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"regexp"
	"strings"
)

// deriveContainer emits `container` and `k8s` from the process's cgroup path.
//
//	selector                     example                        evidence                               does not prove
//	container:id:<id>            container:id:4d3b…             the runtime's layout of cgroup paths;  that the runtime made it: host root may
//	                                                            the outermost container of the path    make any cgroup
//	container:runtime:<name>     container:runtime:podman       the same; rootless runtimes, whose     as container:id
//	                                                            cgroups a user made, are "…-rootless"
//	container:user:<uid>         container:user:1000            owner of a rootless container's slice  as container:id
//	container:machine:<name>     container:machine:web1         LXC and nspawn, which name theirs      as container:id
//	k8s:pod-uid:<uid>            k8s:pod-uid:5a7f…-…            kubelet's layout; SPIRE's name         which image or namespace: the kubelet tells
//	k8s:qos-class:<class>        k8s:qos-class:burstable        the same                               as k8s:pod-uid
//
// Only the outermost container counts: what is below it, the container could have made itself.
func deriveContainer(f *Facts, emit func(family, value string)) {
	for _, path := range f.Cgroup.paths() {
		c, ok := parseContainer(path)
		if !ok {
			continue
		}
		for _, v := range []struct{ family, key, value string }{
			{"container", "id", c.ID}, {"container", "runtime", c.Runtime}, {"container", "user", c.User}, {"container", "machine", c.Machine},
			{"k8s", "pod-uid", c.PodUID}, {"k8s", "qos-class", c.QOS},
		} {
			if v.value != "" {
				emit(v.family, v.key+":"+v.value)
			}
		}
		return
	}
}

// container is what a cgroup path says of the container around a process.
type container struct{ ID, Runtime, User, Machine, PodUID, QOS string }

var (
	// <prefix>-<id>.scope: systemd's cgroup driver of every runtime.
	scope = regexp.MustCompile(`^(docker|cri-containerd|crio|libpod|nerdctl)-([0-9a-f]{64})\.scope$`)
	bare  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	// kubelet's pods, by the systemd and by the cgroupfs driver; kind nests them in kubelet.slice.
	podSlice = regexp.MustCompile(`^(?:kubelet-)?kubepods(?:-(burstable|besteffort))?-pod([0-9a-f]{8}(?:_[0-9a-f]{4}){3}_[0-9a-f]{12}|[0-9a-f]{32})\.slice$`)
	podDir   = regexp.MustCompile(`^pod([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})$`)
	userUnit = regexp.MustCompile(`^user@([0-9]+)\.service$`)
)

var runtimes = map[string]string{"docker": "docker", "cri-containerd": "containerd", "crio": "cri-o", "libpod": "podman", "nerdctl": "containerd"}

// parseContainer reads the outermost container out of a cgroup path.
func parseContainer(path string) (container, bool) {
	var c container
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, part := range parts {
		above := parts[:i]
		if m := userUnit.FindStringSubmatch(part); m != nil && c.User == "" {
			c.User = m[1]
			continue
		}
		if m := podSlice.FindStringSubmatch(part); m != nil && c.User == "" {
			c.QOS, c.PodUID = orGuaranteed(m[1]), strings.ReplaceAll(m[2], "_", "-")
			continue
		}
		if m := podDir.FindStringSubmatch(part); m != nil && len(above) > 0 && above[0] == "kubepods" {
			c.QOS, c.PodUID = orGuaranteed(strings.Join(above[1:], "")), m[1]
			continue
		}
		switch {
		case c.named(part, above), c.numbered(part, above):
			if c.User != "" {
				c.Runtime += "-rootless"
			}
			return c, true
		}
	}
	return container{}, false
}

// numbered reads runtimes that name their cgroups by a container id.
func (c *container) numbered(part string, above []string) bool {
	parent := ""
	if len(above) > 0 {
		parent = above[len(above)-1]
	}
	if m := scope.FindStringSubmatch(part); m != nil {
		c.Runtime, c.ID = runtimes[m[1]], m[2]
		return true
	}
	switch id, libpod := strings.CutPrefix(part, "libpod-"); {
	case libpod && parent == "libpod_parent" && bare.MatchString(id):
		c.Runtime, c.ID = "podman", id
	case bare.MatchString(part) && parent == "docker":
		c.Runtime, c.ID = "docker", part
	case bare.MatchString(part) && c.PodUID != "":
		c.ID = part // the kubelet's cgroupfs driver does not say which runtime
	default:
		return false
	}
	return true
}

// named reads LXC and systemd-nspawn, which name their cgroups by the machine.
func (c *container) named(part string, above []string) bool {
	if len(above) == 0 {
		if name, ok := strings.CutPrefix(part, "lxc.payload."); ok && name != "" {
			c.Machine, c.Runtime = name, "lxc"
			return true
		}
		return false
	}
	if len(above) == 1 && above[0] == "lxc" {
		c.Machine, c.Runtime = part, "lxc"
		return true
	}
	if above[len(above)-1] == "machine.slice" {
		if name, ok := strings.CutPrefix(part, "systemd-nspawn@"); ok {
			c.Machine, c.Runtime = strings.TrimSuffix(name, ".service"), "nspawn"
			return true
		}
	}
	return false
}

func orGuaranteed(qos string) string {
	if qos == "" {
		return "guaranteed"
	}
	return qos
}
