package fulltest

import (
	"fmt"
	"io"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

// Peers that cannot be reached, in whatever way, cost the others nothing: neither time nor memory.
func TestUnreachablePeerDelaysNobody(t *testing.T) {
	for _, mode := range []dialMode{dialHangs, dialRefused} {
		t.Run(fmt.Sprint("mode ", mode), func(t *testing.T) {
			seeds(t, 3, func(t *testing.T, seed uint64) {
				w := newWorld(t, seed, 5, 0, graft.NodeOptions{})
				lead := w.settle()
				for _, i := range w.others(lead)[:2] {
					w.net.dialing(w.hosts[lead].addr, w.hosts[i].addr, mode)
					w.net.dialing(w.hosts[i].addr, w.hosts[lead].addr, mode)
					w.net.reset(w.hosts[lead].addr, w.hosts[i].addr)
				}
				for range 20 {
					w.pass(200 * time.Millisecond)
					require.Less(t, w.latency(lead), atOnce)
				}
				require.Equal(t, lead, w.leader())
				w.finish()
			})
		})
	}
}

// atOnce is more than a proposal and a read take over the slowest link, to the slowest disk, and less than any
// timeout.
const atOnce = 20 * time.Millisecond

// latency is how long a proposal and a read take.
func (w *world) latency(lead int) time.Duration {
	w.t.Helper()
	began := time.Now()
	for _, c := range []*call{w.propose(lead), w.read(lead)} {
		for !c.over() {
			time.Sleep(step)
			synctest.Wait()
		}
		require.NoError(w.t, c.outcome(), c.what)
	}
	return time.Since(began)
}

// Attempts to reach a peer that is away become rarer, within bounds, and do not cease.
func TestReconnectBackOff(t *testing.T) {
	for _, test := range []struct {
		mode        dialMode
		least, most int // attempts a minute
	}{
		// 125 to 250 ms apart, and until the next call, of which there is one every 100 ms.
		{dialRefused, 60 * 1000 / 350, 60 * 1000 / 125},
		{dialHangs, 60 * 1000 / 1350, 60 * 1000 / 1125}, // each hangs for a second first
	} {
		t.Run(fmt.Sprint("mode ", test.mode), func(t *testing.T) {
			seeds(t, 1, func(t *testing.T, seed uint64) {
				w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
				lead := w.settle()
				away := w.others(lead)[0]
				a, b := w.hosts[lead].addr, w.hosts[away].addr
				w.net.dialing(a, b, test.mode)
				w.net.dialing(b, a, test.mode)
				w.net.reset(a, b)
				time.Sleep(time.Second)
				before := w.net.attempts(a, b)
				time.Sleep(time.Minute)
				attempts := w.net.attempts(a, b) - before
				require.GreaterOrEqual(t, attempts, test.least)
				require.LessOrEqual(t, attempts, test.most)
				w.finish()
			})
		})
	}
}

// Nobody tries to reach peers whom nobody has anything to say to, nor does anything else.
func TestNoAttemptsWithoutReplicas(t *testing.T) {
	seeds(t, 3, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		rest := w.others(lead)
		a, b := rest[0], rest[1]
		end := w.stopNode
		if w.rng.IntN(2) == 0 { // they fail in place of being stopped
			end = func(i int) []*call { w.hosts[i].fsm.sabotage("an entry"); return nil }
		}
		w.await(time.Minute, append(end(a), end(b)...)...)
		w.propose(lead)
		time.Sleep(time.Second)
		w.await(time.Minute, w.close(lead))
		time.Sleep(5 * time.Second)
		attempts := func() (n int) {
			for _, i := range []int{a, b} {
				n += w.net.attempts(w.hosts[i].addr, w.hosts[lead].addr)
			}
			return n
		}
		before, steps := attempts(), w.hosts[a].exec.steps.Load()
		time.Sleep(time.Hour)
		require.Equal(t, before, attempts())
		require.LessOrEqual(t, w.hosts[a].exec.steps.Load(), steps+1, "a host without replicas does something")
		w.finish()
	})
}

// A process that accepts connections and never says anything, or does not even read, holds up nobody, and
// what waits for it is bounded.
func TestPeerThatNeverAnswers(t *testing.T) {
	for _, reads := range []bool{true, false} {
		t.Run(fmt.Sprint("reads ", reads), func(t *testing.T) {
			seeds(t, 2, func(t *testing.T, seed uint64) { neverAnswers(t, seed, reads) })
		})
	}
}

