// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/agext/levenshtein"
)

// vocabulary is every selector that can exist, by type: what the families of this package derive, and what
// SPIRE's attestors add, so that SPIRE's agents keep working. A name in <…> stands for something (holes), a bar
// separates choices. A type whose only form is <text> is SPIRE's, and its values are not looked at.
var vocabulary = map[string][]string{
	"unix":      {"uid|gid|supplementary_gid:<n>", "user|group|supplementary_group:<text>", "path:<path>", "sha256:<digest>"},
	"exec":      {"file:regular|deleted|memory", "filesystem:<filesystem>", "set-id|no-set-id|script|binary", "script|fsverity:sha256:<digest>"},
	"parent":    {"sha256:<digest>"},
	"ancestor":  {"sha256:<digest>"},
	"cgroup":    {"path:<path>"},
	"systemd":   {"id|slice:<text>", "fragment_path:<path>"},
	"container": {"id:<digest>", "runtime:<runtime>", "user:<n>", "machine:<text>"},
	"process": {"capability:<capability>", "no-capabilities|no-new-privs", "seccomp:disabled|strict|filter", "login-uid|session:<n>",
		"security-label:<text>"},
	"namespace": {"pid|mount|net|user|cgroup|ipc:host|own"},
	"integrity": {"clean|unmodified|memory-unwritten|traced|memory-written|memory-read|descriptor-taken"},
	"code":      {"libraries:sha256:<digest>", "libraries:count:<n>", "no-anonymous-exec"},
	"hint":      {"argument-file:sha256:<digest>"},
	"evidence":  {"tier:t1|t2|t3", "observed|seeded", "digest:hashed|ima|fsverity"},

	"tpm": {"ek:spki-sha256|issuer:<digest>", "manufacturer|model|version:<text>", "firmware:<firmware>", "pcr:sha256:<pcr>:<digest>", "key:tpm-resident",
		"secureboot:enabled|disabled|setup-mode", "pk|kek|db|dbx|authority|sbat|kernel-image|kernel|initrd:<digest>", "boot-app:<n>:<digest>",
		"cmdline|agent:sha256:<digest>", "cmdline:has:<text>", "ima:boot-aggregate-ok|no-violations", "ima:allowlist:<text>"},
	"tpm_devid": {"subject|issuer:cn:<text>", "ca:fingerprint:<sha1>"},
	"x509pop":   {"subject:cn:<text>", "ca:fingerprint:<sha1>", "serialnumber:<text>", "san:<text>"},
	"spiffe_id": {"<id>"}, // the agent itself, as SPIRE's agent_spiffe_id_as_selector

	"k8s": {"ns|ns-label|sa|container-image|container-name|node-name:<text>", "pod-label|pod-owner|pod-owner-uid|pod-uid|pod-name|pod-image|pod-image-count|pod-init-image|pod-init-image-count:<text>",
		"group|version|kind|resource|name|namespace|uid|key|label|owner-key|owner-uid|controller-key|controller-uid:<text>", "qos-class:guaranteed|burstable|besteffort", sigstore, signature},
	"docker":         {"label|env|image_id|image_config_digest:<text>", sigstore, signature},
	"slurm":          {"job_id|sluid|step:<text>"},
	"windows":        {"user_sid|user_name|group_sid|group_name|path|sha256:<text>"},
	"http_challenge": {"hostname:<text>"},
	"k8s_psat":       {"cluster|agent_ns|agent_sa|agent_pod_name|agent_pod_uid|agent_pod_label|agent_node_ip|agent_node_name|agent_node_uid|agent_node_label:<text>"},
	"k8s_sat":        {"<text>"}, "aws_iid": {"<text>"}, "azure_imds": {"<text>"}, "azure_msi": {"<text>"}, "gcp_iit": {"<text>"}, "sshpop": {"<text>"},
}

const (
	sigstore  = "image-signature|image-attestations:verified"
	signature = "image-signature-value|image-signature-subject|image-signature-issuer|image-signature-log-id|image-signature-log-index|image-signature-integrated-time|image-signature-signed-entry-timestamp:<text>"
)

// holes are what may stand in a form: text goes to the end, the others have no colon.
var holes = map[string]struct {
	is   func(string) bool
	what string
}{
	"<text>":       {func(s string) bool { return s != "" }, "some text"},
	"<path>":       {func(s string) bool { return strings.HasPrefix(s, "/") }, "an absolute path"},
	"<id>":         {func(s string) bool { return strings.HasPrefix(s, "spiffe://") }, "a SPIFFE ID"},
	"<n>":          {isNumber, "a decimal number"},
	"<pcr>":        {isPCR, "one of 0 to 7, 9, 11, 12 and 14"},
	"<digest>":     {isHex(64), "64 lower-case hexadecimal digits"},
	"<sha1>":       {isHex(40), "40 lower-case hexadecimal digits"},
	"<firmware>":   {isHex(16), "16 lower-case hexadecimal digits"},
	"<capability>": {func(s string) bool { return slices.Contains(capabilitySelectors[:], "capability:"+s) }, "a capability, such as cap_net_admin"},
	"<filesystem>": {func(s string) bool { return slices.Contains(slices.Collect(maps.Values(filesystems)), s) }, "a file system, such as ext, xfs or overlay"},
	"<runtime>":    {isRuntime, "docker, containerd, cri-o, podman, lxc or nspawn, perhaps with -rootless"},
}

