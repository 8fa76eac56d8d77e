// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	evidencepb "github.com/assay-id/assay/proto/evidence"
)

// Dial connects to an admin socket; the socket's file mode is the authentication.
func Dial(path string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+strings.TrimPrefix(path, "unix:"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
}

// Show prints v as JSON, or calls text.
func (a *App) Show(v any, text func(w io.Writer)) error {
	out := a.Command.OutOrStdout()
	if a.Format != "json" {
		tw := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
		text(tw)
		return tw.Flush()
	}
	data, err := marshal(v)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", data)
	return err
}

// marshal encodes protobuf messages with their proto field names, as SPIRE's CLI does.
func marshal(v any) ([]byte, error) {
	one := func(m proto.Message) (json.RawMessage, error) {
		return protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	}
	switch v := v.(type) {
	case proto.Message:
		data, err := one(v)
		if err != nil {
			return nil, err
		}
		return json.MarshalIndent(data, "", "  ")
	case []proto.Message:
		list := []json.RawMessage{}
		for _, m := range v {
			data, err := one(m)
			if err != nil {
				return nil, err
			}
			list = append(list, data)
		}
		return json.MarshalIndent(list, "", "  ")
	}
	return json.MarshalIndent(v, "", "  ")
}

// Messages are those of a list, for Show.
func Messages[M proto.Message](ms []M) []proto.Message {
	out := make([]proto.Message, len(ms))
	for i, m := range ms {
		out[i] = m
	}
	return out
}

// IDText is the SPIFFE ID as people write it.
func IDText(id *types.SPIFFEID) string { return "spiffe://" + id.GetTrustDomain() + id.GetPath() }

// ParseID reads what IDText writes.
func ParseID(text string) (*types.SPIFFEID, error) {
	rest, ok := strings.CutPrefix(text, "spiffe://")
	td, path, _ := strings.Cut(rest, "/")
	if !ok || td == "" {
		return nil, fmt.Errorf("%q is not a SPIFFE ID: write it as spiffe://trust-domain/path", text)
	}
	if path != "" {
		path = "/" + path
	}
	return &types.SPIFFEID{TrustDomain: td, Path: path}, nil
}

// Hostname of this machine, or a word in its place.
func Hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "NAME"
}

// TimeText is Unix seconds in RFC 3339; 0 is "never".
func TimeText(unix int64) string {
	if unix == 0 {
		return "never"
	}
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

// Failed turns a batch item's status into an error.
func Failed(what string, s *types.Status) error {
	if s.GetCode() == int32(codes.OK) {
		return nil
	}
	return fmt.Errorf("%s: %s (%s)", what, s.GetMessage(), codes.Code(s.GetCode()))
}

// TierText is a tier with what it stands on.
func TierText(t evidencepb.Tier) string {
	switch t {
	case evidencepb.Tier_TIER_T1:
		return "T1 (BPF LSM)"
	case evidencepb.Tier_TIER_T2:
		return "T2 (tracepoints and cgroup programs)"
	case evidencepb.Tier_TIER_T3:
		return "T3 (pidfd and /proc)"
	}
	return "none"
}
