package snapdir

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
)

// A snapshot holds what was written, with its meta, and so it does after a restart;
// files that nobody registered are not in it.
func TestSaveAndReopen(t *testing.T) {
	for _, test := range []struct {
		name string
		fs   vfs.FS
		dir  string
		o    Options
	}{
		{"memory", vfs.NewMem(), testDir, small()},
		{"disk", vfs.OS{}, filepath.Join(t.TempDir(), "a", "snapshots"), small()},
		{"disk, the format's blocks", vfs.OS{}, filepath.Join(t.TempDir(), "b"), Options{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			a, _, _ := contents()
			s, err := Open(test.fs, test.dir, test.o)
			require.NoError(t, err)
			_, err = s.Latest()
			require.ErrorIs(t, err, ErrNone)
			w, err := s.NewWriter()
			require.NoError(t, err)
			for name, data := range a {
				require.NoError(t, saveFile(w, name, data))
			}
			require.NoError(t, writeFile(test.fs, filepath.Join(w.Path(), "stray"), []byte("x")))
			require.NoError(t, writeFile(test.fs, filepath.Join(w.Path(), "dir/stray/deep"), []byte("x")))
			require.NoError(t, saveFile(w, "unwanted/file", []byte("x")))
			require.NoError(t, w.RemoveFile("unwanted/file"))
			require.ErrorIs(t, w.RemoveFile("unwanted/file"), ErrNoFile)
			require.NoError(t, w.AddFile("one", []byte("meta of one")))
			r, err := w.Commit(metaOf(10), 7)
			require.NoError(t, err)
			require.False(t, r.Info().Verified)
			requireWhole(t, r, a)
			require.NoError(t, r.Close())
			require.NoError(t, r.Close())

			s, err = Open(test.fs, test.dir, test.o)
			require.NoError(t, err)
			infos := s.List()
			require.Len(t, infos, 1)
			i := infos[0]
			require.True(t, proto.Equal(metaOf(10), i.Meta))
			require.EqualValues(t, 100+5*testLeaf+17+9*testLeaf+1, i.Bytes)
			require.Equal(t, []any{int64(10), int64(1), uint64(7), true, 5, false, 0}, []any{i.Index, i.Term, i.GroupID, i.Checked, i.Files, i.Verified, i.Readers})
			r, err = s.Latest()
			require.NoError(t, err)
			requireWhole(t, r, a)
			f, ok := r.File("own/big")
			require.True(t, ok)
			require.Equal(t, "meta of own/big", string(f.UserMeta))
			f, _ = r.File("one")
			require.Equal(t, "meta of one", string(f.UserMeta))
			_, err = r.Open("stray")
			require.ErrorIs(t, err, ErrNoFile)
			require.NoError(t, r.Close())
			_, err = r.Open("one")
			require.ErrorIs(t, err, ErrClosed)
		})
	}
}

