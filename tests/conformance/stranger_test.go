// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc/status"
)

// The test binary plays other workloads, too: as another user it is a stranger, who has no identity but
// those that a probe gives him by his uid.

// roles are what the test binary can be.
var roles = map[string]func() int{"stranger": beStranger, "watcher": beWatcher, "sleeper": beSleeper, "sds": beSDS}

// An answer is what a stranger got.
type answer struct {
	RPC, Code, Message string
	IDs                []string
}

func (a answer) print() { _ = json.NewEncoder(os.Stdout).Encode(a) }

func socketOfRole() string { return os.Getenv("CONFORMANCE_SOCKET") }

// beStranger calls every method once.
func beStranger() int {
	conn, err := dial(socketOfRole())
	if err != nil {
		panic(err)
	}
	for _, rpc := range rpcs {
		req := rpc.req()
		if v, ok := req.(*pb.ValidateJWTSVIDRequest); ok {
			v.Svid = os.Getenv("CONFORMANCE_TOKEN")
		}
		ctx, cancel := context.WithTimeout(header(context.Background()), patience)
		err := ask(ctx, conn, service+rpc.name, req, rpc.resp())
		cancel()
		answer{RPC: rpc.name, Code: status.Code(err).String(), Message: status.Convert(err).Message()}.print()
	}
	return 0
}

// beWatcher follows FetchX509SVID to its end.
func beWatcher() int {
	conn, err := dial(socketOfRole())
	if err != nil {
		panic(err)
	}
	st, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(header(context.Background()), &pb.X509SVIDRequest{})
	for err == nil {
		var m *pb.X509SVIDResponse
		if m, err = st.Recv(); err == nil {
			a := answer{RPC: "FetchX509SVID", Code: "OK"}
			for _, s := range m.Svids {
				a.IDs = append(a.IDs, s.SpiffeId)
			}
			a.print()
		}
	}
	answer{RPC: "FetchX509SVID", Code: status.Code(err).String(), Message: status.Convert(err).Message()}.print()
	return 0
}

// beSleeper is a workload that others ask about, until its input ends.
func beSleeper() int {
	_, _ = os.Stdout.WriteString("{}\n")
	_, _ = io.Copy(io.Discard, os.Stdin)
	return 0
}

// play starts the test binary in a role, as another user, and returns what it prints.
func play(p *probe, role string) (*exec.Cmd, <-chan answer) {
	p.Helper()
	dir, err := os.MkdirTemp("/run", "conformance-") // where other users may execute it
	p.must("folder", err)
	p.Cleanup(func() { _ = os.RemoveAll(dir) })
	p.must("folder", os.Chmod(dir, 0o755))
	self, err := os.ReadFile("/proc/self/exe")
	p.must("the test binary", err)
	path := filepath.Join(dir, "stranger")
	p.must("copy of the test binary", os.WriteFile(path, self, 0o755))
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), "CONFORMANCE_ROLE="+role, "CONFORMANCE_SOCKET="+*socketFlag, "CONFORMANCE_TOKEN="+fetchJWT(p, "db")[0].raw)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(*strangerFlag), Gid: uint32(*strangerFlag)}, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	stdin, err := cmd.StdinPipe()
	p.must("stdin", err)
	stdout, err := cmd.StdoutPipe()
	p.must("stdout", err)
	p.must("start", cmd.Start())
	answers := make(chan answer, 100)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(answers)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var a answer
			if json.Unmarshal(lines.Bytes(), &a) == nil {
				answers <- a
			}
		}
	}()
	p.Cleanup(func() {
		stdin.Close()
		_ = cmd.Process.Kill()
		<-done
		_ = cmd.Wait()
	})
	return cmd, answers
}

// strange returns what a caller without identity gets from each method.
func strange(p *probe) (list []answer) {
	p.Helper()
	_, answers := play(p, "stranger")
	for a := range answers {
		list = append(list, a)
	}
	if len(list) != len(rpcs) {
		p.Fatalf("the stranger printed %d answers", len(list))
	}
	return list
}
