package snapdir

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
)

func mustCopy(t testing.TB, s *Store, from *Reader) *Copy {
	t.Helper()
	c, err := s.OpenCopy(mustManifest(t, from), CopyOptions{GroupID: 7})
	require.NoError(t, err)
	return c
}

// A snapshot that is copied piece by piece, whatever the pieces, is the one that was
// sent, to the manifest's bytes.
func TestCopy(t *testing.T) {
	a, _, _ := contents()
	a["wide"] = noise(9, 40*testLeaf)
	for _, size := range []int64{100, testLeaf - 1, testLeaf, 3*testLeaf + 5, 1 << 20} {
		from := mustServe(t, 10, a)
		s := mustOpen(t, vfs.NewMem(), small())
		c := mustCopy(t, s, from)
		require.True(t, proto.Equal(metaOf(10), c.Meta()))
		_, err := s.OpenCopy(mustManifest(t, from), CopyOptions{})
		require.ErrorIs(t, err, ErrBusy)
		_, err = c.Commit()
		require.ErrorIs(t, err, ErrIncomplete)
		n, err := fetch(c, from, size, -1)
		require.NoError(t, err)
		require.Equal(t, from.Info().Bytes, n)
		p := c.Progress()
		require.Equal(t, Progress{Total: n, Done: n, Received: n}, p)
		r, err := c.Commit()
		require.NoError(t, err)
		requireWhole(t, r, a)
		require.Equal(t, mustManifest(t, from), mustManifest(t, r))
		require.NoError(t, r.Close())
		_, err = c.Commit()
		require.ErrorIs(t, err, ErrClosed)
		require.ErrorIs(t, c.WriteAt("one", nil, 0), ErrClosed)
		require.NoError(t, c.Abort(false))
	}
}

// What a copy cannot be: another group's, and anything outside the files told of.
func TestCopyRefuses(t *testing.T) {
	a, _, _ := contents()
	from := mustServe(t, 10, a)
	s := mustOpen(t, vfs.NewMem(), small())
	_, err := s.OpenCopy(mustManifest(t, from), CopyOptions{GroupID: 8})
	require.ErrorIs(t, err, ErrGroup)
	_, err = s.OpenCopy([]byte("rubbish"), CopyOptions{})
	require.ErrorIs(t, err, ErrManifest)
	c := mustCopy(t, s, from)
	require.ErrorIs(t, c.WriteAt("two", []byte("x"), 0), ErrNoFile)
	require.ErrorIs(t, c.WriteAt("one", []byte("x"), 100), ErrRange)
	require.ErrorIs(t, c.WriteAt("one", []byte("x"), -1), ErrRange)
	require.ErrorIs(t, c.WriteAt("one", []byte("xy"), 99), ErrRange)
	require.ErrorIs(t, c.WriteAt("one", []byte("xy"), 1<<63-1), ErrRange)
	require.ErrorIs(t, c.Finish("one"), ErrIncomplete)
	require.ErrorIs(t, c.Receive("one", 0, 5, true, nil), ErrIncomplete, "the sender's file is shorter")
	require.ErrorIs(t, c.Receive("one", 0, 5, false, AppendSegment(nil, 4, []byte("xy"))), ErrSegments)
	require.NoError(t, c.Receive("one", 0, 0, false, nil))
	require.Zero(t, c.Progress().Received)
	require.NoError(t, c.Abort(true))
}

