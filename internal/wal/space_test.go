package wal

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// zeroFillFS reserves space as vfs.OS does where the file system has nothing for that: it writes zeros behind the end of the
// file, as far as there is space.
type zeroFillFS struct{ *vfs.Mem }

type zeroFillFile struct{ vfs.File }

func (fs zeroFillFS) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := fs.Mem.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return zeroFillFile{f}, nil
}

func (f zeroFillFile) Preallocate(off, n int64) error {
	size, err := f.Size()
	if err != nil || size >= off+n {
		return err
	}
	_, err = f.WriteAt(make([]byte, off+n-size), size)
	return err
}

// openZeroFill is open on such a file system.
func (b *bed) openZeroFill() error {
	b.o.FS, b.o.Exec = zeroFillFS{b.fs}, b.sim.NewProcess(1)
	s, err := Open(b.o)
	if err == nil {
		b.s = s
	}
	return err
}

// holes is how much of the segments' files has no space.
func (b *bed) holes() int64 {
	_, size := b.files()
	return size + block - b.fs.Used() // one block is the identity's
}

// Space that is reserved by writing runs out in the middle. What becomes a segment has all its space, whatever was asked for
// first: a batch that is placed there finds it.
func TestSegmentsThatAreZeroFilledHaveTheirSpace(t *testing.T) {
	for capacity := int64(2 << 20); capacity < 20<<20; capacity += 3 << 19 {
		b := newBed(t)
		b.o.SegmentSize = 8 << 20
		b.fs.SetCapacity(capacity)
		require.NoError(t, b.openZeroFill())
		require.LessOrEqual(t, b.holes(), int64(0), "capacity %d", capacity)
		g := b.group("g")
		b.run(time.Second)
		require.LessOrEqual(t, b.holes(), int64(0), "capacity %d", capacity)
		_, err := b.appendAll(g, 1, 200, 120000)
		require.ErrorIs(t, err, ErrNoSpace, "capacity %d", capacity)
		require.NoError(t, b.s.Err())
		b.close()
	}
}

// An opening finds a file to use again and not enough space for it. It leaves no more behind than it has found.
func TestAFailedOpeningLeavesNoHoles(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 8 << 20
	require.NoError(t, b.openZeroFill())
	_, err := b.appendAll(b.group("g"), 1, 3, 4000)
	require.NoError(t, err)
	b.run(time.Second)
	b.close()
	for _, seg := range b.s.free { // as a power cut may leave them
		require.NoError(t, shortenTo(b.fs, seg.path, block))
	}
	before := b.fs.Used()
	b.fs.SetCapacity(before + smallest/2)
	for range 3 {
		require.ErrorIs(t, b.openZeroFill(), ErrNoSpace)
		assert.LessOrEqual(t, b.holes(), int64(0))
		assert.LessOrEqual(t, b.fs.Used(), before)
	}
	b.fs.SetCapacity(-1)
	require.NoError(t, b.openZeroFill())
	assert.EqualValues(t, 3, b.group("g").Recovered().Last)
	b.close()
}

func shortenTo(fs vfs.FS, path string, size int64) error {
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// A record that is larger than a segment does not find its space. What there is of it is not kept from others, and what the log
// holds stays.
func TestASegmentThatCannotGrowTakesNothing(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.openZeroFill())
	g := b.group("g")
	last, err := b.appendAll(g, 1, 3, 4000)
	require.NoError(t, err)
	b.run(time.Second)
	used := b.fs.Used()
	b.fs.SetCapacity(used + 200<<10)
	for range 3 {
		_, err = b.appendAll(g, last+1, 1, 500<<10)
		require.ErrorIs(t, err, ErrNoSpace)
		b.run(time.Second)
		require.NoError(t, b.s.Err())
		assert.Equal(t, used, b.fs.Used())
	}
	b.fs.SetCapacity(-1)
	last, err = b.appendAll(g, last+1, 1, 500<<10)
	require.NoError(t, err)
	b.close()
	require.NoError(t, b.openZeroFill())
	assert.Equal(t, last, b.group("g").Recovered().Last)
	b.close()
}

// The same of an opening, whose first batch holds the state of more groups than a segment has room for.
func TestAnOpeningThatCannotGrowItsSegmentTakesNothing(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 4 * block
	require.NoError(t, b.openZeroFill())
	for i := range 500 {
		b.append(b.group(fmt.Sprint("group", i, strings.Repeat("x", 200))), 1, 1, 10)
	}
	b.run(time.Second)
	b.close()
	used := b.fs.Used()
	for range 3 {
		b.fs.SetCapacity(used + 10*block)
		require.ErrorIs(t, b.openZeroFill(), ErrNoSpace)
		assert.LessOrEqual(t, b.fs.Used(), used+4*block)
	}
	b.fs.SetCapacity(-1)
	require.NoError(t, b.openZeroFill())
	assert.Len(t, b.s.Groups(), 500)
	b.close()
}