func isNumber(s string) bool {
	n, err := strconv.ParseUint(s, 10, 32)
	return err == nil && strconv.FormatUint(n, 10) == s
}

func isPCR(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && strconv.Itoa(n) == s && slices.Contains(bootPCRs[:], n)
}

func isHex(digits int) func(string) bool {
	return func(s string) bool { return len(s) == digits && strings.Trim(s, "0123456789abcdef") == "" }
}

func isRuntime(s string) bool {
	s = strings.TrimSuffix(s, "-rootless")
	return s == "lxc" || s == "nspawn" || slices.Contains(slices.Collect(maps.Values(runtimes)), s)
}

// form is one choice of the vocabulary: its parts between colons, of which the last may be a hole with colons.
type form []string

// forms is the vocabulary, each choice for itself.
var forms = func() map[string][]form {
	all := map[string][]form{}
	for kind, lines := range vocabulary {
		for _, line := range lines {
			choices := []form{{}}
			for part := range strings.SplitSeq(line, ":") {
				var longer []form
				for _, f := range choices {
					for word := range strings.SplitSeq(part, "|") {
						longer = append(longer, append(slices.Clone(f), word))
					}
				}
				choices = longer
			}
			all[kind] = append(all[kind], choices...)
		}
	}
	return all
}()

func (f form) String() string { return strings.Join(f, ":") }

// split cuts a value into as many parts as the form has, the last one with what is left.
func (f form) split(value string) []string { return strings.SplitN(value, ":", len(f)) }

// fixed is how many parts at the beginning are words.
func (f form) fixed() int {
	for i, part := range f {
		if strings.HasPrefix(part, "<") {
			return i
		}
	}
	return len(f)
}

// matches reports whether the value has this form; hole is the first part that does not fit, if the words before it do.
func (f form) matches(value string) (ok bool, hole string) {
	parts := f.split(value)
	for i, part := range f {
		switch h, isHole := holes[part]; {
		case i >= len(parts):
			if isHole {
				return false, part
			}
			return false, ""
		case isHole && !h.is(parts[i]):
			return false, part
		case !isHole && part != parts[i]:
			return false, ""
		}
	}
	return true, ""
}

// ErrUnknown is wrapped by what Known returns.
var ErrUnknown = errors.New("unknown selector")

// UnknownError is a selector that no attestor which we know of emits, so that an entry that demands it would never match.
type UnknownError struct {
	Selector Selector
	// Type: it is the type that is not known; an attestor that we do not know of may have it.
	Type bool
	// Nearest is what may have been meant, with holes such as <digest>; "" if nothing is near.
	Nearest string
	// Want says what a hole of Nearest stands for, where only that is wrong.
	Want string
}

func (e *UnknownError) Error() string {
	text := fmt.Sprintf("selector %q can match nothing: ", e.Selector)
	switch {
	case e.Want != "":
		return text + "want " + e.Nearest + ", where " + e.Want
	case e.Type:
		text += fmt.Sprintf("its type %q is not known", e.Selector.Type)
	default:
		text += "the type " + e.Selector.Type + " has no such value"
	}
	if e.Nearest != "" {
		text += fmt.Sprintf("; did you mean %q?", e.Nearest)
	}
	return text
}

func (e *UnknownError) Unwrap() error { return ErrUnknown }

// Known reports, as an *UnknownError, a selector that can not exist: of an unknown type, or of a known one in
// no form of it.
func (s Selector) Known() error {
	if err := s.Validate(); err != nil {
		return err
	}
	kin := forms[s.Type]
	if kin == nil {
		return &UnknownError{Selector: s, Type: true, Nearest: nearestWord(s.Type, slices.Sorted(maps.Keys(forms)))}
	}
	e := &UnknownError{Selector: s}
	for _, f := range kin {
		ok, hole := f.matches(s.Value)
		if ok {
			return nil
		}
		if hole != "" && e.Want == "" {
			e.Nearest, e.Want = s.Type+":"+f.String(), hole+" is "+holes[hole].what
		}
	}
	if e.Want == "" {
		e.Nearest = nearestForm(s, kin)
	}
	return e
}

// nearestForm compares the words of the forms with as many parts of the value; those that begin with the same
// word come first, however much the rest differs.
func nearestForm(s Selector, kin []form) string {
	parts := strings.Split(s.Value, ":")
	best, least := "", 2*(maxEdits+1)
	for _, f := range kin {
		n := f.fixed()
		have := s.Value
		if n < len(f) {
			have = strings.Join(parts[:min(n, len(parts))], ":")
		}
		words := f[:n].String()
		d := levenshtein.Distance(have, words, nil)
		switch {
		case parts[0] == f[0]:
			d = min(d, maxEdits)
		case words != "" && strings.HasPrefix(have, words): // a colon is missing
			d = min(d, 2) + maxEdits + 1
		default:
			d += maxEdits + 1
		}
		if d < least {
			best, least = s.Type+":"+f.String(), d
		}
	}
	return best
}

func nearestWord(word string, words []string) string {
	best, least := "", maxEdits+1
	for _, w := range words {
		if d := levenshtein.Distance(word, w, nil); d < least && d < len(word) {
			best, least = w, d
		}
	}
	return best
}

// maxEdits are the changes within which a word may have been meant.
const maxEdits = 3
