package wal

import (
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
)

type laneMsg int

const (
	laneGo   laneMsg = iota + 1 // there is something to do, or a job goes on
	laneQuit                    // the store is closed
)

// lane writes and syncs one batch at a time. A job is done in steps that the lane
// posts to itself, so that a simulation can interleave those of several lanes.
//
// Invariants: it is either among Store.idle, or counted in Store.busy with one
// message to itself, or the waker's, on the way, or with a job that waits for its time.
//
// Ownership: its actor's. It may block: on the disk.
type lane struct {
	s *Store
	a *actor.Actor[laneMsg]
	w writer

	job   job
	again time.Time // when the job is tried again, whose file could not be opened
	sync  bool      // the job's write is done, its sync is not
	err   error
	left  bool
}

func newLane(s *Store) *lane {
	l := &lane{s: s, w: writer{fs: s.o.FS}}
	l.a = actor.New(s.o.Exec, "wal-lane", l.step)
	return l
}

func (l *lane) step(now time.Time, batch []laneMsg) time.Time {
	for _, m := range batch {
		switch {
		case m == laneQuit:
			l.quit()
		case !l.left:
			l.work(now)
		}
	}
	if !l.again.IsZero() && !now.Before(l.again) {
		l.work(now)
	}
	if l.left || l.job.kind != jobNone {
		return l.again
	}
	return l.s.idleMark(l, now)
}

// work does one step of the job, or looks for the next one.
func (l *lane) work(now time.Time) {
	l.again = time.Time{}
	switch l.job.kind {
	case jobWrite:
		if !l.write(now) {
			return // to be synced in a step of its own, or tried again
		}
	case jobGrow:
		err := l.grow()
		if l.waits(err, now) {
			return
		}
		l.s.grown(l.job, err)
	case jobMark:
		l.s.markWritten(l.w.write(l.job.f))
	case jobEnd:
		l.s.ended(l.end())
		l.job = job{}
		return
	}
	l.s.deliver()
	l.job = l.s.find(l, now)
	if l.job.kind != jobNone {
		l.a.Post(laneGo)
	}
}

// waits reports whether the job is tried again after a pause, since its file could not be opened: nothing of it was written. Whoever
// closes the store is not kept waiting.
func (l *lane) waits(err error, now time.Time) bool {
	if !vfs.NotOpened(err) || !l.s.patient() {
		return false
	}
	l.again = now.Add(l.s.o.Retry)
	l.s.o.Log("wal: %s: the log waits: %v", l.s.o.Dir, err)
	return true
}

func (s *Store) patient() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err == nil && !s.closing
}

// write does one half of a jobWrite and reports whether that was the second, or failed.
func (l *lane) write(now time.Time) bool {
	f := l.job.f
	if !l.sync {
		l.err = l.w.write(f)
		if l.waits(l.err, now) {
			return false
		}
		l.sync = l.err == nil
		if l.sync {
			l.a.Post(laneGo)
			return false
		}
	} else {
		l.err = l.w.file.Sync()
	}
	l.sync = false
	l.s.landed(f, l.err)
	return true
}

func (l *lane) grow() error {
	j := l.job
	if err := l.w.open(j.seg); err != nil {
		return err
	}
	return extend(l.w.file, j.seg.size, j.size)
}

func (l *lane) end() error {
	f := l.job.f
	if f == nil {
		return nil
	}
	err := l.w.write(f)
	if vfs.NotOpened(err) {
		l.s.o.Log("wal: %s: the log's end could not be marked: %v", l.s.o.Dir, err)
		return nil
	}
	if err != nil {
		return err
	}
	return l.w.file.Sync()
}

func (l *lane) quit() {
	l.left = true
	l.s.leave(l.w.close())
}

// find is next, followed by waking a further lane if that pays.
func (s *Store) find(l *lane, now time.Time) job {
	s.mu.Lock()
	j := s.next(l, now)
	var other *lane
	if j.kind == jobWrite || j.kind == jobDeliver {
		other = s.takeLane()
	}
	s.mu.Unlock()
	if other != nil {
		other.a.Post(laneGo)
	}
	return j
}

// landed says that a flight is durable, or that its write or sync failed.
func (s *Store) landed(f *flight, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats.writes++
	if err != nil {
		s.poison(err)
	}
	if !f.orphan {
		f.landed = true
	}
}

// deliver runs the done functions of all flights that are ready, oldest first. If a lane
// is at it already, that one goes on with what has become ready.
func (s *Store) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.delivering {
		return
	}
	s.delivering = true
	for s.ring.len() > 0 && s.ring.front().landed {
		f := s.ring.pop()
		if f.err == nil {
			s.settle(f)
		}
		s.mu.Unlock()
		for i := range f.recs {
			r := &f.recs[i]
			err := f.err
			if r.err != nil {
				err = r.err
			}
			r.finish(err)
		}
		s.mu.Lock()
		if !f.orphan { // else a lane still reads it
			s.recycle(f)
		}
	}
	s.delivering = false
}

// settle updates what depends on a flight being durable. The caller holds mu.
func (s *Store) settle(f *flight) {
	if f.seg != nil {
		s.durable = position(f.seg.seq, f.off+f.size)
	}
	for i := range f.recs {
		if r := &f.recs[i]; r.err == nil && r.g != nil {
			r.g.landed(r)
		}
	}
	if f.kind == kindFirst || s.releasable() > 0 { // the segment before may be cut, or go
		s.keeper.a.Post(keepWork)
	}
}

// idleMark writes the durable mark once more when the store has been idle for a
// while, and says when to look again.
func (s *Store) idleMark(l *lane, now time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy > 0 || s.closing || s.err != nil || s.exclusive || s.marked == s.durable {
		return time.Time{}
	}
	if due := s.idleSince.Add(s.o.IdleMark); now.Before(due) {
		return due
	}
	for i, other := range s.idle {
		if other == l {
			s.idle = append(s.idle[:i], s.idle[i+1:]...)
			break
		}
	}
	// The next batch will be written where the mark stands, so nothing is placed
	// until the write is over.
	s.busy++
	s.exclusive = true
	l.job = job{kind: jobMark, f: s.mark(kindMark)}
	l.a.Post(laneGo)
	return time.Time{}
}

func (s *Store) markWritten(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exclusive = false
	switch {
	case vfs.NotOpened(err):
		s.marked = 0 // the next idle moment has another try
	case err != nil:
		s.poison(err)
	}
}