func neverAnswers(t *testing.T, seed uint64, reads bool) {
	w := newWorld(t, seed, 3, 0, graft.NodeOptions{MaxInflightBytes: 256 << 10})
	w.start(0, 1) // 2 is not one of us
	mute := w.net.mute(w.hosts[2].addr, reads)
	lead := w.agree(0, 1)
	w.calm(time.Minute, lead)
	before, heap := len(goroutines()), heapInUse()
	for range 30 {
		for range 20 {
			w.proposeBytes(lead, 2000)
		}
		time.Sleep(10 * time.Second)
		require.Less(t, w.latency(lead), atOnce)
		f := w.node(lead).Status().Followers
		for _, s := range f {
			require.LessOrEqual(t, s.InflightBytes, 300<<10)
		}
	}
	w.calm(time.Minute, lead)
	require.Less(t, len(goroutines()), before+10)
	// The log has grown by 1.2 MB, on two disks and in two caches, and by what the disks remember of it.
	require.Less(t, heapInUse()-heap, int64(32<<20))
	// A connection that is silent is given up after some seconds, and not before.
	require.LessOrEqual(t, w.net.attempts(w.hosts[lead].addr, w.hosts[2].addr), 10*60/3)
	w.quiet()
	w.close(0)
	w.close(1)
	w.await(time.Minute, w.hosts[0].closing, w.hosts[1].closing)
	mute.end()
	w.hosts[0].host, w.hosts[1].host, w.hosts[0].closing, w.hosts[1].closing = nil, nil, nil, nil
	w.checkEnd()
	w.recover()
}

// calm lets time pass without load.
func (w *world) calm(d time.Duration, lead int) {
	time.Sleep(d)
	synctest.Wait()
	require.Equal(w.t, graft.RoleLeader, w.node(lead).Status().Role)
}

// heapInUse is how much memory is reachable.
func heapInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// mute accepts connections and never answers.
type mute struct {
	l    io.Closer
	done chan struct{}
}

// mute listens at an address for connections on which nothing is ever said.
func (n *network) mute(at string, reads bool) *mute {
	l, err := n.listen("tcp", at)
	if err != nil {
		panic(err)
	}
	m := &mute{l: l, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		var open []io.Closer
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			open = append(open, c)
			if reads {
				go io.Copy(io.Discard, c) // until the other end closes
			}
		}
		for _, c := range open {
			_ = c.Close() // its other end may be gone
		}
	}()
	return m
}

// end closes everything.
func (m *mute) end() {
	_ = m.l.Close() // it is open
	<-m.done
}

// A host name is looked up at each attempt: its host can move.
func TestHostNameThatMoves(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		moves := w.rng.IntN(w.members)
		h := w.hosts[moves]
		for k := range 3 {
			c := w.propose(lead)
			w.await(electionTimeout, c)
			if k%2 == 0 { // it vanishes without a word, or goes in peace
				for i := range w.hosts {
					w.net.cut(h.at(), w.hosts[i].at())
				}
			}
			w.await(time.Minute, w.close(moves))
			h.host, h.closing = nil, nil
			h.listen = fmt.Sprintf("10.0.0.%d:7000", k+1)
			w.net.resolve(h.addr, h.listen)
			w.start(moves)
			lead = w.agree(w.first()...)
		}
		w.finish()
	})
}

// Many groups share the connections of their hosts, and what one of them goes through is no concern of the others.
func TestGroupsShareConnections(t *testing.T) {
	seeds(t, 2, func(t *testing.T, seed uint64) {
		const groups = 30
		// Heartbeats are rare, so that there are moments without one in any group.
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{ElectionTimeout: 1000 * time.Second})
		w.settle()
		for k := range groups {
			for i, h := range w.hosts {
				_, err := h.host.StartNode(fmt.Sprint("group ", k), h.nodeOptions())
				require.NoError(t, err, "host %d", i)
			}
		}
		until(t, time.Second, 5000*time.Second, "all groups have leaders", func() bool {
			for k := range groups {
				if leaderOf(w, fmt.Sprint("group ", k)) == nil {
					return false
				}
			}
			return true
		})
		var calls []*call
		for k := range groups {
			name := fmt.Sprint("group ", k)
			c := w.ledger.begin("apply in "+name, ofApply...)
			calls = append(calls, c)
			leaderOf(w, name).Apply(graft.Task{Data: []byte(name), Done: c.settle})
			if k%3 == 0 {
				calls = append(calls, w.blocking("stop "+name, nil, func() error { return w.hosts[k%2].host.StopNode(t.Context(), name) }))
			}
		}
		w.await(10*time.Second, calls...)
		require.Equal(t, 2*6, w.net.ends(), "one connection per direction and pair of hosts")
		require.Equal(t, 2*3+2*2*6, goroutinesAtRest(t), "more groups, more goroutines")
		w.closeAll()
	})
}

// leaderOf returns the replica that leads a group, nil if there is none.
func leaderOf(w *world, name string) *graft.Node {
	for _, h := range w.hosts {
		if n := h.host.Node(name); n != nil && n.IsLeader() {
			return n
		}
	}
	return nil
}
