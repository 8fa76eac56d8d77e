// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"time"

	"github.com/assay-id/assay/agent/process"
	"github.com/assay-id/assay/bpf/record"
)

// refusals logs what the kernel refused others to do to the agent. Not for concurrent use.
type refusals struct {
	tasks process.Tasks
	log   *slog.Logger
	now   func() time.Time

	kinds map[record.Refused]*refusedKind
}

// refusedKind is one kind of tries. Each is logged once in refusalInterval, so that who tries all
// the time does not fill the disk; the kernel counts all of them.
type refusedKind struct {
	next   time.Time
	silent int
}

const refusalInterval = 10 * time.Second

func (r *refusals) report(e record.Event) {
	k := r.kinds[e.Refused]
	if k == nil {
		if r.kinds == nil {
			r.kinds = map[record.Refused]*refusedKind{}
		}
		k = &refusedKind{}
		r.kinds[e.Refused] = k
	}
	now := r.now()
	if now.Before(k.next) {
		k.silent++
		return
	}
	r.log.Warn("the kernel refused an attempt on the agent", "tried_to", e.Refused, "pid", e.Process.TGID, "uid", e.UID,
		"program", r.program(e), "exec_id", e.Process.ExecID, "cgroup", e.CgroupID, "not_logged_before", k.silent)
	k.next, k.silent = now.Add(refusalInterval), 0
}

// program is the path of the program that tried, or "" when that is gone.
func (r *refusals) program(e record.Event) string {
	p, err := process.Pin(r.tasks, e.Process)
	if err != nil {
		return ""
	}
	defer p.Close()
	path, err := p.ExecutablePath()
	if err != nil {
		return ""
	}
	return path
}
