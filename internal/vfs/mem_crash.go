package vfs

import "sort"

// UnitKind says what a Unit is.
type UnitKind int

// The kinds of units.
const (
	UnitWrite       UnitKind = iota + 1 // a write, or the part of it in one block or sector
	UnitTruncate                        // a change of size
	UnitPreallocate                     // reserved space, and the size that came with it
	UnitCreate                          // the name of a new file
	UnitMkdir                           // the name of a new directory
	UnitLink                            // a further name of a file
	UnitRename                          // a moved name, together with whatever it replaced
	UnitRemove                          // a removed name
)

// Unit is the smallest piece of unsynced work: a power cut leaves all of it or
// nothing. Units are not independent in everything; see CrashClone.
type Unit struct {
	Index  int // its place in Units, from 0
	Kind   UnitKind
	Name   string // absolute; of a rename or link the old name, of a file the one it was opened with
	To     string // the new name of a rename or link
	Off    int64  // of a write or preallocation; the new size of a truncate
	Len    int64  // of a write or preallocation
	Failed bool   // a Sync or SyncDir reported that this may be lost; a later successful one did not cover it
}

// piece is a unit with its place: in the changes of a file or in the entry changes.
type piece struct {
	unit Unit
	seq  int64
	ino  *inode // nil for an entry change
	at   int    // index in ino.changes or Mem.entryOps
}

// Units lists what was not synced, in the order in which it was done. It is what
// the next CrashClone will ask about.
func (m *Mem) Units() []Unit {
	m.mu.Lock()
	defer m.mu.Unlock()
	pieces := m.pieces(m.reachable())
	units := make([]Unit, len(pieces))
	for i, p := range pieces {
		units[i] = p.unit
	}
	return units
}

// CrashClone returns the file system as found after a power cut. What was synced
// is there; keep is asked once about each unit that was not, in the order of
// Units. Nil keeps nothing. The clone has no handles, no locks, nothing unsynced,
// and the capacity and crash model of m, which stays as it is.
//
// Some units entail others. A surviving write leaves its block (or sector) as
// it was in the cache right after it, so it brings earlier writes to that block
// along. A truncation or preallocation brings earlier ones of its file along, and
// a write beyond a truncation brings that along. An entry change brings along
// earlier ones of the same names; removing a directory, what emptied it; a rename
// into another directory, that directory. The file's size is that of what
// survived, and holes are zero.
func (m *Mem) CrashClone(keep func(unit Unit) bool) *Mem {
	m.mu.Lock()
	frozen := m.copyAll() // keep must run without the lock
	m.mu.Unlock()
	pieces := frozen.pieces(frozen.reachable())
	kept := make([]bool, len(pieces))
	for i, p := range pieces {
		kept[i] = keep != nil && keep(p.unit)
	}
	return frozen.afterCut(pieces, kept)
}

// KillClone returns the file system as the next process finds it: nothing is
// lost, and what was unsynced still is. It has no handles and no locks.
func (m *Mem) KillClone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.copyAll()
}

// reachable lists the inodes that a crash could leave, by id.
func (m *Mem) reachable() []*inode {
	seen := map[*inode]bool{}
	var list []*inode
	var visit func(n *inode)
	visit = func(n *inode) {
		if n == nil || seen[n] {
			return
		}
		seen[n] = true
		list = append(list, n)
		for _, c := range n.entries {
			visit(c)
		}
		for _, c := range n.durableEntries {
			visit(c)
		}
	}
	visit(m.root)
	for _, op := range m.entryOps {
		visit(op.ino)
		visit(op.oldDir)
		visit(op.newDir)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].id < list[j].id })
	return list
}

// pieces lists the unsynced units of the given inodes and of the directories.
func (m *Mem) pieces(inodes []*inode) []piece {
	cell := int64(blockSize)
	if m.model.Sectors {
		cell = sectorSize
	}
	var pieces []piece
	for _, n := range inodes {
		pieces = n.pieces(pieces, cell)
	}
	for i, op := range m.entryOps {
		u := Unit{Kind: op.kind, Name: op.name, To: op.to, Failed: op.failed}
		pieces = append(pieces, piece{unit: u, seq: op.seq, at: i})
	}
	sort.SliceStable(pieces, func(i, j int) bool { return pieces[i].seq < pieces[j].seq })
	for i := range pieces {
		pieces[i].unit.Index = i
	}
	return pieces
}

// pieces appends the units of one file, its writes cut into cells.
func (n *inode) pieces(pieces []piece, cell int64) []piece {
	for i, c := range n.changes {
		u := Unit{Kind: c.kind, Name: c.name, Off: c.off, Len: c.n, Failed: c.failed}
		if c.kind != UnitWrite {
			pieces = append(pieces, piece{unit: u, seq: c.seq, ino: n, at: i})
			continue
		}
		pieceOf(c.off, c.n, cell, func(off, part int64) {
			u.Off, u.Len = off, part
			pieces = append(pieces, piece{unit: u, seq: c.seq, ino: n, at: i})
		})
	}
	return pieces
}

