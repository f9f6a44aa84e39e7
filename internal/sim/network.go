package sim

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/rpc"
)

// NetOptions says what happens to messages. Probabilities are per message.
type NetOptions struct {
	Delay   time.Duration // the least
	Jitter  time.Duration // added uniformly
	Loss    float64
	Dup     float64
	Reorder float64       // overtakes what was sent before
	Spike   float64       // takes long
	Long    time.Duration // how long at most
	// Bandwidth is how many bytes a second each direction between two machines carries; 0: any number.
	Bandwidth int64
}

// longestQueue is how long a message waits at most for those before it; what comes then is lost, as when a connection ends.
const longestQueue = 5 * time.Second

// Network joins simulated processes. It carries encoded frames.
//
// Invariants: what is sent from one machine to another arrives in order unless it
// is drawn to overtake; a frame reaches only the incarnation it was sent to; what
// arrives at a frozen process waits until it is thawed.
//
// Ownership: the simulation's goroutine.
type Network struct {
	sim    *actor.Sim
	rng    *rand.Rand
	o      NetOptions
	count  *Counters
	tap    tap
	ends   []*endpoint
	byName map[string]*endpoint // for look-up only
	links  []link               // from*len(ends)+to
}

// tap sees what processes say.
type tap interface {
	called(from int, c *rpc.Call)
	answered(by, to int, req *rpc.Request, at time.Time, code int32, message []byte) // at: when the request came
	arrived(at int)
	waiting(from, to, appends int)
	heard(at, from int, sent time.Time, message []byte)          // an answer to what was sent then arrives
	took(at, from int)                                           // an answer to install_snapshot arrives
	appends(at int, from *Transport, message, attachment []byte) // append_entries arrives
	down(at int)                                                 // it is told that somebody is gone
}

// endpoint is a machine's place in the network.
type endpoint struct {
	index    int
	address  string
	t        *Transport // of the running process; nil when none runs
	vanished bool       // the machine is off: nobody refuses connections
}

// link is one direction between two machines.
type link struct {
	cut   bool
	last  time.Time     // when the latest message in order arrives
	free  time.Time     // when all that was sent has left
	delay time.Duration // more than on others
}

func newNetwork(s *actor.Sim, rng *rand.Rand, o NetOptions, count *Counters, t tap, addresses []string) *Network {
	n := &Network{sim: s, rng: rng, o: o, count: count, tap: t, byName: make(map[string]*endpoint)}
	for i, a := range addresses {
		e := &endpoint{index: i, address: a}
		n.ends = append(n.ends, e)
		n.byName[a] = e
	}
	n.links = make([]link, len(addresses)*len(addresses))
	return n
}

func (n *Network) link(from, to *endpoint) *link { return &n.links[from.index*len(n.ends)+to.index] }

func (n *Network) open(from, to *endpoint) bool { return !n.link(from, to).cut }

// Cut drops what goes from one machine to another, from now on or no longer.
func (n *Network) Cut(from, to int, cut bool) {
	l := &n.links[from*len(n.ends)+to]
	if l.cut == cut {
		return
	}
	l.cut = cut
	if cut {
		n.count.Cuts++
		return
	}
	n.lookAgain(n.ends[from], n.ends[to])
	n.lookAgain(n.ends[to], n.ends[from])
}

// latency draws how long a message takes.
func (n *Network) latency() time.Duration {
	d := n.o.Delay + time.Duration(n.rng.Int64N(int64(n.o.Jitter)+1))
	if n.o.Spike > 0 && n.rng.Float64() < n.o.Spike {
		n.count.Spikes++
		d += time.Duration(n.rng.Int64N(int64(n.o.Long) + 1))
	}
	return d
}

