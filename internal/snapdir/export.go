package snapdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// ExportSuffix ends the name under which Export makes a directory until it is whole.
const ExportSuffix = ".tmp"

// Export copies a snapshot to a directory of its own, which must not exist, and
// verifies it on the way: a damaged snapshot is not exported. The directory has the
// form of a snapshot's and appears whole or not at all: it is made under the name with
// ExportSuffix, which must not exist either. os.ErrExist comes in an *os.PathError that
// says which of the two does. An export that was killed leaves what it has made.
func Export(r *Reader, fs vfs.FS, dir string, w Watch) error {
	if err := export(r, fs, dir, w); err != nil {
		return fmt.Errorf("export snapshot %d to %s: %w", r.Index(), dir, err)
	}
	return nil
}

func export(r *Reader, fs vfs.FS, dir string, w Watch) (err error) {
	dir = filepath.Clean(dir)
	temp := dir + ExportSuffix
	for _, name := range []string{dir, temp} { // whose it is nobody can tell, so it is not deleted
		if err := absent(fs, name); err != nil {
			return err
		}
	}
	if err := vfs.MakeDir(fs, temp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeAll(fs, temp))
		}
	}()
	m := *r.snap.manifest
	m.files = r.Files()
	for i := range m.files {
		f := &m.files[i]
		src, err := r.Open(f.Name)
		if err != nil {
			return err
		}
		err = exportFile(src, f, fs, temp, r.snap.store.layout, w)
		if err = errors.Join(err, src.Close()); err != nil {
			return err
		}
	}
	if err := seal(fs, temp, &m); err != nil {
		return err
	}
	if err := fs.Rename(temp, dir); err != nil {
		return err
	}
	return fs.SyncDir(filepath.Dir(dir))
}

// absent fails if there is something of that name.
func absent(fs vfs.FS, name string) error {
	_, err := fs.Stat(name)
	switch {
	case err == nil:
		return &os.PathError{Op: "create", Path: name, Err: os.ErrExist}
	case errors.Is(err, os.ErrNotExist):
		return nil
	}
	return err
}

func exportFile(src *SnapshotFile, f *File, fs vfs.FS, dir string, l layout, w Watch) error {
	full := filepath.Join(dir, f.Name)
	if err := fs.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	dst, err := fs.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = copyVerified(io.NewOffsetWriter(dst, 0), src, filepath.Join(src.snap.path, f.Name), f, l, w)
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}

// copyVerified copies a file and compares it with its hashes.
func copyVerified(dst io.Writer, src io.ReaderAt, path string, f *File, l layout, w Watch) error {
	damaged := func(off int64, reason string) error {
		return &DamageError{Path: path, Name: f.Name, Offset: off, Reason: reason}
	}
	d, buf := newDigest(l), make([]byte, l.leaf)
	if f.hashed() {
		d.block = f.blockSize
	}
	for eof := false; !eof; {
		if err := w.stopped(); err != nil {
			return err
		}
		n, err := src.ReadAt(buf, d.size)
		w.read(n)
		if eof = errors.Is(err, io.EOF); err != nil && !eof {
			return err
		}
		if f.hashed() && d.size+int64(n) > f.Size {
			return damaged(f.Size, "it should end there")
		}
		_, _ = d.Write(buf[:n])
		if _, err := dst.Write(buf[:n]); err != nil {
			return err
		}
	}
	if !f.hashed() {
		if !d.agrees(f) {
			return damaged(0, "its content does not match its checksum")
		}
		d.describe(f)
		return nil
	}
	var got File
	d.describe(&got)
	if got.Size != f.Size {
		return damaged(got.Size, "it ends there, too early")
	}
	for i := range count(f.Size, f.blockSize) {
		off, _, want := f.block(i)
		if _, _, sum := got.block(i); !bytes.Equal(sum, want) {
			return damaged(off, "the block there does not match its hash")
		}
	}
	return nil
}

// Import makes a snapshot of an exported directory, or of one that braft has made,
// with the given index, term and configuration. It verifies on the way.
func (s *Store) Import(fs vfs.FS, dir string, meta *raftpb.SnapshotMeta, groupID uint64, w Watch) (*Reader, error) {
	m, err := readManifest(fs, dir, s.layout)
	if err != nil {
		return nil, fmt.Errorf("import snapshot from %s: %w", dir, err)
	}
	to, err := s.NewWriter()
	if err != nil {
		return nil, fmt.Errorf("import snapshot from %s: %w", dir, err)
	}
	for i := range m.files {
		if err := s.importFile(fs, dir, &m.files[i], to, w); err != nil {
			return nil, errors.Join(fmt.Errorf("import snapshot from %s: %w", dir, err), to.Abort())
		}
	}
	return to.Commit(meta, groupID)
}

func (s *Store) importFile(fs vfs.FS, dir string, f *File, to *Writer, w Watch) error {
	full := filepath.Join(dir, f.Name)
	src, err := fs.OpenFile(full, os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return &DamageError{Path: full, Name: f.Name, Reason: "it is missing"}
	}
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // it was only read
	dst, err := to.Create(f.Name)
	if err != nil {
		return err
	}
	if err := copyVerified(dst, src, full, f, s.layout, w); err != nil {
		return err
	}
	if err := dst.Close(); err != nil {
		return err
	}
	return to.AddFile(f.Name, f.UserMeta)
}
