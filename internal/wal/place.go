package wal

import (
	"fmt"
	"time"

	"github.com/graft-raft/graft/internal/vfs"
)

// job is what a lane does next without the store's lock.
type job struct {
	kind jobKind
	f    *flight  // to write and sync, or a mark to write
	seg  *segment // to grow
	size int64
}

type jobKind int

const (
	jobNone jobKind = iota
	jobWrite
	jobGrow
	jobMark
	jobEnd     // the last mark, synced
	jobDeliver // nothing to write, but something may be ready
)

// next finds a lane's next job. With jobNone the lane is idle. The caller holds mu
// and has counted the lane among busy.
func (s *Store) next(l *lane, now time.Time) job {
	j := s.choose(now)
	if j.kind == jobNone {
		s.busy--
		s.idle = append(s.idle, l)
		if s.busy == 0 {
			s.idleSince = now
		}
	}
	return j
}

func (s *Store) choose(now time.Time) job {
	if s.exclusive || s.closed {
		return job{}
	}
	for {
		f := s.pend.front()
		switch {
		case s.err != nil:
			s.failPending()
			return s.rest()
		case f == nil:
			return s.rest()
		case f.live == 0: // only refused records
			s.pend.pop()
			f.landed = true
			s.ring.push(f)
			if s.ring.len() == 1 && !s.delivering {
				return job{kind: jobDeliver}
			}
		case f.normal > 0 && s.spaceErr != nil && len(s.free) == 0:
			s.refuse(false, s.spaceErr) // the last segment was taken for what is urgent
		case s.fits(f) && !s.betterSegment(f):
			return s.placeFront()
		case s.ring.len() > 0:
			return job{} // whoever delivers the last flight rolls
		default:
			if j, done := s.roll(f); done {
				return j
			}
		}
	}
}

// rest is what is left to do when nothing can be placed.
func (s *Store) rest() job {
	switch {
	case s.ring.len() > 0 && !s.delivering && s.ring.front().landed:
		return job{kind: jobDeliver}
	case !s.closing || s.ring.len() > 0 || s.delivering || s.busy > 1:
		return job{}
	}
	s.exclusive = true
	if s.err != nil {
		return job{kind: jobEnd} // nothing is written any more
	}
	return job{kind: jobEnd, f: s.mark(kindEnd)}
}

// fits reports whether the current segment has room for a flight. There is always room for a mark.
func (s *Store) fits(f *flight) bool { return s.off+f.need()+block <= s.cur.size }

// betterSegment reports whether it pays to leave a segment that was only
// reserved for one whose blocks have been written. If the flight is too large for that one it does not: it would have
// to grow, for which a full disk has no space. The state of all groups comes first there, and takes about as much as it did
// in the current one.
func (s *Store) betterSegment(f *flight) bool {
	if s.cur.written || len(s.free) < 2 || s.ring.len() > 0 {
		return false
	}
	next := s.free[0]
	return next.written && !next.small && s.cur.firstEnd+f.need()+block <= next.size
}

// roll takes the next segment for flight f, which does not fit into the current
// one. Everything placed is durable. done is false if something changed and the
// choice is to be made again.
func (s *Store) roll(f *flight) (j job, done bool) {
	spare := 1
	if f.normal == 0 {
		spare = 0
	}
	if len(s.free) <= spare {
		if s.spaceErr == nil {
			s.waiting = true
			s.keeper.a.Post(keepWork)
			return job{}, true
		}
		s.refuse(f.normal == 0, s.spaceErr)
		return job{}, false
	}
	first := s.firstFlight(position(s.cur.seq, s.off))
	seg := s.free[0]
	if need := firstBatchOffset + first.need() + f.need() + block; need > seg.size {
		if s.fits(f) {
			seg.small = true
			return job{}, false
		}
		s.exclusive = true
		return job{kind: jobGrow, seg: seg, size: need}, true
	}
	s.free = append(s.free[:0], s.free[1:]...)
	s.cur.end = s.off
	s.enter(seg)
	seg.firstEnd = firstBatchOffset + first.need()
	s.place(first)
	s.keeper.a.Post(keepWork)
	return job{kind: jobWrite, f: first}, true
}

// grown takes note of what became of a jobGrow.
func (s *Store) grown(j job, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.exclusive = false
	switch {
	case err == nil:
		j.seg.size = j.size
	case isSpace(err), vfs.NotOpened(err):
		f := s.pend.front()
		s.refuse(f != nil && f.normal == 0, err)
	default:
		s.poison(err)
	}
}

// enter makes seg the segment that is written.
func (s *Store) enter(seg *segment) {
	s.cur, s.off = seg, firstBatchOffset
	s.segs = append(s.segs, seg)
}

