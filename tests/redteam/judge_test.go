// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	note := map[string]string{"T2": "note"}
	for name, c := range map[string]struct {
		attack    Attack
		tier      string
		got, peer Outcome
		wrong     string
	}{
		"held":                 {Attack{}, "T2", Refused, Delivered, ""},
		"not held":             {Attack{}, "T2", Delivered, Delivered, "identity was delivered"},
		"open":                 {Attack{Open: note}, "T2", Delivered, Delivered, ""},
		"open at another tier": {Attack{Open: note}, "T1", Delivered, Delivered, "identity was delivered"},
		"open, but held":       {Attack{Open: note}, "T2", NoIdentity, Delivered, "holds now"},
		"limit":                {Attack{Limit: note}, "T2", Delivered, Delivered, ""},
		"limit, but held":      {Attack{Limit: note}, "T2", Denied, Delivered, "holds now"},
		"control":              {Attack{Control: true}, "T2", Delivered, Delivered, ""},
		"control refused":      {Attack{Control: true}, "T2", Refused, Delivered, "got nothing"},
		"no attestor":          {Attack{Control: true}, "T2", Delivered, NoIdentity, "got nothing"},
		"price":                {Attack{Control: true, Price: note}, "T2", Refused, Delivered, ""},
		"price, but served":    {Attack{Control: true, Price: note}, "T2", Delivered, Delivered, "holds now"},
	} {
		wrong := c.attack.Judge(Result{Tier: c.tier, Outcome: c.got, PeerCred: c.peer})
		if (wrong == "") != (c.wrong == "") || !strings.Contains(wrong, c.wrong) {
			t.Errorf("%s: %q, want %q", name, wrong, c.wrong)
		}
	}
}

func TestCompare(t *testing.T) {
	r := Result{"6.18", "T2", "fork", Refused, Delivered, "why | so"}
	if got, ok := ParseResult("noise " + r.String()); !ok || got != r {
		t.Errorf("read %+v, %v", got, ok)
	}
	other := r
	other.Kernel = "6.1"
	changed, fooled := r, r
	changed.Outcome, fooled.PeerCred = Delivered, NoIdentity
	for name, c := range map[string]struct {
		committed, run []Result
		differences    int
	}{
		"same": {[]Result{other, r}, []Result{r}, 0}, "no run": {[]Result{r}, nil, 1}, "new row": {[]Result{other}, []Result{r}, 1},
		"outcome": {[]Result{r}, []Result{changed}, 1}, "old attestor": {[]Result{r}, []Result{fooled}, 1},
	} {
		if d := Compare(c.committed, c.run); len(d) != c.differences {
			t.Errorf("%s: %q", name, d)
		}
	}
}

func TestUpdate(t *testing.T) {
	root := t.TempDir()
	for _, path := range []string{ResultsFile, DocumentFile} {
		check(os.MkdirAll(filepath.Join(root, filepath.Dir(path)), 0o755))
	}
	old := Result{"6.1", "T1", "fork", Refused, Delivered, "old"}
	check(Update(root, []Result{old}))
	now := Result{"6.18", "T2", "fork", Refused, Delivered, "now"}
	check(Update(root, []Result{now}))
	now.Outcome = Delivered
	check(Update(root, []Result{now}))
	got := must(ReadResults(filepath.Join(root, ResultsFile)))
	if len(got) != 2 || got[0] != now || got[1] != old {
		t.Errorf("got %v", got)
	}
	page := string(must(os.ReadFile(filepath.Join(root, DocumentFile))))
	for _, want := range []string{"| T2, 6.18 | T1, 6.1 | SO_PEERCRED |", "| **delivered** | refused | **named the victim** |", "**missing**"} {
		if !strings.Contains(page, want) {
			t.Errorf("%q is missing", want)
		}
	}
}

func FuzzParseResult(f *testing.F) {
	f.Add("REDTEAM 6.1 | T1 | fork | refused | delivered | why")
	f.Add("x REDTEAM  |  |  |  |  | ")
	f.Fuzz(func(t *testing.T, line string) {
		r, ok := ParseResult(line)
		if !ok {
			return
		}
		if again, ok := ParseResult(r.String()); !ok || again != r {
			t.Errorf("%q is read as %+v, and then as %+v", line, r, again)
		}
	})
}
