package wal

import (
	"fmt"
	"io"
	"sort"

	"github.com/graft-raft/graft/internal/entry"
)

// Read returns entries from first on: at least one, and at most maxBytes of them unless
// those that were written together are larger. They come from memory if they may not be
// durable yet, else from disk, where their CRCs are verified. None of them was truncated
// when Read was called. Nobody writes to the bytes any more.
func (g *Group) Read(first int64, maxBytes int) (entry.Batch, error) {
	s := g.s
	s.mu.Lock()
	b, q, err := g.locate(first)
	s.mu.Unlock()
	if err != nil || q == nil {
		return b, err
	}
	file, err := s.acquire(q.seg)
	if err == nil {
		b, err = q.run(file, maxBytes)
	}
	if err = s.letGo(q.seg, err); err != nil {
		return entry.Batch{}, err
	}
	return b, nil
}

// locate returns the entries that memory holds from first on, or how to read them from
// disk. The caller holds mu.
func (g *Group) locate(first int64) (entry.Batch, *query, error) {
	switch {
	case g.s.closed:
		return entry.Batch{}, nil, ErrClosed
	case g.gone:
		return entry.Batch{}, nil, fmt.Errorf("wal: group %q: %w", g.name, ErrRemoved)
	case first < g.first:
		return entry.Batch{}, nil, fmt.Errorf("wal: group %q: entry %d, the first is %d: %w", g.name, first, g.first, ErrCompacted)
	case first > g.last:
		return entry.Batch{}, nil, fmt.Errorf("wal: group %q: entry %d, the last is %d: %w", g.name, first, g.last, ErrOrder)
	}
	last := g.last
	if mem := g.mem.visible(); len(mem) > 0 {
		i := sort.Search(len(mem), func(i int) bool { return mem[i].keep >= first })
		if i < len(mem) && first >= mem[i].batch.First {
			return mem[i].batch.Upto(mem[i].keep).From(first), nil, nil
		}
		last = mem[0].batch.First - 1
	}
	q, err := g.plan(first, last)
	return entry.Batch{}, q, err
}

// query is a read from disk: the entries [first, last], from the batch at off on.
type query struct {
	number      uint64
	seg         *segment
	path        string
	inc         uint64
	off, end    int64
	first, last int64
	points      []point // the index from there on
}

// maxPoints bounds how much of the index a query takes along.
const maxPoints = 1 << 10

// plan says where the entries are, and keeps their segment. The caller holds mu.
func (g *Group) plan(first, last int64) (*query, error) {
	points := g.log.idx.points
	i := g.log.idx.find(first)
	if i < 0 {
		return nil, fmt.Errorf("wal: group %q: entry %d is not in the index", g.name, first)
	}
	if i+maxPoints < len(points) {
		last = min(last, points[i+maxPoints].first-1)
		points = points[:i+maxPoints]
	}
	seg := g.s.segmentOf(points[i].pos)
	if seg == nil {
		return nil, fmt.Errorf("wal: group %q: entry %d is in a segment that is gone", g.name, first)
	}
	_, off := splitPosition(points[i].pos)
	q := &query{
		number: g.number, seg: seg, path: seg.path, inc: seg.inc, off: off, end: seg.end,
		first: first, last: last, points: append([]point(nil), points[i:]...),
	}
	if seg == g.s.cur {
		q.end = g.s.off
		if seq, end := splitPosition(g.s.durable); seq == seg.seq {
			q.end = end
		}
	}
	seg.refs++
	return q, nil
}

// validUpTo returns the last index for which a record at position pos is the latest.
func (q *query) validUpTo(pos uint64) int64 {
	i := sort.Search(len(q.points), func(i int) bool { return q.points[i].pos > pos })
	if i == len(q.points) {
		return q.last
	}
	return q.points[i].first - 1
}

// seek returns where the batches with the given entry begin, -1 if in another segment.
func (q *query) seek(at int64) int64 {
	i := sort.Search(len(q.points), func(i int) bool { return q.points[i].first > at }) - 1
	seq, off := splitPosition(q.points[max(i, 0)].pos)
	if seq != q.seg.seq {
		return -1
	}
	return off
}

const (
	firstChunk = 64 << 10 // of a read; as long as it goes on, each is twice as large
	lastChunk  = 4 << 20
	readBudget = 16 << 20 // a read that found something ends here: the log is mostly others'
)

// run reads batch after batch until enough entries are there.
func (q *query) run(file io.ReaderAt, maxBytes int) (entry.Batch, error) {
	w := window{file: file, path: q.path, size: q.end, chunk: firstChunk, most: lastChunk, fresh: true}
	var found []entry.Batch
	size := 0
	for off := q.off; off < q.end; {
		h, body, err := w.batch(off, q.seg.seq, q.inc)
		if err != nil {
			return entry.Batch{}, err
		}
		if h.kind == kindMark || h.kind == kindEnd {
			break
		}
		had := len(found)
		if found, err = q.collect(found, body, off, int(h.records), position(q.seg.seq, off)); err != nil {
			return entry.Batch{}, err
		}
		for _, b := range found[had:] {
			size += b.Size()
		}
		off += align(int64(h.length))
		n := len(found)
		if n == 0 {
			continue
		}
		if size >= maxBytes || found[n-1].Last() >= q.last || w.total >= readBudget {
			break
		}
		next := q.seek(found[n-1].Last() + 1)
		if next < 0 {
			break
		}
		off = max(off, next) // what lies between is others'
	}
	if len(found) == 0 {
		return entry.Batch{}, &CorruptError{File: q.path, Offset: q.off, Reason: fmt.Sprintf("entry %d is not where the index says", q.first)}
	}
	return join(found, maxBytes), nil
}

