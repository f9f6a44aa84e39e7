package actor

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ring passes tokens round actors in processes of their own, which also wake by
// deadline, with a kill, a freeze and a drifting clock on the way.
func ring(seed uint64) *Sim {
	const n = 7
	s := NewSim(seed)
	actors, processes := make([]*Actor[int], n), make([]*Process, n)
	for i := range actors {
		processes[i] = s.NewProcess(1 + float64(i-n/2)/100)
		actors[i] = New(processes[i], "ring", func(now time.Time, batch []int) time.Time {
			for _, v := range batch {
				actors[(i+1+v)%n].Post(v)
			}
			return now.Add(10 * time.Millisecond)
		})
	}
	for v := range 5 {
		actors[v].Post(v)
	}
	victim := s.Rand().IntN(n)
	s.After(30*time.Millisecond, processes[victim].Kill)
	s.After(40*time.Millisecond, processes[(victim+1)%n].Freeze)
	s.After(60*time.Millisecond, processes[(victim+1)%n].Thaw)
	s.RunFor(100 * time.Millisecond)
	return s
}

func TestSameSeedSameRun(t *testing.T) {
	for seed := range uint64(10) {
		first := ring(seed)
		for range 3 {
			again := ring(seed)
			if again.TraceHash() != first.TraceHash() || again.Steps() != first.Steps() {
				t.Fatalf("seed %d: two runs differ: %d and %d steps", seed, first.Steps(), again.Steps())
			}
		}
		if ring(seed+1000).TraceHash() == first.TraceHash() {
			t.Fatalf("seed %d: another seed gave the same run of %d steps", seed, first.Steps())
		}
	}
}

func TestTraceTellsProcessesApart(t *testing.T) {
	run := func(which int) uint64 {
		s := NewSim(1)
		s.Latency = func(*rand.Rand, string) time.Duration { return 1 }
		processes := []*Process{s.NewProcess(1), s.NewProcess(1)}
		a := New(processes[which], "node", func(time.Time, []int) time.Time { return noDeadline })
		a.Post(1)
		s.RunFor(time.Second)
		return s.TraceHash()
	}
	if run(0) == run(1) {
		t.Error("the same step in another process gave the same trace")
	}
}

func TestNoteChangesTheTrace(t *testing.T) {
	a, b := NewSim(1), NewSim(1)
	a.Note(1)
	b.Note(2)
	if a.TraceHash() == b.TraceHash() {
		t.Error("different notes gave the same trace")
	}
}

// recorder is an actor that notes when it ran, by its own clock.
type recorder struct {
	*Actor[int]
	ran []time.Time
	got []int
}

func record(p *Process, next func(now time.Time) time.Time) *recorder {
	r := &recorder{}
	r.Actor = New(p, "recorder", func(now time.Time, batch []int) time.Time {
		r.ran = append(r.ran, now)
		r.got = append(r.got, batch...)
		return next(now)
	})
	return r
}

func idle(time.Time) time.Time { return noDeadline }

func every(d time.Duration) func(time.Time) time.Time {
	return func(now time.Time) time.Time { return now.Add(d) }
}

func TestSimHandlesInOrderAndCloses(t *testing.T) {
	s := NewSim(3)
	r := record(s.NewProcess(1), idle)
	for i := range 5 {
		require.True(t, r.Post(i))
	}
	if len(r.got) != 0 {
		t.Error("an actor ran before the simulator did")
	}
	r.Close()
	require.False(t, r.Post(9))
	require.True(t, s.RunUntil(time.Second, func() bool {
		select {
		case <-r.Done():
			return true
		default:
			return false
		}
	}), "the actor is not done")
	if want := []int{0, 1, 2, 3, 4}; !slices.Equal(r.got, want) {
		t.Errorf("handled %v, want %v", r.got, want)
	}
}

func TestRunForLetsExactlyThatMuchTimePass(t *testing.T) {
	s := NewSim(1)
	start, calls := s.Now(), 0
	s.After(time.Second, func() { calls++ })
	s.After(time.Second+1, func() { calls++ })
	s.RunFor(time.Second)
	if calls != 1 || s.Now().Sub(start) != time.Second {
		t.Errorf("after one second: %d calls at %v, want 1 at 1s", calls, s.Now().Sub(start))
	}
	s.RunFor(1)
	if calls != 2 {
		t.Errorf("%d calls one nanosecond later, want 2", calls)
	}
}

func TestRunUntilStopsAtItsLimit(t *testing.T) {
	s := NewSim(1)
	start := s.Now()
	if s.RunUntil(time.Minute, func() bool { return false }) {
		t.Error("a condition that never holds was reported to hold")
	}
	if got := s.Now().Sub(start); got != time.Minute {
		t.Errorf("%v have passed, want 1m", got)
	}
}

func TestEqualTimesKeepTheirOrder(t *testing.T) {
	s := NewSim(1)
	var order []int
	for i := range 50 {
		s.After(time.Second, func() { order = append(order, i) })
	}
	s.RunFor(time.Second)
	if len(order) != 50 || !slices.IsSorted(order) {
		t.Errorf("calls for one moment ran in the order %v", order)
	}
}

