// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"strings"
	"testing"
)

const id = "4d3bb2c3490a3232219b10d0fde670ced2030595d65d36441af01ef0c0771a6a"

// Layouts as the runtimes make them; ID stands for a container id.
func TestContainerLayouts(t *testing.T) {
	const uid = "5a7f1c3e-9a00-4000-8000-0123456789ab"
	under := strings.ReplaceAll(uid, "-", "_")
	for path, want := range map[string]container{
		// Docker, systemd and cgroupfs drivers, rootless
		"/system.slice/docker-ID.scope": {ID: id, Runtime: "docker"},
		"/docker/ID":                    {ID: id, Runtime: "docker"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope": {ID: id, Runtime: "docker-rootless", User: "1000"},
		// containerd by nerdctl
		"/system.slice/nerdctl-ID.scope": {ID: id, Runtime: "containerd"},
		// Podman, rootful and rootless, crun's extra level, cgroupfs driver
		"/machine.slice/libpod-ID.scope":           {ID: id, Runtime: "podman"},
		"/machine.slice/libpod-ID.scope/container": {ID: id, Runtime: "podman"},
		"/libpod_parent/libpod-ID":                 {ID: id, Runtime: "podman"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container": {ID: id, Runtime: "podman-rootless", User: "1000"},
		// Kubernetes, systemd driver: the three classes, containerd and CRI-O, kind
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-ID.scope":                                            {ID: id, Runtime: "containerd", PodUID: uid, QOS: "burstable"},
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/crio-ID.scope/container":                                          {ID: id, Runtime: "cri-o", PodUID: uid, QOS: "besteffort"},
		"/kubepods.slice/kubepods-podUID_.slice/cri-containerd-ID.scope":                                                                               {ID: id, Runtime: "containerd", PodUID: uid, QOS: "guaranteed"},
		"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podUID_.slice/cri-containerd-ID.scope/init": {ID: id, Runtime: "containerd", PodUID: uid, QOS: "burstable"},
		// Kubernetes, cgroupfs driver
		"/kubepods/burstable/podUID/ID": {ID: id, PodUID: uid, QOS: "burstable"},
		"/kubepods/podUID/ID":           {ID: id, PodUID: uid, QOS: "guaranteed"},
		// LXC and nspawn
		"/lxc.payload.web1/system.slice/nginx.service":                    {Machine: "web1", Runtime: "lxc"},
		"/lxc/web1/init.scope":                                            {Machine: "web1", Runtime: "lxc"},
		"/machine.slice/systemd-nspawn@web1.service/payload":              {Machine: "web1", Runtime: "nspawn"},
		"/system.slice/docker-ID.scope/docker/" + strings.Repeat("a", 64): {ID: id, Runtime: "docker"}, // Docker in Docker: the outer one
		// Not containers: the runtimes' own processes, look-alikes, plain units
		"/system.slice/docker.service":                 {},
		"/machine.slice/libpod-conmon-ID.scope":        {},
		"/system.slice/crio-conmon-ID.scope":           {},
		"/system.slice/docker-short.scope":             {},
		"/user.slice/podUID/ID":                        {},
		"/system.slice/x.service/kubepods/podUID/nope": {},
		"/": {},
		"":  {},
	} {
		r := strings.NewReplacer("podUID_", "pod"+under, "podUID", "pod"+uid, "ID", id)
		got, ok := parseContainer(r.Replace(path))
		if got != want || ok != (want != container{}) {
			t.Errorf("%s:\n got %+v %v\nwant %+v", path, got, ok, want)
		}
	}
}

func TestContainerOfAHybridHost(t *testing.T) {
	f := facts()
	f.Cgroup = Cgroup{ID: 1, Path: "/", V1Path: "/docker/" + id}
	if got := Derive(f); !got.Contains(Selector{"container", "id:" + id}) || !got.Contains(Selector{"cgroup", "path:/"}) {
		t.Errorf("got %v", got)
	}
	f.Cgroup.V1Path = "/system.slice/pay.service"
	if got := Derive(f); !got.Contains(Selector{"systemd", "id:pay.service"}) {
		t.Errorf("got %v", got)
	}
}

func FuzzParseContainer(f *testing.F) {
	f.Add("/system.slice/docker-" + id + ".scope")
	f.Add("/kubepods/podx//" + id)
	f.Fuzz(func(t *testing.T, path string) {
		if c, ok := parseContainer(path); ok && c.ID == "" && c.Machine == "" {
			t.Errorf("%q: a container without a name: %+v", path, c)
		}
	})
}
