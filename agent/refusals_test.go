// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// nobody knows no process.
type nobody struct{}

func (nobody) Key(int) (selectors.ProcessKey, error) {
	return selectors.ProcessKey{}, errors.New("gone")
}

func TestRefusalsAreLoggedOnceInAWhile(t *testing.T) {
	var out strings.Builder
	now := time.Unix(0, 0)
	r := refusals{tasks: nobody{}, log: slog.New(slog.NewTextHandler(&out, nil)), now: func() time.Time { return now }}
	logged := func() string {
		defer out.Reset()
		return out.String()
	}
	try := record.Event{Kind: record.EventRefused, Refused: 2, UID: 7, Process: selectors.ProcessKey{TGID: 4242}}
	r.report(try)
	if got := logged(); !strings.Contains(got, "signal") || !strings.Contains(got, "pid=4242") || !strings.Contains(got, "uid=7") {
		t.Errorf("the first: %q", got)
	}
	for range 3 {
		r.report(try)
	}
	if got := logged(); got != "" {
		t.Errorf("at once again: %q", got)
	}
	try.Refused = 3
	if r.report(try); !strings.Contains(logged(), "files") {
		t.Error("another kind is not logged")
	}
	now = now.Add(refusalInterval)
	try.Refused = 2
	if r.report(try); !strings.Contains(logged(), "not_logged_before=3") {
		t.Error("those that were not logged are not told")
	}
}
