// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/tester"
)

// Check compiles a policy as the server does, and says which questions it answers, and its digest.
// Its tests must compile too.
func Check(ctx context.Context, path, dataPath string) (answers []string, digest string, err error) {
	s, err := read(path, dataPath)
	if err != nil {
		return nil, "", err
	}
	if err := s.checkTests(); err != nil {
		return nil, "", err
	}
	var none []error
	for _, q := range []struct {
		name string
		of   []*question
	}{{"authorization", []*question{authz, spire}}, {"issuance", []*question{issue}}} {
		if _, err := prepare(ctx, s, q.of); err != nil {
			none = append(none, err)
		} else {
			answers = append(answers, q.name)
		}
	}
	if len(answers) == 0 {
		return nil, "", errors.Join(none...)
	}
	return answers, s.digest(), nil
}

func (s sources) all() map[string]string {
	all := maps.Clone(s.modules)
	maps.Copy(all, s.tests)
	return all
}

func (s sources) checkTests() error {
	_, err := sources{modules: s.all()}.compile()
	return err
}

// ErrTests: at least one test failed, or there is none.
var ErrTests = errors.New("the policy's tests failed")

// Test runs the rules test_… in the files *_test.rego, as `opa test` does and with what the server
// gives to policies, and writes what came of them to out.
func Test(ctx context.Context, path, dataPath string, verbose bool, out io.Writer) error {
	s, err := read(path, dataPath)
	if err != nil {
		return err
	}
	if err := s.checkTests(); err != nil {
		return err
	}
	modules, err := parse(s.all())
	if err != nil {
		return err
	}
	store := s.store()
	return storage.Txn(ctx, store, storage.TransactionParams{}, func(txn storage.Transaction) error {
		results, err := tester.NewRunner().SetCompiler(compiler()).SetStore(store).SetModules(modules).
			CapturePrintOutput(true).RaiseBuiltinErrors(true).RunTests(ctx, txn)
		if err != nil {
			return fmt.Errorf("run the policy's tests: %w", err)
		}
		return report(results, verbose, out)
	})
}

func report(results chan *tester.Result, verbose bool, out io.Writer) error {
	passed, failed := 0, 0
	shown := make(chan *tester.Result)
	done := make(chan error, 1)
	go func() { done <- tester.PrettyReporter{Output: out, Verbose: verbose, FailureLine: true}.Report(shown) }()
	for r := range results {
		if r.Pass() {
			passed++
		} else {
			failed++
		}
		shown <- r
	}
	close(shown)
	if err := <-done; err != nil {
		return fmt.Errorf("%w: %v", ErrTests, err)
	}
	switch {
	case failed > 0:
		return ErrTests
	case passed == 0:
		return fmt.Errorf("%w: there are none; write rules test_… into a file *_test.rego", ErrTests)
	}
	return nil
}
