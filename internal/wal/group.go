package wal

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/graft-raft/graft/internal/entry"
)

// Group is one group's log, term and vote within the store.
//
// What is submitted takes effect for Read at once and is durable when done is
// called with nil. Done functions run exactly once, in the order of submission within the
// store, on the writer's side: they must not block, and so only post. After the
// store began to close they run on the caller's stack.
//
// Invariants: [first, last] is the log as submitted; log is it as placed. mem holds what
// of it may not be durable, in order.
//
// Ownership: any goroutine may use it, but submissions must come from one at a time to have
// an order. The store's mutex guards it.
type Group struct {
	s      *Store
	name   string
	number uint64

	existed   bool
	announced bool // a record that opens it has been submitted
	gone      bool // removed, as submitted
	first     int64
	last      int64
	mem       memLog

	log     groupLog
	cutting int      // truncations and removals placed and not durable
	pin     *segment // where its oldest entry is, by what is durable
}

// Recovered is what the store holds of a group, apart from the entries.
type Recovered struct {
	Hard        HardState
	First, Last int64 // 1 and 0 when empty
	Commit      int64 // a lower bound of the group's commit index
	PrevTerm    int64 // the term of entry First-1 after a prefix truncation
	Runs        []entry.TermRun
	Confs       []entry.ConfMark
	Existed     bool // the store held records of it when it was opened
}

// Recovered describes the group by what was placed in the log so far: right after
// Open, what was found on disk.
func (g *Group) Recovered() Recovered {
	g.s.mu.Lock()
	defer g.s.mu.Unlock()
	l := &g.log
	return Recovered{
		Hard: l.hard, First: l.first, Last: l.last, Commit: l.commit, PrevTerm: l.prevTerm,
		Runs: slices.Clone(l.runs), Confs: slices.Clone(l.confs), Existed: g.existed,
	}
}

// ReplicaName is what a replica's log is called in the store; a process may have several replicas of a group, which
// differ in their index. A group's own name must have no NUL, or else it could be that of another group's replica.
func ReplicaName(group string, index int) string {
	if index == 0 {
		return group
	}
	return group + "\x00" + strconv.Itoa(index)
}

// Name is the group's name.
func (g *Group) Name() string { return g.name }

// Append adds entries at the end: b.First must be one more than the last. commit is a
// lower bound of the commit index to go with them. The batch's bytes must not change any more.
func (g *Group) Append(b entry.Batch, commit int64, done func(error)) {
	r := record{g: g, done: done}
	sum, err := entry.Check(b)
	switch {
	case err != nil:
		r.err = fmt.Errorf("wal: append to %q: %w", g.name, err)
	case b.Count == 0:
		r.err = fmt.Errorf("wal: append to %q: no entries: %w", g.name, ErrOrder)
	case int64(b.Size())+entriesHeadSize > g.s.o.MaxRecord:
		r.err = fmt.Errorf("wal: append of %d bytes to %q: %w", b.Size(), g.name, ErrTooLarge)
	default:
		encodeEntries(&r, g.number, b, sum, commit)
		r.urgent = len(sum.Confs) > 0
	}
	g.s.submit(&r)
}

// TruncateSuffix drops the entries behind last.
func (g *Group) TruncateSuffix(last int64, done func(error)) {
	r := record{g: g, done: done, index: last}
	encodeNumbers(&r, recSuffix, g.number, uint64(last))
	g.s.submit(&r)
}

// TruncatePrefix drops the entries before first; prevTerm is the term of entry
// first-1. If first lies behind the last entry, the log is empty and goes on there.
func (g *Group) TruncatePrefix(first, prevTerm int64, done func(error)) {
	r := record{g: g, done: done, index: first, prevTerm: prevTerm}
	encodeNumbers(&r, recPrefix, g.number, uint64(first), uint64(prevTerm))
	g.s.submit(&r)
}

// SaveHardState replaces the hard state.
func (g *Group) SaveHardState(h HardState, commit int64, done func(error)) {
	r := record{g: g, done: done}
	switch {
	case len(h.Vote) > maxString:
		r.err = fmt.Errorf("wal: vote of %d bytes: %w", len(h.Vote), ErrTooLarge)
	case len(h.Override.Conf) > maxOverride:
		r.err = fmt.Errorf("wal: configuration override of %d bytes: %w", len(h.Override.Conf), ErrTooLarge)
	default:
		encodeState(&r, g.number, commit, 0, &extra{hard: h, name: g.name})
	}
	g.s.submit(&r)
}

// Remove deletes the group and all of it. A group of the same name may be opened
// at once and has nothing in common with it.
func (g *Group) Remove(done func(error)) {
	r := record{g: g, done: done}
	encodeNumbers(&r, recRemove, g.number)
	g.s.submit(&r)
}

// check judges an operation by the log as submitted. The caller holds mu.
func (g *Group) check(r *record) error {
	if g.gone {
		return fmt.Errorf("wal: group %q: %w", g.name, ErrRemoved)
	}
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("wal: group %q holds [%d,%d]: "+format+": %w",
			append(append([]any{g.name, g.first, g.last}, args...), ErrOrder)...)
	}
	switch r.typ {
	case recEntries:
		if r.batch.First != g.last+1 {
			return refuse("append from %d", r.batch.First)
		}
	case recSuffix:
		if r.index > g.last || r.index < g.first-1 {
			return refuse("truncation behind %d", r.index)
		}
	case recPrefix:
		if r.index < g.first {
			return refuse("truncation before %d", r.index)
		}
		r.jump = r.index > g.last+1
	}
	return nil
}

// submitted updates the log as submitted. The caller holds mu.
func (g *Group) submitted(r *record) {
	switch r.typ {
	case recEntries:
		g.last = r.batch.Last()
		g.mem.push(r.batch, r.seq)
	case recState:
		g.announced = true
	case recSuffix:
		g.last = r.index
		g.mem.cut(r.index)
	case recPrefix:
		g.first = r.index
		g.last = max(g.last, g.first-1)
	case recRemove:
		g.gone = true
		delete(g.s.groups, g.name)
	}
}

// placed carries the record out on the log as placed. The caller holds mu.
func (g *Group) placed(r *record, pos uint64) error {
	if r.typ == recSuffix || r.typ == recPrefix || r.typ == recRemove {
		g.cutting++
	}
	return g.log.apply(r, pos)
}

// landed says that the record is durable. The caller holds mu.
func (g *Group) landed(r *record) {
	switch r.typ {
	case recEntries:
		g.mem.drop(r.seq)
		if g.pin == nil {
			g.repin()
		}
	case recSuffix, recPrefix, recRemove:
		g.cutting--
		if g.cutting == 0 {
			g.repin()
		}
	}
}

// repin moves the group's pin to the segment of its oldest entry. It must not run while a
// truncation is placed and not durable: the index is ahead of the disk then.
func (g *Group) repin() {
	if g.cutting > 0 {
		return
	}
	var pin *segment
	if i := g.log.idx.find(g.log.first); i >= 0 && g.log.last >= g.log.first {
		pin = g.s.segmentOf(g.log.idx.points[i].pos)
	}
	if g.pin == pin {
		return
	}
	if g.pin != nil {
		g.pin.pins--
	}
	if pin != nil {
		pin.pins++
	}
	g.pin = pin
}
