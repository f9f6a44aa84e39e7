package actor

import (
	"sync"
	"time"
)

// Goroutines is the production executor: an actor has a goroutine for as long
// as it has work, and all deadlines share one timer.
//
// Ownership: safe for concurrent use. mu is a leaf lock.
type Goroutines struct {
	mu    sync.Mutex // guards the fields below
	due   deadlines
	seq   uint64
	timer *time.Timer
	next  time.Time // what timer is set to; zero when it is not running

	workers workers
}

// NewGoroutines returns an executor with no deadlines.
func NewGoroutines() *Goroutines { return &Goroutines{due: newDeadlines()} }

// Close says that nothing much will run any more: goroutines end as soon as they are
// idle. Actors still run.
func (g *Goroutines) Close() { g.workers.end() }

// inline says that a poster may run an actor.
func (g *Goroutines) inline() bool { return true }

// Now is the real time.
func (g *Goroutines) Now() time.Time { return time.Now() }

// run gives r a goroutine until it has no work left.
func (g *Goroutines) run(r runner) { g.workers.run(r) }

func (g *Goroutines) wakeAt(r runner, at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seq++
	g.due.set(r, at, g.seq)
	g.arm()
}

func (g *Goroutines) forget(r runner) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.due.remove(r)
	g.arm()
}

// arm sets the timer to the earliest deadline. A timer that is set too early
// fires for nothing, which is cheaper than to stop it each time.
func (g *Goroutines) arm() {
	first := g.due.first()
	switch {
	case first == nil:
		if g.timer != nil {
			g.timer.Stop()
			g.next = time.Time{}
		}
		return
	case !g.next.IsZero() && !first.at.Before(g.next):
		return
	}
	g.next = first.at
	if d := time.Until(first.at); g.timer == nil {
		g.timer = time.AfterFunc(d, g.fire)
	} else {
		g.timer.Reset(d)
	}
}

func (g *Goroutines) fire() {
	var ready []runner
	g.mu.Lock()
	g.next = time.Time{}
	for now := time.Now(); ; {
		first := g.due.first()
		if first == nil || first.at.After(now) {
			break
		}
		ready = append(ready, first.r)
		g.due.remove(first.r)
	}
	g.arm()
	g.mu.Unlock()
	for _, r := range ready {
		r.poke()
	}
}
