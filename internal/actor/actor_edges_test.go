package actor

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// hasty runs actors on the caller's goroutine, and wakes them while they are still asking for it: as if the time had come just then.
type hasty struct {
	now   time.Time
	waked func() // called at each wake-up, before the poke
}

func (h *hasty) Now() time.Time { return h.now }
func (h *hasty) run(r runner) {
	for r.runOnce() {
	}
}
func (h *hasty) forget(runner) {}
func (h *hasty) inline() bool  { return false }

func (h *hasty) wakeAt(r runner, at time.Time) {
	h.now = at
	if h.waked != nil {
		h.waked()
	}
	r.poke()
}

// V11: a wake-up is not lost because it comes while it is being asked for, nor is a message, nor the end.
func TestNothingIsLostWhileAWakeUpIsAskedFor(t *testing.T) {
	const looks = 5
	h := &hasty{now: time.Unix(1000, 0)}
	var times []time.Time
	a := New(h, "hasty", func(now time.Time, _ []int) time.Time {
		if times = append(times, now); len(times) == looks {
			return noDeadline
		}
		return now.Add(time.Second)
	})
	a.Post(1)
	require.Len(t, times, looks)
	for i, at := range times {
		assert.Equal(t, time.Unix(1000+int64(i), 0), at)
	}

	got := 0
	b := New(h, "posted to", func(now time.Time, batch []int) time.Time {
		if got += len(batch); got < looks {
			return now.Add(time.Second)
		}
		return noDeadline
	})
	h.waked = func() { b.Post(1) }
	b.Post(1)
	assert.Equal(t, looks, got)

	c := New(h, "closed", func(now time.Time, _ []int) time.Time { return now.Add(time.Second) })
	h.waked = c.Close
	c.Post(1)
	assertDone(t, c)
}

// A5: an actor ends that is closed in the middle of a step, by that step or by others.
func TestAnActorThatIsClosedWhileItWorksEnds(t *testing.T) {
	h := &hasty{now: time.Unix(1000, 0)}
	steps := 0
	var a *Actor[int]
	a = New(h, "closed", func(_ time.Time, batch []int) time.Time {
		if steps++; len(batch) > 0 {
			a.Close()
		}
		return noDeadline
	})
	a.Post(1)
	assert.Equal(t, 2, steps, "there is a last step after the end was decided")
	assertDone(t, a)
}

func assertDone[T any](t *testing.T, a *Actor[T]) {
	t.Helper()
	select {
	case <-a.Done():
	default:
		t.Error("the actor has not ended")
	}
}

// sleeper is a runner that is known by its number.
type sleeper int

func (sleeper) runOnce() bool { return false }
func (sleeper) poke()         {}
func (sleeper) label() string { return "sleeper" }

// V11: however deadlines are set, moved and dropped, the earliest comes first, and of equal ones that which was set first.
func TestTheEarliestDeadlineComesFirst(t *testing.T) {
	type entry struct {
		at  time.Time
		seq uint64
	}
	rng := rand.New(rand.NewPCG(5, 6))
	d, want := newDeadlines(), make(map[sleeper]entry)
	for seq := uint64(1); seq <= 20_000; seq++ {
		r := sleeper(rng.IntN(50))
		if rng.IntN(4) == 0 {
			d.remove(r)
			delete(want, r)
		} else {
			e := entry{time.Unix(rng.Int64N(100), 0), seq}
			d.set(r, e.at, seq)
			want[r] = e
		}
		first := d.first()
		if len(want) == 0 {
			require.Nil(t, first)
			continue
		}
		require.Equal(t, want[first.r.(sleeper)], entry{first.at, first.seq})
		for _, e := range want {
			require.False(t, e.at.Before(first.at) || e.at.Equal(first.at) && e.seq < first.seq, "%v comes before %v", e, first)
		}
	}
}

// A step that runs on the goroutine of whoever posted knows that, and what it posts to its own actor is handled on another one.
func TestAStepKnowsWhetherItsGoroutineIsLent(t *testing.T) {
	type seen struct {
		message int
		lent    bool
	}
	var a *Actor[int]
	handled := make(chan seen, 10)
	a = New(newGoroutines(t), "lent", func(_ time.Time, batch []int) time.Time {
		for _, m := range batch {
			handled <- seen{m, a.Lent()}
			if m < 2 && a.Lent() {
				a.Post(m + 1)
			}
		}
		return noDeadline
	})
	a.PostInline(1)
	next := func(want seen) {
		t.Helper()
		select {
		case got := <-handled:
			if got != want {
				t.Fatalf("handled %+v, want %+v", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%+v is not handled", want)
		}
	}
	next(seen{1, true})
	next(seen{2, false})
	a.Post(3)
	next(seen{3, false})
	a.Close()
	<-a.Done()
}
