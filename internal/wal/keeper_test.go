package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
)

// appendAll appends entries one by one and waits for each; it stops at the first refusal.
func (b *bed) appendAll(g *Group, from, n int64, size int) (last int64, err error) {
	for at := from; at < from+n; at++ {
		r := b.append(g, at, 1, size)
		b.run(2 * time.Millisecond)
		if *r != nil {
			return at - 1, *r
		}
	}
	return from + n - 1, nil
}

func TestNewSegmentsAreZeroedAtLeisureAndThenPreferred(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 4 << 20
	var pieces []time.Time
	b.fs.OnOp(func(op vfs.Op) {
		if op.Kind == vfs.KindWrite && op.Len == zeroPiece {
			pieces = append(pieces, b.sim.Now())
		}
	})
	start := b.fs.Ops()
	require.NoError(t, b.open())
	assert.Less(t, b.fs.Ops()-start, int64(60), "opening does not zero anything")
	assert.Empty(t, pieces)
	assert.False(t, b.s.cur.written)

	g := b.group("g")
	_, err := b.appendAll(g, 1, 3, 100)
	require.NoError(t, err)
	b.run(time.Second)
	require.Greater(t, len(pieces), 20)
	for i := range pieces[1:] {
		if gap := pieces[i+1].Sub(pieces[i]); gap < zeroPause {
			assert.NotZero(t, (i+1)%16, "pause of %v before piece %d", gap, i+1) // the first of a segment follows at once
		}
	}
	old := b.s.cur
	_, err = b.appendAll(g, 4, 1, 100)
	require.NoError(t, err)
	b.run(time.Second)
	assert.True(t, b.s.cur.written, "the log went on in a segment that was zeroed")
	assert.NotSame(t, old, b.s.cur)
	info, err := b.fs.Stat(old.path)
	require.NoError(t, err)
	assert.Equal(t, old.end, info.Size(), "what was left unused is given back")
	assert.Less(t, info.Size(), int64(64<<10))
	b.close()

	pieces = nil
	require.NoError(t, b.open())
	assert.True(t, b.s.cur.written, "a segment prepared before the restart is used")
	got := b.group("g").Recovered()
	assert.EqualValues(t, 4, got.Last)
}

func TestReopeningDoesNotPileUpSpace(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 1 << 20
	for i := range int64(20) {
		require.NoError(t, b.open())
		_, err := b.appendAll(b.group("g"), i+1, 1, 100)
		require.NoError(t, err)
		b.run(time.Second)
		if i%2 == 0 {
			b.close()
		} else {
			b.fs = b.fs.CrashClone(nil)
		}
	}
	require.NoError(t, b.open())
	b.run(time.Second)
	assert.EqualValues(t, 20, b.group("g").Recovered().Last)
	assert.Less(t, b.fs.Used(), int64(8<<20), "twenty openings of 1 MiB each, hardly used")
}

func TestIdleStoreHasNothingToDo(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 100, 2000)
	require.NoError(t, err)
	b.run(10 * time.Second)
	assert.Zero(t, b.sim.RunFor(time.Hour), "neither messages nor deadlines")
}

// A write waits for the keeper and all lanes are idle when the keeper fails.
func TestKeeperFailureReachesWhatWaitsForIt(t *testing.T) {
	for i, kind := range []vfs.Kind{vfs.KindCreate, vfs.KindPreallocate, vfs.KindSync, vfs.KindSyncDir, vfs.KindWrite, vfs.KindSync, vfs.KindSyncDir} {
		b, idle := newBed(t), i >= 5
		b.o.MaxBatch = 8 << 10
		b.sim.Latency = func(rng *rand.Rand, name string) time.Duration {
			if name == "wal-keeper" { // slower than the log
				return 5 * time.Millisecond
			}
			return time.Duration(1 + rng.IntN(50_000))
		}
		require.NoError(t, b.open())
		g := b.group("g")
		b.run(time.Second)
		// The header of a new segment, its creation and so on; not what the lanes do.
		b.fs.SetInjector(func(op vfs.Op) error {
			if op.Kind != kind || idle && b.s.busy > 0 || kind == vfs.KindSync && op.Name == b.s.cur.path || kind == vfs.KindWrite && op.Off > 0 {
				return nil
			}
			for _, s := range b.s.free {
				if op.Name == s.path {
					return nil
				}
			}
			return syscall.EIO
		})
		var results []*error
		for at := range int64(60) {
			results = append(results, b.append(g, at+1, 1, 5000))
		}
		b.run(time.Second)
		failed := false
		for i, r := range results {
			failed = failed || *r != nil
			if failed {
				require.ErrorIs(t, *r, ErrPoisoned, "append %d, %v", i, kind)
				require.ErrorIs(t, *r, syscall.EIO)
			}
		}
		require.True(t, failed, "%v", kind)
		require.ErrorIs(t, b.s.Err(), ErrPoisoned)
		closed := false
		b.s.Shutdown(func(err error) { closed = true; assert.ErrorIs(t, err, ErrPoisoned) })
		b.run(time.Second)
		require.True(t, closed)
	}
}

