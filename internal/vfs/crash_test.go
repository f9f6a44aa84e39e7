package vfs

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func all(Unit) bool { return true }

// only keeps the units with the given indexes.
func only(indexes ...int) func(Unit) bool {
	return func(u Unit) bool {
		for _, i := range indexes {
			if i == u.Index {
				return true
			}
		}
		return false
	}
}

// durable makes a file whose name and content survive.
func durable(t *testing.T, m *Mem, name, data string) File {
	t.Helper()
	f := create(t, m, name, data)
	require.NoError(t, f.Sync())
	require.NoError(t, m.SyncDir("/"))
	return f
}

// tree describes everything in m: names, sizes and a digest of the bytes.
func tree(t *testing.T, m *Mem, dir string) string {
	t.Helper()
	list, err := m.ReadDir(dir)
	require.NoError(t, err)
	var b strings.Builder
	for _, name := range list {
		full := strings.TrimSuffix(dir, "/") + "/" + name
		info, err := m.Stat(full)
		require.NoError(t, err)
		if info.IsDir() {
			fmt.Fprintf(&b, "%s/ %s", full, tree(t, m, full))
		} else {
			fmt.Fprintf(&b, "%s=%.1000q#%d ", full, content(t, m, full), info.Size())
		}
	}
	return b.String()
}

func TestUnsyncedNamesAreLost(t *testing.T) {
	m := NewMem()
	f := create(t, m, "/f", "data")
	require.NoError(t, f.Sync()) // the content, not the name
	require.Empty(t, names(t, m.CrashClone(nil), "/"))
	require.Equal(t, "f", names(t, m.CrashClone(all), "/"))
	require.Equal(t, []Unit{{Kind: UnitCreate, Name: "/f"}}, m.Units())
	require.NoError(t, m.SyncDir("/"))
	require.Equal(t, "data", content(t, m.CrashClone(nil), "/f"))

	require.NoError(t, m.Remove("/f"))
	require.Equal(t, "f", names(t, m.CrashClone(nil), "/"))
	require.Equal(t, "data", content(t, m.CrashClone(nil), "/f"))
	require.NoError(t, f.Close())
	require.Zero(t, m.Used())
	require.Equal(t, "data", content(t, m.CrashClone(nil), "/f"), "also after its space was given back")
	require.Empty(t, names(t, m.CrashClone(all), "/"))
}

func TestNameWithoutContent(t *testing.T) {
	m := NewMem()
	create(t, m, "/f", "data")
	require.NoError(t, m.SyncDir("/"))
	require.Equal(t, "", content(t, m.CrashClone(nil), "/f"))
	require.Equal(t, "data", content(t, m.CrashClone(all), "/f"))
}

func TestRenameIsAtomic(t *testing.T) {
	m := NewMem()
	durable(t, m, "/f", "old")
	create(t, m, "/f.tmp", "new")
	require.NoError(t, m.Rename("/f.tmp", "/f")) // units: create, write, rename
	require.Len(t, m.Units(), 3)
	got := map[string]bool{}
	for mask := range 8 {
		got[tree(t, m.CrashClone(func(u Unit) bool { return mask>>u.Index&1 == 1 }), "/")] = true
	}
	require.Equal(t, map[string]bool{
		`/f="old"#3 `:                true,
		`/f="old"#3 /f.tmp=""#0 `:    true,
		`/f="old"#3 /f.tmp="new"#3 `: true,
		`/f=""#0 `:                   true, // renamed before it was synced
		`/f="new"#3 `:                true,
	}, got)
	require.NoError(t, m.SyncDir("/"))
	require.Equal(t, `/f=""#0 `, tree(t, m.CrashClone(nil), "/"))
}

func TestChainOfRenames(t *testing.T) {
	m := NewMem()
	durable(t, m, "/a", "x")
	require.NoError(t, m.Rename("/a", "/b"))
	require.NoError(t, m.Rename("/b", "/c"))
	for mask, want := range []string{"a", "b", "c", "c"} {
		require.Equal(t, want, names(t, m.CrashClone(func(u Unit) bool { return mask>>u.Index&1 == 1 }), "/"))
	}
}

