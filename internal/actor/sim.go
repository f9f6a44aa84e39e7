package actor

import (
	"fmt"
	"math"
	"math/bits"
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

	// AfterStep, if set, runs after every step of an actor of p.
	AfterStep func(p *Process)

	start time.Time
	ns    int64     // since start
	now   time.Time // start and ns
	rng   *rand.Rand
	queue queue
	free  []*event // of calls that are over
	seq   uint64
	trace uint64
	steps uint64

	processes uint64 // made so far; numbers them in the trace
}

// NewSim starts at a fixed date.
func NewSim(seed uint64) *Sim {
	start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	return &Sim{Latency: defaultLatency, start: start, now: start, rng: rand.New(rand.NewPCG(seed, 0x9e3779b97f4a7c15))}
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
func (s *Sim) TraceHash() uint64 { return s.trace }

// Note adds v to the trace, so that two runs differ if they differ in v.
func (s *Sim) Note(v uint64) {
	s.trace = bits.RotateLeft64(s.trace^v, 29) * 0x9e3779b97f4a7c15
	s.trace ^= s.trace >> 32
}

// at is the time d from now, in nanoseconds since the start.
func (s *Sim) at(d time.Duration) int64 {
	if at := s.ns + int64(d); d < 0 || at >= s.ns {
		return at
	}
	return math.MaxInt64
}

// After calls f once d has passed.
func (s *Sim) After(d time.Duration, f func()) {
	s.seq++
	var e *event
	if n := len(s.free); n > 0 {
		e, s.free = s.free[n-1], s.free[:n-1]
	} else {
		e = new(event)
	}
	e.f = f
	s.queue.set(e, s.at(d), s.seq)
}

// RunFor lets d of virtual time pass and returns the number of events in it.
func (s *Sim) RunFor(d time.Duration) (events int) {
	end := s.at(d)
	for s.next(end) {
		events++
	}
	s.advance(end)
	return events
}

// RunUntil runs until cond holds, checked after each event, or limit has passed.
func (s *Sim) RunUntil(limit time.Duration, cond func() bool) bool {
	end := s.at(limit)
	for !cond() {
		if !s.next(end) {
			s.advance(end)
			return cond()
		}
	}
	return true
}

// advance lets the time be at, if that is not past.
func (s *Sim) advance(at int64) {
	if at > s.ns {
		s.ns, s.now = at, s.start.Add(time.Duration(at))
	}
}

// next runs the earliest event up to end.
func (s *Sim) next(end int64) bool {
	if len(s.queue) == 0 || s.queue[0].at > end {
		return false
	}
	s.advance(s.queue[0].at)
	e := s.queue[0].e
	s.queue.remove(e)
	switch t := e.t; {
	case t == nil:
		f := e.f
		e.f = nil
		s.free = append(s.free, e)
		s.steps++
		s.Note(uint64(s.ns))
		s.Note(callMark)
		f()
	case e.wake:
		t.r.poke()
	case t.p.frozen:
		t.p.held = append(t.p.held, t)
	default:
		s.step(t)
	}
	return true
}

// callMark stands for a one-off call in the trace.
const callMark = 0xca11

// step runs an actor once and writes it into the trace.
func (s *Sim) step(t *task) {
	s.steps++
	s.Note(uint64(s.ns))
	s.Note(t.mark)
	if again := t.r.runOnce(); again && !t.p.dead {
		s.hop(t)
	}
	if s.AfterStep != nil {
		s.AfterStep(t.p)
	}
}

func (s *Sim) hop(t *task) {
	s.seq++
	s.queue.set(&t.run, s.at(s.Latency(s.rng, t.r.label())), s.seq)
}

// task is an actor of a process, as the simulator knows it.
type task struct {
	p    *Process
	r    runner
	mark uint64 // process and name, for the trace
	run  event
	wake event
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
	held   []*task          // scheduled, and kept back since the process is frozen
	tasks  map[runner]*task // all that ever ran and are not done; for look-up, and to end them all
}

// NewProcess returns a process whose clock runs at the given rate (1 is true time).
func (s *Sim) NewProcess(rate float64) *Process {
	checkRate(rate)
	s.processes++
	return &Process{sim: s, id: s.processes, rate: rate, global: s.now, local: s.now, tasks: make(map[runner]*task)}
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
	if p.rate == 1 {
		return p.local.Add(global.Sub(p.global))
	}
	return p.local.Add(time.Duration(float64(global.Sub(p.global)) * p.rate))
}

// SetRate changes how fast the clock runs from now on. Wake-ups asked for before
// keep their place in global time, so they may be early or late by the new clock.
func (p *Process) SetRate(rate float64) {
	checkRate(rate)
	p.local, p.global, p.rate = p.Now(), p.sim.now, rate
}

// Jump sets the clock ahead. Wake-ups asked for before keep their place in global time, so they are late by the
// new clock.
func (p *Process) Jump(d time.Duration) {
	if d < 0 {
		panic(fmt.Sprintf("actor: clock jumps by %v, must not go back", d))
	}
	p.local, p.global = p.Now().Add(d), p.sim.now
}

// inline says that every hand-over takes its time.
func (p *Process) inline() bool { return false }

// Kill ends the process: whatever its actors had queued is lost.
func (p *Process) Kill() {
	p.dead = true
	for _, t := range p.tasks {
		p.sim.queue.remove(&t.run)
		p.sim.queue.remove(&t.wake)
	}
	p.tasks, p.held = nil, nil
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
	for _, t := range held {
		p.sim.hop(t)
	}
}

// run schedules r, or keeps it back while the process is frozen.
func (p *Process) run(r runner) {
	if p.dead {
		return
	}
	t := p.task(r)
	if p.frozen {
		p.held = append(p.held, t)
		return
	}
	p.sim.hop(t)
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
	p.sim.queue.set(&p.task(r).wake, p.sim.at(global.Sub(p.sim.now)), p.sim.seq)
}

// never is further ahead than any simulation gets, and far from overflow.
const never = 100 * 365 * 24 * time.Hour

func (p *Process) forget(r runner) {
	if t := p.tasks[r]; t != nil {
		p.sim.queue.remove(&t.wake)
		delete(p.tasks, r)
	}
}

// task is what the simulator knows r as.
func (p *Process) task(r runner) *task {
	t := p.tasks[r]
	if t == nil {
		t = &task{p: p, r: r, mark: p.id}
		for _, c := range []byte(r.label()) { // FNV-1a
			t.mark = (t.mark ^ uint64(c)) * 1099511628211
		}
		t.run.t, t.wake.t, t.wake.wake = t, t, true
		p.tasks[r] = t
	}
	return t
}
