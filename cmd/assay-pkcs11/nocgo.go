// SPDX-License-Identifier: Apache-2.0

//go:build !cgo

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "this assay-pkcs11 was built without cgo and can load no module: build it by make build-pkcs11, which needs gcc and libc6-dev")
	os.Exit(2)
}
