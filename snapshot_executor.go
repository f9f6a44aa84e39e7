package graft

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
)

const (
	opSaveSnapshot    = "save snapshot"
	opLoadSnapshot    = "load snapshot"
	opInstallSnapshot = "install snapshot"

	// snapshotRetry is the pause after a snapshot that nobody asked for could not be saved.
	snapshotRetry = 30 * time.Second
)

// snapshotter saves a node's snapshots, installs those of its leader, and lends its own to followers. It does one at
// a time, and blocks for the disk, not for the network or the state machine (braft: SnapshotExecutor).
//
// Invariants: at most one of saving and inst is set. last is a snapshot that was verified in this life of the node. What
// was lent is given back before the node has ended.
//
// Ownership: its actor's, but for the atomics and what mu guards. mu is a leaf lock.
type snapshotter struct {
	n   *Node
	fs  vfs.FS
	dir string
	log *zap.Logger
	a   *actor.Actor[func()]

	stopping atomic.Bool  // work on the disk is given up
	last     atomic.Int64 // index of the newest snapshot; 0: none
	incoming atomic.Int64 // index of the one being installed; 0: none

	replay replay

	// How much the state machine has applied, and what follows from it.
	bytes atomic.Int64 // since the last snapshot was begun
	total atomic.Int64 // ever
	due   atomic.Int64 // the index at which the next snapshot is to be saved
	armed atomic.Bool  // the actor knows that something was applied since the last one
	asked atomic.Bool  // the actor is to save one
	off   atomic.Bool  // the state machine has no snapshots

	marked atomic.Int64 // of a durable state machine: the log may be cut up to here; see Store.SetMark

	mu      sync.Mutex
	store   *snapdir.Store // nil until there is a snapshot
	stopped bool
	lent    []*lentReader
	holds   []logHold
	view    SnapshotStatus
	copying *snapdir.Copy // whose progress Status shows

	// The actor's.
	now    time.Time
	rng    *rand.Rand
	saving *snapshotSave
	inst   *install
	cutAsk bool      // a durable state machine is asked how far the log may be cut
	begun  int64     // index of the latest install that may have left something to resume
	saveAt time.Time // when to save one unasked; zero: never
	// The disk had no space for the latest copy; until then none begins.
	fullTill time.Time
	failed   bool // the node has
	ended    bool
	// The snapshot that was suspected last, and so was read once more, and until when that is not done again.
	suspected int64
	suspectAt time.Time
}

// snapshotSave is a snapshot being saved.
type snapshotSave struct {
	w    *snapdir.Writer
	done Closure
}

// logHold is a follower for which the log behind an index is kept: it is being sent a snapshot of that index, and needs what
// follows.
type logHold struct {
	of    *replicator
	index int64
	since int64 // total when it began
}

// holdBytes is how much may be applied before a hold is void: a follower that is slower than the group writes
// gets another snapshot then, or none.
const holdBytes = 8 << 30

func newSnapshotter(n *Node, dir string) *snapshotter {
	s := &snapshotter{
		n: n, fs: n.host.fs, dir: dir, log: n.log,
		rng: rand.New(rand.NewPCG(n.host.env.Rand(), n.host.env.Rand())),
	}
	s.view.State = SnapshotIdle
	s.due.Store(n.o.snapshotDue(0))
	s.off.Store(n.o.SnapshotInterval < 0 && n.o.SnapshotEntries < 0 && n.o.SnapshotBytes < 0)
	s.a = actor.New(n.host.env.Exec, "snapshot", s.step)
	return s
}

// open returns the directory's store, which it makes if need be: a group without snapshots has no directory.
func (s *snapshotter) open() (*snapdir.Store, error) {
	if store := s.opened(); store != nil {
		return store, nil
	}
	store, err := snapdir.Open(s.fs, s.dir, snapdir.Options{Keep: s.n.o.SnapshotKeep, Rand: s.n.host.env.Rand})
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = store
	return store, nil
}

// opened returns the store, nil if there is none.
func (s *snapshotter) opened() *snapdir.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store
}