// A released segment cannot be renamed for a while, since the directory has no space for that. It is used again afterwards.
func TestASegmentThatCannotBeRenamedIsUsedLater(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	last, err := b.appendAll(g, 1, 50, 20000)
	require.NoError(t, err)
	b.fs.SetInjector(vfs.Injector(vfs.Fail(syscall.EDQUOT, vfs.KindRename)).On(segmentPrefix + "*"))
	g.TruncatePrefix(last, 1, nil)
	b.run(time.Second)
	kept := len(b.s.keeper.blanks)
	require.NotZero(t, kept)
	_, err = b.appendAll(g, last+1, 50, 20000)
	require.ErrorIs(t, err, ErrNoSpace)
	b.run(time.Second)
	require.NoError(t, b.s.Err())
	files, _ := b.files()
	assert.Len(t, b.s.keeper.blanks, kept)
	assert.Equal(t, b.s.Stats().Segments+len(b.s.free)+kept, files)
	b.fs.SetInjector(nil)
	b.run(time.Second)
	require.NoError(t, b.s.Space())
	files, _ = b.files()
	assert.Less(t, len(b.s.keeper.blanks), kept)
	assert.Equal(t, b.s.Stats().Segments+len(b.s.free)+len(b.s.keeper.blanks), files)
	b.close()
}

// fullAndRemovesNothing leaves no space for segments and refuses each removal, and counts those.
func (b *bed) fullAndRemovesNothing(why error) (refused *int) {
	refused = new(int)
	b.fs.SetInjector(func(op vfs.Op) error {
		switch op.Kind {
		case vfs.KindRemove:
			*refused++
			return why
		case vfs.KindPreallocate:
			return syscall.ENOSPC
		}
		return nil
	})
	return refused
}

// A new segment finds no space for itself, and its file cannot be removed either, for the same reason. The next attempt takes
// that file: attempts leave one and not one each.
func TestASegmentThatCannotBeRemovedIsMadeOfAgain(t *testing.T) {
	b := newBed(t)
	b.o.Retry = 10 * time.Millisecond
	require.NoError(t, b.open())
	g, refused := b.group("g"), b.fullAndRemovesNothing(syscall.ENOSPC)
	_, err := b.appendAll(g, 1, 1000, 20000)
	require.ErrorIs(t, err, ErrNoSpace)
	b.run(time.Second)
	require.NoError(t, b.s.Err())
	assert.Greater(t, *refused, 10)
	files, _ := b.files()
	assert.LessOrEqual(t, files, b.s.Stats().Segments+len(b.s.free)+1)
	b.fs.SetInjector(nil)
	b.run(time.Second)
	require.NoError(t, b.s.Space())
	files, _ = b.files()
	assert.Equal(t, b.s.Stats().Segments+len(b.s.free)+len(b.s.keeper.blanks), files)
	b.close()
}

// What cannot be removed because the disk is broken is no want of space, though the removal was for that.
func TestABrokenDiskDoesNotPassForAFullOne(t *testing.T) {
	b := newBed(t)
	b.o.Retry = 10 * time.Millisecond
	require.NoError(t, b.open())
	g := b.group("g")
	b.fullAndRemovesNothing(syscall.EIO)
	_, err := b.appendAll(g, 1, 1000, 20000)
	require.Error(t, err)
	b.run(time.Second)
	assert.ErrorIs(t, b.s.Err(), syscall.EIO)
}

// A disk that takes no removal is no full one: what was released is used again, and the rest waits.
func TestRefusedRemovalsHoldNothingUp(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	b.s.o.Keep = 2
	g, refused := b.group("g"), 0
	b.fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindRemove {
			refused++
			return syscall.EDQUOT
		}
		return nil
	})
	for at := range int64(20) {
		last, err := b.appendAll(g, at*20+1, 20, 20000)
		require.NoError(t, err)
		g.TruncatePrefix(last, 1, nil)
		b.run(time.Second)
		require.NoError(t, b.s.Space())
	}
	assert.NotZero(t, refused)
	assert.NotEmpty(t, b.s.keeper.retired)
	b.fs.SetInjector(nil)
	b.run(time.Second)
	assert.Empty(t, b.s.keeper.retired)
	b.close()
	require.NoError(t, b.open())
	assert.EqualValues(t, 400, b.group("g").Recovered().Last)
	b.close()
}

// An operation fails for want of space, whichever it is: what was acknowledged is found again, and nothing that was released is taken for
// damage, nor left behind while the store runs on.
func TestASingleWantOfSpace(t *testing.T) {
	removals := 0
	for n := int64(0); ; n++ {
		b := newBed(t)
		require.NoError(t, b.open())
		b.s.o.Keep = 0 // an option of 0 means the default
		g, base, hit := b.group("g"), b.fs.Ops(), false
		b.fs.SetInjector(func(op vfs.Op) error {
			if op.N != base+1+n {
				return nil
			}
			hit = true
			if op.Kind == vfs.KindRemove {
				removals++
			}
			return syscall.ENOSPC
		})
		var results []*error
		for at := range int64(30) {
			results = append(results, b.append(g, at+1, 1, 6000))
			if at%10 == 9 {
				g.TruncatePrefix(at-5, 1, nil)
			}
			b.run(20 * time.Millisecond)
		}
		b.run(3 * b.o.Retry)
		b.fs.SetInjector(nil)
		var acked int64
		for acked < int64(len(results)) && *results[acked] == nil {
			acked++
		}
		if b.s.Err() == nil {
			files, _ := b.files()
			require.Equal(t, b.s.Stats().Segments+len(b.s.free)+len(b.s.keeper.blanks), files, "operation %d", n)
		}
		b.s.Shutdown(func(error) {}) // which a sync that has failed makes fail
		b.run(time.Second)
		require.NoError(t, b.open(), "operation %d", n)
		require.GreaterOrEqual(t, b.group("g").Recovered().Last, acked, "operation %d", n)
		b.close()
		if !hit {
			break
		}
	}
	assert.NotZero(t, removals)
}
