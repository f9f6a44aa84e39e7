package snapdir

import "slices"

// span is the range [lo, hi).
type span struct{ lo, hi int64 }

// spans is a set of ranges.
//
// Invariants: sorted, not empty each, and apart from each other.
//
// Ownership: its holder's.
type spans []span

// add takes a range in and returns those parts of it that were not there.
func (s *spans) add(lo, hi int64) []span {
	fresh := s.gaps(lo, hi)
	if len(fresh) == 0 {
		return nil
	}
	from, to := s.touching(lo, hi)
	if from < to {
		lo, hi = min(lo, (*s)[from].lo), max(hi, (*s)[to-1].hi)
	}
	*s = slices.Replace(*s, from, to, span{lo, hi})
	return fresh
}

// remove takes a range out.
func (s *spans) remove(lo, hi int64) {
	if lo >= hi {
		return
	}
	from, to := s.touching(lo, hi)
	var rest []span
	for _, p := range (*s)[from:to] {
		if p.lo < lo {
			rest = append(rest, span{p.lo, lo})
		}
		if p.hi > hi {
			rest = append(rest, span{max(p.lo, hi), p.hi})
		} else if p.lo >= hi {
			rest = append(rest, p)
		}
	}
	// A span that only touches lo is kept whole by the first case above.
	*s = slices.Replace(*s, from, to, rest...)
}

// gaps returns what of a range is not in the set.
func (s *spans) gaps(lo, hi int64) []span {
	var gaps []span
	from, to := s.touching(lo, hi)
	for _, p := range (*s)[from:to] {
		if lo < p.lo {
			gaps = append(gaps, span{lo, min(p.lo, hi)})
		}
		lo = max(lo, p.hi)
	}
	if lo < hi {
		gaps = append(gaps, span{lo, hi})
	}
	return gaps
}

// touching returns which elements overlap a range or adjoin it.
func (s *spans) touching(lo, hi int64) (from, to int) {
	from, _ = slices.BinarySearchFunc(*s, lo, func(p span, lo int64) int {
		if p.hi < lo {
			return -1
		}
		return 1
	})
	for to = from; to < len(*s) && (*s)[to].lo <= hi; to++ {
	}
	return from, to
}