// send has arrive run in the process target, once, twice or never.
func (n *Network) send(from, to *endpoint, target *Transport, size int, arrive func()) {
	n.count.Messages++
	if !n.open(from, to) {
		n.count.CutOff++
		return
	}
	if n.o.Loss > 0 && n.rng.Float64() < n.o.Loss {
		n.count.Lost++
		return
	}
	leaves, ok := n.leave(n.link(from, to), size)
	if !ok {
		n.count.Lost++
		return
	}
	n.schedule(from, to, target, leaves, arrive, n.o.Reorder > 0 && n.rng.Float64() < n.o.Reorder)
	if n.o.Dup > 0 && n.rng.Float64() < n.o.Dup {
		n.count.Duplicated++
		n.schedule(from, to, target, leaves, arrive, n.rng.IntN(2) == 0)
	}
}

// leave is how long it takes until all of a message has left, behind those before it. It reports false if that is too long.
func (n *Network) leave(l *link, size int) (wait time.Duration, ok bool) {
	if n.o.Bandwidth == 0 {
		return 0, true
	}
	now := n.sim.Now()
	queue := max(l.free.Sub(now), 0)
	if queue > longestQueue {
		return 0, false
	}
	if queue > 0 {
		n.count.Queued++
	}
	wait = queue + time.Duration(float64(size)/float64(n.o.Bandwidth)*float64(time.Second))
	l.free = now.Add(wait)
	return wait, true
}

// schedule has a message arrive once. It overtakes, or is overtaken, if it is out of order.
func (n *Network) schedule(from, to *endpoint, target *Transport, leaves time.Duration, arrive func(), disorder bool) {
	l := n.link(from, to)
	at := n.sim.Now().Add(leaves + n.latency() + l.delay)
	if disorder {
		n.count.Reordered++
		if n.rng.IntN(4) == 0 {
			at = at.Add(time.Duration(n.rng.Int64N(int64(20*n.o.Jitter) + int64(time.Second))))
		}
	} else {
		if !at.After(l.last) {
			at = l.last.Add(1)
		}
		l.last = at
	}
	n.sim.After(at.Sub(n.sim.Now()), func() {
		if !n.open(from, to) {
			n.count.CutOff++
			return
		}
		target.run(arrive)
	})
}

// attach puts a new process in its machine's place.
func (n *Network) attach(index int, proc *actor.Process) *Transport {
	e := n.ends[index]
	t := &Transport{net: n, at: e, proc: proc, calls: make(map[int64]*pending), appends: make([]int, len(n.ends))}
	t.timer = actor.New(proc, "net", t.expire)
	e.t, e.vanished = t, false
	return t
}

// kill takes the process of a machine away. If the machine itself is off nobody
// gets to know, else the connections to it break.
func (n *Network) kill(index int, vanish bool) {
	e := n.ends[index]
	dead := e.t
	e.t, e.vanished = nil, vanish
	if dead == nil {
		return
	}
	dead.dead, dead.held = true, nil
	if vanish {
		return
	}
	for _, other := range n.ends {
		if other != e && other.t != nil {
			n.breakCalls(other.t, e, dead)
			n.lookAgain(other, e)
		}
	}
}

// Reset breaks the connection from one machine to another: whoever waits for an answer
// over it gets none, though the request may have arrived.
func (n *Network) Reset(from, to int) {
	if t, target := n.ends[from].t, n.ends[to].t; t != nil && target != nil {
		n.count.Resets++
		n.breakCalls(t, n.ends[to], target)
	}
}

// breakCalls fails t's calls to the given process, if the news of the broken connection
// gets through.
func (n *Network) breakCalls(t *Transport, e *endpoint, target *Transport) {
	if !n.open(e, t.at) {
		return
	}
	for _, p := range t.waiting() {
		if p.to != target {
			continue
		}
		n.sim.After(n.latency(), func() {
			t.run(func() {
				t.finish(p, rpc.Reply{Err: fmt.Errorf("%w: %s: connection reset", rpc.ErrUnreachable, e.address)})
			})
		})
	}
}

// lookAgain has the process at from see, a little later, whether the one at to lives.
func (n *Network) lookAgain(from, to *endpoint) {
	t := from.t
	if t == nil || t.watched(to.address) == nil {
		return
	}
	n.sim.After(n.latency()+n.latency(), func() { t.run(func() { t.look(to) }) })
}