func TestLinkAndDirectories(t *testing.T) {
	m := NewMem()
	durable(t, m, "/a", "x")
	require.NoError(t, m.Link("/a", "/b"))
	require.NoError(t, m.Remove("/a"))
	require.Equal(t, "a", names(t, m.CrashClone(nil), "/"))
	require.Equal(t, "a b", names(t, m.CrashClone(only(0)), "/"))
	require.Equal(t, "", names(t, m.CrashClone(only(1)), "/"), "any subset")
	m.SetCrashModel(CrashModel{OrderedDirs: true})
	require.Equal(t, "a", names(t, m.CrashClone(only(1)), "/"), "a prefix")
	linked := m.CrashClone(only(0))
	f, err := linked.OpenFile("/a", os.O_RDWR, 0)
	require.NoError(t, err)
	put(t, f, "y", 0)
	require.Equal(t, "y", content(t, linked, "/b"), "still one file")
	require.NoError(t, m.SyncDir("/"))
	require.Equal(t, "b", names(t, m.CrashClone(nil), "/"))

	m.SetCrashModel(CrashModel{})
	require.NoError(t, m.MkdirAll("/d/e", 0o755))
	require.NoError(t, m.Rename("/b", "/d/e/b"))
	require.NoError(t, m.SyncDir("/d"))
	require.Equal(t, `/b="x"#1 `, tree(t, m.CrashClone(nil), "/"), "/d itself was not synced")
	require.Equal(t, `/d/ /d/e/ /d/e/b="x"#1 `, tree(t, m.CrashClone(only(1)), "/"), "the rename brings /d along")
	require.NoError(t, m.SyncDir("/d/e"))
	require.Equal(t, `/d/ /d/e/ /d/e/b="x"#1 `, tree(t, m.CrashClone(nil), "/"))

	require.NoError(t, m.Remove("/d/e/b"))
	require.NoError(t, m.Remove("/d/e"))
	require.Equal(t, `/d/ `, tree(t, m.CrashClone(only(1)), "/"))
}

// TestRemovedDirectoryWasEmptied: a file moved out of a directory cannot vanish with it.
func TestRemovedDirectoryWasEmptied(t *testing.T) {
	m := NewMem()
	require.NoError(t, m.MkdirAll("/d", 0o755))
	create(t, m, "/d/x", "")
	require.NoError(t, m.SyncDir("/"))
	require.NoError(t, m.SyncDir("/d"))
	require.NoError(t, m.Rename("/d/x", "/x"))
	require.NoError(t, m.Remove("/d"))
	require.Equal(t, "d", names(t, m.CrashClone(nil), "/"))
	require.Equal(t, "d x", names(t, m.CrashClone(only(0)), "/"))
	require.Equal(t, "x", names(t, m.CrashClone(only(1)), "/"))
}

func TestBlocksSurviveApart(t *testing.T) {
	m := NewMem()
	f := durable(t, m, "/f", strings.Repeat("-", 3*4096))
	put(t, f, strings.Repeat("x", 8000), 4000)
	units := m.Units()
	require.Equal(t, []Unit{
		{Index: 0, Kind: UnitWrite, Name: "/f", Off: 4000, Len: 96},
		{Index: 1, Kind: UnitWrite, Name: "/f", Off: 4096, Len: 4096},
		{Index: 2, Kind: UnitWrite, Name: "/f", Off: 8192, Len: 3808},
	}, units)
	for mask := range 8 {
		want := []byte(strings.Repeat("-", 3*4096))
		for i, u := range units {
			if mask>>i&1 == 1 {
				copy(want[u.Off:], strings.Repeat("x", int(u.Len)))
			}
		}
		got := content(t, m.CrashClone(func(u Unit) bool { return mask>>u.Index&1 == 1 }), "/f")
		require.True(t, string(want) == got, "mask %b", mask)
	}
}

