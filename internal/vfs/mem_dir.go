package vfs

import (
	"io/fs"
	"os"
	"path"
	"sort"
	"strings"
	"syscall"
	"time"
)

// entryOp is a change of directory entries that is not durable yet: it takes ino
// away from one place, puts it at another, or both at once.
type entryOp struct {
	seq              int64
	kind             UnitKind
	ino              *inode
	oldDir, newDir   *inode // nil if there is no such side
	oldName, newName string
	name, to         string // as in Unit
	failed           bool   // a SyncDir that should have made it durable failed
}

// change notes an entry change and carries it out in the live directories.
func (m *Mem) change(op entryOp) {
	m.seq++
	op.seq = m.seq
	m.entryOps = append(m.entryOps, op)
	if op.oldDir != nil {
		delete(op.oldDir.entries, op.oldName)
	}
	if op.newDir != nil {
		op.newDir.entries[op.newName] = op.ino
		if op.ino.isDir() {
			op.ino.parent = op.newDir
		}
	}
}

// create makes a file or directory.
func (m *Mem) create(parent *inode, base, name string, mode os.FileMode) *inode {
	n := m.newInode(mode)
	n.links = 1
	kind := UnitCreate
	if n.isDir() {
		kind = UnitMkdir
	}
	m.change(entryOp{kind: kind, ino: n, newDir: parent, newName: base, name: name})
	return n
}

// drop takes one name from a file.
func (m *Mem) drop(n *inode) {
	n.links--
	if n.isDir() {
		n.parent = nil
	}
	m.release(n)
}

// Rename moves a file or directory; see FS.
func (m *Mem) Rename(oldName, newName string) error {
	return m.do(Op{Kind: KindRename, Name: oldName, To: newName}, func() error {
		return m.rename(oldName, newName)
	})
}

func (m *Mem) rename(oldName, newName string) error {
	oldDir, n, oldBase, err := m.walk(oldName)
	if err != nil {
		return err
	}
	newDir, target, newBase, err := m.walk(newName)
	switch {
	case err != nil:
		return err
	case n == nil:
		return syscall.ENOENT
	case oldDir == nil || newDir == nil: // the root
		return syscall.EBUSY
	case target != nil && target.isDir():
		return syscall.EEXIST
	case target == n: // two names of one file: POSIX does nothing
		return nil
	}
	for d := newDir; d != nil; d = d.parent {
		if d == n {
			return syscall.EINVAL
		}
	}
	if target != nil && n.isDir() {
		return syscall.ENOTDIR
	}
	m.change(entryOp{
		kind: UnitRename, ino: n, name: clean(oldName), to: clean(newName),
		oldDir: oldDir, oldName: oldBase, newDir: newDir, newName: newBase,
	})
	if target != nil {
		m.drop(target)
	}
	return nil
}

// Link adds a name to a file; see FS.
func (m *Mem) Link(oldName, newName string) error {
	return m.do(Op{Kind: KindLink, Name: oldName, To: newName}, func() error {
		n, err := m.find(oldName)
		if err != nil {
			return err
		}
		dir, target, base, err := m.walk(newName)
		switch {
		case err != nil:
			return err
		case target != nil:
			return syscall.EEXIST
		case n.isDir():
			return syscall.EPERM
		}
		n.links++
		m.change(entryOp{kind: UnitLink, ino: n, newDir: dir, newName: base, name: clean(oldName), to: clean(newName)})
		return nil
	})
}

// Remove deletes a name or an empty directory; see FS.
func (m *Mem) Remove(name string) error {
	return m.do(Op{Kind: KindRemove, Name: name}, func() error {
		dir, n, base, err := m.walk(name)
		switch {
		case err != nil:
			return err
		case n == nil:
			return syscall.ENOENT
		case dir == nil:
			return syscall.EBUSY
		case len(n.entries) > 0:
			return syscall.ENOTEMPTY
		}
		m.change(entryOp{kind: UnitRemove, ino: n, oldDir: dir, oldName: base, name: clean(name)})
		m.drop(n)
		return nil
	})
}

