package wal

import (
	"errors"
	"fmt"

	"github.com/graft-raft/graft/internal/vfs"
)

// Shutdown begins to close the store and returns at once. What was submitted is
// written and delivered first; then the end is marked durably, unless the store is
// poisoned, and done is called, on an actor of the store. Only the first call counts.
func (s *Store) Shutdown(done func(error)) {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return
	}
	s.closing = true
	s.onClosed = done
	s.unlockAndWake()
}

// Close is Shutdown that waits. It must not be called from a done function.
// Closing again waits for the first time and returns the same error.
func (s *Store) Close() error {
	s.Shutdown(nil)
	for _, l := range s.lanes {
		<-l.a.Done()
	}
	<-s.keeper.a.Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closeErr
}

// ended says that the last write was done: the actors are told to leave.
func (s *Store) ended(err error) {
	s.mu.Lock()
	s.exclusive = false
	s.busy--
	if err != nil {
		s.poison(err)
	}
	if s.err != nil {
		s.closeErr = s.err
	}
	s.closed = true
	s.working = len(s.lanes) + 1
	s.mu.Unlock()
	for _, l := range s.lanes {
		l.a.Post(laneQuit)
		l.a.Close()
	}
	s.keeper.a.Post(keepQuit)
	s.keeper.a.Close()
}

// leave says that an actor is through. The last one closes what is open.
func (s *Store) leave(err error) {
	s.mu.Lock()
	if s.closeErr == nil {
		s.closeErr = err
	}
	s.working--
	if s.working > 0 {
		s.mu.Unlock()
		return
	}
	var files []vfs.File
	for _, list := range [][]*segment{s.segs, s.free, s.keeper.retired} {
		for _, seg := range list {
			seg.dead = true
			if seg.refs == 0 && seg.file != nil {
				files = append(files, seg.file)
				seg.file = nil
			}
		}
	}
	done := s.onClosed
	s.mu.Unlock()

	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	errs = append(errs, s.lock.Close())
	s.mu.Lock()
	if joined := errors.Join(errs...); joined != nil && s.closeErr == nil {
		s.closeErr = fmt.Errorf("wal: close: %w", joined)
	}
	err = s.closeErr
	s.mu.Unlock()
	if done != nil {
		done(err)
	}
}
