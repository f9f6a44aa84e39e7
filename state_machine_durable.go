package graft

import (
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/wal"
)

// DurableStateMachine is a StateMachine that keeps its state on disk itself, together with the index of the last entry
// that is in it: a database, say. A replica with one starts without loading a snapshot, and without applying again what
// the state machine holds. Host.StartNode sees by its methods what a state machine is.
//
// Contract. State and index have to survive a crash together: one transaction with both, say. Of entries that it has
// applied and not made durable yet, it forgets the effect in a crash, and gets them again. It is given only entries that
// this node's own disk holds, so that its index is never beyond the log.
//
// The log is cut up to DurableIndex whenever another state machine would save a snapshot. Snapshots are made for replicas
// that are too far behind for the log, and when Node.Snapshot asks for one; so OnSnapshotSave and OnSnapshotLoad are
// needed, or no replica can join once the log is cut. OnSnapshotLoad replaces state and index; a crash in the midst of it
// must leave what there was, or nothing, that is index 0.
//
// Host.StartNode calls OnConfigurationCommitted with the configuration in force at DurableIndex. It fails with ErrCorrupt
// if log and snapshots do not reach back to it, or do not reach it: then one of state machine and log was lost, or is from
// a backup. The remedy is to remove the replica from its group, to delete what both hold, and to add it again.
//
// Source: braft has none; dragonboat's IOnDiskStateMachine.
type DurableStateMachine interface {
	StateMachine
	// DurableIndex is the index of the last entry whose effect would survive a crash now, 0 if there is none. It never
	// becomes less. It is called by Host.StartNode before any other method, and later when the log is to be cut. An error
	// stops the node.
	DurableIndex() (int64, error)
}

const opDurableIndex = "DurableIndex"

// durableIndex asks the state machine how much of what it has applied would survive.
func (n *Node) durableIndex() (index int64, err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(opDurableIndex, n.group, v)
		}
	}()
	if index, err = n.durable.DurableIndex(); err == nil && index < 0 {
		err = fmt.Errorf("the index is %d", index)
	}
	if err != nil {
		err = &Error{Code: ErrStateMachine, Op: opDurableIndex, Group: n.group, Err: err}
	}
	return index, err
}

// startPoint is a position that a replica may go on from.
type startPoint struct {
	base  logBase
	group uint64
	path  string
	mark  bool
}

// resume is restore for a durable state machine: it goes on from what it holds, and loads a snapshot only if it holds
// nothing, if an install was interrupted, or if the log does not reach back to what it holds.
func (n *Node) resume(store *snapdir.Store, r wal.Recovered) (logBase, error) {
	held, err := n.durableIndex()
	if err != nil {
		return logBase{}, err
	}
	if held == 0 {
		return n.restoreSnapshot(store, r)
	}
	s := n.snap
	snap, base, _, err := s.choose(store, r, s.replayable(store, r, held)) // what an install has left
	if err != nil {
		return logBase{}, err
	}
	if snap != nil {
		return base, n.load(snap, base)
	}
	points, err := s.startPoints(store, r, held)
	if err != nil {
		return logBase{}, err
	}
	for _, p := range points {
		if p.mark && holdsIn(r, p.base) {
			s.markAgain(store, p) // whether the log goes on from there or not, it may be cut there
		}
	}
	for _, p := range points {
		if p.mark && !holdsIn(r, p.base) {
			continue // a log that was lost: what the mark says of it is of no use
		}
		if err := s.fits(p.base, p.group, p.path, r); err != nil {
			return logBase{}, err
		}
		return p.base, n.resumeFrom(p, held, r)
	}
	snap, base, bad, err := s.choose(store, r, held)
	if err != nil {
		return logBase{}, err
	}
	if snap != nil {
		return base, n.load(snap, base)
	}
	if held > r.Last {
		return logBase{}, n.ahead(held, r.Last)
	}
	bad = append(bad, fmt.Errorf("the state machine holds what was applied up to %d", held))
	return logBase{}, s.needsNone(r, bad)
}

