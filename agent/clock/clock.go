// SPDX-License-Identifier: Apache-2.0

// Package clock tells when the machine's clock was set, or the machine slept. Timers of the Go runtime follow CLOCK_MONOTONIC,
// which knows of neither: what is due at a time of day must be looked at again then.
package clock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Watch calls changed after the clock was set (not when it is slewed) and after the machine has slept, until ctx ends. See
// timerfd_create(2), TFD_TIMER_CANCEL_ON_SET (Linux 3.0).
func Watch(ctx context.Context, changed func()) error {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("watch the clock: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd") // in the runtime's poller, since it does not block
	defer timer.Close()
	stop := context.AfterFunc(ctx, func() { _ = timer.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	never := &unix.ItimerSpec{Value: unix.Timespec{Sec: math.MaxInt64 / int64(time.Second)}} // as late as the kernel takes
	for {
		if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, never, nil); err != nil && !errors.Is(err, unix.ECANCELED) {
			return fmt.Errorf("watch the clock: %w", err)
		}
		_, err := timer.Read(make([]byte, 8))
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ECANCELED):
			changed()
		case err != nil:
			return fmt.Errorf("watch the clock: %w", err)
		}
	}
}
