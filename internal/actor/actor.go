// Package actor is the only way code in this module runs concurrently: a mailbox
// with one owner. It is also the simulator's seam, because who runs an actor,
// and when, is an Executor's choice.
package actor

import (
	"sync"
	"time"
)

// An Executor decides when actors run. Goroutines runs each on a goroutine of
// its own for as long as it has work; a Sim's Process runs all of them on one
// goroutine, in an order and at virtual times drawn from a seed.
type Executor interface {
	// Now is the executor's clock. It never goes back within one process.
	Now() time.Time

	// run schedules r.runOnce until it returns false.
	run(r runner)

	// wakeAt asks for one poke of r at the given time, in place of an earlier request.
	wakeAt(r runner, at time.Time)

	// forget drops a wake-up that is still pending, and all that is known of r: it is done.
	forget(r runner)

	// inline reports whether an idle actor may run on the goroutine that posts to it.
	inline() bool
}

// runner is what an executor sees of an actor.
type runner interface {
	runOnce() (again bool)
	poke()
	label() string
}

// An Actor handles its messages in batches, one batch at a time. An idle actor
// has no goroutine and at most one entry in its executor's timer heap: it costs
// its own memory and nothing else.
//
// Invariants: at most one step runs at any time; messages are handled in the
// order in which Post accepted them; every accepted message is handled, also
// after Close; Done is closed once, after the last step returned.
//
// Ownership: step and everything it touches belong to the actor. Post, Close
// and Done may be called from anywhere, also from a step, and never block. mu is
// a leaf lock.
type Actor[T any] struct {
	exec Executor
	name string
	step func(now time.Time, batch []T) (deadline time.Time)
	done chan struct{}
	lent bool // the step's: it runs on the goroutine of somebody who posted

	mu        sync.Mutex // guards the fields below
	queue     []T
	spare     []T       // the last batch, emptied: steady state allocates nothing
	armed     time.Time // the wake-up asked of the executor and not yet delivered
	scheduled bool
	closed    bool
	finished  bool
}

// maxSpare bounds the memory that an idle actor keeps after a burst, in messages.
const maxSpare = 1 << 12

// New returns an idle actor. step handles a batch and returns when it next wants
// to run without a message; the zero time means never. A batch is empty when a
// deadline passed, and may be empty without reason too, since a deadline that
// moves into the future is not taken out of the executor's heap: a step must
// look at now, not at the fact that it was woken.
//
// step must not block, unless blocking is the actor's whole job. name shows up in
// traces and selects the simulated latency.
func New[T any](exec Executor, name string, step func(now time.Time, batch []T) time.Time) *Actor[T] {
	return &Actor[T]{exec: exec, name: name, step: step, done: make(chan struct{})}
}

// Post queues v. It reports false, and drops v, once the actor is closed.
func (a *Actor[T]) Post(v T) bool {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return false
	}
	a.queue = append(a.queue, v)
	wake := !a.scheduled
	a.scheduled = true
	a.mu.Unlock()
	if wake {
		a.exec.run(a)
	}
	return true
}

// PostInline is Post, but if the actor is idle its step runs on the caller's goroutine, where the executor
// allows that: it spares a hand-over. The caller must hold no lock, and the step must not
// block. One batch is handled; what comes meanwhile is for another goroutine.
func (a *Actor[T]) PostInline(v T) bool {
	if !a.exec.inline() {
		return a.Post(v)
	}
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return false
	}
	a.queue = append(a.queue, v)
	mine := !a.scheduled
	a.scheduled = true
	a.mu.Unlock()
	if mine && a.handle(true) {
		a.exec.run(a)
	}
	return true
}

// Close makes Post fail. What was posted before is still handled, one more step runs even if that
// is nothing, and then Done is closed. Close may be called again.
func (a *Actor[T]) Close() {
	a.mu.Lock()
	wake := !a.closed && !a.scheduled
	a.closed = true
	if wake {
		a.scheduled = true
	}
	a.mu.Unlock()
	if wake {
		a.exec.run(a)
	}
}

// Lent reports, within a step, whether it runs on the goroutine of somebody who called PostInline, and so must not
// block. What the step posts to its own actor is handled on another one.
func (a *Actor[T]) Lent() bool { return a.lent }

// Done is closed after the last batch was handled.
func (a *Actor[T]) Done() <-chan struct{} { return a.done }

// Len is the number of messages that wait. It is a hint: it may change at once.
func (a *Actor[T]) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queue)
}

// poke runs the actor because the wake-up it asked for is due.
func (a *Actor[T]) poke() {
	a.mu.Lock()
	a.armed = time.Time{}
	wake := !a.scheduled && !a.finished
	if wake {
		a.scheduled = true
	}
	a.mu.Unlock()
	if wake {
		a.exec.run(a)
	}
}

func (a *Actor[T]) label() string { return a.name }

// runOnce handles one batch and says whether there is more to do.
func (a *Actor[T]) runOnce() (again bool) { return a.handle(false) }

// handle is runOnce on a goroutine that is lent, or is not.
func (a *Actor[T]) handle(lent bool) (again bool) {
	a.mu.Lock()
	a.lent = lent
	batch := a.queue
	a.queue, a.spare = a.spare[:0], nil
	closed := a.closed
	a.mu.Unlock()

	deadline := a.step(a.exec.Now(), batch)
	clear(batch)

	a.mu.Lock()
	if cap(batch) <= maxSpare {
		a.spare = batch[:0]
	}
	if len(a.queue) > 0 || a.closed && !closed {
		a.mu.Unlock()
		return true
	}
	if closed {
		a.finished = true
		a.queue, a.spare = nil, nil
		a.mu.Unlock()
		a.exec.forget(a)
		close(a.done)
		return false
	}
	// A wake-up that is already due earlier stands: it costs one empty step, and
	// saves the executor's lock on every batch that only pushes a deadline out.
	if !deadline.IsZero() && (a.armed.IsZero() || deadline.Before(a.armed)) {
		a.armed = deadline
		a.mu.Unlock()
		a.exec.wakeAt(a, deadline)
		a.mu.Lock()
		// Messages that came meanwhile, and the wake-up if it was due at once, saw
		// scheduled and did not run the actor.
		if len(a.queue) > 0 || a.closed || a.armed.IsZero() {
			a.mu.Unlock()
			return true
		}
	}
	a.scheduled = false
	a.mu.Unlock()
	return false
}