// A block that arrives damaged is found when it is complete, asked for again, and only
// that one; an end that rests on a bad block is no end.
func TestCopyRefetchesBadBlocks(t *testing.T) {
	a, _, _ := contents()
	from := mustServe(t, 10, a)
	s := mustOpen(t, vfs.NewMem(), small())
	c := mustCopy(t, s, from)
	file, _ := from.File("own/big") // 9 leaves and a byte, in blocks of 4 leaves
	require.EqualValues(t, 4*testLeaf, file.blockSize)
	bad := bytes.Clone(a["own/big"])
	bad[5*testLeaf] ^= 1
	bad[9*testLeaf] ^= 1
	var block *BlockError
	require.ErrorAs(t, c.WriteAt("own/big", bad, 0), &block)
	require.Equal(t, BlockError{"own/big", 4 * testLeaf, 4 * testLeaf}, *block)
	require.Equal(t, 2, c.Progress().BadBlocks)
	require.EqualValues(t, 4*testLeaf, c.Progress().Done)
	needed := slices.DeleteFunc(c.Needed(), func(r Range) bool { return r.Name != "own/big" })
	require.Equal(t, []Range{{"own/big", 4 * testLeaf, 5*testLeaf + 1}}, needed)

	// In two halves, the second of them bad, over bytes that are good already.
	require.NoError(t, c.WriteAt("own/big", bad[:5*testLeaf], 0))
	require.ErrorAs(t, c.Receive("own/big", 5*testLeaf, 4*testLeaf+1, true, AppendSegment(nil, 5*testLeaf, bad[5*testLeaf:])), &block)
	_, err := fetch(c, from, 1000, -1)
	require.NoError(t, err)
	r, err := c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, a)
	require.NoError(t, r.Close())
}

// An interrupted copy goes on where it was, in this process, in the next one, or after
// a power cut that kept anything: no good block is fetched twice, no bad one is kept.
func TestCopyResumes(t *testing.T) {
	a, _, _ := contents()
	from := mustServe(t, 10, a)
	total := from.Info().Bytes
	rng := rand.New(rand.NewPCG(3, 3))
	for pieces := range 40 {
		for _, how := range []string{"abort", "kill", "cut"} {
			fs := vfs.NewMem()
			c := mustCopy(t, mustOpen(t, fs, small()), from)
			before, err := fetch(c, from, 1500, pieces)
			require.NoError(t, err)
			done := c.Progress().Done
			if how == "abort" {
				require.NoError(t, c.Abort(true))
			}
			if how == "cut" {
				fs = fs.CrashClone(func(vfs.Unit) bool { return rng.IntN(2) == 0 })
			} else {
				fs = fs.KillClone()
			}
			c = mustCopy(t, mustOpen(t, fs, small()), from)
			if how != "cut" {
				require.Equal(t, done, c.Progress().Resumed)
				require.LessOrEqual(t, before-done, int64(4*testLeaf), "one block was begun")
			}
			require.Equal(t, c.Progress().Resumed, c.Progress().Done)
			after, err := fetch(c, from, 1500, -1)
			require.NoError(t, err)
			require.Equal(t, total-c.Progress().Resumed, after)
			r, err := c.Commit()
			require.NoError(t, err)
			requireWhole(t, r, a)
			require.NoError(t, r.Close())
		}
	}
}

// What one snapshot's copy left serves the next one's, block by block; what does not
// belong to it goes, and directories make way for files and the other way round.
func TestCopyTakesOverAnother(t *testing.T) {
	a, b, c := contents()
	c["one"] = b["one"][:50] // what is there is longer
	all := []content{a, b, c, a, b, c}
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	var have content
	for i, next := range all {
		from := mustServe(t, int64(10+i), next)
		cp := mustCopy(t, s, from)
		want := int64(0)
		for name, data := range next {
			f, _ := from.File(name)
			for i := range count(f.Size, f.blockSize) {
				off, n, _ := f.block(i)
				if old := have[name]; int64(len(old)) >= off+n && bytes.Equal(old[off:off+n], data[off:off+n]) {
					want += n
				}
			}
		}
		require.Equal(t, want, cp.Progress().Resumed)
		require.Equal(t, i > 0, want > 0)
		_, err := fetch(cp, from, 1500, -1)
		require.NoError(t, err)
		have = next
		if i == len(all)-1 {
			r, err := cp.Commit()
			require.NoError(t, err)
			requireWhole(t, r, next)
			require.NoError(t, r.Close())
			break
		}
		require.NoError(t, cp.Abort(true))
	}
	require.NoError(t, s.RemoveCopy())
	c2 := mustCopy(t, s, mustServe(t, 20, b))
	require.NotZero(t, c2.Progress().Linked)
	require.ErrorIs(t, s.RemoveCopy(), ErrBusy)
	require.NoError(t, c2.Abort(false))
	names, err := fs.ReadDir(testDir)
	require.NoError(t, err)
	require.Equal(t, []string{snapshotName(15)}, names)
}