// The record that would release space finds none itself. That is tried again, and not at once.
func TestReleaseIsTriedAgainWhenTheDiskIsFull(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	b.run(time.Second)
	b.fs.SetCapacity(b.fs.Used())
	last, err := b.appendAll(g, 1, 500, 4000)
	require.ErrorIs(t, err, ErrNoSpace)
	s := b.s
	for term := int64(1); len(s.free) > 0 || s.cur.size-s.off > 2*block; term++ {
		result := errors.New("not delivered")
		g.SaveHardState(HardState{Term: term}, 0, func(e error) { result = e })
		b.run(2 * time.Millisecond)
		require.NoError(t, result, "votes go into what is kept for them")
	}
	cut := errors.New("not delivered")
	g.TruncatePrefix(last, 1, func(e error) { cut = e })
	b.run(2 * time.Millisecond)
	require.NoError(t, cut)
	oldest := s.segs[0].seq
	events := b.sim.RunFor(time.Second)
	assert.Less(t, events, 3000, "no busy loop")
	require.ErrorIs(t, s.Space(), ErrNoSpace)
	require.NoError(t, s.Err())

	b.fs.SetCapacity(-1)
	b.run(time.Second)
	require.NoError(t, s.Space())
	assert.Greater(t, s.segs[0].seq, oldest, "released")
	b.close()
	require.NoError(t, b.open())
	assert.Equal(t, last, b.group("g").Recovered().First)
}

// A segment grows for a large record, and power fails before that is durable: what is left may be as long as the segment had become, without the
// space for it. If the file is used again, the space is reserved again, so that a disk that is full later makes no write fail.
func TestASegmentThatHasLostSpaceGetsItAgain(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	b.run(time.Second)
	var left *vfs.Mem
	grown, late := false, false
	b.sim.Latency = func(rng *rand.Rand, _ string) time.Duration {
		if late {
			late = false
			return time.Second
		}
		return time.Duration(1 + rng.IntN(50_000))
	}
	b.fs.OnOp(func(op vfs.Op) {
		switch {
		case op.Kind == vfs.KindPreallocate:
			grown = grown || op.Off > 0
		case op.Kind == vfs.KindWrite && grown && op.Off == firstBatchOffset:
			late = true // the segment's first batch is synced late, so that the record is written before
		case op.Kind == vfs.KindWrite && grown && op.Len > b.o.SegmentSize:
			b.sim.After(1, func() {
				left = b.fs.CrashClone(func(u vfs.Unit) bool { return u.Kind == vfs.UnitWrite && u.Off >= 3*b.o.SegmentSize/2 })
			})
		}
	})
	b.append(b.group("g"), 1, 30, 4000)
	b.run(time.Second)
	require.NotNil(t, left, "no segment has grown")

	b.fs = left
	require.NoError(t, b.open())
	g, last := b.group("g"), int64(0)
	require.Zero(t, g.Recovered().Last)
	for b.s.cur.size <= b.o.SegmentSize { // until the file is in use again
		require.Less(t, last, int64(100))
		var err error
		last, err = b.appendAll(g, last+1, 1, 4000)
		require.NoError(t, err)
	}
	b.run(time.Second) // until nothing more is given back
	b.fs.SetCapacity(b.fs.Used())
	_, err := b.appendAll(g, last+1, 500, 4000)
	assert.ErrorIs(t, err, ErrNoSpace)
	assert.NoError(t, b.s.Err())
}

// A removal is refused after its name was taken again: after a restart there is one group of
// that name, the later, and the other one's entries hold no space.
func TestRefusedRemovalLeavesOneGroupOfTheName(t *testing.T) {
	b, fresh := refusedRemoval(t)
	b.close()
	holds := fresh.pin.seq
	for range 3 {
		require.NoError(t, b.open())
		assert.Equal(t, []string{"g"}, b.s.Groups())
		assert.EqualValues(t, 2, b.group("g").Recovered().Last)
		b.run(time.Second)
		b.close()
	}
	require.NoError(t, b.open())
	assert.Equal(t, holds, b.s.segs[0].seq, "the other's segments are released")
}

