// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/selectors"
)

// sensor is what the configuration says of the kernel sensor.
func (p *prepared) sensor(log *slog.Logger) bpf.Config {
	return bpf.Config{
		PinDir: p.PinDir, MinimumTier: max(p.tier, selectors.TierT2), KernelDigests: p.KernelDigests,
		SocketNames: p.SocketNames, ConnectFrom: p.ConnectFrom, Protect: p.Protect, DataDir: p.DataDir, Logger: log,
	}
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
