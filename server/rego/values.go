// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/assay-id/assay/selectors"
)

// object is a JSON object of an input.
type object map[string]any

// set sets what is known: unknown is not there, so that no comparison with it holds.
func (o object) set(name, value string) {
	if value != "" {
		o[name] = value
	}
}

func (o object) time(name string, t time.Time) {
	if !t.IsZero() {
		o[name] = t.UTC().Format(time.RFC3339)
	}
}

func (o object) digest(name string, d selectors.Digest) {
	if !d.IsZero() {
		o[name] = d.String()
	}
}

func list(texts []string) []any {
	out := make([]any, len(texts))
	for i, text := range texts {
		out[i] = text
	}
	return out
}

func selectorTexts(ss []selectors.Selector) []any {
	out := make([]any, len(ss))
	for i, s := range ss {
		out[i] = s.String()
	}
	return out
}

func (r *Request) input(now time.Time) map[string]any {
	svid := object{"kind": r.Kind, "ttl": int64(r.TTL / time.Second)}
	if r.Kind == JWT {
		svid["audience"] = list(r.Audience)
	}
	in := object{
		"entry": entryInput(r.Entry), "node": r.Node.input(now), "svid": map[string]any(svid),
		"time": now.UTC().Format(time.RFC3339),
	}
	if r.Facts != nil {
		in["facts"] = factsInput(r.Facts)
	}
	return in
}

func entryInput(e *selectors.Entry) map[string]any {
	o := object{
		"id": e.ID, "spiffe_id": e.SPIFFEID.String(), "parent_id": e.ParentID.String(), "selectors": selectorTexts(e.Selectors),
		"dns_names": list(e.DNSNames), "federates_with": list(e.FederatesWith), "admin": e.Admin, "downstream": e.Downstream, "revision": e.Revision,
	}
	o.set("hint", e.Hint)
	o.time("created_at", e.CreatedAt)
	o.time("expires_at", e.ExpiresAt)
	return o
}

func (n *Node) input(now time.Time) map[string]any {
	o := object{"id": n.ID.String(), "state": n.State, "attestation_type": n.AttestationType, "selectors": selectorTexts(n.Selectors)}
	o.set("group", n.Group)
	o.time("attested_at", n.AttestedAt)
	if !n.QuotedAt.IsZero() {
		o["quote_age"] = int64(max(0, now.Sub(n.QuotedAt)) / time.Second)
	}
	return o
}

func factsInput(f *selectors.Facts) map[string]any {
	lineage := make([]any, len(f.Ancestors))
	for i := range f.Ancestors {
		a := executableInput(&f.Ancestors[i].Executable)
		a["observed"] = f.Ancestors[i].Observed
		lineage[i] = map[string]any(a)
	}
	process := object{"pid": int64(f.Process.TGID), "exec_id": f.Process.ExecID, "boot_id": f.Process.BootID}
	credentials := object{"uid": int64(f.Credentials.UID), "gid": int64(f.Credentials.GID)}
	credentials.set("user", f.Credentials.User)
	credentials.set("group", f.Credentials.Group)
	cgroup := object{}
	cgroup.set("path", f.Cgroup.Path)
	i := f.Integrity
	return map[string]any{
		"tier": f.Tier.String(), "selectors": selectorTexts(selectors.Derive(f)), "observed": f.Observed,
		"process": map[string]any(process), "executable": map[string]any(executableInput(&f.Executable)),
		"lineage": lineage, "lineage_truncated": f.LineageTruncated, "credentials": map[string]any(credentials), "cgroup": map[string]any(cgroup),
		"integrity": map[string]any{
			"sees_writes": i.SeesWrites, "sees_tracing": i.SeesTracing, "sees_all": i.SeesAll,
			"traced": i.Traced, "memory_written": i.MemoryWritten, "memory_read": i.MemoryRead, "descriptor_taken": i.DescriptorTaken,
		},
	}
}

func executableInput(e *selectors.Executable) object {
	o := object{"ima": e.IMA}
	o.set("path", e.Path)
	o.digest("sha256", e.SHA256)
	o.digest("fsverity", e.FSVerity)
	return o
}

// What is kept of a policy's words.
const (
	maxReasons  = 16
	maxSentence = 512 // bytes
)

// sentences reads one sentence, or several as a list (a set is one in JSON).
func sentences(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return clean(v), nil
	case []any:
		texts := make([]string, 0, min(len(v), maxReasons))
		for i, e := range v {
			text, ok := e.(string)
			if !ok {
				return "", fmt.Errorf("holds %s, not a string", kindOf(e))
			}
			if text = clean(text); text != "" && i < maxReasons {
				texts = append(texts, text)
			}
		}
		return strings.Join(texts, "; "), nil
	}
	return "", fmt.Errorf("is %s, not a string or a set of them", kindOf(v))
}

// clean makes a policy's words fit for one line of a log.
func clean(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "\ufffd"))
	if len(text) > maxSentence {
		text = strings.ToValidUTF8(text[:maxSentence], "") + "…"
	}
	return strings.TrimSpace(text)
}

// one reads the object that a query answers as a list of one.
func one(answer any) (map[string]any, error) {
	list, ok := answer.([]any)
	switch {
	case !ok || len(list) > 1:
		return nil, fmt.Errorf("is answered by %s", kindOf(answer))
	case len(list) == 0:
		return nil, errors.New("is not defined for this input; give it a default")
	}
	fields, ok := list[0].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("is %s, not an object", kindOf(list[0]))
	}
	return fields, nil
}

// integer reads a number without a fraction.
func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := n.Int64()
	return i, err == nil
}

func show(v any) string {
	switch v := v.(type) {
	case json.Number:
		return clean(string(v))
	case string:
		return fmt.Sprintf("%q", clean(v))
	}
	return kindOf(v)
}

func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	case string:
		return "a string"
	case []any:
		return "a list"
	case map[string]any:
		return "an object"
	}
	return fmt.Sprintf("a %T", v)
}