// The later group is removed as well. After a restart there is none of that name: the earlier one's votes and entries do not come back.
func TestRefusedRemovalBringsNothingBack(t *testing.T) {
	b, fresh := refusedRemoval(t)
	removed := errors.New("not delivered")
	fresh.Remove(func(e error) { removed = e })
	b.run(time.Second)
	require.NoError(t, removed)
	b.close()
	require.NoError(t, b.open())
	for range 3 {
		assert.Empty(t, b.s.Groups())
		assert.Equal(t, HardState{}, b.group("g").Recovered().Hard)
		assert.Zero(t, b.group("g").Recovered().Last)
		b.run(time.Second)
		b.close()
		require.NoError(t, b.open())
	}
}

// refusedRemoval makes a store with a group whose removal was refused, and a later one of the same name with two entries.
func refusedRemoval(t *testing.T) (b *bed, fresh *Group) {
	b = newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	b.run(time.Second)
	b.fs.SetCapacity(b.fs.Used())
	_, err := b.appendAll(g, 1, 500, 4000)
	require.ErrorIs(t, err, ErrNoSpace)
	s := b.s
	for term := int64(1); len(s.free) > 0 || s.cur.size-s.off >= 2*block; term++ {
		g.SaveHardState(HardState{Term: term}, 0, nil)
		b.run(2 * time.Millisecond)
	}
	removed := errors.New("not delivered")
	g.Remove(func(e error) { removed = e })
	fresh = b.group("g")
	require.NotSame(t, g, fresh)
	b.run(2 * time.Millisecond)
	require.ErrorIs(t, removed, ErrNoSpace)
	b.fs.SetCapacity(-1)
	b.run(time.Second)
	_, err = b.appendAll(fresh, 1, 2, 10)
	require.NoError(t, err)
	return b, fresh
}

func TestDiskFullWhileOpening(t *testing.T) {
	b := newBed(t)
	b.fs.SetCapacity(40 << 10)
	err := b.open()
	require.ErrorIs(t, err, ErrNoSpace)
	require.ErrorIs(t, err, syscall.ENOSPC)
	b.fs.SetCapacity(-1)
	require.NoError(t, b.open(), "the lock was given up, and nothing half made is in the way")
	_, err = b.appendAll(b.group("g"), 1, 50, 4000)
	require.NoError(t, err)
	b.run(time.Second)
	b.fs.SetCapacity(b.fs.Used() + block) // one for the identity, which is replaced
	b.close()
	require.NoError(t, b.open(), "a restart on a full disk uses what was prepared")
	vote := errors.New("not delivered")
	b.group("g").SaveHardState(HardState{Term: 1}, 0, func(e error) { vote = e })
	b.run(time.Second)
	require.NoError(t, vote)
}

// What an opening prepares is smaller than a segment, and so is what a restart finds on a disk that has been filled up since, to the last
// block. One restart after the other gets along with it.
func TestRestartsOnAFullDisk(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 2 * eagerSize
	require.NoError(t, b.open())
	last, err := b.appendAll(b.group("g"), 1, 3, 4000)
	require.NoError(t, err)
	b.run(time.Second)
	for i := range 3 {
		b.close()
		b.fs.SetCapacity(b.fs.Used())
		require.NoError(t, b.open(), "restart %d", i)
		g := b.group("g")
		assert.Equal(t, last, g.Recovered().Last)
		last, err = b.appendAll(g, last+1, 3, 4000)
		require.NoError(t, err)
		vote := errors.New("not delivered")
		g.SaveHardState(HardState{Term: int64(i + 1)}, 0, func(e error) { vote = e })
		b.run(time.Second)
		require.NoError(t, vote)
		assert.NotEmpty(t, b.s.free, "one is kept prepared")
	}
}

// A file that needs no zeroing is used first, else the largest one, which needs the least space.
func TestTheBestFileIsUsedAgainFirst(t *testing.T) {
	k := &keeper{s: &Store{o: Options{SegmentSize: 64 << 20}}}
	k.blanks = []blank{{"a", 1 << 20, true}, {"b", 64 << 20, false}, {"c", 8 << 20, true}, {"d", 64 << 20, true}, {"e", 0, false}, {"f", 96 << 20, false}}
	order := ""
	for b, ok := k.takeBlank(); ok; b, ok = k.takeBlank() {
		order += b.path
	}
	assert.Equal(t, "dfbcae", order)
}