// replayable is the index of the newest snapshot that the log leads to from what the state machine holds, or what that is. A
// snapshot of a later index is of an install: it was committed, and the log, be it longer, does not have it.
func (s *snapshotter) replayable(store *snapdir.Store, r wal.Recovered, held int64) int64 {
	if store == nil {
		return held
	}
	for _, info := range store.List() { // the newest first
		if info.Index <= held {
			break
		}
		if base, err := baseOf(info.Meta); info.Damage == nil && err == nil && holdsIn(r, base) {
			return info.Index
		}
	}
	return held
}

// startPoints lists from where the log goes on to what the state machine holds, the newest first. Snapshots are not
// verified, since they are not loaded.
func (s *snapshotter) startPoints(store *snapdir.Store, r wal.Recovered, held int64) (points []startPoint, err error) {
	var mark startPoint
	if store != nil {
		if mark, err = s.readMark(store); err != nil {
			return nil, err
		}
		if m := mark.base.index; m > held || m < r.First-1 {
			mark = startPoint{}
		}
		for _, info := range store.List() {
			if info.Index > held || info.Index < r.First-1 {
				continue
			}
			if mark.base.index > info.Index {
				points, mark = append(points, mark), startPoint{}
			}
			base, err := baseOf(info.Meta)
			if err = errors.Join(info.Damage, err); err != nil {
				if info.Index > r.Commit && len(points) == 0 { // whether the log is to be replaced is not known
					return nil, s.errorOf("start node", info.Index, err)
				}
				s.note(s.errorOf(opLoadSnapshot, info.Index, err))
				continue
			}
			points = append(points, startPoint{base: base, group: info.GroupID, path: info.Path})
		}
	}
	if mark.base.index != 0 {
		points = append(points, mark)
	}
	if r.First == 1 {
		points = append(points, startPoint{})
	}
	return points, nil
}

// markAgain writes the mark that was found, before the log is cut there: its sync may have failed, and then a power cut would
// take it away, whatever is synced later.
func (s *snapshotter) markAgain(store *snapdir.Store, p startPoint) {
	if err := store.SetMark(p.base.message(), p.group); err != nil {
		s.log.Warn("the mark cannot be written again; the log stays as it is", zap.Int64("index", p.base.index), zap.Error(err))
		return
	}
	s.marked.Store(p.base.index)
}

// readMark reads the mark; the zero value says that there is none.
func (s *snapshotter) readMark(store *snapdir.Store) (startPoint, error) {
	meta, group, err := store.Mark()
	if errors.Is(err, snapdir.ErrNone) {
		return startPoint{}, nil
	}
	var base logBase
	if err == nil {
		base, err = baseOf(meta)
	}
	if err != nil {
		return startPoint{}, s.errorOf("start node", 0, err)
	}
	return startPoint{base: base, group: group, path: s.dir, mark: true}, nil
}

// holdsIn is logManager.holds for what storage holds.
func holdsIn(r wal.Recovered, base logBase) bool {
	if base.index == 0 {
		return r.First == 1
	}
	if base.index > r.Last || termIn(r, base.index) != base.term {
		return false
	}
	return base.index == r.Last || termIn(r, base.index+1) >= base.term
}

// resumeFrom has the state machine go on behind what it holds; the log does behind p.
func (n *Node) resumeFrom(p startPoint, held int64, r wal.Recovered) error {
	end, term := r.Last, termIn(r, held)
	if !holdsIn(r, p.base) { // the log will begin anew there
		end = p.base.index
	}
	if held == p.base.index {
		term = p.base.term
	}
	if held > end {
		return n.ahead(held, end)
	}
	n.adoptGroup(p.group)
	n.snap.due.Store(n.o.snapshotDue(held))
	n.fsm.resume(held, term)
	n.log.Info("the state machine goes on from what it holds", zap.Int64("index", held), zap.Int64("term", term))
	return nil
}

// ahead is the error of a state machine that has applied what the log lacks.
func (n *Node) ahead(held, last int64) error {
	return &Error{Code: ErrCorrupt, Op: "start node", Group: n.group, Index: held, Err: fmt.Errorf(
		"the state machine holds what was applied up to %d, the log ends at %d: the log was lost, or is from a backup, or the state machine is another replica's; "+
			"remove this replica from the group, delete its data and the state machine's, and add it again", held, last)}
}

