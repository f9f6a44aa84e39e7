package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
)

// bed is a store on a disk in memory and the seeded executor.
type bed struct {
	t   testing.TB
	sim *actor.Sim
	fs  *vfs.Mem
	o   Options
	s   *Store
}

func newBed(t testing.TB) *bed {
	b := &bed{t: t, sim: actor.NewSim(7), fs: vfs.NewMem()}
	rng := rand.New(rand.NewPCG(1, 2))
	b.o = Options{FS: b.fs, Dir: "/d", Identity: "a:1", SegmentSize: 64 << 10, MaxRecord: 1 << 20, OverlapBytes: -1,
		Retry: 10 * time.Millisecond, Rand: rng.Uint64}
	return b
}

func (b *bed) open() error {
	b.o.FS, b.o.Exec = b.fs, b.sim.NewProcess(1)
	s, err := Open(b.o)
	if err == nil {
		b.s = s
	}
	return err
}

func (b *bed) group(name string) *Group {
	g, err := b.s.Group(name)
	require.NoError(b.t, err)
	return g
}

func (b *bed) run(d time.Duration) { b.sim.RunFor(d) }

// close closes the store cleanly.
func (b *bed) close() {
	var err error
	closed := false
	b.s.Shutdown(func(e error) { err, closed = e, true })
	b.run(time.Second)
	require.True(b.t, closed)
	require.NoError(b.t, err)
}

func (b *bed) append(g *Group, first int64, n, size int) (result *error) {
	err := errors.New("not delivered")
	result = &err
	g.Append(batchAt(first, n, 1, size), 0, func(e error) { *result = e })
	return result
}

func TestFailedSyncPoisonsForGood(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	ok := b.append(g, 1, 1, 10)
	b.run(time.Second)
	require.NoError(t, *ok)
	// Three writes overlap. The sync of the first fails; that of a later one may succeed.
	failing := true
	b.fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync && failing {
			failing = false
			return syscall.EIO
		}
		return nil
	})
	var results []*error
	for i := range 3 {
		results = append(results, b.append(g, int64(2+i), 1, 3000))
	}
	b.run(time.Second)
	for _, r := range results {
		assert.ErrorIs(t, *r, ErrPoisoned)
		assert.ErrorIs(t, *r, syscall.EIO)
	}
	later := b.append(g, 5, 1, 10)
	b.run(time.Second)
	assert.ErrorIs(t, *later, ErrPoisoned, "no retry")
	assert.ErrorIs(t, b.s.Err(), ErrPoisoned)
}

func TestEveryFailedDiskOperationPoisonsOrIsRefused(t *testing.T) {
	for n := range int64(200) {
		b := newBed(t)
		require.NoError(t, b.open())
		g := b.group("g")
		base := b.fs.Ops()
		failed := false
		b.fs.SetInjector(func(op vfs.Op) error {
			if op.N == base+1+n && op.Kind != vfs.KindClose && op.Kind != vfs.KindRead && op.Kind != vfs.KindOpen {
				failed = true
				return syscall.EIO
			}
			return nil
		})
		last := int64(0)
		var results []*error
		for range 30 {
			results = append(results, b.append(g, last+1, 2, 4000))
			last += 2
			b.run(time.Millisecond)
		}
		b.run(time.Second)
		acked := int64(0)
		for i, r := range results {
			if *r == nil {
				require.Equal(t, int64(2*i), acked, "a success after a failure, at operation %d", n)
				acked = int64(2 * (i + 1))
			} else {
				require.ErrorIs(t, *r, ErrPoisoned)
			}
		}
		if failed {
			require.Error(t, b.s.Err(), "operation %d failed silently", n)
		}
		// What was acknowledged is there after a power cut.
		b.fs = b.fs.CrashClone(nil)
		require.NoError(t, b.open())
		require.GreaterOrEqual(t, b.group("g").Recovered().Last, acked)
	}
}

