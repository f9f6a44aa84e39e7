package bench

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// latencies collects what callers measure.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	l.all = append(l.all, d)
	l.mu.Unlock()
}

// take returns the 50th and 99th percentile and the maximum since the last call.
func (l *latencies) take() (p50, p99, most time.Duration) {
	l.mu.Lock()
	all := l.all
	l.all = nil
	l.mu.Unlock()
	if len(all) == 0 {
		return 0, 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100], all[len(all)-1]
}

// load has callers write at the leader until stop is called.
func load(b *testing.B, node *graft.Node, callers, payload int) (l *latencies, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	l = &latencies{}
	var wg sync.WaitGroup
	for range callers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			data := make([]byte, payload)
			for ctx.Err() == nil {
				start := time.Now()
				if _, err := node.Propose(ctx, data); err == nil {
					l.add(time.Since(start))
				} else if ctx.Err() == nil {
					b.Error(err)
					return
				}
			}
		}()
	}
	return l, func() { cancel(); wg.Wait() }
}

// join starts a fresh process that waits to be added.
func (c *cluster) join() graft.PeerID {
	c.b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.b.Fatal(err)
	}
	c.addrs, c.dirs = append(c.addrs, l.Addr().String()), append(c.dirs, c.b.TempDir())
	l.Close()
	i := len(c.addrs) - 1
	c.hosts, c.nodes, c.fsms = append(c.hosts, nil), append(c.nodes, nil), append(c.fsms, &counter{news: c.news})
	if c.hosts[i], err = graft.NewHost(graft.HostOptions{Address: c.addrs[i], Dir: c.dirs[i]}); err != nil {
		c.b.Fatal(err)
	}
	if c.nodes[i], err = c.hosts[i].StartNode("bench", graft.NodeOptions{StateMachine: c.fsms[i]}); err != nil {
		c.b.Fatal(err)
	}
	return c.nodes[i].PeerID()
}

// BenchmarkCatchup adds a fresh voter to a group with 100,000 entries, while callers write. It reports how
// long the change took, and how much longer writes took meanwhile.
func BenchmarkCatchup(b *testing.B) {
	const entries = 100_000
	for _, payload := range []int{16, 1 << 10} {
		for _, callers := range []int{0, 16} {
			b.Run(fmt.Sprintf("entries=%d/payload=%d/writers=%d", entries, payload, callers), func(b *testing.B) {
				var took time.Duration
				var ratio, before, during float64
				for range b.N {
					b.StopTimer()
					c := newCluster(b)
					c.startAll()
					lead := c.nodes[c.leader()]
					fill(b, lead, entries, payload)
					l, stop := load(b, lead, callers, payload)
					<-time.After(time.Second) // the writes in that time are what is usual
					_, usual, _ := l.take()
					peer := c.join()
					b.StartTimer()
					start := time.Now()
					err := graft.Await(context.Background(), func(done graft.Closure) { lead.AddPeer(peer, done) })
					took += time.Since(start)
					b.StopTimer()
					_, now, _ := l.take()
					stop()
					if err != nil {
						b.Fatal(err)
					}
					if usual > 0 {
						ratio += now.Seconds() / usual.Seconds()
						before += usual.Seconds() * 1e6
						during += now.Seconds() * 1e6
					}
					c.close()
				}
				n := float64(b.N)
				b.ReportMetric(took.Seconds()*1e3/n, "ms/join")
				if callers > 0 {
					b.ReportMetric(before/n, "µs-p99-before")
					b.ReportMetric(during/n, "µs-p99-meanwhile")
					b.ReportMetric(ratio/n, "p99-ratio")
				}
			})
		}
	}
}

func fill(b *testing.B, lead *graft.Node, entries, payload int) {
	b.Helper()
	var wg sync.WaitGroup
	wg.Add(entries)
	slots := make(chan struct{}, 10_000)
	for range entries {
		slots <- struct{}{}
		lead.Apply(graft.Task{Data: make([]byte, payload), Done: func(_ any, err error) {
			if err != nil {
				b.Error(err)
			}
			<-slots
			wg.Done()
		}})
	}
	wg.Wait()
}

// BenchmarkTransfer hands leadership around. An operation is over when the new leader has
// answered a write.
func BenchmarkTransfer(b *testing.B) {
	c := newCluster(b)
	c.startAll()
	i := c.leader()
	var lat latencies
	b.ResetTimer()
	for range b.N {
		to := (i + 1) % 3
		for c.nodes[i].TransferLeadership(c.nodes[to].PeerID()) != nil {
			c.settle() // it has not heard of that follower yet, or it leads no more
			i = c.leader()
			to = (i + 1) % 3
		}
		start := time.Now()
		for {
			_, err := c.nodes[to].Propose(context.Background(), []byte("x"))
			if err == nil {
				break
			}
			if time.Since(start) > time.Minute {
				b.Fatalf("leadership was not taken over: %v", err)
			}
		}
		lat.add(time.Since(start))
		i = to
	}
	b.StopTimer()
	p50, _, most := lat.take()
	b.ReportMetric(float64(p50.Microseconds()), "µs-p50")
	b.ReportMetric(float64(most.Microseconds()), "µs-max")
}
