package snapdir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

const writeBuffer = 256 << 10

// Writer makes a snapshot. Any error, also one of a file's Write or Close that
// nobody looked at, makes Commit fail: a snapshot that lacks something is none.
//
// Invariants: files holds what is registered, in order; names are their names; err
// is the first error.
//
// Ownership: safe for concurrent use. mu is a leaf lock, not held during I/O.
type Writer struct {
	// Watch is for Commit, which reads files that were added with AddFile. It is to be
	// set before anybody else has the Writer.
	Watch Watch

	store *Store
	dir   string

	mu    sync.Mutex
	names *nameSet
	files []*draft
	err   error
	ended bool
}

// draft is a file to be.
type draft struct {
	File
	writer *FileWriter // nil: the user wrote it himself
}

// NewWriter begins a snapshot. There is one Writer at a time, else it fails with
// ErrBusy.
//
// Each has a directory of its own, of a name that no other has had: somebody who was
// saving when the store was closed may go on writing to the one that he was given.
func (s *Store) NewWriter() (*Writer, error) {
	s.mu.Lock()
	busy := s.writing
	s.writing = true
	s.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("save snapshot: %w", ErrBusy)
	}
	w := &Writer{store: s, dir: filepath.Join(s.dir, tempName(s.rand())), names: newNameSet()}
	err := s.dropTemps()
	if err == nil {
		err = s.fs.MkdirAll(w.dir, 0o755)
	}
	if err != nil {
		s.release(&s.writing)
		return nil, fmt.Errorf("save snapshot: %w", err)
	}
	return w, nil
}

// dropTemps deletes what earlier Writers could not.
func (s *Store) dropTemps() error {
	names, err := s.fs.ReadDir(s.dir)
	for _, name := range names {
		if err == nil && isTemp(name) {
			err = removeAll(s.fs, filepath.Join(s.dir, name))
		}
	}
	return err
}

// Path is the directory for files that the user writes himself and registers with
// AddFile. Symbolic links are not for snapshots.
func (w *Writer) Path() string { return w.dir }

// fail remembers the first error.
func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return err
}

// register takes a name in. The caller adds what it knows of the file.
func (w *Writer) register(name string, d *draft) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return ErrClosed
	}
	if err := w.names.add(name); err != nil {
		w.err = errors.Join(w.err, err)
		return err
	}
	d.Name, d.Size = name, -1
	w.files = append(w.files, d)
	return nil
}

func (w *Writer) find(name string) int {
	return slices.IndexFunc(w.files, func(d *draft) bool { return d.Name == name })
}

// Create begins a file of the snapshot, perhaps in a sub-directory, which it makes.
// The file is registered; it must be closed before Commit.
func (w *Writer) Create(name string) (*FileWriter, error) {
	f := &FileWriter{w: w, name: name, digest: newDigest(w.store.layout)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := w.register(name, &draft{writer: f}); err != nil {
		return nil, err
	}
	full := filepath.Join(w.dir, name)
	var err error
	if dir := filepath.Dir(full); dir != w.dir {
		err = w.store.fs.MkdirAll(dir, 0o755)
	}
	if err == nil {
		f.f, err = w.store.fs.OpenFile(full, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	}
	if err != nil {
		f.closed = true
		return nil, w.fail(err)
	}
	return f, nil
}

// AddFile registers a file that the user has written, or will have when he calls
// Commit, below Path. For a registered file it only sets the meta, bytes which mean
// something to the user alone.
func (w *Writer) AddFile(name string, userMeta []byte) error {
	w.mu.Lock()
	if i := w.find(name); i >= 0 && !w.ended {
		w.files[i].UserMeta = bytes.Clone(userMeta)
		w.mu.Unlock()
		return nil
	}
	w.mu.Unlock()
	return w.register(name, &draft{File: File{UserMeta: bytes.Clone(userMeta)}})
}

// RemoveFile takes a file out again and deletes it.
func (w *Writer) RemoveFile(name string) error {
	w.mu.Lock()
	i := w.find(name)
	if w.ended || i < 0 {
		defer w.mu.Unlock()
		if w.ended {
			return ErrClosed
		}
		return fmt.Errorf("%w: %q", ErrNoFile, name)
	}
	d := w.files[i]
	w.files = slices.Delete(w.files, i, i+1)
	w.names.remove(name)
	w.mu.Unlock()
	if d.writer != nil {
		if err := d.writer.drop(); err != nil {
			return w.fail(err)
		}
	}
	if err := removeAll(w.store.fs, filepath.Join(w.dir, name)); err != nil {
		return w.fail(err)
	}
	return nil
}

// Files lists what is registered.
func (w *Writer) Files() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var names []string
	for _, d := range w.files {
		names = append(names, d.Name)
	}
	return names
}

// end is for the one call of Commit or Abort that ends the Writer.
func (w *Writer) end() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return false
	}
	w.ended = true
	return true
}