func TestFullDiskRefusesAndResumes(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	b.run(time.Second)
	b.fs.SetCapacity(b.fs.Used())
	last, refused := int64(0), error(nil)
	for range 200 {
		r := b.append(g, last+1, 1, 4000)
		b.run(time.Millisecond)
		if *r != nil {
			refused = *r
			break
		}
		last++
	}
	require.ErrorIs(t, refused, ErrNoSpace)
	require.ErrorIs(t, refused, syscall.ENOSPC)
	require.ErrorIs(t, b.s.Space(), ErrNoSpace)
	require.NoError(t, b.s.Err(), "a full disk does not poison")

	vote := errors.New("not delivered")
	g.SaveHardState(HardState{Term: 9, Vote: "me"}, 0, func(e error) { vote = e })
	b.run(time.Millisecond)
	require.NoError(t, vote, "there is space for votes even then")

	b.fs.SetCapacity(-1)
	b.run(time.Second)
	require.NoError(t, b.s.Space())
	r := b.append(g, last+1, 1, 4000)
	b.run(time.Second)
	require.NoError(t, *r)
	b.close()
	require.NoError(t, b.open())
	assert.Equal(t, last+1, b.group("g").Recovered().Last)
	assert.EqualValues(t, 9, b.group("g").Recovered().Hard.Term)
}

func TestForeignUsedAndMutilatedDirectoriesAreRefused(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	r := b.append(b.group("g"), 1, 1, 10)
	b.run(time.Second)
	require.NoError(t, *r)
	other := b.o
	other.Exec = b.sim.NewProcess(1)
	_, err := Open(other)
	require.ErrorIs(t, err, ErrIdentity)
	assert.ErrorIs(t, err, vfs.ErrLocked)
	b.close()

	other.Identity = "b:1"
	_, err = Open(other)
	require.ErrorIs(t, err, ErrIdentity)
	assert.ErrorContains(t, err, "a:1")

	lost := b.fs.KillClone()
	require.NoError(t, lost.Remove("/d/identity"))
	other.Identity, other.FS = "a:1", lost
	_, err = Open(other)
	require.ErrorIs(t, err, ErrIdentity, "segments without an identity are no new store")

	lost = b.fs.KillClone()
	names, err := lost.ReadDir("/d")
	require.NoError(t, err)
	for _, n := range names {
		if _, ok := parseSegmentName(n); ok {
			require.NoError(t, lost.Remove("/d/"+n))
		}
	}
	other.FS = lost
	_, err = Open(other)
	require.ErrorIs(t, err, ErrIdentity, "an identity without segments is no new store")
}

// Each block of each file of a store that was closed cleanly is damaged in turn: the
// damage is reported with file and offset, or it does not matter; wrong data is never read.
func TestEveryDamagedBlockIsFound(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	rng := rand.New(rand.NewPCG(3, 4))
	for at := int64(1); at < 300; at += 3 {
		b.append(g, at, 3, rng.IntN(900))
		b.run(time.Duration(rng.IntN(200)) * time.Microsecond)
	}
	g.SaveHardState(HardState{Term: 3, Vote: "v"}, 0, nil)
	b.run(time.Second)
	b.close()
	want := g.Recovered()
	names, err := b.fs.ReadDir("/d")
	require.NoError(t, err)
	found := 0
	for _, name := range names {
		info, err := b.fs.Stat("/d/" + name)
		require.NoError(t, err)
		for off := int64(0); off < info.Size(); off += block {
			for _, damage := range []func([]byte){
				func(p []byte) { p[len(p)/2] ^= 4 },
				func(p []byte) { clear(p) },
				func(p []byte) { p[0] ^= 1 },
			} {
				fs := b.fs.CrashClone(nil)
				require.NoError(t, fs.Corrupt("/d/"+name, off, func(p []byte) {
					if len(p) > block {
						p = p[:block]
					}
					damage(p)
				}))
				if b.judge(fs, want, fmt.Sprintf("%s at %d", name, off)) {
					found++
				}
			}
		}
	}
	assert.Greater(t, found, 50)
}

// judge opens a damaged store and reports whether the damage was found.
func (b *bed) judge(fs *vfs.Mem, want Recovered, what string) bool {
	o := b.o
	o.FS, o.Exec = fs, b.sim.NewProcess(1)
	s, err := Open(o)
	if err != nil {
		var c *CorruptError
		require.True(b.t, errors.As(err, &c) || errors.Is(err, ErrIdentity) || errors.Is(err, ErrVersion), "%s: %v", what, err)
		return true
	}
	g, err := s.Group("g")
	require.NoError(b.t, err)
	got := g.Recovered()
	require.Equal(b.t, want.Hard, got.Hard, what)
	require.Equal(b.t, want.Last, got.Last, what)
	for at := got.First; at <= got.Last; {
		batch, err := g.Read(at, 10000)
		require.NoError(b.t, err, what)
		_, err = entry.Check(batch)
		require.NoError(b.t, err, what)
		at = batch.Last() + 1
	}
	return false
}

