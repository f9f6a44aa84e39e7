package snapdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// Reader holds a snapshot: as long as it is open nothing of it is deleted.
//
// Invariants: while it is open, and for each open SnapshotFile, it counts among the
// snapshot's refs.
//
// Ownership: safe for concurrent use; closed is guarded by the store's mu.
type Reader struct {
	snap   *snapshot
	closed bool
}

// reader makes a Reader. The caller holds the store's mu.
func (sn *snapshot) reader() *Reader {
	sn.refs++
	return &Reader{snap: sn}
}

// acquire holds the snapshot once more, for one operation or one file.
func (r *Reader) acquire() error {
	s := r.snap.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.closed {
		return fmt.Errorf("snapshot %d: %w", r.snap.index, ErrClosed)
	}
	r.snap.refs++
	return nil
}

// release gives a hold up, and deletes the snapshot if it is the last on a
// condemned one, unless the store was closed.
func (sn *snapshot) release() error {
	s := sn.store
	s.mu.Lock()
	sn.refs--
	last := sn.condemned && sn.refs == 0
	s.mu.Unlock()
	if !last {
		return nil
	}
	s.changes.Lock()
	defer s.changes.Unlock()
	return s.bury()
}

// Close gives the snapshot up; a second call does nothing. The error is that of
// deleting it, if this was what it waited for; Prune tries again.
func (r *Reader) Close() error {
	s := r.snap.store
	s.mu.Lock()
	was := r.closed
	r.closed = true
	s.mu.Unlock()
	if was {
		return nil
	}
	return r.snap.release()
}

// Meta is index, term and configuration. It is the caller's.
func (r *Reader) Meta() *raftpb.SnapshotMeta { return proto.CloneOf(r.snap.manifest.meta) }

// Index is the last index the snapshot includes.
func (r *Reader) Index() int64 { return r.snap.index }

// Path is the snapshot's directory. What is in it must not be changed: files may be
// shared with other snapshots.
func (r *Reader) Path() string { return r.snap.path }

// Info describes the snapshot.
func (r *Reader) Info() Info {
	r.snap.store.mu.Lock()
	defer r.snap.store.mu.Unlock()
	return r.snap.info()
}

// Files lists the files in the order in which they were added.
func (r *Reader) Files() []File { return append([]File(nil), r.snap.manifest.files...) }

// File describes one file.
func (r *Reader) File(name string) (File, bool) {
	if f := r.snap.manifest.file(name); f != nil {
		return *f, true
	}
	return File{}, false
}

// Manifest is the manifest as it is served to other nodes.
func (r *Reader) Manifest() ([]byte, error) { return r.snap.manifest.encode() }

// SnapshotFile is an open file of a snapshot. It keeps the snapshot from being
// deleted, as a Reader does.
//
// Invariants: size does not change.
//
// Ownership: ReadAt is safe for concurrent use, Read and Close are not.
type SnapshotFile struct {
	snap *snapshot
	f    vfs.File
	size int64
	off  int64 // of the next Read
	done bool
}

// Open opens a file of the snapshot.
func (r *Reader) Open(name string) (*SnapshotFile, error) {
	if r.snap.manifest.file(name) == nil {
		return nil, fmt.Errorf("snapshot %d: %w: %q", r.snap.index, ErrNoFile, name)
	}
	if err := r.acquire(); err != nil {
		return nil, err
	}
	f, size, err := r.snap.open(name)
	if err != nil {
		return nil, errors.Join(err, r.snap.release())
	}
	return &SnapshotFile{snap: r.snap, f: f, size: size}, nil
}

func (sn *snapshot) open(name string) (vfs.File, int64, error) {
	f, err := sn.store.fs.OpenFile(filepath.Join(sn.path, name), os.O_RDONLY, 0)
	if err != nil {
		return nil, 0, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, size, nil
}

// Size is the file's size.
func (f *SnapshotFile) Size() int64 { return f.size }

// ReadAt reads as io.ReaderAt says.
func (f *SnapshotFile) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// Read reads what follows the last Read.
func (f *SnapshotFile) Read(p []byte) (int, error) {
	n, err := f.f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Close ends the handle; a second call does nothing.
func (f *SnapshotFile) Close() error {
	if f.done {
		return nil
	}
	f.done = true
	return errors.Join(f.f.Close(), f.snap.release())
}

// Serve answers a read of another node: the n = min(count, limit) bytes at off, fewer
// at the end of the file. It appends them to dst. The manifest is given whole,
// whatever is asked of it. eof says that nothing follows. An off or count that makes
// no sense is ErrRange, a file that is not in the snapshot ErrNoFile, one of another
// size than the manifest's a *DamageError: what ends too early would pass for its end.
func (r *Reader) Serve(dst []byte, name string, off, count, limit int64) (data []byte, eof bool, err error) {
	if off < 0 || count <= 0 {
		return dst, false, fmt.Errorf("%w: offset %d, count %d", ErrRange, off, count)
	}
	if name == manifestName {
		bare, err := r.Manifest()
		return append(dst, bare...), true, err
	}
	f, err := r.Open(name)
	if err != nil {
		return dst, false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := r.snap.manifest.file(name).checkSize(f.f.Name(), f.size); err != nil {
		return dst, false, err
	}
	n := min(count, limit, max(f.size-off, 0))
	at := len(dst)
	dst = slices.Grow(dst, int(max(n, 0)))[:at+int(max(n, 0))]
	if n > 0 {
		if got, err := f.ReadAt(dst[at:], off); int64(got) < n {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return dst[:at], false, err
		}
	}
	return dst, off+max(n, 0) >= f.size, nil
}
