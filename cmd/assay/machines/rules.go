// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/cmd/config"
	adminpb "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/policy"
)

func (a *app) tpmCheck() *cobra.Command {
	var name, path string
	c := &cobra.Command{
		Use:   "check [--policy FILE]",
		Short: "Tells which admitted nodes the configured rules, or those of a file, would refuse, and why; changes nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			req := &adminpb.CheckNodesRequest{Group: name}
			if path != "" {
				var err error
				if req.Groups, err = readPolicy(path); err != nil {
					return err
				}
			}
			return a.onNodes(func(client adminpb.NodeAdminClient) error {
				resp, err := client.CheckNodes(c.Context(), req)
				if err != nil {
					return err
				}
				return a.Show(resp, func(w io.Writer) { showFindings(w, resp) })
			})
		},
	}
	c.Flags().StringVar(&name, "group", "", "judge all nodes by this node_group (default: each by its own)")
	c.Flags().StringVar(&path, "policy", "", "file with blocks node_group, to try in place of those that the server's configuration calls the same")
	return c
}

// readPolicy reads blocks node_group as the server's configuration has them, and the files that they name.
func readPolicy(path string) ([]*adminpb.NodeGroup, error) {
	var conf struct {
		Groups []policy.GroupConfig `hcl:"node_group,block"`
	}
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := config.Parse(path, src, &conf); err != nil {
		return nil, err
	}
	if len(conf.Groups) == 0 {
		return nil, fmt.Errorf("%s has no block node_group \"name\" { … }", path)
	}
	var groups []*adminpb.NodeGroup
	for _, g := range conf.Groups {
		sent := &adminpb.NodeGroup{Files: map[string][]byte{}}
		_, err := g.Group(func(path string) (data []byte, err error) {
			data, err = os.ReadFile(path)
			sent.Files[path] = data
			return data, err
		})
		if wrong, ok := errors.AsType[*policy.KeyError](err); ok {
			return nil, config.At(path, src, "node_group", wrong.Group, wrong.Key, err)
		} else if err != nil {
			return nil, err
		}
		if sent.Config, err = json.Marshal(g); err != nil {
			return nil, fmt.Errorf("encode the node_group %q: %w", g.Name, err)
		}
		groups = append(groups, sent)
	}
	return groups, nil
}

func showFindings(w io.Writer, resp *adminpb.CheckNodesResponse) {
	for _, n := range resp.Refused {
		fmt.Fprintln(w, n.SpiffeId)
		if n.Error != "" {
			fmt.Fprintf(w, "  can not be judged\t%s\n", n.Error)
		}
		for _, f := range n.Findings {
			fmt.Fprintf(w, "  %s\texpected %s, found %s", f.Rule, f.Expected, f.Found)
			if f.Event != "" {
				fmt.Fprintf(w, " (%s)", f.Event)
			}
			fmt.Fprintln(w)
		}
	}
	for _, id := range resp.FilesUnknown {
		fmt.Fprintf(w, "%s\n  ima_allow\tnot judged: this server knows its files from its next attestation on\n", id)
	}
	fmt.Fprintf(w, "%d of %d nodes would be refused\n", len(resp.Refused), resp.Judged)
}

func (a *app) tpmLearn() *cobra.Command {
	var path, golden, list, name string
	c := &cobra.Command{
		Use:   "learn --golden FILE",
		Short: "Writes down what this machine booted, as the golden machine of a node_group; run it on a machine that you trust",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := snapshot(c.Context(), path)
			if err != nil {
				return err
			}
			g, files, err := policy.Learn(s, name, time.Now())
			if err != nil {
				return err
			}
			data, err := json.MarshalIndent(g, "", "  ")
			if err != nil {
				return fmt.Errorf("encode the golden machine: %w", err)
			}
			if err := os.WriteFile(golden, append(data, '\n'), 0o644); err != nil {
				return err
			}
			if list == "" {
				return nil
			}
			return writeList(list, files)
		},
	}
	c.Flags().StringVar(&path, "device", "/dev/tpmrm0", "the TPM")
	c.Flags().StringVar(&golden, "golden", "golden.json", "file to write, for golden in a node_group")
	c.Flags().StringVar(&list, "ima", "", "file to write the measured files to, for ima_allow in a node_group")
	c.Flags().StringVar(&name, "name", cli.Hostname(), "what to call the machine")
	return c
}

func writeList(path string, files *ima.AllowList) error {
	if files == nil {
		return errors.New("this machine has no IMA log: boot its kernel with ima_policy=tcb, or leave --ima out")
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(files.Write(f), f.Close())
}

// snapshot reads PCRs 0 to 15 and the logs. The quote is asked for only to read the PCRs at one moment.
func snapshot(ctx context.Context, path string) (s policy.Snapshot, err error) {
	d, err := device.Open(ctx, device.Config{Path: path})
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	key, err := anyKey(d)
	if err != nil {
		return s, err
	}
	q := tpm.Question{Version: tpm.Version, Nonce: make([]byte, tpm.NonceSize)}
	if _, err := rand.Read(q.Nonce); err != nil {
		return s, fmt.Errorf("random: %w", err)
	}
	for n := range 16 {
		q.PCRs = append(q.PCRs, n)
	}
	answer, err := d.Requote(key, q, make([]byte, tpm.BindingSize), tpm.History{})
	if err != nil {
		return s, err
	}
	s.PCRs = map[int]selectors.Digest{}
	for n, v := range answer.PCRValues {
		s.PCRs[n] = selectors.Digest(v)
	}
	logs := device.MachineLogs(path)
	if s.BootLog, err = logs.BootLog(); err != nil {
		return s, err
	}
	if s.CommandLine, err = logs.CommandLineText(); err != nil {
		return s, err
	}
	for part := answer.IMALog; ; {
		s.IMALog = append(s.IMALog, part.IMA...)
		if !part.IMAMore {
			return s, nil
		}
		if part, err = logs.IMALog(int64(len(s.IMALog))); err != nil {
			return s, err
		}
	}
}