// Files that a local snapshot has too are linked, unless they are damaged there. And a
// link is never written to: a failed install, and a copy of other contents under the
// same names after it, leave the local snapshot as it is.
func TestCopyLinks(t *testing.T) {
	a, b, _ := contents()
	for _, damaged := range []bool{false, true} {
		fs := vfs.NewMem()
		s := mustOpen(t, fs, small())
		local := mustSave(t, s, 10, a)
		if damaged {
			require.NoError(t, fs.Corrupt(filepath.Join(local.Path(), "own/big"), testLeaf, func(p []byte) { p[0] ^= 1 }))
		}
		shared := int64(0)
		for name, data := range b {
			if bytes.Equal(a[name], data) && (!damaged || name != "own/big") {
				shared += int64(len(data))
			}
		}
		from := mustServe(t, 20, b)
		for _, kind := range []vfs.Kind{vfs.KindLink, vfs.KindSyncDir, vfs.KindRename, vfs.KindSync} {
			for skip := range int64(4) {
				c := mustCopy(t, s, from)
				require.Equal(t, shared, c.Progress().Linked)
				_, err := fetch(c, from, 5000, -1)
				require.NoError(t, err)
				fs.SetInjector(vfs.Fail(syscall.ENOSPC, kind).After(skip).Times(1))
				r, err := c.Commit()
				fs.SetInjector(nil)
				if err == nil { // there are not as many such operations
					requireWhole(t, r, b)
					require.NoError(t, r.Close())
					require.NoError(t, s.Remove(20))
				} else {
					require.ErrorIs(t, err, syscall.ENOSPC)
				}
				require.Equal(t, []int64{10}, indexes(s))
				other := maps.Clone(b)
				for name, data := range other {
					other[name] = noise(99, len(data))
				}
				c = mustCopy(t, s, mustServe(t, 30, other))
				_, err = fetch(c, mustServe(t, 30, other), 5000, -1)
				require.NoError(t, err)
				require.NoError(t, c.Abort(true))
				if !damaged {
					requireWhole(t, local, a)
				}
			}
		}
		c := mustCopy(t, s, from)
		_, err := fetch(c, from, 5000, -1)
		require.NoError(t, err)
		r, err := c.Commit()
		require.NoError(t, err)
		require.NoError(t, local.Close())
		require.NoError(t, s.Prune())
		require.Equal(t, []int64{20}, indexes(s))
		requireWhole(t, r, b)
		require.NoError(t, r.Close())
	}
}

