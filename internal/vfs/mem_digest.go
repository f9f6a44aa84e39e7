package vfs

import "hash/maphash"

// digestSeed is drawn anew by each process, so a digest says nothing to another one.
var digestSeed = maphash.MakeSeed()

// Digest is a hash of what a process would find: all names, sizes and bytes. Whether they are
// durable does not count, nor does reserved space. Crash tests tell by it which images they have
// seen before.
func (m *Mem) Digest() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.root.digest()
}

// digest sums what has no order, so that nothing needs to be sorted.
func (n *inode) digest() uint64 {
	if n.isDir() {
		sum := mixed(1, 0)
		for name, c := range n.entries {
			sum += mixed(maphash.String(digestSeed, name), c.digest())
		}
		return sum
	}
	sum := mixed(2, uint64(n.live.size))
	for at, c := range n.live.chunks {
		for i, b := range c.blocks {
			if b != nil && *b != (block{}) { // a hole reads the same as zeros
				sum += mixed(maphash.Bytes(digestSeed, b[:]), uint64(at*chunkBlocks+int64(i)))
			}
		}
	}
	return sum
}

// mixed hashes two numbers into one (splitmix64).
func mixed(a, b uint64) uint64 {
	x := a*0x9e3779b97f4a7c15 + b
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// UnitIDs identifies what Units lists, in the same order: a unit has the same number for as
// long as it is not synced.
func (m *Mem) UnitIDs() []uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	pieces := m.pieces(m.reachable())
	ids := make([]uint64, len(pieces))
	for i, p := range pieces {
		ids[i] = mixed(uint64(p.seq), uint64(p.unit.Off))
	}
	return ids
}
