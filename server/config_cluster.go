// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/store/cluster"
)

// ClusterConfig is the block `cluster`: this server's store is one of three or five members, each
// the child of its own server. The first one is made by `assay-server store init`, the others by
// `assay-server store join TICKET`. Who the members are is in the store itself.
type ClusterConfig struct {
	// Name of this server's member, unique and never changed, for example "a".
	Name string `hcl:"name"`
	// Address that the other members reach it at, "10.0.0.1:8082".
	Address string `hcl:"address"`
}

var memberName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

func (p *prepared) readCluster() error {
	c := p.Cluster
	if c == nil {
		return nil
	}
	host, port, err := net.SplitHostPort(c.Address)
	n, portErr := strconv.Atoi(port)
	ip := net.ParseIP(host)
	switch {
	case len(p.Store.Endpoints) > 0:
		return errors.New("cluster: the store is at store.endpoints; remove one of the two")
	case !memberName.MatchString(c.Name):
		return fmt.Errorf("cluster: name %q: write letters, digits, \"-\", \"_\" and \".\", at most 63", c.Name)
	case err != nil || portErr != nil || n < 1 || n > 65535 || host == "":
		return fmt.Errorf("cluster: address %q: write the host and port that the other members reach, for example \"10.0.0.1:8082\"", c.Address)
	case ip != nil && ip.IsUnspecified():
		return fmt.Errorf("cluster: address %q: other members can not reach it; write this machine's own address", c.Address)
	}
	return nil
}

// storeConfig is the store as this server opens it.
func (p *prepared) storeConfig() store.Config {
	c := store.Config{
		Dir: filepath.Join(p.DataDir, "store"), Endpoints: p.Store.Endpoints, TLS: p.etcdTLS, Prefix: p.Store.Prefix,
		MinFree: uint64(p.Store.MinFreeMiB) << 20, Quota: int64(p.Store.QuotaMiB) << 20,
	}
	if p.Cluster != nil {
		c.Cluster = &store.Cluster{Name: p.Cluster.Name, Address: p.Cluster.Address, TrustDomain: p.trustDomain.Name()}
	}
	return c
}

// StoreOnDisk is the store that the configuration names, for the commands that tend it.
func (c Config) StoreOnDisk() (cluster.Config, error) {
	p, err := c.prepare()
	if err != nil {
		return cluster.Config{}, err
	}
	if len(p.Store.Endpoints) > 0 {
		return cluster.Config{}, errors.New("the store is at store.endpoints: tend it with that etcd's own tools")
	}
	s := p.storeConfig()
	on := cluster.Config{Dir: s.Dir, Prefix: store.DefaultPrefix, TrustDomain: p.trustDomain.Name()}
	if s.Prefix != "" {
		on.Prefix = s.Prefix
	}
	if s.Cluster != nil {
		on.Name, on.Address = s.Cluster.Name, s.Cluster.Address
	}
	return on, nil
}

// migrations bring the store's content from one form to the next, in order; see store.Migrate.
var migrations = []store.Migration{
	{What: "ids of entries get keys of their own", Run: entries.MoveIDs},
}
