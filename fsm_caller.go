package graft

import (
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/wal"
)

// fsmCaller applies committed entries to the user's StateMachine and runs the
// closures that wait for them (braft: FSMCaller and ClosureQueue).
//
// Invariants: applied <= the commit index; closures are contiguous, the first one
// belongs to an index above applied; each runs once. OnLeaderStart and OnLeaderStop
// alternate. While an event waits, no entry behind those that were committed when it was posted is
// applied: entries that came to be committed after a leadership are not taken for that leadership's own.
//
// Ownership: its actor owns what is not guarded by mu. The node adds closures and
// commits; mu is a leaf lock, user code runs without it.
type fsmCaller struct {
	a      *actor.Actor[struct{}] // its messages only wake it: the events are in order with what is committed
	fsm    StateMachine
	log    *logManager
	group  string
	rested func()                   // called when everything that is committed was applied
	grown  func(index, bytes int64) // told of what was applied
	fail   func(err error)          // tells the node that the state machine has failed
	aside  func(call func())        // has callbacks run that do not wait for the state machine
	// onApplied is told of each batch: entries and bytes of proposals of this node that were settled.
	release func(entries, bytes int64)

	applied     atomic.Int64
	appliedTerm atomic.Int64

	mu        sync.Mutex // guards the following
	committed int64
	events    []fsmEvent // that wait, in order; their indexes grow, but for those that wait for no entry
	ended     bool       // no event is taken any more
	woken     bool       // a step is on its way that will see committed and events
	closures  []closureRun
	waiters   []appliedWaiter
	dead      error // nothing is applied any more

	// The actor's own.
	batches  []entry.Batch
	err      error
	leading  int64 // the term of the last OnLeaderStart, until OnLeaderStop
	leadAt   int64 // the index at whose application leadership starts
	leadTerm int64
	told     int64 // up to here the state machine was told of configurations, or they are in a snapshot that it has loaded
	closed   bool
	cur      closureRun
	now      time.Time
	readAt   time.Time // not before then is the log read, after that could not be opened

	// Of a durable state machine: it is given only what this node's own disk holds.
	bound   func() int64 // how much that is; nil: that does not matter
	resumed bool         // it went on from what it held when the node was made
	freed   atomic.Bool  // the node has ended or failed: no event waits for the disk any more

	leaving atomic.Bool // the node ends: nothing waits for a log that cannot be opened any more
}

// fsmEvent is something to do once everything up to an index is applied.
type fsmEvent struct {
	upto int64
	run  func()
	free bool // it overtakes events that wait for the disk
}

// closureRun is what the entries from first on get when they are settled.
type closureRun struct {
	first int64
	done  []func(any, error)
	bytes int64
}

// appliedWaiter waits until an index is applied.
type appliedWaiter struct {
	index int64
	done  func(index int64, err error)
}

// applyBytes is how much is handed to OnApply at once, so that other events get their turn.
const applyBytes = 1 << 20

// readRetry is the pause before a log that could not be opened is read again.
const readRetry = 500 * time.Millisecond

func newFSMCaller(exec actor.Executor, fsm StateMachine, group string) *fsmCaller {
	f := &fsmCaller{fsm: fsm, group: group}
	f.a = actor.New(exec, "fsm", f.step)
	return f
}

// post queues an event behind everything that is committed so far. It reports false, and drops the event, at the end.
func (f *fsmCaller) post(event func()) bool {
	f.mu.Lock()
	return f.enqueue(fsmEvent{upto: f.committed, run: event})
}

// postNow queues an event that waits for no entry, only for its turn.
func (f *fsmCaller) postNow(event func()) bool {
	f.mu.Lock()
	return f.enqueue(fsmEvent{run: event})
}

// postFree is postNow for an event that has nothing to do with those before it: it overtakes them while they wait for the disk.
func (f *fsmCaller) postFree(event func()) bool {
	f.mu.Lock()
	return f.enqueue(fsmEvent{run: event, free: true})
}

