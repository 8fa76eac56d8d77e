// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/assay-id/assay/selectors"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func FuzzEntry(f *testing.F) {
	seed, err := proto.Marshal(&types.Entry{Id: "a", SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/a"},
		ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/p"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		var pb types.Entry
		if proto.Unmarshal(data, &pb) != nil {
			return
		}
		if e, err := Entry(&pb); err == nil && (e.ID == "" || e.SPIFFEID.IsZero() || len(e.SelectorSet()) == 0) {
			t.Errorf("accepted %+v", e)
		}
	})
}

func FuzzBundle(f *testing.F) {
	f.Add([]byte("\n\x0bexample.org\x12\x03\n\x01x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var pb types.Bundle
		if proto.Unmarshal(data, &pb) != nil {
			return
		}
		if b, err := OwnBundle(td, &pb); err == nil && len(b.X509()) == 0 {
			t.Error("accepted a bundle that authenticates nothing")
		}
	})
}

func TestFactsKeepEveryField(t *testing.T) {
	exe := selectors.Executable{Path: "/p", SHA256: selectors.Digest{9}, Size: 4, IMA: true, FSVerity: selectors.Digest{8}}
	f := &selectors.Facts{
		Process: selectors.ProcessKey{BootID: "b", TGID: 1, StartBoottime: 2, ExecID: 3}, Tier: selectors.TierT1, Executable: exe,
		Credentials: selectors.Credentials{UID: 5, GID: 6, User: "u", Group: "g", SupplementaryGroups: []selectors.Group{{GID: 7, Name: "s"}},
			Known: true, Effective: 1, Permitted: 2, NoNewPrivs: true, Seccomp: 2, LoginUID: 3, SessionID: 4, SecurityLabel: "l"},
		Cgroup: selectors.Cgroup{ID: 8, Path: "/c", V1Path: "/d"}, Observed: true, LineageTruncated: true,
		Ancestors:  []selectors.Ancestor{{ExecID: 10, TGID: 11, Observed: true, Executable: exe}},
		Exec:       selectors.Exec{Deleted: true, MemoryFile: true, SetID: true, FSMagic: 1, Script: true, ScriptFile: exe},
		Namespaces: selectors.Namespaces{Known: true, HostPID: true, HostMount: true, HostNet: true, HostUser: true, HostCgroup: true, HostIPC: true},
		Integrity:  selectors.Integrity{SeesWrites: true, SeesTracing: true, SeesAll: true, Traced: true, MemoryWritten: true, MemoryRead: true, DescriptorTaken: true},
		Code:       selectors.Code{Known: true, Libraries: selectors.Digest{1}, Files: 2, Anonymous: true}, ArgumentFile: exe,
	}
	var check func(path string, m protoreflect.Message)
	check = func(path string, m protoreflect.Message) {
		for i, fields := 0, m.Descriptor().Fields(); i < fields.Len(); i++ {
			field := fields.Get(i)
			name := path + "." + string(field.Name())
			switch {
			case !m.Has(field):
				t.Errorf("%s is not sent", name)
			case field.IsList() && field.Kind() == protoreflect.MessageKind:
				check(name, m.Get(field).List().Get(0).Message())
			case field.Kind() == protoreflect.MessageKind:
				check(name, m.Get(field).Message())
			}
		}
	}
	check("facts", Facts(f).ProtoReflect())
	if pb := Facts(&selectors.Facts{}); len(pb.Executable.Sha256) != 0 {
		t.Error("an unknown digest is sent as one")
	}
}