// Somebody who was saving when the store was closed may go on: what he writes then is in no later snapshot, whether his was given
// up or the process did not get that far.
func TestAnOldSaveWritesToNoLaterOne(t *testing.T) {
	a, _, _ := crashContents()
	fs := vfs.NewMem()
	var old []string
	for index, abort := range []bool{true, false, true} {
		w, err := mustOpen(t, fs, small()).NewWriter()
		require.NoError(t, err)
		old = append(old, w.Path())
		require.NoError(t, writeFile(fs, w.Path()+"/own/y", []byte("old")))
		if abort {
			require.NoError(t, w.Abort())
		}
		s := mustOpen(t, fs, small())
		w, err = s.NewWriter()
		require.NoError(t, err)
		for name, data := range a {
			require.NoError(t, saveFile(w, name, data))
		}
		for _, path := range old {
			_, err := fs.OpenFile(path+"/own/y", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
			require.ErrorIs(t, err, os.ErrNotExist)
			require.NoError(t, fs.MkdirAll(path+"/own", 0o755))
			require.NoError(t, writeFile(fs, path+"/own/y", []byte("old")))
		}
		r, err := w.Commit(metaOf(int64(10+index)), 7)
		require.NoError(t, err)
		requireWhole(t, r, a)
		require.NoError(t, r.Close())
	}
}

// What saves have left is deleted, also what braft's have. What only looks like that is not.
func TestLeftoversOfSavesAreDeleted(t *testing.T) {
	fs := vfs.NewMem()
	var drawn uint64
	o := small()
	o.Rand = func() uint64 { drawn++; return drawn << 60 }
	s := mustOpen(t, fs, o)
	w, err := s.NewWriter()
	require.NoError(t, err)
	require.Equal(t, testDir+"/temp_1000000000000000", w.Path())
	foreign := []string{"temp_", "temp_1", "temp_00000000000000001", "temp_000000000000000G", "temp_00000000000000AB", "temporary"}
	for _, name := range append([]string{"temp", "temp_00000000000000ab"}, foreign...) {
		require.NoError(t, writeFile(fs, testDir+"/"+name+"/file", []byte("x")))
	}
	mustOpen(t, fs, o)
	names, err := fs.ReadDir(testDir)
	require.NoError(t, err)
	require.ElementsMatch(t, foreign, names)

	// What could not be deleted when a save was given up is, before the next one.
	s = mustOpen(t, fs, o)
	w, err = s.NewWriter()
	require.NoError(t, err)
	fs.SetInjector(vfs.Fail(syscall.EIO, vfs.KindRemove))
	require.ErrorIs(t, w.Abort(), syscall.EIO)
	fs.SetInjector(nil)
	next, err := s.NewWriter()
	require.NoError(t, err)
	names, err = fs.ReadDir(testDir)
	require.NoError(t, err)
	require.ElementsMatch(t, append(foreign, filepath.Base(next.Path())), names)
	require.NoError(t, next.Abort())
}

// Names that would leave the directory, or that two systems read differently, are
// refused by the Writer and in a manifest from elsewhere, before anything is written.
func TestNames(t *testing.T) {
	long := string(bytes.Repeat([]byte("n"), 256))
	bad := []string{
		"", ".", "..", "../x", "a/../../x", "a/..", "/x", "/", "a//b", "a/./b", "a/", "./a", "a\\b", "..\\x", "c:x", "a\x00b",
		manifestName, manifestTemp, manifestName + "/x", long, "a/" + long, string(bytes.Repeat([]byte("a/"), 600)) + "a",
	}
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	for _, name := range bad {
		w, err := s.NewWriter()
		require.NoError(t, err)
		_, err = w.Create(name)
		require.ErrorIs(t, err, ErrName, "%q", name)
		require.ErrorIs(t, w.AddFile(name, nil), ErrName, "%q", name)
		_, err = w.Commit(metaOf(10), 7)
		require.ErrorIs(t, err, ErrName, "the error was not looked at")

		m := newManifest(metaOf(10), 7, []File{{Name: "good", Size: -1}, {Name: name, Size: -1}})
		data, err := m.encode()
		require.NoError(t, err)
		before := fs.Digest()
		_, err = s.OpenCopy(data, CopyOptions{})
		require.ErrorIs(t, err, ErrName, "%q", name)
		require.ErrorIs(t, err, ErrManifest, "%q", name)
		require.Equal(t, before, fs.Digest())
	}
	for _, name := range []string{"a", "..a", "a..", ".hidden", "a/b/c", "ä", long[1:], manifestName + "x", string(bytes.Repeat([]byte("a/"), 500)) + "a"} {
		require.NoError(t, checkName(name), "%q", name)
	}
	for _, clash := range [][]string{{"a", "a"}, {"a", "a/b"}, {"a/b/c", "a/b"}, {"a/b/c", "a"}} {
		set := newNameSet()
		require.NoError(t, set.add(clash[0]))
		require.ErrorIs(t, set.add(clash[1]), ErrName, "%q", clash)
		set.remove(clash[0])
		require.NoError(t, set.add(clash[1]), "%q", clash)
	}
	require.Empty(t, indexes(s))
}

// What is known of directories is the same in whatever order files come and go.
func TestNamesComeAndGo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	set, in := newNameSet(), map[string]bool{}
	for range 20_000 {
		depth := 1 + rng.IntN(4)
		var parts []string
		for range depth {
			parts = append(parts, string(rune('a'+rng.IntN(3))))
		}
		name := strings.Join(parts, "/")
		if in[name] {
			set.remove(name)
			delete(in, name)
		} else if err := set.add(name); err == nil {
			in[name] = true
		}
		dirs, clash := map[string]bool{}, false
		for file := range in {
			for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
				dirs[dir] = true
				clash = clash || in[dir]
			}
		}
		require.False(t, clash)
		require.Len(t, set.files, len(in))
		require.Len(t, set.dirs, len(dirs))
		for dir := range dirs {
			require.Positive(t, set.dirs[dir], dir)
		}
	}
}

