// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// proxy is a server that knows only files, and reads them again at a signal.
type proxy struct {
	name, program, signal string
	uid                   uint32
	// conf is its configuration for an address, with the folder of the files; args is its command line.
	conf func(address, dir string) string
	args func(conf, pid string) []string
}

// proxies are those that are tested. NATS takes who is in the certificate for its user.
func proxies(t *testing.T, nats string) []proxy {
	return []proxy{
		{
			name: "nginx", program: installed(t, "nginx"), signal: "SIGHUP", uid: wwwData,
			conf: func(address, dir string) string {
				return strings.NewReplacer("ADDRESS", address, "DIR", dir).Replace(`daemon off;
worker_processes 2;
pid DIR/pid;
error_log stderr info;
events {}
http {
  access_log off;
  client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/fastcgi; uwsgi_temp_path DIR/uwsgi; scgi_temp_path DIR/scgi;
  server {
    listen ADDRESS ssl;
    ssl_certificate DIR/svid.pem;
    ssl_certificate_key DIR/svid.pem.key;
    ssl_client_certificate DIR/bundle.pem;
    ssl_verify_client on;
    location / { return 200 "hello"; }
  }
}
`)
			},
			args: func(conf, _ string) []string { return []string{"-c", conf, "-p", filepath.Dir(conf), "-e", "stderr"} },
		},
		{
			name: "haproxy", program: installed(t, "haproxy"), signal: "SIGUSR2", uid: haproxyUser,
			conf: func(address, dir string) string {
				return strings.NewReplacer("ADDRESS", address, "DIR", dir).Replace(`global
  stats socket DIR/admin.sock mode 600 level admin expose-fd listeners
defaults
  mode http
  timeout connect 20s
  timeout client 20s
  timeout server 20s
frontend tls
  bind ADDRESS ssl crt DIR/svid.pem ca-file DIR/bundle.pem verify required
  http-request return status 200 content-type text/plain string hello
`)
			},
			args: func(conf, pid string) []string { return []string{"-W", "-f", conf, "-p", pid} },
		},
		{
			name: "nats", program: nats, signal: "SIGHUP", uid: natsUser,
			conf: func(address, dir string) string {
				return strings.NewReplacer("ADDRESS", address, "DIR", dir, "USER", id("caller")).Replace(`listen: "ADDRESS"
pid_file: "DIR/pid"
tls { cert_file: "DIR/svid.pem", key_file: "DIR/svid.pem.key", ca_file: "DIR/bundle.pem", verify_and_map: true, timeout: 20 }
authorization { users = [ { user: "USER" } ] }
`)
			},
			args: func(conf, _ string) []string { return []string{"-c", conf} },
		},
	}
}

// startFed starts a feeder of files, and once they are there, the proxy. Both run as the proxy's user.
func (h *house) startFed(t *testing.T, p proxy, address, own string) []*program {
	t.Helper()
	dir := h.folder(t, p.name, p.uid)
	pid := filepath.Join(dir, "pid")
	feeder, args := own, []string{"feed", dir, pid, p.signal}
	if helper := os.Getenv("SPIFFE_HELPER"); helper != "" {
		feeder, args = helper, []string{"-config", write(t, filepath.Join(dir, "helper.conf"), fmt.Sprintf(`agent_address = %q
cert_dir = %q
pid_file_name = %q
renew_signal = %q
svid_file_name = "svid.pem"
svid_key_file_name = "svid.pem.key"
svid_bundle_file_name = "bundle.pem"
`, strings.TrimPrefix(h.WorkloadSocket, "unix://"), dir, pid, p.signal))}
	}
	h.register(t, p.name, feeder, p.uid)
	f := h.start(t, "feeder of "+p.name, p.uid, feeder, args...)
	eventually(t, "files for "+p.name, func() bool {
		return exists(filepath.Join(dir, "svid.pem")) && exists(filepath.Join(dir, "svid.pem.key")) && exists(filepath.Join(dir, "bundle.pem"))
	})
	conf := write(t, filepath.Join(dir, "conf"), p.conf(address, dir))
	s := h.start(t, p.name, p.uid, p.program, p.args(conf, pid)...)
	listening(t, address, s)
	return []*program{f, s}
}