// An opening that fails for want of space leaves what there is to a later one.
func TestOpeningsThatFindNoSpaceRemoveNothing(t *testing.T) {
	for _, test := range []struct {
		name string
		fail vfs.Injector
	}{
		{"no segment", vfs.Fail(syscall.ENOSPC, vfs.KindPreallocate)},
		{"no identity", vfs.Injector(vfs.Fail(syscall.ENOSPC, vfs.KindWrite)).On(identityTemp)},
		{"no directory", vfs.Injector(vfs.Fail(syscall.ENOSPC, vfs.KindSyncDir)).On("d")},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t)
			b.o.SegmentSize = 2 * eagerSize
			require.NoError(t, b.open())
			_, err := b.appendAll(b.group("g"), 1, 3, 4000)
			require.NoError(t, err)
			b.run(time.Second)
			b.close()
			b.fs.SetCapacity(b.fs.Used())
			files, err := b.fs.ReadDir("/d")
			require.NoError(t, err)
			for range 5 {
				b.fs.SetInjector(test.fail)
				require.ErrorIs(t, b.open(), ErrNoSpace)
			}
			b.fs.SetInjector(nil)
			left, err := b.fs.ReadDir("/d")
			require.NoError(t, err)
			assert.GreaterOrEqual(t, len(left), len(files))
			require.NoError(t, b.open())
			assert.EqualValues(t, 3, b.group("g").Recovered().Last)
		})
	}
}

// A record that is larger than the segments which an opening prepares goes where it has room, for on a full disk none can be made larger for it.
func TestALargeRecordUsesTheRoomThereIs(t *testing.T) {
	for _, test := range []struct {
		groups int
		size   int // of the record
	}{
		{0, 9 << 20},
		{2000, 8<<20 - 100<<10}, // it is the state of so many groups that does not fit
	} {
		b := newBed(t)
		b.o.SegmentSize, b.o.MaxRecord = 32<<20, 16<<20
		require.NoError(t, b.open())
		for i := range test.groups {
			b.append(b.group(fmt.Sprint("group", i, strings.Repeat("x", 100))), 1, 1, 10)
		}
		g, last := b.group("g"), int64(1)
		b.append(g, 1, 1, 10)
		b.run(time.Second)
		require.False(t, b.s.cur.written)
		require.Len(t, b.s.free, 2)
		b.fs.SetCapacity(b.fs.Used())
		for range 2 {
			_, err := b.appendAll(g, last+1, 1, test.size)
			require.NoError(t, err)
			last++
		}
		require.False(t, b.s.cur.written)
		last, err := b.appendAll(g, last+1, 1, 10)
		require.NoError(t, err)
		assert.Equal(t, test.groups == 0, b.s.cur.written, "what the better segment has room for goes there")
		b.fs.SetCapacity(-1)
		b.close()
		require.NoError(t, b.open())
		assert.Equal(t, last, b.group("g").Recovered().Last)
		b.close()
	}
}

// Checkpoints of many groups, and single records, that are larger than a segment.
func TestMoreThanFitsIntoASegment(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 4 * block
	require.NoError(t, b.open())
	name := func(i int) string { return fmt.Sprint("group", i, strings.Repeat("x", 200)) }
	for i := range 200 {
		b.append(b.group(name(i)), 1, 1, 10)
	}
	b.run(time.Second)
	for i := range int64(5) {
		r := b.append(b.group(name(3)), 2+i, 1, 300<<10)
		b.run(time.Second)
		require.NoError(t, *r)
	}
	b.close()
	require.NoError(t, b.open())
	require.Len(t, b.s.Groups(), 200)
	g := b.group(name(3))
	require.EqualValues(t, 6, g.Recovered().Last)
	batch, err := g.Read(4, 100)
	require.NoError(t, err)
	require.Equal(t, 1, batch.Count, "one larger entry comes whole")
	require.Len(t, batch.Data, 300<<10)
	for i := range 200 {
		b.group(name(i)).Remove(nil)
	}
	b.run(time.Second)
	b.close()
	require.NoError(t, b.open())
	assert.Empty(t, b.s.Groups())
}

