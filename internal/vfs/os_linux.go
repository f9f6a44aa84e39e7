package vfs

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// iovMax is the kernel's limit on the buffers of one pwritev.
const iovMax = 1024

// writeVAt calls pwritev until everything is written.
func (f *osFile) writeVAt(bufs [][]byte, off int64) (int, error) {
	total := 0
	for len(bufs) > 0 {
		if len(bufs[0]) == 0 {
			bufs = bufs[1:]
			continue
		}
		n := 0
		err := f.call(func(fd int) (err error) {
			n, err = unix.Pwritev(fd, bufs[:min(len(bufs), iovMax)], off+int64(total))
			return err
		})
		if err != nil {
			return total, err
		}
		if n <= 0 {
			return total, io.ErrShortWrite
		}
		total += n
		bufs = after(bufs, n)
	}
	return total, nil
}

// after returns what is left of bufs after n bytes. It copies the headers if it
// has to cut a buffer in two, since bufs is the caller's.
func after(bufs [][]byte, n int) [][]byte {
	for len(bufs) > 0 && n >= len(bufs[0]) {
		n -= len(bufs[0])
		bufs = bufs[1:]
	}
	if n > 0 {
		bufs = append([][]byte{bufs[0][n:]}, bufs[1:]...)
	}
	return bufs
}

// sync is fdatasync: it writes the size and the block map, which reading needs,
// and leaves the times alone, which would cost a journal commit.
func (f *osFile) sync() error { return f.call(unix.Fdatasync) }

// BeginWriteOut is sync_file_range. Some of its errors say that it cannot be done here; of what becomes of the bytes
// it says nothing yet.
func (f *osFile) BeginWriteOut(off, n int64) (bool, error) {
	var fs unix.Statfs_t
	err := f.call(func(fd int) error { return unix.Fstatfs(fd, &fs) })
	if err == nil && writesOutNothing(int64(fs.Type)) {
		return false, nil
	}
	err = f.call(func(fd int) error { return unix.SyncFileRange(fd, off, n, unix.SYNC_FILE_RANGE_WRITE) })
	for _, no := range []error{unix.ENOSYS, unix.EINVAL, unix.EOPNOTSUPP, unix.ESPIPE, unix.EPERM, unix.EACCES} {
		if errors.Is(err, no) {
			return false, nil
		}
	}
	return err == nil, err
}

// writesOutNothing is for file systems whose files have their bytes elsewhere: sync_file_range finds none, and says that all is well.
func writesOutNothing(kind int64) bool {
	const overlay, zfs = unix.OVERLAYFS_SUPER_MAGIC, 0x2fc12fc1
	return kind == overlay || kind == zfs
}

// WriteOut waits for what was begun. That it could be begun shows that this is possible: every error is about the bytes, and
// is not told again.
func (f *osFile) WriteOut(off, n int64) error {
	return f.call(func(fd int) error {
		return unix.SyncFileRange(fd, off, n,
			unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	})
}

// preallocate is fallocate, or writing zeros where the file system has none.
func (f *osFile) preallocate(off, n int64) error {
	err := f.call(func(fd int) error { return unix.Fallocate(fd, 0, off, n) })
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return f.zeroFill(off, n)
	}
	return err
}

// call runs a system call on the descriptor, again as long as a signal interrupts it.
func (f *osFile) call(do func(fd int) error) error {
	var err error
	closed := f.raw.Control(func(fd uintptr) {
		for err = do(int(fd)); err == unix.EINTR; err = do(int(fd)) {
		}
	})
	if closed != nil { // the only way it fails, with an error of its own
		return os.ErrClosed
	}
	return err
}
