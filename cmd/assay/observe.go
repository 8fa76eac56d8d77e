// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/observe"
)

// get asks a daemon's socket beside its admin socket. The answer is the caller's to close.
func get(ctx context.Context, admin, path string) (*http.Response, error) {
	socket := observe.SocketBeside(admin)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("nobody answers on %s (%w): is it running, and are you root?", socket, errors.Unwrap(err))
	}
	return resp, nil
}

// health is a command that tells of a daemon's parts. Its exit status is 0 if the daemon does its work.
func (a *app) health(daemon string, admin *string) *cobra.Command {
	var live bool
	c := &cobra.Command{Use: "healthcheck", Short: "Tells by its exit status whether the " + daemon + " does its work, and how its parts are", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		path := "/ready"
		if live {
			path = "/live"
		}
		resp, err := get(c.Context(), *admin, path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var parts map[string]struct {
			Fault string `json:"fault,omitempty"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&parts); err != nil {
			return fmt.Errorf("the %s is not healthy: it does not answer in time (%s)", daemon, resp.Status)
		}
		if resp.StatusCode != http.StatusOK {
			var faults []string
			for _, name := range slices.Sorted(maps.Keys(parts)) {
				if f := parts[name].Fault; f != "" {
					faults = append(faults, name+": "+f)
				}
			}
			return fmt.Errorf("the %s is not healthy: %s", daemon, strings.Join(faults, "; "))
		}
		return a.Show(parts, func(w io.Writer) {
			fmt.Fprintf(w, "The %s is healthy.\n", daemon)
			for _, name := range slices.Sorted(maps.Keys(parts)) {
				if f := parts[name].Fault; f != "" {
					fmt.Fprintf(w, "%s\t%s\n", name, f)
				}
			}
		})
	}}
	c.Flags().BoolVar(&live, "live", false, "ask only whether it hangs")
	return c
}

// profile is a command that writes what a daemon does, for `go tool pprof` and `go tool trace`.
func profile(daemon string, admin *string) *cobra.Command {
	kinds := map[string]string{"cpu": "profile", "trace": "trace", "heap": "heap", "allocs": "allocs", "goroutine": "goroutine", "mutex": "mutex", "block": "block"}
	names := strings.Join(slices.Sorted(maps.Keys(kinds)), ", ")
	var seconds int
	c := &cobra.Command{Use: "profile KIND", Short: "Writes what the " + daemon + " does to standard output, for `go tool pprof`; the kinds are " + names, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		kind, ok := kinds[args[0]]
		if !ok {
			return fmt.Errorf("there is no profile %q: the kinds are %s", args[0], names)
		}
		query := url.Values{}
		if kind == "profile" || kind == "trace" {
			query.Set("seconds", strconv.Itoa(seconds))
		}
		resp, err := get(c.Context(), *admin, "/debug/pprof/"+kind+"?"+query.Encode())
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			return fmt.Errorf("no profile (%s): %s", resp.Status, strings.TrimSpace(string(text)))
		}
		_, err = io.Copy(c.OutOrStdout(), resp.Body)
		return err
	}}
	c.Flags().IntVar(&seconds, "seconds", 10, "how long, for cpu and trace")
	return c
}
