package vfs

import "math/bits"

const (
	blockSize   = 4096
	sectorSize  = 512
	chunkBlocks = 64
)

// block is the unit of allocation and, by default, of survival.
type block [blockSize]byte

// chunk holds chunkBlocks blocks of an image.
//
// Invariants: a block with content is reserved. Only an owned block may be
// written in place; others may be shared with another image and are copied first.
type chunk struct {
	reserved uint64
	owned    uint64
	blocks   [chunkBlocks]*block
}

// image is the content of a file, stored sparsely.
//
// Invariants: no chunk is empty; bytes at and beyond size are zero; used is the
// number of reserved blocks, which may lie beyond size only until a truncate.
//
// Ownership: its inode's, so the Mem's mutex guards it. Blocks it does not own
// are immutable, which is why images of different Mems may share them.
type image struct {
	size   int64
	used   int64
	chunks map[int64]*chunk
}

// pieceOf calls do for the part of [off, off+n) in each cell of the given size.
func pieceOf(off, n, cell int64, do func(off, n int64)) {
	for n > 0 {
		part := min(n, cell-off%cell)
		do(off, part)
		off, n = off+part, n-part
	}
}

// chunkMasks calls do for each chunk that has blocks of [off, off+n), with a mask of those.
func chunkMasks(off, n int64, do func(at int64, mask uint64)) {
	pieceOf(off, n, chunkBlocks*blockSize, func(off, n int64) {
		first, last := off/blockSize, (off+n-1)/blockSize
		mask := ^uint64(0) >> (chunkBlocks - 1 - (last - first)) << (first % chunkBlocks)
		do(first/chunkBlocks, mask)
	})
}

func (im *image) at(index int64) (*chunk, int) {
	return im.chunks[index/chunkBlocks], int(index % chunkBlocks)
}

// get returns block index for reading: nil if it is a hole.
func (im *image) get(index int64) *block {
	c, i := im.at(index)
	if c == nil {
		return nil
	}
	return c.blocks[i]
}

// reserve makes sure that block index has space and reports whether that was new.
func (im *image) reserve(index int64) bool {
	c, i := im.at(index)
	if c == nil {
		if im.chunks == nil {
			im.chunks = map[int64]*chunk{}
		}
		c = &chunk{}
		im.chunks[index/chunkBlocks] = c
	}
	if c.reserved&(1<<i) != 0 {
		return false
	}
	c.reserved |= 1 << i
	im.used++
	return true
}

// reserveRange reserves the blocks of [off, off+n).
func (im *image) reserveRange(off, n int64) {
	chunkMasks(off, n, func(at int64, mask uint64) {
		im.reserve(at*chunkBlocks + int64(bits.TrailingZeros64(mask))) // makes the chunk
		c := im.chunks[at]
		im.used += int64(bits.OnesCount64(mask &^ c.reserved))
		c.reserved |= mask
	})
}

// missing counts the blocks of [off, off+n) that have no space yet.
func (im *image) missing(off, n int64) int64 {
	count := 0
	chunkMasks(off, n, func(at int64, mask uint64) {
		if c := im.chunks[at]; c != nil {
			mask &^= c.reserved
		}
		count += bits.OnesCount64(mask)
	})
	return int64(count)
}

// own returns block index for writing, copied if another image may share it.
func (im *image) own(index int64) *block {
	im.reserve(index)
	c, i := im.at(index)
	if c.owned&(1<<i) == 0 {
		fresh := &block{}
		if old := c.blocks[i]; old != nil {
			*fresh = *old
		}
		c.blocks[i] = fresh
		c.owned |= 1 << i
	}
	return c.blocks[i]
}

// read fills p from off. The caller keeps it within size.
func (im *image) read(p []byte, off int64) {
	pieceOf(off, int64(len(p)), blockSize, func(at, n int64) {
		part := p[at-off : at-off+n]
		if b := im.get(at / blockSize); b != nil {
			copy(part, b[at%blockSize:])
		} else {
			clear(part)
		}
	})
}

// write stores p at off and grows the image to hold it.
func (im *image) write(p []byte, off int64) {
	for at := off; len(p) > 0; {
		n := copy(im.own(at / blockSize)[at%blockSize:], p)
		p, at = p[n:], at+int64(n)
		im.size = max(im.size, at)
	}
}

// grow sets the size to at least size.
func (im *image) grow(size int64) { im.size = max(im.size, size) }

// share makes block index the same as in from, without copying it.
func (im *image) share(from *image, index int64) {
	src, i := from.at(index)
	src.owned &^= 1 << i
	im.reserve(index)
	c, _ := im.at(index)
	c.blocks[i] = src.blocks[i]
	c.owned &^= 1 << i
}

// takeCell makes the cell at off, of n bytes within one block, what it is in
// from, and grows the image as far as from's size reaches into it.
func (im *image) takeCell(from *image, off, n int64) {
	dst := im.own(off / blockSize)[off%blockSize:][:n]
	if src := from.get(off / blockSize); src != nil {
		copy(dst, src[off%blockSize:])
	} else {
		clear(dst)
	}
	im.grow(min(off+n, from.size))
}

// truncate sets the size and gives up the space after it.
func (im *image) truncate(size int64) {
	shrink := size < im.size
	im.size = size
	keep := (size + blockSize - 1) / blockSize // blocks that stay
	for at, c := range im.chunks {
		if (at+1)*chunkBlocks <= keep {
			continue
		}
		stay := uint64(0)
		if first := at * chunkBlocks; first < keep {
			stay = 1<<(keep-first) - 1
		}
		im.used -= int64(bits.OnesCount64(c.reserved &^ stay))
		c.reserved &= stay
		c.owned &= stay
		for i := bits.Len64(stay); i < chunkBlocks; i++ {
			c.blocks[i] = nil
		}
		if c.reserved == 0 {
			delete(im.chunks, at)
		}
	}
	if tail := size % blockSize; shrink && tail > 0 && im.get(size/blockSize) != nil {
		clear(im.own(size / blockSize)[tail:])
	}
}

// clone returns an image with the same content; from now on neither owns a block.
func (im *image) clone() image {
	out := image{size: im.size, used: im.used, chunks: make(map[int64]*chunk, len(im.chunks))}
	for at, c := range im.chunks {
		c.owned = 0
		copied := *c
		out.chunks[at] = &copied
	}
	return out
}