func TestKillLosesWhatWasQueued(t *testing.T) {
	s := NewSim(1)
	p, other := s.NewProcess(1), s.NewProcess(1)
	queued, waiting := record(p, idle), record(p, every(time.Millisecond))
	survivor := record(other, every(time.Millisecond))
	waiting.Post(1)
	survivor.Post(1)
	s.RunFor(10 * time.Millisecond)
	queued.Post(1)
	steps := len(waiting.ran)
	p.Kill()
	p.Kill()
	require.True(t, p.Dead())
	waiting.Post(2)
	queued.Close()
	before := len(survivor.ran)
	s.RunFor(time.Second)
	if len(queued.ran) != 0 || len(waiting.ran) != steps {
		t.Errorf("a dead process ran: %d and %d steps, want 0 and %d", len(queued.ran), len(waiting.ran), steps)
	}
	if len(survivor.ran) < before+900 {
		t.Errorf("another process ran %d steps in a second, want about 1000", len(survivor.ran)-before)
	}
	if len(s.queue) > 2 {
		t.Errorf("%d runs and wake-ups are left, want those of the survivor", len(s.queue))
	}
}

func TestKillFromAStep(t *testing.T) {
	s := NewSim(1)
	p := s.NewProcess(1)
	steps := 0
	var a *Actor[int]
	a = New(p, "suicide", func(now time.Time, _ []int) time.Time {
		steps++
		a.Post(1)
		p.Kill()
		a.Post(1)
		return now.Add(time.Millisecond)
	})
	a.Post(1)
	s.RunFor(time.Second)
	if steps != 1 {
		t.Errorf("%d steps, want 1", steps)
	}
	if len(s.queue) != 0 {
		t.Error("a dead process is still scheduled")
	}
}

func TestFreezeAndThaw(t *testing.T) {
	s := NewSim(1)
	p := s.NewProcess(1)
	ticker, sleeper := record(p, every(10*time.Millisecond)), record(p, idle)
	ticker.Post(1)
	s.RunFor(55 * time.Millisecond)
	sleeper.Post(1) // its run is on the way when the process stops
	p.Freeze()
	ticks := len(ticker.ran)
	sleeper.Post(2)
	s.RunFor(time.Second)
	sleeper.Post(3)
	ticker.Post(1)
	steps := s.Steps()
	s.RunFor(time.Second)
	if len(ticker.ran) != ticks || len(sleeper.ran) != 0 {
		t.Errorf("a frozen process ran: %d and %d steps, want %d and 0", len(ticker.ran), len(sleeper.ran), ticks)
	}
	if s.Steps() != steps {
		t.Errorf("%d steps were counted of a frozen process", s.Steps()-steps)
	}
	frozenAt := p.Now()
	p.Thaw()
	s.RunFor(100 * time.Millisecond)
	if want := []int{1, 2, 3}; !slices.Equal(sleeper.got, want) {
		t.Errorf("after the thaw %v were handled, want %v", sleeper.got, want)
	}
	if len(ticker.ran) < ticks+9 {
		t.Errorf("after the thaw %d ticks came in 100ms, want about 10", len(ticker.ran)-ticks)
	}
	if late := ticker.ran[ticks].Sub(frozenAt); late < 0 || late > time.Millisecond {
		t.Errorf("the overdue tick came %v after the thaw, want it at once", late)
	}
	if gap := ticker.ran[ticks].Sub(ticker.ran[ticks-1]); gap < 2*time.Second {
		t.Errorf("the clock of a frozen process stood still: %v passed, want more than 2s", gap)
	}
}

func TestFrozenThenKilled(t *testing.T) {
	s := NewSim(1)
	p := s.NewProcess(1)
	r := record(p, idle)
	p.Freeze()
	r.Post(1)
	s.RunFor(time.Second)
	p.Kill()
	p.Thaw()
	s.RunFor(time.Second)
	if len(r.ran) != 0 {
		t.Error("a process ran that was killed while it was frozen")
	}
}

// TestClockRate: a process's deadlines are of its own clock, and a wake-up is never early
// by it, whatever the rounding.
func TestClockRate(t *testing.T) {
	for _, rate := range []float64{1, 0.5, 2, 1.1, 0.9, 1.0000001, 1.0 / 3, 7.77} {
		s := NewSim(1)
		s.Latency = func(*rand.Rand, string) time.Duration { return 0 }
		p := s.NewProcess(rate)
		r := record(p, every(10*time.Millisecond+1))
		r.Post(1)
		start := s.Now()
		s.RunFor(time.Second)
		passed := p.Now().Sub(start)
		if want := time.Duration(rate * float64(time.Second)); passed < want-1 || passed > want+1 {
			t.Errorf("rate %v: %v passed in a second, want %v", rate, passed, want)
		}
		for i := 1; i < len(r.ran); i++ {
			if gap := r.ran[i].Sub(r.ran[i-1]); gap < 10*time.Millisecond+1 || gap > 10*time.Millisecond+20 {
				t.Fatalf("rate %v: step %d came %v after the one before, want 10.000001ms by its own clock", rate, i, gap)
			}
		}
		if want := 1 + int(passed/(10*time.Millisecond+1)); len(r.ran) < want-1 || len(r.ran) > want {
			t.Errorf("rate %v: %d steps, want %d", rate, len(r.ran), want)
		}
	}
}

