package wal

import (
	"fmt"
)

// counters are what the store counts; its mutex guards them.
type counters struct {
	batches, records, bytes, writes, refusals int64
	inFlight                                  int
}

// Stats says what a store has done since it was opened.
type Stats struct {
	Batches     int64 // placed
	Records     int64
	Bytes       int64 // with headers and padding
	Syncs       int64 // completed writes, each with its sync
	Segments    int   // files of the log at present
	MaxInFlight int   // most batches that were under way at once
	Refusals    int64 // times that pending records were refused for want of space
}

// Stats returns what the store has done since it was opened.
func (s *Store) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.stats
	return Stats{
		Batches: c.batches, Records: c.records, Bytes: c.bytes, Syncs: c.writes,
		Segments: len(s.segs), MaxInFlight: c.inFlight, Refusals: c.refusals,
	}
}

// Incarnation is the random number that the directory was given when it was made.
func (s *Store) Incarnation() uint64 { return s.id.store }

// Opening counts how often the directory has been opened.
func (s *Store) Opening() uint64 { return s.id.opening }

// Space returns why new entries should not be submitted: the disk is full, and the space
// left is kept for what must be written even then. It is nil while there is room.
func (s *Store) Space() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.spaceErr == nil || len(s.free) > 1:
		return nil
	case len(s.free) == 1 && s.cur.size-s.off > min(s.o.SegmentSize/4, 4<<20):
		return nil // the current segment has room; with none in reserve it is for what is urgent
	}
	return fmt.Errorf("%w: %w", ErrNoSpace, s.spaceErr)
}
