// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// everything derives each selector of this package in some form.
func everything() Set {
	d := Digest{1}
	f := facts()
	f.Tier = TierT1
	f.Credentials = Credentials{UID: 1000, GID: 100, User: "pay", Group: "users", SupplementaryGroups: []Group{{GID: 27, Name: "sudo"}},
		Known: true, Effective: ^uint64(0), Seccomp: 2, NoNewPrivs: true, SessionID: 3, SecurityLabel: "a (enforce)"}
	f.Executable = Executable{Path: "/usr/bin/pay", SHA256: d, IMA: true, FSVerity: d}
	f.Exec = Exec{FSMagic: 0xef53, Script: true, ScriptFile: Executable{SHA256: d}}
	f.Namespaces = Namespaces{Known: true, HostPID: true}
	f.Integrity = Integrity{SeesAll: true, SeesWrites: true, SeesTracing: true}
	f.Code = Code{Known: true, Libraries: d, Files: 4}
	f.ArgumentFile = Executable{SHA256: d}
	all := slices.Clone(Derive(f))
	g := facts()
	g.Observed, g.Exec = false, Exec{FSMagic: 0xef53, SetID: true, MemoryFile: true}
	g.Credentials.Known, g.Credentials.LoginUID, g.Credentials.SessionID = true, Unset, Unset
	g.Integrity = Integrity{Traced: true, MemoryWritten: true, MemoryRead: true, DescriptorTaken: true}
	all = append(all, Derive(g)...)
	g.Observed, g.Integrity, g.Exec = true, Integrity{SeesWrites: true}, Exec{FSMagic: 0xef53, Deleted: true}
	all = append(all, Derive(g)...)
	for _, path := range []string{
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + strings.Repeat("a", 64) + ".scope", "/lxc.payload.web1",
		"/kubepods/burstable/pod5a7f0000-0000-0000-0000-000000000000/" + strings.Repeat("b", 64),
	} {
		g.Cgroup.Path = path
		all = append(all, Derive(g)...)
	}
	pcrs := map[int]Digest{7: d, 14: d}
	all = append(all, DeriveNode(&NodeFacts{EKHash: d, EKIssuer: d, Manufacturer: "id:00001014", Model: "SLB 9670", Version: "id:1", Firmware: 1, PCRs: pcrs, KeyResident: true,
		Boot: BootFacts{Sealed: true, SecureBoot: "enabled", SetupMode: true, PK: d, KEK: d, DB: d, DBX: d, Authorities: []Digest{d}, SBAT: d,
			Applications: []Digest{d}, KernelImage: d, Kernel: d, Initrd: d, CommandLine: "ro", Arguments: []string{"a=b:c"}},
		Files: FileFacts{NoViolations: true, AllowLists: []string{"debian"}, Agent: d}})...)
	return NewSet(all...)
}

// TestWhatIsDerivedIsKnown: the vocabulary holds all that the families emit, and nothing of theirs that they do not.
func TestWhatIsDerivedIsKnown(t *testing.T) {
	all := everything()
	seen := map[string]bool{}
	for _, s := range all {
		if err := s.Known(); err != nil {
			t.Error(err)
		}
		for _, f := range forms[s.Type] {
			if ok, _ := f.matches(s.Value); ok {
				seen[s.Type+":"+f.String()] = true
			}
		}
	}
	// Forms that SPIRE's attestors or server/attest make, and those of which one alternative is enough.
	others := []string{"tpm_devid", "x509pop", "spiffe_id", "k8s", "docker", "slurm", "windows", "http_challenge", "k8s_psat", "k8s_sat", "aws_iid", "azure_imds", "azure_msi", "gcp_iit", "sshpop", "namespace"}
	for kind, fs := range forms {
		for _, f := range fs {
			name := kind + ":" + f.String()
			if !seen[name] && !slices.Contains(others, kind) && name != "systemd:fragment_path:<path>" && name != "process:seccomp:strict" && name != "tpm:secureboot:disabled" {
				t.Errorf("nothing derives %s", name)
			}
		}
	}
}

func TestUnknownSelectors(t *testing.T) {
	hex := strings.Repeat("0a", 32)
	for text, want := range map[string]string{
		"unix:sha265:" + hex:                      `did you mean "unix:sha256:<digest>"?`,
		"unix:sha256:" + strings.ToUpper(hex):     "want unix:sha256:<digest>, where <digest> is 64 lower-case hexadecimal digits",
		"unix:sha256:00":                          "want unix:sha256:<digest>",
		"unix:uid:root":                           "want unix:uid:<n>, where <n> is a decimal number",
		"unix:uid:007":                            "want unix:uid:<n>",
		"unix:uid":                                "want unix:uid:<n>",
		"unix:path:bin/sh":                        "where <path> is an absolute path",
		"unix:uid1000":                            `did you mean "unix:uid:<n>"?`,
		"unix:usr:x":                              `did you mean "unix:user:<text>"?`,
		"unx:uid:1":                               `its type "unx" is not known; did you mean "unix"?`,
		"acme:x":                                  `its type "acme" is not known`,
		"evidence:tier:t4":                        `did you mean "evidence:tier:t1"?`,
		"evidence:observd":                        `did you mean "evidence:observed"?`,
		"integrity:memory_unwritten":              `did you mean "integrity:memory-unwritten"?`,
		"process:capability:net_admin":            "<capability> is a capability, such as cap_net_admin",
		"exec:filesystem:ext4":                    "<filesystem> is a file system",
		"namespace:pid:hots":                      `did you mean "namespace:pid:host"?`,
		"tpm:pcr:sha256:8:" + hex:                 "<pcr> is one of 0 to 7, 9, 11, 12 and 14",
		"tpm:pcr:7:" + hex:                        `did you mean "tpm:pcr:sha256:<pcr>:<digest>"?`,
		"container:runtime:dockr":                 "want container:runtime:<runtime>",
		"k8s:namespce:default":                    `did you mean "k8s:namespace:<text>"?`,
		"systemd:unit:a.service":                  "has no such value",
		"parent:sha256:" + hex + "x":              "want parent:sha256:<digest>",
		"code:libraries:count:-1":                 "want code:libraries:count:<n>",
		"spiffe_id:example.org":                   "a SPIFFE ID",
		"integrity:clean:really":                  "has no such value",
		"tpm:boot-app:0:" + hex + ":" + hex + ":": "<digest>",
	} {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Known()
		if unknown := (*UnknownError)(nil); !errors.As(err, &unknown) || !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	for _, text := range []string{"unix:user:a:b", "k8s:pod-label:app:x", "docker:label:com.docker.compose.project:x", "docker:image-signature:verified", "aws_iid:tag:a:b", "x509pop:san:env:prod",
		"spiffe_id:spiffe://example.org/spire/agent/x", "windows:user_sid:S-1", "cgroup:path:/a:b", "tpm:cmdline:has:root=UUID=a:b", "container:runtime:podman-rootless", "process:session:0"} {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Known(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzKnown(f *testing.F) {
	for _, s := range []string{"unix:uid:1", "tpm:pcr:sha256:7:00", "exec:script", "x:y", "integrity:", "namespace:pid:own:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		if err := s.Known(); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}