func TestSectorsAndHoles(t *testing.T) {
	m := NewMem()
	m.SetCrashModel(CrashModel{Sectors: true})
	f := durable(t, m, "/f", "")
	put(t, f, strings.Repeat("x", 1024), 0)
	require.Len(t, m.Units(), 2)
	require.Equal(t, strings.Repeat("\x00", 512)+strings.Repeat("x", 512), content(t, m.CrashClone(only(1)), "/f"))
	require.Equal(t, strings.Repeat("x", 512), content(t, m.CrashClone(only(0)), "/f"))

	// A later write of a sector brings the earlier one along.
	put(t, f, "y", 3)
	require.Equal(t, "xxxyx", content(t, m.CrashClone(only(2)), "/f")[:5])
	require.NoError(t, f.Sync())
	require.Equal(t, "xxxyx", content(t, m.CrashClone(nil), "/f")[:5])
}

func TestTruncateAndPreallocate(t *testing.T) {
	m := NewMem()
	f := durable(t, m, "/f", strings.Repeat("o", 10000))
	require.NoError(t, f.Truncate(100))
	put(t, f, "new", 9000)
	size := func(m *Mem) int { return len(content(t, m, "/f")) }
	require.Equal(t, 10000, size(m.CrashClone(nil)))
	require.Equal(t, 100, size(m.CrashClone(only(0))))
	after := content(t, m.CrashClone(only(1)), "/f")
	require.True(t, strings.Repeat("o", 100)+strings.Repeat("\x00", 8900)+"new" == after, "the truncation comes along")

	require.NoError(t, f.Sync())
	require.NoError(t, f.Preallocate(0, 1<<20))
	put(t, f, "z", 1<<19)
	require.Equal(t, 9003, size(m.CrashClone(nil)))
	require.Equal(t, 1<<20, size(m.CrashClone(only(0))))
	require.Equal(t, 1<<19+4096, size(m.CrashClone(only(1))), "the cache knew of more to the end of the block")
	require.EqualValues(t, 1<<20, m.CrashClone(all).Used())
	require.NoError(t, f.Sync())
	require.EqualValues(t, 1<<20, m.CrashClone(nil).Used())
}

func TestFailedSyncLosesForGood(t *testing.T) {
	m := NewMem()
	f := durable(t, m, "/f", strings.Repeat("-", 8192))
	put(t, f, "lost", 0)
	put(t, f, "lost", 4096)
	m.SetInjector(Fail(syscall.EIO, KindSync).On("f").Times(1))
	requireError(t, f.Sync(), "/f", syscall.EIO)
	require.NoError(t, f.Sync(), "the pages count as clean")
	require.Equal(t, "lost", content(t, m, "/f")[:4], "and can be read")
	require.Equal(t, "----", content(t, m.CrashClone(nil), "/f")[:4])
	require.True(t, m.Units()[0].Failed)
	require.Equal(t, "lost", content(t, m.CrashClone(all), "/f")[:4], "or it was written all the same")

	// A page that is dirtied again is written as a whole.
	put(t, f, "more", 4100)
	require.NoError(t, f.Sync())
	got := content(t, m.CrashClone(nil), "/f")
	require.Equal(t, "----", got[:4])
	require.Equal(t, "lostmore", got[4096:4104])
	require.Len(t, m.Units(), 1)
	require.NoError(t, f.Truncate(2))
	require.NoError(t, f.Sync())
	require.Empty(t, m.Units(), "nothing is left of what was in doubt")
	require.Equal(t, "--", content(t, m.CrashClone(all), "/f"))
}

func TestFailedSyncDir(t *testing.T) {
	m := NewMem()
	create(t, m, "/f", "")
	m.SetInjector(Fail(syscall.EIO, KindSyncDir).Times(1))
	requireError(t, m.SyncDir("/"), "/", syscall.EIO)
	require.NoError(t, m.SyncDir("/"))
	require.Empty(t, names(t, m.CrashClone(nil), "/"))
	require.NoError(t, m.Rename("/f", "/g"))
	require.NoError(t, m.SyncDir("/"))
	require.Equal(t, "g", names(t, m.CrashClone(nil), "/"))
}

