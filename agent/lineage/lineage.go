// SPDX-License-Identifier: Apache-2.0

// Package lineage answers what an image descends from: for each ancestor that the kernel
// recorded, which program that was.
//
// The chain itself is the kernel's (task storage, inherited at fork and extended at execve),
// so lost events cost no truth. The program behind an ancestor is found through a process
// that still runs that image; when none does any more, only what was read while one did is
// used. What is left is unknown, and unknown yields no selector.
package lineage

import (
	"context"

	"github.com/assay-id/assay/selectors"
)

// Image is one ancestor as the kernel recorded it.
type Image struct {
	// Holder is a process that ran this image when the descendant was made.
	Holder selectors.ProcessKey
	// Observed says that the sensor saw the image being executed.
	Observed bool
}

// Programs finds the program of an image.
type Programs interface {
	// Known returns what was read of the image earlier.
	Known(execID uint64) (selectors.Executable, bool)
	// Running reads it from the process, if that still runs the image.
	Running(ctx context.Context, holder selectors.ProcessKey) (selectors.Executable, error)
}

// Resolve names the programs of the chain, nearest first. An ancestor whose program can not
// be told is in the result without one.
func Resolve(ctx context.Context, chain []Image, programs Programs) []selectors.Ancestor {
	out := make([]selectors.Ancestor, len(chain))
	for i, img := range chain {
		out[i] = selectors.Ancestor{ExecID: img.Holder.ExecID, TGID: img.Holder.TGID, Observed: img.Observed}
		exe, ok := programs.Known(img.Holder.ExecID)
		if !ok {
			var err error
			if exe, err = programs.Running(ctx, img.Holder); err != nil {
				continue
			}
		}
		out[i].Executable = exe
	}
	return out
}
