// SPDX-License-Identifier: Apache-2.0

package member

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A store's folder:
//
//	server.lock   held by the server, or by a command that needs it stopped
//	member.lock   held by the member's process
//	member/       etcd's own
//	peer/         our half of the TLS between members; present in a cluster only
//	join.json     how to enter a cluster: needed until member/ knows it
//	run/          client.sock, peer.sock, member.json
const (
	runDir       = "run"
	clientSocket = "client.sock"
	etcdDir      = "member"
	specFile     = "member.json"
	joinFile     = "join.json"
)

// Socket is the path of the member's client API.
func Socket(dir string) string { return filepath.Join(dir, runDir, clientSocket) }

// DataDir is etcd's folder in a store's.
func DataDir(dir string) string { return filepath.Join(dir, etcdDir) }

// Exists tells whether the folder holds a member's data.
func Exists(dir string) bool {
	_, err := os.Stat(filepath.Join(DataDir(dir), "member", "wal"))
	return err == nil
}

// Spec is what the parent tells the member's process, in run/member.json.
type Spec struct {
	// Name in the cluster, and Address that the others reach it at, "host:port". Both are
	// empty for a member that is alone.
	Name, Address string
	// TrustDomain is in the name that the members' certificates carry.
	TrustDomain string
	// QuotaBytes of the database, beyond which etcd refuses every write.
	QuotaBytes int64
}

// Clustered tells whether there may be other members.
func (s Spec) Clustered() bool { return s.Name != "" }

// PeerURL is where other members reach this one.
func (s Spec) PeerURL() string {
	if !s.Clustered() {
		return "unix://peer.sock" // etcd insists on one, also alone
	}
	return "https://" + s.Address
}

// listenURL is the peer URL as something to listen at: a name stands for every address.
func (s Spec) listenURL() string {
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil || !s.Clustered() || net.ParseIP(host) != nil {
		return s.PeerURL()
	}
	return "https://" + net.JoinHostPort("0.0.0.0", port)
}

// Write tells the next process of the member.
func (s Spec) Write(dir string) error { return writeJSON(filepath.Join(dir, runDir, specFile), s) }

func readSpec(dir string) (Spec, error) {
	var s Spec
	return s, readJSON(filepath.Join(dir, runDir, specFile), &s)
}

// Join is how a member that has no data yet enters a cluster.
type Join struct {
	// Members with their peer URLs, "a=https://…,b=https://…", the new one among them.
	Members string
}

// Write leaves it for the first start.
func (j Join) Write(dir string) error { return writeJSON(filepath.Join(dir, joinFile), j) }

func readJoin(dir string) (j Join, joins bool, err error) {
	err = readJSON(filepath.Join(dir, joinFile), &j)
	if errors.Is(err, os.ErrNotExist) {
		return j, false, nil
	}
	return j, err == nil, err
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(path, data)
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// writeFile replaces a file as a whole: a reader sees the old one or the new one, and so does
// whoever starts after a crash.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// SyncDir makes renames in a folder durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// MakeDirs makes a store's folders; only we may enter them.
func MakeDirs(dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, runDir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make the store's folder: %w", err)
		}
		if err := os.Chmod(d, 0o700); err != nil {
			return fmt.Errorf("protect the store's folder: %w", err)
		}
	}
	return nil
}

// LockServer takes the folder for a server, or for a command that needs it stopped. The lock
// ends with the file, and with the process.
func LockServer(dir string) (*os.File, error) {
	lock, err := lockFile(filepath.Join(dir, "server.lock"), 0)
	if err != nil {
		return nil, fmt.Errorf("the store in %s is in use by another assay-server: stop it or choose another data_dir: %w", dir, err)
	}
	return lock, nil
}

// lockFile takes an exclusive lock that ends with the process, waiting for it up to a time.
func lockFile(path string, wait time.Duration) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(wait)
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
