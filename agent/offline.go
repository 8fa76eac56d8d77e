// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/assay-id/assay/agent/keep"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
)

// The values of offline_restart.
const (
	offlineNever = "never"
	offlineTPM   = "tpm"
	offlineDisk  = "disk"
)

const defaultOfflineMaxAge = time.Hour

// imaPCR is extended by the kernel whenever a file is measured.
const imaPCR = 10

// prepareOffline understands offline_restart and what goes with it.
func (p *prepared) prepareOffline() (err error) {
	if p.OfflineRestart == "" {
		p.OfflineRestart = offlineNever
	}
	if !slices.Contains([]string{offlineNever, offlineTPM, offlineDisk}, p.OfflineRestart) {
		return fmt.Errorf("offline_restart %q: write \"never\", \"tpm\" or \"disk\"", p.OfflineRestart)
	}
	if p.OfflineRestart == offlineTPM && p.TPM == nil && p.DevID == nil {
		return errors.New("offline_restart = \"tpm\" uses the TPM of the block tpm or tpm_devid, and there is none: attest by one of them, or write \"disk\" or \"never\"")
	}
	p.offlineMaxAge = defaultOfflineMaxAge
	if p.OfflineMaxAge != "" {
		if p.offlineMaxAge, err = time.ParseDuration(p.OfflineMaxAge); err != nil || p.offlineMaxAge < time.Minute {
			return fmt.Errorf("offline_max_age %q: write a time of at least \"1m\", for example \"4h\"", p.OfflineMaxAge)
		}
	}
	if p.OfflinePCRs == nil {
		p.OfflinePCRs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	}
	if err := tpm.CheckPCRs(p.OfflinePCRs); err != nil {
		return fmt.Errorf("offline_pcrs: %w", err)
	}
	if slices.Contains(p.OfflinePCRs, imaPCR) {
		return errors.New("offline_pcrs: PCR 10 changes with each program that starts; leave it out")
	}
	return nil
}

// openOffline gets ready what the last run kept, where the operator allows that; else what is there is removed.
func (a *Agent) openOffline() error {
	cfg := keep.Config{Dir: a.conf.DataDir, MaxAge: a.conf.offlineMaxAge, Now: time.Now}
	switch a.conf.OfflineRestart {
	case offlineNever:
		return keep.New(cfg).Remove()
	case offlineTPM:
		cfg.Sealer = tpmSealer{a.tpm, a.conf.OfflinePCRs}
	}
	a.offline = keep.NewKeeper(keep.New(cfg), a.svids, a.server, a.log)
	a.server.SetSink(a.offline)
	a.offline.Restore(a.server.Former())
	return nil
}

// tpmSealer seals to the state that the machine has booted into.
type tpmSealer struct {
	device *device.Device
	pcrs   []int
}

func (s tpmSealer) Seal(secret []byte) ([]byte, error)   { return s.device.Seal(s.pcrs, secret) }
func (s tpmSealer) Unseal(sealed []byte) ([]byte, error) { return s.device.Unseal(s.pcrs, sealed) }