func TestSetRateKeepsTheClockContinuous(t *testing.T) {
	s := NewSim(1)
	p := s.NewProcess(1)
	start := p.Now()
	for _, rate := range []float64{2, 0.5, 1} {
		before := p.Now()
		p.SetRate(rate)
		if now := p.Now(); !now.Equal(before) {
			t.Fatalf("SetRate(%v) moved the clock by %v", rate, now.Sub(before))
		}
		s.RunFor(time.Second)
	}
	if got := p.Now().Sub(start); got != 3500*time.Millisecond {
		t.Errorf("%v have passed, want 3.5s", got)
	}
}

func TestJump(t *testing.T) {
	s := NewSim(1)
	p := s.NewProcess(2)
	r := record(p, idle)
	s.RunFor(time.Second)
	before := p.Now()
	p.Jump(time.Minute)
	if got := p.Now().Sub(before); got != time.Minute {
		t.Errorf("the clock jumped %v, want 1m", got)
	}
	r.Post(1)
	s.RunFor(time.Second)
	if got := p.Now().Sub(before); got != time.Minute+2*time.Second || len(r.ran) != 1 {
		t.Errorf("%v after the jump, and %d steps; want 1m2s and 1", got, len(r.ran))
	}
	require.Panics(t, func() { p.Jump(-1) })
}

func TestClockRateMustBePositive(t *testing.T) {
	for _, rate := range []float64{0, -1} {
		require.Panics(t, func() { NewSim(1).NewProcess(rate) })
		require.Panics(t, func() { NewSim(1).NewProcess(1).SetRate(rate) })
	}
}

func TestDeadlineInTheFarFuture(t *testing.T) {
	s := NewSim(1)
	r := record(s.NewProcess(0.25), func(now time.Time) time.Time { return now.Add(1<<63 - 1) })
	r.Post(1)
	s.RunFor(1000 * time.Hour)
	if len(r.ran) != 1 {
		t.Errorf("%d steps, want 1", len(r.ran))
	}
}

func TestProcessForgetsActorsThatAreDone(t *testing.T) {
	s := NewSim(1)
	p := s.NewProcess(1)
	for range 1000 {
		r := record(p, every(time.Hour))
		r.Post(1)
		s.RunFor(time.Millisecond)
		r.Close()
		s.RunFor(time.Millisecond)
	}
	if len(p.tasks) != 0 || len(s.queue) != 0 {
		t.Errorf("a process of 1000 short-lived actors still knows %d, and %d wake-ups", len(p.tasks), len(s.queue))
	}
}

func TestAfterStepSeesEveryStepOfAnActor(t *testing.T) {
	s := NewSim(1)
	var seen []*Process
	s.AfterStep = func(p *Process) { seen = append(seen, p) }
	p := s.NewProcess(1)
	r := record(p, idle)
	s.After(time.Millisecond, func() { r.Post(1) })
	r.Post(1)
	s.RunFor(time.Second)
	if want := []*Process{p, p}; !slices.Equal(seen, want) {
		t.Errorf("AfterStep saw steps of %v, want %v", seen, want)
	}
}

// TestQueueAgainstSorting sets, moves and removes events at random, and compares the first of the queue with the
// least of a list.
func TestQueueAgainstSorting(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	var q queue
	events := make([]*event, 40)
	for i := range events {
		events[i] = new(event)
	}
	times := map[*event]slot{}
	for seq := range uint64(20_000) {
		e := events[rng.IntN(len(events))]
		if rng.IntN(3) == 0 {
			q.remove(e)
			delete(times, e)
		} else {
			times[e] = slot{at: rng.Int64N(50), seq: seq, e: e}
			q.set(e, times[e].at, seq)
		}
		if len(q) != len(times) {
			t.Fatalf("%d events are queued, want %d", len(q), len(times))
		}
		var least *slot
		for _, s := range times {
			if s.e.pos == 0 || q[s.e.pos-1] != s {
				t.Fatalf("event %v is not at its place", s)
			}
			if least == nil || s.before(least) {
				least = &s
			}
		}
		if least != nil && q[0] != *least {
			t.Fatalf("the first is %v, want %v", q[0], *least)
		}
	}
}

func BenchmarkSimStep(b *testing.B) {
	steps := uint64(0)
	b.ReportAllocs()
	for seed := uint64(0); b.Loop(); seed++ {
		steps += ring(seed).Steps()
	}
	b.ReportMetric(float64(steps)/b.Elapsed().Seconds(), "steps/s")
}
