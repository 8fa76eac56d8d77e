// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/assay-id/assay/server/api"
	"github.com/assay-id/assay/server/rego"
)

// PolicyConfig says where a policy in Rego is (docs/policy.md). It is read again when its files change.
type PolicyConfig struct {
	// PolicyPath is a *.rego file, or a folder of them.
	PolicyPath string `hcl:"policy_path"`
	// DataPath is a JSON file that the policy sees as data (default: none).
	DataPath string `hcl:"policy_data_path,optional"`
	// Timeout of one question (default 100ms).
	Timeout string `hcl:"timeout,optional"`
}

// AuthorizationConfig is the block `authorization`: a policy of who may call what.
type AuthorizationConfig struct {
	// PolicyPath, DataPath and Timeout are those of PolicyConfig.
	PolicyPath string `hcl:"policy_path"`
	DataPath   string `hcl:"policy_data_path,optional"`
	Timeout    string `hcl:"timeout,optional"`
	// Mode "and" (default): the table of methods and the roles must allow a call, and so must the policy,
	// but for the local socket. "replace": for operators' methods the policy alone decides.
	Mode string `hcl:"mode,optional"`
}

// policies are read when the configuration is, so that a broken one stops the start and `validate`.
func (p *prepared) readPolicies() error {
	if c := p.Authorization; c != nil {
		if c.Mode != "" && c.Mode != modeAnd && c.Mode != modeReplace {
			return fmt.Errorf("authorization: mode %q: write %q or %q", c.Mode, modeAnd, modeReplace)
		}
		conf, err := PolicyConfig{c.PolicyPath, c.DataPath, c.Timeout}.read()
		if err != nil {
			return fmt.Errorf("authorization: %w", err)
		}
		if _, err := rego.OpenAuthorization(conf); err != nil {
			return err
		}
		p.authorization = &conf
	}
	if p.Issuance != nil {
		conf, err := p.Issuance.read()
		if err != nil {
			return fmt.Errorf("issuance: %w", err)
		}
		if _, err := rego.OpenIssuance(conf); err != nil {
			return err
		}
		p.issuance = &conf
	}
	return nil
}

const (
	modeAnd     = "and"
	modeReplace = "replace"
)

func (c PolicyConfig) read() (rego.Config, error) {
	conf := rego.Config{Path: c.PolicyPath, DataPath: c.DataPath, Now: time.Now}
	for name, path := range map[string]string{"policy_path": c.PolicyPath, "policy_data_path": c.DataPath} {
		if !filepath.IsAbs(path) && (path != "" || name == "policy_path") {
			return conf, fmt.Errorf("%s %q: write an absolute path", name, path)
		}
	}
	if c.Timeout != "" {
		d, err := time.ParseDuration(c.Timeout)
		if err != nil || d < time.Millisecond || d > time.Minute {
			return conf, fmt.Errorf("timeout %q: write a time from 1ms to 1m", c.Timeout)
		}
		conf.Timeout = d
	}
	return conf, nil
}

// The policies' names in the health service and in the log.
const (
	authorizationPolicy = "authorization_policy"
	issuancePolicy      = "issuance_policy"
)

// openPolicies reads the policies for good. Health of a policy is whether its files, as they are now, are in force.
func (s *Server) openPolicies() (api.Policies, error) {
	out := api.Policies{X509TTL: s.conf.svidTTL, JWTTTL: s.conf.jwtTTL}
	watched := func(c *rego.Config, part string) rego.Config {
		conf := *c
		conf.Logger = s.log.With("policy", part)
		conf.Loaded = func(err error) { s.api.SetHealth(part, err == nil) }
		return conf
	}
	var err error
	if c := s.conf.authorization; c != nil {
		out.Replaces = s.conf.Authorization.Mode == modeReplace
		if out.Authorization, err = rego.OpenAuthorization(watched(c, authorizationPolicy)); err != nil {
			return out, err
		}
		s.log.Info("calls are judged by a policy", "path", c.Path, "digest", out.Authorization.Digest(), "replaces_table", out.Replaces)
	}
	if c := s.conf.issuance; c != nil {
		if out.Issuance, err = rego.OpenIssuance(watched(c, issuancePolicy)); err != nil {
			return out, err
		}
		s.log.Info("SVIDs are judged by a policy", "path", c.Path, "digest", out.Issuance.Digest())
	}
	return out, nil
}

// runPolicies follows the policies' files until ctx ends.
func (s *Server) runPolicies(ctx context.Context) {
	var all sync.WaitGroup
	if p := s.policies.Authorization; p != nil {
		s.api.SetHealth(authorizationPolicy, true)
		all.Go(func() { p.Run(ctx) })
	}
	if p := s.policies.Issuance; p != nil {
		s.api.SetHealth(issuancePolicy, true)
		all.Go(func() { p.Run(ctx) })
	}
	all.Wait()
}
