package wal

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/graft-raft/graft/internal/entry"
)

// recovery reads the log back.
//
// Invariant: it changes nothing on disk before it knows that the log is whole.
//
// Ownership: Open's.
type recovery struct {
	s       *Store
	files   []*segFile
	numbers map[uint64]*Group
	order   []*Group
	floor   uint64
	next    uint64 // group number
	prevCRC uint32
	mark    uint64 // the greatest in any valid batch
	buf     []byte // what one window leaves to the next
}

// run reads the log and returns the position of its end, 0 if there is no log.
func (r *recovery) run() (end uint64, err error) {
	chain, err := r.chain()
	if err != nil || len(chain) == 0 {
		return 0, err
	}
	for i, f := range chain {
		if i+1 < len(chain) {
			if err := r.sealed(f, chain[i+1]); err != nil {
				return 0, err
			}
			continue
		}
		if end, err = r.newest(f); err != nil {
			return 0, err
		}
	}
	if seq, off := splitPosition(r.s.id.end); end < r.s.id.end {
		at, to := splitPosition(end)
		return 0, &CorruptError{File: r.s.segmentPath(seq), Offset: off, Reason: fmt.Sprintf(
			"the log was durable up to here, and what is left of it ends in segment %d at offset %d", at, to)}
	}
	if err := r.check(chain); err != nil {
		return 0, err
	}
	r.takeOver()
	return end, r.rewrite(chain[len(chain)-1], end)
}

// chain finds the segments of the log, oldest first: those that the start records name, from the
// newest on.
func (r *recovery) chain() ([]*segFile, error) {
	bySeq := make(map[uint64]*segFile, len(r.files))
	var newest *segFile
	for _, f := range r.files {
		bySeq[f.seq] = f
		if f.first {
			newest = f
		}
	}
	if newest == nil {
		if r.s.id.segment != 0 {
			return nil, &CorruptError{File: r.s.segmentPath(r.s.id.segment), Offset: firstBatchOffset, Reason: "the log's newest segment has no valid first batch"}
		}
		return nil, nil
	}
	var chain []*segFile
	for f := newest; ; {
		f.inLog = true
		chain = append([]*segFile{f}, chain...)
		prev, _ := splitPosition(f.start.extra.prevEnd)
		before := bySeq[prev]
		if prev == 0 || before == nil {
			return chain, nil
		}
		if prev >= f.seq {
			return nil, &CorruptError{File: r.s.segmentPath(f.seq), Offset: firstBatchOffset, Reason: fmt.Sprintf("it follows segment %d", prev)}
		}
		if !before.first {
			if prev < uint64(f.start.index) { // released, and being recycled
				return chain, nil
			}
			return nil, &CorruptError{File: r.s.segmentPath(prev), Offset: firstBatchOffset, Reason: "a segment of the log has no valid header or first batch"}
		}
		f = before
	}
}

// addSegment takes the file into the store's list.
func (r *recovery) addSegment(f *segFile) *segment {
	seg := &segment{
		seq: f.seq, inc: f.head.inc, path: r.s.segmentPath(f.seq), written: f.head.written, size: f.size,
	}
	r.s.segs = append(r.s.segs, seg)
	return seg
}

// sealed replays a segment that another one follows: it must be whole up to the named end.
func (r *recovery) sealed(f, after *segFile) (err error) {
	_, end := splitPosition(after.start.extra.prevEnd)
	seg := r.addSegment(f)
	seg.end = end
	file, err := r.s.o.FS.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	w := r.window(file, seg.path, min(f.size, end))
	defer r.done(&w)
	for off := int64(firstBatchOffset); off < end; {
		h, body, err := w.batch(off, f.seq, f.head.inc)
		if err != nil {
			return err
		}
		if err := r.batch(seg, off, &h, body); err != nil {
			return err
		}
		off += align(int64(h.length))
	}
	return nil
}