// MkdirAll makes a directory and its parents; see FS.
func (m *Mem) MkdirAll(dir string, perm os.FileMode) error {
	return m.do(Op{Kind: KindMkdir, Name: dir}, func() error {
		at, full := m.root, ""
		for _, base := range strings.FieldsFunc(clean(dir), func(r rune) bool { return r == '/' }) {
			full += "/" + base
			if !at.isDir() {
				return syscall.ENOTDIR
			}
			next := at.entries[base]
			if next == nil {
				next = m.create(at, base, full, os.ModeDir|perm.Perm())
			}
			at = next
		}
		if !at.isDir() {
			return syscall.ENOTDIR
		}
		return nil
	})
}

// ReadDir lists a directory; see FS.
func (m *Mem) ReadDir(dir string) ([]string, error) {
	var names []string
	err := m.do(Op{Kind: KindReadDir, Name: dir}, func() error {
		n, err := m.findDir(dir)
		if err == nil {
			names = sortedNames(n.entries)
		}
		return err
	})
	return names, err
}

func sortedNames(entries map[string]*inode) []string {
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (m *Mem) findDir(dir string) (*inode, error) {
	n, err := m.find(dir)
	if err == nil && !n.isDir() {
		err = syscall.ENOTDIR
	}
	return n, err
}

// SyncDir makes the entries of dir durable; see FS. A rename between two
// directories is durable after SyncDir of either.
func (m *Mem) SyncDir(dir string) error {
	op := Op{Kind: KindSyncDir, Name: dir}
	injected := m.begin(op)
	if noDescriptor(injected) {
		return memError(Op{Kind: KindOpen, Name: dir}, injected)
	}
	return memError(op, m.locked(func() error {
		n, err := m.findDir(dir)
		if err != nil {
			return err
		}
		if injected == nil {
			m.syncEntries(n)
			return nil
		}
		for i := range m.entryOps {
			if m.entryOps[i].touches(n) {
				m.entryOps[i].failed = true
			}
		}
		return injected
	}))
}

// syncEntries makes the entry changes of dir durable, with what they depend on.
func (m *Mem) syncEntries(dir *inode) {
	keep := make([]bool, len(m.entryOps))
	for i, op := range m.entryOps {
		keep[i] = op.touches(dir) && !op.failed
	}
	imply(m.entryOps, keep)
	var rest []entryOp
	for i, op := range m.entryOps {
		if keep[i] {
			op.apply(func(d *inode) map[string]*inode { return d.durableEntries })
		} else {
			rest = append(rest, op)
		}
	}
	m.entryOps = rest
}

// touches reports whether the change is in dir.
func (op *entryOp) touches(dir *inode) bool { return op.oldDir == dir || op.newDir == dir }

// apply carries the change out in the entries that of gives for a directory.
func (op *entryOp) apply(of func(dir *inode) map[string]*inode) {
	if op.oldDir != nil {
		if entries := of(op.oldDir); entries[op.oldName] == op.ino {
			delete(entries, op.oldName)
		}
	}
	if op.newDir != nil {
		of(op.newDir)[op.newName] = op.ino
	}
}

// Lstat is Stat: there are no symbolic links.
func (m *Mem) Lstat(name string) (os.FileInfo, error) { return m.Stat(name) }

// Stat describes a name; see FS. There is no clock, so the time is zero.
func (m *Mem) Stat(name string) (os.FileInfo, error) {
	var info memInfo
	err := m.do(Op{Kind: KindStat, Name: name}, func() error {
		n, err := m.find(name)
		if err == nil {
			info = memInfo{name: path.Base(clean(name)), mode: n.mode, size: n.live.size}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return info, nil
}

// memInfo is the os.FileInfo of a Mem.
type memInfo struct {
	name string
	mode fs.FileMode
	size int64
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) Mode() fs.FileMode  { return i.mode }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.mode.IsDir() }
func (i memInfo) Sys() any           { return nil }
