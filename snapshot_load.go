package graft

import (
	"errors"
	"fmt"
	"sort"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/wal"
)

// restore finds the newest snapshot that is whole and that the log goes on from, and has the state machine load it. The
// zero base says that there is none and that none is needed. It runs before the node does.
func (n *Node) restore(r wal.Recovered) (logBase, error) {
	store, err := n.snap.openExisting()
	if err != nil {
		return logBase{}, err
	}
	if n.durable != nil {
		return n.resume(store, r)
	}
	return n.restoreSnapshot(store, r)
}

// openExisting opens the snapshots; nil if there have never been any.
func (s *snapshotter) openExisting() (*snapdir.Store, error) {
	there, err := s.exists()
	if err != nil {
		return nil, s.errorOf("start node", 0, err)
	}
	if !there {
		return nil, nil
	}
	store, err := s.open()
	if err != nil {
		return nil, s.errorOf("start node", 0, err)
	}
	return store, nil
}

// restoreSnapshot is restore for a state machine that holds nothing.
func (n *Node) restoreSnapshot(store *snapdir.Store, r wal.Recovered) (logBase, error) {
	snap, base, bad, err := n.snap.choose(store, r, 0)
	if err != nil {
		return logBase{}, err
	}
	if snap == nil {
		return logBase{}, n.snap.needsNone(r, bad)
	}
	return base, n.load(snap, base)
}

// load has the state machine load a snapshot, and closes it.
func (n *Node) load(snap *snapdir.Reader, base logBase) error {
	s, info := n.snap, snap.Info()
	n.adoptGroup(info.GroupID)
	began := n.host.env.Exec.Now()
	err := n.fsm.restore(snap, base)
	_ = snap.Close() // should it be to delete: the next Prune tries again
	if err != nil {
		return err
	}
	s.last.Store(base.index)
	s.due.Store(n.o.snapshotDue(base.index))
	s.show(func(v *SnapshotStatus) { v.Index, v.Term, v.Bytes = base.index, base.term, info.Bytes })
	n.log.Info("loaded a snapshot", zap.Int64("index", base.index), zap.Int64("term", base.term), zap.Duration("took", n.host.env.Exec.Now().Sub(began)))
	return nil
}

// replay is the rest of a start: the state machine is given what the log holds behind what it had, as far as that turns out to be
// committed.
//
// Ownership: set before the node runs; after that the state machine's goroutine's, but for upto.
type replay struct {
	behind int64
	upto   atomic.Int64 // 0: nothing is left
	began  time.Time
}

// begin is for before the node runs.
func (p *replay) begin(behind, upto int64, now time.Time) {
	if upto > behind {
		p.behind, p.began = behind, now
		p.upto.Store(upto)
	}
}

// onApplied is told how far the state machine is, often.
func (p *replay) onApplied(index int64, n *Node) {
	upto := p.upto.Load()
	if upto == 0 || index < upto {
		return
	}
	p.upto.Store(0)
	n.log.Info("applied what the log held", zap.Int64("entries", upto-p.behind), zap.Int64("upto", upto), zap.Duration("took", n.host.env.Exec.Now().Sub(p.began)))
}

// choose returns the newest snapshot above an index that can be loaded. If there is none, bad says what is wrong with those
// there are.
func (s *snapshotter) choose(store *snapdir.Store, r wal.Recovered, above int64) (_ *snapdir.Reader, _ logBase, bad []error, _ error) {
	if store == nil {
		return nil, logBase{}, nil, nil
	}
	for _, info := range store.List() {
		if info.Index <= above {
			break
		}
		if info.Index < r.First-1 {
			bad = append(bad, fmt.Errorf("snapshot %d: the log begins at %d only", info.Index, r.First))
			continue
		}
		snap, base, err := s.check(store, info, r)
		if err == nil {
			return snap, base, nil, nil
		}
		if info.Damage == nil && !isDamage(err) {
			return nil, base, nil, s.errorOf("start node", info.Index, err)
		}
		s.log.Error("a snapshot is damaged or cannot be read, and is not loaded", zap.Int64("index", info.Index), zap.String("path", info.Path), zap.Error(err))
		bad = append(bad, s.note(s.errorOf(opLoadSnapshot, info.Index, err)))
	}
	return nil, logBase{}, bad, nil
}

// check verifies a snapshot, and that the log does not contradict it.
func (s *snapshotter) check(store *snapdir.Store, info snapdir.Info, r wal.Recovered) (*snapdir.Reader, logBase, error) {
	if info.Damage != nil {
		return nil, logBase{}, info.Damage
	}
	snap, err := store.Reader(info.Index)
	if err != nil {
		return nil, logBase{}, err
	}
	base, err := baseOf(snap.Meta())
	if err != nil {
		err = fmt.Errorf("%w: %w", snapdir.ErrManifest, err)
	}
	if err == nil {
		err = snap.Verify(snapdir.Watch{Stop: s.n.host.isClosing})
	}
	if err == nil {
		err = s.fits(base, info.GroupID, info.Path, r)
	}
	if err != nil {
		_ = snap.Close() // should it be to delete: the next Prune tries again
		return nil, base, err
	}
	return snap, base, nil
}

// fits fails if the position of what is in path is another group's, or not that of this log.
func (s *snapshotter) fits(base logBase, group uint64, path string, r wal.Recovered) error {
	if id := s.n.groupID; id != 0 && group != 0 && group != id {
		return &Error{Code: ErrGroupMismatch, Op: "start node", Group: s.n.group, Index: base.index,
			Err: fmt.Errorf("the snapshot in %s is of group %d, this one is %d", path, group, id)}
	}
	// What is committed cannot differ. Between the log's first entry and its commit index it is known to be.
	if term := termIn(r, base.index); term != 0 && term != base.term && base.index <= r.Commit {
		return &Error{Code: ErrCorrupt, Op: "start node", Group: s.n.group, Index: base.index, Err: fmt.Errorf(
			"the snapshot in %s ends with term %d, the committed entry in the log has term %d: one of the two is another node's or from a backup; "+
				"remove this replica from the group, delete its data, and add it again", path, base.term, term)}
	}
	return nil
}

// termIn is the term of an entry by what storage holds, 0 if it does not say.
func termIn(r wal.Recovered, index int64) int64 {
	if index == r.First-1 {
		return r.PrevTerm
	}
	if index < r.First || index > r.Last {
		return 0
	}
	i := sort.Search(len(r.Runs), func(i int) bool { return r.Runs[i].First > index }) - 1
	if i < 0 {
		return 0
	}
	return r.Runs[i].Term
}

// needsNone fails if the log does not begin at the beginning, so that there has to be a snapshot. bad says what
// is wrong with those there are.
func (s *snapshotter) needsNone(r wal.Recovered, bad []error) error {
	if r.First == 1 {
		return nil
	}
	if bad == nil {
		bad = []error{errors.New("there is none")}
	}
	if errors.Is(errors.Join(bad...), ErrIO) { // which is another matter than being damaged, and may pass
		return &Error{Code: ErrIO, Op: "start node", Group: s.n.group, Index: r.First, Err: fmt.Errorf(
			"the log begins at %d and needs a snapshot in %s, which cannot be read: %w", r.First, s.dir, errors.Join(bad...))}
	}
	return &Error{Code: ErrCorrupt, Op: "start node", Group: s.n.group, Index: r.First, Err: fmt.Errorf(
		"the log begins at %d and needs a snapshot in %s (%w): bring back that directory as it was, "+
			"or remove this replica from the group, delete its data, and add it again", r.First, s.dir, errors.Join(bad...))}
}