// A manifest of another node takes no more memory for directories than that: short names may have hundreds each.
func TestTooManyDirectories(t *testing.T) {
	deep := strings.Repeat("a/", 500)
	set, err := newNameSet(), error(nil)
	n := 0
	for ; err == nil && n < maxDirs; n++ {
		err = set.add(fmt.Sprintf("%d/%sf", n, deep))
	}
	require.ErrorIs(t, err, ErrName)
	require.ErrorContains(t, err, "directories")
	require.Equal(t, maxDirs/501+1, n)
	require.LessOrEqual(t, len(set.dirs), maxDirs)
	require.NoError(t, set.add("0/"+deep+"another"), "that needs no more")
}

// What is behind a symbolic link is not the snapshot's: others may delete it, and then there would be no snapshot any more.
func TestSymbolicLinksAreNoFiles(t *testing.T) {
	elsewhere := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(elsewhere, "f"), []byte("data"), 0o644))
	for name, write := range map[string]func(t *testing.T, w *Writer){
		"a file": func(t *testing.T, w *Writer) {
			require.NoError(t, os.Symlink(filepath.Join(elsewhere, "f"), filepath.Join(w.Path(), "link")))
			require.NoError(t, w.AddFile("link", nil))
		},
		"a directory": func(t *testing.T, w *Writer) {
			require.NoError(t, os.Symlink(elsewhere, filepath.Join(w.Path(), "link")))
			require.NoError(t, w.AddFile("link/f", nil))
		},
		"a directory that a file is created in": func(t *testing.T, w *Writer) {
			require.NoError(t, os.Symlink(elsewhere, filepath.Join(w.Path(), "link")))
			require.NoError(t, saveFile(w, "link/sub/new", []byte("x")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := Open(vfs.OS{}, t.TempDir(), small())
			require.NoError(t, err)
			w, err := s.NewWriter()
			require.NoError(t, err)
			require.NoError(t, saveFile(w, "good", []byte("x")))
			r, err := w.Commit(metaOf(10), 7)
			require.NoError(t, err)
			require.NoError(t, r.Close())
			w, err = s.NewWriter()
			require.NoError(t, err)
			write(t, w)
			_, err = w.Commit(metaOf(20), 7)
			require.ErrorContains(t, err, `"link" is a symbolic link`)
			require.NoError(t, s.Prune())
			require.Equal(t, []int64{10}, indexes(s))
			content, err := os.ReadFile(filepath.Join(elsewhere, "f"))
			require.NoError(t, err)
			require.Equal(t, "data", string(content))
		})
	}
}

// Only a newer snapshot is accepted, and one Writer at a time.
func TestStaleAndBusy(t *testing.T) {
	s := mustOpen(t, vfs.NewMem(), small())
	a, b, _ := contents()
	require.NoError(t, mustSave(t, s, 10, a).Close())
	for _, index := range []int64{9, 10} {
		_, err := save(s, index, b)
		require.ErrorIs(t, err, ErrStale)
		_, err = s.OpenCopy(mustManifest(t, mustServe(t, index, b)), CopyOptions{})
		require.ErrorIs(t, err, ErrStale)
	}
	_, err := save(s, 0, b)
	require.Error(t, err)
	w, err := s.NewWriter()
	require.NoError(t, err)
	_, err = s.NewWriter()
	require.ErrorIs(t, err, ErrBusy)
	require.NoError(t, w.Abort())
	require.NoError(t, w.Abort())
	_, err = w.Create("x")
	require.ErrorIs(t, err, ErrClosed)
	_, err = w.Commit(metaOf(11), 7)
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, mustSave(t, s, 11, b).Close())
	require.Equal(t, []int64{11, 10}, indexes(s))
}

