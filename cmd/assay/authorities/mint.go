// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/assay/cli"
)

// mintFlags are those of every SVID that is minted.
type mintFlags struct {
	id  string
	ttl time.Duration
	// write is where the secret goes instead of standard output.
	write string
}

func (f *mintFlags) register(c *cobra.Command, write string) *cobra.Command {
	c.Flags().StringVar(&f.id, "spiffe-id", "", "identity to give, spiffe://trust-domain/path")
	c.Flags().DurationVar(&f.ttl, "ttl", 0, "life (0: the server's default)")
	c.Flags().StringVar(&f.write, "write", "", write)
	return required(c, "spiffe-id")
}

// seconds of --ttl.
func (f *mintFlags) seconds() (int32, error) {
	if f.ttl < 0 || f.ttl%time.Second != 0 {
		return 0, fmt.Errorf("--ttl %s: write whole seconds, for example 10m", f.ttl)
	}
	return int32(f.ttl / time.Second), nil
}

// shorter warns of a life that the server cut.
func (f *mintFlags) shorter(c *cobra.Command, expiresAt int64) {
	if left := time.Until(time.Unix(expiresAt, 0)); f.ttl > 0 && left < f.ttl-time.Minute {
		fmt.Fprintf(c.ErrOrStderr(), "assay: the SVID lives %s only: its authority ends then\n", left.Round(time.Second))
	}
}

// minted is an X.509-SVID with its key, which the API does not carry.
type minted struct {
	SPIFFEID  string `json:"spiffe_id"`
	ExpiresAt string `json:"expires_at"`
	SVID      string `json:"x509_svid"`
	Key       string `json:"private_key"`
	Bundle    string `json:"root_cas"`
}

func (a *app) mintX509() *cobra.Command {
	var f mintFlags
	var dns []string
	c := f.register(&cobra.Command{Use: "mint", Short: "Mints an X.509-SVID for a new key, by the operator's word", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			m, err := f.x509(c, conn, dns)
			if err != nil {
				return err
			}
			if f.write == "" {
				return a.Show(m, func(w io.Writer) {
					fmt.Fprintf(w, "X509-SVID:\n%s\nPrivate key:\n%s\nRoot CAs:\n%s", m.SVID, m.Key, m.Bundle)
				})
			}
			for name, text := range map[string]string{"svid.pem": m.SVID, "key.pem": m.Key, "bundle.pem": m.Bundle} {
				if err := os.WriteFile(filepath.Join(f.write, name), []byte(text), 0o600); err != nil {
					return fmt.Errorf("write the SVID: %w", err)
				}
			}
			m.Key = ""
			return a.Show(m, func(w io.Writer) { fmt.Fprintf(w, "wrote svid.pem, key.pem and bundle.pem to %s\n", f.write) })
		})
	}}, "folder for svid.pem, key.pem and bundle.pem (default: standard output)")
	c.Flags().StringArrayVar(&dns, "dns", nil, "DNS name for the SVID; repeat for more")
	return cli.Group("x509", "X.509-SVIDs by hand", c)
}

func (f *mintFlags) x509(c *cobra.Command, conn *grpc.ClientConn, dns []string) (*minted, error) {
	id, err := url.Parse(f.id)
	if err != nil {
		return nil, fmt.Errorf("--spiffe-id: %w", err)
	}
	ttl, err := f.seconds()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id}, DNSNames: dns}, key)
	if err != nil {
		return nil, fmt.Errorf("make the request: %w", err)
	}
	resp, err := svidv1.NewSVIDClient(conn).MintX509SVID(c.Context(), &svidv1.MintX509SVIDRequest{Csr: csr, Ttl: ttl})
	if err != nil {
		return nil, err
	}
	b, err := bundlev1.NewBundleClient(conn).GetBundle(c.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	if len(b.X509Authorities) == 0 {
		return nil, errors.New("the server's bundle holds no X.509 authority")
	}
	f.shorter(c, resp.Svid.ExpiresAt)
	m := &minted{SPIFFEID: cli.IDText(resp.Svid.Id), ExpiresAt: cli.TimeText(resp.Svid.ExpiresAt), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))}
	for _, der := range resp.Svid.CertChain {
		m.SVID += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	m.Bundle, err = bundleText(b, formatPEM)
	return m, err
}

func (a *app) mintJWT() *cobra.Command {
	var f mintFlags
	var audience []string
	c := f.register(&cobra.Command{Use: "mint", Short: "Mints a JWT-SVID, by the operator's word", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		id, err := cli.ParseID(f.id)
		if err != nil {
			return err
		}
		ttl, err := f.seconds()
		if err != nil {
			return err
		}
		return client(a, svidv1.NewSVIDClient, func(client svidv1.SVIDClient) error {
			resp, err := client.MintJWTSVID(c.Context(), &svidv1.MintJWTSVIDRequest{Id: id, Audience: audience, Ttl: ttl})
			if err != nil {
				return err
			}
			f.shorter(c, resp.Svid.ExpiresAt)
			return a.token(&f, resp, &resp.Svid.Token)
		})
	}}, "file for the token (default: standard output)")
	c.Flags().StringArrayVar(&audience, "audience", nil, "whom the token is for; repeat for more")
	return cli.Group("jwt", "JWT-SVIDs by hand", required(c, "audience"))
}

func (a *app) mintWIT() *cobra.Command {
	var f mintFlags
	var path, algorithm string
	c := f.register(&cobra.Command{Use: "mint", Short: "Mints a WIT-SVID for a public key, by the operator's word", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		id, err := cli.ParseID(f.id)
		if err != nil {
			return err
		}
		ttl, err := f.seconds()
		if err != nil {
			return err
		}
		key, err := publicKey(c, path)
		if err != nil {
			return err
		}
		return client(a, svidv1.NewSVIDClient, func(client svidv1.SVIDClient) error {
			resp, err := client.MintWITSVID(c.Context(), &svidv1.MintWITSVIDRequest{Id: id, PublicKey: key, Ttl: ttl, SigningAlgorithm: algorithm})
			if err != nil {
				return err
			}
			f.shorter(c, resp.Svid.ExpiresAt)
			return a.token(&f, resp, &resp.Svid.Token)
		})
	}}, "file for the token (default: standard output)")
	c.Flags().StringVar(&path, "public-key", "", "PEM file with the holder's public key (- is standard input)")
	c.Flags().StringVar(&algorithm, "signing-algorithm", "ES256", "what the holder signs with: ES256, ES384, RS256, … (RFC 7518)")
	return cli.Group("wit", "WIT-SVIDs by hand", required(c, "public-key"))
}

// publicKey reads a PEM file with one public key, as PKIX.
func publicKey(c *cobra.Command, path string) ([]byte, error) {
	data, err := readInput(c, path)
	if err != nil {
		return nil, fmt.Errorf("read the public key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, fmt.Errorf("%s holds no PEM block PUBLIC KEY; make one with: openssl pkey -in key.pem -pubout", path)
	}
	if _, err := x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return block.Bytes, nil
}

// token shows a token, or writes it to the file and shows the rest.
func (a *app) token(f *mintFlags, resp proto.Message, token *string) error {
	text := *token
	if f.write == "" {
		return a.Show(resp, func(w io.Writer) { fmt.Fprintln(w, text) })
	}
	if err := os.WriteFile(f.write, []byte(strings.TrimSpace(text)+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the token: %w", err)
	}
	*token = ""
	return a.Show(resp, func(w io.Writer) { fmt.Fprintf(w, "wrote the token to %s\n", f.write) })
}
