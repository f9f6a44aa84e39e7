package snapdir

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"math/bits"
	"strings"
)

const (
	sumSize = sha256.Size

	// checksumPrefix begins the checksum strings that this package makes.
	checksumPrefix = "graft1:"

	// maxFileSize bounds what a manifest may claim of a file and of all together, so that sums do not overflow.
	maxFileSize = 1 << 50
)

// layout says how files are cut into blocks. The format's is standard; tests use
// small ones.
type layout struct {
	leaf int64 // the smallest block
	most int   // the most blocks of a file, even
}

func standard() layout { return layout{leaf: 1 << 20, most: 4096} }

// count is the number of blocks of a file.
func count(size, block int64) int64 { return (size + block - 1) / block }

// fits reports whether a file of that size may be cut into such blocks.
func (l layout) fits(size, block int64) bool {
	return size >= 0 && size <= maxFileSize && block >= l.leaf && block <= maxFileSize && block%l.leaf == 0 &&
		bits.OnesCount64(uint64(block/l.leaf)) == 1 && count(size, block) <= int64(l.most)
}

// fold makes the hash of a block from those of its leaves: neighbours are hashed
// together in pairs until one is left; the last of an odd number moves up as it is.
func fold(sums []byte) []byte {
	for len(sums) > sumSize {
		sums = pairs(sums)
	}
	return sums
}

// pairs is one step of fold. It overwrites sums.
func pairs(sums []byte) []byte {
	out := sums[:0]
	for len(sums) >= 2*sumSize {
		sum := sha256.Sum256(sums[:2*sumSize])
		sums = sums[2*sumSize:]
		out = append(out, sum[:]...)
	}
	return append(out, sums...)
}

// sum hashes one block in memory.
func (l layout) sum(block []byte) []byte {
	var sums []byte
	for len(block) > 0 {
		n := min(l.leaf, int64(len(block)))
		leaf := sha256.Sum256(block[:n])
		block = block[n:]
		sums = append(sums, leaf[:]...)
	}
	return fold(sums)
}

// sumAt hashes the block of n bytes at off, one leaf at a time with buf, which has
// room for one. A file that ends before is io.ErrUnexpectedEOF.
func (l layout) sumAt(f io.ReaderAt, off, n int64, buf []byte, w Watch) ([]byte, error) {
	var sums []byte
	for end := off + n; off < end; {
		if err := w.stopped(); err != nil {
			return nil, err
		}
		part := buf[:min(l.leaf, end-off)]
		got, err := f.ReadAt(part, off)
		w.read(got)
		if got < len(part) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		leaf := sha256.Sum256(part)
		sums = append(sums, leaf[:]...)
		off += int64(len(part))
	}
	return fold(sums), nil
}

// checksum is the name of a content: equal ones mean equal bytes.
func checksum(blocks []byte, size int64) string {
	h := sha256.New()
	h.Write(blocks)
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
	return checksumPrefix + hex.EncodeToString(h.Sum(nil))
}

// digest hashes a file as it is written, without knowing its size beforehand.
//
// Invariants: sums are those of the full blocks, parts those of the leaves of the
// block begun; leaf has n bytes of the next.
//
// Ownership: one goroutine's at a time.
type digest struct {
	layout layout
	block  int64
	size   int64
	sums   []byte
	parts  []byte
	leaf   hash.Hash
	n      int64
}

func newDigest(l layout) *digest { return &digest{layout: l, block: l.leaf, leaf: sha256.New()} }

// Write takes in the next bytes. It never fails.
func (d *digest) Write(p []byte) (int, error) {
	all := len(p)
	for len(p) > 0 {
		if d.n == 0 && len(d.parts) == 0 && len(d.sums) == d.layout.most*sumSize {
			d.sums = pairs(d.sums) // one more block would be too many, so they double
			d.block *= 2
		}
		n := min(int64(len(p)), d.layout.leaf-d.n)
		d.leaf.Write(p[:n])
		p = p[n:]
		d.n += n
		if d.n == d.layout.leaf {
			d.endLeaf()
		}
	}
	d.size += int64(all)
	return all, nil
}

func (d *digest) endLeaf() {
	d.parts = d.leaf.Sum(d.parts)
	d.leaf.Reset()
	d.n = 0
	if int64(len(d.parts)/sumSize) == d.block/d.layout.leaf {
		d.endBlock()
	}
}

func (d *digest) endBlock() {
	d.sums = append(d.sums, fold(d.parts)...)
	d.parts = d.parts[:0]
}

// end ends the hashing; more calls do nothing.
func (d *digest) end() {
	if d.n > 0 {
		d.endLeaf()
	}
	if len(d.parts) > 0 {
		d.endBlock()
	}
}

// agrees ends the hashing and reports whether the content can be that of f, of which
// only a checksum is known. One of braft's says nothing.
func (d *digest) agrees(f *File) bool {
	d.end()
	return !strings.HasPrefix(f.Checksum, checksumPrefix) || f.Checksum == checksum(d.sums, d.size)
}

// describe ends the hashing and writes down in f what is known of the content. A
// checksum that f has already stays: whoever gave it compares by it.
func (d *digest) describe(f *File) {
	d.end()
	f.Size, f.blockSize, f.blocks = d.size, d.block, d.sums
	if f.Checksum == "" {
		f.Checksum = checksum(d.sums, d.size)
	}
}

// hashAll feeds a file from its beginning to its end into a digest.
func (l layout) hashAll(r io.ReaderAt, w Watch) (*digest, error) {
	return l.hashInTurn(r, w, func(f func() error) error { return f() })
}

// hashInTurn is hashAll that works on one leaf at a time, each in turn.
func (l layout) hashInTurn(r io.ReaderAt, w Watch, turn func(f func() error) error) (*digest, error) {
	d, buf := newDigest(l), make([]byte, l.leaf)
	for eof := false; !eof; {
		if err := w.stopped(); err != nil {
			return nil, err
		}
		n := 0
		err := turn(func() (err error) {
			n, err = r.ReadAt(buf, d.size)
			_, _ = d.Write(buf[:n])
			return err
		})
		w.read(n)
		if eof = errors.Is(err, io.EOF); err != nil && !eof {
			return nil, err
		}
	}
	return d, nil
}