// Errors that the state machine does not look at end the save all the same: a file
// whose write or close failed is never in a snapshot.
func TestUnnoticedErrors(t *testing.T) {
	for _, kind := range []vfs.Kind{vfs.KindWrite, vfs.KindSync, vfs.KindClose, vfs.KindCreate} {
		fs := vfs.NewMem()
		s := mustOpen(t, fs, small())
		a, b, _ := contents()
		require.NoError(t, mustSave(t, s, 10, a).Close())
		w, err := s.NewWriter()
		require.NoError(t, err)
		fs.SetInjector(vfs.Fail(syscall.EIO, kind).Times(1))
		for name, data := range b {
			if f, err := w.Create(name); err == nil {
				_, _ = f.Write(data)
				_ = f.Close()
			}
		}
		_, err = w.Commit(metaOf(20), 7)
		require.ErrorIs(t, err, syscall.EIO, "%v", kind)
		require.Equal(t, []int64{10}, indexes(s))
		require.NoError(t, mustSave(t, s, 20, b).Close())
	}
	s := mustOpen(t, vfs.NewMem(), small())
	w, err := s.NewWriter()
	require.NoError(t, err)
	_, err = w.Create("open")
	require.NoError(t, err)
	_, err = w.Commit(metaOf(20), 7)
	require.ErrorContains(t, err, `file "open" is not closed`)
	w, err = s.NewWriter()
	require.NoError(t, err)
	require.NoError(t, w.AddFile("missing", nil))
	_, err = w.Commit(metaOf(20), 7)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Empty(t, indexes(s))
}

// The newest snapshots stay, the others go when the last that reads them has closed.
func TestPrune(t *testing.T) {
	fs := vfs.NewMem()
	o := small()
	o.Keep = 2
	s := mustOpen(t, fs, o)
	a, b, c := contents()
	first := mustSave(t, s, 10, a)
	for i, data := range []content{b, c, a} {
		require.NoError(t, mustSave(t, s, int64(20+10*i), data).Close())
	}
	require.Equal(t, []int64{40, 30, 20, 10}, indexes(s))
	file, err := first.Open("own/big")
	require.NoError(t, err)
	require.NoError(t, s.Prune())
	require.Equal(t, []int64{40, 30}, indexes(s))
	_, err = s.Reader(10)
	require.ErrorIs(t, err, ErrNone)
	requireWhole(t, first, a)
	require.NoError(t, first.Close())
	_, err = fs.Stat(filepath.Join(testDir, snapshotName(10)))
	require.NoError(t, err, "a file is open")
	require.NoError(t, file.Close())
	require.NoError(t, file.Close())
	names, err := fs.ReadDir(testDir)
	require.NoError(t, err)
	require.Equal(t, []string{snapshotName(30), snapshotName(40)}, names)
}

