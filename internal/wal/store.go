package wal

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Store is the log of all groups of one process.
//
// Invariants: records are placed in the order of submission; a batch is placed
// once every batch of the segment before is durable; flights are delivered in the
// order in which they were placed; after err is set none is delivered as durable.
//
// Ownership: any goroutine may use it. mu is a leaf lock: I/O and done functions run
// without it.
type Store struct {
	o      Options
	id     identity
	lock   io.Closer
	lanes  []*lane
	keeper *keeper

	mu     sync.Mutex // guards the fields below, groups, flights and segments
	groups map[string]*Group
	order  []*Group // by number; removed ones are dropped at the next checkpoint
	number uint64   // of the next group
	seq    uint64   // of the last record submitted

	pend  queue // gathering, not placed yet
	ring  queue // placed, not delivered yet
	spare []*flight
	idle  []*lane

	cur     *segment
	off     int64  // where the next batch goes
	prevCRC uint32 // of the batch before
	durable uint64 // every batch that begins before this is durable
	marked  uint64 // the greatest mark that was written
	segs    []*segment
	free    []*segment // prepared for use, by number
	floor   uint64     // the oldest segment of the log

	busy       int  // lanes with a flight
	exclusive  bool // a lane grows a segment or writes a mark: nothing is placed
	delivering bool
	waiting    bool      // a flight waits for the keeper to prepare a segment
	idleSince  time.Time // when the last lane became idle
	spaceErr   error     // why the keeper cannot make a segment
	err        error     // poisoned
	closing    bool
	closed     bool
	closeErr   error
	working    int // actors that have not left yet
	onClosed   func(error)

	stats counters
}

// Err returns the reason why the store is poisoned, nil while it is not.
func (s *Store) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// submit queues a record. The caller has set everything but seq; check judges it by
// what was submitted before.
func (s *Store) submit(r *record) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		r.finish(ErrClosed) // the lanes may have stopped already
		return
	}
	if g := r.g; g != nil && r.err == nil {
		if r.err = g.check(r); r.err == nil {
			if !g.announced && r.typ != recState {
				s.announce(g)
			}
			s.enqueue(r)
			g.submitted(r)
			s.unlockAndWake()
			return
		}
	}
	s.enqueue(r)
	s.unlockAndWake()
}

// announce queues the record that opens a group. The caller holds mu.
func (s *Store) announce(g *Group) {
	var r record
	encodeState(&r, g.number, 0, 0, &extra{name: g.name})
	r.g = g
	s.enqueue(&r)
	g.announced = true
}

// enqueue adds a record to the last flight, or to a new one. The caller holds mu.
func (s *Store) enqueue(r *record) {
	s.seq++
	r.seq = s.seq
	f := s.pend.back()
	if f == nil || f.live > 0 && f.bytes+r.size > s.o.MaxBatch {
		f = s.newFlight()
		s.pend.push(f)
	}
	f.add(r)
}

func (s *Store) newFlight() *flight {
	if n := len(s.spare); n > 0 {
		f := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return f
	}
	return &flight{}
}

// recycle keeps a flight for reuse. The caller holds mu.
func (s *Store) recycle(f *flight) {
	if cap(f.recs) <= 1<<12 && len(s.spare) < 8 {
		f.reset()
		s.spare = append(s.spare, f)
	}
}

// unlockAndWake releases mu and starts a lane if one should run.
func (s *Store) unlockAndWake() {
	l := s.takeLane()
	s.mu.Unlock()
	if l != nil {
		l.a.Post(laneGo)
	}
}

// takeLane picks the lane to start for what is pending, if any. The first one starts at once, so
// that a lone record waits for nothing. A further one is worth its sync, which slows
// down those under way, only if enough has gathered. The caller holds mu.
func (s *Store) takeLane() *lane {
	n := len(s.idle)
	if n == 0 || s.exclusive {
		return nil
	}
	front := s.pend.front()
	switch {
	case s.busy == 0:
		// The keeper may have poisoned the store while all lanes were idle.
		undelivered := s.ring.len() > 0 && s.ring.front().landed && !s.delivering
		if front == nil && !s.closing && !undelivered {
			return nil
		}
	case front == nil || s.pend.len() == 1 && front.bytes < s.o.OverlapBytes && front.live > 0:
		return nil
	}
	l := s.idle[n-1]
	s.idle = s.idle[:n-1]
	s.busy++
	return l
}

// poison stops the store for good. The flights on their way and all that are
// pending are delivered as failed, in order. The caller holds mu.
func (s *Store) poison(cause error) {
	if s.err != nil {
		return
	}
	s.err = poisoned(cause)
	s.spaceErr = nil // it is not for want of space that nothing is written any more
	s.ring.each(func(f *flight) {
		if !f.landed {
			f.orphan, f.landed = true, true
		}
		f.err = s.err
	})
	s.failPending()
}

// failPending makes everything that is pending part of what is to be delivered as
// failed. The caller holds mu.
func (s *Store) failPending() {
	for s.pend.len() > 0 {
		f := s.pend.pop()
		f.err, f.landed = s.err, true
		s.ring.push(f)
	}
}

// finish runs done.
func (r *record) finish(err error) {
	if r.done != nil {
		r.done(err)
	}
}

// Group opens the group with the given name, or makes an empty one. It does no
// I/O: a new group exists on disk from its first record on.
func (s *Store) Group(name string) (*Group, error) {
	if name == "" || len(name) > maxString {
		return nil, fmt.Errorf("wal: group name of %d bytes: %w", len(name), ErrTooLarge)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, ErrClosed
	}
	g := s.groups[name]
	if g == nil {
		g = &Group{s: s, name: name, number: s.number}
		g.log = groupLog{number: s.number, name: name, first: 1}
		g.first = 1
		s.number++
		s.groups[name] = g
		s.order = append(s.order, g)
	}
	return g, nil
}

// Groups lists the groups that exist, on disk or not, in the order of their making.
func (s *Store) Groups() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.groups))
	for _, g := range s.order {
		if !g.gone {
			names = append(names, g.name)
		}
	}
	return names
}
