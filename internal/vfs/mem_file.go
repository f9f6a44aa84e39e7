package vfs

import (
	"errors"
	"io"
	"os"
	"syscall"
)

// memFile is a handle of a Mem.
//
// Invariants: it counts among its inode's opens until it is closed.
//
// Ownership: the opener's; closed is guarded by Mem's mutex, the rest is constant.
type memFile struct {
	m        *Mem
	n        *inode
	name     string
	full     string // the one spelling of name, for Unit
	readable bool
	writable bool
	closed   bool
}

// OpenFile opens name; see FS.
func (m *Mem) OpenFile(name string, flag int, perm os.FileMode) (File, error) {
	access := flag & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
	f := &memFile{m: m, name: name, full: clean(name), readable: access != os.O_WRONLY, writable: access != os.O_RDONLY}
	op := Op{Kind: KindOpen, Name: name}
	if flag&os.O_CREATE != 0 && m.lacks(name) {
		op.Kind = KindCreate
	}
	if err := m.do(op, func() error { return m.open(f, flag, perm) }); err != nil {
		return nil, err
	}
	return f, nil
}

func (m *Mem) lacks(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, n, _, err := m.walk(name)
	return err == nil && n == nil
}

func (m *Mem) open(f *memFile, flag int, perm os.FileMode) error {
	if flag&os.O_APPEND != 0 {
		return syscall.EINVAL
	}
	parent, n, base, err := m.walk(f.name)
	switch {
	case err != nil:
		return err
	case n == nil && flag&os.O_CREATE == 0:
		return syscall.ENOENT
	case n == nil:
		n = m.create(parent, base, f.full, perm.Perm())
	case flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return syscall.EEXIST
	case n.isDir():
		return syscall.EISDIR
	}
	n.opens++
	f.n = n
	if flag&os.O_TRUNC != 0 && f.writable && n.live.size > 0 {
		f.truncate(0)
	}
	return nil
}

// do runs an operation on an open handle. A nil access stands for no demand.
func (f *memFile) do(op Op, allowed bool, refusal error, effect func() error) error {
	return f.m.do(op, func() error {
		switch {
		case f.closed:
			return os.ErrClosed
		case !allowed:
			return refusal
		}
		return effect()
	})
}

// ReadAt reads; see File.
func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	op := Op{Kind: KindRead, Name: f.name, Off: off, Len: int64(len(p))}
	err := f.do(op, f.readable, syscall.EBADF, func() error {
		if off < 0 {
			return syscall.EINVAL
		}
		n = int(max(0, min(int64(len(p)), f.n.live.size-off)))
		f.n.live.read(p[:n], off)
		return nil
	})
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt writes; see File.
func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	return f.WriteVAt([][]byte{p}, off)
}

// WriteVAt writes several buffers; see File.
func (f *memFile) WriteVAt(bufs [][]byte, off int64) (int, error) {
	total := int64(0)
	for _, b := range bufs {
		total += int64(len(b))
	}
	n, want := int64(0), total
	op := Op{Kind: KindWrite, Name: f.name, Off: off, Len: total}
	injected := f.m.begin(op)
	if injected != nil {
		want = 0
		var short ShortWrite
		if errors.As(injected, &short) {
			want = max(0, min(int64(short.N), total))
		}
	}
	err := f.m.locked(func() error {
		switch {
		case f.closed:
			return os.ErrClosed
		case !f.writable:
			return syscall.EBADF
		case off < 0:
			return syscall.EINVAL
		}
		n = f.fits(off, want)
		if n > 0 {
			f.write(bufs, off, n)
		}
		if n < want {
			return syscall.ENOSPC
		}
		return injected
	})
	return int(n), memError(op, err)
}

// fits returns how many of the want bytes at off there is space for.
func (f *memFile) fits(off, want int64) int64 {
	free := f.m.free()
	if f.n.live.missing(off, want) <= free {
		return want
	}
	for at := off; at < off+want; at += blockSize - at%blockSize {
		if free -= f.n.live.missing(at, 1); free < 0 {
			return at - off
		}
	}
	return want
}

// write stores the first n bytes of bufs at off.
func (f *memFile) write(bufs [][]byte, off, n int64) {
	used, start := f.n.live.used, len(f.n.data)
	at := off
	for _, b := range bufs {
		b = b[:min(int64(len(b)), off+n-at)]
		f.n.live.write(b, at)
		f.n.data = append(f.n.data, b...)
		at += int64(len(b))
	}
	f.m.used += f.n.live.used - used
	f.m.note(f.n, change{kind: UnitWrite, name: f.full, off: off, n: n, data: start})
}

// Sync makes the file durable; see File and Injector.
func (f *memFile) Sync() error {
	op := Op{Kind: KindSync, Name: f.name}
	injected := f.m.begin(op)
	return memError(op, f.m.locked(func() error {
		switch {
		case f.closed:
			return os.ErrClosed
		case injected != nil:
			f.n.failSync()
			return injected
		}
		f.n.sync()
		return nil
	}))
}

// Truncate sets the size; see File.
func (f *memFile) Truncate(size int64) error {
	op := Op{Kind: KindTruncate, Name: f.name, Off: size}
	return f.do(op, f.writable, syscall.EINVAL, func() error {
		if size < 0 {
			return syscall.EINVAL
		}
		if size != f.n.live.size {
			f.truncate(size)
		}
		return nil
	})
}

func (f *memFile) truncate(size int64) {
	used := f.n.live.used
	f.n.live.truncate(size)
	f.m.used += f.n.live.used - used
	f.m.note(f.n, change{kind: UnitTruncate, name: f.full, off: size})
}

// Preallocate reserves space, all of it or none; see File.
func (f *memFile) Preallocate(off, n int64) error {
	op := Op{Kind: KindPreallocate, Name: f.name, Off: off, Len: n}
	return f.do(op, f.writable, syscall.EBADF, func() error {
		if off < 0 || n <= 0 {
			return syscall.EINVAL
		}
		used := f.n.live.used
		if f.n.live.missing(off, n) > f.m.free() {
			return syscall.ENOSPC
		}
		f.n.live.reserveRange(off, n)
		f.n.live.grow(off + n)
		f.m.used += f.n.live.used - used
		f.m.note(f.n, change{kind: UnitPreallocate, name: f.full, off: off, n: n})
		return nil
	})
}

// Size is the current size; see File.
func (f *memFile) Size() (size int64, err error) {
	err = f.do(Op{Kind: KindStat, Name: f.name}, true, nil, func() error {
		size = f.n.live.size
		return nil
	})
	return size, err
}

// Name is the name the file was opened with.
func (f *memFile) Name() string { return f.name }

// Close ends the handle, also if it fails. What was not synced stays unsynced.
func (f *memFile) Close() error {
	op := Op{Kind: KindClose, Name: f.name}
	injected := f.m.begin(op)
	return memError(op, f.m.locked(func() error {
		if f.closed {
			return os.ErrClosed
		}
		f.closed = true
		f.n.opens--
		f.m.release(f.n)
		return injected
	}))
}
