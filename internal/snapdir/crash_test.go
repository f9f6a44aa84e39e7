package snapdir

import (
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// The crash tests look at the disk before each operation of a script, take images that
// a power cut or a kill could leave there, and open each: what was acknowledged is there,
// what is there is whole, nothing else is left but what an interrupted copy may resume
// from, and a copy that does leaves the local snapshots whole. The openings are crashed
// in their turn. The fault tests let each operation of a script fail.

// script is what the store is put through. An error ends a step of it, not the script.
type script struct {
	name string
	run  func(b *crashBed)
}

func scripts() []script {
	return []script{{"save", saveScript}, {"copy", copyScript}, {"braft", braftScript}}
}

// crashBed runs a script.
type crashBed struct {
	t     testing.TB
	fs    *vfs.Mem
	rng   *rand.Rand
	s     *Store
	known map[int64]content // by index, what was or may be published
	acked map[int64]bool    // what must be there
	next  *Reader           // what images are continued with

	seen   map[string]bool
	images int
	inner  int
	steps  int
	failed int
}

// crashContents are small versions of contents.
func crashContents() (a, b, c content) {
	a = content{"e": {}, "d/x": noise(1, testLeaf+9), "own/y": noise(2, 300), "z": noise(3, 2*testLeaf)}
	b = maps.Clone(a)
	b["d/x"] = noise(4, testLeaf+9)
	c = content{"d/x": noise(5, testLeaf+9), "own": noise(6, 200), "z": a["z"]}
	return a, b, c
}

func newCrashBed(t testing.TB, name string) *crashBed {
	a, _, _ := crashContents()
	a["d/x"] = noise(7, 2*testLeaf+1)
	a["z"] = noise(8, 2*testLeaf) // which the scripts link
	return &crashBed{
		t: t, fs: vfs.NewMem(), rng: rand.New(rand.NewPCG(1, uint64(crc32.ChecksumIEEE([]byte(name))))),
		known: map[int64]content{1000: a}, acked: map[int64]bool{}, seen: map[string]bool{}, next: mustServe(t, 1000, a),
	}
}

// step counts a step of the script and reports whether it went well.
func (b *crashBed) step(err error) bool {
	b.steps++
	if err != nil {
		b.failed++
		require.True(b.t, errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EMFILE), "%v", err)
	}
	return err == nil
}

func (b *crashBed) open() bool {
	s, err := Open(b.fs, testDir, small())
	if !b.step(err) {
		return false
	}
	b.s = s
	for _, info := range s.List() {
		b.step(info.Damage) // said to be damaged because it could not be read
	}
	return true
}

func (b *crashBed) save(index int64, c content) *Reader {
	b.known[index] = c
	r, err := save(b.s, index, c)
	return b.published(r, err)
}

// published takes note of a snapshot.
func (b *crashBed) published(r *Reader, err error) *Reader {
	if !b.step(err) {
		return nil
	}
	b.acked[r.Index()] = true
	if !b.step(r.Verify(Watch{})) {
		b.step(r.Close())
		return nil
	}
	return r
}

func (b *crashBed) prune() {
	for _, info := range b.s.List()[min(1, len(b.s.List())):] {
		delete(b.acked, info.Index)
	}
	b.step(b.s.Prune())
}

func (b *crashBed) close(r *Reader) {
	if r != nil {
		b.step(r.Close())
	}
}

// copy takes in a snapshot; after so many pieces it is given up and kept.
func (b *crashBed) copy(from *Reader, manifest []byte, pieces int) {
	c, err := b.s.OpenCopy(manifest, CopyOptions{})
	if !b.step(err) {
		return
	}
	for range 3 { // a piece that fails is fetched again
		if _, err = fetch(c, from, 3000, pieces); b.step(err) {
			break
		}
	}
	if pieces >= 0 || err != nil {
		b.step(c.Abort(true))
		return
	}
	r, err := c.Commit()
	b.close(b.published(r, err))
}

func saveScript(b *crashBed) {
	x, y, z := crashContents()
	if !b.open() {
		return
	}
	first := b.save(10, x)
	b.close(b.save(20, y))
	b.prune()
	b.close(first)
	b.close(b.save(30, z))
	if !b.open() {
		return
	}
	b.prune()
	b.close(b.save(40, x))
	delete(b.acked, 40)
	if err := b.s.Remove(40); !errors.Is(err, ErrNone) {
		b.step(err)
	}
}