// What was read back block by block while it was copied is not read once more by Verify, but for files that were duplicated
// since. Scrub reads all in any case, and Verify sees what is missing.
func TestCopiedBlocksAreReadOnce(t *testing.T) {
	a, b, _ := contents()
	for _, how := range []string{"copied", "linked", "duplicated", "resumed", "started anew"} {
		fs := vfs.NewMem()
		s := mustOpen(t, fs, small())
		if how == "linked" || how == "duplicated" {
			require.NoError(t, mustSave(t, s, 10, a).Close())
		}
		from := mustServe(t, 20, b)
		c := mustCopy(t, s, from)
		if how == "resumed" {
			_, err := fetch(c, from, 5000, 4)
			require.NoError(t, err)
			require.NoError(t, c.Abort(true))
			c = mustCopy(t, s, from)
			require.NotZero(t, c.Progress().Resumed)
		}
		require.Equal(t, how == "linked" || how == "duplicated", c.Progress().Linked > 0)
		_, err := fetch(c, from, 5000, -1)
		require.NoError(t, err)
		if how == "duplicated" {
			fs.SetInjector(vfs.Fail(syscall.EXDEV, vfs.KindLink))
		}
		r, err := c.Commit()
		fs.SetInjector(nil)
		require.NoError(t, err)
		if how == "started anew" {
			s = mustOpen(t, fs, small())
			r, err = s.Latest()
			require.NoError(t, err)
		}
		read := 0
		w := Watch{Read: func(n int) { read += n }}
		require.NoError(t, r.Verify(w))
		require.True(t, r.Info().Verified)
		if how == "duplicated" || how == "started anew" {
			require.EqualValues(t, r.Info().Bytes, read, how)
		} else {
			require.Zero(t, read, how)
		}
		read = 0
		require.NoError(t, r.Verify(w))
		require.Zero(t, read)
		require.NoError(t, r.Scrub(w))
		require.EqualValues(t, r.Info().Bytes, read)
		requireWhole(t, r, b)
	}

	var damage *DamageError
	for _, harm := range []func(fs *vfs.Mem, name string) error{
		func(fs *vfs.Mem, name string) error { return fs.Remove(name) },
		func(fs *vfs.Mem, name string) error {
			f, err := fs.OpenFile(name, os.O_RDWR, 0)
			require.NoError(t, err)
			return errors.Join(f.Truncate(1), f.Close())
		},
	} {
		fs := vfs.NewMem()
		from := mustServe(t, 20, b)
		c := mustCopy(t, mustOpen(t, fs, small()), from)
		_, err := fetch(c, from, 5000, -1)
		require.NoError(t, err)
		r, err := c.Commit()
		require.NoError(t, err)
		require.NoError(t, harm(fs, filepath.Join(r.Path(), "own/big")))
		require.ErrorAs(t, r.Verify(Watch{}), &damage)
		require.False(t, r.Info().Verified)
	}
}

// What went wrong between a block's arrival and its file is noticed as if it had come so.
func TestCopyReadsBack(t *testing.T) {
	a, _, _ := contents()
	from := mustServe(t, 10, a)
	fs := vfs.NewMem()
	c := mustCopy(t, mustOpen(t, fs, small()), from)
	name := filepath.Join(testDir, copyDir, "own/big")
	data, _, err := from.Serve(nil, "own/big", 0, 4*testLeaf, 1<<20)
	require.NoError(t, err)
	fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindRead && op.Name == name {
			fs.SetInjector(nil)
			return fs.Corrupt(name, 7, func(p []byte) { p[0] ^= 1 })
		}
		return nil
	})
	var block *BlockError
	require.ErrorAs(t, c.Receive("own/big", 0, 4*testLeaf, false, AppendSegment(nil, 0, data)), &block)
	require.Equal(t, BlockError{"own/big", 0, 4 * testLeaf}, *block)
	_, err = fetch(c, from, 5000, -1)
	require.NoError(t, err)
	r, err := c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, a)
	require.NoError(t, r.Close())
}

