package actor

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"
)

// Sim runs the actors of any number of simulated processes on one goroutine in
// virtual time. Every hand-off is delayed by a latency drawn from the seed, so
// that the same seed gives the same run on any machine.
//
// Ownership: one goroutine owns a Sim and everything that runs on it.
type Sim struct {
	// Latency draws the delay of the next run of the actor with the given name.
	// The default is uniform in 1 ns to 50 µs.
	Latency func(rng *rand.Rand, name string) time.Duration

	// AfterStep, if set, runs after every step.
	AfterStep func(name string)

	now   time.Time
	rng   *rand.Rand
	hops  deadlines // runs that were scheduled
	wakes deadlines // deadlines of idle actors, in global time
	calls deadlines // one-off functions, see After
	seq   uint64
	trace hash.Hash64
	steps uint64

	processes uint64 // made so far; numbers them in the trace
}

// NewSim starts at a fixed date.
func NewSim(seed uint64) *Sim {
	return &Sim{
		Latency: defaultLatency,
		now:     time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		rng:     rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15)),
		hops:    newDeadlines(), wakes: newDeadlines(), calls: newDeadlines(),
		trace: fnv.New64a(),
	}
}

func defaultLatency(rng *rand.Rand, _ string) time.Duration {
	return time.Duration(1 + rng.IntN(50_000))
}

// Now is the global virtual time.
func (s *Sim) Now() time.Time { return s.now }

// Rand is the simulation's generator.
func (s *Sim) Rand() *rand.Rand { return s.rng }

// Steps is the number of steps run so far.
func (s *Sim) Steps() uint64 { return s.steps }

// TraceHash identifies everything that has happened so far: which actor of which
// process ran when.
func (s *Sim) TraceHash() uint64 { return s.trace.Sum64() }

// Note adds v to the trace, so that two runs differ if they differ in v.
func (s *Sim) Note(v uint64) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	s.trace.Write(b[:])
}

// After calls f once d has passed.
func (s *Sim) After(d time.Duration, f func()) {
	s.seq++
	s.calls.set(&call{f: f}, s.now.Add(d), s.seq)
}

// call is a one-off function as a runner.
type call struct{ f func() }

func (c *call) runOnce() bool { c.f(); return false }
func (c *call) poke()         {}
func (c *call) label() string { return "call" }

// RunFor lets d of virtual time pass and returns the number of events in it.
func (s *Sim) RunFor(d time.Duration) (events int) {
	end := s.now.Add(d)
	for s.next(end) {
		events++
	}
	s.now = end
	return events
}

// RunUntil runs until cond holds, checked after each event, or limit has passed.
func (s *Sim) RunUntil(limit time.Duration, cond func() bool) bool {
	end := s.now.Add(limit)
	for !cond() {
		if !s.next(end) {
			s.now = end
			return cond()
		}
	}
	return true
}

// next runs the earliest event up to end.
func (s *Sim) next(end time.Time) bool {
	from, first := (*deadlines)(nil), (*deadline)(nil)
	for _, d := range []*deadlines{&s.hops, &s.wakes, &s.calls} {
		if e := d.first(); e != nil && (first == nil || e.at.Before(first.at) || e.at.Equal(first.at) && e.seq < first.seq) {
			from, first = d, e
		}
	}
	if first == nil || first.at.After(end) {
		return false
	}
	if first.at.After(s.now) {
		s.now = first.at
	}
	r := first.r
	from.remove(r)
	switch g, isActor := r.(guarded); {
	case from == &s.wakes:
		r.poke()
	case isActor && g.p.frozen:
		g.p.held = append(g.p.held, g)
	default:
		s.step(r)
	}
	return true
}

// step runs r once and writes it into the trace.
func (s *Sim) step(r runner) {
	s.steps++
	s.Note(uint64(s.now.UnixNano()))
	g, isActor := r.(guarded)
	if isActor {
		s.Note(g.p.id)
	}
	s.trace.Write([]byte(r.label()))
	again := r.runOnce()
	if !isActor {
		return
	}
	if again && !g.p.dead {
		s.hop(r)
	}
	if s.AfterStep != nil {
		s.AfterStep(r.label())
	}
}

func (s *Sim) hop(r runner) {
	s.seq++
	s.hops.set(r, s.now.Add(s.Latency(s.rng, r.label())), s.seq)
}