func copyScript(b *crashBed) {
	x, y, z := crashContents()
	one, two, three := mustServe(b.t, 20, y), mustServe(b.t, 30, z), mustServe(b.t, 40, x)
	b.known[20], b.known[30], b.known[40] = y, z, x
	if !b.open() {
		return
	}
	b.close(b.save(10, x))
	b.copy(one, mustManifest(b.t, one), 2)
	if !b.open() {
		return
	}
	b.copy(one, mustManifest(b.t, one), -1)
	b.prune()
	b.copy(two, mustManifest(b.t, two), 4)
	b.copy(three, mustManifest(b.t, three), -1)
	b.prune()
	b.copy(b.next, mustManifest(b.t, b.next), 2)
	b.step(b.s.RemoveCopy())
}

func braftScript(b *crashBed) {
	x, y, _ := crashContents()
	one, two := mustServe(b.t, 10, x), mustServe(b.t, 20, y)
	b.known[10], b.known[20] = x, y
	sums := map[string]string{"z": "user's"}
	if !b.open() {
		return
	}
	b.copy(one, plain(b.t, one, sums), 3)
	b.copy(one, plain(b.t, one, sums), -1)
	b.copy(two, plain(b.t, two, sums), -1)
	b.prune()
}

// point looks at the disk as it is. acked is a copy of what must be there.
func (b *crashBed) point(fs *vfs.Mem, most int, deep bool) {
	b.check(fs.KillClone(), deep)
	n := len(fs.Units())
	for k := range most {
		all, at, p := n < 6 && 1<<n <= most, b.rng.IntN(n+1), b.rng.Float64()
		if all && k >= 1<<n {
			return
		}
		b.check(fs.CrashClone(func(u vfs.Unit) bool {
			switch {
			case all:
				return k>>u.Index&1 == 1
			case k == 0:
				return false
			case k%4 == 1:
				return u.Index < at
			case k%4 == 2:
				return u.Index != at
			}
			return b.rng.Float64() < p
		}), deep)
	}
}

// check opens an image and looks at what is there.
func (b *crashBed) check(image *vfs.Mem, deep bool) {
	key := fmt.Sprint(image.Digest(), len(image.Units()), b.acked, deep)
	b.images++
	if b.seen[key] {
		return
	}
	b.seen[key] = true
	if deep {
		inside := image.KillClone() // which has the same units pending, if any
		points := 0
		inside.OnOp(func(op vfs.Op) {
			if op.Writes() && points < 40 {
				points++
				b.inner++
				b.point(inside, 2, false)
			}
		})
		_, err := Open(inside, testDir, small())
		require.NoError(b.t, err)
	}
	s, err := Open(image, testDir, small())
	require.NoError(b.t, err)
	b.look(image, s)
	b.durable(image, s)
	c, err := s.OpenCopy(mustManifest(b.t, b.next), CopyOptions{})
	require.NoError(b.t, err)
	_, err = fetch(c, b.next, 5000, -1)
	require.NoError(b.t, err)
	r, err := c.Commit()
	require.NoError(b.t, err)
	require.NoError(b.t, r.Close())
	b.look(image, s)
	b.durable(image, s)
}

// durable demands that a power cut takes nothing away of what a store has told of. If
// a sync had failed before, nobody can promise that.
func (b *crashBed) durable(image *vfs.Mem, s *Store) {
	if slices.ContainsFunc(image.Units(), func(u vfs.Unit) bool { return u.Failed }) {
		return
	}
	image = image.CrashClone(nil)
	cut, err := Open(image, testDir, small())
	require.NoError(b.t, err)
	require.Equal(b.t, indexes(s), indexes(cut), "told of, and taken away by a power cut")
	b.look(image, cut)
}

func (b *crashBed) look(image *vfs.Mem, s *Store) {
	names, err := image.ReadDir(testDir)
	require.NoError(b.t, err)
	for _, name := range names {
		require.True(b.t, name == copyDir || strings.HasPrefix(name, snapshotPrefix), "%s is left", name)
	}
	list := indexes(s)
	for index := range b.acked {
		require.Contains(b.t, list, index, "an acknowledged snapshot is lost")
	}
	for _, index := range list {
		r, err := s.Reader(index)
		require.NoError(b.t, err, "half a snapshot")
		requireWhole(b.t, r, b.known[index])
		require.NoError(b.t, r.Close())
	}
}

// Crashes at every operation of a script, and in the openings after.
func TestCrash(t *testing.T) {
	for _, sc := range scripts() {
		t.Run(sc.name, func(t *testing.T) {
			b := newCrashBed(t, sc.name)
			b.fs.OnOp(func(op vfs.Op) {
				if op.Writes() {
					b.point(b.fs, 6, b.rng.IntN(8) == 0)
				}
			})
			sc.run(b)
			b.fs.OnOp(nil)
			b.point(b.fs, 6, true)
			require.Zero(t, b.failed)
			require.Greater(t, b.inner, 100)
			t.Logf("%d images, %d different, %d points inside openings", b.images, len(b.seen), b.inner)
		})
	}
}

