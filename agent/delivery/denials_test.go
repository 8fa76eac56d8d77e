// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"fmt"
	"strings"
	"testing"
)

func TestDenials(t *testing.T) {
	d := NewDenials()
	if got := d.Last(5); len(got) != 0 {
		t.Fatalf("a new one remembers %v", got)
	}
	var refs []string
	for i := range rememberedDenials + 10 {
		refs = append(refs, d.add(Denial{Reason: fmt.Sprint(i)}))
	}
	if _, ok := d.Find(refs[9]); ok {
		t.Error("the tenth is remembered, and should have been forgotten")
	}
	if x, ok := d.Find(strings.ToLower(refs[10])); !ok || x.Reason != "10" {
		t.Errorf("the eleventh is %v, %v", x, ok)
	}
	last := d.Last(2)
	if len(last) != 2 || last[0].Ref != refs[len(refs)-1] || last[1].Ref != refs[len(refs)-2] {
		t.Errorf("the last two are %v", last)
	}
}