// A Process is the executor of one simulated process: it has a clock of its own
// and can be killed or paused.
//
// Invariants: after Kill no actor of the process runs again; between Freeze and
// Thaw none runs; a wake-up is never early by the process's own clock, unless
// SetRate came in between.
//
// Ownership: the Sim's goroutine.
type Process struct {
	sim    *Sim
	id     uint64
	rate   float64 // local seconds per global second
	global time.Time
	local  time.Time // the local time at global
	frozen bool
	dead   bool
	held   []guarded            // scheduled, and kept back since the process is frozen
	actors map[guarded]struct{} // that may be in the Sim's hops or wakes: all that ever ran and are not done
}

// NewProcess returns a process whose clock runs at the given rate (1 is true time).
func (s *Sim) NewProcess(rate float64) *Process {
	checkRate(rate)
	s.processes++
	return &Process{sim: s, id: s.processes, rate: rate, global: s.now, local: s.now, actors: make(map[guarded]struct{})}
}

func checkRate(rate float64) {
	if !(rate > 0) || math.IsInf(rate, 1) {
		panic(fmt.Sprintf("actor: clock rate is %v, must be positive", rate))
	}
}

// Now is the process's own clock.
func (p *Process) Now() time.Time { return p.at(p.sim.now) }

// at is what the process's clock shows at a global time.
func (p *Process) at(global time.Time) time.Time {
	return p.local.Add(time.Duration(float64(global.Sub(p.global)) * p.rate))
}

// SetRate changes how fast the clock runs from now on. Wake-ups asked for before
// keep their place in global time, so they may be early or late by the new clock.
func (p *Process) SetRate(rate float64) {
	checkRate(rate)
	p.local, p.global, p.rate = p.Now(), p.sim.now, rate
}

// inline says that every hand-over takes its time.
func (p *Process) inline() bool { return false }

// Kill ends the process: whatever its actors had queued is lost.
func (p *Process) Kill() {
	p.dead = true
	for r := range p.actors {
		p.sim.hops.remove(r)
		p.sim.wakes.remove(r)
	}
	p.actors, p.held = nil, nil
}

// Dead reports whether the process was killed.
func (p *Process) Dead() bool { return p.dead }

// Freeze stops the process as SIGSTOP does; time goes on.
func (p *Process) Freeze() { p.frozen = true }

// Thaw lets a frozen process go on. Wake-ups that became due meanwhile are late.
func (p *Process) Thaw() {
	p.frozen = false
	held := p.held
	p.held = nil
	for _, r := range held {
		p.sim.hop(r)
	}
}

// run schedules r, or keeps it back while the process is frozen.
func (p *Process) run(r runner) {
	if p.dead {
		return
	}
	g := p.guard(r)
	if p.frozen {
		p.held = append(p.held, g)
		return
	}
	p.sim.hop(g)
}

// wakeAt translates from the process's clock to the simulator's.
func (p *Process) wakeAt(r runner, at time.Time) {
	if p.dead {
		return
	}
	global := p.sim.now
	// More than once because of rounding: a step must not find that it was woken too
	// early, and ask again for a time that is now.
	for lack := at.Sub(p.Now()); lack > 0 && global.Sub(p.sim.now) < never; lack = at.Sub(p.at(global)) {
		global = global.Add(time.Duration(min(math.Ceil(float64(lack)/p.rate), float64(never))))
	}
	p.sim.seq++
	p.sim.wakes.set(p.guard(r), global, p.sim.seq)
}

// never is further ahead than any simulation gets, and far from overflow.
const never = 100 * 365 * 24 * time.Hour

func (p *Process) forget(r runner) {
	if !p.dead {
		g := guarded{p, r}
		p.sim.wakes.remove(g)
		delete(p.actors, g)
	}
}

// guard is the runner under which the simulator knows r.
func (p *Process) guard(r runner) guarded {
	g := guarded{p, r}
	p.actors[g] = struct{}{}
	return g
}

// guarded is an actor of a process, as a runner that the process's death stops.
type guarded struct {
	p *Process
	r runner
}

func (g guarded) label() string { return g.r.label() }

func (g guarded) runOnce() bool { return !g.p.dead && g.r.runOnce() }

func (g guarded) poke() {
	if !g.p.dead {
		g.r.poke()
	}
}
