package actor

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// noDeadline is what a step returns that wants no wake-up.
var noDeadline time.Time

func TestMessagesKeepTheirOrder(t *testing.T) {
	const posters, each = 8, 2_000
	type message struct{ poster, n int }
	got := make([][]int, posters) // owned by the actor
	a := New(newGoroutines(t), "order", func(_ time.Time, batch []message) time.Time {
		for _, m := range batch {
			got[m.poster] = append(got[m.poster], m.n)
		}
		return noDeadline
	})
	var wg sync.WaitGroup
	for p := range posters {
		wg.Go(func() {
			for n := range each {
				if !a.Post(message{p, n}) {
					t.Errorf("poster %d: message %d was refused by an open actor", p, n)
				}
			}
		})
	}
	wg.Wait()
	a.Close()
	<-a.Done()
	for p, ns := range got {
		if len(ns) != each || !slices.IsSorted(ns) {
			t.Errorf("poster %d: got %d messages, sorted %v, want %d in order", p, len(ns), slices.IsSorted(ns), each)
		}
	}
}

func TestOneStepAtATime(t *testing.T) {
	var running, steps atomic.Int32
	a := New(newGoroutines(t), "exclusive", func(now time.Time, _ []int) time.Time {
		if running.Add(1) != 1 {
			t.Error("two steps run at once")
		}
		steps.Add(1)
		running.Add(-1)
		return now.Add(time.Microsecond) // deadlines and messages compete for the actor
	})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2_000 {
				a.Post(1)
			}
		})
	}
	wg.Wait()
	a.Close()
	<-a.Done()
	if steps.Load() == 0 {
		t.Error("no step has run")
	}
}

// TestCloseRacesPost checks both sides of Post's promise: accepted is handled,
// refused is not, and Done comes after the last batch.
func TestCloseRacesPost(t *testing.T) {
	for range 500 {
		var accepted atomic.Int64
		handled := int64(0) // owned by the actor until Done
		a := New(newGoroutines(t), "close", func(_ time.Time, batch []int) time.Time {
			handled += int64(len(batch))
			return noDeadline
		})
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 20 {
					if a.Post(1) {
						accepted.Add(1)
					}
				}
			})
		}
		wg.Go(a.Close)
		wg.Go(a.Close)
		wg.Wait()
		<-a.Done()
		if handled != accepted.Load() {
			t.Fatalf("handled %d messages, accepted %d", handled, accepted.Load())
		}
		if a.Post(1) {
			t.Fatal("Post after Close succeeded")
		}
	}
}

func TestCloseHandlesWhatWasPosted(t *testing.T) {
	gate := make(chan struct{})
	var got []int
	a := New(newGoroutines(t), "drain", func(_ time.Time, batch []int) time.Time {
		<-gate
		got = append(got, batch...)
		return noDeadline
	})
	for i := range 5 {
		a.Post(i)
	}
	a.Close()
	select {
	case <-a.Done():
		t.Fatal("done before the first batch was handled")
	default:
	}
	close(gate)
	<-a.Done()
	if want := []int{0, 1, 2, 3, 4}; !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
}

func TestCloseOfAnIdleActorRunsALastStep(t *testing.T) {
	steps := 0
	a := New(newGoroutines(t), "idle", func(_ time.Time, batch []int) time.Time {
		steps++
		return noDeadline
	})
	a.Close()
	<-a.Done()
	if steps != 1 {
		t.Errorf("%d steps, want 1: a step may have to clean up", steps)
	}
}

func TestStepMayPostAndCloseItsOwnActor(t *testing.T) {
	var got []int
	var a *Actor[int]
	a = New(newGoroutines(t), "self", func(_ time.Time, batch []int) time.Time {
		for _, v := range batch {
			got = append(got, v)
			if v < 3 {
				a.Post(v + 1)
			} else {
				a.Close()
				a.Close()
			}
		}
		return noDeadline
	})
	a.Post(0)
	<-a.Done()
	if want := []int{0, 1, 2, 3}; !slices.Equal(got, want) {
		t.Errorf("handled %v, want %v", got, want)
	}
}

