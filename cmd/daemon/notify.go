// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"os"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
)

// Ready tells the service manager that the daemon serves (sd_notify(3), Type=notify), and as long as ctx lasts and
// alive answers without error, that it goes on (WatchdogSec=). Without a service manager it does nothing.
func Ready(ctx context.Context, alive func(context.Context) error) {
	notify(sd.SdNotifyReady)
	interval, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		fmt.Fprintln(os.Stderr, "the service manager's watchdog is not fed:", err)
	}
	if interval > 0 {
		go feed(ctx, interval/3, alive)
	}
	context.AfterFunc(ctx, func() { notify(sd.SdNotifyStopping) })
}

// feed is not fed itself while alive hangs: that is what the watchdog is for.
func feed(ctx context.Context, every time.Duration, alive func(context.Context) error) {
	for tick := time.NewTicker(every); ; {
		if alive(ctx) == nil {
			notify(sd.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-tick.C:
		}
	}
}

func notify(state string) {
	if _, err := sd.SdNotify(false, state); err != nil {
		fmt.Fprintln(os.Stderr, "the service manager can not be told", state+":", err)
	}
}