// copyAll copies everything but handles, locks and hooks. Blocks are shared.
func (m *Mem) copyAll() *Mem {
	out := &Mem{
		locks: map[string]*memLock{}, model: m.model, capacity: m.capacity,
		seq: m.seq, inodes: m.inodes,
	}
	old := m.reachable()
	copies := make(map[*inode]*inode, len(old))
	for _, n := range old {
		copies[n] = n.copy()
	}
	for _, n := range old {
		c := copies[n]
		c.parent = copies[n.parent]
		c.entries, c.durableEntries = mapped(n.entries, copies), mapped(n.durableEntries, copies)
		if c.links == 0 && !c.isDir() { // only a handle kept it, and those are gone
			c.live = image{}
		}
		out.used += c.live.used
	}
	out.root = copies[m.root]
	for _, op := range m.entryOps {
		op.ino, op.oldDir, op.newDir = copies[op.ino], copies[op.oldDir], copies[op.newDir]
		out.entryOps = append(out.entryOps, op)
	}
	return out
}

// copy copies the file without its handles; the caller maps its relations.
func (n *inode) copy() *inode {
	return &inode{
		id: n.id, mode: n.mode, links: n.links, live: n.live.clone(), durable: n.durable.clone(),
		changes: append([]change(nil), n.changes...), data: append([]byte(nil), n.data...), failed: n.failed,
	}
}

func mapped(entries map[string]*inode, copies map[*inode]*inode) map[string]*inode {
	if entries == nil {
		return nil
	}
	out := make(map[string]*inode, len(entries))
	for name, n := range entries {
		out[name] = copies[n]
	}
	return out
}

// afterCut turns m, which nobody else has, into what the cut leaves of it.
func (m *Mem) afterCut(pieces []piece, kept []bool) *Mem {
	files := map[*inode][]piece{}
	verdict := map[*inode][]bool{}
	keepEntry := make([]bool, len(m.entryOps))
	for i, p := range pieces {
		if p.ino == nil {
			keepEntry[p.at] = kept[i]
			continue
		}
		files[p.ino] = append(files[p.ino], p)
		verdict[p.ino] = append(verdict[p.ino], kept[i])
	}
	cell := int64(blockSize)
	if m.model.Sectors {
		cell = sectorSize
	}
	for n, list := range files {
		n.durable = n.replay(list, verdict[n], cell)
	}
	m.cutEntries(keepEntry)
	m.entryOps = nil
	m.settle()
	return m
}

// cutEntries leaves in the durable directories what the cut leaves of them.
func (m *Mem) cutEntries(keep []bool) {
	if m.model.OrderedDirs {
		stopped := map[*inode]bool{nil: false}
		for i, op := range m.entryOps {
			lost := !keep[i] || (op.oldDir != nil && stopped[op.oldDir]) || (op.newDir != nil && stopped[op.newDir])
			if lost {
				keep[i] = false
				stopped[op.oldDir], stopped[op.newDir] = true, true
			}
		}
	}
	imply(m.entryOps, keep)
	for i, op := range m.entryOps {
		if keep[i] {
			op.apply(func(d *inode) map[string]*inode { return d.durableEntries })
		}
	}
}

// settle makes what is durable the whole truth.
func (m *Mem) settle() {
	m.used = 0
	seen := map[*inode]bool{}
	var visit func(n *inode)
	visit = func(n *inode) {
		seen[n] = true
		n.opens, n.links, n.parent = 0, 1, nil
		n.changes, n.data, n.failed = nil, nil, false
		n.live = n.durable.clone()
		m.used += n.live.used
		if !n.isDir() {
			return
		}
		n.entries = make(map[string]*inode, len(n.durableEntries))
		for _, name := range sortedNames(n.durableEntries) {
			c := n.durableEntries[name]
			switch {
			case !seen[c]:
				visit(c)
				c.parent = n
			case c.isDir(): // a directory has one name
				delete(n.durableEntries, name)
				continue
			default:
				c.links++
			}
			n.entries[name] = c
		}
	}
	visit(m.root)
}

// imply adds to keep the changes that kept ones depend on; see CrashClone.
func imply(ops []entryOp, keep []bool) {
	type entry struct {
		dir  *inode
		name string
	}
	names := map[entry]bool{}    // entries that kept changes touch
	emptied := map[*inode]bool{} // directories that a kept change removes
	placed := map[*inode]bool{}  // directories that must be where they are
	for i := len(ops) - 1; i >= 0; i-- {
		op := &ops[i]
		from, to := entry{op.oldDir, op.oldName}, entry{op.newDir, op.newName}
		keep[i] = keep[i] || names[from] || names[to] || emptied[op.oldDir] || emptied[op.newDir] || placed[op.ino]
		if !keep[i] {
			continue
		}
		if op.oldDir != nil {
			names[from] = true
		}
		if op.newDir != nil {
			names[to] = true
		}
		if op.kind == UnitRemove && op.ino.isDir() {
			emptied[op.ino] = true
		}
		if op.kind == UnitRename && op.oldDir != op.newDir || placed[op.ino] {
			for d := op.newDir; d != nil && !placed[d]; d = d.parent {
				placed[d] = true
			}
		}
	}
}
