// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"fmt"
	"strings"
	"testing"
)

func TestMemory(t *testing.T) {
	d := NewMemory()
	if got := d.Denials(); len(got) != 0 {
		t.Fatalf("a new one remembers %v", got)
	}
	var refs []string
	for i := range rememberedDenials + 10 {
		refs = append(refs, d.denied(Denial{Reason: fmt.Sprint(i)}))
	}
	if _, ok := d.Denial(refs[9]); ok {
		t.Error("the tenth is remembered, and should have been forgotten")
	}
	if x, ok := d.Denial(strings.ToLower(refs[10])); !ok || x.Reason != "10" {
		t.Errorf("the eleventh is %v, %v", x, ok)
	}
	last := d.Denials()
	if len(last) != rememberedDenials || last[0].Ref != refs[len(refs)-1] || last[1].Ref != refs[len(refs)-2] {
		t.Errorf("the last two are %v", last[:2])
	}
}
