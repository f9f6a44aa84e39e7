package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/graft-raft/graft/internal/vfs"
)

// Open opens the log in o.Dir, or makes an empty one if the directory does not exist or is
// empty. FORMAT.md describes what it does with what it finds.
func Open(o Options) (*Store, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if err := vfs.MakeDir(o.FS, o.Dir); err != nil {
		return nil, err
	}
	lock, err := o.FS.Lock(filepath.Join(o.Dir, lockName))
	if errors.Is(err, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: %s is in use by another process, or twice by this one; stop that one first: %w", ErrIdentity, o.Dir, err)
	}
	if err != nil {
		return nil, err
	}
	s := &Store{o: o, lock: lock, groups: make(map[string]*Group), number: 1}
	if err := s.open(); err != nil {
		if isSpace(err) {
			err = fmt.Errorf("%w: %w", ErrNoSpace, err)
		}
		return nil, errors.Join(err, lock.Close())
	}
	return s, nil
}

// open recovers what is there, seals its end and begins a new segment.
func (s *Store) open() error {
	names, err := s.o.FS.ReadDir(s.o.Dir)
	if err != nil {
		return err
	}
	if err := s.identify(names); err != nil {
		return err
	}
	files, err := s.readHeads(names)
	if err != nil {
		return err
	}
	k := newKeeper(s)
	s.keeper = k
	for _, f := range files {
		k.next = max(k.next, f.seq)
	}
	rec := recovery{s: s, files: files, numbers: make(map[uint64]*Group)}
	end, err := rec.run()
	if err != nil {
		return err
	}
	for _, f := range files {
		if !f.inLog {
			k.blanks = append(k.blanks, blank{path: s.segmentPath(f.seq), size: f.size, written: f.head.written && f.headOK})
		}
	}
	if err := s.begin(end); err != nil {
		return err
	}
	k.opened, k.eager = true, s.o.Spare
	k.blanks, k.unfit = append(k.blanks, k.unfit...), nil
	for range s.o.InFlight {
		l := newLane(s)
		s.lanes = append(s.lanes, l)
		s.idle = append(s.idle, l)
	}
	k.a.Post(keepWork)
	return nil
}

// identify checks whose directory it is, or makes it this host's if it is new.
func (s *Store) identify(names []string) error {
	segments := 0
	for _, n := range names {
		if _, ok := parseSegmentName(n); ok {
			segments++
		}
	}
	b, err := readFile(s.o.FS, filepath.Join(s.o.Dir, identityName))
	switch {
	case errors.Is(err, os.ErrNotExist) && segments == 0:
		s.id = identity{store: max(s.o.Rand(), 1), address: s.o.Identity}
		return s.writeIdentity(s.id)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %s holds %d log segments and no file %q: part of it was lost; "+
			"restore it, or remove this member from its groups and add it again with an empty directory",
			ErrIdentity, s.o.Dir, segments, identityName)
	case err != nil:
		return err
	}
	id, err := parseIdentity(b)
	if errors.Is(err, ErrVersion) {
		return fmt.Errorf("%s: %w", filepath.Join(s.o.Dir, identityName), err)
	}
	if err != nil {
		return &CorruptError{File: filepath.Join(s.o.Dir, identityName), Reason: err.Error()}
	}
	if id.address != s.o.Identity {
		return fmt.Errorf("%w: %s belongs to %s, this is %s: start it under its own address, or use another directory",
			ErrIdentity, s.o.Dir, id.address, s.o.Identity)
	}
	if id.segment != 0 && segments == 0 {
		return fmt.Errorf("%w: %s has lost its log segments (%s and all others): restore them, "+
			"or remove this member from its groups and add it again with an empty directory",
			ErrIdentity, s.o.Dir, segmentName(id.segment))
	}
	s.id = id
	if id.segment != 0 {
		return nil
	}
	// A process may have been killed between rename and sync, or the sync have failed, and a later one does not make up
	// for that. Segments must not be durable before the identity.
	return s.writeIdentity(id)
}

func readFile(fs vfs.FS, name string) (b []byte, err error) {
	f, err := fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > 1<<20 {
		return nil, &CorruptError{File: name, Reason: fmt.Sprintf("it has %d bytes", size)}
	}
	b = make([]byte, size)
	n, err := f.ReadAt(b, 0)
	if err == io.EOF {
		err = nil
	}
	return b[:n], err
}

// writeIdentity replaces the identity, atomically and durably.
func (s *Store) writeIdentity(id identity) error {
	if err := s.draftIdentity(id); err != nil {
		return err
	}
	return s.publishIdentity()
}

