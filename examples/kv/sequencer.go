package main

import "sync"

// sequencer keeps reads and writes of one connection in order, though neither waits for its own kind: a read sees
// the writes that were sent before it, and none of those that were sent after.
//
// Writes are ordered by the log. A read is carried out when its read index is confirmed and the writes before it
// are settled; a write is not proposed before the reads before it are carried out.
//
// Invariant: all writes under way were sent before all reads under way.
//
// Ownership: the connection's reader begins, anybody ends. mu is a leaf lock; reads run without it.
type sequencer struct {
	mu     sync.Mutex
	clear  sync.Cond // the connection's reader waits: no read is under way
	writes int
	reads  int
	ready  []func() // confirmed reads that wait for writes
	closed bool
}

func newSequencer() *sequencer {
	s := &sequencer{}
	s.clear.L = &s.mu
	return s
}

// beginWrite waits for the reads under way; false means that the client is gone.
func (s *sequencer) beginWrite() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.reads > 0 && !s.closed {
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
	s.writes--
	var ready []func()
	if s.writes == 0 {
		ready, s.ready = s.ready, nil
	}
	s.mu.Unlock()
	for _, run := range ready {
		run()
	}
}

func (s *sequencer) beginRead() {
	s.mu.Lock()
	s.reads++
	s.mu.Unlock()
}

// confirm runs a read that may be carried out as soon as the writes before it are settled.
func (s *sequencer) confirm(run func()) {
	s.mu.Lock()
	if s.writes > 0 {
		s.ready = append(s.ready, run)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	run()
}

// endRead says that a read was carried out, or has failed.
func (s *sequencer) endRead() {
	s.mu.Lock()
	s.reads--
	if s.reads == 0 {
		s.clear.Signal()
	}
	s.mu.Unlock()
}

// close lets nobody wait any more.
func (s *sequencer) close() {
	s.mu.Lock()
	s.closed = true
	s.clear.Signal()
	s.mu.Unlock()
}
