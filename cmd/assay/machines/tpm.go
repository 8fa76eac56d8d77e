// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/assay/cli"
	adminpb "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/tpm/device"
)

func (a *app) tpm() *cobra.Command {
	return cli.Group("tpm", "TPMs: what this one is, and which ones the server lets in", a.tpmEK(), a.tpmLearn(), a.tpmAllowlist(), a.tpmCheck(), a.tpmRoots(), a.inventory())
}

// ekReport is what `assay tpm ek -o json` prints.
type ekReport struct {
	EKHash       string   `json:"ek_hash"`
	Certificates []caText `json:"certificates"`
}

func (a *app) tpmEK() *cobra.Command {
	var path string
	c := &cobra.Command{Use: "ek", Short: "Tells which TPM this machine has, and what to register", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		report, err := readEK(c.Context(), path)
		if err != nil {
			return err
		}
		return a.Show(report, func(w io.Writer) {
			fmt.Fprintf(w, "ek hash\t%s\n", report.EKHash)
			for _, cert := range report.Certificates {
				fmt.Fprintf(w, "certificate\tserial %s, issued by %s\n", cert.Serial, cert.Issuer)
			}
			if len(report.Certificates) == 0 {
				fmt.Fprintln(w, "certificate\tnone: this TPM is let in by its hash only")
			} else {
				fmt.Fprintln(w, "register\tthe maker's CA in ek_ca_path of the server's configuration; or this one TPM, on the server:")
			}
			fmt.Fprintf(w, "\tassay tpm inventory add %s --label %s\n", report.EKHash, cli.Hostname())
		})
	}}
	c.Flags().StringVar(&path, "device", "/dev/tpmrm0", "the TPM")
	return c
}

func readEK(ctx context.Context, path string) (report ekReport, err error) {
	d, err := device.Open(ctx, device.Config{Path: path})
	if err != nil {
		return report, fmt.Errorf("open the TPM: %w", err)
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	hash, err := d.EKHash()
	if err != nil {
		return report, err
	}
	report = ekReport{EKHash: fmt.Sprintf("%x", hash), Certificates: []caText{}}
	key, err := anyKey(d)
	if err != nil {
		return report, err
	}
	hello, err := d.Hello(key)
	if err != nil {
		return report, err
	}
	for _, der := range hello.EKCertificates {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return report, fmt.Errorf("the EK certificate: %w", err)
		}
		report.Certificates = append(report.Certificates, describe(cert))
	}
	return report, nil
}

// anyKey makes a key that nobody uses, where the device wants one.
func anyKey(d *device.Device) (*device.Key, error) {
	var unique [32]byte
	if _, err := rand.Read(unique[:]); err != nil {
		return nil, fmt.Errorf("random: %w", err)
	}
	return d.NewKey(unique)
}

// caText is a certificate for people.
type caText struct {
	Subject string    `json:"subject"`
	Issuer  string    `json:"issuer"`
	Serial  string    `json:"serial"`
	SHA256  string    `json:"sha256"`
	Until   time.Time `json:"not_after"`
	Root    bool      `json:"root"`
}

func describe(c *x509.Certificate) caText {
	return caText{
		Subject: c.Subject.String(), Issuer: c.Issuer.String(), Serial: fmt.Sprintf("%x", c.SerialNumber), SHA256: fmt.Sprintf("%x", sha256.Sum256(c.Raw)),
		Until: c.NotAfter.UTC(), Root: bytes.Equal(c.RawSubject, c.RawIssuer),
	}
}

func (a *app) tpmRoots() *cobra.Command {
	return &cobra.Command{Use: "roots", Short: "Lists the CAs of TPM makers that the server trusts (ek_ca_path)", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onNodes(func(client adminpb.NodeAdminClient) error {
			resp, err := client.ListRoots(c.Context(), &adminpb.ListRootsRequest{})
			if err != nil {
				return err
			}
			roots := []caText{}
			for _, der := range resp.Certificates {
				cert, err := x509.ParseCertificate(der)
				if err != nil {
					return fmt.Errorf("a certificate of the server's: %w", err)
				}
				roots = append(roots, describe(cert))
			}
			return a.Show(roots, func(w io.Writer) {
				for _, r := range roots {
					kind := "intermediate"
					if r.Root {
						kind = "root"
					}
					fmt.Fprintf(w, "%s\n  %s\tuntil %s, sha256 %s\n", r.Subject, kind, r.Until.Format(time.RFC3339), r.SHA256)
				}
				if len(roots) == 0 {
					fmt.Fprintln(w, "none: TPMs are let in by the inventory only (assay tpm inventory list)")
				}
			})
		})
	}}
}

