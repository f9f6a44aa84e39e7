package wal

// flight is a batch on its way: it gathers records, is placed in the log, written,
// synced and delivered.
//
// Invariants: bytes, sum, live and urgent describe the records without err. Once
// placed nothing but landed, orphan and err changes.
//
// Ownership: the store's mutex guards it; a lane that was given a placed one may read all
// but the last three fields without it.
type flight struct {
	recs   []record
	raw    []byte // the encoded records of a first batch, in place of recs
	live   int    // records to be written
	bytes  int    // their size
	sum    uint32 // CRC of their CRCs
	normal int    // how many of them may not use the last segment

	kind batchKind
	seg  *segment
	off  int64
	size int64 // with header and zeros
	head [batchHeadSize]byte
	crc  uint32 // of the batch

	landed bool // written and synced, or not to be
	orphan bool // given up by the store while a lane still works on it
	err    error
}

// add gathers one more record.
func (f *flight) add(r *record) {
	f.recs = append(f.recs, *r)
	if r.err != nil {
		return
	}
	f.live++
	f.bytes += r.size
	f.sum = crcMore(f.sum, r.fixed[:4])
	if !r.urgent {
		f.normal++
	}
}

// need is the space it takes in a segment.
func (f *flight) need() int64 { return align(int64(batchHeadSize + f.bytes)) }

// reset makes f usable again without its references.
func (f *flight) reset() {
	clear(f.recs)
	*f = flight{recs: f.recs[:0]}
}

// queue is a FIFO of flights.
//
// Invariants: items[head:] are the queued ones; those before are nil.
type queue struct {
	items []*flight
	head  int
}

func (q *queue) len() int { return len(q.items) - q.head }

func (q *queue) push(f *flight) { q.items = append(q.items, f) }

func (q *queue) front() *flight {
	if q.len() == 0 {
		return nil
	}
	return q.items[q.head]
}

func (q *queue) back() *flight {
	if q.len() == 0 {
		return nil
	}
	return q.items[len(q.items)-1]
}

func (q *queue) pop() *flight {
	f := q.items[q.head]
	q.items[q.head] = nil
	q.head++
	switch {
	case q.head == len(q.items):
		q.items, q.head = q.items[:0], 0
	case q.head >= 64 && q.head*2 >= len(q.items): // keep a queue that never runs empty from creeping
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	return f
}

// each calls visit with all flights, oldest first.
func (q *queue) each(visit func(f *flight)) {
	for _, f := range q.items[q.head:] {
		visit(f)
	}
}
