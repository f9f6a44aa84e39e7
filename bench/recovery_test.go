package bench

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// BenchmarkFailover is how long writes stand still when the leader's process dies: its
// sockets close and nothing is handed over.
func BenchmarkFailover(b *testing.B) {
	c := newCluster(b)
	c.startAll()
	for b.Loop() {
		b.StopTimer()
		lead := c.leader()
		c.settle()
		b.StartTimer()
		if err := c.trans[lead].Close(); err != nil {
			b.Fatal(err)
		}
		dead := c.nodes[lead]
		c.nodes[lead] = nil
		c.leader()
		b.StopTimer()
		c.nodes[lead] = dead
		c.stop(lead)
		c.start(lead)
		b.StartTimer()
	}
}

// BenchmarkReopen opens a replica with a million entries of 128 bytes and waits until all are
// applied.
func BenchmarkReopen(b *testing.B) {
	const entries = 1_000_000
	c := newCluster(b)
	c.startAll()
	lead := c.nodes[c.leader()]
	var wg sync.WaitGroup
	window := make(chan struct{}, 4096)
	for range entries {
		window <- struct{}{}
		wg.Add(1)
		lead.Apply(graft.Task{Data: make([]byte, 128), Done: func(_ any, err error) {
			if err != nil {
				b.Error(err)
			}
			<-window
			wg.Done()
		}})
	}
	wg.Wait()
	for b.Loop() {
		b.StopTimer()
		i := (c.leader() + 1) % 3
		c.stop(i)
		b.StartTimer()
		c.start(i)
		start := time.Now()
		for c.fsms[i].entries.Load() < entries {
			if _, err := c.nodes[i].ReadIndex(context.Background()); err != nil {
				if time.Since(start) > time.Minute {
					b.Fatalf("the replica does not come back: %v", err)
				}
				<-time.After(100 * time.Microsecond) // no leader is known yet, and nothing tells when
			}
		}
	}
}