// A braft leader tells no sizes and no hashes. Its files come one after the other, holes
// left out, and get hashes here. Equal checksums, which are its user's, are believed
// of files that are still what had them.
func TestCopyFromBraft(t *testing.T) {
	a, b, _ := contents()
	b["sparse"] = append(append(make([]byte, 3*holeUnit), noise(10, 100)...), make([]byte, 2*holeUnit)...)
	sums := map[string]string{}
	for name := range a {
		sums[name] = "user's " + name + string(a[name][:min(len(a[name]), 1)])
	}
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	copyAll := func(index int64, data content, pieces int) (*Copy, error) {
		from := mustServe(t, index, data)
		c, err := s.OpenCopy(plain(t, from, sums), CopyOptions{GroupID: 7})
		require.NoError(t, err)
		require.EqualValues(t, -1, c.Progress().Total)
		for {
			needed := c.Needed()
			if len(needed) == 0 || pieces == 0 {
				return c, nil
			}
			pieces--
			n := needed[0]
			require.EqualValues(t, -1, n.Len)
			data, eof, err := from.Serve(nil, n.Name, n.Off, 5000, 1<<20)
			require.NoError(t, err)
			if err := c.Receive(n.Name, n.Off, int64(len(data)), eof, AppendSparse(nil, n.Off, data)); err != nil {
				return c, err
			}
		}
	}
	c, err := copyAll(10, a, 7)
	require.NoError(t, err)
	require.ErrorIs(t, c.WriteAt("one", []byte("x"), 1), ErrRange, "a gap")
	require.NoError(t, c.Abort(true))
	c, err = copyAll(10, a, -1)
	require.NoError(t, err)
	require.Zero(t, c.Progress().Resumed, "nothing says that what is there is right")
	require.ErrorIs(t, c.WriteAt("one", []byte("x"), 100), ErrRange, "it has ended")
	r, err := c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, a)
	i := r.Info()
	require.True(t, i.Checked)
	require.EqualValues(t, 7, i.GroupID)
	f, _ := r.File("own/big")
	require.Equal(t, sums["own/big"], f.Checksum)
	require.True(t, f.hashed())
	require.Equal(t, "meta of own/big", string(f.UserMeta))
	require.NoError(t, r.Close())

	require.NoError(t, fs.Corrupt(filepath.Join(r.Path(), "dir/even"), 0, func(p []byte) { p[0] ^= 1 }))
	delete(sums, "one") // those that changed
	delete(sums, "dir/deep/odd")
	c, err = copyAll(20, b, -1)
	require.NoError(t, err)
	require.EqualValues(t, len(b["own/big"]), c.Progress().Linked)
	r, err = c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, b)
	require.NoError(t, r.Close())
}

// A checksum of ours without the hashes, as braft may pass it on, is held against what arrived.
func TestCopyWithChecksumAlone(t *testing.T) {
	a, _, _ := contents()
	from := mustServe(t, 10, a)
	sums := map[string]string{}
	for _, f := range from.Files() {
		sums[f.Name] = f.Checksum
	}
	s := mustOpen(t, vfs.NewMem(), small())
	c, err := s.OpenCopy(plain(t, from, sums), CopyOptions{})
	require.NoError(t, err)
	var block *BlockError
	require.ErrorAs(t, c.Receive("one", 0, 3, true, AppendSegment(nil, 0, []byte("bad"))), &block)
	require.Equal(t, "one", block.Name)
	require.Zero(t, c.Progress().Done)
	_, err = fetch(c, from, 5000, -1)
	require.NoError(t, err)
	r, err := c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, a)
	require.NoError(t, r.Close())
}