// enqueue queues an event. mu is locked, and is not any more afterwards.
func (f *fsmCaller) enqueue(event fsmEvent) bool {
	if f.ended {
		f.mu.Unlock()
		return false
	}
	f.events = append(f.events, event)
	f.wake()
	return true
}

// wake has a step see what has changed. mu is locked, and is not any more afterwards.
func (f *fsmCaller) wake() {
	wake := !f.woken
	f.woken = true
	f.mu.Unlock()
	if wake {
		f.a.Post(struct{}{})
	}
}

// postAlways is post for callbacks that must run even when the state machine is shut down.
func (f *fsmCaller) postAlways(callbacks func()) {
	if !f.post(callbacks) {
		callbacks()
	}
}

// commit says that entries up to index are committed. Any goroutine may call it; a lower
// index than before is ignored.
func (f *fsmCaller) commit(index int64) {
	f.mu.Lock()
	if index <= f.committed {
		f.mu.Unlock()
		return
	}
	f.committed = index
	f.wake()
}

// addClosures registers who waits for the entries from first on.
func (f *fsmCaller) addClosures(run closureRun) {
	f.mu.Lock()
	f.closures = append(f.closures, run)
	f.mu.Unlock()
}

// failClosures settles everybody who waits for an entry that is not committed by now. Whoever comes to wait later, in
// another leadership, is not concerned.
func (f *fsmCaller) failClosures(err error) {
	f.mu.Lock()
	upto := f.committed
	lost := f.closuresAbove(upto)
	f.enqueue(fsmEvent{upto: upto, run: func() {
		f.failRuns(f.unapplied(upto), err)
		f.failRuns(lost, err)
	}})
}

// closuresAbove takes out, under mu, the closures of what follows index.
func (f *fsmCaller) closuresAbove(index int64) (above []closureRun) {
	i := len(f.closures)
	for i > 0 && f.closures[i-1].first > index {
		i--
	}
	above = slices.Clone(f.closures[i:])
	clear(f.closures[i:])
	f.closures = f.closures[:i]
	if i == 0 {
		return above
	}
	if last := &f.closures[i-1]; index < last.first+int64(len(last.done))-1 {
		n := index + 1 - last.first
		above = append([]closureRun{{first: index + 1, done: last.done[n:], bytes: last.bytes}}, above...)
		last.done, last.bytes = last.done[:n:n], 0
	}
	return above
}

// unapplied takes out the closures of the leadership whose last committed entry is upto that were not called although all up
// to there is applied that ever will be: those of a run that goes on behind it, and all others if applying has ended. It is the
// actor's.
func (f *fsmCaller) unapplied(upto int64) (runs []closureRun) {
	if f.cur.done != nil {
		runs = append(runs, f.cur)
		f.cur = closureRun{}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.closures) > 0 && f.closures[0].first <= upto {
		runs = append(runs, f.closures[0])
		f.closures[0] = closureRun{}
		f.closures = f.closures[1:]
	}
	return runs
}

func (f *fsmCaller) failRuns(runs []closureRun, err error) {
	for _, run := range runs {
		for _, done := range run.done {
			if done != nil {
				f.guard("done", func() { done(nil, err) })
			}
		}
		f.release(int64(len(run.done)), run.bytes)
	}
}

// waitApplied calls done once index is applied. If it is already, on this goroutine.
func (f *fsmCaller) waitApplied(index int64, done func(int64, error)) {
	if f.applied.Load() < index {
		f.mu.Lock()
		dead := f.dead
		switch {
		case f.applied.Load() >= index:
			dead = nil
		case dead == nil:
			f.waiters = append(f.waiters, appliedWaiter{index, done})
			f.mu.Unlock()
			return
		}
		f.mu.Unlock()
		if dead != nil {
			done(0, dead)
			return
		}
	}
	done(index, nil)
}

// die fails everybody who waits for more to be applied, now and later.
func (f *fsmCaller) die(err error) {
	f.mu.Lock()
	if f.dead == nil {
		f.dead = err
	}
	f.mu.Unlock()
	f.wakeWaiters(err)
}

