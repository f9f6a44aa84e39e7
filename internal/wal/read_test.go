package wal

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
)

// A reader that has learned where an entry is, and is slow, still finds it there after the segment was
// released; then the file is used again.
func TestSegmentIsNotUsedAgainUnderAReader(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	last, err := b.appendAll(g, 1, 100, 5000)
	require.NoError(t, err)
	b.run(time.Second)
	s := b.s
	s.mu.Lock()
	_, q, err := g.locate(1)
	s.mu.Unlock()
	require.NoError(t, err)
	require.NotNil(t, q)

	g.TruncatePrefix(last, 1, nil)
	b.run(time.Second)
	last, err = b.appendAll(g, last+1, 100, 5000) // uses what was released
	require.NoError(t, err)
	g.TruncatePrefix(last, 1, nil)
	b.run(time.Second)
	require.True(t, q.seg.dead)

	file, err := s.acquire(q.seg)
	require.NoError(t, err)
	batch, err := q.run(file, 20_000)
	require.NoError(t, err)
	assert.EqualValues(t, 1, batch.First)
	it := batch.Iter()
	e, _ := it.Next()
	assert.Equal(t, "1", string(e.Data[:1]))
	path := q.seg.path
	_, err = b.fs.Stat(path)
	require.NoError(t, err)
	require.NoError(t, s.letGo(q.seg, nil))
	b.run(time.Second)
	_, err = b.fs.Stat(path)
	assert.Error(t, err, "used again, or removed")
	b.close()
}

// A read of one of many groups reads what it needs and does not walk over the rest of the log.
func TestReadOfASparseGroupSkipsTheOthers(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 4 << 20
	require.NoError(t, b.open())
	rare, noise := b.group("rare"), b.group("noise")
	for i := range int64(30) {
		b.append(rare, i+1, 1, 50)
		b.run(time.Millisecond)
		b.append(noise, i+1, 1, 100<<10)
		b.run(time.Millisecond)
	}
	b.run(time.Second)
	read := int64(0)
	b.fs.OnOp(func(op vfs.Op) {
		if op.Kind == vfs.KindRead {
			read += op.Len
		}
	})
	batch, err := rare.Read(1, 1<<20)
	require.NoError(t, err)
	assert.Greater(t, batch.Count, 20, "all that is in the segment")
	assert.Less(t, read, int64(2<<20))
	t.Logf("%d entries, %d bytes read", batch.Count, read)
	b.close()
}

func TestReadKeepsToTheLimit(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 1 << 20
	require.NoError(t, b.open())
	g := b.group("g")
	for i := range int64(100) {
		b.append(g, i*10+1, 10, 100)
		if i%7 == 0 {
			b.run(time.Millisecond)
		}
	}
	b.run(time.Second)
	reads := 0
	b.fs.OnOp(func(op vfs.Op) {
		if op.Kind == vfs.KindRead {
			reads++
		}
	})
	for _, limit := range []int{0, 1, 2000, 5000, 30_000, 1 << 20} {
		calls := 0
		reads = 0
		for at := int64(1); at <= 1000; calls++ {
			batch, err := g.Read(at, limit)
			require.NoError(t, err)
			require.Equal(t, at, batch.First)
			require.True(t, batch.Size() <= limit || batch.Count <= 10, "%d bytes in %d entries, limit %d", batch.Size(), batch.Count, limit)
			at = batch.Last() + 1
		}
		if limit == 1<<20 {
			assert.Equal(t, 1, calls)
			assert.Less(t, reads, 6)
		}
	}
	b.close()
}

