// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"crypto/md5"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
)

// noted is what dpkg knows of a file; its name does not begin with a slash.
type noted struct {
	name   string
	md5    [md5.Size]byte
	config bool
}

// pkg is an installed package.
type pkg struct {
	name, arch string
	conffiles  []noted
}

// parseStatus reads /var/lib/dpkg/status: the packages that are installed as a whole (deb822: paragraphs of
// "Field: value", where lines that begin with a blank go on).
func parseStatus(data []byte) ([]pkg, error) {
	var all []pkg
	var p pkg
	var field string
	installed := false
	end := func() {
		if installed && p.name != "" {
			all = append(all, p)
		}
		p, field, installed = pkg{}, "", false
	}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimRight(line, "\r\n")
		if line == "" {
			end()
			continue
		}
		if line[0] == ' ' || line[0] == '\t' {
			if field == "conffiles" {
				f, err := parseConffile(line)
				if err != nil {
					return nil, fmt.Errorf("status, line %d: %w", n, err)
				}
				p.conffiles = append(p.conffiles, f...)
			}
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("status, line %d: %.40q is not a field", n, line)
		}
		field, value = strings.ToLower(name), strings.TrimSpace(value)
		switch field {
		case "package":
			p.name = value
		case "architecture":
			p.arch = value
		case "status":
			installed = strings.HasSuffix(value, " ok installed")
		}
	}
	end()
	for _, p := range all {
		if strings.ContainsAny(p.name+p.arch, "/\x00") {
			return nil, fmt.Errorf("status: %.40q is not a package's name", p.name)
		}
	}
	return all, nil
}

// parseConffile reads " /path md5 [obsolete|remove-on-upgrade]"; new files have "newconffile" for the sum.
func parseConffile(line string) ([]noted, error) {
	text := strings.TrimSpace(line)
	for {
		cut, ok := strings.CutSuffix(text, " obsolete")
		if !ok {
			cut, ok = strings.CutSuffix(text, " remove-on-upgrade")
		}
		if !ok {
			break
		}
		text = cut
	}
	at := strings.LastIndexByte(text, ' ')
	if at < 0 {
		return nil, fmt.Errorf("%.40q is not a configuration file with its MD5", text)
	}
	name, ok := relative(text[:at])
	sum, known := parseMD5(text[at+1:])
	switch {
	case !ok:
		return nil, fmt.Errorf("%.40q is not a path", text[:at])
	case !known && text[at+1:] == "newconffile":
		return nil, nil
	case !known:
		return nil, fmt.Errorf("%.40q is not an MD5", text[at+1:])
	}
	return []noted{{name, sum, true}}, nil
}

// relative returns a path below the root without its first slash.
func relative(name string) (string, bool) {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	return clean, clean != "" && clean == strings.TrimPrefix(name, "/") && !strings.Contains(clean, "\x00")
}

// sums reads the package's md5sums: what it installed besides configuration files.
func (p *pkg) sums(database func(name string) ([]byte, error)) ([]noted, error) {
	data, err := database("info/" + p.name + ":" + p.arch + ".md5sums") // Multi-Arch: same
	if errors.Is(err, fs.ErrNotExist) {
		data, err = database("info/" + p.name + ".md5sums")
	}
	if err != nil {
		return nil, err
	}
	return parseSums(data)
}

// parseSums reads lines of MD5, two blanks and a path.
func parseSums(data []byte) ([]noted, error) {
	var all []noted
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		digits, name, _ := strings.Cut(line, "  ")
		sum, known := parseMD5(digits)
		name, ok := relative(strings.TrimPrefix(name, "./"))
		if !known || !ok {
			return nil, fmt.Errorf("md5sums, line %d: %.60q is not an MD5 with a path", n, line)
		}
		all = append(all, noted{name: name, md5: sum})
	}
	return all, nil
}

// diversion says that other packages' files of a name are elsewhere.
type diversion struct{ to, by string }

// parseDiversions reads triples of lines: path, where it is instead, and the package whose own file stays (":" is none).
func parseDiversions(data []byte) map[string]diversion {
	all := map[string]diversion{}
	lines := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	for ; len(lines) >= 3; lines = lines[3:] {
		from, ok1 := relative(lines[0])
		to, ok2 := relative(lines[1])
		if ok1 && ok2 {
			all[from] = diversion{to, lines[2]}
		}
	}
	return all
}

// choose returns the packages of those names, or all.
func choose(installed []pkg, names []string) ([]pkg, error) {
	if len(names) == 0 {
		return installed, nil
	}
	var chosen []pkg
	for _, name := range names {
		found := false
		for _, p := range installed {
			if name == p.name || name == p.name+":"+p.arch {
				chosen, found = append(chosen, p), true
			}
		}
		if !found {
			return nil, fmt.Errorf("the package %s is not installed there; name a file that ends in .deb, or install it", name)
		}
	}
	return chosen, nil
}