// failWaiters fails those who wait for an entry behind index, which is the last one that is sure to come.
func (f *fsmCaller) failWaiters(index int64, err error) {
	f.mu.Lock()
	var failed []appliedWaiter
	rest := f.waiters[:0]
	for _, w := range f.waiters {
		if w.index > index {
			failed = append(failed, w)
		} else {
			rest = append(rest, w)
		}
	}
	clear(f.waiters[len(rest):])
	f.waiters = rest
	f.mu.Unlock()
	if len(failed) == 0 {
		return
	}
	f.aside(func() {
		for _, w := range failed {
			w.done(0, err)
		}
	})
}

// wakeWaiters runs those whose index is applied; all of them if err is set.
func (f *fsmCaller) wakeWaiters(err error) {
	f.mu.Lock()
	if len(f.waiters) == 0 {
		f.mu.Unlock()
		return
	}
	applied := f.applied.Load()
	var ready []appliedWaiter
	rest := f.waiters[:0]
	for _, w := range f.waiters {
		if err != nil || w.index <= applied {
			ready = append(ready, w)
		} else {
			rest = append(rest, w)
		}
	}
	clear(f.waiters[len(rest):])
	f.waiters = rest
	f.mu.Unlock()
	for _, w := range ready {
		if w.index > applied {
			w.done(0, err)
		} else {
			w.done(w.index, nil)
		}
	}
}

func (f *fsmCaller) step(now time.Time, _ []struct{}) time.Time {
	f.now = now
	f.mu.Lock()
	f.woken = false // before it is looked what there is: whoever adds something afterwards wakes again
	f.mu.Unlock()
	for {
		event, ok := f.next(f.reach()) // a snapshot that is loaded moves that
		if !f.closed {
			f.applyUpTo(event.upto)
		}
		if !ok {
			break
		}
		if f.unread() && event.upto > f.applied.Load() {
			f.putBack(event)
			continue // with those that wait for nothing
		}
		event.run()
	}
	if !f.closed {
		f.rested()
	}
	if f.unread() {
		return f.readAt
	}
	return time.Time{}
}

// unread reports whether entries wait for a log that could not be opened.
func (f *fsmCaller) unread() bool {
	return f.now.Before(f.readAt) && !f.leaving.Load() && !f.freed.Load()
}

// putBack makes an event the first one again.
func (f *fsmCaller) putBack(event fsmEvent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = slices.Insert(f.events, 0, event)
}

// next takes out the first event, if it does not wait for an entry behind reach, or else the first free one. If there is none, it
// says up to where entries can be applied.
func (f *fsmCaller) next(reach int64) (event fsmEvent, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.events) == 0 {
		return fsmEvent{upto: f.committed}, false
	}
	i := 0
	if f.events[0].upto > reach {
		if i = slices.IndexFunc(f.events, func(e fsmEvent) bool { return e.free }); i < 0 {
			return fsmEvent{upto: f.events[0].upto}, false
		}
	}
	event = f.events[i]
	copy(f.events[1:], f.events[:i])
	f.events[0] = fsmEvent{}
	if f.events = f.events[1:]; len(f.events) == 0 {
		f.events = nil
	}
	return event, true
}

// reach is behind which entry events wait: those of a durable state machine for what it is not given yet, and all for what cannot be
// read yet.
func (f *fsmCaller) reach() int64 {
	if f.unread() {
		return f.applied.Load()
	}
	if f.bound == nil || f.freed.Load() {
		return math.MaxInt64
	}
	return max(f.bound(), f.applied.Load())
}