// A damaged snapshot is named, and Latest is the one before; what replaces it may have
// its index. Until that is there it stays.
func TestDamagedLatest(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	a, b, _ := contents()
	require.NoError(t, mustSave(t, s, 10, a).Close())
	r := mustSave(t, s, 20, b)
	require.NoError(t, fs.Corrupt(filepath.Join(r.Path(), manifestName), 0, func(p []byte) { p[20] ^= 1 }))
	require.Error(t, r.Verify(Watch{}))
	require.NoError(t, r.Close())
	for range 2 {
		require.Equal(t, []int64{20, 10}, indexes(s))
		var damage *DamageError
		require.ErrorAs(t, s.List()[0].Damage, &damage)
		require.Equal(t, manifestName, damage.Name)
		latest, err := s.Latest()
		require.NoError(t, err)
		require.EqualValues(t, 10, latest.Index())
		require.NoError(t, latest.Close())
		require.NoError(t, s.Prune(), "keeps the good one")
		s = mustOpen(t, fs, small())
	}
	_, err := s.Reader(20)
	require.ErrorContains(t, err, "damaged")
	fs.SetInjector(func(op vfs.Op) error { // the new one cannot be sealed
		if op.Kind == vfs.KindSyncDir && filepath.Base(op.Name) != filepath.Base(testDir) {
			return syscall.EIO
		}
		return nil
	})
	_, err = save(s, 20, b)
	require.ErrorIs(t, err, syscall.EIO)
	fs.SetInjector(nil)
	require.Equal(t, []int64{20, 10}, indexes(s))
	_, err = fs.Stat(filepath.Join(testDir, snapshotName(20), manifestName))
	require.NoError(t, err)
	r = mustSave(t, s, 20, b)
	requireWhole(t, r, b)
	require.Equal(t, []int64{20, 10}, indexes(s))
	require.NoError(t, s.List()[0].Damage)
	require.NoError(t, s.Remove(20))
	require.ErrorIs(t, s.Remove(20), ErrNone)
	_, err = save(s, 20, a)
	require.ErrorIs(t, err, ErrBusy)
	require.NoError(t, r.Close())
	r = mustSave(t, s, 20, b)
	requireWhole(t, r, b)
	// While somebody reads it, none of the same index can take its place.
	require.NoError(t, s.Remove(20))
	_, err = save(s, 20, a)
	require.ErrorIs(t, err, ErrBusy)
	requireWhole(t, r, b)
	require.NoError(t, r.Close())
	r = mustSave(t, s, 20, a)
	requireWhole(t, r, a)
	require.NoError(t, r.Close())
	require.NoError(t, s.Prune())
	require.Equal(t, []int64{20}, indexes(s))
}

// A manifest that there is no descriptor for tells nothing of its snapshot: the opening fails, and the next one finds it whole.
// What the disk cannot read is damaged.
func TestManifestThatIsNotOpened(t *testing.T) {
	a, b, c := contents()
	for _, fault := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM} {
		fs := vfs.NewMem()
		s := mustOpen(t, fs, small())
		require.NoError(t, mustSave(t, s, 10, a).Close())
		require.NoError(t, mustSave(t, s, 30, b).Close())
		thirty := filepath.Join(testDir, snapshotName(30), manifestName)
		fail := func(op vfs.Op) error {
			if op.Kind == vfs.KindOpen && op.Name == thirty {
				return fault
			}
			return nil
		}
		fs.SetInjector(fail)
		_, err := Open(fs, testDir, small())
		require.ErrorIs(t, err, fault)
		require.ErrorContains(t, err, thirty)
		_, err = Inspect(fs, testDir)
		require.ErrorIs(t, err, fault)
		fs.SetInjector(nil)
		s = mustOpen(t, fs, small())
		require.Equal(t, []int64{30, 10}, indexes(s))
		_, err = save(s, 20, c)
		require.ErrorIs(t, err, ErrStale)
		r, err := s.Latest()
		require.NoError(t, err)
		requireWhole(t, r, b)
		require.NoError(t, r.Close())

		for _, kind := range []vfs.Kind{vfs.KindOpen, vfs.KindRead} {
			fs.SetInjector(vfs.Fail(syscall.EIO, kind).On(manifestName).Times(1))
			s = mustOpen(t, fs, small())
			require.ErrorIs(t, s.List()[1].Damage, syscall.EIO)
		}
	}
}

