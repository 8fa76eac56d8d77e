// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

// Config says where a policy is and how it is kept.
type Config struct {
	// Path of a *.rego file, or of a folder of them; *_test.rego are left to Test.
	Path string
	// DataPath is a JSON file with an object, which is data in the policy; "" for none.
	DataPath string
	// Timeout of one question; 0 is DefaultTimeout.
	Timeout time.Duration
	// Loaded is told of each change of the files: nil when the new policy is in use, an error when
	// it can not be, and the last good one goes on. May be nil.
	Loaded func(err error)
	Logger *slog.Logger
	Now    func() time.Time
}

// live is a policy that follows its files.
type live struct {
	cfg       Config
	questions []*question
	present   atomic.Pointer[policy]
	seen      string // digest of the files that were last looked at, or why they could not be
}

func open(cfg Config, questions ...*question) (*live, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	l := &live{cfg: cfg, questions: questions}
	s, err := read(cfg.Path, cfg.DataPath)
	if err != nil {
		return nil, err
	}
	p, err := prepare(context.Background(), s, questions)
	if err != nil {
		return nil, err
	}
	l.present.Store(p)
	l.seen = p.digest
	return l, nil
}

const lookEvery = 5 * time.Second

// Run takes changes of the files until ctx ends. A policy that does not compile is an error in the
// log and in Loaded, and the last good one goes on.
func (l *live) Run(ctx context.Context) { l.run(ctx, lookEvery) }

func (l *live) run(ctx context.Context, every time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
			l.look(ctx)
		}
	}
}

// look reads the files: contents rather than times, which tell nothing for sure.
func (l *live) look(ctx context.Context) {
	s, err := read(l.cfg.Path, l.cfg.DataPath)
	seen := ""
	if err == nil {
		seen = s.digest()
	} else {
		seen = err.Error()
	}
	if seen == l.seen {
		return
	}
	var p *policy
	if err == nil {
		p, err = prepare(ctx, s, l.questions)
	}
	if ctx.Err() != nil {
		return
	}
	l.seen = seen
	if err != nil {
		l.cfg.Logger.Error("the changed policy can not be used; the one before stays in force", "path", l.cfg.Path, "digest", l.Digest(), "error", err)
	} else {
		l.present.Store(p)
		l.cfg.Logger.Info("the changed policy is in force", "path", l.cfg.Path, "digest", p.digest)
	}
	if l.cfg.Loaded != nil {
		l.cfg.Loaded(err)
	}
}

// Digest is the SHA-256, in hex, of the policy in force: its modules, their names, and its data.
func (l *live) Digest() string { return l.present.Load().digest }

// Denied is a policy's no.
type Denied struct {
	// Reason in the policy's words; may be empty.
	Reason string
	// Digest of the policy.
	Digest string
}

func (d *Denied) Error() string {
	text := "denied by policy " + d.Digest[:min(len(d.Digest), 12)]
	if d.Reason != "" {
		text = d.Reason + " (" + text + ")"
	}
	return text
}
