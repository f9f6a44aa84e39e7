package sim

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"time"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/rpc"
)

// Cluster is one group of replicas on simulated machines, with everything that
// watches and troubles it.
//
// Invariant: what happens depends on its options alone.
//
// Ownership: the goroutine that runs it.
type Cluster struct {
	Count Counters

	o           Options // some change while it runs
	drawn       Options // as they were
	sim         *actor.Sim
	net         *Network
	machines    []*machine
	conf        graft.Configuration
	check       *checker
	clients     *clients
	admin       *admin
	hist        *history
	rng         draw // faults
	disks       *rand.Rand
	writer      *machine  // whose disk was written in this step
	healed      bool      // the second phase
	lull        bool      // little happens now
	acts        []act     // what was done
	awaited     []awaited // leaderships
	steadySince time.Time // nothing is to change since then; zero: it may
	err         error
}

// New returns a cluster whose machines are off. Start turns them on.
func New(o Options) *Cluster {
	s := actor.NewSim(o.Seed + o.Shake<<32)
	c := &Cluster{o: o, drawn: o, sim: s, rng: draw{rand.New(rand.NewPCG(o.Seed, 1))}, disks: rand.New(rand.NewPCG(o.Seed, 2))}
	c.hist = newHistory(s, &c.Count.TornTails)
	var addresses []string
	for i := range o.Nodes + o.Spares {
		addresses = append(addresses, fmt.Sprintf("10.0.0.%d:8000", i+1))
	}
	c.conf = graft.MustParseConfiguration(strings.Join(addresses[:o.Nodes], ","))
	c.net = newNetwork(s, rand.New(rand.NewPCG(o.Seed, 3)), o.Net, &c.Count, c, addresses)
	c.check = newChecker(c)
	c.admin = &admin{c: c, rng: draw{rand.New(rand.NewPCG(o.Seed, 5))}}
	c.clients = newClients(c, rand.New(rand.NewPCG(o.Seed, 4)))
	for i, a := range addresses {
		c.machines = append(c.machines, newMachine(c, i, a, rand.New(rand.NewPCG(o.Seed, 100+uint64(i)))))
	}
	s.Latency = c.latency
	s.AfterStep = func(p *actor.Process) {
		c.writer = nil
		for _, m := range c.machines { // a step changes one replica at most
			if m.up && m.proc == p {
				c.check.look(m)
			}
		}
		c.clients.stepped()
		c.admin.stepped()
	}
	return c
}

// Start turns all machines on but the spare ones.
func (c *Cluster) Start() {
	for _, m := range c.machines[:c.o.Nodes] {
		m.start()
	}
	c.everyNow(c.o.Election/2, c.check.checkQuorum)
}

// everyNow calls f every d.
func (c *Cluster) everyNow(d time.Duration, f func()) {
	c.sim.After(d, func() {
		f()
		c.everyNow(d, f)
	})
}

// latency is how long an actor waits for its turn, and the disk for its bytes.
func (c *Cluster) latency(rng *rand.Rand, name string) time.Duration {
	if m := c.writer; m != nil && strings.HasPrefix(name, "wal-") {
		c.writer = nil
		d := c.o.Disk.Sync + time.Duration(c.disks.Int64N(int64(c.o.Disk.Jitter)+1))
		if left := m.stuckUntil.Sub(c.sim.Now()); left > 0 {
			d += left
		}
		if m.slow {
			d += time.Duration(c.disks.Int64N(int64(c.o.Disk.Slow) + 1))
		}
		return d
	}
	d := time.Duration(1 + rng.IntN(50_000))
	if o := &c.o.Load; name == "fsm" && o.SlowApp > 0 && c.disks.Float64() < o.SlowApp {
		c.Count.SlowApps++
		d += time.Duration(c.disks.Int64N(int64(o.AppDelay) + 1))
	}
	return d
}

// run lets d pass, or less if something is found.
func (c *Cluster) run(d time.Duration) bool {
	c.sim.RunUntil(d, func() bool { return c.err != nil })
	return c.err == nil
}

// until lets time pass until cond holds, at most d, and reports whether it does.
func (c *Cluster) until(d time.Duration, cond func() bool) bool {
	return c.sim.RunUntil(d, func() bool { return c.err != nil || cond() }) && c.err == nil
}

// fail records the first violation.
func (c *Cluster) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
		c.hist.note(-1, "VIOLATION")
	}
}

