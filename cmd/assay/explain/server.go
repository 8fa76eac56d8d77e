// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/cmd/assay/entries"
	adminpb "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/selectors"
)

// explanation is what the server's entries say of a process on a node.
type explanation struct {
	Node  string `json:"node"`
	State string `json:"state"`
	// View is how old the agent's is, where that agent is of this machine.
	View string `json:"view,omitempty"`
	// Entries are how many the node is authorised for.
	Entries   int      `json:"entries"`
	Selectors []string `json:"selectors"`
	Matches   []found  `json:"matches"`
	Nearest   []found  `json:"nearest"`
	// Elsewhere would match the process, but are not for this node.
	Elsewhere []found `json:"elsewhere"`
}

// found is an entry, and what it lacks.
type found struct {
	EntryID  string `json:"entry_id"`
	SPIFFEID string `json:"spiffe_id"`
	ParentID string `json:"parent_id"`
	// Missing are selectors that the process lacks; of Elsewhere, that the node lacks for the nearest
	// alias which is the parent, if the parent is one.
	Missing []string `json:"missing,omitempty"`
}

func show(e *selectors.Entry, missing selectors.Set) found {
	return found{e.ID, e.SPIFFEID.String(), e.ParentID.String(), missing.Strings()}
}

func (a *app) onServer(c *cobra.Command) error {
	node, err := spiffeid.FromString(a.node)
	if err != nil {
		return fmt.Errorf("--node %s: %w", a.node, err)
	}
	x := explanation{Node: a.node, Matches: []found{}, Nearest: []found{}, Elsewhere: []found{}}
	process, err := a.process(c, &x)
	if err != nil {
		return err
	}
	x.Selectors = process.Strings()
	if err := a.OnServer(func(conn *grpc.ClientConn) error { return x.ask(c.Context(), conn, node, process, a.nearest) }); err != nil {
		return err
	}
	return a.Show(x, x.text)
}

