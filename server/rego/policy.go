// SPDX-License-Identifier: Apache-2.0

// Package rego asks operators' policies, written in Rego, two questions:
//
//	package assay.authz   may this caller make this call?            Authorization
//	package assay.issue   may this SVID be signed, and for how long? Issuance
//	package spire         SPIRE's authorization policies, as they are
//
// A policy sees what it is given and nothing else: it can not reach the network, the disk or the
// environment, and asked the same it answers the same. What it does not clearly allow is refused:
// an error, an answer of another shape and one that takes too long are no answers.
//
// It is the only package that knows Open Policy Agent.
package rego

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// DefaultTimeout is how long a policy may think about one question.
const DefaultTimeout = 100 * time.Millisecond

// question is one that policies are asked.
type question struct {
	rule  string // that the policy must have
	query string // binds the answer to x
}

// A comprehension makes what a policy does not define an empty list: one evaluation answers all.
var (
	authz = &question{"data.assay.authz.allow", `x := {"allow": [v | v := data.assay.authz.allow], "reason": [v | v := data.assay.authz.reason]}`}
	spire = &question{"data.spire.result", `x := [v | v := data.spire.result]`}
	issue = &question{"data.assay.issue.result", `x := [v | v := data.assay.issue.result]`}
)

// policy is one that was read and compiled, ready for its question.
type policy struct {
	digest   string // of the sources, hex
	question *question
	query    rego.PreparedEvalQuery
}

// prepare compiles the sources for the question of those that they have a rule for. Errors name the
// file and the line.
func prepare(ctx context.Context, s sources, questions []*question) (*policy, error) {
	c, err := s.compile()
	if err != nil {
		return nil, err
	}
	asked := slices.DeleteFunc(slices.Clone(questions), func(q *question) bool { return len(c.GetRulesExact(ast.MustParseRef(q.rule))) == 0 })
	switch len(asked) {
	case 0:
		return nil, fmt.Errorf("the policy has no rule %s; write one", strings.TrimPrefix(questions[0].rule, "data."))
	case 2:
		return nil, fmt.Errorf("the policy has both rules %s and %s; remove one", strings.TrimPrefix(asked[0].rule, "data."), strings.TrimPrefix(asked[1].rule, "data."))
	}
	prepared, err := rego.New(
		rego.Query(asked[0].query), rego.Compiler(c), rego.Store(s.store()), rego.StoreReadAST(true),
		// Without it, a condition with an error in it would just not hold, also one of a denial.
		rego.StrictBuiltinErrors(true),
	).PrepareForEval(ctx)
	if err != nil {
		return nil, fmt.Errorf("prepare the policy: %w", err)
	}
	return &policy{s.digest(), asked[0], prepared}, nil
}

// ErrTimeout: the policy took too long.
var ErrTimeout = errors.New("the policy did not answer in time; simplify it, or raise its timeout")

// ask evaluates the policy. The answer is JSON as package encoding/json decodes it, numbers as json.Number.
func (p *policy) ask(ctx context.Context, input map[string]any, now time.Time, timeout time.Duration) (any, error) {
	v, err := ast.InterfaceToValue(input)
	if err != nil {
		return nil, fmt.Errorf("what the policy is asked: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	rs, err := p.query.Eval(bounded, rego.EvalParsedInput(v), rego.EvalTime(now))
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, ctx.Err()
	case bounded.Err() != nil:
		return nil, ErrTimeout
	case err != nil:
		return nil, fmt.Errorf("evaluate the policy: %w", err)
	case len(rs) != 1:
		return nil, fmt.Errorf("evaluate the policy: %d answers to one question", len(rs))
	}
	return rs[0].Bindings["x"], nil
}

// sources are a policy's files: modules, by their names below its folder, and its data.
type sources struct {
	modules map[string]string
	tests   map[string]string // modules that only its tests use
	data    map[string]any
	raw     string // of data
}

// digest names the policy: the same files, the same digest.
func (s sources) digest() string {
	h := sha256.New()
	add := func(text string) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(text))))
		h.Write([]byte(text))
	}
	for _, name := range sortedKeys(s.modules) {
		add(name)
		add(s.modules[name])
	}
	add(s.raw)
	return hex.EncodeToString(h.Sum(nil))
}

func (s sources) store() storage.Store {
	return inmem.NewFromObjectWithOpts(s.data, inmem.OptReturnASTValuesOnRead(true))
}

func (s sources) compile() (*ast.Compiler, error) {
	modules, err := parse(s.modules)
	if err != nil {
		return nil, err
	}
	c := compiler()
	if c.Compile(modules); c.Failed() {
		return nil, located(c.Errors)
	}
	return c, nil
}

func compiler() *ast.Compiler {
	return ast.NewCompiler().WithStrict(true).WithCapabilities(capabilities())
}

// capabilities are OPA's without all that is not a function of its arguments (network, environment,
// random numbers), but for the time, which the question brings. Schemas could be of the network, too.
func capabilities() *ast.Capabilities {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return b.Nondeterministic && b.Name != ast.NowNanos.Name || strings.HasPrefix(b.Name, "net.lookup") || b.Name == ast.JSONMatchSchema.Name || b.Name == ast.JSONSchemaVerify.Name
	})
	c.AllowNet = []string{}
	return c
}

func parse(texts map[string]string) (map[string]*ast.Module, error) {
	modules := map[string]*ast.Module{}
	for _, name := range sortedKeys(texts) {
		m, err := ast.ParseModuleWithOpts(name, texts[name], ast.ParserOptions{Capabilities: capabilities(), RegoVersion: ast.RegoV1})
		if err != nil {
			return nil, located(err)
		}
		if m == nil {
			return nil, fmt.Errorf("%s: the file is empty; write a package, or remove it", name)
		}
		modules[name] = m
	}
	return modules, nil
}

// located keeps the first few of OPA's errors, each of which begins with file:line.
func located(err error) error {
	var all ast.Errors
	if !errors.As(err, &all) {
		return err
	}
	const most = 3
	texts := make([]string, 0, most)
	for _, e := range all[:min(len(all), most)] {
		texts = append(texts, fmt.Sprintf("%s:%d: %s", e.Location.File, e.Location.Row, e.Message))
	}
	if more := len(all) - most; more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return errors.New(strings.Join(texts, "; "))
}
