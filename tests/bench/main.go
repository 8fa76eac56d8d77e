// SPDX-License-Identifier: Apache-2.0

// Command bench measures what docs/benchmarks.md quotes, each figure as a ratio to the
// physical limit in the same run, the two sides in turn, because machines are noisy.
//
//	bench fetch        cold FetchX509SVID against a bare gRPC server that sends the same bytes
//	bench calls        what an open connection asks for, against a bare gRPC server that signs and checks
//	bench entries [n]  an agent with many entries (10000): its memory, and from its start until it has them
//	bench kernel       what every process does, with the sensor in the kernel and without
//	bench propagate    a change of an entry until the open stream has the new SVID
//	bench streams [n]  an agent with open streams (10000): memory, a rotation of all, the end of one
//	bench agents [n]   a server with a crowd of agents (10000): memory, who is told when, a storm; then a bare broadcast
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := context.Background()
	switch {
	case len(args) == 3 && args[0] == "bare":
		return bare(args[1], args[2])
	case len(args) == 3 && args[0] == "signer":
		return beSigner(args[1], args[2])
	case len(args) == 2 && args[0] == "broadcast":
		return broadcast(args[1])
	case len(args) == 2 && args[0] == "closer":
		return closer(ctx, args[1])
	case len(args) == 3 && args[0] == "closing":
		return closing(args[1], args[2])
	case len(args) == 1 && args[0] == "kernel":
		return kernelCost()
	case len(args) == 1 && args[0] == "fetch":
		return with(ctx, "", fetch)
	case len(args) == 1 && args[0] == "calls":
		return with(ctx, unlimited, calls)
	case len(args) == 1 && args[0] == "propagate":
		return with(ctx, "", propagate)
	case len(args) > 0 && len(args) < 3 && slices.Contains([]string{"agents", "streams", "entries"}, args[0]):
		n := 10_000
		if len(args) == 2 {
			var err error
			if n, err = strconv.Atoi(args[1]); err != nil || n < 1 {
				return fmt.Errorf("%q: how many %s?", args[1], args[0])
			}
		}
		switch args[0] {
		case "streams":
			return streams(ctx, n)
		case "entries":
			return with(ctx, "", entries(n))
		}
		return agents(ctx, n)
	}
	return errors.New("usage: bench fetch | calls | entries [n] | kernel | propagate | streams [n] | agents [n]")
}

// with runs f on a machine of its own, whose agent has these lines of configuration.
func with(ctx context.Context, agent string, f func(context.Context, *dev.Env) error) (err error) {
	env, err := dev.Start(ctx, dev.Options{Agent: agent + os.Getenv("BENCH_AGENT")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, env.Close()) }()
	return f(ctx, env)
}

// sample is the durations of one side.
type sample []time.Duration

func (s sample) at(q float64) time.Duration {
	s = slices.Clone(s)
	slices.Sort(s)
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// compare prints both sides and their ratios.
func compare(what string, ours, limit sample, name string) {
	fmt.Printf("%s, %d pairs\n", what, len(ours))
	for _, q := range []float64{0.1, 0.5, 0.99} {
		a, b := ours.at(q), limit.at(q)
		fmt.Printf("  p%-3g %10s   %s %10s   ratio %.3f\n", q*100, a.Round(10*time.Nanosecond), name, b.Round(10*time.Nanosecond), float64(a)/float64(b))
	}
}

// start runs this program in another role until stop is called.
func start(args ...string) (stop func(), err error) {
	_, stop, err = startProcess(args...)
	return stop, err
}

func startProcess(args ...string) (pid int, stop func(), err error) {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	return cmd.Process.Pid, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }, nil
}

func waitFor(path string) error {
	for range 500 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("%s did not appear", filepath.Base(path))
}
