// SPDX-License-Identifier: Apache-2.0

package delivery_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/deliverytest"
	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/agent/svids"
)

// face is a gRPC server on a socket whose every method is one stream.
type face struct {
	path string
	stop func()
}

func serve(t *testing.T, connections *limits.Count, options []grpc.ServerOption, h func(grpc.ServerStream) error) *face {
	t.Helper()
	peers, err := caller.NewPeers()
	if err != nil {
		if os.Getenv("ASSAY_NO_SKIP") == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	f := &face{path: filepath.Join(t.TempDir(), "s")}
	l, err := caller.Listen(t.Context(), caller.Config{Path: f.path, Mode: 0o700, Binder: peers, Connections: connections, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(append(options, grpc.Creds(caller.Credentials()), grpc.UnknownServiceHandler(func(_ any, st grpc.ServerStream) error { return h(st) }))...)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	f.stop = sync.OnceFunc(func() {
		g.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stop)
	return f
}

// deaf opens a stream as HTTP/2 has it and never reads.
func (f *face) deaf(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	var headers bytes.Buffer
	enc := hpack.NewEncoder(&headers)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", "/x/Stream"}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	out.WriteString(http2.ClientPreface)
	framer := http2.NewFramer(&out, nil)
	err = errors.Join(framer.WriteSettings(), framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: headers.Bytes(), EndHeaders: true}), framer.WriteData(1, true, make([]byte, 5)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Write(out.Bytes()); err != nil {
		t.Fatal(err)
	}
	return c
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// TestDeafCrowd: a thousand clients who never read are sent 800 MB. What is held for them is a window each and the newest
// message, and they are hung up on; then nothing of them is left.
func TestDeafCrowd(t *testing.T) {
	const crowd, messages, size = 1000, 50, 16 << 10
	leak := goleak.IgnoreCurrent()
	fixture := deliverytest.New(t)
	fixture.Bundle(t, 1)
	fixture.Manager.Entries(true, nil, nil, 1)
	desk := fixture.Desk.Impatient(6*time.Second, caller.HangUp)
	var open, offered, sent atomic.Int64
	again := make([]chan struct{}, 0, crowd)
	var mu sync.Mutex
	f := serve(t, nil, []grpc.ServerOption{grpc.ReadBufferSize(2 << 10)}, func(st grpc.ServerStream) error {
		if err := st.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		s, err := desk.Enter(st.Context())
		if err != nil {
			return err
		}
		mine := make(chan struct{}, 1)
		mu.Lock()
		again = append(again, mine)
		mu.Unlock()
		open.Add(1)
		defer open.Add(-1)
		return delivery.Follow(st.Context(), s, delivery.Stream[*wrapperspb.BytesValue]{
			Offer: func(context.Context) (*wrapperspb.BytesValue, []*svids.SVID, error) {
				offered.Add(1)
				return wrapperspb.Bytes(make([]byte, size)), nil, nil
			},
			Same:  func(a, b *wrapperspb.BytesValue) bool { return a == b },
			Send:  func(m *wrapperspb.BytesValue) error { defer sent.Add(1); return st.SendMsg(m) },
			Again: mine,
		})
	})
	before := heap()
	clients := make([]net.Conn, crowd)
	for i := range clients {
		clients[i] = f.deaf(t)
		defer clients[i].Close()
	}
	until(t, "all streams", func() bool { return open.Load() == crowd })
	push := func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range again {
			select {
			case c <- struct{}{}:
			default:
			}
		}
	}
	for range messages {
		push()
		time.Sleep(10 * time.Millisecond)
	}
	held := heap() - before
	t.Logf("%d streams open, %d messages offered of %d; %d KB held for each", open.Load(), offered.Load(), crowd*messages, held/crowd>>10)
	if open.Load() < crowd/2 {
		t.Errorf("only %d of %d are still waited for: this measures nothing", open.Load(), crowd)
	}
	if held > crowd*400<<10 {
		t.Errorf("%d MB are held for %d clients who do not read", held>>20, crowd)
	}
	until(t, "the end of all streams", func() bool {
		push() // for those whose windows were not full yet
		return open.Load() == 0
	})
	f.stop()
	goleak.VerifyNone(t, leak)
	clear(again)
	if left := heap() - before; left > crowd*10<<10 {
		t.Errorf("%d MB are left of them", left>>20)
	}
}

// TestLimits: calls and streams beyond the limits are Unavailable, those of others not; what ends makes room.
func TestLimits(t *testing.T) {
	leak := goleak.IgnoreCurrent()
	now := time.Unix(1000, 0)
	clock := func() time.Time { return now }
	var who atomic.Pointer[limits.Caller]
	who.Store(&limits.Caller{UID: 1})
	var logs lines
	l := delivery.NewLimits(func(context.Context) limits.Caller { return *who.Load() }, limits.NewCount(100, 2),
		map[string]*limits.Rate{"": limits.NewRate(1000, clock), "Few": limits.NewRate(3, clock)}, slog.New(slog.NewTextHandler(&logs, nil)))
	f := serve(t, nil, l.Options(), func(st grpc.ServerStream) error {
		if err := st.SendMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		if m, _ := grpc.MethodFromServerStream(st); m == "/x/Few" {
			return nil
		}
		<-st.Context().Done()
		return nil
	})
	conn, err := grpc.NewClient("unix:"+f.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	calls := func(method string) (func(), codes.Code) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		return cancel, status.Code(st.RecvMsg(&emptypb.Empty{}))
	}
	for i, want := range []codes.Code{codes.OK, codes.OK, codes.OK, codes.Unavailable, codes.Unavailable} {
		cancel, got := calls("/x/Few")
		if cancel(); got != want {
			t.Errorf("call %d of 3 a second: %v", i, got)
		}
	}
	who.Store(&limits.Caller{UID: 1, Cgroup: 5})
	if cancel, got := calls("/x/Few"); got != codes.OK {
		t.Errorf("another caller: %v", got)
	} else {
		cancel()
	}
	var ends []func()
	until(t, "the streams above to end", func() bool {
		cancel, got := calls("/x/Stream")
		ends = append(ends, cancel)
		return got == codes.OK
	})
	until(t, "a second stream", func() bool {
		cancel, got := calls("/x/Stream")
		ends = append(ends, cancel)
		return got == codes.OK
	})
	if cancel, got := calls("/x/Stream"); got != codes.Unavailable {
		t.Errorf("a third stream of two: %v", got)
	} else {
		cancel()
	}
	for _, end := range ends {
		end()
	}
	until(t, "room for another", func() bool {
		cancel, got := calls("/x/Stream")
		cancel()
		return got == codes.OK
	})
	if n := logs.count("beyond its limits"); n != 1 {
		t.Errorf("logged %d times within ten seconds", n)
	}
	conn.Close()
	f.stop()
	goleak.VerifyNone(t, leak)
}

// lines counts what is logged.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Count(l.text.Bytes(), []byte(what))
}