// leader is the machine that leads in the highest term, nil if none does.
func (c *Cluster) leader() *machine {
	var found *machine
	for _, m := range c.machines {
		if m.up && m.st.Role == graft.RoleLeader && (found == nil || m.st.Term > found.st.Term) {
			found = m
		}
	}
	return found
}

// later runs f on a machine if the same process still runs then.
func (c *Cluster) later(d time.Duration, m *machine, f func()) {
	boot := m.boot
	c.sim.After(d, func() {
		if m.up && m.boot == boot {
			m.net.run(f)
		}
	})
}

func (c *Cluster) called(from int, call *rpc.Call) { c.check.called(c.machines[from], call) }

func (c *Cluster) answered(by, to int, req *rpc.Request, at time.Time, code int32, message []byte) {
	c.check.answered(c.machines[by], c.machines[to], req, at, code, message)
}

// waiting checks that a leader does not send more and more to who does not answer: requests in flight are bounded, and besides
// them there are heartbeats, which time out. What was given up, because the follower refused it or another leadership began,
// is on its way until it times out: a window more, and two of the leadership before.
func (c *Cluster) waiting(from, to, appends int) {
	if most := 4*c.o.inflight() + 4*c.o.Heartbeat + 16; appends > most {
		c.fail("I18 bounded resources: machine %d has %d append_entries calls to machine %d under way, at most %d are allowed", from, appends, to, most)
	}
}

func (c *Cluster) heard(at, from int, sent time.Time, message []byte) {
	c.check.heardBy(c.machines[at], c.machines[from], sent)
	c.check.missing(c.machines[at], c.machines[from], sent, message)
	c.admin.beforeCommit(c.machines[at], c.machines[from])
	c.heardLate(c.machines[at], sent, message)
}

func (c *Cluster) took(at, from int) { c.check.takenBy(c.machines[at], c.machines[from]) }

func (c *Cluster) appends(at int, from *Transport, message, attachment []byte) {
	c.machines[at].lastAppend = appendSeen{c.sim.Now(), from, message, attachment}
}

func (c *Cluster) down(at int) { c.machines[at].surprised = c.sim.Now() }

func (c *Cluster) arrived(at int) {
	if m := c.machines[at]; m.up {
		c.check.look(m)
	}
}

// Result is what a run came to.
type Result struct {
	Options Options
	Count   Counters
	Virtual time.Duration
	Steps   uint64
	Trace   uint64   // which step ran when
	Events  uint64   // what was logged when
	Acts    []string // what was done, in order
	Err     error
}

// Run runs a seed's options through both phases.
func Run(o Options) Result { return New(o).play() }

func (c *Cluster) play() Result {
	start := c.sim.Now()
	c.guard(func() {
		c.Start()
		c.weather()
		c.unleash()
		c.admin.begin()
		c.clients.begin()
		if c.run(c.o.Faulty) {
			c.recoverAll()
		}
	})
	return c.result(start)
}

// guard turns a panic in the code under test into a finding.
func (c *Cluster) guard(f func()) {
	defer func() {
		if v := recover(); v != nil {
			c.fail("panic: %v\n%s", v, debug.Stack())
		}
	}()
	f()
}

func (c *Cluster) result(start time.Time) Result {
	r := Result{
		Options: c.drawn, Count: c.Count, Virtual: c.sim.Now().Sub(start), Steps: c.sim.Steps(),
		Trace: c.sim.TraceHash(), Events: c.hist.sum,
	}
	var acts []string
	for _, a := range c.acts {
		r.Acts = append(r.Acts, a.name)
		acts = append(acts, a.String())
	}
	if c.err != nil {
		r.Err = fmt.Errorf("seed %d after %v: %w\noptions: %v\nlatest events:\n%s%slatest acts of %d: %s", c.o.Seed, r.Virtual, c.err, r.Options,
			c.hist, c.describe(), len(acts), strings.Join(acts[max(0, len(acts)-50):], ", "))
	}
	return r
}

// describe says where everybody is.
func (c *Cluster) describe() string {
	var b strings.Builder
	for _, m := range c.machines {
		fmt.Fprintf(&b, "m%d up=%v boot=%d frozen=%v waits=%d/%d %+v\n", m.index, m.up, m.boot, m.net != nil && m.net.frozen, m.writes, m.reads, m.st)
	}
	return b.String()
}