// firstFlight makes the first batch of a segment: the seal of what came before,
// and the state of every group. Everything before is durable.
func (s *Store) firstFlight(prevEnd uint64) *flight {
	f := &flight{kind: kindFirst}
	var r record
	encodeNumbers(&r, recStart, 0, prevEnd, s.floor, s.number)
	f.addRaw(&r)
	live := s.order[:0]
	for _, g := range s.order {
		if g.log.removed || g.gone && !g.announced {
			continue
		}
		live = append(live, g)
		if g.log.known {
			r = record{}
			g.log.checkpoint(&r)
			f.addRaw(&r)
		}
	}
	clear(s.order[len(live):])
	s.order = live
	return f
}

// addRaw adds the bytes of a record that nobody waits for.
func (f *flight) addRaw(r *record) {
	f.raw = append(append(f.raw, r.fixed[:r.nfixed]...), r.tail...)
	f.live++
	f.bytes += r.size
	f.sum = crcMore(f.sum, r.fixed[:4])
}

// placeFront places the first pending flight.
func (s *Store) placeFront() job {
	f := s.pend.pop()
	f.kind = kindPlain
	pos := position(s.cur.seq, s.off)
	s.place(f)
	for i := range f.recs {
		r := &f.recs[i]
		if r.err != nil || r.g == nil {
			continue
		}
		if err := r.g.placed(r, pos); err != nil { // a bug here, and still no reason to write on
			s.poison(err)
			return s.rest()
		}
	}
	return job{kind: jobWrite, f: f}
}

// place fixes a flight's position, its place in the chain and its mark.
func (s *Store) place(f *flight) {
	s.head(f)
	s.prevCRC = f.crc
	s.off += f.size
	s.ring.push(f)
	s.stats.batches++
	s.stats.records += int64(f.live)
	s.stats.bytes += f.size
	s.stats.inFlight = max(s.stats.inFlight, s.ring.len())
}

// head sets a flight's header for the place where the next batch goes.
func (s *Store) head(f *flight) {
	f.seg, f.off, f.size = s.cur, s.off, f.need()
	h := batchHead{
		length: uint32(batchHeadSize + f.bytes), records: uint32(f.live),
		inc: s.cur.inc, opening: s.id.opening, pos: position(s.cur.seq, s.off), mark: s.durable,
		prevCRC: s.prevCRC, sumCRC: f.sum, kind: f.kind,
	}
	h.encode(f.head[:])
	f.crc = h.crc
	s.marked = s.durable
}

// mark makes a mark for the place where the next batch goes.
func (s *Store) mark(kind batchKind) *flight {
	f := &flight{kind: kind}
	s.head(f)
	return f
}

// refuse takes what may not use the last segment out of what is pending, and what
// depends on it; with all set, everything. The records stay in line and are
// delivered with ErrNoSpace.
func (s *Store) refuse(all bool, cause error) {
	old := s.pend
	s.pend = queue{}
	touched := map[*Group]bool{}
	s.resetSubmitted(&old, touched)
	err := fmt.Errorf("%w: %w", ErrNoSpace, cause)
	for old.len() > 0 {
		f := old.pop()
		for i := range f.recs {
			r := &f.recs[i]
			if r.err == nil && (all || !r.urgent) {
				r.err = err
			}
			if r.err == nil && r.g != nil {
				jump := r.jump
				if cerr := r.g.check(r); cerr != nil || r.jump != jump {
					r.err = err // what it builds on was refused
				} else {
					r.g.submitted(r)
				}
			}
			s.requeue(r)
		}
		s.recycle(f)
	}
	s.stats.refusals++
}

// resetSubmitted puts the groups with pending records back to what was placed.
func (s *Store) resetSubmitted(old *queue, touched map[*Group]bool) {
	old.each(func(f *flight) {
		for i := range f.recs {
			if g := f.recs[i].g; g != nil && !touched[g] {
				touched[g] = true
				g.first, g.last, g.announced = g.log.first, g.log.last, g.log.known
				if g.gone && !g.log.removed && s.groups[g.name] == nil {
					g.gone = false
					s.groups[g.name] = g
				}
				g.mem.reset()
			}
		}
	})
	s.ring.each(func(f *flight) {
		for i := range f.recs {
			r := &f.recs[i]
			if r.err != nil || r.g == nil || !touched[r.g] {
				continue
			}
			switch r.typ {
			case recEntries:
				r.g.mem.push(r.batch, r.seq)
			case recSuffix:
				r.g.mem.cut(r.index)
			}
		}
	})
}

// requeue is enqueue for a record that keeps its number.
func (s *Store) requeue(r *record) {
	f := s.pend.back()
	if f == nil || f.live > 0 && f.bytes+r.size > s.o.MaxBatch {
		f = &flight{}
		s.pend.push(f)
	}
	f.add(r)
}
