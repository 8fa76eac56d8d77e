// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/selectors"
)

// sensor is what the configuration says of the kernel sensor.
func (p *prepared) sensor(log *slog.Logger) bpf.Config {
	return bpf.Config{
		PinDir: p.PinDir, MinimumTier: max(p.tier, selectors.TierT2), KernelDigests: p.KernelDigests,
		SocketNames: p.socketNames(), ConnectFrom: p.ConnectFrom, Protect: p.Protect, DataDir: p.DataDir, Logger: log,
	}
}

// socketNames are all that a connect may name (T2). The sensor knows them from its start, so that one to a socket of systemd's is
// recorded before the agent takes that over.
func (p *prepared) socketNames() []string {
	names := slices.Clone(p.SocketNames)
	for _, s := range p.sockets {
		names = append(names, filepath.Base(s.Path))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// LoadSensor puts the sensor into the kernel and makes a user its owner, whose agent then takes it over
// without the capabilities that loading needs. One of this build that is there already stays.
func (c Config) LoadSensor(uid, gid int, log *slog.Logger) error {
	p, err := c.prepare()
	if err != nil {
		return err
	}
	conf := p.sensor(log)
	conf.DataDir = "" // its protection begins with the agent
	s, err := bpf.Load(conf)
	if err != nil {
		return fmt.Errorf("loading the sensor: %w", err)
	}
	return errors.Join(s.GiveTo(uid, gid), s.Close())
}