// exists reports whether there is a directory.
func (s *snapshotter) exists() (bool, error) {
	_, err := s.fs.Stat(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (s *snapshotter) step(now time.Time, batch []func()) time.Time {
	s.now = now
	for _, f := range batch {
		f()
	}
	if s.ended || s.failed {
		return time.Time{}
	}
	if !s.saveAt.IsZero() && !now.Before(s.saveAt) {
		s.saveAt = time.Time{}
		s.relieve()
	}
	s.pump()
	return earlier(s.saveAt, s.pumpAt())
}

// onApplied is told what the state machine has applied: up to an index, and how many bytes more. It runs on the state
// machine's goroutine, often.
func (s *snapshotter) onApplied(index, bytes int64) {
	grown := s.bytes.Add(bytes)
	s.total.Add(bytes)
	s.replay.onApplied(index, s.n)
	if s.off.Load() {
		return
	}
	if !s.armed.Load() && !s.armed.Swap(true) {
		s.a.Post(s.arm)
	}
	if s.isDue(index, grown) && !s.asked.Load() && !s.asked.Swap(true) {
		s.a.Post(s.relieve)
	}
}

// relieve has the log become shorter because it is time.
func (s *snapshotter) relieve() {
	if s.n.durable != nil {
		s.askCut()
		return
	}
	s.saveUnasked()
}

// arm sets the time of the next snapshot: there is something to save. The members of a group, and the groups of a host,
// do not save all at once.
func (s *snapshotter) arm() {
	if d := s.n.o.SnapshotInterval; d > 0 && s.saveAt.IsZero() {
		s.saveAt = s.now.Add(d/2 + time.Duration(s.rng.Int64N(int64(d/2)+1)))
	}
}

// saveUnasked saves a snapshot because it is time.
func (s *snapshotter) saveUnasked() {
	s.save(func(err error) {
		if err == nil {
			return
		}
		if errors.Is(err, ErrNotSupported) {
			s.off.Store(true)
			return
		}
		if code := ErrorCode(err); code != ErrBusy && code != ErrShutdown {
			s.log.Error("no snapshot could be saved; the log stays as it is", zap.Error(err))
		}
		s.a.Post(func() { s.saveAt = earlier(s.saveAt, s.now.Add(snapshotRetry)) })
	})
}

// save begins to save a snapshot. done runs aside, or here if nothing is begun.
func (s *snapshotter) save(done Closure) {
	if err := s.busy(); err != nil {
		s.n.callBackWith(opSaveSnapshot, done, err)
		return
	}
	applied := s.n.fsm.applied.Load()
	if s.n.durable != nil && s.last.Load() == 0 {
		if err := s.trustNewest(applied); err != nil {
			s.n.callBackWith(opSaveSnapshot, done, s.note(err))
			return
		}
	}
	if last := s.last.Load(); applied <= last {
		s.unasked(last)
		s.n.callBackWith(opSaveSnapshot, done, nil)
		return
	}
	store, err := s.open()
	var w *snapdir.Writer
	if err == nil {
		w, err = store.NewWriter()
	}
	if err != nil {
		s.n.callBackWith(opSaveSnapshot, done, s.note(s.errorOf(opSaveSnapshot, 0, err)))
		return
	}
	w.Watch = s.watch(0)
	sv := &snapshotSave{w: w, done: done}
	s.saving = sv
	s.show(func(v *SnapshotStatus) { v.State, v.NextIndex = SnapshotSaving, applied })
	s.n.fsm.saveSnapshot(w, s.freeze, func(base logBase, err error) {
		s.a.Post(func() { s.saved(sv, base, err) }) // if the node has ended meanwhile, end has told
	})
}

// busy says why nothing can be saved now.
func (s *snapshotter) busy() error {
	fail := func(code Code, cause string) error {
		return &Error{Code: code, Op: opSaveSnapshot, Group: s.n.group, Err: errors.New(cause)}
	}
	switch {
	case s.ended:
		return fail(ErrShutdown, "the node has ended")
	case s.failed:
		return fail(ErrNodeFailed, "it needs to be started anew")
	case s.saving != nil:
		return fail(ErrBusy, "another snapshot is being saved")
	case s.inst != nil:
		return fail(ErrBusy, "a snapshot of the leader's is being installed")
	}
	return nil
}

// freeze is asked when the state machine is about to save the position: whether that would be for nothing.
func (s *snapshotter) freeze(base logBase) (skip bool) {
	s.bytes.Store(0)
	return base.index <= s.last.Load()
}

// unasked takes note that what was applied up to an index needs no saving any more. What was applied since has found that the actor
// knows already, so that it is to look itself whether that is due.
func (s *snapshotter) unasked(index int64) {
	s.saveAt = time.Time{}
	s.asked.Store(false)
	s.armed.Store(false)
	applied := s.n.fsm.applied.Load()
	if applied <= index || s.off.Load() {
		return
	}
	s.armed.Store(true)
	s.arm()
	if s.isDue(applied, s.bytes.Load()) && !s.asked.Swap(true) {
		s.a.Post(s.relieve)
	}
}

// isDue reports whether so much was applied, in all and since the last snapshot was begun, that it is time for another.
func (s *snapshotter) isDue(index, bytes int64) bool {
	most := s.n.o.SnapshotBytes
	return index >= s.due.Load() || most > 0 && bytes >= most
}

// saved publishes what the state machine has written, or gives it up.
func (s *snapshotter) saved(sv *snapshotSave, base logBase, err error) {
	if s.saving != sv {
		return
	}
	began, skipped := s.now, err == nil && base.index <= s.last.Load()
	switch {
	case skipped:
		err = sv.w.Abort()
	case err != nil:
		err = errors.Join(s.blame(err), sv.w.Abort())
	default:
		err = s.publish(sv.w, base)
	}
	s.saving = nil
	s.show(func(v *SnapshotStatus) { v.State, v.NextIndex = SnapshotIdle, 0 })
	if err != nil {
		err = s.note(s.errorOf(opSaveSnapshot, base.index, err))
		s.makeRoom(err)
	} else {
		s.unasked(base.index)
		if s.n.durable != nil {
			s.askCut()
		}
		if !skipped {
			s.log.Info("saved a snapshot", zap.Int64("index", base.index), zap.Duration("to_publish", s.n.host.env.Exec.Now().Sub(began)))
		}
	}
	s.tellSaved(sv.done, err)
}

// tellSaved tells who asked for a snapshot what came of it, before the node has ended.
func (s *snapshotter) tellSaved(done Closure, err error) {
	held := s.n.lm.pending.tryHold()
	tell := func() {
		s.n.aside(func() { s.n.callBackWith(opSaveSnapshot, done, err) })
		if held {
			s.n.lm.pending.letGo()
		}
	}
	if !s.n.post(func() { s.n.compact(); tell() }) {
		tell()
	}
}

// publish makes a snapshot of what was written, and reads it back. Only then may anybody rely on it.
func (s *snapshotter) publish(w *snapdir.Writer, base logBase) error {
	r, err := w.Commit(base.message(), s.n.groupIDNow.Load())
	if err != nil {
		return err
	}
	err = r.Verify(s.watch(0))
	info := r.Info()
	err = errors.Join(err, r.Close())
	if err != nil {
		if errors.Is(err, snapdir.ErrStopped) { // it will be read at the next start
			return err
		}
		return errors.Join(err, s.opened().Remove(base.index)) // the state machine has all of it, and saves it anew
	}
	s.took(base, info)
	if base.index >= s.begun { // nobody will ever resume it
		s.removeCopy()
	}
	return nil
}

// removeCopy deletes what an interrupted install has left.
func (s *snapshotter) removeCopy() {
	store := s.opened()
	if store == nil {
		return
	}
	if err := store.RemoveCopy(); err != nil {
		s.log.Warn("what an interrupted install has left could not be deleted", zap.Error(err))
	}
}

// makeRoom deletes what was copied of a snapshot if the disk has no space: the logs of all groups need it more.
func (s *snapshotter) makeRoom(err error) {
	if ErrorCode(err) == ErrNoSpace {
		s.removeCopy()
	}
}

// took takes note of a new snapshot that can be relied on.
func (s *snapshotter) took(base logBase, info snapdir.Info) {
	s.last.Store(base.index)
	s.due.Store(s.n.o.snapshotDue(base.index))
	s.show(func(v *SnapshotStatus) { v.Index, v.Term, v.Bytes, v.Err = base.index, base.term, info.Bytes, nil })
	if err := s.opened().Prune(); err != nil {
		s.log.Warn("an old snapshot could not be deleted; it is tried again with the next", zap.Error(err))
	}
}

// watch ends long reading when the node ends, or when its term is past the given one; 0: any term will do.
func (s *snapshotter) watch(term int64) snapdir.Watch {
	return snapdir.Watch{Stop: func() bool {
		return s.stopping.Load() || term != 0 && s.n.termNow.Load() > term
	}}
}

// show changes what Status says.
func (s *snapshotter) show(change func(v *SnapshotStatus)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.view)
}

// note shows an error in Status, and returns it.
func (s *snapshotter) note(err error) error {
	if ErrorCode(err) != ErrShutdown {
		s.show(func(v *SnapshotStatus) { v.Err = err })
	}
	return err
}

// status is what Status says.
func (s *snapshotter) status() SnapshotStatus {
	s.mu.Lock()
	v, c := s.view, s.copying
	s.mu.Unlock()
	if c != nil {
		p := c.Progress()
		v.Done, v.Total = p.Done, p.Total
	}
	return v
}

// blame tells an error of the state machine's own from one of the disk, which it has only passed on.
func (s *snapshotter) blame(err error) error {
	var disk *os.PathError
	if ErrorCode(err) == 0 && !errors.As(err, &disk) {
		return &Error{Code: ErrStateMachine, Op: "OnSnapshotSave", Err: err}
	}
	return err
}

// errorOf says which kind of failure it is.
func (s *snapshotter) errorOf(op string, index int64, err error) error {
	code := ErrorCode(err)
	switch {
	case code == ErrNotSupported, code == ErrShutdown, code == ErrNodeFailed, code == ErrCanceled, code == ErrStateMachine:
	case isDamage(err):
		code = ErrCorrupt
	case errors.Is(err, snapdir.ErrStopped):
		code = ErrShutdown
		if op == opInstallSnapshot && !s.stopping.Load() { // by the next leader
			code = ErrNewLeader
		}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		code = ErrNoSpace
	case errors.Is(err, snapdir.ErrGroup):
		code = ErrGroupMismatch
	case code == 0:
		code = ErrIO
	}
	return &Error{Code: code, Op: op, Group: s.n.group, Index: index, Err: err}
}

// keepFrom is the index behind which the log is needed: for the oldest snapshot that is kept, slow followers, and those to
// whom a snapshot is being sent.
func (s *snapshotter) keepFrom() int64 {
	store := s.opened()
	if store == nil {
		return 0
	}
	keep, good := s.last.Load(), 0
	for _, info := range store.List() { // the newest first
		if info.Damage == nil && good < s.n.o.SnapshotKeep {
			keep, good = min(keep, info.Index), good+1
		}
	}
	if s.n.durable != nil { // it needs no snapshot to start
		keep = s.marked.Load()
	}
	keep -= int64(max(s.n.o.SnapshotMargin, 0))
	s.mu.Lock()
	defer s.mu.Unlock()
	total := s.total.Load()
	for _, h := range s.holds {
		if total-h.since < holdBytes {
			keep = min(keep, h.index)
		}
	}
	return max(keep, 0)
}

// lend opens the newest snapshot for a follower, and keeps the log behind it. Any goroutine may call it; giveBack ends the
// one, release the other.
func (s *snapshotter) lend(to *replicator) (*lentReader, error) {
	s.release(to)             // another snapshot, another holdBytes
	s.hold(to, s.last.Load()) // before it is chosen: else the log could be cut in between
	store := s.opened()
	if store == nil {
		return nil, snapdir.ErrNone
	}
	r, err := store.Latest()
	if err != nil {
		return nil, err
	}
	base, err := baseOf(r.Meta())
	if err == nil && !(s.reclaim(to) && s.borrow()) {
		err = ErrShutdown
	}
	if err != nil {
		_ = r.Close() // should it be to delete: the next Prune tries again
		return nil, err
	}
	l := &lentReader{base: base, to: to, r: r, bytes: r.Info().Bytes}
	l.failed = func(err error) { s.a.Post(func() { s.suspect(base.index, err) }) }
	l.ended = func() {
		s.mu.Lock()
		s.lent = slices.DeleteFunc(s.lent, func(o *lentReader) bool { return o == l })
		s.mu.Unlock()
		s.n.lm.pending.letGo()
	}
	s.n.host.lend(l)
	s.mu.Lock()
	s.lent = append(s.lent, l)
	late := s.stopped || to.dropped.Load()
	s.mu.Unlock()
	if late {
		l.giveBack()
		return nil, ErrShutdown
	}
	return l, nil
}

// reclaim takes back what an earlier replicator has lent to the same peer, which was dropped and does not know yet: nobody is served
// twice at once. It reports false to such a one.
func (s *snapshotter) reclaim(to *replicator) bool {
	s.mu.Lock()
	dropped, lent := to.dropped.Load(), slices.Clone(s.lent) // nothing is lent to a successor before
	s.mu.Unlock()
	for _, l := range lent {
		if !dropped && l.to != to && l.to.peer == to.peer {
			l.giveBack()
		}
	}
	return !dropped
}

// borrow has the node not end before what is about to be lent was given back. It reports whether the node lives.
func (s *snapshotter) borrow() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.n.lm.pending.hold()
	}
	return !s.stopped
}