// applyUpTo applies the entries up to target, which are committed.
func (f *fsmCaller) applyUpTo(target int64) {
	if f.bound != nil {
		target = min(target, f.bound())
	}
	for f.err == nil && f.applied.Load() < target && !f.unread() {
		next := f.applied.Load() + 1
		var err error
		f.batches, err = f.log.entries(f.batches, next, applyBytes)
		if err == nil && len(f.batches) == 0 {
			err = errors.New("committed entries are missing")
		}
		if errors.Is(err, wal.ErrNotOpened) {
			f.readAt = f.now.Add(readRetry)
			if f.unread() {
				return
			}
		}
		if err != nil {
			f.broken(&Error{Code: ErrIO, Op: "read log", Group: f.group, Index: next, Err: err})
			return
		}
		for _, b := range f.batches {
			if f.err != nil || f.applied.Load() >= target {
				break
			}
			before := f.applied.Load()
			f.applyBatch(b, target)
			if index := f.applied.Load(); index > before {
				f.grown(index, int64(b.Size())*(index-before)/int64(b.Count))
			}
		}
		clear(f.batches)
		f.wakeWaiters(nil)
	}
}

// applyBatch applies a batch up to index upto.
func (f *fsmCaller) applyBatch(b entry.Batch, upto int64) {
	it := &Iterator{f: f, it: b.Iter(), upto: upto}
	for f.err == nil {
		before := it.it
		e, ok := it.it.Next()
		if !ok || e.Index > upto {
			return
		}
		if e.Type == entry.Data {
			it.it = before
			f.callApply(it)
			continue
		}
		f.applyOther(e)
	}
}

// callApply lets the state machine apply the DATA entries that come next.
func (f *fsmCaller) callApply(it *Iterator) {
	start := f.applied.Load()
	it.stopped = false
	ok := f.guard("OnApply", func() {
		f.fsm.OnApply(it)
		if it.err == nil {
			it.settle()
		}
	})
	switch {
	case it.err != nil: // also if it has panicked then
		f.rollBack(it, start)
		return
	case !ok:
	default:
		if f.applied.Load() == start {
			f.broken(&Error{Code: ErrStateMachine, Op: "apply", Group: f.group, Index: start + 1,
				Err: errors.New("OnApply returned without taking an entry")})
		}
		return
	}
	f.unsettled(it)
}

// rollBack takes back what Iterator.Rollback asked for: nothing if the call, which found everything up to start applied, had not asked for
// an entry.
func (f *fsmCaller) rollBack(it *Iterator, start int64) {
	if it.cur.Index > start {
		f.applied.Store(max(it.cur.Index-int64(it.undone), 0))
	} else if e := new(Error); errors.As(it.err, &e) {
		e.Index = start + 1
	}
	f.broken(it.err)
	f.unsettled(it)
}

// unsettled tells the proposer of the entry at which a state machine failed.
func (f *fsmCaller) unsettled(it *Iterator) {
	done := it.done
	it.done, it.valid = nil, false
	if done != nil {
		f.guard("done", func() {
			done(nil, &Error{Code: ErrUnknownOutcome, Op: "apply", Group: f.group, Index: it.cur.Index, Err: f.err})
		})
	}
}

// applyOther applies an entry that is not the user's.
func (f *fsmCaller) applyOther(e entry.Entry) {
	if done := f.takeDone(e.Index); done != nil {
		defer f.guard("done", func() { done(nil, nil) })
	}
	if e.Type == entry.Configuration {
		conf, err := parseConfEntry(entry.ConfMark{Index: e.Index, Meta: e.Meta})
		if err != nil {
			f.broken(&Error{Code: ErrCorrupt, Op: "apply", Group: f.group, Index: e.Index, Err: err})
			return
		}
		if !conf.joint() && !f.guard("OnConfigurationCommitted", func() { f.fsm.OnConfigurationCommitted(conf.conf, e.Index) }) {
			return
		}
		f.told = e.Index
	}
	f.appliedOne(e.Index, e.Term)
	if f.leadAt != 0 && e.Index >= f.leadAt {
		f.leading, f.leadAt = f.leadTerm, 0
		f.guard("OnLeaderStart", func() { f.fsm.OnLeaderStart(f.leading) })
	}
}

func (f *fsmCaller) appliedOne(index, term int64) {
	f.applied.Store(index)
	if f.appliedTerm.Load() != term {
		f.appliedTerm.Store(term)
	}
}