// Many fetch at once, pieces overlap and come twice, some are damaged on the way: the
// result is what was sent.
func TestConcurrentCopy(t *testing.T) {
	for seed := range uint64(10) {
		a, _, _ := contents()
		a["wide"] = noise(9, 60*testLeaf)
		from := mustServe(t, 10, a)
		c := mustCopy(t, mustOpen(t, vfs.NewMem(), small()), from)
		var wg sync.WaitGroup
		for worker := range uint64(4) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(seed, worker))
				for {
					needed := c.Needed()
					if len(needed) == 0 {
						return
					}
					n := needed[rng.IntN(len(needed))]
					off := max(n.Off-rng.Int64N(2000), 0)
					data, eof, err := from.Serve(nil, n.Name, off, 1+rng.Int64N(3*testLeaf), 1<<20)
					if err != nil {
						t.Error(err)
						return
					}
					if len(data) > 0 && rng.IntN(8) == 0 {
						data[rng.IntN(len(data))] ^= 4
					}
					err = c.Receive(n.Name, off, int64(len(data)), eof, AppendSegment(nil, off, data))
					var bad *BlockError
					if err != nil && !errors.As(err, &bad) {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		r, err := c.Commit()
		require.NoError(t, err)
		requireWhole(t, r, a)
		require.Equal(t, from.Info().Bytes, c.Progress().Done)
		require.NoError(t, r.Close())
	}
}

// Abort waits for those that write, who are told.
func TestAbortDuringCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, _ := contents()
		from := mustServe(t, 10, a)
		fs := vfs.NewMem()
		c, err := mustOpen(t, fs, small()).OpenCopy(mustManifest(t, from), CopyOptions{Turns: NewTurns(2)})
		require.NoError(t, err)
		held, writes := make(chan struct{}), new(atomic.Int64)
		fs.SetInjector(func(op vfs.Op) error {
			if op.Kind == vfs.KindWrite && strings.Contains(op.Name, "/"+copyDir+"/") {
				writes.Add(1)
				<-held
			}
			return nil
		})
		fetched, aborted := make(chan error, 2), make(chan error, 1)
		for range 2 {
			go func() {
				_, err := fetch(c, from, 500, -1)
				fetched <- err
			}()
		}
		synctest.Wait()
		require.EqualValues(t, 2, writes.Load())
		go func() { aborted <- c.Abort(false) }()
		synctest.Wait()
		require.Empty(t, aborted, "pieces are still being written")
		close(held)
		require.ErrorIs(t, <-fetched, ErrClosed)
		require.ErrorIs(t, <-fetched, ErrClosed)
		require.NoError(t, <-aborted)
		require.EqualValues(t, 2, writes.Load(), "no further piece was begun")
		names, err := fs.ReadDir(testDir)
		require.NoError(t, err)
		require.Empty(t, names)
	})
}

// A full disk fails the piece, not the copy: it goes on when there is space again.
func TestCopyOnFullDisk(t *testing.T) {
	a, _, _ := contents()
	from := mustServe(t, 10, a)
	fs := vfs.NewMem()
	c := mustCopy(t, mustOpen(t, fs, small()), from)
	fs.SetCapacity(5 * testLeaf)
	_, err := fetch(c, from, 5000, -1)
	require.ErrorIs(t, err, syscall.ENOSPC)
	fs.SetCapacity(-1)
	_, err = fetch(c, from, 5000, -1)
	require.NoError(t, err)
	r, err := c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, a)
	require.NoError(t, r.Close())
}

// On a real file system, with links and blocks as the format has them.
func TestCopyOnDisk(t *testing.T) {
	a := content{"big": noise(1, 3<<20+5), "d/small": noise(2, 10), "empty": {}}
	b := maps.Clone(a)
	b["d/new"] = noise(3, 1<<20)
	open := func() *Store {
		s, err := Open(vfs.OS{}, t.TempDir(), Options{})
		require.NoError(t, err)
		return s
	}
	leader, follower := open(), open()
	for i, data := range []content{a, b} {
		from := mustSave(t, leader, int64(10+i), data)
		c := mustCopy(t, follower, from)
		_, err := fetch(c, from, 300<<10, 5)
		require.NoError(t, err)
		require.NoError(t, c.Abort(true))
		c = mustCopy(t, follower, from)
		if i == 0 {
			require.EqualValues(t, 1<<20, c.Progress().Resumed)
		} else {
			require.EqualValues(t, 3<<20+15, c.Progress().Linked)
		}
		_, err = fetch(c, from, 300<<10, -1)
		require.NoError(t, err)
		r, err := c.Commit()
		require.NoError(t, err)
		require.NoError(t, follower.Prune())
		requireWhole(t, r, data)
		require.NoError(t, r.Close())
		require.NoError(t, from.Close())
	}
}

