package graft

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/progress"
	"github.com/graft-raft/graft/internal/rpc"
)

// narrowWay is a leader's way to its followers, all of whom always lack something, and get as much as their budgets allow for.
type narrowWay struct {
	rate  int           // bytes a second, of all together
	there time.Duration // what a request takes that nothing is in the way of

	now, free time.Time
	budgets   []budget
	onTheWay  []int
	requests  []onItsWay // by when they are answered
	done      int        // bytes
	latest    time.Duration
}

type onItsWay struct {
	to, size, onTheWay int
	at, answered       time.Time
}

func newNarrowWay(followers, rate int, there time.Duration) *narrowWay {
	w := &narrowWay{rate: rate, there: there, now: time.Unix(1, 0)}
	o := NodeOptions{}.withDefaults()
	for range followers {
		w.budgets, w.onTheWay = append(w.budgets, newBudget(&o)), append(w.onTheWay, 0)
	}
	return w
}

// pass lets time pass, and tells how many bytes have come, and the longest time that a request took.
func (w *narrowWay) pass(d time.Duration) (done int, latest time.Duration) {
	const size = 512 << 10
	w.done, w.latest = 0, 0
	for end := w.now.Add(d); w.now.Before(end); {
		for to := range w.budgets {
			for w.onTheWay[to] < w.budgets[to].bytes {
				w.onTheWay[to] += size
				if w.free.Before(w.now) {
					w.free = w.now
				}
				w.free = w.free.Add(time.Duration(size) * time.Second / time.Duration(w.rate))
				w.requests = append(w.requests, onItsWay{to, size, w.onTheWay[to], w.now, w.free.Add(w.there)})
			}
		}
		r := w.requests[0]
		w.requests = w.requests[1:]
		w.now = r.answered
		w.onTheWay[r.to] -= r.size
		w.done, w.latest = w.done+r.size, max(w.latest, w.now.Sub(r.at))
		w.budgets[r.to].answered(w.now, r.at, r.size, r.onTheWay)
	}
	return w.done, w.latest
}

const testTimeout = time.Second // the ElectionTimeout that is the default

// X10: over a quick way all is soon on the way that may be, and on a long one after some round trips.
func TestTheBudgetIsAllOnAQuickOrLongWay(t *testing.T) {
	for there, soon := range map[time.Duration]time.Duration{
		200 * time.Microsecond: 60 * time.Millisecond,
		5 * time.Millisecond:   100 * time.Millisecond,
		300 * time.Millisecond: 6 * 300 * time.Millisecond,
	} {
		w := newNarrowWay(2, 1<<30, there)
		require.Equal(t, 1<<20, w.budgets[0].bytes, "it begins small")
		w.pass(soon)
		assert.Equal(t, 16<<20, w.budgets[0].bytes, "%v", there)
		w.pass(time.Minute)
		assert.Equal(t, 16<<20, w.budgets[0].bytes, "%v", there)
	}
}

// V7: over a way that carries less, nobody waits for what is on the way for longer than an election timeout, and the way is used all the time.
func TestTheBudgetIsWhatTheWayCarries(t *testing.T) {
	for _, rate := range []int{12e6, 16e6, 24e6, 50e6, 100e6} {
		w := newNarrowWay(2, rate, time.Millisecond)
		_, latest := w.pass(3 * time.Second)
		assert.Less(t, latest, testTimeout/2, "%d: at first", rate)
		done, latest := w.pass(time.Minute)
		assert.Less(t, latest, testTimeout/2, "%d", rate)
		assert.Greater(t, done, rate*60*98/100, "%d", rate)
	}
}

// V7: so it is soon again if the way carries less than it did, or more.
func TestTheBudgetFollowsTheWay(t *testing.T) {
	w := newNarrowWay(2, 1e9, time.Millisecond)
	w.pass(time.Second)
	require.Equal(t, 16<<20, w.budgets[0].bytes)
	w.rate = 12e6
	w.pass(8 * time.Second)
	done, latest := w.pass(time.Minute)
	assert.Less(t, latest, testTimeout/2)
	assert.Greater(t, done, int(12e6)*60*98/100)
	w.rate = 1e9
	w.pass(time.Second)
	assert.Equal(t, 16<<20, w.budgets[0].bytes)
}

