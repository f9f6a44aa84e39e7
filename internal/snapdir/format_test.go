package snapdir

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// naive hashes a block as FORMAT.md defines it.
func naive(l layout, p []byte) []byte {
	if int64(len(p)) <= l.leaf {
		sum := sha256.Sum256(p)
		return sum[:]
	}
	half := l.leaf
	for 2*half < int64(len(p)) {
		half *= 2
	}
	sum := sha256.Sum256(append(naive(l, p[:half]), naive(l, p[half:])...))
	return sum[:]
}

// However a file is written, its hashes are those that the definition gives: streamed,
// in memory and read back, at all sizes at which blocks fill and double.
func TestHashes(t *testing.T) {
	l := layout{leaf: 64, most: 4}
	rng := rand.New(rand.NewPCG(1, 1))
	for size := int64(0); size < 64*4*4*4; size += 1 + rng.Int64N(40) {
		data := noise(uint64(size), int(size))
		d := newDigest(l)
		for rest := data; len(rest) > 0; {
			n := min(1+rng.IntN(200), len(rest))
			_, _ = d.Write(rest[:n])
			rest = rest[n:]
		}
		var f File
		d.describe(&f)
		require.Equal(t, size, f.Size)
		require.True(t, l.fits(size, f.blockSize))
		require.False(t, f.blockSize > l.leaf && l.fits(size, f.blockSize/2), "the smallest blocks are taken")
		require.Len(t, f.blocks, int(count(size, f.blockSize))*sumSize)
		for i := range count(size, f.blockSize) {
			off, n, sum := f.block(i)
			require.Equal(t, naive(l, data[off:off+n]), sum, "block %d of %d bytes", i, size)
			require.Equal(t, sum, l.sum(data[off:off+n]))
			read, err := l.sumAt(bytes.NewReader(data), off, n, make([]byte, l.leaf), Watch{})
			require.NoError(t, err)
			require.Equal(t, sum, read)
		}
		require.Equal(t, checksum(f.blocks, size), f.Checksum)
		all, err := l.hashAll(bytes.NewReader(data), Watch{})
		require.NoError(t, err)
		var again File
		all.describe(&again)
		require.Equal(t, f, again)
	}
	for _, block := range []int64{0, -64, 32, 64 * 3, 65, 64 << 50} {
		require.False(t, l.fits(100, block), "%d", block)
	}
	require.False(t, l.fits(64*4+1, 64))
	require.False(t, l.fits(-1, 64))
	require.True(t, standard().fits(maxFileSize, maxFileSize/4096))
}

// A manifest of ours comes back as it was; every bit of it counts.
func TestManifestBits(t *testing.T) {
	a, _, _ := contents()
	r := mustServe(t, 10, a)
	data := mustManifest(t, r)
	l := small().layout
	m, err := parse(data, l)
	require.NoError(t, err)
	require.Equal(t, r.Files(), m.files)
	again, err := m.encode()
	require.NoError(t, err)
	require.Equal(t, data, again)
	for bit := range 8 * len(data) {
		flipped := bytes.Clone(data)
		flipped[bit/8] ^= 1 << (bit % 8)
		_, err := parse(flipped, l)
		require.Error(t, err, "bit %d", bit)
	}
	for n := range len(data) { // on disk the length shows it too
		m, err := parse(data[:n], l)
		require.True(t, err != nil || !m.ours, "cut at %d", n)
	}
}

// What braft has sent is understood, and served to the same bytes. The message is
// one that a braft leader sent.
func TestManifestOfBraft(t *testing.T) {
	data, err := hex.DecodeString("0a4408af3710031a133132372e302e302e313a32383130303a303a301a133132372e302e302e313a32383130313a303a30" +
		"1a133132372e302e302e313a32383130323a303a3012080a04646174611200")
	require.NoError(t, err)
	m, err := parse(data, standard())
	require.NoError(t, err)
	require.EqualValues(t, 7087, m.index())
	require.EqualValues(t, 3, m.meta.GetLastIncludedTerm())
	require.Equal(t, []File{{Name: "data", Size: -1}}, m.files)
	require.EqualValues(t, -1, m.bytes())
	again, err := m.encode()
	require.NoError(t, err)
	require.Equal(t, data, again)

	// A directory of braft's: its bytes as they are, behind the length; the source goes.
	pb := &raftpb.LocalSnapshotPbMeta{}
	require.NoError(t, proto.Unmarshal(data, pb))
	pb.Files[0].Meta.Source = raftpb.FileSource_FILE_SOURCE_REFERENCE.Enum()
	disk, err := proto.Marshal(pb)
	require.NoError(t, err)
	fs := vfs.NewMem()
	dir := testDir + "/" + snapshotName(7087)
	require.NoError(t, writeFile(fs, dir+"/"+manifestName, append([]byte{0, 0, 0, byte(len(disk))}, disk...)))
	require.NoError(t, writeFile(fs, dir+"/data", []byte("1234567")))
	s := mustOpen(t, fs, small())
	require.False(t, s.List()[0].Checked)
	r, err := s.Latest()
	require.NoError(t, err)
	requireWhole(t, r, content{"data": []byte("1234567")})
	require.Equal(t, data, mustManifest(t, r))
	require.NoError(t, r.Close())
}