// takeDone returns who waits for the entry at index, nil if nobody does. Indexes
// only grow between calls.
func (f *fsmCaller) takeDone(index int64) func(any, error) {
	for {
		if n := index - f.cur.first; f.cur.done != nil && n < int64(len(f.cur.done)) {
			if n < 0 {
				return nil
			}
			done := f.cur.done[n]
			f.cur.done[n] = nil
			if n == int64(len(f.cur.done))-1 {
				f.release(n+1, f.cur.bytes)
				f.cur = closureRun{}
			}
			return done
		}
		f.mu.Lock()
		if len(f.closures) == 0 || f.closures[0].first > index {
			f.mu.Unlock()
			return nil
		}
		f.cur = f.closures[0]
		f.closures[0] = closureRun{}
		f.closures = f.closures[1:]
		f.mu.Unlock()
	}
}

// untold is what becomes of a change that led to the configuration at index, which is committed, if the state machine was not
// told of that: it has failed, or the node ends before its own disk holds what a durable one may be given. nil if it was.
func (f *fsmCaller) untold(op string, index int64) error {
	if f.told >= index {
		return nil
	}
	cause := f.err
	if cause == nil {
		cause = errors.New("the group has agreed on it, but this node ended before its own disk held it, so that the state machine was not told")
	}
	return &Error{Code: ErrUnknownOutcome, Op: op, Group: f.group, Index: index, Err: cause}
}

// leaderStart arranges for OnLeaderStart once the leader's first own entry, at
// index, is applied.
func (f *fsmCaller) leaderStart(term, index int64) {
	f.post(func() { f.leadTerm, f.leadAt = term, index })
}

// leaderStop ends a leadership; OnLeaderStop follows only an OnLeaderStart.
func (f *fsmCaller) leaderStop(reason error) {
	f.post(func() {
		f.leadAt = 0
		if f.leading != 0 {
			f.leading = 0
			f.guard("OnLeaderStop", func() { f.fsm.OnLeaderStop(reason) })
		}
	})
}

// broken stops applying for good.
func (f *fsmCaller) broken(err error) {
	if f.err != nil {
		return
	}
	f.err = err
	f.die(&Error{Code: ErrNodeFailed, Op: "read index", Group: f.group, Err: err})
	f.fail(err)
}

// reportError calls OnError, for a failure of any part of the node.
func (f *fsmCaller) reportError(err error) {
	f.post(func() {
		if f.err == nil {
			f.err = err
			f.die(&Error{Code: ErrNodeFailed, Op: "read index", Group: f.group, Err: err})
		}
		f.guard("OnError", func() { f.fsm.OnError(err) })
	})
}

// shutdown makes OnShutdown the last call to the state machine.
func (f *fsmCaller) shutdown() {
	f.leaving.Store(true)
	f.post(func() {
		f.guard("OnShutdown", f.fsm.OnShutdown)
		f.closed = true
		f.die(&Error{Code: ErrShutdown, Op: "read index", Group: f.group})
	})
}

// end calls done behind everything that was posted, and ends the actor.
func (f *fsmCaller) end(done func()) {
	f.mu.Lock()
	f.events = append(f.events, fsmEvent{run: done})
	f.ended = true
	f.mu.Unlock()
	f.a.Close() // after which there is one more step, at least
}

// panicked is the error that a panic in user code becomes.
func panicked(what, group string, v any) *Error {
	return &Error{Code: ErrStateMachine, Op: what, Group: group, Err: fmt.Errorf("panic: %v\n%s", v, debug.Stack())}
}

// guard runs user code. A panic there stops the node, not the process.
func (f *fsmCaller) guard(what string, call func()) (ok bool) {
	defer func() {
		if ok {
			return
		}
		if v := recover(); v != nil {
			err := panicked(what, f.group, v)
			err.Index = f.applied.Load()
			f.broken(err)
		}
	}()
	call()
	return true
}