// newest replays the newest segment up to the end of the log, and returns that.
func (r *recovery) newest(f *segFile) (end uint64, err error) {
	seg := r.addSegment(f)
	file, err := r.s.o.FS.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	w := r.window(file, seg.path, f.size)
	defer r.done(&w)
	off := int64(firstBatchOffset)
	reason := "the end of the file"
	opening := uint64(0)
	closed := false
	for off < f.size {
		h, body, berr := w.batch(off, f.seq, f.head.inc)
		var corrupt *CorruptError
		if errors.As(berr, &corrupt) {
			reason = corrupt.Reason
			break
		}
		if berr != nil {
			return 0, berr
		}
		if h.kind == kindFirst {
			opening = h.opening
		}
		if reason = r.follows(&h, off, opening, body); reason != "" {
			if off == firstBatchOffset { // it is whole and names the end that was read: no torn write looks like that
				return 0, &CorruptError{File: seg.path, Offset: off, Reason: reason}
			}
			break
		}
		if h.kind == kindMark || h.kind == kindEnd {
			r.mark = max(r.mark, h.mark)
			closed = h.kind == kindEnd
			reason = "there is a mark, and no batch was written over it"
			break
		}
		if err := r.batch(seg, off, &h, body); err != nil {
			return 0, err
		}
		off += align(int64(h.length))
	}
	end = position(f.seq, off)
	discarded := 0
	if !closed {
		if discarded, err = r.search(&w, f, off, opening); err != nil {
			return 0, err
		}
	}
	if r.mark > end {
		return 0, &CorruptError{File: seg.path, Offset: off, Reason: fmt.Sprintf(
			"a batch that was durable (the log was, up to segment %d offset %d) is damaged: %s", r.mark>>32, r.mark&(maxSegment-1), reason)}
	}
	if discarded > 0 {
		r.s.o.Log("wal: %s: cut at offset %d (%s): %d later batches, never acknowledged, are dropped", seg.path, off, reason, discarded)
	}
	seg.end = off
	return end, nil
}

// follows checks that a valid batch is the next of this log; else the reason why it is not. Records that
// do not parse end the log like a missing batch.
func (r *recovery) follows(h *batchHead, off int64, opening uint64, body []byte) string {
	first := off == firstBatchOffset
	switch {
	case (h.kind == kindFirst) != first:
		return "a batch of another kind"
	case h.opening != opening:
		return "a batch of another opening"
	case len(r.s.segs) > 1 || !first:
		if h.prevCRC != r.prevCRC {
			return "the batch does not follow the one before"
		}
	}
	for at, i := 0, uint32(0); i < h.records; i++ {
		var rec record
		if _, err := parseRecord(body[at:], &rec); err != nil {
			return err.Error()
		}
		at += rec.size
	}
	return ""
}

// search looks behind the end for later batches: for their marks, and to count them.
func (r *recovery) search(w *window, f *segFile, off int64, opening uint64) (count int, err error) {
	for at := off; at+block <= f.size; at += block {
		b, err := w.bytes(at, batchHeadSize)
		if err != nil {
			return 0, err
		}
		h, ok := parseBatchHead(b)
		if !ok || h.inc != f.head.inc || h.opening != opening || h.pos != position(f.seq, at) {
			continue
		}
		r.mark = max(r.mark, h.mark)
		if h.kind != kindMark {
			count++
		}
	}
	for _, next := range r.files {
		if next.seq <= f.seq || !next.headOK {
			continue
		}
		n, err := r.searchNext(next)
		if err != nil {
			return 0, err
		}
		count += n
	}
	return count, nil
}

const (
	// searchWindow bounds how far behind the last batch that was found in it a segment is
	// searched that was hardly begun. It is more than its first batch takes.
	searchWindow = 16 << 20
	// recoverChunk is how much is read at a time: several batches.
	recoverChunk = 4 << 20
)

// window and done pass one buffer from file to file: one at a time is read.
func (r *recovery) window(file io.ReaderAt, path string, size int64) window {
	w := window{file: file, path: path, size: size, chunk: recoverChunk, buf: r.buf[:0]}
	r.buf = nil
	return w
}

func (r *recovery) done(w *window) { r.buf = w.buf }

func (r *recovery) searchNext(f *segFile) (count int, err error) {
	path := r.s.segmentPath(f.seq)
	file, err := r.s.o.FS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	w := r.window(file, path, f.size)
	defer r.done(&w)
	end := int64(firstBatchOffset + searchWindow)
	for at := int64(firstBatchOffset); at+block <= w.size && at < end; at += block {
		b, err := w.bytes(at, batchHeadSize)
		if err != nil {
			return 0, err
		}
		if h, ok := parseBatchHead(b); ok && h.inc == f.head.inc && h.pos == position(f.seq, at) && h.opening == r.s.id.opening {
			r.mark = max(r.mark, h.mark)
			end = max(end, at+int64(h.length)+searchWindow)
			if h.kind != kindMark {
				count++
			}
		}
	}
	return count, nil
}

