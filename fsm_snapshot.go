package graft

import (
	"errors"
	"sync/atomic"

	"github.com/graft-raft/graft/internal/snapdir"
)

// saveSnapshot has the state machine save what is applied when its turn comes, into w. done gets the outcome once, on any
// goroutine, with the position that was saved. skip is asked first whether there is nothing to save at that position.
func (f *fsmCaller) saveSnapshot(w *snapdir.Writer, skip func(logBase) bool, done func(logBase, error)) {
	save := func() {
		switch {
		case f.closed:
			done(logBase{}, &Error{Code: ErrShutdown, Op: opSaveSnapshot, Group: f.group})
			return
		case f.err != nil:
			done(logBase{}, &Error{Code: ErrNodeFailed, Op: opSaveSnapshot, Group: f.group, Err: f.err})
			return
		}
		base := f.position()
		if skip(base) {
			done(base, nil)
			return
		}
		var ended atomic.Bool
		end := func(err error) {
			if ended.CompareAndSwap(false, true) {
				done(base, err)
			}
		}
		if !f.guard("OnSnapshotSave", func() { f.fsm.OnSnapshotSave(&SnapshotWriter{w: w, base: base}, end) }) {
			end(f.err)
		}
	}
	if !f.post(save) {
		done(logBase{}, &Error{Code: ErrShutdown, Op: opSaveSnapshot, Group: f.group})
	}
}

// position is how far the state machine is. It is the actor's to ask.
func (f *fsmCaller) position() logBase {
	index := f.applied.Load()
	return logBase{index: index, term: f.appliedTerm.Load(), conf: f.log.confAt(index)}
}

// loadSnapshot has the state machine replace its state by a snapshot's, unless it has come as far by then. It closes the
// reader. done gets the outcome on the state machine's goroutine.
func (f *fsmCaller) loadSnapshot(r *snapdir.Reader, base logBase, done func(error)) {
	load := func() {
		var err error
		switch {
		case f.closed:
			err = &Error{Code: ErrShutdown, Op: opLoadSnapshot, Group: f.group}
		case f.err != nil:
			err = &Error{Code: ErrNodeFailed, Op: opLoadSnapshot, Group: f.group, Err: f.err}
		case f.applied.Load() < base.index:
			if err = f.restore(r, base); err != nil {
				f.broken(err)
			} else {
				f.wakeWaiters(nil)
			}
		}
		_ = r.Close() // should it be to delete: the next Prune tries again
		done(err)
	}
	if !f.postNow(load) {
		_ = r.Close()
		done(&Error{Code: ErrShutdown, Op: opLoadSnapshot, Group: f.group})
	}
}

// restore replaces the state machine's state. A panic of it becomes an error.
func (f *fsmCaller) restore(r *snapdir.Reader, base logBase) (err error) {
	defer func() {
		if v := recover(); v != nil {
			failed := panicked("OnSnapshotLoad", f.group, v)
			failed.Index = base.index
			err = failed
		}
	}()
	if cause := f.fsm.OnSnapshotLoad(&SnapshotReader{r: r, base: base}); cause != nil {
		code := ErrStateMachine
		if errors.Is(cause, ErrNotSupported) {
			code = ErrNotSupported
		}
		return &Error{Code: code, Op: opLoadSnapshot, Group: f.group, Index: base.index, Err: cause}
	}
	f.mu.Lock()
	f.committed = max(f.committed, base.index)
	f.mu.Unlock()
	f.appliedOne(base.index, base.term)
	if c := base.conf; !c.joint() && !c.conf.Empty() {
		f.fsm.OnConfigurationCommitted(c.conf, c.index)
	}
	f.told = base.index
	return nil
}
