// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/assay-id/assay/server/gate"
)

var update = flag.Bool("update", false, "write docs/api.md from what the tests of this package call; run all of them")

const apiTable = "../docs/api.md"

// called are the tests by the methods that they called, and that answered without an error.
var called = struct {
	sync.Mutex
	by map[string]map[string]bool
}{by: map[string]map[string]bool{}}

func note(t *testing.T, method string, err error) {
	if err != nil {
		return
	}
	test, _, _ := strings.Cut(t.Name(), "/")
	called.Lock()
	defer called.Unlock()
	if called.by[method] == nil {
		called.by[method] = map[string]bool{}
	}
	called.by[method][test] = true
}

// record notes the calls over a connection: a stream once it has answered.
func record(t *testing.T) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, conn, opts...)
			note(t, method, err)
			return err
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := open(ctx, desc, conn, method, opts...)
			return &recorded{s, func() { note(t, method, nil) }}, err
		}),
	}
}

type recorded struct {
	grpc.ClientStream
	answered func()
}

func (r *recorded) RecvMsg(m any) error {
	err := r.ClientStream.RecvMsg(m)
	if err == nil {
		r.answered()
	}
	return err
}

// checkAPITable compares docs/api.md with what the tests called; only after a run of all of them.
func checkAPITable() error {
	if !flag.Parsed() { // a child process that is a member of the store
		return nil
	}
	if run := flag.Lookup("test.run").Value.String(); run != "" || flag.Lookup("test.skip").Value.String() != "" || flag.Lookup("test.list").Value.String() != "" {
		return nil
	}
	var failed error
	for _, method := range gate.Methods() {
		if len(called.by[method]) == 0 {
			failed = errors.Join(failed, fmt.Errorf("no test calls %s with success", method))
		}
	}
	if *update {
		return errors.Join(failed, os.WriteFile(apiTable, []byte(table()), 0o644))
	}
	rows, err := readTable()
	if err != nil {
		return err
	}
	for _, method := range gate.Methods() {
		row, ok := rows[method]
		if !ok || row.callers != callers(method) {
			failed = errors.Join(failed, fmt.Errorf("%s has no line for %s, or one with other callers; run go test ./server -update", apiTable, method))
		}
		for _, test := range row.tests {
			if !called.by[method][test] {
				failed = errors.Join(failed, fmt.Errorf("%s: %s does not call %s; run go test ./server -update", apiTable, test, method))
			}
		}
		delete(rows, method)
	}
	for method := range rows {
		failed = errors.Join(failed, fmt.Errorf("%s has a line for %s, which is not there; run go test ./server -update", apiTable, method))
	}
	return failed
}

func callers(method string) string { return strings.Join(gate.Callers(method), ", ") }

const (
	tableStart = "| RPC | who may call it | tests |\n|---|---|---|\n"
	perRow     = 3
)

// table is docs/api.md with its table made anew.
func table() string {
	old, err := os.ReadFile(apiTable)
	text, _, found := strings.Cut(string(old), tableStart)
	if err != nil || !found {
		panic(fmt.Sprintf("%s has no table to renew: %v", apiTable, err))
	}
	broad := map[string]int{} // methods by test
	for _, tests := range called.by {
		for test := range tests {
			broad[test]++
		}
	}
	var out strings.Builder
	out.WriteString(text + tableStart)
	for _, method := range gate.Methods() {
		tests := slices.SortedFunc(maps.Keys(called.by[method]), func(a, b string) int {
			return cmp.Or(cmp.Compare(broad[a], broad[b]), strings.Compare(a, b)) // the most specific first
		})
		fmt.Fprintf(&out, "| `%s` | %s | %s |\n", strings.TrimPrefix(method, "/"), callers(method), strings.Join(tests[:min(perRow, len(tests))], ", "))
	}
	return out.String()
}

type row struct {
	callers string
	tests   []string
}

func readTable() (map[string]row, error) {
	text, err := os.ReadFile(apiTable)
	if err != nil {
		return nil, err
	}
	_, lines, found := strings.Cut(string(text), tableStart)
	if !found {
		return nil, fmt.Errorf("%s has no table", apiTable)
	}
	rows := map[string]row{}
	for line := range strings.Lines(lines) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if len(cells) != 3 {
			return nil, fmt.Errorf("%s: a line with %d cells: %q", apiTable, len(cells), line)
		}
		rows["/"+strings.Trim(cells[0], "`")] = row{cells[1], strings.Split(cells[2], ", ")}
	}
	return rows, nil
}