// Each operation of a script fails once, with an I/O error or for lack of space: the
// step that needed it says so, no acknowledged snapshot is lost and none is half there,
// neither for the next process nor after a power cut.
func TestFaults(t *testing.T) {
	for _, sc := range scripts() {
		for _, fault := range []error{syscall.EIO, syscall.ENOSPC} {
			t.Run(fmt.Sprint(sc.name, " ", fault), func(t *testing.T) {
				quiet := newCrashBed(t, sc.name)
				var ops []int64
				quiet.fs.OnOp(func(op vfs.Op) {
					if fault == syscall.EIO || needsSpace(op.Kind) {
						ops = append(ops, op.N)
					}
				})
				sc.run(quiet)
				reported, tried := 0, 0
				for i, n := range ops {
					if raceEnabled && i%7 != 0 {
						continue
					}
					tried++
					b := newCrashBed(t, sc.name)
					var hit vfs.Op
					fail := vfs.FailOp(n, fault)
					b.fs.SetInjector(func(op vfs.Op) error {
						err := fail(op)
						if err != nil {
							hit = op
						}
						return err
					})
					sc.run(b)
					b.fs.SetInjector(nil)
					if b.failed > 0 {
						reported++
					} else {
						require.True(t, mayBeSilent(sc.name, hit), "%v of %s failed and nobody said so", hit.Kind, hit.Name)
					}
					b.point(b.fs, 3, false)
				}
				require.Greater(t, reported, tried/2)
			})
		}
	}
}

func needsSpace(k vfs.Kind) bool {
	return slices.Contains([]vfs.Kind{vfs.KindCreate, vfs.KindWrite, vfs.KindSync, vfs.KindMkdir, vfs.KindSyncDir, vfs.KindRename, vfs.KindLink}, k)
}

// mayBeSilent reports whether the failure of an operation can be none of the step it
// belongs to.
func mayBeSilent(script string, op vfs.Op) bool {
	if op.N == 0 || slices.Contains([]vfs.Kind{vfs.KindRemove, vfs.KindStat}, op.Kind) {
		return true // another way was taken
	}
	// What a copy cannot read of the snapshots there are, or of what an interrupted one has left, it fetches.
	reads := slices.Contains([]vfs.Kind{vfs.KindOpen, vfs.KindRead, vfs.KindClose}, op.Kind)
	return script != "save" && (reads && strings.Contains(op.Name, "/"+snapshotPrefix) ||
		op.Kind == vfs.KindRead && strings.Contains(op.Name, "/"+copyDir+"/"))
}