// process returns the selectors that were meant.
func (a *app) process(c *cobra.Command, x *explanation) (selectors.Set, error) {
	texts := a.selectors
	switch {
	case a.facts != "":
		var err error
		if texts, err = readFacts(c, a.facts); err != nil {
			return nil, err
		}
	case c.Flags().Changed("pid"):
		explained, status, err := a.ask(c.Context())
		if err != nil {
			return nil, err
		}
		if status.AgentId != a.node {
			return nil, fmt.Errorf("the agent of this machine is %s: run `assay explain --pid %d -o json` on that node, and give its output as --facts", status.AgentId, a.pid)
		}
		if explained.Refusal != "" {
			return nil, fmt.Errorf("process %d gets no identity: %s", a.pid, explained.Refusal)
		}
		texts, x.View = explained.Selectors, viewText(status)
	}
	var out []selectors.Selector
	for _, text := range texts {
		s, err := selectors.Parse(text)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return selectors.NewSet(out...), nil
}

// readFacts reads the selectors out of what explain printed as JSON.
func readFacts(c *cobra.Command, path string) ([]string, error) {
	var data []byte
	var err error
	if path == "-" {
		data, err = io.ReadAll(c.InOrStdin())
	} else {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the facts: %w", err)
	}
	var file struct {
		Selectors []string `json:"selectors"`
		Refusal   string   `json:"refusal"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if file.Refusal != "" {
		return nil, fmt.Errorf("%s: the process gets no identity: %s", path, file.Refusal)
	}
	if len(file.Selectors) == 0 {
		return nil, fmt.Errorf("%s holds no selectors: make it with `assay explain --pid N -o json`", path)
	}
	return file.Selectors, nil
}

// server asks for entries.
type server struct {
	ctx    context.Context
	client entryv1.EntryClient
}

// ask finds the entries of the node as the server does (SPIRE's rule): those below the agent and below the aliases whose
// selectors the node has, and those below their identities.
func (x *explanation) ask(ctx context.Context, conn *grpc.ClientConn, node spiffeid.ID, process selectors.Set, nearest int) error {
	n, err := adminpb.NewNodeAdminClient(conn).GetNode(ctx, &adminpb.GetNodeRequest{SpiffeId: node.String()})
	if err != nil {
		return err
	}
	x.State = n.Standing.GetState()
	var has []selectors.Selector
	for _, text := range n.Selectors {
		s, err := selectors.Parse(text)
		if err != nil {
			return err
		}
		has = append(has, s)
	}
	s := server{ctx, entryv1.NewEntryClient(conn)}
	root := spiffeid.RequireFromPath(node.TrustDomain(), "/spire/server")
	aliases, err := s.below(root)
	if err != nil {
		return err
	}
	nodeSet := selectors.NewSet(has...)
	lacking := map[spiffeid.ID]selectors.Set{} // aliases that the node has not
	queue := []spiffeid.ID{node}
	for _, e := range aliases {
		missing := e.SelectorSet().Missing(nodeSet)
		if len(missing) == 0 {
			queue = append(queue, e.SPIFFEID)
		} else if old, ok := lacking[e.SPIFFEID]; !ok || len(missing) < len(old) {
			lacking[e.SPIFFEID] = missing
		}
	}
	index, err := s.authorized(root, queue)
	if err != nil {
		return err
	}
	x.Entries = index.Len()
	for _, e := range index.Match(process) {
		x.Matches = append(x.Matches, show(e, nil))
	}
	for _, near := range index.Nearest(process, nearest) {
		x.Nearest = append(x.Nearest, show(near.Entry, near.Missing))
	}
	would, err := s.satisfied(process)
	for _, e := range would {
		if index.Get(e.ID) == nil && e.ParentID != root {
			x.Elsewhere = append(x.Elsewhere, show(e, lacking[e.ParentID]))
		}
	}
	return err
}

// authorized walks down from the parents.
func (s server) authorized(root spiffeid.ID, queue []spiffeid.ID) (*selectors.Index, error) {
	index, seen := &selectors.Index{}, map[spiffeid.ID]bool{root: true}
	for ; len(queue) > 0; queue = queue[1:] {
		if seen[queue[0]] {
			continue
		}
		seen[queue[0]] = true
		es, err := s.below(queue[0])
		if err != nil {
			return nil, err
		}
		for _, e := range es {
			index.Put(e)
			queue = append(queue, e.SPIFFEID)
		}
	}
	return index, nil
}

func (s server) below(parent spiffeid.ID) ([]*selectors.Entry, error) {
	return s.list(&entryv1.ListEntriesRequest_Filter{ByParentId: &types.SPIFFEID{TrustDomain: parent.TrustDomain().Name(), Path: parent.Path()}})
}

// satisfied returns the entries all of whose selectors are in the set, for whichever node.
func (s server) satisfied(set selectors.Set) ([]*selectors.Entry, error) {
	match := &types.SelectorMatch{Match: types.SelectorMatch_MATCH_SUBSET}
	for _, sel := range set {
		match.Selectors = append(match.Selectors, &types.Selector{Type: sel.Type, Value: sel.Value})
	}
	return s.list(&entryv1.ListEntriesRequest_Filter{BySelectors: match})
}

func (s server) list(filter *entryv1.ListEntriesRequest_Filter) (out []*selectors.Entry, err error) {
	es, err := entries.List(s.ctx, s.client, filter)
	if err != nil {
		return nil, err
	}
	for _, p := range es {
		e := &selectors.Entry{ID: p.Id}
		if e.SPIFFEID, err = spiffeid.FromString(cli.IDText(p.SpiffeId)); err != nil {
			return nil, fmt.Errorf("entry %s: %w", p.Id, err)
		}
		if e.ParentID, err = spiffeid.FromString(cli.IDText(p.ParentId)); err != nil {
			return nil, fmt.Errorf("entry %s: %w", p.Id, err)
		}
		for _, sel := range p.Selectors {
			e.Selectors = append(e.Selectors, selectors.Selector{Type: sel.Type, Value: sel.Value})
		}
		out = append(out, e)
	}
	return out, nil
}

func (x *explanation) text(w io.Writer) {
	fmt.Fprintf(w, "node %s is %s and may hold %d entries\n", x.Node, x.State, x.Entries)
	if x.State != "admitted" {
		fmt.Fprintf(w, "it is served nothing while it is %s: see assay node show %s\n", x.State, x.Node)
	}
	if x.View != "" {
		fmt.Fprintln(w, x.View)
	}
	for _, m := range x.Matches {
		fmt.Fprintf(w, "matches entry %s: %s\n", m.EntryID, m.SPIFFEID)
	}
	if len(x.Matches) == 0 {
		fmt.Fprintln(w, "matches no entry of this node")
	}
	for _, m := range x.Nearest {
		fmt.Fprintf(w, "not entry %s: %s, the process lacks\n", m.EntryID, m.SPIFFEID)
		for _, s := range m.Missing {
			fmt.Fprintf(w, "  lacks\t%s\n", s)
		}
	}
	for _, m := range x.Elsewhere {
		fmt.Fprintf(w, "not entry %s: %s, which is for %s and not for this node\n", m.EntryID, m.SPIFFEID, m.ParentID)
		for _, s := range m.Missing {
			fmt.Fprintf(w, "  the node lacks\t%s\n", s)
		}
	}
}
