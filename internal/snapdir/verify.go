package snapdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/graft-raft/graft/internal/vfs"
)

// Verify makes sure that the snapshot is what was saved: the manifest, each block of
// each file, no file missing and none too many. A *DamageError says what is not.
// Once it has succeeded it does nothing until the process ends; Scrub does it again.
// Of a file without hashes, as braft saves them, it only sees that it can be read.
// The blocks of a snapshot that a Copy has just taken in are not read again: the Copy
// has compared each of them, as the file has it.
func (r *Reader) Verify(w Watch) error {
	r.snap.store.mu.Lock()
	verified, matched := r.snap.verified, r.snap.matched
	r.snap.store.mu.Unlock()
	if verified {
		return nil
	}
	return r.check(w, !matched)
}

// Scrub is Verify without regard to an earlier one, or to how the snapshot came here.
func (r *Reader) Scrub(w Watch) error { return r.check(w, true) }

// check compares the snapshot with its manifest, and its blocks with their hashes if wanted.
func (r *Reader) check(w Watch, blocks bool) error {
	if err := r.acquire(); err != nil {
		return err
	}
	sn := r.snap
	err := verifyDir(sn.store.fs, sn.path, sn.manifest, sn.store.layout, blocks, w)
	var damage *DamageError
	sn.store.mu.Lock()
	switch {
	case err == nil:
		sn.verified = true
	case errors.As(err, &damage):
		sn.damage, sn.verified, sn.matched = damage, false, false
	}
	sn.store.mu.Unlock()
	return errors.Join(err, sn.release())
}

// VerifyDir verifies a snapshot that no Store manages, such as an exported one, and
// describes it.
func VerifyDir(fs vfs.FS, dir string, w Watch) (Info, error) {
	m, err := readManifest(fs, dir, standard())
	if err != nil {
		return Info{}, err
	}
	sn := &snapshot{index: m.index(), path: dir, manifest: m}
	err = verifyDir(fs, dir, m, standard(), true, w)
	sn.verified = err == nil
	return sn.info(), err
}

func verifyDir(fs vfs.FS, dir string, m *manifest, l layout, blocks bool, w Watch) error {
	again, err := readManifest(fs, dir, l)
	if err != nil {
		return err
	}
	if again.diskCRC != m.diskCRC {
		return &DamageError{Path: filepath.Join(dir, manifestName), Name: manifestName, Reason: "it has changed"}
	}
	if err := walk(fs, dir, ".", func(name string) error {
		if name == manifestName || m.file(name) != nil {
			return nil
		}
		return &DamageError{Path: filepath.Join(dir, name), Name: name, Reason: "the manifest does not list it"}
	}); err != nil {
		return err
	}
	buf := make([]byte, l.leaf)
	for i := range m.files {
		if err := verifyFile(fs, dir, &m.files[i], l, blocks, buf, w); err != nil {
			return err
		}
	}
	return nil
}

// verifyFile compares a file with its hashes, or only its size with what it should be.
func verifyFile(fs vfs.FS, dir string, file *File, l layout, blocks bool, buf []byte, w Watch) (err error) {
	full := filepath.Join(dir, file.Name)
	damaged := func(off int64, format string, args ...any) error {
		return &DamageError{Path: full, Name: file.Name, Offset: off, Reason: fmt.Sprintf(format, args...)}
	}
	info, err := fs.Stat(full)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return damaged(0, "it is missing")
	case err != nil:
		return err
	case info.IsDir():
		return damaged(0, "it is a directory")
	}
	f, err := fs.OpenFile(full, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if !file.hashed() {
		if !blocks {
			return nil
		}
		d, err := l.hashAll(f, w)
		if err == nil && !d.agrees(file) {
			err = damaged(0, "its content does not match its checksum")
		}
		return err
	}
	size, err := f.Size()
	if err == nil {
		err = file.checkSize(full, size)
	}
	if err != nil || !blocks {
		return err
	}
	for i := range count(file.Size, file.blockSize) {
		off, n, want := file.block(i)
		sum, err := l.sumAt(f, off, n, buf, w)
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return damaged(off, "it ends too early")
		case err != nil:
			return err
		case !bytes.Equal(sum, want):
			return damaged(off, "the block of %d bytes there does not match its hash", n)
		}
	}
	return nil
}

// checkSize fails if the file at path has another size than it should have, where that is known.
func (f *File) checkSize(path string, size int64) error {
	damage := &DamageError{Path: path, Name: f.Name, Offset: min(size, f.Size)}
	switch {
	case !f.hashed() || size == f.Size:
		return nil
	case size < f.Size:
		damage.Reason = fmt.Sprintf("it ends there, %d bytes too early: it should have %d", f.Size-size, f.Size)
	default:
		damage.Reason = fmt.Sprintf("it should end there and has %d bytes more", size-f.Size)
	}
	return damage
}
