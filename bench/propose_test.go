package bench

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkPropose is closed-loop proposals through the Go API: each of c callers waits
// for its entry to be committed, applied and answered. Three replicas share this
// machine and its disk.
func BenchmarkPropose(b *testing.B) {
	for _, payload := range []int{16, 128, 1 << 10, 16 << 10} {
		for _, callers := range []int{1, 16, 64, 256, 1024, 4096} {
			b.Run(name(callers, payload), func(b *testing.B) {
				c := newCluster(b)
				c.startAll()
				lead := c.nodes[c.leader()]
				closedLoop(b, callers, func() error {
					_, err := lead.Propose(context.Background(), make([]byte, payload))
					return err
				})
				s := c.hosts[0].StorageStats()
				b.ReportMetric(float64(s.Records)/float64(max(s.Syncs, 1)), "records/sync")
			})
		}
	}
}

// BenchmarkReadIndex is linearizable reads on the leader and on a follower.
func BenchmarkReadIndex(b *testing.B) {
	for _, callers := range []int{1, 64, 1024} {
		for _, at := range []string{"leader", "follower"} {
			b.Run(name(callers, 0)+"/"+at, func(b *testing.B) {
				c := newCluster(b)
				c.startAll()
				i := c.leader()
				if at == "follower" {
					i = (i + 1) % 3
				}
				closedLoop(b, callers, func() error {
					_, err := c.nodes[i].ReadIndex(context.Background())
					return err
				})
			})
		}
	}
}

// closedLoop runs do b.N times from so many callers and reports latencies.
func closedLoop(b *testing.B, callers int, do func() error) {
	b.Helper()
	b.ReportAllocs()
	work := make(chan struct{}, callers)
	lat := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	b.ResetTimer()
	for i := range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range work {
				at := time.Now()
				if err := do(); err != nil {
					b.Error(err)
					for range work { // who hands it out must not wait for ever
					}
					return
				}
				lat[i] = append(lat[i], time.Since(at))
			}
		}()
	}
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	wg.Wait()
	b.StopTimer()
	all := slices.Concat(lat...)
	slices.Sort(all)
	if len(all) > 0 {
		b.ReportMetric(float64(all[len(all)/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds()), "p99-µs")
	}
}