func TestSegmentsOfAnotherLogAreNeverUsed(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 3, 10)
	require.NoError(t, err)
	foreign := b.s.cur.path
	b.close()
	other := newBed(t)
	other.o.Rand = func() uint64 { return 99 }
	require.NoError(t, other.open())
	other.run(time.Second)
	other.close()
	from, err := b.fs.OpenFile(foreign, os.O_RDONLY, 0)
	require.NoError(t, err)
	content := make([]byte, 64<<10)
	_, err = from.ReadAt(content, 0)
	require.NoError(t, err)
	to, err := other.fs.OpenFile("/d/"+segmentName(77), os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	_, err = to.WriteAt(content, 0)
	require.NoError(t, err)
	err = other.open()
	require.ErrorIs(t, err, ErrIdentity)
	assert.ErrorContains(t, err, segmentName(77))
}

// On a full disk votes and configurations go where entries do not.
func TestConfigurationsMayUseTheLastSegment(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	b.run(time.Second)
	b.fs.SetCapacity(b.fs.Used())
	last, err := b.appendAll(g, 1, 500, 4000)
	require.ErrorIs(t, err, ErrNoSpace)
	for err = nil; err == nil; { // what room is left for small ones
		r := b.append(g, last+1, 1, 10)
		b.run(time.Second)
		if err = *r; err == nil {
			last++
		}
	}
	require.ErrorIs(t, err, ErrNoSpace)
	var builder entry.Builder
	builder.Reset(last + 1)
	builder.AppendConf(1, []string{"a:1", "b:1"}, nil)
	conf := errors.New("not delivered")
	g.Append(builder.Build(), 0, func(e error) { conf = e })
	later := b.append(g, last+2, 1, 10)
	b.run(time.Second)
	require.NoError(t, conf)
	require.ErrorIs(t, *later, ErrNoSpace, "it follows the configuration, and is an ordinary entry")
	next := b.append(g, last+2, 1, 10)
	b.run(time.Second)
	require.ErrorIs(t, *next, ErrNoSpace, "the log goes on at the same index")
	b.close()
	b.fs.SetCapacity(-1)
	require.NoError(t, b.open())
	r := b.group("g").Recovered()
	assert.Equal(t, last+1, r.Last)
	assert.Len(t, r.Confs, 1)
}

func TestOptionsAreValidated(t *testing.T) {
	require.NoError(t, Options{Dir: "/d", Identity: "a", Exec: newBed(t).sim.NewProcess(1)}.Validate())
	err := Options{SegmentSize: 5000, MaxRecord: 1, MaxBatch: -1, InFlight: 65, Spare: 1, Keep: -1, IdleMark: -1, Retry: -1}.Validate()
	for _, name := range []string{"Dir", "Exec", "Identity", "SegmentSize", "MaxRecord", "MaxBatch", "InFlight", "Spare", "Keep", "IdleMark", "Retry"} {
		assert.ErrorContains(t, err, "Options."+name)
	}
	_, err = Open(Options{})
	assert.Error(t, err)
}

// A lane that has been idle for long has a segment open that was removed since.
func TestRemovedSegmentsHoldNoSpace(t *testing.T) {
	b := newBed(t)
	b.o.MaxBatch = 8 << 10
	require.NoError(t, b.open())
	b.s.o.Keep = 0 // an option of 0 means the default
	g := b.group("g")
	last := int64(0)
	burst := func() {
		for range 6 { // for all lanes
			last++
			b.append(g, last, 1, 6000)
		}
		b.run(10 * time.Millisecond)
	}
	burst()
	for range 10 {
		burst()
		var err error
		last, err = b.appendAll(g, last+1, 40, 5000) // for one of them
		require.NoError(t, err)
		g.TruncatePrefix(last, 1, nil)
		b.run(time.Second)
		files := int64(b.s.Stats().Segments + len(b.s.free))
		assert.LessOrEqual(t, b.fs.Used(), files*b.o.SegmentSize+2*block)
	}
	b.close()
}

// noDescriptors makes every operation that opens something fail, the rest goes on.
func noDescriptors(op vfs.Op) error {
	switch op.Kind {
	case vfs.KindOpen, vfs.KindCreate, vfs.KindSyncDir:
		return syscall.EMFILE
	}
	return nil
}

// files counts the segments' files, and what they take.
func (b *bed) files() (count int, size int64) {
	names, err := b.fs.ReadDir("/d")
	require.NoError(b.t, err)
	for _, name := range names {
		if _, ok := parseSegmentName(name); ok {
			info, err := b.fs.Stat("/d/" + name)
			require.NoError(b.t, err)
			count, size = count+1, size+info.Size()
		}
	}
	return count, size
}
