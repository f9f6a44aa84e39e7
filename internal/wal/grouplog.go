package wal

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/graft-raft/graft/internal/entry"
)

// groupLog is a group as the records placed so far say. Recovery and writing
// apply the same records in the same order and so come to the same state.
//
// Invariants: last >= first-1. runs and confs describe entries within [first,
// last] only; during a recovery that begins behind first, those seen so far.
//
// Ownership: the store's mutex guards it, or recovery owns it.
type groupLog struct {
	number   uint64
	name     string
	known    bool // a state record has opened it
	removed  bool
	hard     HardState
	first    int64
	last     int64
	prevTerm int64 // of entry first-1 after a prefix truncation
	commit   int64
	runs     []entry.TermRun
	confs    []entry.ConfMark
	idx      index
}

// apply carries a record out. An error means that the record does not follow the
// others, which only a damaged log can cause: what is written was checked.
func (l *groupLog) apply(r *record, pos uint64) error {
	if l.removed || !l.known && r.typ != recState {
		return fmt.Errorf("record of type %d for group %d, which is not open", r.typ, l.number)
	}
	switch r.typ {
	case recEntries:
		return l.append(r, pos)
	case recState:
		return l.state(r)
	case recSuffix:
		if r.index > l.last || r.index < l.first-1 {
			return fmt.Errorf("group %q: truncation behind %d of [%d,%d]", l.name, r.index, l.first, l.last)
		}
		l.cutSuffix(r.index)
	case recPrefix:
		if r.index < l.first {
			return fmt.Errorf("group %q: truncation before %d of [%d,%d]", l.name, r.index, l.first, l.last)
		}
		l.cutPrefix(r.index, r.prevTerm)
	case recRemove:
		l.removed = true
		l.idx.reset()
	}
	return nil
}

func (l *groupLog) append(r *record, pos uint64) error {
	b := r.batch
	if b.First != l.last+1 {
		return fmt.Errorf("group %q: entries from %d after %d", l.name, b.First, l.last)
	}
	var x extra
	if r.extra != nil {
		x = *r.extra
	}
	if n := len(l.runs); n == 0 || l.runs[n-1].Term != r.firstTerm {
		l.runs = append(l.runs, entry.TermRun{First: b.First, Term: r.firstTerm})
	}
	if len(x.runs) > 1 {
		l.runs = append(l.runs, x.runs[1:]...)
	}
	for _, c := range x.confs { // the mark outlives the batch
		l.confs = append(l.confs, entry.ConfMark{Index: c.Index, Meta: bytes.Clone(c.Meta)})
	}
	l.last = b.Last()
	l.commit = max(l.commit, r.commit)
	l.idx.add(b.First, pos)
	return nil
}

func (l *groupLog) state(r *record) error {
	x := r.extra
	switch {
	case l.known && l.name != x.name:
		return fmt.Errorf("group %d is %q and %q", l.number, l.name, x.name)
	case l.known && x.bounds && (x.first != l.first || x.last != l.last):
		return fmt.Errorf("group %q: has entries [%d,%d] where a checkpoint says [%d,%d]", l.name, l.first, l.last, x.first, x.last)
	case l.known && x.bounds && (x.hard != l.hard):
		return fmt.Errorf("group %q: has hard state %+v where a checkpoint says %+v", l.name, l.hard, x.hard)
	case !l.known:
		l.known, l.name, l.first, l.last = true, x.name, 1, 0
		if x.bounds {
			l.first, l.last, l.prevTerm = x.first, x.last, r.prevTerm
		}
	}
	l.hard = x.hard
	l.commit = max(l.commit, r.commit)
	return nil
}

func (l *groupLog) cutSuffix(last int64) {
	l.last = last
	l.idx.cutSuffix(last)
	if last < l.first { // the points left are of dead entries, whose segments may go
		l.idx.reset()
	}
	for n := len(l.runs); n > 0 && l.runs[n-1].First > last; n-- {
		l.runs = l.runs[:n-1]
	}
	for n := len(l.confs); n > 0 && l.confs[n-1].Index > last; n-- {
		l.confs = l.confs[:n-1]
	}
}

func (l *groupLog) cutPrefix(first, prevTerm int64) {
	l.first, l.prevTerm = first, prevTerm
	if first > l.last {
		l.last = first - 1
		l.runs, l.confs = nil, nil
		l.idx.reset()
		return
	}
	l.idx.cutPrefix(first)
	n := 0
	for n+1 < len(l.runs) && l.runs[n+1].First <= first {
		n++
	}
	l.runs = slices.Delete(l.runs, 0, n)
	if len(l.runs) > 0 {
		l.runs[0].First = max(l.runs[0].First, first)
	}
	n = 0
	for n < len(l.confs) && l.confs[n].Index < first {
		n++
	}
	l.confs = slices.Delete(l.confs, 0, n)
}

// covered reports whether the index reaches down to the first entry.
func (l *groupLog) covered() bool {
	return l.first > l.last || len(l.idx.points) > 0 && l.idx.points[0].first <= l.first
}

// checkpoint makes the state record that opens the group in a new segment.
func (l *groupLog) checkpoint(r *record) {
	encodeState(r, l.number, l.commit, l.prevTerm, &extra{
		hard: l.hard, name: l.name, bounds: true, first: l.first, last: l.last,
	})
}
