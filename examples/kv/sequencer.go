package main

import "sync"

// sequencer keeps reads and writes of one connection in order, though neither waits for its own kind: a read sees
// the writes that were sent before it, and none of those that were sent after.
//
// Writes are ordered by the log. Reads are carried out one after the other, in the order they were sent in, each when
// its read index is confirmed and the writes before it are settled; a write is not proposed before the reads before it
// are carried out.
//
// Invariant: all writes under way were sent before all reads under way.
//
// Ownership: the connection's reader begins, its querier takes reads and ends them, anybody confirms reads and ends
// writes. mu is a leaf lock; reads run without it.
type sequencer struct {
	mu      sync.Mutex
	clear   sync.Cond // the connection's reader waits: no read is under way
	due     sync.Cond // the querier waits: the oldest read can be carried out
	writes  int
	reads   []*read // that the querier has not taken, oldest first
	running int     // reads that it has taken
	closed  bool
}

func newSequencer() *sequencer {
	s := &sequencer{}
	s.clear.L, s.due.L = &s.mu, &s.mu
	return s
}

// beginWrite waits for the reads under way; false means that the client is gone.
func (s *sequencer) beginWrite() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for (len(s.reads) > 0 || s.running > 0) && !s.closed {
		s.clear.Wait()
	}
	if s.closed {
		return false
	}
	s.writes++
	return true
}

// endWrite says that a write is settled.
func (s *sequencer) endWrite() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes--
	s.wake()
}

func (s *sequencer) beginRead(r *read) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, r)
}

// confirm says that a read may be carried out, or why it must not. It does not wait for that.
func (s *sequencer) confirm(r *read, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.confirmed, r.err = true, err
	s.wake()
}

// next says that the reads taken last are carried out, and waits for more. ok is false when the client is gone.
func (s *sequencer) next(dst []*read) (reads []*read, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = 0
	if len(s.reads) == 0 {
		s.clear.Signal()
	}
	for !s.closed && !s.ready() {
		s.due.Wait()
	}
	if s.closed {
		return nil, false
	}
	for s.ready() {
		dst = append(dst, s.reads[0])
		s.reads[0] = nil
		s.reads = s.reads[1:]
	}
	s.running = len(dst)
	return dst, true
}

// ready reports whether the oldest read can be carried out.
func (s *sequencer) ready() bool { return s.writes == 0 && len(s.reads) > 0 && s.reads[0].confirmed }

func (s *sequencer) wake() {
	if s.ready() {
		s.due.Signal()
	}
}

// close lets nobody wait any more.
func (s *sequencer) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.reads = nil
	s.clear.Signal()
	s.due.Signal()
}
