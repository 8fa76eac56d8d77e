// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/assay-id/assay/agent/proof"
	"github.com/assay-id/assay/agent/upstream"
	"github.com/assay-id/assay/tpm/device"
)

// nodeAttestor is the one way of attestation that the configuration names, and what to do when it
// is over. What is wrong with files or TPM shows here, at the start.
func (a *Agent) nodeAttestor(ctx context.Context) (upstream.Attestor, func(), error) {
	switch c := a.conf; {
	case c.JoinToken != nil:
		return proof.JoinToken{Token: c.JoinToken.Token}, func() {}, nil
	case c.X509POP != nil:
		pop := &proof.X509POP{CertificatePath: c.X509POP.CertificatePath, PrivateKeyPath: c.X509POP.PrivateKeyPath, IntermediatesPath: c.X509POP.IntermediatesPath}
		_, err := pop.Load()
		return pop, func() {}, err
	case c.DevID != nil:
		attestor, d, err := c.DevID.open(ctx, a.metrics.TPM)
		if err != nil {
			return nil, nil, err
		}
		a.tpm = d
		return attestor, func() { d.Close() }, nil
	default:
		d, err := device.Open(ctx, device.Config{Path: c.TPM.Device, EK: c.TPM.EK, Observe: a.metrics.TPM})
		if err != nil {
			return nil, nil, err
		}
		a.tpm = d
		return proof.NewTPM(d), func() { d.Close() }, nil
	}
}

// open loads the DevID key into the TPM.
func (c DevIDConfig) open(ctx context.Context, observe func(command []byte, took time.Duration)) (upstream.Attestor, *device.Device, error) {
	public, err := os.ReadFile(c.PubPath)
	if err != nil {
		return nil, nil, fmt.Errorf("tpm_devid: devid_pub_path: %w", err)
	}
	private, err := os.ReadFile(c.PrivPath)
	if err != nil {
		return nil, nil, fmt.Errorf("tpm_devid: devid_priv_path: %w", err)
	}
	d, err := device.Open(ctx, device.Config{Path: c.Device, EK: "rsa2048", OwnerPassword: c.OwnerPassword, EndorsementPassword: c.EndorsementPassword, Observe: observe})
	if err != nil {
		return nil, nil, err
	}
	key, err := d.DevID(public, private, c.Password)
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("tpm_devid: devid_pub_path %s with devid_priv_path %s: %w", c.PubPath, c.PrivPath, err), d.Close())
	}
	attestor, err := proof.NewDevID(d, key, c.CertPath)
	if err != nil {
		return nil, nil, errors.Join(err, d.Close())
	}
	return attestor, d, nil
}
