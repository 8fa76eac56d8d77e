// SPDX-License-Identifier: Apache-2.0

package ima

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strings"
)

// AllowList is a set of SHA-256 digests of files that may run on a machine. The zero value is empty.
type AllowList struct {
	names map[Digest]string
}

// maxLine is more than a digest and the longest path, escaped.
const maxLine = 16 << 10

// ParseAllowList reads a list as sha256sum writes it: 64 hexadecimal digits, a blank, a blank or
// a star, and a name that is for people only; a backslash before the digits says that the name
// is escaped. Empty lines and lines that begin with # are left out.
func ParseAllowList(r io.Reader) (*AllowList, error) {
	l := &AllowList{names: map[Digest]string{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		text := strings.TrimSuffix(lines.Text(), "\r")
		if text == "" || text[0] == '#' {
			continue
		}
		digits, name, named := strings.Cut(strings.TrimPrefix(text, `\`), " ")
		b, err := hex.DecodeString(digits)
		if err != nil || len(b) != len(Digest{}) || (named && (len(name) < 2 || (name[0] != ' ' && name[0] != '*'))) {
			return nil, fmt.Errorf("allow-list: line %d is not a SHA-256 with a file's name; write the list with sha256sum", n)
		}
		if named {
			name = name[1:]
		}
		if text[0] == '\\' {
			name = unescaper.Replace(name)
		}
		l.names[Digest(b)] = name
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("allow-list: line %d: %w", n+1, err)
	}
	return l, nil
}

// Learn makes the list of all files that a golden machine measured, its boot aggregate aside. It fails
// on entries that no list can hold: violations, and digests other than SHA-256 of contents.
func Learn(entries []Entry) (*AllowList, error) {
	l := &AllowList{names: map[Digest]string{}}
	if unknown := Judge(entries, l); len(unknown) > 0 {
		for _, u := range unknown {
			d, ok := u.SHA256()
			if !ok {
				return nil, fmt.Errorf("allow-list: IMA entry %s; a golden machine must have none like it", u)
			}
			l.names[d] = u.Name
		}
	}
	return l, nil
}

// Add adds a file's digest with a name for people.
func (l *AllowList) Add(d Digest, name string) {
	if l.names == nil {
		l.names = map[Digest]string{}
	}
	l.names[d] = name
}

// Len is the number of digests.
func (l *AllowList) Len() int { return len(l.names) }

// Has reports whether a digest is in the list.
func (l *AllowList) Has(d Digest) bool {
	_, ok := l.names[d]
	return ok
}

// Write writes the list as ParseAllowList and sha256sum read it, ordered by name.
func (l *AllowList) Write(w io.Writer) error {
	digests := make([]Digest, 0, len(l.names))
	for d := range l.names {
		digests = append(digests, d)
	}
	slices.SortFunc(digests, func(a, b Digest) int {
		if c := strings.Compare(l.names[a], l.names[b]); c != 0 {
			return c
		}
		return slices.Compare(a[:], b[:])
	})
	out := bufio.NewWriter(w)
	for _, d := range digests {
		name := l.names[d]
		mark := ""
		if escaped := escaper.Replace(name); escaped != name {
			name, mark = escaped, `\`
		}
		if name == "" {
			name = "-"
		}
		fmt.Fprintf(out, "%s%s  %s\n", mark, d, name)
	}
	return out.Flush()
}

// Names are escaped as sha256sum does it (coreutils manual, cksum output modes).
var (
	escaper   = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`)
	unescaper = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r")
)

// Unknown is an entry that a list does not account for.
type Unknown struct {
	Entry
	// Reason is for people.
	Reason string
}

// String tells the entry in one line, without control characters.
func (u Unknown) String() string {
	if u.Violation {
		return fmt.Sprintf("%d: %s", u.Number, u.Reason)
	}
	return fmt.Sprintf("%d: %s:%x %.200q: %s", u.Number, u.Algorithm, u.FileDigest, u.Name, u.Reason)
}

// Judge returns the entries that the list does not account for, in order. The boot aggregate
// with which a log begins is none of them, since the machine's PCRs speak for it; buffers that the
// kernel measured are judged like files, because the log can not be trusted to tell them apart.
func Judge(entries []Entry, list *AllowList) []Unknown {
	var all []Unknown
	for _, e := range entries {
		d, ok := e.SHA256()
		switch {
		case e.Violation:
			all = append(all, Unknown{e, "a file was written while it was measured (violation)"})
		case e.Number == 0 && e.Name == bootAggregate:
		case !ok:
			all = append(all, Unknown{e, "measured otherwise than by SHA-256 of the content; boot with ima_hash=sha256"})
		case !list.Has(d):
			all = append(all, Unknown{e, "not in the allow-list"})
		}
	}
	return all
}

// Find returns the first entry with a file of that digest, such as the agent's own program.
func Find(entries []Entry, file Digest) (Entry, bool) {
	for _, e := range entries {
		if d, ok := e.SHA256(); ok && d == file {
			return e, true
		}
	}
	return Entry{}, false
}
