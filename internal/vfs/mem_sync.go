package vfs

import "math"

// keepData is how much memory a synced file keeps for its next unsynced writes.
const keepData = 1 << 20

// bytes are those of a write.
func (n *inode) bytes(c *change) []byte { return n.data[c.data : c.data+int(c.n)] }

// sync makes the changes durable. It costs as much as they wrote.
func (n *inode) sync() {
	if n.failed {
		n.syncAround()
		return
	}
	for i := range n.changes {
		c := &n.changes[i]
		if c.kind != UnitWrite {
			n.durable.redo(c, nil)
			continue
		}
		pieceOf(c.off, c.n, blockSize, func(off, part int64) {
			// A whole block is shared, which keeps big files in memory once.
			if part == blockSize && n.live.get(off/blockSize) != nil {
				n.durable.share(&n.live, off/blockSize)
				n.durable.grow(off + part)
				return
			}
			n.durable.write(n.bytes(c)[off-c.off:][:part], off)
		})
	}
	n.forget()
}

// forget drops the changes and keeps their memory if it is not much.
func (n *inode) forget() {
	clear(n.changes)
	n.changes, n.data, n.failed = n.changes[:0], n.data[:0], false
	if cap(n.data) > keepData {
		n.data = nil
	}
}

// failSync makes the changes count as clean although they are not on the disk.
func (n *inode) failSync() {
	for i := range n.changes {
		n.changes[i].failed = true
	}
	n.failed = len(n.changes) > 0
}

// syncAround is sync after a failed one: it writes what became dirty since, which
// includes all of each page, and leaves the rest in doubt.
func (n *inode) syncAround() {
	pieces := n.pieces(nil, blockSize)
	keep := make([]bool, len(pieces))
	for i, p := range pieces {
		keep[i] = !n.changes[p.at].failed
	}
	durable := n.replay(pieces, keep, blockSize)
	covered := map[int64]bool{} // blocks written by a kept change that follows
	cut := int64(math.MaxInt64) // the smallest size a kept change that follows set
	var rest []piece
	for i := len(pieces) - 1; i >= 0; i-- {
		u := pieces[i].unit
		switch {
		case keep[i] && u.Kind == UnitWrite:
			covered[u.Off/blockSize] = true
		case keep[i] && u.Kind == UnitTruncate:
			cut = min(cut, u.Off)
		case !keep[i] && (u.Kind != UnitWrite || !covered[u.Off/blockSize] && u.Off+u.Len <= cut):
			rest = append(rest, pieces[i])
		}
	}
	var changes []change
	var data []byte
	for i := len(rest) - 1; i >= 0; i-- {
		old := n.changes[rest[i].at]
		c := old
		c.off, c.n = rest[i].unit.Off, rest[i].unit.Len
		if c.kind == UnitWrite {
			c.data = len(data)
			data = append(data, n.bytes(&old)[c.off-old.off:][:c.n]...)
		}
		changes = append(changes, c)
	}
	n.durable, n.changes, n.data, n.failed = durable, changes, data, len(changes) > 0
}

// redo repeats a change that is not a write, or the given bytes of one.
func (im *image) redo(c *change, data []byte) {
	switch c.kind {
	case UnitTruncate:
		im.truncate(c.off)
	case UnitPreallocate:
		im.reserveRange(c.off, c.n)
		im.grow(c.off + c.n)
	default:
		im.write(data, c.off)
	}
}

// replay returns the durable image with the kept pieces in it. It adds to keep
// what those depend on. A second image follows all changes: it is the cache, and
// a kept piece of a write takes its whole cell from there.
func (n *inode) replay(pieces []piece, keep []bool, cell int64) image {
	entail(pieces, keep)
	disk, cache := n.durable.clone(), n.durable.clone()
	done := -1 // the last change the cache has
	for i, p := range pieces {
		c := &n.changes[p.at]
		if p.at != done {
			var data []byte
			if c.kind == UnitWrite {
				data = n.bytes(c)
			}
			cache.redo(c, data)
			done = p.at
		}
		switch {
		case !keep[i]:
		case c.kind == UnitWrite:
			disk.takeCell(&cache, p.unit.Off-p.unit.Off%cell, cell)
		default:
			disk.redo(c, nil)
		}
	}
	return disk
}

// entail adds to keep the pieces of one file that kept ones depend on.
func entail(pieces []piece, keep []bool) {
	later := false  // a later change of the metadata is kept
	end := int64(0) // where the kept later writes end
	for i := len(pieces) - 1; i >= 0; i-- {
		u := pieces[i].unit
		if u.Kind == UnitWrite {
			if keep[i] {
				end = max(end, u.Off+u.Len)
			}
			continue
		}
		keep[i] = keep[i] || later || u.Kind == UnitTruncate && end > u.Off
		later = later || keep[i]
	}
}
