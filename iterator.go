package graft

import (
	"github.com/graft-raft/graft/internal/entry"
)

// Iterator hands committed entries to StateMachine.OnApply, in order and without gaps.
//
//	for it.Next() {
//		it.Return(s.apply(it.Data()))
//	}
//
// Entries that OnApply leaves are handed over again at the next call.
//
// Ownership: OnApply's, for as long as the call takes.
type Iterator struct {
	f       *fsmCaller
	it      entry.Iter
	upto    int64 // nothing behind this is committed
	cur     entry.Entry
	valid   bool
	stopped bool // a configuration entry, or the end
	done    func(any, error)
	result  any
	taken   bool // the entry's done is settled or detached
	err     error
	undone  int // entries that Rollback takes back
}

// Next moves to the next entry, of which there is none when it returns false. What
// Return was given goes to the proposer of the entry before.
func (i *Iterator) Next() bool {
	if i.err != nil { // what was rolled back is not applied, so it is not settled
		return false
	}
	i.settle()
	if i.stopped {
		return false
	}
	before := i.it
	e, ok := i.it.Next()
	if !ok || e.Index > i.upto {
		i.stopped = true
		return false
	}
	if e.Type != entry.Data {
		i.it, i.stopped = before, true
		return false
	}
	i.cur, i.valid, i.taken = e, true, false
	i.done = i.f.takeDone(e.Index)
	return true
}

// settle ends the current entry: it is applied now.
func (i *Iterator) settle() {
	if !i.valid {
		return
	}
	i.valid = false
	i.f.appliedOne(i.cur.Index, i.cur.Term)
	done, result := i.done, i.result
	i.done, i.result = nil, nil
	if done != nil {
		done(result, nil)
	}
}

// Index is the current entry's index.
func (i *Iterator) Index() int64 { return i.cur.Index }

// Term is the term in which the current entry was proposed.
func (i *Iterator) Term() int64 { return i.cur.Term }

// Data is the current entry's payload. It must not be changed; it stays valid
// after the call, and holds on to the batch of entries it came with, so copy what is small and kept for long.
func (i *Iterator) Data() []byte { return i.cur.Data }

// Local reports whether somebody on this node waits for the current entry's result, so that
// what nobody reads need not be made.
func (i *Iterator) Local() bool { return i.done != nil }

// Return sets what the proposer's Done gets as result. It reaches the proposer only
// on the node that proposed the entry.
func (i *Iterator) Return(v any) { i.result = v }

// Detach takes the current entry's Done over: the library does not run it, the
// caller must, once. It is nil when nobody waits.
func (i *Iterator) Detach() func(result any, err error) {
	done := i.done
	i.done = nil
	return done
}

// Rollback says that the state machine has failed, and that the last n entries handed out, the
// current one included, are not applied; before OnApply's first Next there are none. The node goes to its error state, and
// whoever waits for those entries gets ErrUnknownOutcome (braft:
// Iterator::set_error_and_rollback). Who proposed an entry before the current one has had
// his answer when Next moved on; Detach keeps it back. Nothing may be applied after Rollback.
func (i *Iterator) Rollback(n int, err error) {
	if i.err != nil {
		return
	}
	i.err = &Error{Code: ErrStateMachine, Op: "apply", Group: i.f.group, Index: i.cur.Index, Err: err}
	i.undone = max(n, 1)
}