// Manifests whose parts contradict each other are refused.
func TestManifestContradictions(t *testing.T) {
	l := small().layout
	good := func() []File {
		d := newDigest(l)
		_, _ = d.Write(noise(1, 3*testLeaf))
		f := File{Name: "f"}
		d.describe(&f)
		return []File{f}
	}
	for why, change := range map[string]func(f *File){
		"":                         func(*File) {},
		"do not fit":               func(f *File) { f.Size++ },
		"fit together":             func(f *File) { f.blockSize *= 2 },
		"blocks of 0":              func(f *File) { f.blockSize = 0 },
		"size 2305843009213693":    func(f *File) { f.Size = 2305843009213693952 },
		"96 bytes of hashes":       func(f *File) { f.Size = 1 },
		"does not match":           func(f *File) { f.blocks[5]++ },
		"checksum does not":        func(f *File) { f.Checksum += "x" },
		"file name is not":         func(f *File) { f.Name = "../f" },
		"95 bytes of hashes":       func(f *File) { f.blocks = f.blocks[:95] },
		"size 9223372036854775807": func(f *File) { f.Size = 1<<63 - 1 },
	} {
		files := good()
		change(&files[0])
		data, err := newManifest(metaOf(10), 7, files).encode()
		require.NoError(t, err)
		_, err = parse(data, l)
		if why == "" {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, why)
		}
	}
	_, err := parse(nil, l)
	require.ErrorContains(t, err, "no index")
	data, err := newManifest(metaOf(-3), 7, nil).encode()
	require.NoError(t, err)
	_, err = parse(data, l)
	require.ErrorContains(t, err, "no index")
	data, err = newManifest(metaOf(3), 7, append(good(), good()...)).encode()
	require.NoError(t, err)
	_, err = parse(data, l)
	require.ErrorContains(t, err, "there is one already")
	var large []File // each of them is allowed
	for i := range 3 {
		f := File{Name: string(rune('a' + i)), Size: maxFileSize / 2, blockSize: maxFileSize / 4, blocks: make([]byte, 2*sumSize)}
		f.Checksum = checksum(f.blocks, f.Size)
		large = append(large, f)
	}
	data, err = newManifest(metaOf(3), 7, large[:2]).encode()
	require.NoError(t, err)
	_, err = parse(data, l)
	require.NoError(t, err)
	data, err = newManifest(metaOf(3), 7, large).encode()
	require.NoError(t, err)
	_, err = parse(data, l)
	require.ErrorContains(t, err, "together")
	_, err = parse(make([]byte, maxManifest+1), l)
	require.ErrorContains(t, err, "at most")
}

// Reads are answered as braft answers them: the manifest whole, whatever is asked; end
// of file exactly at the end, and past it.
func TestServe(t *testing.T) {
	a, _, _ := contents()
	r := mustServe(t, 10, a)
	all := a["own/big"]
	size := int64(len(all))
	for _, test := range []struct {
		off, count, limit int64
		want              []byte
		eof               bool
	}{
		{0, 131072, 1 << 20, all, true},
		{0, size, size, all, true},
		{0, size - 1, size, all[:size-1], false},
		{1, size - 1, size, all[1:], true},
		{5, 100, 30, all[5:35], false},
		{5, 1 << 62, 0, nil, false},
		{5, 100, -4, nil, false},
		{size - 1, 1, 100, all[size-1:], true},
		{size, 1, 100, nil, true},
		{size + 100, 1 << 40, 100, nil, true},
	} {
		data, eof, err := r.Serve([]byte("before"), "own/big", test.off, test.count, test.limit)
		require.NoError(t, err)
		require.Equal(t, "before"+string(test.want), string(data), "%v", test)
		require.Equal(t, test.eof, eof, "%v", test)
	}
	data, eof, err := r.Serve(nil, ManifestName, 50, 7, 3)
	require.NoError(t, err)
	require.True(t, eof)
	require.Equal(t, mustManifest(t, r), data)
	for _, bad := range [][2]int64{{-1, 5}, {0, 0}, {0, -1}} {
		_, _, err = r.Serve(nil, "one", bad[0], bad[1], 10)
		require.ErrorIs(t, err, ErrRange)
		_, _, err = r.Serve(nil, ManifestName, bad[0], bad[1], 10)
		require.ErrorIs(t, err, ErrRange)
	}
	_, _, err = r.Serve(nil, "../x", 0, 1, 10)
	require.ErrorIs(t, err, ErrNoFile)
	require.NoError(t, r.Close())
	_, _, err = r.Serve(nil, "one", 0, 1, 10)
	require.ErrorIs(t, err, ErrClosed)
}