// batch replays the records of a valid batch.
func (r *recovery) batch(seg *segment, off int64, h *batchHead, body []byte) error {
	bad := func(at int, err error) error {
		return &CorruptError{File: seg.path, Offset: off + int64(batchHeadSize+at), Reason: err.Error()}
	}
	if len(r.s.segs) > 1 || h.kind != kindFirst {
		if h.prevCRC != r.prevCRC {
			return bad(-batchHeadSize, errors.New("the batch does not follow the one before"))
		}
	}
	r.prevCRC = h.crc
	r.mark = max(r.mark, h.mark)
	if h.kind == kindFirst {
		seg.firstEnd = off + align(int64(h.length))
	}
	pos := position(seg.seq, off)
	at := 0
	for range h.records {
		var rec record
		number, err := parseRecord(body[at:], &rec)
		if err == nil {
			err = r.replay(number, &rec, pos)
		}
		if err != nil {
			return bad(at, err)
		}
		at += rec.size
	}
	return nil
}

// replay carries one record out.
func (r *recovery) replay(number uint64, rec *record, pos uint64) error {
	switch rec.typ {
	case recStart:
		r.floor = max(r.floor, uint64(rec.index))
		r.next = max(r.next, rec.extra.nextGroup)
		return nil
	case recRelease:
		r.floor = max(r.floor, uint64(rec.index))
		return nil
	case recEntries:
		sum, err := entry.Check(rec.batch)
		if err != nil {
			return err
		}
		rec.firstTerm, rec.lastTerm = sum.FirstTerm, sum.LastTerm
		if sum.Runs != nil || sum.Confs != nil {
			rec.extra = &extra{runs: sum.Runs, confs: sum.Confs}
		}
	}
	g := r.numbers[number]
	if g == nil {
		g = &Group{s: r.s, number: number, existed: true, announced: true}
		g.log = groupLog{number: number, first: 1}
		r.numbers[number] = g
		r.order = append(r.order, g)
	}
	return g.log.apply(rec, pos)
}

// check makes sure that nothing is missing.
func (r *recovery) check(chain []*segFile) error {
	oldest := chain[0]
	if prev := oldest.start.extra.prevEnd; prev != 0 && oldest.seq > r.floor {
		seq, _ := splitPosition(prev)
		return &CorruptError{File: r.s.segmentPath(seq), Reason: "the segment is missing and was not released"}
	}
	if id := r.s.id.segment; id != 0 && id >= r.floor {
		found := false
		for _, f := range chain {
			found = found || f.seq == id
		}
		if !found {
			return &CorruptError{File: r.s.segmentPath(id), Reason: "the segment that the last opening began is not part of the log"}
		}
	}
	r.dropNamesakes()
	for _, g := range r.order {
		if !g.log.removed && !g.log.covered() {
			return &CorruptError{File: r.s.o.Dir, Reason: fmt.Sprintf("entries of group %q from %d on are missing", g.log.name, g.log.first)}
		}
	}
	return nil
}

// dropNamesakes forgets a group whose name a later one has, or had until it was removed: it was to be removed, the
// name was taken again, and then the removal was refused because the disk was full.
func (r *recovery) dropNamesakes() {
	latest := make(map[string]*Group, len(r.order))
	for _, g := range r.order {
		old := latest[g.log.name]
		switch {
		case old == nil:
			latest[g.log.name] = g
		case old.number > g.number:
			g.log.removed = true
		default:
			old.log.removed = true
			latest[g.log.name] = g
		}
	}
}

// takeOver hands what was recovered to the store.
func (r *recovery) takeOver() {
	s := r.s
	s.floor, s.prevCRC = r.floor, r.prevCRC
	s.number = max(s.number, r.next)
	for _, g := range r.order {
		s.number = max(s.number, g.number+1)
		if g.log.removed {
			continue
		}
		g.name, g.first, g.last = g.log.name, g.log.first, g.log.last
		s.groups[g.name] = g
		s.order = append(s.order, g)
	}
}

// rewrite writes what lies between the durable mark and the end once more, unchanged, and
// syncs it: pages whose write-back failed under an earlier process look clean and are not.
func (r *recovery) rewrite(f *segFile, end uint64) (err error) {
	_, last := splitPosition(end)
	from := int64(firstBatchOffset)
	if seq, off := splitPosition(r.mark); seq == f.seq {
		from = max(from, off)
	}
	if from >= last {
		return nil
	}
	file, err := r.s.o.FS.OpenFile(r.s.segmentPath(f.seq), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	buf := make([]byte, min(last-from, 1<<20))
	for at := from; at < last; {
		n := min(int64(len(buf)), last-at)
		if _, err := file.ReadAt(buf[:n], at); err != nil {
			return err
		}
		if _, err := file.WriteAt(buf[:n], at); err != nil {
			return err
		}
		at += n
	}
	return file.Sync()
}
