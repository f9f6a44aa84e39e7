package main

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

const (
	replaceTimers = 4                      // clients that take the time, besides those that write down histories
	replacePace   = time.Millisecond       // between two writes of one of them
	replaceBefore = 2 * time.Second        // how long to take the time before the first change, in each round
	replaceLoad   = 20_000                 // keys that a new member has to catch up with, 100 bytes each
	replaceGap    = 100 * time.Millisecond // between two changes
)

// Under constant load all three members are replaced by new ones, one by one and all at once. Nothing that was acknowledged
// is lost, what the clients saw is linearizable, and it says how long writes took meanwhile and before. GRAFT_REPLACE is how
// many times, and GRAFT_PRELOAD how many keys there are before.
func TestReplacedMembersLoseNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(r *replacement)
	}{
		{"one by one", (*replacement).oneByOne},
		{"all at once", (*replacement).allAtOnce},
	} {
		t.Run(test.name, func(t *testing.T) {
			procs := newProcessesAndJoiners(t, killTimeout, 3, 3)
			for _, p := range procs[:3] {
				p.start()
			}
			atRest(t, procs, changeLimit)
			l := startLoad(t, procs, killClients)
			l.preload(fromEnv(t, "GRAFT_PRELOAD", replaceLoad))
			r := &replacement{t: t, procs: procs, old: procs[:3], fresh: procs[3:], w: startTimers(l)}
			for range fromEnv(t, "GRAFT_REPLACE", 1) {
				startEmpty(t, r.fresh) // a machine that starts costs what it costs; this is about the change
				r.before = append(r.before, r.phase(func() { <-time.After(replaceBefore) }))
				test.change(r)
				r.old, r.fresh = r.fresh, r.old
			}
			r.w.close()
			l.stop()
			r.report()
			l.verify(500, 500)
			waitCaughtUp(t, r.old)
			sameEverywhere(t, r.old)
		})
	}
}

// interval is a time of which it is told how long writes took.
type interval struct{ start, end time.Time }

// replacement is three members and three others that take their places.
type replacement struct {
	t              *testing.T
	procs          []*process
	old, fresh     []*process
	w              *timers
	before, during []interval
}

// phase notes when f runs.
func (r *replacement) phase(f func()) interval {
	start := time.Now()
	f()
	return interval{start, time.Now()}
}

// change makes one change, which must succeed. It takes until whoever leads then carries out commands.
func (r *replacement) change(now, wanted []*process) {
	r.t.Helper()
	r.during = append(r.during, r.phase(func() {
		mustChange(r.t, r.procs, now, wanted)
	}))
	<-time.After(replaceGap)
}

func (r *replacement) oneByOne() {
	now := slices.Clone(r.old)
	for i := range r.old {
		wanted := slices.Clone(now)
		wanted[i] = r.fresh[i]
		r.change(now, wanted)
		now = wanted
		r.old[i].wipe()
	}
}

func (r *replacement) allAtOnce() {
	r.change(r.old, r.fresh)
	for _, p := range r.old {
		p.wipe()
	}
}

// report says how long writes took before the changes and during them.
func (r *replacement) report() {
	before, during := r.w.within(r.before), r.w.within(r.during)
	var took []time.Duration
	for _, i := range r.during {
		took = append(took, i.end.Sub(i.start))
	}
	r.t.Logf("changes: %s", durations(took))
	r.t.Logf("before:  %s", summary(before))
	r.t.Logf("during:  %s; %d with an unknown outcome", summary(during), r.w.unknown)
	slices.Sort(before)
	slices.Sort(during)
	p99, was := percentile(during, .99), percentile(before, .99)
	r.t.Logf("p99 during changes is %.1f times what it was", float64(p99)/float64(max(was, 1)))
	assert.NotEmpty(r.t, before)
	assert.NotEmpty(r.t, during)
}

// timers are clients that take the time of each write, from the first attempt until it is acknowledged, wherever it has to
// be sent meanwhile.
//
// Ownership: mu guards the fields below it.
type timers struct {
	l    *load
	done chan struct{}
	wg   sync.WaitGroup

	mu      sync.Mutex
	writes  []interval
	unknown int
}

func startTimers(l *load) *timers {
	w := &timers{l: l, done: make(chan struct{})}
	for id := range replaceTimers {
		w.wg.Go(func() { w.run(id) })
	}
	return w
}

func (w *timers) close() {
	close(w.done)
	w.wg.Wait()
}

func (w *timers) run(id int) {
	at := w.l.procs[0]
	tick := time.NewTicker(replacePace)
	defer tick.Stop()
	for n := 0; ; n++ {
		<-tick.C
		key, start, out := fmt.Sprintf("timed-%d-%d", id, n), time.Now(), outNothing
		for out == outNothing {
			select {
			case <-w.done:
				return
			default:
			}
			if _, out, at = w.l.do(at, storeOp{kind: "set", key: key, value: key}); out == outNothing {
				<-tick.C
			}
		}
		w.note(interval{start, time.Now()}, key, out)
	}
}

func (w *timers) note(i interval, key string, out outcome) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if out == outUnknown {
		w.unknown++
		return
	}
	w.writes = append(w.writes, i)
	w.l.mu.Lock()
	defer w.l.mu.Unlock()
	w.l.audit[key] = key
}

// within returns how long the writes took that were under way at any of these times.
func (w *timers) within(times []interval) (took []time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, wr := range w.writes {
		if slices.ContainsFunc(times, func(i interval) bool { return wr.start.Before(i.end) && wr.end.After(i.start) }) {
			took = append(took, wr.end.Sub(wr.start))
		}
	}
	return took
}