// draftIdentity writes down what publishIdentity makes the identity.
func (s *Store) draftIdentity(id identity) error {
	f, err := s.o.FS.OpenFile(filepath.Join(s.o.Dir, identityTemp), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(id.encode(), 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s *Store) publishIdentity() error {
	if err := s.o.FS.Rename(filepath.Join(s.o.Dir, identityTemp), filepath.Join(s.o.Dir, identityName)); err != nil {
		return err
	}
	return s.o.FS.SyncDir(s.o.Dir)
}

// segFile is a file with a segment's name.
type segFile struct {
	seq    uint64
	size   int64
	head   segmentHead
	headOK bool // the header is this file's own
	first  bool // and a valid first batch stands behind it
	start  record
	inLog  bool
}

// readHeads reads the beginning of each file with a segment's name, in the order of their
// numbers.
func (s *Store) readHeads(names []string) ([]*segFile, error) {
	var files []*segFile
	for _, n := range names {
		seq, ok := parseSegmentName(n)
		if !ok {
			continue
		}
		f := &segFile{seq: seq}
		if err := s.readHead(f); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortFunc(files, func(a, b *segFile) int { return int(int64(a.seq) - int64(b.seq)) })
	return files, nil
}

func (s *Store) readHead(f *segFile) (err error) {
	path := s.segmentPath(f.seq)
	file, err := s.o.FS.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if f.size, err = file.Size(); err != nil {
		return err
	}
	w := window{file: file, path: path, size: f.size, chunk: 2 * block}
	b, err := w.bytes(0, segmentHeadSize)
	if err != nil {
		return err
	}
	head, herr := parseSegmentHead(b)
	if errors.Is(herr, ErrVersion) {
		return fmt.Errorf("%s: %w", path, herr)
	}
	if herr == nil && head.store != s.id.store { // never to be used again as if it were a leftover
		return fmt.Errorf("%w: %s is a segment of another log: take it out of the directory, or restore the file %q that belongs to it",
			ErrIdentity, path, identityName)
	}
	f.head = head
	f.headOK = herr == nil && head.seq == f.seq
	if !f.headOK {
		return s.checkStray(f, &w, path, head, herr)
	}
	h, body, berr := w.batch(firstBatchOffset, f.seq, f.head.inc)
	var corrupt *CorruptError
	if errors.As(berr, &corrupt) {
		return nil // no first batch
	}
	if berr != nil {
		return berr
	}
	if h.kind != kindFirst {
		return nil
	}
	for at, i := 0, uint32(0); i < h.records; i++ {
		var r record
		if _, err := parseRecord(body[at:], &r); err != nil {
			return nil
		}
		if i == 0 {
			if r.typ != recStart {
				return nil
			}
			f.start = r
		}
		at += r.size
	}
	f.first = h.records > 0
	return nil
}

// checkStray refuses a file without a header of its own whose content is a segment of the log by the first batch. If
// the header is another life's because the recycling was interrupted, so are the batches.
func (s *Store) checkStray(f *segFile, w *window, path string, head segmentHead, herr error) error {
	if herr == nil {
		herr = fmt.Errorf("the header is that of segment %d", head.seq)
	}
	b, err := w.bytes(firstBatchOffset, batchHeadSize)
	if err != nil {
		return err
	}
	if h, ok := parseBatchHead(b); ok && h.kind == kindFirst && h.pos == position(f.seq, firstBatchOffset) {
		return &CorruptError{File: path, Reason: herr.Error()}
	}
	return nil
}

// begin seals the log's end and makes the segment that goes on behind it, all durably.
func (s *Store) begin(prevEnd uint64) error {
	k := s.keeper
	first := s.firstFlight(prevEnd)
	need := firstBatchOffset + first.need() + block // with room for a mark
	m, err := k.begin(need)
	for isSpace(err) && len(k.blanks) > 0 {
		m, err = k.begin(need)
	}
	if err != nil {
		return err
	}
	if err := k.finish(m); err != nil {
		return k.scrap(m, err)
	}
	s.id.opening++
	s.id.segment = m.seg.seq
	s.enter(m.seg)
	if need > m.seg.size {
		if err := s.grow(m.seg, need); err != nil {
			return err
		}
	}
	m.seg.firstEnd = firstBatchOffset + first.need()
	s.durable = position(m.seg.seq, firstBatchOffset) // all before is, or recovery would have failed
	s.place(first)
	s.id.end = position(m.seg.seq, s.off)
	if err := s.draftFor(m.seg, need); err != nil { // before the segment is used up: a later attempt may have no other
		return err
	}
	w := writer{fs: s.o.FS}
	err = w.write(first)
	if err == nil {
		err = w.file.Sync()
	}
	if err = errors.Join(err, w.close()); err != nil {
		return err
	}
	s.ring.pop()
	s.durable = s.id.end
	s.stats = counters{}
	k.named = s.durable
	for _, g := range s.order {
		g.repin()
	}
	return s.publishIdentity()
}

// draftFor drafts the identity. If the disk is full it takes the block for that from the segment, which has no batch yet.
func (s *Store) draftFor(seg *segment, need int64) error {
	err := s.draftIdentity(s.id)
	if !isSpace(err) || seg.size-block < need {
		return err
	}
	file, err := s.o.FS.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	seg.size -= block
	if err = file.Truncate(seg.size); err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return s.draftIdentity(s.id)
}

// grow enlarges a segment that has no batch yet.
func (s *Store) grow(seg *segment, size int64) (err error) {
	file, err := s.o.FS.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := extend(file, seg.size, size); err != nil {
		return err
	}
	seg.size = size
	return file.Sync()
}