// suspect reads a snapshot of which a file could not be read, or not as its hashes are, once more. If it is damaged another one
// is needed. If it cannot be read that may pass: it stays what it is, and the first one of a later index takes its place.
func (s *snapshotter) suspect(index int64, cause error) {
	if s.ended || s.failed || index == s.suspected && s.now.Before(s.suspectAt) { // many reads fail at once, or a peer asks again and again
		return
	}
	r, err := s.opened().Reader(index)
	if err != nil {
		return // it is gone
	}
	s.log.Error("a snapshot may be damaged", zap.Int64("index", index), zap.Error(cause))
	err = r.Scrub(s.watch(0))
	_ = r.Close() // should it be to delete: the next Prune tries again
	s.suspected, s.suspectAt = index, s.n.host.env.Exec.Now().Add(snapshotRetry)
	switch {
	case err == nil:
		s.log.Info("the snapshot is whole", zap.Int64("index", index))
	case errors.Is(err, snapdir.ErrStopped):
	case isDamage(err) && index < s.last.Load(): // there is a newer one
		s.note(s.errorOf(opLoadSnapshot, index, err))
		if err := s.opened().Prune(); err != nil {
			s.log.Warn("a damaged snapshot could not be deleted; it is tried again with the next", zap.Error(err))
		}
	case isDamage(err):
		s.note(s.errorOf(opLoadSnapshot, index, err))
		s.last.Store(0) // what is applied is to be saved again, be it the same
		s.saveUnasked()
	default:
		s.log.Error("a snapshot cannot be read for now", zap.Int64("index", index), zap.Error(err))
		s.note(s.errorOf(opLoadSnapshot, index, err))
		if s.n.fsm.applied.Load() > index {
			s.saveUnasked()
		}
	}
}

