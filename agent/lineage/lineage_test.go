// SPDX-License-Identifier: Apache-2.0

package lineage

import (
	"context"
	"errors"
	"testing"

	"github.com/assay-id/assay/selectors"
)

type programs struct{ known, running map[uint64]string }

func (p programs) Known(id uint64) (selectors.Executable, bool) {
	path, ok := p.known[id]
	return selectors.Executable{Path: path}, ok
}

func (p programs) Running(_ context.Context, holder selectors.ProcessKey) (selectors.Executable, error) {
	if path, ok := p.running[holder.ExecID]; ok {
		return selectors.Executable{Path: path}, nil
	}
	return selectors.Executable{}, errors.New("gone")
}

func TestResolve(t *testing.T) {
	chain := []Image{
		{Holder: selectors.ProcessKey{ExecID: 9, TGID: 90}, Observed: true},
		{Holder: selectors.ProcessKey{ExecID: 8, TGID: 80}, Observed: true},
		{Holder: selectors.ProcessKey{ExecID: 1, TGID: 1}},
	}
	got := Resolve(t.Context(), chain, programs{known: map[uint64]string{9: "/gone"}, running: map[uint64]string{9: "/wrong", 1: "/init"}})
	want := []selectors.Ancestor{
		{ExecID: 9, TGID: 90, Observed: true, Executable: selectors.Executable{Path: "/gone"}},
		{ExecID: 8, TGID: 80, Observed: true},
		{ExecID: 1, TGID: 1, Executable: selectors.Executable{Path: "/init"}},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%d: got %+v, want %+v", i, got[i], want[i])
		}
	}
}
