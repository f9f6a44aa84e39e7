package wal

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// From any moment on no file can be opened for a while: what was going on waits, nothing is refused, and goes on. Whoever closes the store
// meanwhile does not wait for that.
func TestWantOfDescriptorsPasses(t *testing.T) {
	for _, closing := range []bool{false, true} {
		waited, failed := 0, 0
		for n := range int64(150) {
			b := newBed(t)
			logged := 0
			b.o.Log = func(format string, args ...any) { logged++ }
			require.NoError(t, b.open())
			b.s.o.Keep = 0 // an option of 0 means the default
			g, base := b.group("g"), b.fs.Ops()
			b.fs.SetInjector(func(op vfs.Op) error {
				if op.N <= base+n {
					return nil
				}
				return noDescriptors(op)
			})
			var results []*error
			acked := func() (n int) {
				for n < len(results) && *results[n] == nil {
					n++
				}
				return n
			}
			for at := range int64(60) {
				results = append(results, b.append(g, at+1, 1, 6000))
				if at%10 == 9 {
					g.TruncatePrefix(at-5, 1, nil)
				}
				b.run(time.Millisecond)
			}
			var before int
			events := b.sim.RunFor(time.Second)
			assert.Less(t, events, 3000, "no busy loop")
			require.NoError(t, b.s.Err(), "at operation %d", n)
			if acked() < len(results) {
				waited++
			}
			if closing {
				var err error
				closed := false
				b.s.Shutdown(func(e error) { err, closed = e, true })
				b.run(3 * b.o.Retry)
				require.True(t, closed, "at operation %d", n)
				if err != nil {
					require.ErrorIs(t, err, syscall.EMFILE)
					failed++
				}
				before = acked()
				for _, r := range results {
					require.NotEqual(t, "not delivered", fmt.Sprint(*r))
				}
				b.fs.SetInjector(nil)
			} else {
				b.fs.SetInjector(nil)
				b.run(time.Second)
				require.Equal(t, len(results), acked(), "at operation %d", n)
				require.Empty(t, b.s.keeper.retired)
				files, size := b.files()
				require.Equal(t, b.s.Stats().Segments+len(b.s.free)+len(b.s.keeper.blanks), files, "at operation %d", n)
				require.LessOrEqual(t, b.fs.Used(), size+2*block, "at operation %d", n)
				b.close()
				before = len(results)
			}
			b.o.Log = nil
			require.NoError(t, b.open())
			require.GreaterOrEqual(t, b.group("g").Recovered().Last, int64(before), "at operation %d", n)
			b.close()
		}
		assert.Greater(t, waited, 20)
		assert.Equal(t, closing, failed > 0)
	}
}

// A record that is larger than a segment waits likewise until that can be opened to be made larger.
func TestWantOfDescriptorsDelaysALargeRecord(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	b.run(time.Second)
	b.fs.SetInjector(noDescriptors)
	r := b.append(g, 1, 1, 500<<10)
	b.run(time.Second)
	require.ErrorContains(t, *r, "not delivered")
	b.fs.SetInjector(nil)
	b.run(time.Second)
	require.NoError(t, *r)
}

// A read says that it may be tried again.
func TestReadsWithoutDescriptors(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	_, err := b.appendAll(g, 1, 3, 100)
	require.NoError(t, err)
	b.fs.SetInjector(noDescriptors)
	_, err = g.Read(1, 1<<20)
	require.ErrorIs(t, err, ErrNotOpened)
	require.ErrorIs(t, err, syscall.EMFILE)
	b.fs.SetInjector(nil)
	batch, err := g.Read(1, 1<<20)
	require.NoError(t, err)
	assert.EqualValues(t, 1, batch.First)
}

// The unused end of a segment that an earlier opening has left is cut off once there are descriptors again.
func TestWantOfDescriptorsDelaysCutting(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 1, 100)
	require.NoError(t, err)
	b.close()
	require.NoError(t, b.open())
	b.fs.SetInjector(noDescriptors)
	b.run(time.Second)
	old := b.s.segs[0]
	require.Equal(t, b.o.SegmentSize, old.size)
	b.fs.SetInjector(nil)
	b.run(time.Second)
	require.Equal(t, old.end, old.size)
	info, err := b.fs.Stat(old.path)
	require.NoError(t, err)
	assert.Equal(t, old.end, info.Size())
}

// A release of more segments than there are descriptors takes a few, gives them back and goes on until all are gone.
func TestALargeReleaseGetsAlongWithFewDescriptors(t *testing.T) {
	for _, spare := range []int{1, 2, 5, 9, 40} {
		b := newBed(t)
		open, most, limit := 0, 0, 1000
		b.fs.SetInjector(func(op vfs.Op) error {
			switch {
			case op.Kind == vfs.KindClose:
				open--
			case noDescriptors(op) == nil && op.Kind != vfs.KindLock:
			case open >= limit:
				return syscall.EMFILE
			case op.Kind != vfs.KindSyncDir: // which closes it again
				open++
				most = max(most, open)
			}
			return nil
		})
		require.NoError(t, b.open())
		b.s.o.Keep = 0 // an option of 0 means the default
		g := b.group("g")
		last, err := b.appendAll(g, 1, 200, 20000)
		require.NoError(t, err)
		b.run(time.Second)
		require.Greater(t, b.s.Stats().Segments, 60)

		before := open
		most, limit = open, open+spare
		g.TruncatePrefix(last, 1, nil)
		b.run(3 * time.Second)
		assert.Empty(t, b.s.keeper.retired, "%d descriptors", spare)
		assert.Equal(t, before, open, "all of %d descriptors are given back", spare)
		assert.LessOrEqual(t, most, before+removeAtOnce, "so many of %d are taken", spare)
		files, size := b.files()
		assert.Equal(t, b.s.Stats().Segments+len(b.s.free)+len(b.s.keeper.blanks), files)
		assert.LessOrEqual(t, b.fs.Used(), size+b.o.SegmentSize+2*block, "an idle lane may have one open")
		_, err = b.appendAll(g, last+1, 20, 20000)
		require.NoError(t, err, "%d descriptors", spare)
		b.close()
	}
}