func TestDeadlineWakesAnIdleActor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var woken []time.Duration
		a := New(newGoroutines(t), "deadline", func(now time.Time, batch []int) time.Time {
			if len(batch) == 0 {
				woken = append(woken, now.Sub(start))
			}
			if len(woken) < 3 {
				return now.Add(20 * time.Millisecond)
			}
			return noDeadline
		})
		a.Post(1)
		time.Sleep(time.Hour)
		synctest.Wait()
		if want := []time.Duration{20e6, 40e6, 60e6}; !slices.Equal(woken, want) {
			t.Errorf("woken after %v, want %v", woken, want)
		}
		a.Close()
		<-a.Done()
	})
}

// TestMovedDeadline: a deadline that moves nearer counts at once; one that moves
// away costs an empty step at its old place, and still fires at its new one.
func TestMovedDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var deadline time.Time
		fired := time.Duration(0)
		a := New(newGoroutines(t), "moved", func(now time.Time, batch []time.Duration) time.Time {
			for _, d := range batch {
				deadline = start.Add(d)
			}
			if !deadline.IsZero() && !now.Before(deadline) {
				fired, deadline = now.Sub(start), time.Time{}
			}
			return deadline
		})
		a.Post(time.Second)
		synctest.Wait()
		a.Post(time.Millisecond)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if fired != time.Millisecond {
			t.Errorf("the nearer deadline fired after %v, want 1ms", fired)
		}
		a.Post(500 * time.Millisecond)
		synctest.Wait()
		a.Post(3 * time.Second)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if fired != 3*time.Second {
			t.Errorf("the later deadline fired after %v, want 3s", fired)
		}
		a.Close()
		<-a.Done()
	})
}

// TestDeadlinesAreNotLost has messages arrive at the very moments at which deadlines are
// due, which is when a wake-up could fall between the executor and the actor.
func TestDeadlinesAreNotLost(t *testing.T) {
	g := newGoroutines(t)
	const rounds = 300
	wokenUp := make(chan struct{}, 1)
	var due time.Time
	a := New(g, "race", func(now time.Time, batch []time.Time) time.Time {
		for _, at := range batch {
			due = at
		}
		if !due.IsZero() && !now.Before(due) {
			due = time.Time{}
			wokenUp <- struct{}{}
		}
		return due
	})
	noise := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-noise:
				return
			default:
				a.exec.(*Goroutines).fire() // as if the timer had fired now
			}
		}
	})
	for i := range rounds {
		a.Post(time.Now().Add(time.Duration(i%7) * 10 * time.Microsecond))
		<-wokenUp // the test times out if a wake-up is lost
	}
	close(noise)
	wg.Wait()
	a.Close()
	<-a.Done()
}

func TestManyDeadlinesOnOneTimer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, start := newGoroutines(t), time.Now()
		const actors = 200
		var woken [actors]time.Duration
		var all []*Actor[int]
		for i := range actors {
			wait := time.Duration(1+(i*37)%actors) * time.Millisecond
			a := New(g, "many", func(now time.Time, batch []int) time.Time {
				if len(batch) > 0 {
					return now.Add(wait)
				}
				woken[i] = now.Sub(start) - wait
				return noDeadline
			})
			a.Post(1)
			all = append(all, a)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for i, late := range woken {
			if late != 0 {
				t.Errorf("actor %d was woken %v late", i, late)
			}
		}
		for _, a := range all {
			a.Close()
			<-a.Done()
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if len(g.due.heap) != 0 || len(g.due.index) != 0 || !g.next.IsZero() {
			t.Errorf("%d deadlines left of actors that are done, timer set to %v", len(g.due.heap), g.next)
		}
	})
}

func TestCloseForgetsTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, steps := newGoroutines(t), 0
		a := New(g, "forget", func(now time.Time, _ []int) time.Time {
			steps++
			return now.Add(time.Second)
		})
		a.Post(1)
		synctest.Wait()
		a.Close()
		<-a.Done()
		before := steps
		time.Sleep(time.Minute)
		synctest.Wait()
		if steps != before {
			t.Errorf("%d steps after Done", steps-before)
		}
		if len(g.due.index) != 0 {
			t.Error("the executor still knows an actor that is done")
		}
	})
}

func TestIdleActorsHaveNoGoroutine(t *testing.T) {
	g := newGoroutines(t)
	ignore := goleak.IgnoreCurrent()
	var all []*Actor[int]
	for range 100 {
		a := New(g, "idle", func(now time.Time, _ []int) time.Time { return now.Add(time.Hour) })
		a.Post(1)
		all = append(all, a)
	}
	require.NoError(t, goleak.Find(ignore), "an actor that waits for an hour keeps a goroutine")
	for _, a := range all {
		a.Close()
		<-a.Done()
	}
}

func TestBatchIsClearedAfterItsStep(t *testing.T) {
	var kept []*int
	a := New(newGoroutines(t), "clear", func(_ time.Time, batch []*int) time.Time {
		kept = batch
		return noDeadline
	})
	a.Post(new(int))
	a.Close()
	<-a.Done()
	for _, p := range kept[:cap(kept)] {
		if p != nil {
			t.Error("an idle actor keeps a message alive")
		}
	}
}

func TestLen(t *testing.T) {
	entered, gate := make(chan struct{}, 10), make(chan struct{})
	a := New(newGoroutines(t), "len", func(time.Time, []int) time.Time {
		entered <- struct{}{}
		<-gate
		return noDeadline
	})
	a.Post(1)
	<-entered
	a.Post(2)
	a.Post(3)
	if got := a.Len(); got != 2 {
		t.Errorf("%d messages wait, want 2", got)
	}
	close(gate)
	a.Close()
	<-a.Done()
	if got := a.Len(); got != 0 {
		t.Errorf("%d messages wait after Done, want 0", got)
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	p := NewSim(1).NewProcess(1) // a Sim's hop allocates, Post and runOnce do not
	a := New(p, "alloc", func(time.Time, []int) time.Time { return noDeadline })
	a.scheduled = true // run by hand below
	allocs := testing.AllocsPerRun(100, func() {
		for i := range 10 {
			a.Post(i)
		}
		a.runOnce()
		a.scheduled = true
	})
	if allocs != 0 {
		t.Errorf("%v allocations per batch, want 0", allocs)
	}
}

// BenchmarkPost is a message to an actor that is mostly busy.
func BenchmarkPost(b *testing.B) {
	a := New(newGoroutines(b), "post", func(time.Time, []int) time.Time { return noDeadline })
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			a.Post(1)
		}
	})
	a.Close()
	<-a.Done()
}

// BenchmarkHop is the worst case: every message finds its actor idle.
func BenchmarkHop(b *testing.B) {
	g := newGoroutines(b)
	var ping, pong *Actor[int]
	end := make(chan struct{})
	ping = New(g, "ping", func(_ time.Time, batch []int) time.Time {
		switch {
		case len(batch) == 0:
		case batch[0] == 0:
			close(end)
		default:
			pong.Post(batch[0] - 1)
		}
		return noDeadline
	})
	pong = New(g, "pong", func(_ time.Time, batch []int) time.Time {
		if len(batch) > 0 {
			ping.Post(batch[0])
		}
		return noDeadline
	})
	b.ReportAllocs()
	ping.Post(b.N)
	<-end
	for _, a := range []*Actor[int]{ping, pong} {
		a.Close()
		<-a.Done()
	}
}

// newGoroutines returns an executor whose goroutines end with the test.
func newGoroutines(t testing.TB) *Goroutines {
	g := NewGoroutines()
	t.Cleanup(g.Close)
	return g
}