// A full disk at any size ends a save, and the older snapshot stays; with space the next
// one succeeds.
func TestSaveOnFullDisk(t *testing.T) {
	a, b, _ := crashContents()
	for capacity := int64(5); capacity < 14; capacity++ {
		fs := vfs.NewMem()
		s := mustOpen(t, fs, small())
		require.NoError(t, mustSave(t, s, 10, a).Close())
		used := fs.Used()
		fs.SetCapacity(capacity * 4096)
		r, err := save(s, 20, b)
		if err == nil {
			requireWhole(t, r, b)
			require.NoError(t, r.Close())
			continue
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.Equal(t, used, fs.Used(), "what was written is removed")
		require.Equal(t, []int64{10}, indexes(s))
		fs.SetCapacity(-1)
		require.NoError(t, mustSave(t, s, 20, b).Close())
	}
}

// Crashes while a failed install takes its links out again: what resumes from the copy
// after that never writes to a file of the local snapshot.
func TestCrashInUndoneInstall(t *testing.T) {
	for _, fail := range []vfs.Injector{
		vfs.Fail(syscall.EIO, vfs.KindLink).After(1).Times(1),
		vfs.Fail(syscall.EIO, vfs.KindLink).After(2).Times(1),
		vfs.Fail(syscall.ENOSPC, vfs.KindWrite).On(manifestTemp).Times(1),
		vfs.Fail(syscall.EIO, vfs.KindRename).On(manifestTemp).Times(1),
	} {
		b := newCrashBed(t, "undone")
		x, y, _ := crashContents()
		from := mustServe(t, 20, y)
		b.known[20] = y
		b.open()
		b.close(b.save(10, x))
		hit := false
		b.fs.SetInjector(func(op vfs.Op) error {
			err := fail(op)
			hit = hit || err != nil
			return err
		})
		b.fs.OnOp(func(op vfs.Op) {
			if hit && op.Writes() {
				b.point(b.fs, 32, false)
			}
		})
		b.copy(from, mustManifest(t, from), -1)
		require.True(t, hit)
		require.NotZero(t, b.failed)
		b.copy(b.next, mustManifest(t, b.next), 2)
		b.fs.OnOp(nil)
		b.point(b.fs, 32, false)
		require.Greater(t, b.images, 50)
	}
}

// Crashes after a copy was published and got its old name back, for want of a descriptor: what is then changed in it is never
// found under the snapshot's name, not even if the sync that is to prevent that fails.
func TestCrashAfterACopyIsRenamedBack(t *testing.T) {
	x, y, z := crashContents()
	for _, linked := range []bool{false, true} {
		for _, then := range []error{nil, syscall.EMFILE, syscall.EIO} {
			b := newCrashBed(t, "renamed back")
			from := mustServe(t, 20, y)
			b.known[20] = y
			b.open()
			if linked {
				b.close(b.save(10, x))
			} else {
				b.close(b.save(10, content{"d/x": z["d/x"]}))
			}
			published, hit, again := false, false, then
			b.fs.SetInjector(func(op vfs.Op) error {
				published = published || op.Kind == vfs.KindRename && filepath.Base(op.To) == snapshotName(20)
				switch {
				case !published || op.Kind != vfs.KindSyncDir || op.Name != testDir:
				case !hit:
					hit = true
					return syscall.EMFILE
				default:
					err := again
					again = nil
					return err
				}
				return nil
			})
			b.fs.OnOp(func(op vfs.Op) {
				if hit && op.Writes() {
					b.point(b.fs, 32, false)
				}
			})
			b.copy(from, mustManifest(t, from), -1)
			require.True(t, hit)
			require.NotZero(t, b.failed)
			for range 3 { // the first may not begin
				b.copy(b.next, mustManifest(t, b.next), 2)
			}
			require.NoError(t, again)
			b.fs.OnOp(nil)
			b.point(b.fs, 32, false)
		}
	}
}

// A damaged snapshot stays until what takes its place is whole and durable: a crash at any time before leaves it as it
// was, one after that the other. In between there is none of that index, and the older ones.
func TestCrashWhileADamagedSnapshotIsReplaced(t *testing.T) {
	x, y, z := crashContents()
	for name, replace := range map[string]func(s *Store) (*Reader, error){
		"save": func(s *Store) (*Reader, error) { return save(s, 20, z) },
		"copy": func(s *Store) (*Reader, error) {
			from := mustServe(t, 20, z)
			c, err := s.OpenCopy(mustManifest(t, from), CopyOptions{})
			require.NoError(t, err)
			_, err = fetch(c, from, 3000, -1)
			require.NoError(t, err)
			return c.Commit()
		},
	} {
		t.Run(name, func(t *testing.T) {
			fs, rng := vfs.NewMem(), rand.New(rand.NewPCG(1, 1))
			s := mustOpen(t, fs, Options{Keep: 2, layout: small().layout})
			require.NoError(t, mustSave(t, s, 10, x).Close())
			r := mustSave(t, s, 20, y)
			require.NoError(t, fs.Corrupt(filepath.Join(r.Path(), "z"), 0, func(p []byte) { p[1] ^= 1 }))
			require.Error(t, r.Verify(Watch{}))
			require.NoError(t, r.Close())
			var old, none, replaced int
			aside := false // the old one may be gone
			look := func(image *vfs.Mem) {
				cut, err := Open(image, testDir, small())
				require.NoError(t, err)
				ten, err := cut.Reader(10)
				require.NoError(t, err)
				requireWhole(t, ten, x)
				require.NoError(t, ten.Close())
				twenty, err := cut.Reader(20)
				if errors.Is(err, ErrNone) {
					require.True(t, aside, "it is gone before there is another one")
					none++
					return
				}
				require.NoError(t, err)
				if twenty.Verify(Watch{}) == nil {
					requireWhole(t, twenty, z)
					replaced++
				} else {
					_, ok := twenty.File("own/y")
					require.True(t, ok, "it is not the old one")
					old++
				}
				require.NoError(t, twenty.Close())
			}
			fs.OnOp(func(op vfs.Op) {
				if !op.Writes() {
					return
				}
				for range 4 {
					look(fs.CrashClone(func(vfs.Unit) bool { return rng.IntN(2) == 0 }))
				}
				look(fs.KillClone())
				aside = aside || op.Kind == vfs.KindRename && filepath.Base(op.Name) == snapshotName(20)
			})
			r, err := replace(s)
			require.NoError(t, err)
			requireWhole(t, r, z)
			fs.OnOp(nil)
			look(fs.CrashClone(nil))
			require.Positive(t, old)
			require.Positive(t, replaced)
			require.LessOrEqual(t, none, 3*5, "until the next rename is durable")
			require.NoError(t, errors.Join(r.Close(), s.Prune()))
			require.Equal(t, []int64{20, 10}, indexes(s))
			names, err := fs.ReadDir(testDir)
			require.NoError(t, err)
			require.Equal(t, []string{snapshotName(10), snapshotName(20)}, names)
		})
	}
}

// The name of a damaged snapshot cannot be given to what takes its place, once: the damaged one stays, and the next save of
// that index succeeds. So it does if a condemned one could not be deleted.
func TestADamagedSnapshotIsInNobodysWay(t *testing.T) {
	x, y, z := crashContents()
	rename := func(from string) vfs.Injector { return vfs.Fail(syscall.EIO, vfs.KindRename).On(from) }
	sync := func(err error) vfs.Injector { return vfs.Fail(err, vfs.KindSyncDir).On(filepath.Base(testDir)) }
	back := rename(trashPrefix + "*")
	for name, test := range map[string]struct {
		fail, back vfs.Injector // each once
	}{
		"rename":                        {rename(snapshotName(20)), nil},
		"sync":                          {sync(syscall.EIO), nil},
		"no descriptor":                 {sync(syscall.EMFILE), nil},
		"sync, and rename back":         {sync(syscall.EIO), back},
		"no descriptor and no way back": {sync(syscall.EMFILE), back},
	} {
		for _, condemned := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", condemned ", condemned), func(t *testing.T) {
				fs, rng := vfs.NewMem(), rand.New(rand.NewPCG(1, 1))
				s := mustOpen(t, fs, small())
				require.NoError(t, mustSave(t, s, 10, x).Close())
				r := mustSave(t, s, 20, y)
				path := r.Path()
				if !condemned {
					require.NoError(t, fs.Corrupt(filepath.Join(path, "z"), 0, func(p []byte) { p[1] ^= 1 }))
					require.Error(t, r.Verify(Watch{}))
				}
				require.NoError(t, r.Close())
				if condemned {
					fs.SetInjector(vfs.Fail(syscall.EIO, vfs.KindRename).Times(1))
					require.ErrorIs(t, s.Remove(20), syscall.EIO)
				}
				look := func(image *vfs.Mem) {
					cut := mustOpen(t, image, small())
					ten, err := cut.Reader(10)
					require.NoError(t, err)
					requireWhole(t, ten, x)
					twenty, err := cut.Reader(20)
					if errors.Is(err, ErrNone) {
						return
					}
					require.NoError(t, err)
					if got, err := read(twenty); err != nil || !same(got, z) {
						_, err := twenty.Open("own/y")
						require.NoError(t, err, "it is neither the old one nor the new one")
					}
				}
				fs.OnOp(func(op vfs.Op) {
					if op.Writes() {
						look(fs.KillClone())
						look(fs.CrashClone(func(vfs.Unit) bool { return rng.IntN(2) == 0 }))
					}
				})
				fail := test.fail.Times(1)
				if test.back != nil {
					fail = vfs.FirstOf(fail, test.back.Times(1))
				}
				fs.SetInjector(fail)
				_, err := save(s, 20, z)
				require.Error(t, err)
				fs.SetInjector(nil)
				if test.back == nil {
					_, err = fs.Stat(filepath.Join(path, "own/y"))
					require.NoError(t, err, "it is gone, and there is no other")
				}
				if test.back == nil && !condemned {
					require.Equal(t, []int64{20, 10}, indexes(s))
					require.Error(t, s.List()[0].Damage)
					require.NoError(t, s.Prune())
					_, err = fs.Stat(filepath.Join(path, "own/y"))
					require.NoError(t, err, "no Prune deletes it")
				}
				r, err = save(s, 20, z)
				require.NoError(t, err)
				requireWhole(t, r, z)
				fs.OnOp(nil)
				for _, image := range []*vfs.Mem{fs.KillClone(), fs.CrashClone(nil)} {
					again, err := mustOpen(t, image, small()).Latest()
					require.NoError(t, err)
					requireWhole(t, again, z)
				}
				require.NoError(t, errors.Join(r.Close(), s.Prune()))
				names, err := fs.ReadDir(testDir)
				require.NoError(t, err)
				require.Equal(t, []string{snapshotName(20)}, names)
			})
		}
	}
}
