// Package vfs is the file system as the rest of the program sees it: the few
// operations a log and a snapshot store need, with the durability rules of a
// POSIX disk spelled out. OS is the real one; Mem is one in memory that can be
// crashed, filled up and made to fail.
//
// The rules every implementation keeps:
//
//   - Written bytes, a changed size and preallocated space are durable after
//     Sync of any handle of the file, and not before.
//   - A directory entry (a created, renamed, linked or removed name) is durable
//     after SyncDir of its directory, and not before. Sync of a file does not
//     make its name durable.
//   - After a failed Sync nothing is known about what was written since the last
//     successful one, and a later successful Sync says nothing about it either.
//   - Every error is an *os.PathError naming the file, except io.EOF of ReadAt.
package vfs

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// ErrLocked says that somebody else holds the lock. It arrives wrapped in an
// *os.PathError that names the lock file.
var ErrLocked = errors.New("locked by another holder")

// NotOpened reports whether err says that OpenFile could not open a file, or SyncDir the directory, because the process or the
// system had no descriptor or no memory left for it. Nothing was changed but that a file to be made may be there, empty: it
// may be tried again. Of any other operation, a write or a sync above all, and of several errors joined, it never says so.
func NotOpened(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		e, ok := err.(*os.PathError)
		if !ok {
			continue
		}
		return (e.Op == KindOpen.String() || e.Op == KindCreate.String()) && (noDescriptor(e.Err) || errors.Is(e.Err, syscall.ENOMEM))
	}
	return false
}

func noDescriptor(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// FS is a file system.
//
// Invariants: safe for concurrent use; the package comment says what is durable
// when.
//
// Ownership: the file system outlives its files; whoever opens a file closes it.
type FS interface {
	// OpenFile opens name with the os.O_* flags. The parent directory must
	// exist. Each call makes a separate handle. O_APPEND is not supported.
	OpenFile(name string, flag int, perm os.FileMode) (File, error)
	// Rename moves a file atomically, replacing the target if there is one.
	Rename(oldName, newName string) error
	// Link makes newName a second name of the file oldName; newName must not exist.
	Link(oldName, newName string) error
	// Remove deletes a name, or an empty directory.
	Remove(name string) error
	// MkdirAll makes a directory and whatever parents it lacks. Each new one is
	// an entry of its parent, which SyncDir of that parent makes durable.
	MkdirAll(dir string, perm os.FileMode) error
	// ReadDir lists the names in dir, sorted.
	ReadDir(dir string) ([]string, error)
	// Stat describes name.
	Stat(name string) (os.FileInfo, error)
	// Lstat describes name, and of a symbolic link the link itself.
	Lstat(name string) (os.FileInfo, error)
	// SyncDir makes the entries of dir durable. See NotOpened.
	SyncDir(dir string) error
	// Lock takes the exclusive lock on name, making the file if it lacks, and
	// fails with ErrLocked at once if it is held, also by this process. Closing
	// the result gives the lock up; so does the end of the process.
	Lock(name string) (io.Closer, error)
}

// OutWriter is a File that can be written out: see BeginWriteOut and WriteOut, which callers use.
type OutWriter interface {
	BeginWriteOut(off, n int64) (bool, error)
	WriteOut(off, n int64) error
}

// BeginWriteOut has the system begin to write the n bytes at off to the disk, where it knows how,
// and reports whether it does.
func BeginWriteOut(f File, off, n int64) (bool, error) {
	if o, ok := f.(OutWriter); ok && n > 0 { // to the system 0 means all there is
		begun, err := o.BeginWriteOut(off, n)
		return begun, pathError("sync", f.Name(), err)
	}
	return false, nil
}

// WriteOut waits until the n bytes at off, of which BeginWriteOut has said that it is writing them, are on
// the disk. That makes nothing durable, but a Sync that follows has less to do and holds up those of
// other files less. An error says what one of Sync says.
func WriteOut(f File, off, n int64) error {
	if o, ok := f.(OutWriter); ok && n > 0 {
		return pathError("sync", f.Name(), o.WriteOut(off, n))
	}
	return nil
}

// File is an open file.
//
// Invariants: there is no file position; all handles of one file see the same
// bytes at once. ReadAt and WriteAt may run concurrently.
//
// Ownership: the opener's, who closes it once, after the last operation.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// WriteVAt writes bufs back to back at off and reports the bytes written.
	// It never modifies bufs nor keeps them. Fewer than all means an error.
	WriteVAt(bufs [][]byte, off int64) (int, error)
	// Sync makes the file's bytes and size durable.
	Sync() error
	// Truncate sets the size; new bytes are zero.
	Truncate(size int64) error
	// Preallocate reserves space for [off, off+n) and grows the file to cover it.
	// Bytes that were not written read as zero; written ones keep their value.
	Preallocate(off, n int64) error
	// Size is the current size.
	Size() (int64, error)
	// Name is the name the file was opened with.
	Name() string
}
