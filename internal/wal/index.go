package wal

import (
	"slices"
	"sort"
)

// point says that a batch holds a record with entry first.
type point struct {
	first int64
	pos   uint64 // of the batch
}

const (
	pointEntries  = 4        // a point need not be nearer to the one before than this,
	pointDistance = 64 << 10 // unless this much of the log lies between
)

// index finds the batches that hold a group's entries.
//
// The entries [points[i].first, points[i+1].first) are those that result from
// replaying the group's records from the beginning of the batch at points[i].pos on:
// all of them are found within pointDistance, in the same segment.
//
// Invariants: first and pos of the points do not decrease, first increases. After
// a suffix truncation the next entries get a point of their own.
//
// Ownership: its groupLog's.
type index struct {
	points []point
	fresh  bool // the next entries need a point
}

func (x *index) add(first int64, pos uint64) {
	if n := len(x.points); n > 0 && !x.fresh {
		last := x.points[n-1]
		near := pos>>32 == last.pos>>32 && pos-last.pos <= pointDistance
		if pos == last.pos || near && first-last.first < pointEntries {
			return
		}
	}
	x.fresh = false
	x.points = append(x.points, point{first, pos})
}

// cutSuffix forgets the entries behind last.
func (x *index) cutSuffix(last int64) {
	n := sort.Search(len(x.points), func(i int) bool { return x.points[i].first > last })
	x.points = x.points[:n]
	x.fresh = true
}

// cutPrefix forgets what is not needed to find the entries from first on.
func (x *index) cutPrefix(first int64) {
	if i := x.find(first); i > 0 {
		x.points = slices.Clip(slices.Delete(x.points, 0, i))
	}
}

// find returns the last point at or before the entry, -1 if there is none.
func (x *index) find(at int64) int {
	return sort.Search(len(x.points), func(i int) bool { return x.points[i].first > at }) - 1
}

func (x *index) reset() { x.points, x.fresh = nil, false }