func TestDamageOfWhatIsOnDiskIsFoundWhenRead(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	b.append(g, 1, 10, 500)
	b.run(time.Second)
	name := "/d/" + segmentName(b.s.cur.seq)
	_, off := splitPosition(g.log.idx.points[0].pos)
	require.NoError(t, b.fs.Corrupt(name, off, func(p []byte) { p[1000] ^= 1 }))
	_, err := g.Read(1, 100)
	var c *CorruptError
	require.ErrorAs(t, err, &c)
	assert.Equal(t, name, c.File)
}

func TestSegmentsAreReleasedOldestFirstAndUsedAgain(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g, slow := b.group("g"), b.group("slow")
	pinned := b.append(slow, 1, 1, 10)
	b.run(time.Second)
	require.NoError(t, *pinned)
	last := int64(0)
	fill := func() {
		for range 100 {
			r := b.append(g, last+1, 1, 5000)
			b.run(2 * time.Millisecond)
			require.NoError(t, *r)
			last++
		}
		g.TruncatePrefix(last, 1, nil)
		b.run(time.Second)
	}
	fill()
	held := b.s.Stats().Segments
	assert.Greater(t, held, 5, "a lagging group pins the log")
	slow.TruncatePrefix(2, 1, nil)
	b.run(time.Second)
	assert.Less(t, b.s.Stats().Segments, 4)
	files, err := b.fs.ReadDir("/d")
	require.NoError(t, err)
	for range 5 {
		fill()
	}
	after, err := b.fs.ReadDir("/d")
	require.NoError(t, err)
	assert.LessOrEqual(t, len(after), len(files)+4, "files are used again")
	b.close()
	require.NoError(t, b.open())
	assert.Equal(t, last, b.group("g").Recovered().Last)
	assert.Equal(t, int64(2), b.group("slow").Recovered().First)
}

func TestGroupsAreApartAndRemovedForGood(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	for i := range 20 {
		g := b.group(fmt.Sprint("g", i))
		b.append(g, 1, i+1, 20)
		g.SaveHardState(HardState{Term: int64(i), Vote: "v"}, int64(i), nil)
	}
	b.group("g3").Remove(nil)
	b.append(b.group("g3"), 1, 2, 5) // a new one of that name
	b.run(time.Second)
	b.close()
	require.NoError(t, b.open())
	for i := range 20 {
		r := b.group(fmt.Sprint("g", i)).Recovered()
		want := int64(i + 1)
		if i == 3 {
			want = 2
		} else {
			assert.EqualValues(t, i, r.Hard.Term)
			assert.EqualValues(t, i, r.Commit)
		}
		assert.Equal(t, want, r.Last, "group %d", i)
	}
	assert.Len(t, b.s.Groups(), 20)
}

func TestMisuseIsRefused(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	assert.ErrorIs(t, *b.appendNow(g, 5, 1), ErrOrder)
	assert.NoError(t, *b.appendNow(g, 1, 3))
	_, err := g.Read(4, 10)
	assert.ErrorIs(t, err, ErrOrder)
	g.TruncatePrefix(3, 1, nil)
	_, err = g.Read(1, 10)
	assert.ErrorIs(t, err, ErrCompacted)
	big := errors.New("not delivered")
	g.Append(batchAt(4, 1, 1, 2<<20), 0, func(e error) { big = e })
	b.run(time.Second)
	assert.ErrorIs(t, big, ErrTooLarge)
	b.close()
	assert.ErrorIs(t, *b.append(g, 4, 1, 1), ErrClosed)
	_, err = g.Read(3, 10)
	assert.ErrorIs(t, err, ErrClosed)
}

func (b *bed) appendNow(g *Group, first int64, n int) *error {
	r := b.append(g, first, n, 10)
	b.run(time.Second)
	return r
}
