// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"context"
	"time"
)

// Impatient returns a Desk like d that waits so long for clients who do not read.
func (d *Desk) Impatient(timeout time.Duration, hangUp func(context.Context)) *Desk {
	cfg := d.cfg
	cfg.HangUp = hangUp
	return &Desk{cfg, timeout}
}
