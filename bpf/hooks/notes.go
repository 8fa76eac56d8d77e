// SPDX-License-Identifier: Apache-2.0

package hooks

import "slices"

// Hooks returns what has been noted of each hook.
func (o *Object) Hooks() []Hook { return slices.Clone(o.hooks) }

// Note replaces what is noted of some programs.
func (o *Object) Note(state State, detail string, programs ...string) {
	for _, program := range programs {
		h := Hook{o.Section(program), program, state, detail}
		if i := o.noted(program); i >= 0 {
			o.hooks[i] = h
		} else {
			o.hooks = append(o.hooks, h)
		}
	}
}

// noted returns where in the notes a program is, or -1.
func (o *Object) noted(program string) int {
	return slices.IndexFunc(o.hooks, func(h Hook) bool { return h.Program == program })
}

// NoteOthers notes those programs of which nothing is noted yet.
func (o *Object) NoteOthers(state State, detail string, programs ...string) {
	for _, program := range programs {
		if o.noted(program) < 0 {
			o.Note(state, detail, program)
		}
	}
}

// NoteAlternatives completes the notes on sets of which one is enough, strongest first: what
// comes behind a set that works is not needed, what comes before it is unavailable.
func (o *Object) NoteAlternatives(sets [][]string, unavailable string) {
	var works string
	for _, set := range sets {
		switch {
		case o.On(set[0]):
			works = o.Section(set[0])
		case works != "":
			o.NoteOthers(Off, "not needed beside "+works, set...)
		default:
			o.NoteOthers(Unavailable, unavailable, set...)
		}
	}
}

// Refusal says which of some programs' hooks is unavailable, and why; "" if none is.
func (o *Object) Refusal(programs ...string) string {
	for _, program := range programs {
		if i := o.noted(program); i >= 0 && o.hooks[i].State == Unavailable {
			return o.hooks[i].Name + ": " + o.hooks[i].Detail
		}
	}
	return ""
}
