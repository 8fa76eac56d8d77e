// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOfflineConfig(t *testing.T) {
	chip := &TPMConfig{}
	for _, c := range []struct {
		conf   Config
		fault  string // "" is none
		maxAge time.Duration
		pcrs   []int
	}{
		{conf: Config{}, maxAge: time.Hour},
		{conf: Config{OfflineRestart: "disk"}, maxAge: time.Hour},
		{conf: Config{OfflineRestart: "tpm", TPM: chip}, maxAge: time.Hour},
		{conf: Config{OfflineRestart: "tpm", DevID: &DevIDConfig{}}, maxAge: time.Hour},
		{conf: Config{OfflineRestart: "tpm", TPM: chip, OfflineMaxAge: "90m", OfflinePCRs: []int{4, 7, 11}}, maxAge: 90 * time.Minute, pcrs: []int{4, 7, 11}},
		{conf: Config{OfflineRestart: "tpm"}, fault: "block tpm or tpm_devid"},
		{conf: Config{OfflineRestart: "yes"}, fault: "offline_restart \"yes\""},
		{conf: Config{OfflineMaxAge: "soon"}, fault: "offline_max_age"},
		{conf: Config{OfflineMaxAge: "59s"}, fault: "offline_max_age"},
		{conf: Config{OfflinePCRs: []int{7, 4}}, fault: "offline_pcrs"},
		{conf: Config{OfflinePCRs: []int{}}, fault: "offline_pcrs"},
		{conf: Config{OfflinePCRs: []int{4, 10}}, fault: "PCR 10"},
	} {
		p := &prepared{Config: c.conf}
		err := p.prepareOffline()
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%+v: %v", c.conf, err)
			}
			continue
		}
		if c.pcrs == nil {
			c.pcrs = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}
		}
		if err != nil || p.offlineMaxAge != c.maxAge || !slices.Equal(p.OfflinePCRs, c.pcrs) {
			t.Errorf("%+v: %v, %v, %v", c.conf, err, p.offlineMaxAge, p.OfflinePCRs)
		}
		if c.conf.OfflineRestart == "" && p.OfflineRestart != offlineNever {
			t.Errorf("by default %q", p.OfflineRestart)
		}
	}
}
