package wal

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
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
	opened    bool      // the store is open; before, no file is removed for want of space
	unfit     []blank   // of which the opening could make no segment
	eager     int       // so many of the next segments are small, to be zeroed soon
	zeroAt    time.Time // not before then is the next piece zeroed
	retryAt   time.Time // not before then is a segment made, after the disk was full or no file could be opened
	tendAt    time.Time // not before then is the old looked after, when no file could be opened for that
	releasing bool
	releaseTo uint64
	releaseAt time.Time  // not before then is a release tried, after one was refused
	retired   []*segment // released, perhaps still read
	named     uint64     // what the identity names as the log's end
	left      bool
}

// making is a segment that is being zeroed piece by piece.
type making struct {
	seg    *segment
	file   vfs.File
	reused bool // the file was there before, and this is what it was
	had    blank
	zeroed int64
	zeros  []byte
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
		case keepNotRelease: // at once it would be refused again
			k.releasing, k.releaseAt = false, now.Add(k.s.o.Retry)
		case keepQuit:
			k.quit()
		}
	}
	if k.left {
		return time.Time{}
	}
	if err := k.tend(now); err != nil {
		k.fail(err, now)
		return k.deadline(now)
	}
	k.release(now)
	if k.prepare(now) {
		k.a.Post(keepWork)
	}
	return k.deadline(now)
}

// tend looks after what was released, what is left unused and what the identity says. It goes on later if a file could not be opened, or removed or cut
// for want of space: meanwhile segments are made of what there is.
func (k *keeper) tend(now time.Time) error {
	if now.Before(k.tendAt) {
		return nil
	}
	k.tendAt = time.Time{}
	err := k.retire()
	if err == nil {
		err = k.trim()
	}
	if err == nil {
		if err = k.name(false); isSpace(err) { // it is tried again with the next segment
			err = nil
		}
	}
	if passes(err) { // a segment that cannot be made says so itself
		k.tendAt = now.Add(k.s.o.Retry)
		k.s.o.Log("wal: %s: old segments wait: %v", k.s.o.Dir, err)
		return nil
	}
	return err
}

