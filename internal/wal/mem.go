package wal

import "github.com/graft-raft/graft/internal/entry"

// memBatch is an appended batch that is not durable yet.
type memBatch struct {
	batch entry.Batch
	keep  int64 // the last entry that was not truncated since
	seq   uint64
}

// memLog holds a group's entries from their submission until they are durable.
//
// Invariants: the visible parts [First, keep] are consecutive and ascending.
//
// Ownership: its group's.
type memLog struct {
	items []memBatch
	head  int
}

// keepMem is how much of an empty memLog's memory is kept, in batches.
const keepMem = 8

func (m *memLog) visible() []memBatch { return m.items[m.head:] }

func (m *memLog) push(b entry.Batch, seq uint64) {
	if m.head > 0 && len(m.items) == cap(m.items) {
		n := copy(m.items, m.items[m.head:])
		clear(m.items[n:])
		m.items, m.head = m.items[:n], 0
	}
	m.items = append(m.items, memBatch{batch: b, keep: b.Last(), seq: seq})
}

// drop removes the oldest batch if it is the one of the given record.
func (m *memLog) drop(seq uint64) {
	if m.head == len(m.items) || m.items[m.head].seq != seq {
		return // a truncation hid it
	}
	m.items[m.head] = memBatch{}
	m.head++
	if m.head < len(m.items) {
		return
	}
	m.items, m.head = m.items[:0], 0
	if cap(m.items) > keepMem {
		m.items = nil
	}
}

// cut hides what lies behind last.
func (m *memLog) cut(last int64) {
	n := len(m.items)
	for n > m.head && m.items[n-1].batch.First > last {
		n--
	}
	clear(m.items[n:])
	m.items = m.items[:n]
	if n > m.head {
		m.items[n-1].keep = min(m.items[n-1].keep, last)
	}
}

func (m *memLog) reset() { *m = memLog{} }