// Commit makes the files durable, writes the manifest and publishes the snapshot,
// which it returns open. Files in Path that are not registered are deleted. On any
// error there is no snapshot, the older ones stay, and what was written is removed.
// Nothing is pruned: see Store.Prune.
//
// One case is left open by nature: if the disk fails at making the very last rename
// durable, the snapshot, which is whole, may be there again after a power cut.
func (w *Writer) Commit(meta *raftpb.SnapshotMeta, groupID uint64) (*Reader, error) {
	if !w.end() {
		return nil, fmt.Errorf("save snapshot: %w", ErrClosed)
	}
	m, err := w.seal(meta, groupID)
	var r *Reader
	if err == nil {
		r, err = w.store.publish(w.dir, m, false)
	}
	if err != nil {
		return nil, fmt.Errorf("save snapshot %d: %w", meta.GetLastIncludedIndex(), errors.Join(err, w.cleanUp()))
	}
	w.store.release(&w.store.writing)
	return r, nil
}

// Abort ends the Writer and removes what it wrote. After Commit or Abort it does
// nothing.
func (w *Writer) Abort() error {
	if !w.end() {
		return nil
	}
	if err := w.cleanUp(); err != nil {
		return fmt.Errorf("give up snapshot: %w", err)
	}
	return nil
}

// cleanUp ends the open files and deletes all. The next Writer tries again to delete
// what is left, and so does the next Open.
func (w *Writer) cleanUp() error {
	defer w.store.release(&w.store.writing)
	for _, d := range w.files {
		if d.writer != nil {
			_ = d.writer.drop() // what it may have lost is deleted anyway
		}
	}
	return removeAll(w.store.fs, w.dir)
}

// seal makes everything durable and whole but the directory's name.
func (w *Writer) seal(meta *raftpb.SnapshotMeta, groupID uint64) (*manifest, error) {
	if meta.GetLastIncludedIndex() <= 0 || meta.GetLastIncludedTerm() < 0 {
		return nil, errors.New("it has no index and term")
	}
	if err := w.store.newer(meta.GetLastIncludedIndex()); err != nil {
		return nil, err
	}
	w.mu.Lock()
	err := w.err
	w.mu.Unlock()
	if err != nil {
		return nil, err
	}
	files := make([]File, len(w.files))
	for i, d := range w.files {
		if err := w.complete(d); err != nil {
			return nil, err
		}
		files[i] = d.File
	}
	if err := prune(w.store.fs, w.dir, ".", w.names); err != nil {
		return nil, err
	}
	m := newManifest(meta, groupID, files)
	return m, seal(w.store.fs, w.dir, m)
}

// seal writes the manifest and makes the entries of the directory durable.
func seal(fs vfs.FS, dir string, m *manifest) error {
	if err := writeManifest(fs, dir, m); err != nil {
		return err
	}
	return syncDirs(fs, dir, m.files)
}

