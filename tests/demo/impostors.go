// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// impostors shows four ways to pose as payments, and what comes of them.
func (s *story) impostors(ctx context.Context) error {
	s.say("Four impostors want to be payments")
	for _, try := range []func(context.Context) error{s.otherBinary, s.otherParent, s.lentSocket, s.reusedPID} {
		if err := try(ctx); err != nil {
			return err
		}
	}
	return nil
}

// refused runs a program that must get no identity, and shows the reason.
func (s *story) refused(cmd *exec.Cmd) error {
	before := len(s.logs.String())
	out, err := cmd.CombinedOutput()
	s.quote(out)
	if err == nil || bytes.Contains(out, []byte("I am spiffe://")) {
		return errors.New("an impostor got an identity")
	}
	s.reason(before)
	return nil
}

// reason tells why, from what the agent logs. At tier T1 it learns of a refused use when the
// connection closes.
func (s *story) reason(since int) {
	for range 300 {
		for line := range strings.Lines(s.logs.String()[since:]) {
			if strings.Contains(line, "caller refused") || strings.Contains(line, "no identity issued") {
				_, why, _ := strings.Cut(line, "msg=")
				s.tell("  the agent's log: %s", strings.TrimSpace(why))
				return
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *story) otherBinary(ctx context.Context) error {
	s.tell("a) same path, same user, one byte of the program changed:")
	path := filepath.Join(s.dir, "payments")
	edit := func(data []byte) []byte {
		return bytes.Replace(data, []byte("payments build A"), []byte("payments build B"), 1)
	}
	if err := copyFile(path, filepath.Join(s.bin, "payments"), edit); err != nil {
		return err
	}
	err := s.refused(s.program(ctx, path, "call", "127.0.0.1:1"))
	return errors.Join(err, copyFile(path, filepath.Join(s.bin, "payments"), nil))
}

func (s *story) otherParent(ctx context.Context) error {
	s.tell("b) the right program, started by a shell instead:")
	return s.refused(s.program(ctx, "/bin/sh", "-c", filepath.Join(s.dir, "payments")+" call 127.0.0.1:1; exit $?"))
}

func (s *story) lentSocket(ctx context.Context) error {
	s.tell("c) the right program opens the connection, another one inherits it:")
	return s.refused(s.program(ctx, filepath.Join(s.dir, "payments"), "lend", filepath.Join(s.bin, "demo"), "thief"))
}

// errTaken: a thread of somebody else got the number in between.
var errTaken = errors.New("could not be had again")

// reusedPID: an attacker connects and exits, its child keeps the connection, and the PID that
// the socket remembers is given to the real payments.
func (s *story) reusedPID(ctx context.Context) error {
	s.tell("d) the PID of a dead caller now belongs to the real payments:")
	err := s.reuse(ctx)
	for try := 1; try < 3 && errors.Is(err, errTaken); try++ {
		err = s.reuse(ctx)
	}
	return err
}

func (s *story) reuse(ctx context.Context) error {
	before := len(s.logs.String())
	attacker := s.program(ctx, filepath.Join(s.bin, "demo"), "attacker")
	toThief, err := attacker.StdinPipe()
	if err != nil {
		return err
	}
	fromThief, w, err := os.Pipe()
	if err != nil {
		return err
	}
	attacker.Stdout, attacker.Stderr = w, w
	if err := attacker.Start(); err != nil {
		return err
	}
	w.Close()
	pid := attacker.Process.Pid
	// The thief holds the attacker's standard input open, so wait for the attacker only.
	if _, err := attacker.Process.Wait(); err != nil {
		return err
	}
	victim, err := s.startAs(ctx, pid)
	if err != nil {
		return errors.Join(err, toThief.Close(), fromThief.Close()) // the thief ends with its input
	}
	defer func() {
		_ = victim.Process.Kill()
		_ = victim.Wait()
	}()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return err
	}
	s.tell("  SO_PEERCRED says %d, and /proc/%d/exe is %s", pid, pid, exe)
	if _, err := io.WriteString(toThief, "go\n"); err != nil {
		return err
	}
	out, err := io.ReadAll(fromThief)
	if err != nil {
		return err
	}
	s.quote(out)
	if bytes.Contains(out, []byte("I am spiffe://")) {
		return errors.New("an impostor got an identity")
	}
	s.reason(before)
	return nil
}

// startAs starts the real payments under a given PID that is free.
func (s *story) startAs(ctx context.Context, pid int) (*exec.Cmd, error) {
	for range 2000 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			return nil, err
		}
		cmd := s.program(ctx, filepath.Join(s.dir, "payments"), "sleep")
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		if cmd.Process.Pid == pid {
			time.Sleep(10 * time.Millisecond) // until it has executed payments
			return cmd, nil
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return nil, fmt.Errorf("PID %d %w", pid, errTaken)
}

// impostor is what this program does as one of the actors.
func impostor(args []string) int {
	var err error
	switch args[0] {
	case "thief":
		err = thief()
	case "waiting-thief":
		err = waitingThief()
	case "attacker":
		err = attack()
	default:
		err = errors.New("usage: demo")
	}
	if err != nil {
		fmt.Println("impostor:", err)
		return 1
	}
	return 0
}

// thief asks for an identity over the connection that it inherited as descriptor 3.
func thief() error {
	conn, err := net.FileConn(os.NewFile(3, "inherited"))
	if err != nil {
		return err
	}
	used := false
	dialer := func(context.Context, string) (net.Conn, error) {
		if used {
			return nil, errors.New("the inherited connection is gone")
		}
		used = true
		return conn, nil
	}
	client, err := grpc.NewClient("passthrough:inherited", grpc.WithContextDialer(dialer), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	stream, err := pb.NewSpiffeWorkloadAPIClient(client).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	resp, err := stream.Recv()
	if err != nil {
		return fmt.Errorf("%s: %s", status.Code(err), status.Convert(err).Message())
	}
	fmt.Println("impostor: I am", resp.Svids[0].SpiffeId)
	return nil
}

// attack connects, leaves the connection to a child that waits for a line, and exits.
func attack() error {
	conn, err := net.Dial("unix", strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://"))
	if err != nil {
		return err
	}
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	child := exec.Command("/proc/self/exe", "waiting-thief")
	child.Stdin, child.Stdout, child.Stderr, child.ExtraFiles = os.Stdin, os.Stdout, os.Stderr, []*os.File{f}
	return child.Start()
}

// waitingThief waits for a line and then does what thief does.
func waitingThief() error {
	if _, err := bufio.NewReader(os.Stdin).ReadString('\n'); err != nil {
		return err
	}
	return thief()
}