// Groups are written, cut and read from several goroutines on a real disk, until the store is closed
// under them. Every done function runs once, and no read returns what it must not.
func TestConcurrentUseOnARealDisk(t *testing.T) {
	exec := actor.NewGoroutines()
	defer exec.Close()
	o := Options{Dir: filepath.Join(t.TempDir(), "a", "log"), Exec: exec, Identity: "a:1", SegmentSize: 256 << 10, MaxBatch: 32 << 10, OverlapBytes: 4 << 10}
	s, err := Open(o)
	require.NoError(t, err)
	const groups, rounds = 4, 300
	var acked [groups]atomic.Int64
	var pending sync.WaitGroup
	var users sync.WaitGroup
	for i := range groups {
		g, err := s.Group(fmt.Sprint("g", i))
		require.NoError(t, err)
		users.Add(2)
		go func() {
			defer users.Done()
			useGroup(t, g, rounds, &acked[i], &pending)
		}()
		go func() {
			defer users.Done()
			readGroup(t, g, &acked[i], rounds)
		}()
	}
	users.Wait()
	require.NoError(t, s.Close())
	pending.Wait()
	require.NoError(t, s.Close())

	s, err = Open(o)
	require.NoError(t, err)
	for i := range groups {
		g, err := s.Group(fmt.Sprint("g", i))
		require.NoError(t, err)
		assert.GreaterOrEqual(t, g.Recovered().Last, acked[i].Load())
	}
	require.NoError(t, s.Close())
}

// useGroup appends with up to a few appends under way, replaces the last entries now and then, and lets go
// of the first ones.
func useGroup(t *testing.T, g *Group, rounds int, acked *atomic.Int64, pending *sync.WaitGroup) {
	slots := make(chan struct{}, 8)
	last := int64(0)
	for i := range rounds {
		slots <- struct{}{}
		upto := last + 3
		pending.Add(1)
		g.Append(batchAt(last+1, 3, 1, 1000), 0, func(err error) {
			assert.NoError(t, err)
			acked.Store(upto)
			pending.Done()
			<-slots
		})
		last = upto
		if i%50 == 49 {
			pending.Add(1)
			g.TruncatePrefix(last-40, 1, func(err error) { assert.NoError(t, err); pending.Done() })
		}
		if i%20 == 19 {
			g.TruncateSuffix(last-1, nil)
			g.Append(batchAt(last, 1, 1, 500), 0, nil)
		}
	}
}

func readGroup(t *testing.T, g *Group, acked *atomic.Int64, rounds int) {
	for at := int64(1); at < int64(3*rounds)-50; {
		batch, err := g.Read(at, 20_000)
		switch {
		case errors.Is(err, ErrCompacted):
			at += 10
			continue
		case errors.Is(err, ErrOrder):
			at = max(1, acked.Load()-20)
			continue
		case err != nil:
			t.Error(err)
			return
		}
		for it := batch.Iter(); ; {
			e, ok := it.Next()
			if !ok {
				break
			}
			want := fmt.Sprint(e.Index)
			if string(e.Data[:len(want)]) != want {
				t.Errorf("entry %d holds %q", e.Index, e.Data[:10])
				return
			}
		}
		at = batch.Last() + 1
	}
}

// D16: a read takes only a part of a long index along. What was cut off and replaced behind that part is not read either.
func TestReadsOfALongIndex(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 32 << 20 // a query ends with its segment
	require.NoError(t, b.open())
	g := b.group("g")
	var sizes []int // of entry i+1
	next := func(n int) {
		size := 10 + len(sizes)%50
		b.append(g, int64(len(sizes))+1, n, size)
		for range n {
			sizes = append(sizes, size)
		}
	}
	for len(sizes) < 2*pointEntries*maxPoints {
		next(pointEntries)
		b.run(time.Millisecond) // a batch of its own
		next(2 * pointEntries)
		b.run(time.Millisecond)
		keep := len(sizes) - pointEntries
		g.TruncateSuffix(int64(keep), nil)
		sizes = sizes[:keep]
		b.run(time.Millisecond)
	}
	b.run(time.Second)
	b.close()
	require.NoError(t, b.open())
	g = b.group("g")
	for _, first := range []int64{1, 1001, 1001 + pointEntries, 1001 + 2*pointEntries} {
		for at := first; at <= int64(len(sizes)); {
			batch, err := g.Read(at, 1<<20)
			require.NoError(t, err)
			require.Equal(t, at, batch.First)
			it := batch.Iter()
			for e, ok := it.Next(); ok; e, ok = it.Next() {
				require.Len(t, e.Data, sizes[at-1], "entry %d", at)
				at++
			}
		}
	}
	b.close()
}
