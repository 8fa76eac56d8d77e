// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/policy"
)

// Node returns all that is known of n, which is the device d of the inventory, or none (nil).
func Node(n *nodes.Node, d *nodes.Device) *adminv1.Node {
	p := &adminv1.Node{
		SpiffeId: n.ID.String(), Standing: standing(n.Standing), AttestationType: n.AttestationType, AgentVersion: n.AgentVersion, CanReattest: n.CanReattest,
		Selectors: n.Selectors.Strings(), SvidSerial: n.Serial, SvidExpiresAt: unixSeconds(n.NotAfter),
		CreatedAt: unixSeconds(n.CreatedAt), AttestedAt: unixSeconds(n.AttestedAt),
	}
	for _, h := range n.History {
		p.History = append(p.History, standing(h))
	}
	for _, c := range n.Checks {
		p.Checks = append(p.Checks, &adminv1.Check{Name: c.Name, Detail: c.Detail})
	}
	if d != nil {
		p.Device = Device(d)
	}
	return p
}

func standing(s nodes.Standing) *adminv1.Standing {
	return &adminv1.Standing{State: string(s.State), Reason: s.Reason, Since: unixSeconds(s.Since), By: s.By}
}

// Device returns one line of the inventory.
func Device(d *nodes.Device) *adminv1.Device {
	return &adminv1.Device{EkHash: d.EK.String(), Label: d.Label, Group: d.Group, Note: d.Note, AddedAt: unixSeconds(d.AddedAt), By: d.By}
}

const maxDeviceText = 1000 // bytes of label, group and note together

// ReadDevice reads one line for the inventory; when and by whom it is added is not the caller's to say.
func ReadDevice(p *adminv1.Device) (nodes.Device, error) {
	ek, err := nodes.ParseEK(p.GetEkHash())
	if err == nil && len(p.Label)+len(p.Group)+len(p.Note) > maxDeviceText {
		err = fmt.Errorf("device %s: label, group and note are longer than %d bytes", ek, maxDeviceText)
	}
	if err != nil {
		return nodes.Device{}, err
	}
	return nodes.Device{EK: ek, Label: p.Label, Group: p.Group, Note: p.Note}, nil
}

// ReadGroup reads rules that are to be tried, with the files that came along.
func ReadGroup(p *adminv1.NodeGroup) (*policy.Group, error) {
	var c policy.GroupConfig
	dec := json.NewDecoder(bytes.NewReader(p.GetConfig()))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("a node_group that this server does not understand: %w; use the assay of its version", err)
	}
	return c.Group(func(path string) ([]byte, error) {
		data, ok := p.Files[path]
		if !ok {
			return nil, fmt.Errorf("the file %s was not sent", path)
		}
		return data, nil
	})
}

// Findings returns why the rules refuse a node, or why they could not be applied.
func Findings(id spiffeid.ID, findings []policy.Finding, err error) *adminv1.NodeFindings {
	p := &adminv1.NodeFindings{SpiffeId: id.String()}
	if err != nil {
		p.Error = err.Error()
	}
	for _, f := range findings {
		p.Findings = append(p.Findings, &adminv1.Finding{Rule: f.Rule, Expected: f.Expected, Found: f.Found, Event: f.Event})
	}
	return p
}

// Vouched returns what an agent's TPM vouched for.
func Vouched(a nodes.Anchor) *adminv1.Vouched {
	return &adminv1.Vouched{Count: a.History.Count, Head: a.History.Head[:], At: unixSeconds(a.At)}
}
