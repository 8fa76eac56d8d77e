// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/assay-id/assay/cmd/dev"
)

const changes = 300

// propagate updates an entry and waits for the new SVID on an open stream.
func propagate(ctx context.Context, env *dev.Env) error {
	id, err := register(ctx, env)
	if err != nil {
		return err
	}
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(env.WorkloadSocket))
	if err != nil {
		return err
	}
	defer client.Close()
	got := make(arrivals, 16)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { _ = client.WatchX509Context(ctx, got) }() // ends with ctx
	<-got
	conn, err := dev.Dial(env.ServerSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	var all sample
	for n := range changes {
		name := fmt.Sprintf("n%d.example.org", n)
		began := time.Now()
		if _, err := entryv1.NewEntryClient(conn).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
			Entries: []*types.Entry{{Id: id, DnsNames: []string{name}}}, InputMask: &types.EntryMask{DnsNames: true}}); err != nil {
			return err
		}
		for a := range got {
			if a.name == name {
				all = append(all, a.at.Sub(began))
				break
			}
		}
	}
	fmt.Printf("entry changed (call begins) → new SVID on an open stream, %d changes\n  p50 %s   p99 %s   max %s\n",
		changes, all.at(0.5).Round(10*time.Microsecond), all.at(0.99).Round(10*time.Microsecond), all.at(1).Round(10*time.Microsecond))
	return nil
}

type arrival struct {
	name string
	at   time.Time
}

type arrivals chan arrival

func (c arrivals) OnX509ContextUpdate(x *workloadapi.X509Context) {
	a := arrival{at: time.Now()}
	if dns := x.DefaultSVID().Certificates[0].DNSNames; len(dns) > 0 {
		a.name = dns[0]
	}
	c <- a
}

func (arrivals) OnX509ContextWatchError(error) {}