// resume is for before the node runs: the state machine holds what was applied up to index.
func (f *fsmCaller) resume(index, term int64) {
	f.committed, f.resumed = index, true
	f.appliedOne(index, term)
}

// tellConf tells a durable state machine, before the node runs, the configuration in force where it goes on. Of one that has
// loaded a snapshot it has been told.
func (f *fsmCaller) tellConf() (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked("OnConfigurationCommitted", f.group, v)
		}
	}()
	if c := f.log.confAt(f.applied.Load()); f.resumed && !c.joint() && c.index != 0 {
		f.fsm.OnConfigurationCommitted(c.conf, c.index)
	}
	return nil
}

// reached says that the node's disk holds more than before. Any goroutine may call it.
func (f *fsmCaller) reached() {
	if f.bound != nil {
		f.mu.Lock()
		f.wake()
	}
}

// free says that nothing more will be stored, nor read: no event waits for that.
func (f *fsmCaller) free() {
	f.freed.Store(true)
	f.mu.Lock()
	f.wake()
}

// askCut asks the state machine how far the log may be cut.
func (s *snapshotter) askCut() {
	if s.cutAsk || s.busy() != nil && (s.ended || s.failed) {
		return
	}
	s.cutAsk = true
	s.bytes.Store(0)
	s.n.fsm.postFree(func() { // what waits for space must not keep it from being made
		base, ok := s.n.cutPoint()
		s.a.Post(func() { s.cut(base, ok) })
	})
}

// cutPoint is the position up to which the log may be cut: the state machine keeps what comes before. It runs where
// that is called.
func (n *Node) cutPoint() (base logBase, ok bool) {
	f := n.fsm
	if f.closed || f.err != nil {
		return logBase{}, false
	}
	index, err := n.durableIndex()
	if applied := f.applied.Load(); err == nil && index > applied {
		err = &Error{Code: ErrStateMachine, Op: opDurableIndex, Group: n.group, Index: index, Err: fmt.Errorf("only %d is applied", applied)}
	}
	if err != nil {
		f.broken(err)
		return logBase{}, false
	}
	return logBase{index: index, term: n.lm.term(index), conf: n.lm.confAt(index)}, true
}

// cut marks the position, after which the log may begin there, and has it cut.
func (s *snapshotter) cut(base logBase, ok bool) {
	s.cutAsk = false
	if !ok || s.ended || s.failed {
		return
	}
	s.due.Store(s.n.o.snapshotDue(s.n.fsm.applied.Load()))
	s.unasked(base.index)
	if err := s.mark(base); err != nil {
		err = s.note(s.errorOf("cut log", base.index, err))
		s.log.Error("the log cannot be cut; it stays as it is", zap.Error(err))
		s.saveAt = earlier(s.saveAt, s.now.Add(snapshotRetry))
		return
	}
	s.n.post(s.n.compact)
}

// mark notes a position durably, unless the log begins behind it, or it is not new.
func (s *snapshotter) mark(base logBase) error {
	if base.term == 0 || base.index <= s.marked.Load() {
		return nil
	}
	store, err := s.open()
	if err == nil {
		err = store.SetMark(base.message(), s.n.groupIDNow.Load())
	}
	if err == nil {
		s.marked.Store(base.index)
	}
	return err
}

// trustNewest verifies the newest snapshot, which was not loaded at the start. It fails if that one stands in the way of one of the
// given index and cannot be read for now: it is not known to be damaged, so that it must stay.
func (s *snapshotter) trustNewest(index int64) error {
	store := s.opened()
	if store == nil {
		return nil
	}
	r, err := store.Latest()
	if err != nil {
		return nil // there is none
	}
	base, err := baseOf(r.Meta())
	if err == nil {
		err = r.Verify(s.watch(0))
	}
	info := r.Info()
	_ = r.Close() // should it be to delete: the next Prune tries again
	switch {
	case err == nil:
		s.took(base, info)
	case info.Index >= index && !isDamage(err):
		return s.errorOf(opSaveSnapshot, info.Index, err)
	}
	return nil
}
