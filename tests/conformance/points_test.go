// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// A requirement is a line of requirements.tsv. With a reason in outside no test can decide it.
type requirement struct{ id, level, source, text, outside string }

//go:embed requirements.tsv
var table string

var requirements = func() (all []requirement) {
	for line := range strings.Lines(table) {
		if c := strings.Split(strings.TrimRight(line, "\n"), "\t"); !strings.HasPrefix(line, "#") {
			all = append(all, requirement{c[0], c[1], c[2], c[3], c[4]})
		}
	}
	return all
}()

// A probe is a test of one point; what it reports goes into the report, too.
type probe struct {
	*testing.T
	said []string
	left string // why the point does not apply
}

func (p *probe) Errorf(format string, args ...any) {
	p.Helper()
	p.said = append(p.said, fmt.Sprintf(format, args...))
	p.T.Errorf(format, args...)
}

func (p *probe) Fatalf(format string, args ...any) {
	p.Helper()
	p.Errorf(format, args...)
	p.FailNow()
}

// must ends the probe on an error.
func (p *probe) must(what string, err error) {
	p.Helper()
	if err != nil {
		p.Fatalf("%s: %v", what, err)
	}
}

// A result is what became of a point.
type result struct {
	state string // pass, FAIL or not asked
	note  string
}

var results = struct {
	sync.Mutex
	of map[string]result
}{of: map[string]result{}}

// A need is what a point can not be asked without.
type need struct {
	met func() bool
	why string
}

// point runs the subtest of one requirement, if its needs are met.
func point(t *testing.T, id string, f func(p *probe), needs ...need) {
	t.Helper()
	i := slices.IndexFunc(requirements, func(r requirement) bool { return r.id == id })
	if i < 0 || requirements[i].outside != "" {
		t.Fatalf("%s is not in requirements.tsv, or stands there as not testable", id)
	}
	r := requirements[i]
	set := func(v result) {
		results.Lock()
		defer results.Unlock()
		if results.of[id].state != "FAIL" {
			results.of[id] = v
		}
	}
	for _, n := range needs {
		if !n.met() {
			set(result{"not asked", n.why})
			return
		}
	}
	t.Run(id, func(t *testing.T) {
		p := &probe{T: t}
		t.Cleanup(func() {
			v := result{state: "pass"}
			if p.left != "" {
				v = result{"not asked", p.left}
			}
			if t.Failed() {
				v = result{"FAIL", "?"}
				if len(p.said) > 0 {
					v.note = p.said[0]
				}
				if n := len(p.said) - 1; n > 0 {
					v.note += fmt.Sprintf(" (and %d more)", n)
				}
			}
			set(v)
		})
		t.Logf("%s, %s: %s", r.level, r.source, r.text)
		settle(p)
		f(p)
	})
}
