// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// handshakes are TLS handshakes of which so many compute at a time as there are processors. When thousands of
// agents come back at once each handshake is short, instead of all of them being so long that
// the agents give up and begin anew.
type handshakes struct {
	credentials.TransportCredentials
	door *turnstile
}

func newHandshakes(tls credentials.TransportCredentials, processors int) credentials.TransportCredentials {
	return &handshakes{tls, &turnstile{slots: processors, free: processors}}
}

// ServerHandshake is part of credentials.TransportCredentials.
func (h *handshakes) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return h.TransportCredentials.ServerHandshake(conn)
	}
	c := &handshakeConn{TCPConn: tcp, door: h.door, shaking: true}
	defer c.end()
	return h.TransportCredentials.ServerHandshake(c)
}

// Clone is part of credentials.TransportCredentials.
func (h *handshakes) Clone() credentials.TransportCredentials {
	return &handshakes{h.TransportCredentials.Clone(), h.door}
}

// handshakeConn has a place in the turnstile while its handshake computes, and none while it waits for
// the client. From the end of the handshake on it is the connection as it is.
type handshakeConn struct {
	*net.TCPConn
	door           *turnstile
	shaking, begun bool
	since          time.Time // inside the turnstile; zero: outside
}

func (c *handshakeConn) Read(p []byte) (int, error) {
	if !c.shaking {
		return c.TCPConn.Read(p)
	}
	c.leave()
	n, err := c.TCPConn.Read(p)
	if err != nil {
		return n, err
	}
	if err := c.door.enter(c.begun); err != nil {
		return 0, err
	}
	c.begun, c.since = true, time.Now()
	return n, nil
}

func (c *handshakeConn) leave() {
	if !c.since.IsZero() {
		c.door.leave(time.Since(c.since))
		c.since = time.Time{}
	}
}

func (c *handshakeConn) end() {
	c.leave()
	c.shaking = false
}

// turnstile lets so many in as there are slots, who has been inside before first, each in the order in
// which they came.
type turnstile struct {
	slots int

	mu          sync.Mutex
	free        int
	begun, anew []chan struct{} // who wait
	mean        time.Duration   // of a stay
}

// longestQueue is how long somebody new may have to wait: well below the 20 s after which clients of gRPC
// give a connection up, so that no work is done for those who are gone.
const longestQueue = 5 * time.Second

var errBusy = errors.New("more connections are being opened than this server can judge; try again")

// enter waits for a slot. errBusy: somebody new would have to wait for too long.
func (t *turnstile) enter(begun bool) error {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
		return nil
	}
	queue := &t.anew
	if begun {
		queue = &t.begun
	} else if t.mean*time.Duration(len(t.anew)+len(t.begun))/time.Duration(t.slots) > longestQueue {
		t.mu.Unlock()
		return errBusy
	}
	turn := make(chan struct{})
	*queue = append(*queue, turn)
	t.mu.Unlock()
	<-turn
	return nil
}

// leave gives the slot to the next, after a stay of some time.
func (t *turnstile) leave(stay time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mean += (stay - t.mean) / 16
	for _, queue := range []*[]chan struct{}{&t.begun, &t.anew} {
		if len(*queue) > 0 {
			close((*queue)[0])
			*queue = (*queue)[1:]
			return
		}
	}
	t.free++
}
