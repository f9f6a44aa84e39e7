package vfs

import (
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// ErrDead is what every operation on a killed Mem fails with.
var ErrDead = errors.New("the process was killed")

// CrashModel says how finely a power cut tears what was not synced. The zero
// value is the default.
type CrashModel struct {
	// Sectors makes a 512-byte sector the unit of a write that survives or not,
	// in place of a block of 4 KiB.
	Sectors bool
	// OrderedDirs makes the entry changes of one directory survive as a prefix,
	// as on a journaling file system, in place of any subset.
	OrderedDirs bool
}

// Mem is a file system in memory that behaves like a disk behind a volatile
// cache: it remembers apart what was synced and, in order, what was not, and can
// say what a power cut would leave. It models one machine: names are absolute,
// relative ones start at the root, and only the root exists at first.
//
// Invariants: what it does depends on nothing but the calls made: no clock, no
// randomness, no map order. The number of operations counts those that failed too.
//
// Ownership: safe for concurrent use. mu is a leaf lock: injector, hook and keep
// functions run without it.
type Mem struct {
	mu       sync.Mutex // guards all below and every inode
	root     *inode
	entryOps []entryOp // entry changes not durable yet, in order
	locks    map[string]*memLock
	model    CrashModel
	injector func(Op) error
	onOp     func(Op)
	capacity int64 // in blocks; negative: unlimited
	used     int64 // blocks reserved by the live files
	ops      int64
	seq      int64 // numbers everything that can be a Unit
	inodes   int64
	dead     bool
}

var _ FS = (*Mem)(nil)

// NewMem returns an empty file system.
func NewMem() *Mem {
	m := &Mem{locks: map[string]*memLock{}, capacity: -1}
	m.root = m.newInode(os.ModeDir | 0o755)
	m.root.links = 1
	return m
}

// inode is a file or directory, apart from its names.
//
// Invariants of a file: live is durable plus the changes, failed ones included;
// links counts its live names, opens its handles; without either live is empty.
//
// Ownership: its Mem's, guarded by its mutex.
type inode struct {
	id    int64
	mode  os.FileMode
	links int
	opens int

	live    image    // what reads see
	durable image    // what a power cut leaves for certain
	changes []change // writes and the like since the last Sync, in order
	data    []byte   // the bytes of the writes among them
	failed  bool     // some changes were part of a failed Sync

	parent         *inode // of a directory, while it has a name
	entries        map[string]*inode
	durableEntries map[string]*inode
}

// change is a write, truncation or preallocation that was not synced.
type change struct {
	seq    int64
	kind   UnitKind
	name   string
	off, n int64 // of a truncation off is the size
	data   int   // where its bytes start in inode.data
	failed bool  // a Sync that should have made it durable failed
}

func (m *Mem) newInode(mode os.FileMode) *inode {
	m.inodes++
	n := &inode{id: m.inodes, mode: mode}
	if n.isDir() {
		n.entries, n.durableEntries = map[string]*inode{}, map[string]*inode{}
	}
	return n
}

func (n *inode) isDir() bool { return n.mode.IsDir() }

// note adds a change that a crash may lose.
func (m *Mem) note(n *inode, c change) {
	m.seq++
	c.seq = m.seq
	n.changes = append(n.changes, c)
}

// release gives the space of a file back once nothing can reach its bytes.
func (m *Mem) release(n *inode) {
	if n.links == 0 && n.opens == 0 && !n.isDir() {
		m.used -= n.live.used
		n.live = image{}
	}
}

// SetCrashModel says how finely a later CrashClone tears.
func (m *Mem) SetCrashModel(model CrashModel) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.model = model
}

// SetInjector has inject called before each operation; nil ends it. See Injector.
func (m *Mem) SetInjector(inject func(op Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.injector = inject
}

// OnOp has hook called with each operation after the injector decided about it
// and before it has any effect; nil ends it. The hook may call CrashClone,
// KillClone and Kill.
func (m *Mem) OnOp(hook func(op Op)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.onOp = hook
}

// SetCapacity limits the space of all files, counted in whole blocks of 4 KiB:
// what needs more fails with ENOSPC, a write after as much as fits. Negative
// means unlimited. Space in use already stays.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = -1
	if bytes >= 0 {
		m.capacity = bytes / blockSize
	}
}

// Used is the space the files take, in bytes.
func (m *Mem) Used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used * blockSize
}

// Ops is the number of operations so far.
func (m *Mem) Ops() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Kill ends the process that uses the file system: every later operation on it,
// its files and its locks fails with ErrDead. Clones can still be taken.
func (m *Mem) Kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
}

// free is the number of blocks that may still be reserved.
func (m *Mem) free() int64 {
	if m.capacity < 0 {
		return 1 << 62
	}
	return max(m.capacity-m.used, 0)
}