// What a disk cannot read of the local snapshots, or of what an interrupted copy left, is fetched: it keeps nobody from a new
// snapshot.
func TestWhatCannotBeReadIsFetched(t *testing.T) {
	for _, unreadable := range []string{snapshotPrefix, copyDir} {
		b := newCrashBed(t, "unreadable")
		x, y, _ := crashContents()
		from := mustServe(t, 20, y)
		b.known[20] = y
		b.open()
		b.close(b.save(10, x))
		b.copy(from, mustManifest(t, from), 2)
		hit := false
		b.fs.SetInjector(func(op vfs.Op) error {
			if op.Kind == vfs.KindRead && strings.Contains(op.Name, "/"+unreadable) && filepath.Base(op.Name) != manifestName {
				hit = true
				return syscall.EIO
			}
			return nil
		})
		c, err := b.s.OpenCopy(mustManifest(t, from), CopyOptions{})
		require.NoError(t, err)
		require.True(t, hit)
		require.NotEmpty(t, c.Needed())
		require.NoError(t, c.Abort(true))
	}
}

// Nothing of what was received is lost if there is no descriptor for what Commit opens, be it to sync it.
func TestCommitWithoutDescriptors(t *testing.T) {
	a, b, _ := contents()
	from := mustServe(t, 20, b)
	for _, how := range []string{"alone", "linked", "duplicated", "in place of a damaged one"} {
		for n := int64(0); ; n++ {
			fs := vfs.NewMem()
			s := mustOpen(t, fs, small())
			switch how {
			case "linked", "duplicated":
				require.NoError(t, mustSave(t, s, 10, a).Close())
			case "in place of a damaged one":
				r := mustSave(t, s, 20, a)
				require.NoError(t, fs.Remove(filepath.Join(r.Path(), "one")))
				require.Error(t, r.Verify(Watch{}))
				require.NoError(t, r.Close())
			}
			c := mustCopy(t, s, from)
			_, err := fetch(c, from, 5000, 4)
			require.NoError(t, err)
			require.NoError(t, c.Abort(true))
			c = mustCopy(t, s, from) // which has to sync what the other has completed
			_, err = fetch(c, from, 5000, -1)
			require.NoError(t, err)
			fail := vfs.Fail(syscall.EMFILE, vfs.KindOpen, vfs.KindCreate, vfs.KindSyncDir).After(n).Times(1)
			if how == "duplicated" {
				fail = vfs.FirstOf(fail, vfs.Fail(syscall.EXDEV, vfs.KindLink))
			}
			fs.SetInjector(fail)
			r, err := c.Commit()
			fs.SetInjector(nil)
			if err != nil {
				require.ErrorIs(t, err, syscall.EMFILE)
				c = mustCopy(t, s, from)
				p := c.Progress()
				require.Equal(t, p.Total, p.Resumed+p.Linked, "%s, %d", how, n)
				require.Empty(t, c.Needed())
				r, err = c.Commit()
				require.NoError(t, err)
				requireWhole(t, r, b)
				require.NoError(t, r.Close())
				continue
			}
			requireWhole(t, r, b)
			require.NoError(t, r.Close())
			require.Greater(t, n, int64(4), "there was no such operation")
			break
		}
	}
}

// unhashed begins a copy of one file without hashes, of so many leaves, and takes in all of it but for its end.
func unhashed(t *testing.T, fs vfs.FS, leaves int, o CopyOptions) (*Copy, content) {
	a := content{"big": noise(1, leaves*testLeaf)}
	c, err := mustOpen(t, fs, small()).OpenCopy(plain(t, mustServe(t, 10, a), nil), o)
	require.NoError(t, err)
	require.NoError(t, c.WriteAt("big", a["big"], 0))
	return c, a
}

// onRead has f called before the reads of what is being copied, with their number.
func onRead(fs *vfs.Mem, f func(n int)) (reads *int) {
	reads = new(int)
	fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindRead && strings.Contains(op.Name, "/"+copyDir+"/") {
			*reads++
			f(*reads)
		}
		return nil
	})
	return reads
}
