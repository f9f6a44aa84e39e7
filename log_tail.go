package graft

import (
	"sync/atomic"

	"github.com/graft-raft/graft/internal/entry"
)

// logTail is how much of the log is not durable on this node, which all is in memory. Others may have committed it, and the
// state machine have applied it, long before the node's own disk has come so far.
//
// Ownership: the log manager's lock guards changes; any goroutine may load it.
type logTail struct{ entries, bytes atomic.Int64 }

// load returns how much it is. The bytes are those of payloads, as proposals are counted.
func (t *logTail) load() (entries, bytes int64) { return t.entries.Load(), t.bytes.Load() }

// grown counts a batch in. The caller holds the log's lock.
func (t *logTail) grown(b entry.Batch) {
	t.entries.Add(int64(b.Count))
	t.bytes.Add(int64(len(b.Data)))
}

// shrunk counts a batch out that is durable. The caller holds the log's lock.
func (t *logTail) shrunk(b entry.Batch) {
	t.entries.Add(int64(-b.Count))
	t.bytes.Add(int64(-len(b.Data)))
}

// recount makes the tail the batches behind durable. The caller holds the log's lock.
func (t *logTail) recount(cache []entry.Batch, durable int64) {
	t.entries.Store(0)
	t.bytes.Store(0)
	for i := len(cache) - 1; i >= 0 && cache[i].Last() > durable; i-- {
		t.grown(cache[i].From(durable + 1))
	}
}
