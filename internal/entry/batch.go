// Package entry holds log entries in the one encoding they have everywhere: the
// bytes a leader builds go to its disk, to every follower and to the followers'
// disks unchanged.
//
// The package is pure: it works on bytes and numbers and touches nothing else.
package entry

// Type says what an entry is for. The numbers are braft's and go over the wire.
type Type int32

// The types an entry can have. Unknown is never valid in a log.
const (
	Unknown       Type = 0
	NoOp          Type = 1
	Data          Type = 2
	Configuration Type = 3
)

// String returns braft's name of the type.
func (t Type) String() string {
	switch t {
	case NoOp:
		return "NO_OP"
	case Data:
		return "DATA"
	case Configuration:
		return "CONFIGURATION"
	}
	return "UNKNOWN"
}

// Batch is a run of log entries with consecutive indexes, encoded once: the same
// bytes go to disk and to every follower.
//
// Invariants, of a batch from a Builder or one that Check accepted: Metas holds
// Count records; the payload lengths they name add up to len(Data).
//
// Ownership: the bytes are immutable from the moment the batch exists, because
// batches cut from it, the log and requests in flight share them.
type Batch struct {
	First int64  // index of the first entry
	Count int    // number of entries
	Metas []byte // braft EntryMeta records, each as field 7 of AppendEntriesRequest, back to back
	Data  []byte // the payloads, back to back
}

// Last returns the index of the last entry, First-1 if there is none.
func (b Batch) Last() int64 { return b.First + int64(b.Count) - 1 }

// Size returns the number of bytes the entries take, payloads included.
func (b Batch) Size() int { return len(b.Metas) + len(b.Data) }

// From returns the entries from index to the last, sharing memory. An index
// outside [First, Last+1] means the nearest one inside.
func (b Batch) From(index int64) Batch {
	if index <= b.First {
		return b
	}
	n := min(index-b.First, int64(b.Count))
	metas, data := b.offsets(int(n))
	return Batch{
		First: b.First + n,
		Count: b.Count - int(n),
		Metas: b.Metas[metas:],
		Data:  b.Data[data:],
	}
}

// Upto returns the entries from the first to index, sharing memory. An index
// outside [First-1, Last] means the nearest one inside.
func (b Batch) Upto(index int64) Batch {
	if index >= b.Last() {
		return b
	}
	n := max(index-b.First+1, 0)
	metas, data := b.offsets(int(n))
	// The capacity ends with the content: an append can not reach the entries behind.
	return Batch{
		First: b.First,
		Count: int(n),
		Metas: b.Metas[:metas:metas],
		Data:  b.Data[:data:data],
	}
}

// Clone returns the entries in memory of their own.
func (b Batch) Clone() Batch {
	own := append(append(make([]byte, 0, b.Size()), b.Metas...), b.Data...)
	n := len(b.Metas)
	b.Metas, b.Data = own[:n:n], own[n:]
	return b
}

// offsets returns where the n-th entry begins in Metas and in Data.
func (b Batch) offsets(n int) (metas, data int) {
	if n == b.Count {
		return len(b.Metas), len(b.Data)
	}
	it := b.Iter()
	for range n {
		if !it.skip() {
			break
		}
	}
	return it.meta, it.data
}

// Entry is one log entry, a view into its batch.
type Entry struct {
	Index int64
	Term  int64
	Type  Type
	Data  []byte // the payload; empty for a configuration
	Meta  []byte // the raw EntryMeta message, for ConfPeers
}

// Iter returns the entries one after the other.
func (b Batch) Iter() Iter {
	return Iter{metas: b.Metas, datas: b.Data, index: b.First}
}

// Iter walks over a batch. It stops early at bytes that are not a record, or at a
// payload that is cut short, and so is safe on any bytes; whether the whole batch
// is well-formed is for Check to say.
type Iter struct {
	metas, datas []byte
	meta, data   int   // offsets of the next entry in metas and datas
	index        int64 // of the next entry
}

// Next returns the next entry, or false at the end. It does not allocate.
func (it *Iter) Next() (Entry, bool) {
	start, first := it.meta, it.data
	m, end, ok := scan(it.metas, start)
	if !ok || m.dataLen > uint64(len(it.datas)-first) {
		return Entry{}, false
	}
	it.meta, it.data = end, first+int(m.dataLen)
	it.index++
	return Entry{
		Index: it.index - 1,
		Term:  m.term,
		Type:  m.typ,
		Data:  it.datas[first:it.data:it.data],
		Meta:  it.metas[end-m.size : end : end],
	}, true
}

// skip is Next without the entry.
func (it *Iter) skip() bool {
	m, end, ok := scan(it.metas, it.meta)
	if !ok || m.dataLen > uint64(len(it.datas)-it.data) {
		return false
	}
	it.meta, it.data = end, it.data+int(m.dataLen)
	it.index++
	return true
}