// deadline is the earliest of what waits for its time, zero if nothing does.
func (k *keeper) deadline(now time.Time) (at time.Time) {
	for _, t := range []time.Time{k.zeroAt, k.retryAt, k.tendAt, k.releaseAt} {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

func (k *keeper) quit() {
	k.left = true
	var err error
	if k.making != nil {
		err = k.making.file.Close()
		k.making = nil
	}
	if nerr := k.name(true); isSpace(nerr) || vfs.NotOpened(nerr) {
		k.s.o.Log("wal: %s: the log's end could not be noted: %v", k.s.o.Dir, nerr)
	} else {
		err = errors.Join(err, nerr)
	}
	k.s.leave(err)
}

// name has the identity say how far the log is durable: at the end, and whenever it goes on in another segment, so that
// the loss of that is noticed.
func (k *keeper) name(end bool) error {
	s := k.s
	s.mu.Lock()
	durable, failed := s.durable, s.err != nil
	s.mu.Unlock()
	if failed || durable <= k.named || !end && durable>>32 == k.named>>32 {
		return nil
	}
	id := s.id
	id.end = durable
	if err := s.writeIdentity(id); err != nil {
		return err
	}
	k.named = durable
	return nil
}

// haste is how much a segment is needed.
type haste int

const (
	notWanted haste = iota
	atLeisure       // zero it first, and leave the disk to others in between
	soon            // zero it first
	atOnce          // somebody waits, or may have to in a moment
)

// wanted says how much one more segment is needed.
func (k *keeper) wanted() haste {
	s := k.s
	s.mu.Lock()
	defer s.mu.Unlock()
	room := s.cur.size - s.off
	switch {
	case s.err != nil || s.closed || s.closing && !s.waiting || len(s.free) >= s.o.Spare:
		return notWanted
	case s.waiting || s.spaceErr != nil || len(s.free) == 0 && room < s.cur.size/4:
		return atOnce
	case len(s.free) == 0 && room < s.cur.size/2:
		return soon
	}
	return atLeisure
}

// prepare does one piece of the work on the next segment and reports whether there is more to
// be done now.
func (k *keeper) prepare(now time.Time) (again bool) {
	want := k.wanted()
	if want == notWanted || now.Before(k.retryAt) || want == atLeisure && now.Before(k.zeroAt) {
		return false
	}
	k.retryAt, k.zeroAt = time.Time{}, time.Time{}
	if k.making == nil {
		m, err := k.begin(k.need())
		if err != nil {
			k.fail(err, now)
			return false
		}
		k.making = m
	}
	m := k.making
	if !m.seg.written && want != atOnce {
		if err := m.zero(); err != nil {
			k.giveUp(err, now)
			return false
		}
		if m.zeroed < m.seg.size {
			if want == atLeisure {
				k.zeroAt = now.Add(zeroPause)
				return false
			}
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

// need is how much of the next segment is taken at once: header, state of all groups, and a mark.
func (k *keeper) need() int64 {
	s := k.s
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.firstEnd + block
}

// takeBlank picks a file to use again: one that needs no zeroing if there is such, else the largest, which needs the least
// space.
func (k *keeper) takeBlank() (b blank, ok bool) {
	at := -1
	for i := range k.blanks {
		if at < 0 || !k.better(k.blanks[at], k.blanks[i]) {
			at = i
		}
	}
	if at < 0 {
		return b, false
	}
	b = k.blanks[at]
	k.blanks = slices.Delete(k.blanks, at, at+1)
	return b, true
}

func (k *keeper) better(a, b blank) bool {
	ready := func(b blank) bool { return b.written && b.size >= k.s.o.SegmentSize }
	if ready(a) != ready(b) {
		return ready(a)
	}
	return a.size > b.size
}

// begin makes the file of the next segment, of a released one if there is any. need is how much of it is taken at once.
func (k *keeper) begin(need int64) (*making, error) {
	k.next++
	seg := &segment{seq: k.next, inc: k.s.o.Rand(), path: k.s.segmentPath(k.next), size: k.s.o.SegmentSize}
	m := &making{seg: seg, zeroed: firstBatchOffset}
	if b, ok := k.takeBlank(); ok {
		m.reused, m.had = true, b
		if err := k.s.o.FS.Rename(b.path, seg.path); err != nil {
			return nil, k.putBack(m, err)
		}
		m.had.path = seg.path
		if err := k.s.o.FS.SyncDir(k.s.o.Dir); err != nil {
			return nil, k.putBack(m, err)
		}
		seg.size = max(b.size, seg.size)
	} else {
		if k.eager > 0 {
			k.eager--
			seg.size = min(seg.size, eagerSize)
		}
		if err := k.create(seg.path); err != nil {
			return nil, k.scrap(m, err)
		}
	}
	file, err := k.s.o.FS.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil && m.reused {
		return nil, k.putBack(m, err)
	}
	if err != nil {
		return nil, k.scrap(m, err)
	}
	m.file = file
	if err := k.reserve(m, need); err != nil {
		return nil, k.scrap(m, err)
	}
	return m, nil
}

// create makes an empty file whose name is durable: now and not when all of it is, since a sync of the directory that fails
// meanwhile, for the removal of other files, might take this name too. It keeps no descriptor, and never has two.
func (k *keeper) create(path string) error {
	f, err := k.s.o.FS.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	return k.s.o.FS.SyncDir(k.s.o.Dir)
}

// putBack keeps the file of a segment that is not made after all, and passes err on.
func (k *keeper) putBack(m *making, err error) error {
	switch {
	case !m.reused:
	case k.opened:
		k.blanks = append(k.blanks, m.had)
	default: // an opening tries each once
		k.unfit = append(k.unfit, m.had)
	}
	return err
}

// reserve takes the segment's space, or less if the disk has not that much. A file that is used again is at least as large as
// it was.
func (k *keeper) reserve(m *making, need int64) error {
	// Less is not worth having: next to the state of all groups it would hold hardly anything. But an opening takes what it finds.
	least := need + smallest
	if m.had.size >= least || m.had.size >= need && !k.opened {
		least = m.had.size
	}
	for size := m.seg.size; ; {
		m.seg.size, m.seg.written = size, m.had.written && m.had.size >= size
		// Of a file that is used again too: it may have grown, and power have failed before the space for that was durable.
		err := m.file.Preallocate(0, size)
		if !isSpace(err) {
			return err
		}
		if size <= least {
			return cmp.Or(shorten(m.file, m.had.size), err) // others need what was found
		}
		size = max(align(size/2), least)
		if err := shorten(m.file, size); err != nil {
			return err
		}
	}
}

// shorten gives back what a reservation has found that failed for want of space: what is in the file behind size, and, since it
// sets the size, what may have been reserved behind the file's end. It never makes the file longer: where space is reserved by
// writing it, what is inside the file is taken for reserved.
func shorten(file vfs.File, size int64) error {
	is, err := file.Size()
	if err != nil {
		return err
	}
	return file.Truncate(min(is, size))
}

// extend reserves what a segment lacks that is not written yet, or nothing at all: the rest of the disk is for others.
func extend(file vfs.File, from, to int64) error {
	err := file.Preallocate(from, to-from)
	if isSpace(err) {
		return cmp.Or(shorten(file, from), err)
	}
	return err
}

// scrap removes what was made of a segment and passes err on. Its space is needed by
// others when the disk is full. While the store is being opened a file that was there before is left: it may be all that a
// later attempt has. So is one that cannot be removed now: the next attempt makes a segment of it, or each would leave one.
//
// A worse error than err takes its place: joined with it, it would pass for want of space.
func (k *keeper) scrap(m *making, err error) error {
	if m.file != nil {
		if cerr := m.file.Close(); cerr != nil && !isSpace(cerr) {
			return fmt.Errorf("%w, after: %v", cerr, err)
		}
	}
	if m.reused && !k.opened {
		return k.putBack(m, err)
	}
	rerr := k.s.o.FS.Remove(m.seg.path)
	switch {
	case rerr == nil, errors.Is(rerr, os.ErrNotExist):
	case passes(rerr):
		k.blanks = append(k.blanks, blank{path: m.seg.path})
	default:
		return fmt.Errorf("%w, after: %v", rerr, err)
	}
	return err
}

// zero writes and syncs one piece, so that later writes of it are overwrites.
func (m *making) zero() error {
	if m.zeros == nil {
		m.zeros = make([]byte, min(zeroPiece, m.seg.size))
	}
	n := min(int64(len(m.zeros)), m.seg.size-m.zeroed)
	if _, err := m.file.WriteAt(m.zeros[:n], m.zeroed); err != nil {
		return err
	}
	m.zeroed += n
	return m.file.Sync()
}

// finish makes the segment's header and space durable. Its name is already.
func (k *keeper) finish(m *making) error {
	h := segmentHead{store: k.s.id.store, seq: m.seg.seq, inc: m.seg.inc, written: m.seg.written}
	if _, err := m.file.WriteAt(h.encode(), 0); err != nil {
		return err
	}
	if err := m.file.Sync(); err != nil {
		return err
	}
	file := m.file
	m.file = nil
	return file.Close()
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

// fail takes note that no segment could be made. A full disk passes, and so does the want of descriptors: until then who
// waits for a segment waits on, unless the store is to be closed.
func (k *keeper) fail(err error, now time.Time) {
	s := k.s
	if vfs.NotOpened(err) {
		k.retryAt = now.Add(s.o.Retry)
		s.o.Log("wal: %s: the next segment waits: %v", s.o.Dir, err)
	}
	s.mu.Lock()
	switch {
	case vfs.NotOpened(err) && !s.closing:
		s.mu.Unlock()
		return
	case vfs.NotOpened(err):
		s.spaceErr = err
	case isSpace(err):
		s.spaceErr = err
		k.retryAt = now.Add(s.o.Retry)
	default:
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
func (k *keeper) release(now time.Time) {
	s := k.s
	if k.releasing || now.Before(k.releaseAt) {
		return
	}
	k.releaseAt = time.Time{}
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

// trim cuts the unused end off a segment behind which the log goes on in another, if it is
// large: one opening after the other would leave a segment hardly begun.
func (k *keeper) trim() error {
	s := k.s
	for {
		seg := s.toTrim()
		if seg == nil {
			return nil
		}
		file, err := s.o.FS.OpenFile(seg.path, os.O_RDWR, 0)
		if vfs.NotOpened(err) {
			s.mu.Lock()
			seg.cut = false
			s.mu.Unlock()
		}
		if err != nil {
			return err
		}
		err = file.Truncate(seg.end) // it need not be durable
		if err = errors.Join(err, file.Close()); err != nil {
			return err
		}
		s.mu.Lock()
		seg.size = seg.end
		s.mu.Unlock()
	}
}

// toTrim finds a segment to cut. Nothing behind its end is looked at any more once the next
// one's first batch, which names the end, is durable.
func (s *Store) toTrim() *segment {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil
	}
	for i, seg := range s.segs[:len(s.segs)-1] {
		after := s.segs[i+1]
		if seg.cut || s.durable < position(after.seq, after.firstEnd) {
			continue
		}
		seg.cut = true
		if seg.size-seg.end > seg.size/4 {
			return seg
		}
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