// collect replays the group's records of one batch.
func (q *query) collect(found []entry.Batch, body []byte, off int64, records int, pos uint64) ([]entry.Batch, error) {
	valid := min(q.validUpTo(pos), q.last)
	at := 0
	var here []entry.Batch
	for range records {
		var r record
		number, err := parseRecord(body[at:], &r)
		if err != nil {
			return nil, &CorruptError{File: q.path, Offset: off + int64(batchHeadSize+at), Reason: err.Error()}
		}
		at += r.size
		if number != q.number {
			continue
		}
		switch r.typ {
		case recEntries:
			here = append(here, r.batch)
		case recSuffix:
			here = cutBatches(here, r.index)
		}
	}
	next := q.first
	if n := len(found); n > 0 {
		next = found[n-1].Last() + 1
	}
	for _, b := range here {
		b = b.Upto(valid)
		if b.Last() < next || b.First > next {
			continue
		}
		b = b.From(next)
		found = append(found, b)
		next = b.Last() + 1
	}
	return found, nil
}

// cutBatches drops the entries behind last.
func cutBatches(batches []entry.Batch, last int64) []entry.Batch {
	for n := len(batches); n > 0 && batches[n-1].Last() > last; n-- {
		b := batches[n-1].Upto(last)
		batches = batches[:n-1]
		if b.Count > 0 {
			return append(batches, b)
		}
	}
	return batches
}

// join makes one batch of consecutive ones, of about maxBytes.
func join(batches []entry.Batch, maxBytes int) entry.Batch {
	n, metas, data := 0, 0, 0
	for n < len(batches) && (n == 0 || metas+data+batches[n].Size() <= maxBytes) {
		metas += len(batches[n].Metas)
		data += len(batches[n].Data)
		n++
	}
	if n == 1 {
		return batches[0]
	}
	all := entry.Batch{First: batches[0].First, Metas: make([]byte, 0, metas), Data: make([]byte, 0, data)}
	for _, b := range batches[:n] {
		all.Count += b.Count
		all.Metas = append(all.Metas, b.Metas...)
		all.Data = append(all.Data, b.Data...)
	}
	return all
}

// window reads a file in large pieces.
//
// Ownership: its user's. With fresh set, what it returned stays valid.
type window struct {
	file  io.ReaderAt
	path  string
	size  int64 // of the part that may be read
	chunk int64 // how much is read at a time
	most  int64 // up to which chunk doubles, if it does
	fresh bool
	buf   []byte
	start int64 // where in the file buf begins
	total int64 // bytes read
}

// bytes returns the n bytes at off, fewer at the end of what may be read.
func (w *window) bytes(off, n int64) ([]byte, error) {
	n = min(n, w.size-off)
	if n <= 0 {
		return nil, nil
	}
	if off >= w.start && off+n <= w.start+int64(len(w.buf)) {
		return w.buf[off-w.start : off-w.start+n], nil
	}
	if w.most > 0 && off > w.start+int64(len(w.buf)) { // a jump: who knows how much is wanted there
		w.chunk = firstChunk
	}
	want := min(max(n, w.chunk), w.size-off)
	if w.fresh || int64(cap(w.buf)) < want {
		w.buf = make([]byte, want)
	}
	w.buf, w.start = w.buf[:want], off
	got, err := w.file.ReadAt(w.buf, off)
	w.buf = w.buf[:got]
	w.total += int64(got)
	w.chunk = max(w.chunk, min(2*w.chunk, w.most))
	if err != nil && err != io.EOF {
		return nil, err
	}
	return w.buf[:min(n, int64(got))], nil
}

// batch returns the batch at off, which must be one of the given segment, whole and valid but for
// the records' own bytes, which parseRecord checks.
func (w *window) batch(off int64, seq, inc uint64) (batchHead, []byte, error) {
	bad := func(reason string) (batchHead, []byte, error) {
		return batchHead{}, nil, &CorruptError{File: w.path, Offset: off, Reason: reason}
	}
	b, err := w.bytes(off, batchHeadSize)
	if err != nil {
		return batchHead{}, nil, err
	}
	h, ok := parseBatchHead(b)
	if !ok || h.inc != inc || h.pos != position(seq, off) {
		return bad("no valid batch header")
	}
	b, err = w.bytes(off, int64(h.length))
	if err != nil {
		return batchHead{}, nil, err
	}
	if len(b) < int(h.length) {
		return bad("batch is cut short")
	}
	body := b[batchHeadSize:h.length:h.length]
	if reason := checkBody(&h, body); reason != "" {
		return bad(reason)
	}
	return h, body, nil
}

// checkBody compares a batch's records with its header: their number, their
// lengths and their CRC fields. Each record's bytes are for parseRecord to check.
func checkBody(h *batchHead, body []byte) (reason string) {
	sum, at := uint32(0), 0
	for range h.records {
		if len(body)-at < recordHeadSize {
			return "records are cut short"
		}
		n := int(le32(body[at+4:]))
		if n < recordHeadSize || n > len(body)-at {
			return "record length is wrong"
		}
		sum = crcMore(sum, body[at:at+4])
		at += n
	}
	if at != len(body) || sum != h.sumCRC {
		return "records do not match the header"
	}
	return ""
}
