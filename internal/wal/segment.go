package wal

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/graft-raft/graft/internal/vfs"
)

// segment is a file of the log.
//
// Invariants: seq, inc and path never change. The handle for reading stays open
// while refs > 0; it is closed with the last reference once the segment is dead.
//
// Ownership: the store's mutex guards what changes.
type segment struct {
	seq     uint64
	inc     uint64
	path    string
	written bool // every block was written before: writes are overwrites

	size     int64
	firstEnd int64 // where its first batch ends
	end      int64 // where its last batch ends, once there is a later segment
	pins     int   // groups whose oldest entry is here
	cut      bool  // the keeper need not look at the unused end any more
	small    bool  // it is no better than a segment that still has room

	refs int      // readers
	dead bool     // released, or the store is closed
	file vfs.File // for reading, opened by the first reader
}

// blank is a file that is not in the log and may be used again.
type blank struct {
	path    string
	size    int64
	written bool
}

func (s *Store) segmentPath(seq uint64) string { return filepath.Join(s.o.Dir, segmentName(seq)) }

// acquire returns a handle for reading the segment, which the caller has counted among
// its refs in the moment in which it learned of it: a release could come in between.
func (s *Store) acquire(seg *segment) (vfs.File, error) {
	s.mu.Lock()
	file := seg.file
	s.mu.Unlock()
	if file != nil {
		return file, nil
	}
	file, err := s.o.FS.OpenFile(seg.path, os.O_RDONLY, 0)
	if vfs.NotOpened(err) {
		err = fmt.Errorf("%w: %w", ErrNotOpened, err)
	}
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	mine := seg.file == nil
	if mine {
		seg.file = file
	}
	shared := seg.file
	s.mu.Unlock()
	if mine {
		return file, nil
	}
	return shared, file.Close() // another reader was faster
}

// letGo takes a reader off the segment's refs and passes err on.
func (s *Store) letGo(seg *segment, err error) error {
	s.mu.Lock()
	seg.refs--
	var file vfs.File
	if seg.refs == 0 && seg.dead {
		file, seg.file = seg.file, nil
	}
	waiting := seg.refs == 0 && seg.dead && !s.closed
	s.mu.Unlock()
	if file != nil {
		if cerr := file.Close(); err == nil {
			err = cerr
		}
	}
	if waiting { // the keeper could not use the file before
		s.keeper.a.Post(keepWork)
	}
	return err
}

// writer is a lane's or an opener's way to write batches: a file description of
// its own, and memory to lay small ones out.
//
// Ownership: its lane's, or Open's.
type writer struct {
	fs   vfs.FS
	seg  *segment
	file vfs.File
	buf  []byte
	bufs [][]byte
}

const (
	copyBelow = 16 << 10 // smaller parts are copied together, larger ones written from where they are
	keepBuf   = 1 << 20  // a larger buffer is not kept
)

// open makes seg the segment that w writes.
func (w *writer) open(seg *segment) error {
	if w.seg == seg {
		return nil
	}
	if err := w.close(); err != nil {
		return err
	}
	file, err := w.fs.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	w.seg, w.file = seg, file
	return nil
}

func (w *writer) close() error {
	if w.file == nil {
		return nil
	}
	file := w.file
	w.seg, w.file = nil, nil
	return file.Close()
}

// write writes a placed flight, without syncing it.
func (w *writer) write(f *flight) error {
	if err := w.open(f.seg); err != nil {
		return err
	}
	w.layOut(f)
	var err error
	if len(w.bufs) == 1 {
		_, err = w.file.WriteAt(w.bufs[0], f.off)
	} else {
		_, err = w.file.WriteVAt(w.bufs, f.off)
	}
	clear(w.bufs)
	w.bufs = w.bufs[:0]
	if cap(w.buf) > keepBuf {
		w.buf = nil
	}
	return err
}

// layOut sets bufs to the flight's bytes: runs of small parts in buf, large parts
// where they are.
func (w *writer) layOut(f *flight) {
	small := batchHeadSize + block + smallPart(f.raw)
	for i := range f.recs {
		if r := &f.recs[i]; r.err == nil {
			small += smallPart(r.fixed[:r.nfixed]) + smallPart(r.tail) + smallPart(r.batch.Metas) + smallPart(r.batch.Data)
		}
	}
	if cap(w.buf) < small { // must not move while bufs points into it
		w.buf = make([]byte, 0, align(int64(small)))
	}
	w.buf = w.buf[:0]
	from := 0
	put := func(p []byte) {
		if len(p) < copyBelow {
			w.buf = append(w.buf, p...)
			return
		}
		if from < len(w.buf) {
			w.bufs = append(w.bufs, w.buf[from:])
			from = len(w.buf)
		}
		w.bufs = append(w.bufs, p)
	}
	put(f.head[:])
	put(f.raw)
	for i := range f.recs {
		if r := &f.recs[i]; r.err == nil {
			put(r.fixed[:r.nfixed])
			put(r.tail)
			put(r.batch.Metas)
			put(r.batch.Data)
		}
	}
	w.buf = append(w.buf, make([]byte, f.size-int64(batchHeadSize+f.bytes))...)
	if from < len(w.buf) {
		w.bufs = append(w.bufs, w.buf[from:])
	}
}

func smallPart(p []byte) int {
	if len(p) < copyBelow {
		return len(p)
	}
	return 0
}
