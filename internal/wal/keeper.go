package wal

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
)

type keepMsg int

const (
	keepWork       keepMsg = iota + 1 // look what there is to do
	keepReleased                      // the release record is durable
	keepNotRelease                    // it was refused or lost
	keepQuit                          // the store is closed
)

// keeper prepares segments before they are needed, releases those that are not
// needed any more, and makes new ones of them.
//
// Invariants: next is greater than every segment number in use; at most one segment is
// being made, and one release is under way.
//
// Ownership: its actor's, but for retired, which the store's mutex guards. It may
// block: on the disk.
type keeper struct {
	s         *Store
	a         *actor.Actor[keepMsg]
	next      uint64 // number of the next segment
	blanks    []blank
	making    *making
	releasing bool
	releaseTo uint64
	retryAt   time.Time
	retired   []*segment // released, perhaps still read
	left      bool
}

// making is a segment that is being zeroed piece by piece.
type making struct {
	seg    *segment
	file   vfs.File
	zeroed int64
}

func newKeeper(s *Store) *keeper {
	k := &keeper{s: s}
	k.a = actor.New(s.o.Exec, "wal-keeper", k.step)
	return k
}

func (k *keeper) step(now time.Time, batch []keepMsg) time.Time {
	for _, m := range batch {
		switch m {
		case keepReleased:
			k.released()
		case keepNotRelease:
			k.releasing = false
		case keepQuit:
			k.quit()
		}
	}
	if k.left {
		return time.Time{}
	}
	if err := k.retire(); err != nil {
		k.fail(err, now)
		return k.retryAt
	}
	k.release()
	if k.prepare(now) {
		k.a.Post(keepWork)
	}
	if k.retryAt.After(now) {
		return k.retryAt
	}
	return time.Time{}
}

func (k *keeper) quit() {
	k.left = true
	var err error
	if k.making != nil {
		err = k.making.file.Close()
		k.making = nil
	}
	k.s.leave(err)
}

// wanted says how many segments are lacking, and whether somebody waits for one.
func (k *keeper) wanted() (lacking int, urgent bool) {
	s := k.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil || s.closed || s.closing && !s.waiting {
		return 0, false
	}
	return s.o.Spare - len(s.free), s.waiting || len(s.free) == 0
}

// prepare does one piece of the work on the next segment and reports whether there is more.
func (k *keeper) prepare(now time.Time) (again bool) {
	lacking, urgent := k.wanted()
	if lacking <= 0 || now.Before(k.retryAt) {
		return false
	}
	k.retryAt = time.Time{}
	if k.making == nil {
		m, err := k.begin()
		if err != nil {
			k.fail(err, now)
			return false
		}
		k.making = m
	}
	m := k.making
	if !m.seg.written && !urgent {
		if err := m.zero(); err != nil {
			k.giveUp(err, now)
			return false
		}
		if m.zeroed < m.seg.size {
			return true
		}
		m.seg.written = true
	}
	if err := k.finish(m); err != nil {
		k.giveUp(err, now)
		return false
	}
	k.making = nil
	k.hand(m.seg)
	return true
}