func (a *app) inventory() *cobra.Command {
	return cli.Group("inventory", "TPMs that may attest, whoever made them", a.inventoryAdd(), a.inventoryList(), a.inventoryRemove(), a.inventoryImport(), a.inventoryExport())
}

func (a *app) inventoryAdd() *cobra.Command {
	var label, group, note string
	c := &cobra.Command{Use: "add EK-HASH", Short: "Adds one TPM, or changes what is written about it", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		d, err := newDevice(args[0], label, group, note)
		if err != nil {
			return err
		}
		return a.addDevices(c.Context(), []*adminpb.Device{d})
	}}
	c.Flags().StringVar(&label, "label", "", "your name for the machine")
	c.Flags().StringVar(&group, "group", "", "the node_group that it belongs to")
	c.Flags().StringVar(&note, "note", "", "anything")
	return c
}

// batch is how many devices go in one call.
const batch = 1000

func (a *app) addDevices(ctx context.Context, devices []*adminpb.Device) error {
	return a.onNodes(func(client adminpb.NodeAdminClient) error {
		for part := range slices.Chunk(devices, batch) {
			if _, err := client.AddInventory(ctx, &adminpb.AddInventoryRequest{Devices: part}); err != nil {
				return err
			}
		}
		return nil
	})
}

// maxInventory bounds the answer with the whole inventory, in bytes.
const maxInventory = 256 << 20

func (a *app) devices(ctx context.Context) (devices []*adminpb.Device, err error) {
	err = a.onNodes(func(client adminpb.NodeAdminClient) error {
		resp, err := client.ListInventory(ctx, &adminpb.ListInventoryRequest{}, grpc.MaxCallRecvMsgSize(maxInventory))
		devices = resp.GetDevices()
		return err
	})
	return devices, err
}

func (a *app) inventoryList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "Lists the TPMs", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		devices, err := a.devices(c.Context())
		if err != nil {
			return err
		}
		return a.Show(cli.Messages(devices), func(w io.Writer) {
			for _, d := range devices {
				fmt.Fprintf(w, "%s\t%s\n", d.EkHash, deviceText(d))
			}
			if len(devices) == 0 {
				fmt.Fprintln(w, "no TPMs are listed; the server's configuration may name more (ek_hashes)")
			}
		})
	}}
}

func (a *app) inventoryRemove() *cobra.Command {
	return &cobra.Command{Use: "remove EK-HASH…", Short: "Takes TPMs out; a node that was let in by it is refused when it attests next", Args: cobra.MinimumNArgs(1), RunE: func(c *cobra.Command, args []string) error {
		return a.onNodes(func(client adminpb.NodeAdminClient) error {
			resp, err := client.RemoveInventory(c.Context(), &adminpb.RemoveInventoryRequest{EkHashes: args})
			if err != nil {
				return err
			}
			if int(resp.Removed) < len(args) {
				return fmt.Errorf("%d of %d EK hashes were in the inventory and are removed; `assay tpm inventory list` shows the rest", resp.Removed, len(args))
			}
			return nil
		})
	}}
}

func (a *app) inventoryImport() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE.csv|FILE.json|FOLDER",
		Short: "Adds the TPMs of a CSV or JSON file, or of a folder of spire-tpm-plugin's whose file names are hashes",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			devices, err := readInventory(args[0])
			if err != nil {
				return err
			}
			if err := a.addDevices(c.Context(), devices); err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.ErrOrStderr(), "imported %d TPMs\n", len(devices))
			return err
		},
	}
}

func (a *app) inventoryExport() *cobra.Command {
	return &cobra.Command{Use: "export", Short: "Writes the inventory as CSV, or as JSON with -o json, for import", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		devices, err := a.devices(c.Context())
		if err != nil {
			return err
		}
		if a.Format == "json" {
			return a.Show(cli.Messages(devices), nil)
		}
		return writeCSV(c.OutOrStdout(), devices)
	}}
}
