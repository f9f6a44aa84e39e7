package vfs

import (
	"errors"
	"io"
	"os"
	"runtime"
	"sort"
	"syscall"
)

// OS is the operating system's file system.
//
// Invariants: none; it has no state.
//
// Ownership: a value; copy it freely.
type OS struct{}

var _ FS = OS{}

// OpenFile opens name; see FS.
func (OS) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	if flag&os.O_APPEND != 0 { // pwrite ignores its offset on such a handle
		return nil, pathError("open", name, syscall.EINVAL)
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, pathError("open", name, errors.Join(err, f.Close()))
	}
	return &osFile{f: f, raw: raw}, nil
}

// Rename moves a file; see FS.
func (OS) Rename(oldName, newName string) error {
	return pathError("rename "+oldName+" to", newName, os.Rename(oldName, newName))
}

// Link adds a name to a file; see FS.
func (OS) Link(oldName, newName string) error {
	return pathError("link "+oldName+" to", newName, os.Link(oldName, newName))
}

// Remove deletes a name; see FS.
func (OS) Remove(name string) error { return pathError("remove", name, os.Remove(name)) }

// MkdirAll makes a directory and its parents; see FS.
func (OS) MkdirAll(dir string, perm os.FileMode) error {
	return pathError("mkdir", dir, os.MkdirAll(dir, perm))
}

// ReadDir lists a directory; see FS.
func (OS) ReadDir(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, pathError("readdir", dir, err)
	}
	names, err := f.Readdirnames(-1)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, pathError("readdir", dir, err)
	}
	sort.Strings(names)
	return names, nil
}

// Stat describes a name; see FS.
func (OS) Stat(name string) (os.FileInfo, error) { return stat(os.Stat, name) }

// Lstat describes a name, or a symbolic link; see FS.
func (OS) Lstat(name string) (os.FileInfo, error) { return stat(os.Lstat, name) }

func stat(f func(name string) (os.FileInfo, error), name string) (os.FileInfo, error) {
	info, err := f(name)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

// SyncDir makes the entries of dir durable; see FS.
func (OS) SyncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return pathError("open", dir, err)
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.IsDir():
		err = syscall.ENOTDIR
	case runtime.GOOS != "windows": // Windows cannot flush a directory and does not need to
		err = f.Sync()
	}
	return pathError("syncdir", dir, errors.Join(err, f.Close()))
}

// Lock takes the exclusive lock on name; see FS. The lock belongs to a handle of
// its own, so that a second Lock fails in the same process too, and ends with it.
func (OS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, pathError("lock", name, err)
	}
	if err := lockFile(f); err != nil {
		// The refusal is what the caller asks errors.Is about; a failing close of
		// a handle that wrote nothing adds nothing to it.
		_ = f.Close()
		return nil, pathError("lock", name, err)
	}
	return f, nil
}

// osFile is a handle of the operating system.
//
// Invariants: the handle was not opened with O_APPEND.
//
// Ownership: safe for concurrent use; raw keeps the descriptor from being closed
// under a system call.
type osFile struct {
	f   *os.File
	raw syscall.RawConn
}

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("read", f.Name(), syscall.EINVAL)
	}
	n, err := f.f.ReadAt(p, off)
	if err == io.EOF {
		return n, err
	}
	return n, pathError("read", f.Name(), err)
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("write", f.Name(), syscall.EINVAL)
	}
	n, err := f.f.WriteAt(p, off)
	return n, pathError("write", f.Name(), err)
}

func (f *osFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	if off < 0 {
		return 0, pathError("write", f.Name(), syscall.EINVAL)
	}
	n, err := f.writeVAt(bufs, off)
	return n, pathError("write", f.Name(), err)
}

func (f *osFile) Sync() error { return pathError("sync", f.Name(), f.sync()) }

func (f *osFile) Truncate(size int64) error {
	return pathError("truncate", f.Name(), f.f.Truncate(size))
}

func (f *osFile) Preallocate(off, n int64) error {
	if off < 0 || n <= 0 {
		return pathError("preallocate", f.Name(), syscall.EINVAL)
	}
	return pathError("preallocate", f.Name(), f.preallocate(off, n))
}

func (f *osFile) Size() (int64, error) {
	info, err := f.f.Stat()
	if err != nil {
		return 0, pathError("stat", f.Name(), err)
	}
	return info.Size(), nil
}

func (f *osFile) Name() string { return f.f.Name() }

func (f *osFile) Close() error { return pathError("close", f.Name(), f.f.Close()) }

// zeroFill grows the file to off+n by writing zeros after its end: what
// Preallocate does where the file system cannot reserve space. Holes before the
// end stay holes, because writing them could race with a writer of real data.
func (f *osFile) zeroFill(off, n int64) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	zeros := make([]byte, min(max(off+n-size, 0), 1<<20))
	for at := size; at < off+n; at += int64(len(zeros)) {
		if _, err := f.f.WriteAt(zeros[:min(int64(len(zeros)), off+n-at)], at); err != nil {
			return err
		}
	}
	return nil
}

// pathError wraps err with the operation and the file, taking off what the os
// package already wrapped around it.
func pathError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	switch e := err.(type) {
	case *os.PathError:
		err = e.Err
	case *os.LinkError:
		err = e.Err
	case *os.SyscallError:
		err = e.Err
	}
	return &os.PathError{Op: op, Path: name, Err: err}
}