// begin makes the file of the next segment, of a released one if there is any.
func (k *keeper) begin() (*making, error) {
	k.next++
	seg := &segment{seq: k.next, inc: k.s.o.Rand(), path: k.s.segmentPath(k.next), size: k.s.o.SegmentSize}
	if n := len(k.blanks); n > 0 {
		b := k.blanks[n-1]
		k.blanks = k.blanks[:n-1]
		if err := k.s.o.FS.Rename(b.path, seg.path); err != nil {
			return nil, err
		}
		if err := k.s.o.FS.SyncDir(k.s.o.Dir); err != nil {
			return nil, err
		}
		seg.written = b.written && b.size >= seg.size
		seg.size = max(b.size, seg.size)
	}
	file, err := k.s.o.FS.OpenFile(seg.path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	m := &making{seg: seg, file: file, zeroed: firstBatchOffset}
	if seg.written {
		return m, nil
	}
	if err := file.Preallocate(0, seg.size); err != nil {
		return nil, k.scrap(m, err)
	}
	return m, nil
}

// scrap removes what was made of a segment and passes err on. Its space is needed by
// others when the disk is full.
func (k *keeper) scrap(m *making, err error) error {
	cerr := m.file.Close()
	if rerr := k.s.o.FS.Remove(m.seg.path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		return errors.Join(err, cerr, rerr)
	}
	if cerr != nil && !isSpace(cerr) {
		return errors.Join(err, cerr)
	}
	return err
}

// zero writes and syncs one piece, so that later writes of it are overwrites.
func (m *making) zero() error {
	n := min(int64(zeroPiece), m.seg.size-m.zeroed)
	if _, err := m.file.WriteAt(make([]byte, n), m.zeroed); err != nil {
		return err
	}
	m.zeroed += n
	return m.file.Sync()
}

// finish makes the segment's header, name and space durable.
func (k *keeper) finish(m *making) error {
	h := segmentHead{store: k.s.id.store, seq: m.seg.seq, inc: m.seg.inc, written: m.seg.written}
	if _, err := m.file.WriteAt(h.encode(), 0); err != nil {
		return err
	}
	if err := m.file.Sync(); err != nil {
		return err
	}
	if err := m.file.Close(); err != nil {
		return err
	}
	return k.s.o.FS.SyncDir(k.s.o.Dir)
}

func (k *keeper) giveUp(err error, now time.Time) {
	m := k.making
	k.making = nil
	k.fail(k.scrap(m, err), now)
}

// hand adds a prepared segment to those that the writer may take.
func (k *keeper) hand(seg *segment) {
	s := k.s
	s.mu.Lock()
	s.free = append(s.free, seg)
	s.spaceErr = nil
	s.waiting = false
	s.unlockAndWake()
}

// fail takes note that no segment could be made. A full disk passes.
func (k *keeper) fail(err error, now time.Time) {
	s := k.s
	s.mu.Lock()
	if isSpace(err) {
		s.spaceErr = err
		k.retryAt = now.Add(s.o.Retry)
	} else {
		s.poison(fmt.Errorf("prepare a segment: %w", err))
	}
	s.waiting = false
	s.unlockAndWake()
}

// releasable returns how many of the oldest segments nothing needs any more. The caller
// holds mu.
func (s *Store) releasable() (n int) {
	for n+1 < len(s.segs) && s.segs[n].pins == 0 {
		after := s.segs[n+1]
		if s.durable < position(after.seq, after.firstEnd) {
			break
		}
		n++
	}
	return n
}

// release begins to release the oldest segments: first it is written down that they may be
// gone.
func (k *keeper) release() {
	s := k.s
	if k.releasing {
		return
	}
	s.mu.Lock()
	n := s.releasable()
	if n == 0 || s.err != nil || s.closing {
		s.mu.Unlock()
		return
	}
	k.releasing, k.releaseTo = true, s.segs[n].seq
	var r record
	encodeNumbers(&r, recRelease, 0, k.releaseTo)
	r.index = int64(k.releaseTo)
	r.done = func(err error) {
		if err != nil {
			k.a.Post(keepNotRelease)
			return
		}
		k.a.Post(keepReleased)
	}
	s.enqueue(&r)
	s.unlockAndWake()
}

// released takes the segments out of the log.
func (k *keeper) released() {
	s := k.s
	k.releasing = false
	s.mu.Lock()
	defer s.mu.Unlock()
	s.floor = max(s.floor, k.releaseTo)
	for len(s.segs) > 1 && s.segs[0].seq < k.releaseTo {
		s.segs[0].dead = true
		k.retired = append(k.retired, s.segs[0])
		s.segs = s.segs[1:]
	}
}

// retire makes blanks of released segments that nobody reads any more, or removes them.
func (k *keeper) retire() error {
	s := k.s
	var unread []*segment
	var files []vfs.File
	s.mu.Lock()
	rest := k.retired[:0]
	for _, seg := range k.retired {
		if seg.refs > 0 {
			rest = append(rest, seg)
			continue
		}
		unread = append(unread, seg)
		if seg.file != nil {
			files = append(files, seg.file)
			seg.file = nil
		}
	}
	clear(k.retired[len(rest):])
	k.retired = rest
	s.mu.Unlock()
	for _, f := range files {
		if err := f.Close(); err != nil {
			return err
		}
	}
	removed := false
	for _, seg := range unread {
		if len(k.blanks) < s.o.Keep && seg.size <= 2*s.o.SegmentSize {
			k.blanks = append(k.blanks, blank{path: seg.path, size: seg.size, written: seg.written})
			continue
		}
		if err := s.o.FS.Remove(seg.path); err != nil {
			return err
		}
		removed = true
	}
	if removed {
		k.retryAt = time.Time{} // there is space now
		return s.o.FS.SyncDir(s.o.Dir)
	}
	return nil
}

// segmentOf returns the segment that holds a position, nil if it was released. The caller holds mu.
func (s *Store) segmentOf(pos uint64) *segment {
	seq, _ := splitPosition(pos)
	low, high := 0, len(s.segs)
	for low < high {
		mid := (low + high) / 2
		if s.segs[mid].seq < seq {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low < len(s.segs) && s.segs[low].seq == seq {
		return s.segs[low]
	}
	return nil
}