// Each block of a snapshot, the manifest's too, is damaged in turn, and Verify says
// where; so it does for a file that is missing, too short, too long or not listed.
func TestVerifyFindsDamage(t *testing.T) {
	a, _, _ := contents()
	a["wide"] = noise(9, 40*testLeaf) // blocks of several leaves
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	r := mustSave(t, s, 10, a)
	require.NoError(t, r.Verify(Watch{}))
	demand := func(fs *vfs.Mem, name string, off int64) {
		t.Helper()
		again, err := Open(fs.KillClone(), testDir, small())
		require.NoError(t, err)
		var damage *DamageError
		if r, openErr := again.Reader(10); openErr == nil {
			defer func() { require.NoError(t, r.Close()) }()
			require.ErrorAs(t, r.Verify(Watch{}), &damage)
			require.False(t, r.Info().Verified)
			require.Error(t, again.List()[0].Damage)
		} else {
			require.ErrorAs(t, openErr, &damage)
		}
		require.Equal(t, name, damage.Name)
		require.Equal(t, off, damage.Offset)
		require.Contains(t, damage.Path, name)
	}
	blocks := 0
	names := append(r.Files(), File{Name: manifestName, Size: -1})
	for _, f := range names {
		info, err := fs.Stat(filepath.Join(r.Path(), f.Name))
		require.NoError(t, err)
		for off := int64(0); off < info.Size(); off += 4 << 10 {
			for _, at := range []int64{off, min(off+4<<10, info.Size()) - 1} {
				clone := fs.KillClone()
				require.NoError(t, clone.Corrupt(filepath.Join(r.Path(), f.Name), at, func(p []byte) { p[0] ^= 0x10 }))
				if f.Size >= 0 {
					demand(clone, f.Name, off-off%f.blockSize)
				} else if at == 0 {
					demand(clone, f.Name, 0) // in the length
				} else {
					demand(clone, f.Name, 4)
				}
				blocks++
			}
		}
	}
	require.Greater(t, blocks, 100)

	change := func(change func(fs *vfs.Mem) error) *vfs.Mem {
		clone := fs.KillClone()
		require.NoError(t, change(clone))
		return clone
	}
	resize := func(name string, size int64) func(fs *vfs.Mem) error {
		return func(fs *vfs.Mem) error {
			f, err := fs.OpenFile(filepath.Join(r.Path(), name), os.O_RDWR, 0)
			require.NoError(t, err)
			return errors.Join(f.Truncate(size), f.Close())
		}
	}
	demand(change(func(fs *vfs.Mem) error { return fs.Remove(filepath.Join(r.Path(), "one")) }), "one", 0)
	demand(change(func(fs *vfs.Mem) error { return fs.Remove(filepath.Join(r.Path(), manifestName)) }), manifestName, 0)
	demand(change(func(fs *vfs.Mem) error { return writeFile(fs, filepath.Join(r.Path(), "dir/extra"), nil) }), "dir/extra", 0)
	demand(change(resize("own/big", 8*testLeaf)), "own/big", 8*testLeaf)
	demand(change(resize("own/big", 10*testLeaf)), "own/big", 9*testLeaf+1)
	demand(change(resize(manifestName, 100)), manifestName, 0)
	demand(change(resize(manifestName, 3)), manifestName, 0)
	demand(change(resize(manifestName, 5000)), manifestName, 0)
	// A directory that somebody has renamed to another index.
	clone := change(func(fs *vfs.Mem) error { return fs.Rename(r.Path(), filepath.Join(testDir, snapshotName(11))) })
	again := mustOpen(t, clone, small())
	require.ErrorContains(t, again.List()[0].Damage, "it is of index 10")
}

// Verify stops when asked, tells what it reads, and does its work once.
func TestVerifyWatch(t *testing.T) {
	a, _, _ := contents()
	r := mustServe(t, 10, a)
	require.ErrorIs(t, r.Verify(Watch{Stop: func() bool { return true }}), ErrStopped)
	bytes := 0
	w := Watch{Read: func(n int) { bytes += n }}
	require.NoError(t, r.Verify(w))
	require.EqualValues(t, r.Info().Bytes, bytes)
	require.NoError(t, r.Verify(w))
	require.EqualValues(t, r.Info().Bytes, bytes, "it was verified")
	require.NoError(t, r.Scrub(w))
	require.EqualValues(t, 2*r.Info().Bytes, bytes)
}