// isDamage reports whether what a snapshot is on disk is wrong. Other errors of reading one may pass.
func isDamage(err error) bool {
	var damage *snapdir.DamageError
	return errors.As(err, &damage) || errors.Is(err, snapdir.ErrManifest)
}

// hold keeps the log behind an index for a follower, until release.
func (s *snapshotter) hold(of *replicator, index int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.holds {
		if s.holds[i].of == of {
			s.holds[i].index = index
			return
		}
	}
	s.holds = append(s.holds, logHold{of: of, index: index, since: s.total.Load()})
}

// release ends hold.
func (s *snapshotter) release(of *replicator) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holds = slices.DeleteFunc(s.holds, func(h logHold) bool { return h.of == of })
}

// abandon is for a node that has failed: nothing is begun any more, and no snapshot loaded.
func (s *snapshotter) abandon() {
	s.a.Post(func() {
		s.failed = true
		if s.inst != nil {
			s.giveUp(s.inst, &Error{Code: ErrNodeFailed, Op: opInstallSnapshot, Group: s.n.group})
		}
	})
}

// stop ends everything, and then calls ended. What the state machine is saving is removed.
func (s *snapshotter) stop(ended func()) {
	s.stopping.Store(true)
	s.mu.Lock()
	s.stopped = true
	lent := slices.Clone(s.lent)
	s.mu.Unlock()
	for _, l := range lent {
		l.giveBack()
	}
	s.a.Post(func() {
		s.end()
		ended()
	})
	s.a.Close()
}

func (s *snapshotter) end() {
	s.ended = true
	if sv := s.saving; sv != nil {
		s.saving = nil
		err := errors.Join(&Error{Code: ErrShutdown, Op: opSaveSnapshot, Group: s.n.group}, sv.w.Abort())
		s.n.callBackWith(opSaveSnapshot, sv.done, err)
	}
	if s.inst != nil {
		s.giveUp(s.inst, &Error{Code: ErrShutdown, Op: opInstallSnapshot, Group: s.n.group})
	}
	if store := s.opened(); store != nil { // the state machine may have files of it open for longer
		store.Close()
	}
}