// begin numbers the operation and asks injector and hook. The caller locks
// afterwards and checks again for death, which the hook may have caused.
func (m *Mem) begin(op Op) error {
	m.mu.Lock()
	if m.dead {
		m.mu.Unlock()
		return ErrDead
	}
	m.ops++
	op.N = m.ops
	inject, hook := m.injector, m.onOp
	m.mu.Unlock()
	var err error
	if inject != nil {
		err = inject(op)
	}
	if hook != nil {
		hook(op)
	}
	return err
}

// do runs an operation: begin, then effect under the lock.
func (m *Mem) do(op Op, effect func() error) error {
	err := m.begin(op)
	if err == nil {
		err = m.locked(effect)
	}
	return memError(op, err)
}

// locked runs effect with the lock, unless the process is dead.
func (m *Mem) locked(effect func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return ErrDead
	}
	return effect()
}

// memError wraps err the way OS does.
func memError(op Op, err error) error {
	if op.To != "" {
		return pathError(op.Kind.String()+" "+op.Name+" to", op.To, err)
	}
	return pathError(op.Kind.String(), op.Name, err)
}

// clean is the one spelling of a name.
func clean(name string) string { return path.Clean("/" + filepath.ToSlash(name)) }

// walk finds a name. Its parent is not nil if only the last element is missing.
func (m *Mem) walk(name string) (parent, n *inode, base string, err error) {
	n = m.root
	rest := clean(name)[1:]
	for rest != "" {
		if !n.isDir() {
			return nil, nil, "", syscall.ENOTDIR
		}
		parent = n
		base, rest, _ = strings.Cut(rest, "/")
		if n = parent.entries[base]; n == nil {
			if rest != "" {
				return nil, nil, "", syscall.ENOENT
			}
			return parent, nil, base, nil
		}
	}
	return parent, n, base, nil
}

// find is walk for a name that must exist.
func (m *Mem) find(name string) (*inode, error) {
	_, n, _, err := m.walk(name)
	if err == nil && n == nil {
		err = syscall.ENOENT
	}
	return n, err
}

// memLock is a held lock.
//
// Invariants: it is m.locks[name] while held and the process lives.
//
// Ownership: the holder's; Mem's mutex guards it.
type memLock struct {
	m    *Mem
	name string
}

// Lock takes the exclusive lock on name; see FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	l := &memLock{m: m, name: name}
	err := m.do(Op{Kind: KindLock, Name: name}, func() error {
		parent, n, base, err := m.walk(name)
		switch {
		case err != nil:
			return err
		case n != nil && n.isDir():
			return syscall.EISDIR
		case m.locks[clean(name)] != nil:
			return ErrLocked
		case n == nil:
			m.create(parent, base, clean(name), 0o644)
		}
		m.locks[clean(name)] = l
		return nil
	})
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Close gives the lock up.
func (l *memLock) Close() error {
	op := Op{Kind: KindClose, Name: l.name}
	injected := l.m.begin(op)
	err := l.m.locked(func() error {
		if l.m.locks[clean(l.name)] != l {
			return os.ErrClosed
		}
		delete(l.m.locks, clean(l.name))
		return injected
	})
	return memError(op, err)
}

// Corrupt changes bytes at rest, on the disk and in the cache: change gets those
// from off to the end of their 4 KiB block or of the file. It is no operation:
// nothing counts it, injects into it or can lose it.
func (m *Mem) Corrupt(name string, off int64, change func([]byte)) error {
	op := Op{Kind: KindWrite, Name: name, Off: off}
	var before []byte
	err := m.locked(func() error {
		n, err := m.find(name)
		switch {
		case err != nil:
			return err
		case n.isDir():
			return syscall.EISDIR
		case off < 0 || off >= n.live.size:
			return syscall.EINVAL
		}
		before = make([]byte, min(blockSize-off%blockSize, n.live.size-off))
		n.live.read(before, off)
		return nil
	})
	if err != nil {
		return memError(op, err)
	}
	after := append([]byte(nil), before...)
	change(after)
	return memError(op, m.locked(func() error {
		n, err := m.find(name)
		if err == nil && !n.isDir() {
			used := n.live.used
			n.live.flip(off, before, after)
			m.used += n.live.used - used // a corrupted hole is one no more
			n.durable.flip(off, before, after)
		}
		return err
	}))
}

// flip flips, in bytes that exist, the bits in which before and after differ.
func (im *image) flip(off int64, before, after []byte) {
	for i := range before {
		at := off + int64(i)
		if mask := before[i] ^ after[i]; mask != 0 && at < im.size {
			im.own(at / blockSize)[at%blockSize] ^= mask
		}
	}
}