// V7: what others send over the same way is not taken for its length, of which each of them would add more and more.
func TestTheBudgetOfManyDoesNotRunAway(t *testing.T) {
	w := newNarrowWay(6, 12e6, time.Millisecond)
	w.pass(5 * time.Second)
	_, latest := w.pass(10 * time.Minute)
	assert.Less(t, latest, 600*time.Millisecond, "what all of them begin with takes 524 ms")
}

// X10: a way that has become longer is used again.
func TestTheBudgetLearnsThatTheWayIsLonger(t *testing.T) {
	w := newNarrowWay(2, 1e9, time.Millisecond)
	w.pass(time.Second)
	w.there = 300 * time.Millisecond
	w.pass(20 * time.Second)
	assert.Equal(t, 16<<20, w.budgets[0].bytes)
}

// X10: a disk that is ever so slow gets what a budget begins with.
func TestTheBudgetOfASlowDiskIsNotLess(t *testing.T) {
	for _, sync := range []time.Duration{400 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second} {
		w := newNarrowWay(2, 1e9, time.Millisecond)
		w.pass(10 * time.Millisecond) // it was quick once
		w.there = sync
		for range 100 {
			w.pass(sync)
			require.GreaterOrEqual(t, w.budgets[0].bytes, 1<<20, "%v", sync)
		}
	}
}

// A budget that is hardly used does not grow: what is written slowly for hours says nothing about all that may come at once.
func TestTheBudgetHasToBeUsed(t *testing.T) {
	o := NodeOptions{}.withDefaults()
	b, now := newBudget(&o), time.Unix(1, 0)
	for range 1000 {
		b.answered(now.Add(time.Millisecond), now, 100<<10, 400<<10)
	}
	assert.Equal(t, 1<<20, b.bytes)
	b.answered(now.Add(time.Millisecond), now, 100<<10, 512<<10)
	assert.Equal(t, 1<<20+100<<10, b.bytes)
}

// Once it was too much it grows slowly.
func TestTheBudgetGrowsSlowlyWhereItWasTooMuch(t *testing.T) {
	o := NodeOptions{}.withDefaults()
	b, now := newBudget(&o), time.Unix(1, 0)
	quick := func(size int) { b.answered(now.Add(time.Millisecond), now, size, b.bytes) }
	quick(7 << 20)
	require.Equal(t, 8<<20, b.bytes)
	b.answered(now.Add(time.Second), now, 1<<20, b.bytes)
	require.Equal(t, 4<<20, b.bytes)
	for range 8 {
		quick(512 << 10)
	}
	assert.InDelta(t, 4<<20+512<<10, b.bytes, 32<<10, "a request each round trip")
	for range 32 { // a connection is lost, with all that was on the way
		b.lost(now.Add(2*time.Second), now.Add(time.Second+time.Millisecond))
	}
	quick(1 << 20)
	assert.Equal(t, 2<<20, b.bytes)
	quick(512 << 10)
	before := b.bytes
	quick(512 << 10)
	assert.Less(t, b.bytes, before+256<<10, "half of what was lost")
}

// It is halved once for all that was on the way, and begins anew if nothing is answered.
func TestTheBudgetIsCutOnceForAWindow(t *testing.T) {
	o := NodeOptions{}.withDefaults()
	b, now := newBudget(&o), time.Unix(1, 0)
	after := func(d time.Duration) time.Time { return now.Add(d) }
	b.answered(after(time.Millisecond), now, 15<<20, 15<<20)
	require.Equal(t, 16<<20, b.bytes)
	b.answered(after(200*time.Millisecond), now, 1<<20, 16<<20)
	assert.Equal(t, 16<<20, b.bytes, "neither quick nor late")
	for late := range 5 {
		b.answered(after(time.Duration(300+late)*time.Millisecond), after(time.Duration(late)*time.Millisecond), 1<<20, 16<<20)
		assert.Equal(t, 8<<20, b.bytes)
	}
	b.answered(after(600*time.Millisecond), after(301*time.Millisecond), 1<<20, 16<<20)
	assert.Equal(t, 4<<20, b.bytes, "the next one")
	b.lost(after(700*time.Millisecond), after(600*time.Millisecond))
	assert.Equal(t, 1<<20, b.bytes)
	assert.Equal(t, 4<<20, b.doubles, "it was late before")
	b.answered(after(701*time.Millisecond), after(700*time.Millisecond), 1<<20, 1<<20)
	b.lost(after(702*time.Millisecond), after(650*time.Millisecond))
	assert.Equal(t, 2<<20, b.bytes, "it was lost with the other")
	b.lost(after(703*time.Millisecond), after(702*time.Millisecond))
	assert.Equal(t, 1<<20, b.bytes)
	assert.Equal(t, 1<<20, b.doubles)
	b.answered(after(950*time.Millisecond), after(650*time.Millisecond), 1<<20, 16<<20)
	assert.Equal(t, time.Millisecond, b.quickest, "it says nothing about what is on the way now")
}