// Of a file that has another size on disk than in the manifest nothing is served: behind a cut there is no end of the file, but
// damage.
func TestServeTellsOfAnotherSize(t *testing.T) {
	a, _, _ := contents()
	r := mustServe(t, 10, a)
	fs, full, was := r.snap.store.fs, filepath.Join(r.Path(), "own/big"), int64(len(a["own/big"]))
	for _, size := range []int64{was - 1, testLeaf, 0, was + 1} {
		f, err := fs.OpenFile(full, os.O_RDWR, 0)
		require.NoError(t, err)
		require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
		for _, off := range []int64{0, testLeaf, was} {
			data, eof, err := r.Serve([]byte("before"), "own/big", off, 100, 100)
			require.Equal(t, "before", string(data))
			require.False(t, eof)
			var damage *DamageError
			require.ErrorAs(t, err, &damage)
			require.Equal(t, DamageError{Path: full, Name: "own/big", Offset: min(size, was), Reason: damage.Reason}, *damage)
		}
	}
	data, _, err := r.Serve(nil, "one", 0, 100, 100)
	require.NoError(t, err)
	require.Equal(t, a["one"], data, "the others are as they were")
	require.NoError(t, r.Close())
}

// The framing is braft's, holes come back as gaps, and whatever is framed otherwise is
// refused before anything of it is used.
func TestSegments(t *testing.T) {
	require.Empty(t, AppendSegment(nil, 5, nil))
	// What a braft leader sent for bytes 4 to 6 of a file.
	want, err := hex.DecodeString("00000000000000040000000308a737")
	require.NoError(t, err)
	require.Equal(t, want, AppendSegment(nil, 4, []byte{8, 0xa7, 0x37}))

	file := make([]byte, 10*holeUnit+100)
	copy(file[holeUnit:], noise(1, holeUnit))
	copy(file[4*holeUnit+10:], "x")
	copy(file[10*holeUnit:], noise(2, 100))
	for _, r := range []span{{0, int64(len(file))}, {5, holeUnit + 5}, {holeUnit, 3 * holeUnit}, {100, 200}, {4*holeUnit + 10, 4*holeUnit + 11}, {7, 7}} {
		framed := AppendSparse(nil, r.lo, file[r.lo:r.hi])
		got, sent := make([]byte, r.hi-r.lo), 0
		require.NoError(t, Segments(framed, r.lo, r.hi-r.lo, func(off int64, data []byte) error {
			sent += copy(got[off-r.lo:], data)
			return nil
		}))
		require.Equal(t, file[r.lo:r.hi], got, "%v", r)
		require.LessOrEqual(t, sent, 2*holeUnit+100)
	}

	visits := 0
	visit := func(int64, []byte) error { visits++; return nil }
	good := AppendSegment(AppendSegment(nil, 10, []byte("abc")), 15, []byte("de"))
	for why, bad := range map[string][]byte{
		"cut head":      append(bytes.Clone(good), 1, 2, 3),
		"cut body":      good[:len(good)-1],
		"beyond":        AppendSegment(bytes.Clone(good), 29, []byte("ab")),
		"far beyond":    AppendSegment(bytes.Clone(good), 1<<62, []byte("ab")),
		"negative":      AppendSegment(bytes.Clone(good), -1, []byte("ab")),
		"before":        AppendSegment(nil, 9, []byte("ab")),
		"back":          AppendSegment(bytes.Clone(good), 16, []byte("ab")),
		"length of all": append(bytes.Clone(good), 0, 0, 0, 0, 0, 0, 0, 20, 0xff, 0xff, 0xff, 0xff, 1),
	} {
		require.ErrorIs(t, Segments(bad, 10, 20, visit), ErrSegments, why)
	}
	require.ErrorIs(t, Segments(nil, 1<<62, 1<<62, visit), ErrSegments)
	require.ErrorIs(t, Segments(nil, -1, 1, visit), ErrSegments)
	require.Zero(t, visits)
	require.NoError(t, Segments(good, 10, 20, visit))
	require.Equal(t, 2, visits)
	stop := errors.New("stop")
	require.ErrorIs(t, Segments(good, 10, 20, func(int64, []byte) error { return stop }), stop)
}

// The set of ranges does what a set of numbers does.
func TestSpans(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var s spans
		var oracle [40]bool
		for range 30 {
			lo, hi := rng.Int64N(40), rng.Int64N(41)
			var want []int64
			for i := lo; i < hi; i++ {
				if !oracle[i] {
					want = append(want, i)
				}
			}
			switch rng.IntN(3) {
			case 0:
				require.Equal(t, want, points(s.add(lo, hi)))
				for i := lo; i < hi; i++ {
					oracle[i] = true
				}
			case 1:
				s.remove(lo, hi)
				for i := lo; i < hi; i++ {
					oracle[i] = false
				}
			default:
				require.Equal(t, want, points(s.gaps(lo, hi)))
			}
			for i := range s {
				require.True(t, s[i].lo < s[i].hi && (i == 0 || s[i-1].hi < s[i].lo), "%v", s)
			}
			var got [40]bool
			for _, i := range points(s) {
				got[i] = true
			}
			require.Equal(t, oracle, got)
		}
	}
}

func points(s []span) (list []int64) {
	for _, p := range s {
		for i := p.lo; i < p.hi; i++ {
			list = append(list, i)
		}
	}
	return list
}