// Readers, files and verifications of a snapshot that is condemned meanwhile see all
// of it, and it is gone when the last has ended.
func TestConcurrentReadersAndDeletion(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	a, _, _ := contents()
	var wg sync.WaitGroup
	for i := int64(1); i <= 20; i++ {
		r := mustSave(t, s, 10*i, a)
		for range 3 {
			wg.Go(func() {
				r, err := s.Latest()
				if err != nil {
					t.Error(err)
					return
				}
				data, eof, err := r.Serve(nil, "own/big", testLeaf, testLeaf, 1<<20)
				if err != nil || eof || !bytes.Equal(data, a["own/big"][testLeaf:2*testLeaf]) {
					t.Error("served something else", err)
				}
				if err := r.Verify(Watch{}); err != nil {
					t.Error(err)
				}
				if err := r.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := s.Prune(); err != nil {
				t.Error(err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.NoError(t, s.Prune())
	names, err := fs.ReadDir(testDir)
	require.NoError(t, err)
	require.Equal(t, []string{snapshotName(200)}, names)
}

// If the name of a new snapshot cannot be made durable, there is none: not in this
// process, which may save that index again, and not in the next.
func TestPublishIsTakenBack(t *testing.T) {
	fs := vfs.NewMem()
	s := mustOpen(t, fs, small())
	a, b, c := contents()
	require.NoError(t, mustSave(t, s, 10, a).Close())
	fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSyncDir && op.Name == testDir {
			fs.SetInjector(nil)
			return syscall.EIO
		}
		return nil
	})
	_, err := save(s, 20, b)
	require.ErrorIs(t, err, syscall.EIO)
	require.Equal(t, []int64{10}, indexes(s))
	require.Equal(t, []int64{10}, indexes(mustOpen(t, fs.KillClone(), small())))
	r := mustSave(t, s, 20, c)
	requireWhole(t, r, c)
	require.NoError(t, r.Close())
}

// A damaged snapshot does not count among those kept; what a failed deletion left goes
// with the next Prune; and a manifest that was exchanged for another good one is noticed.
func TestPruneCountsGoodOnes(t *testing.T) {
	fs := vfs.NewMem()
	o := small()
	o.Keep = 2
	s := mustOpen(t, fs, o)
	a, b, _ := contents()
	for index := int64(10); index <= 40; index += 10 {
		require.NoError(t, mustSave(t, s, index, a).Close())
	}
	r, err := s.Reader(30)
	require.NoError(t, err)
	other := mustManifest(t, mustServe(t, 30, b))
	require.NoError(t, fs.Remove(filepath.Join(r.Path(), manifestName)))
	disk := append([]byte{0, 0, byte(len(other) >> 8), byte(len(other))}, other...)
	require.NoError(t, writeFile(fs, filepath.Join(r.Path(), manifestName), disk))
	require.ErrorContains(t, r.Scrub(Watch{}), "it has changed")
	require.NoError(t, r.Close())
	fs.SetInjector(vfs.Fail(syscall.EIO, vfs.KindReadDir).On(trashPrefix + "*"))
	require.ErrorIs(t, s.Prune(), syscall.EIO)
	fs.SetInjector(nil)
	require.Equal(t, []int64{40, 20}, indexes(s))
	require.NoError(t, s.Prune())
	names, err := fs.ReadDir(testDir)
	require.NoError(t, err)
	require.Equal(t, []string{snapshotName(20), snapshotName(40)}, names)
}

// Hashing a file that the user has written himself can be stopped. Then there is no snapshot, and nothing is left of it.
func TestSaveIsStopped(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(fs, testDir, small())
	require.NoError(t, err)
	w, err := s.NewWriter()
	require.NoError(t, err)
	read := 0
	w.Watch = Watch{Stop: func() bool { return read > 0 }, Read: func(n int) { read += n }}
	require.NoError(t, writeFile(fs, filepath.Join(w.Path(), "own"), make([]byte, 10*small().layout.leaf)))
	require.NoError(t, w.AddFile("own", nil))
	_, err = w.Commit(metaOf(10), 7)
	require.ErrorIs(t, err, ErrStopped)
	require.EqualValues(t, small().layout.leaf, read, "one piece")
	require.Empty(t, s.List())
	names, err := fs.ReadDir(testDir)
	require.NoError(t, err)
	require.Empty(t, names)
	w, err = s.NewWriter()
	require.NoError(t, err, "it is not busy")
	require.NoError(t, w.Abort())
}

// What the system writes out as it comes leaves a sync little to do, and so needs one less often; but it needs one.
func TestHowOftenAFileIsSynced(t *testing.T) {
	for _, out := range []bool{false, true} {
		require.False(t, syncDue(syncEvery-1, out))
		require.Equal(t, !out, syncDue(syncEvery, out))
		require.Equal(t, !out, syncDue(syncOutEvery-1, out))
		require.True(t, syncDue(syncOutEvery, out))
	}
}
