// SPDX-License-Identifier: Apache-2.0

// Package operate serves what operators of a server ask it, apart from SPIRE's own records: our
// NodeAdmin (nodes, inventory, rules), and on the Unix socket SPIRE's Debug and Logger. One file is
// one service.
package operate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"google.golang.org/grpc"

	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/policy"
)

// Nodes is what the services need of server/nodes.
type Nodes interface {
	Get(id spiffeid.ID) *nodes.Node
	List(f nodes.Filter, pageSize int, token string) ([]*nodes.Node, string, error)
	Count(f nodes.Filter) (int, error)
	Approve(ctx context.Context, id spiffeid.ID, by string) error
	Suspend(ctx context.Context, id spiffeid.ID, reason, by string) error
	Readmit(ctx context.Context, id spiffeid.ID, by string) error
	Ban(ctx context.Context, id spiffeid.ID, reason, by string) error
}

// Inventory is what the services need of server/nodes' inventory.
type Inventory interface {
	Get(ek selectors.Digest) *nodes.Device
	List() []*nodes.Device
	Add(ctx context.Context, devices []nodes.Device, by string) error
	Remove(ctx context.Context, eks []selectors.Digest) (int, error)
}

// Judge knows what machines are judged by.
type Judge interface {
	// Vouched returns what the agent's TPM vouched for of what it delivered, oldest first.
	Vouched(id spiffeid.ID) []nodes.Anchor
	// Check judges a node by the rules of the named group, or of its own for "", where the proposed
	// ones take the place of those called the same. Without filesKnown no list of files was judged.
	Check(n *nodes.Node, group string, proposed []*policy.Group) (broken []policy.Finding, filesKnown bool, err error)
}

// Services are the three.
type Services struct {
	TrustDomain spiffeid.TrustDomain
	Nodes       Nodes
	Inventory   Inventory
	Judge       Judge // nil: this server judges no nodes
	// EKRoots are the CAs of TPM makers that attestors trust, to show.
	EKRoots    []*x509.Certificate
	Entries    interface{ Count(f entries.Filter) int }
	Federation interface{ CountBundles() int }
	// ServerSVID returns the server's present certificate, leaf first.
	ServerSVID func() (*tls.Certificate, error)
	// Level of the log, to show and to change, and the one that it is reset to.
	Level       *slog.LevelVar
	LaunchLevel slog.Level
	Started     time.Time
	Now         func() time.Time
}

// Register adds them to the gRPC servers of both listeners.
func (s *Services) Register(tcp, unix grpc.ServiceRegistrar) {
	adminv1.RegisterNodeAdminServer(tcp, &nodeAdminService{Services: s})
	adminv1.RegisterNodeAdminServer(unix, &nodeAdminService{Services: s})
	debugv1.RegisterDebugServer(unix, &debugService{Services: s})
	loggerv1.RegisterLoggerServer(unix, &loggerService{Services: s})
}