func TestKillThenCut(t *testing.T) {
	m := NewMem()
	f := durable(t, m, "/f", "old")
	put(t, f, "new", 0)
	gone := create(t, m, "/gone", "x")
	require.NoError(t, m.Remove("/gone")) // open without a name
	_, err := m.Lock("/LOCK")
	require.NoError(t, err)
	k := m.KillClone()
	m.Kill()

	requireError(t, f.Close(), "/f", ErrDead)
	requireError(t, gone.Sync(), "/gone", ErrDead)
	_, err = m.ReadDir("/")
	requireError(t, err, "/", ErrDead)
	_, err = m.OpenFile("/f", os.O_RDWR, 0)
	requireError(t, err, "/f", ErrDead)

	require.Equal(t, "new", content(t, k, "/f"))
	require.EqualValues(t, 4096, k.Used())
	require.Equal(t, m.Units(), k.Units())
	l, err := k.Lock("/LOCK")
	require.NoError(t, err, "the lock died with its holder")
	require.NoError(t, l.Close())
	require.Equal(t, "old", content(t, k.CrashClone(nil), "/f"))
	require.Equal(t, "old", content(t, m.CrashClone(nil), "/f"))
	f, err = k.OpenFile("/f", os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.Equal(t, "new", content(t, k.CrashClone(nil), "/f"))
	require.Equal(t, "old", content(t, m.CrashClone(nil), "/f"), "the two share nothing that changes")
}

// TestSyncedSurvives compares with a model that keeps a whole copy at each sync.
func TestSyncedSurvives(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 2))
		m := NewMem()
		f := durable(t, m, "/f", "")
		synced := ""
		for step := range 60 {
			off, n := rng.Int64N(30000), 1+rng.IntN(6000)
			switch rng.IntN(6) {
			case 0:
				require.NoError(t, f.Truncate(off))
			case 1:
				require.NoError(t, f.Preallocate(off, int64(n)))
			case 2:
				require.NoError(t, f.Sync())
				synced = content(t, m, "/f")
			default:
				put(t, f, strings.Repeat(string(rune('a'+rng.IntN(26))), n), off)
			}
			now := content(t, m, "/f")
			require.True(t, content(t, m.CrashClone(nil), "/f") == synced, "seed %d step %d", seed, step)
			require.True(t, content(t, m.CrashClone(all), "/f") == now, "seed %d step %d", seed, step)
			require.True(t, content(t, m.KillClone(), "/f") == now, "seed %d step %d", seed, step)
			m.CrashClone(func(Unit) bool { return rng.IntN(2) == 0 }) // must leave m as it is
		}
	}
}

// TestRandomTrees: whatever survives, every name can be opened and the space adds up.
func TestRandomTrees(t *testing.T) {
	for seed := range uint64(30) {
		m := NewMem()
		require.NoError(t, m.MkdirAll("/dir", 0o755))
		m.SetCrashModel(CrashModel{Sectors: seed%2 == 0, OrderedDirs: seed%3 == 0})
		rng := rand.New(rand.NewPCG(seed, 3))
		var state []string
		m.OnOp(func(op Op) {
			if op.N%16 != 0 {
				return
			}
			clone := m.CrashClone(func(Unit) bool { return rng.IntN(2) == 0 })
			require.Empty(t, clone.Units())
			state = append(state, tree(t, clone, "/"))
			k := m.KillClone()
			require.Equal(t, tree(t, k, "/"), tree(t, m.CrashClone(all), "/"))
			require.Equal(t, k.Used(), m.CrashClone(all).Used())
		})
		log := runScript(m, "/dir", seed, 100)
		m.OnOp(nil)
		require.NotEmpty(t, state)

		again := NewMem()
		again.SetCrashModel(CrashModel{Sectors: seed%2 == 0, OrderedDirs: seed%3 == 0})
		require.NoError(t, again.MkdirAll("/dir", 0o755))
		require.Equal(t, log, runScript(again, "/dir", seed, 100), "clones leave no trace")
		require.Equal(t, m.Units(), again.Units())
	}
}
