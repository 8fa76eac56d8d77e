// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"crypto/sha1"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/assay-id/assay/cmd/dev"
	"github.com/assay-id/assay/tpm/devidtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// A node joins by a DevID as at a server of SPIRE's, and attests again at each start; what it keeps on
// disk is of no use to a machine with another TPM.
func TestDevID(t *testing.T) {
	nativeOnly(t, "a DevID needs its own software TPM")
	chip, dir := swtpmtest.New(t), t.TempDir()
	made := devidtest.Provision(t, chip, true, "a password")
	files := made.Write(t, dir)
	ekCA := filepath.Join(dir, "ek-ca.pem")
	if err := os.WriteFile(ekCA, chip.CAPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	m := start(t, dev.Options{Server: fmt.Sprintf("tpm_devid {\n  devid_ca_path = %q\n  endorsement_ca_path = %q\n}", files.CA, ekCA)})
	use := func(tpm string) error {
		if err := m.StopAgent(); err != nil {
			t.Fatal(err)
		}
		m.SetAgent(fmt.Sprintf("tpm_devid {\n  tpm_device_path = %q\n  devid_cert_path = %q\n  devid_priv_path = %q\n  devid_pub_path = %q\n  devid_password = \"a password\"\n}", tpm, files.Certificate, files.Private, files.Public))
		return m.StartAgent(t.Context())
	}
	if err := use(chip.Path); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("spiffe://example.org/spire/agent/tpm_devid/%x", sha1.Sum(made.Leaf.Raw)); m.NodeID != want {
		t.Errorf("the node is %s, want %s", m.NodeID, want)
	}
	m.create(t, "/w", "--selector", me(t))
	if e := m.startWorkload(t, self).next(t, m); len(e.IDs) != 1 {
		t.Errorf("a workload of a node that joined by DevID: %+v", e)
	}
	serial := m.serial(t)
	if err := use(chip.Path); err != nil {
		t.Fatalf("the second start: %v", err)
	}
	if got := m.serial(t); got == serial {
		t.Error("the node did not attest again at its start")
	}
	if err := use(swtpmtest.Other(t).Path); err == nil || !strings.Contains(err.Error(), "not made below this TPM's storage root key") {
		t.Errorf("with another TPM: %v", err)
	}
}