// It never allows for more than the user does.
func TestTheBudgetIsNotMoreThanMayBe(t *testing.T) {
	o := NodeOptions{MaxInflightBytes: 100}.withDefaults()
	b, now := newBudget(&o), time.Unix(1, 0)
	assert.Equal(t, 100, b.bytes)
	b.answered(now, now, 1<<20, 1<<20)
	assert.Equal(t, 100, b.bytes)
	b.answered(now.Add(time.Hour), now, 1<<20, 1<<20)
	assert.Equal(t, 100, b.bytes)
}

// V7: what a replicator sends is as much as the budget allows for, which it learns from the answers.
func TestAReplicatorSendsWhatTheWayCarries(t *testing.T) {
	s, r := newReplicatorOnStage(t, 1)
	least := budgetBegin * s.node.o.MaxAppendBytes
	bytes := func() int {
		w, _ := r.window()
		return w.Bytes
	}
	require.Equal(t, least, bytes())
	for range 60 {
		s.apply(string(make([]byte, 40<<10)))
		s.pass(time.Millisecond)
	}
	_, onTheWay := r.p.Inflight()
	assert.GreaterOrEqual(t, onTheWay, least)
	assert.Less(t, onTheWay, least+s.node.o.MaxAppendBytes, "nobody has answered yet")

	rep, resp := r.success(0)
	answer := func(took time.Duration) {
		r.progress(sentRequest{
			last: r.p.Match, entries: true, size: 512 << 10, onTheWay: bytes(), life: r.life, at: r.now.Add(-took), generation: r.p.Generation(),
		}, rep, resp, true)
	}
	for bytes() < s.node.o.MaxInflightBytes {
		before := bytes()
		answer(time.Millisecond)
		require.Greater(t, bytes(), before)
	}
	answer(s.node.o.ElectionTimeout / 3)
	assert.Equal(t, s.node.o.MaxInflightBytes/2, bytes())
	sent := sentRequest{prev: r.p.Match, last: r.p.Match + 1, entries: true, life: r.life, at: r.now.Add(1), generation: r.p.Generation()}
	r.failed(sent, rpc.Reply{Code: int32(ErrBusy)})
	assert.Equal(t, s.node.o.MaxInflightBytes/2, bytes(), "it has answered")
	r.failed(sent, rpc.Reply{Err: errors.New("simulated")})
	assert.Equal(t, least, bytes())
}

// Calls that were given up do not keep a peer waiting whose budget has become small.
func TestGivenUpCallsDoNotCountAgainstASmallBudget(t *testing.T) {
	s, r := newReplicatorOnStage(t, 1)
	r.callBytes = 2 * s.node.o.MaxInflightBytes
	r.callBytes--
	r.p = progress.New(1)
	calls := r.calls
	r.send()
	assert.Equal(t, calls+1, r.calls)
	r.callBytes++
	r.p = progress.New(1)
	r.send()
	assert.Equal(t, calls+1, r.calls, "so many are enough")
}

// V7, X10: a braft peer has the time for a large entry that a slow way takes. It would have to be given it again for ever.
func TestABraftPeerHasTimeForALargeEntry(t *testing.T) {
	s, r := newReplicatorOnStage(t, 3)
	out := &heard{Transport: s.node.host.rpc}
	s.node.host.rpc = out
	var b entry.Builder
	b.Reset(2)
	b.AppendData(1, make([]byte, 1<<20))
	large := []entry.Batch{b.Build()}
	for _, graft := range []bool{true, false} {
		r.graft, r.p = graft, progress.New(1)
		require.True(t, r.sendEntries(large))
		require.True(t, r.sendEntries(nil))
	}
	usual := 2 * s.node.o.ElectionTimeout
	require.Len(t, out.timeouts, 4)
	assert.Equal(t, usual, out.timeouts[0])
	assert.Equal(t, usual, out.timeouts[1])
	assert.GreaterOrEqual(t, out.timeouts[2], usual+16*time.Second, "64 KiB a second")
	assert.Less(t, out.timeouts[2], usual+17*time.Second)
	assert.Equal(t, usual, out.timeouts[3])
}
