// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// call is a whole FetchX509SVID call as bytes (RFC 9113, RFC 7541 section 6.2.2), so that an
// actor needs no more than write and read: a forked child, another ring, a library.
func call(stream uint32) []byte {
	var headers []byte
	for _, h := range [][2]string{
		{":method", "POST"}, {":scheme", "http"}, {":path", "/SpiffeWorkloadAPI/FetchX509SVID"}, {":authority", "localhost"},
		{"content-type", "application/grpc"}, {"te", "trailers"}, {"workload.spiffe.io", "true"},
	} {
		headers = append(headers, 0, byte(len(h[0])))
		headers = append(headers, h[0]...)
		headers = append(headers, byte(len(h[1])))
		headers = append(headers, h[1]...)
	}
	out := appendFrame(nil, frameHeaders, flagEndHeaders, stream, headers)
	return appendFrame(out, frameData, flagEndStream, stream, make([]byte, 5)) // an empty message
}

// request opens a connection and makes its first call, secondRequest makes another.
var (
	request       = append(appendFrame([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), frameSettings, 0, 0, nil), call(1)...)
	secondRequest = call(3)
)

const (
	frameData, frameHeaders, frameReset, frameSettings, frameGoAway = 0, 1, 3, 4, 7
	flagEndStream, flagEndHeaders                                   = 1, 4
)

func appendFrame(out []byte, kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	out = append(out, byte(n>>16), byte(n>>8), byte(n), kind, flags)
	out = binary.BigEndian.AppendUint32(out, stream)
	return append(out, payload...)
}

// frames reports whether the data ends with a frame, and whether the server ended a call in it.
func frames(data []byte) (whole, ended bool) {
	for len(data) >= 9 {
		n := 9 + (int(data[0])<<16 | int(data[1])<<8 | int(data[2]))
		switch kind, flags := data[3], data[4]; {
		case kind == frameReset, kind == frameGoAway, kind == frameHeaders && flags&flagEndStream != 0:
			ended = true
		}
		if n > len(data) {
			return false, ended
		}
		data = data[n:]
	}
	return len(data) == 0, ended
}

// verdict is what an actor tells of its call.
type verdict struct {
	delivered bool
	// denied: the kernel did not allow the means.
	denied bool
	detail string
}

func (v verdict) String() string {
	switch {
	case v.delivered:
		return "VERDICT delivered"
	case v.denied:
		return "VERDICT denied " + v.detail
	}
	return "VERDICT nothing " + v.detail
}

func parseVerdict(line string) (v verdict, ok bool) {
	rest, ok := bytes.CutPrefix([]byte(line), []byte("VERDICT "))
	word, detail, _ := bytes.Cut(rest, []byte(" "))
	return verdict{string(word) == "delivered", string(word) == "denied", string(detail)}, ok
}

func wanted() []byte { return []byte(os.Getenv("REDTEAM_ID")) }

// patience is how long an actor waits for an answer; an emulated guest is slow.
func patience() time.Duration {
	if os.Getenv("ASSAY_GUEST") == "1" {
		return 15 * time.Second
	}
	return 5 * time.Second
}

// ask sends the request over a connection and reads until the wanted identity or the end.
func ask(c net.Conn) verdict { return send(c, request) }

func send(c net.Conn, request []byte) verdict {
	check(c.SetDeadline(time.Now().Add(patience())))
	if _, err := c.Write(request); err != nil {
		return verdict{detail: "write: " + errno(err)}
	}
	return read(c)
}

func read(c io.Reader) verdict {
	var all []byte
	buf := make([]byte, 1<<16)
	for {
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		whole, ended := frames(all)
		switch {
		case bytes.Contains(all, wanted()) && (whole || err != nil):
			return verdict{delivered: true}
		case ended:
			return verdict{detail: "the call was ended by the agent"}
		case err == io.EOF:
			return verdict{detail: "the connection was closed by the agent"}
		case err != nil:
			return verdict{detail: "read: " + errno(err)}
		}
	}
}

func errno(err error) string {
	var e unix.Errno
	if errors.As(err, &e) {
		return unix.ErrnoName(e)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return "no answer"
	}
	return err.Error()
}

// askFD is ask over a descriptor.
func askFD(fd int) verdict { return sendFD(fd, request) }

func sendFD(fd int, request []byte) verdict {
	f := os.NewFile(uintptr(fd), "connection")
	c, err := net.FileConn(f)
	if err != nil {
		return verdict{detail: fmt.Sprintf("descriptor %d: %v", fd, err)}
	}
	f.Close()
	return send(c, request)
}