// complete fills in what the manifest says of a file, which is durable then.
func (w *Writer) complete(d *draft) error {
	if err := w.ownFile(d.Name); err != nil {
		return err
	}
	if d.writer != nil {
		if !d.writer.done() {
			return fmt.Errorf("file %q is not closed", d.Name)
		}
		d.writer.digest.describe(&d.File)
		return nil
	}
	full := filepath.Join(w.dir, d.Name)
	info, err := w.store.fs.Stat(full)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("file %q is not a regular one", d.Name)
	}
	f, err := w.store.fs.OpenFile(full, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	sum, err := w.store.layout.hashAll(f, w.Watch)
	if err == nil {
		sum.describe(&d.File)
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// ownFile fails if a file, or a directory above it, is elsewhere: behind a symbolic link is what others may change or delete.
func (w *Writer) ownFile(name string) error {
	for at := name; at != "."; at = path.Dir(at) {
		info, err := w.store.fs.Lstat(filepath.Join(w.dir, at))
		if err != nil {
			return err
		}
		if info.Mode()&os.ModeSymlink != 0 {
			return fmt.Errorf("file %q: %q is a symbolic link; a snapshot has its files itself", name, at)
		}
	}
	return nil
}

// FileWriter writes one file of a snapshot and hashes it on the way.
//
// Invariants: f is open until closed; off counts what is written, buf follows it.
//
// Ownership: mu guards it, and is held during its I/O: one goroutine writes, and
// another may abort the snapshot.
type FileWriter struct {
	w      *Writer
	name   string
	digest *digest

	mu       sync.Mutex
	f        vfs.File
	buf      []byte
	off      int64
	leaving  span // is being written out
	unsynced int64
	err      error
	closed   bool
}

// Write adds to the file. It does not keep p.
func (f *FileWriter) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return 0, fmt.Errorf("write %q: %w", f.name, ErrClosed)
	}
	if f.err != nil {
		return 0, f.err
	}
	_, _ = f.digest.Write(p)
	n := 0
	for len(p) > 0 && f.err == nil {
		if len(f.buf) == 0 && len(p) >= writeBuffer {
			f.flush(p[:writeBuffer])
			p = p[writeBuffer:]
			n += writeBuffer
			continue
		}
		part := min(len(p), writeBuffer-len(f.buf))
		f.buf = append(f.buf, p[:part]...)
		p = p[part:]
		n += part
		if len(f.buf) == writeBuffer {
			f.flush(f.buf)
			f.buf = f.buf[:0]
		}
	}
	if f.err != nil {
		return 0, f.err
	}
	return n, nil
}

// flush writes p at the end of the file.
func (f *FileWriter) flush(p []byte) {
	n, err := f.f.WriteAt(p, f.off)
	piece, out := span{f.off, f.off + int64(n)}, false
	if err == nil {
		out, err = writeOut(f.f, piece, f.leaving)
	}
	f.leaving, f.off = span{}, piece.hi
	if out {
		f.leaving = piece
	}
	f.unsynced += int64(n)
	if err == nil && syncDue(f.unsynced, out) {
		f.unsynced = 0
		err = f.f.Sync()
	}
	if err != nil {
		f.err = f.w.fail(err)
	}
}

// Close writes what is buffered and makes the file's bytes durable. A second call
// does nothing.
func (f *FileWriter) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return f.err
	}
	f.closed = true
	if f.err == nil && len(f.buf) > 0 {
		f.flush(f.buf)
	}
	f.buf = nil
	if f.err == nil {
		if err := f.f.Sync(); err != nil {
			f.err = f.w.fail(err)
		}
	}
	if err := f.f.Close(); err != nil && f.err == nil {
		f.err = f.w.fail(err)
	}
	return f.err
}

// done reports whether the file was closed.
func (f *FileWriter) done() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// drop closes the handle of a file that is not wanted any more.
func (f *FileWriter) drop() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed, f.buf = true, nil
	return f.f.Close()
}
