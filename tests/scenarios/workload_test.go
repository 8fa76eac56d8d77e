// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// roles are what the test binary can be besides the tests.
var roles = map[string]func() int{"workload": beWorkload, "drain": beDrain, "powerless": bePowerless}

// event is one line that a workload prints: a message of its stream, or how the stream ended.
type event struct {
	IDs, Serials, DNS []string
	Code, Message     string
}

// beWorkload opens one FetchX509SVID stream, without go-spiffe's reconnecting, and prints its
// events. "exec" on its input makes it execute the role drain with the connection still open,
// "fork" makes it leave the connection to a child of that role and exit; so does the input's
// end, without a child.
func beWorkload() int {
	var fd int
	conn, err := grpc.NewClient("passthrough:///agent", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
		c, err := net.Dial("unix", strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://"))
		if err != nil {
			return nil, err
		}
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			return nil, err
		}
		return c, raw.Control(func(n uintptr) { fd = int(n) })
	}))
	if err != nil {
		panic(err)
	}
	go func() {
		out := json.NewEncoder(os.Stdout)
		for e := range follow(context.Background(), conn) {
			_ = out.Encode(e)
		}
	}()
	order, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil {
		return 0
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
		panic(err)
	}
	os.Setenv("ASSAY_ROLE", "drain")
	os.Setenv("ASSAY_FD", fmt.Sprint(fd))
	if order == "exec\n" {
		panic(syscall.Exec(self, []string{self}, os.Environ()))
	}
	child := exec.Command(self)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	if err := child.Start(); err != nil {
		panic(err)
	}
	return 0
}

// follow yields the events of one stream, its end last.
func follow(ctx context.Context, conn *grpc.ClientConn) func(func(event) bool) {
	return func(yield func(event) bool) {
		st, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &pb.X509SVIDRequest{})
		for err == nil {
			var m *pb.X509SVIDResponse
			if m, err = st.Recv(); err != nil {
				break
			}
			var e event
			for _, s := range m.Svids {
				certs, parseErr := x509.ParseCertificates(s.X509Svid)
				if parseErr != nil {
					panic(parseErr)
				}
				e.IDs, e.Serials, e.DNS = append(e.IDs, s.SpiffeId), append(e.Serials, certs[0].SerialNumber.String()), append(e.DNS, certs[0].DNSNames...)
			}
			if !yield(e) {
				return
			}
		}
		yield(event{Code: status.Code(err).String(), Message: status.Convert(err).Message()})
	}
}

// beDrain copies what still arrives on the connection it inherited.
func beDrain() int {
	var fd int
	if _, err := fmt.Sscan(os.Getenv("ASSAY_FD"), &fd); err != nil {
		panic(err)
	}
	fmt.Println("executed")
	_ = syscall.SetNonblock(fd, false)
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			fmt.Println("closed")
			return 0
		}
		fmt.Printf("%s\n", buf[:n])
	}
}

// bePowerless gives up CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN and runs its arguments.
func bePowerless() int {
	runtime.LockOSThread() // the bounding set is a thread's, and execve keeps that of the caller
	for _, c := range []uintptr{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_ADMIN} {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			panic(err)
		}
	}
	panic(syscall.Exec(os.Args[1], os.Args[1:], os.Environ()))
}

// workload is a running workload with an open stream.
type workload struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	events chan event

	mu   sync.Mutex
	rest strings.Builder // lines that are no events
}

// startWorkload starts program, a copy of the test binary, as a workload.
func (m *machine) startWorkload(t *testing.T, program string) *workload {
	t.Helper()
	w := &workload{cmd: exec.Command(program), events: make(chan event, 1000)}
	w.cmd.Env = append(m.environ(), "ASSAY_ROLE=workload")
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its children end with it
	stdout, err := w.cmd.StdoutPipe()
	if err == nil {
		w.stdin, err = w.cmd.StdinPipe()
	}
	if err == nil {
		err = w.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(stdout)
		lines.Buffer(nil, 1<<24)
		for lines.Scan() {
			var e event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				w.events <- e
				continue
			}
			w.mu.Lock()
			w.rest.WriteString(lines.Text() + "\n")
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		w.stdin.Close()
		_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL)
		<-read
		_ = w.cmd.Wait()
	})
	return w
}

func (w *workload) pid() string { return fmt.Sprint(w.cmd.Process.Pid) }

// text is what the workload received after it executed another program.
func (w *workload) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rest.String()
}

func (w *workload) next(t *testing.T, m *machine) event {
	t.Helper()
	select {
	case e := <-w.events:
		return e
	case <-time.After(patience):
		t.Fatalf("no event came\n--- logs\n%s", m.logs)
		return event{}
	}
}

// quiet fails the test if an event came.
func (w *workload) quiet(t *testing.T) {
	t.Helper()
	select {
	case e := <-w.events:
		t.Errorf("unexpected event %+v", e)
	default:
	}
}
