package wal

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// content is all that is on the disk.
func content(t testing.TB, fs *vfs.Mem) map[string]string {
	names, err := fs.ReadDir("/d")
	require.NoError(t, err)
	all := map[string]string{}
	for _, n := range names {
		f, err := fs.OpenFile("/d/"+n, os.O_RDONLY, 0)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		b := make([]byte, size)
		_, err = f.ReadAt(b, 0)
		require.True(t, err == nil || err == io.EOF)
		require.NoError(t, f.Close())
		all[n] = string(b)
	}
	return all
}

// reopen opens a copy of the disk and returns the store and what it logged.
func (b *bed) openCopy(fs *vfs.Mem) (s *Store, log string, err error) {
	o := b.o
	o.FS, o.Exec = fs, b.sim.NewProcess(1)
	o.Log = func(format string, args ...any) { log += fmt.Sprintf(format, args...) + "\n" }
	s, err = Open(o)
	return s, log, err
}

// inFlight opens a store with entry 1 durable and three more batches written and not synced, of one
// entry and two blocks each, and returns their offsets.
func (b *bed) inFlight() (offs []int64) {
	require.NoError(b.t, b.open())
	g := b.group("g")
	b.run(time.Second)
	_, err := b.appendAll(g, 1, 1, 10) // goes on in the first segment that is zeroed
	require.NoError(b.t, err)
	b.run(time.Second)
	var held *vfs.Mem
	syncs := 0
	b.fs.OnOp(func(op vfs.Op) {
		if op.Kind == vfs.KindWrite && op.Name == b.s.cur.path {
			offs = append(offs, op.Off)
		}
		if op.Kind == vfs.KindSync {
			if syncs++; len(offs) == 3 && held == nil {
				held = b.fs.KillClone()
			}
		}
	})
	b.sim.Latency = func(*rand.Rand, string) time.Duration { return time.Microsecond } // the lanes go abreast
	for i := range int64(3) {
		b.append(g, 2+i, 1, 5000)
	}
	b.run(time.Second)
	require.NotNil(b.t, held, "three writes before the first sync")
	b.fs = held
	return offs
}

func TestOfWritesInFlightTheWholePrefixSurvives(t *testing.T) {
	for kept := range 8 {
		b := newBed(t)
		b.o.MaxBatch = 4000
		offs := b.inFlight()
		img := b.fs.CrashClone(func(u vfs.Unit) bool {
			for i, off := range offs {
				if u.Kind == vfs.UnitWrite && u.Off >= off && u.Off < off+2*block {
					return kept>>i&1 == 1
				}
			}
			return true
		})
		s, log, err := b.openCopy(img)
		require.NoError(t, err)
		want := int64(1)
		for i := 0; i < 3 && kept>>i&1 == 1; i++ {
			want++
		}
		assert.Equal(t, want, s.groups["g"].Recovered().Last, "kept %03b", kept)
		dropped := 0
		for i := int(want) - 1; i < 3; i++ {
			dropped += kept >> i & 1
		}
		if dropped > 0 {
			assert.Contains(t, log, fmt.Sprintf("cut at offset %d", offs[want-1]))
			assert.Contains(t, log, fmt.Sprintf("%d later batches", dropped))
		} else {
			assert.NotContains(t, log, "cut")
		}
	}
}

// Every way to damage the middle of what is below the durable mark ends in an error that names file and
// offset, and changes nothing.
func TestDamageBelowTheMarkIsReportedAndNothingChanged(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 5, 3000)
	require.NoError(t, err)
	b.run(time.Second) // the mark of an idle store
	path := b.s.cur.path
	var offs []int64
	for _, p := range b.s.groups["g"].log.idx.points {
		_, off := splitPosition(p.pos)
		offs = append(offs, off)
	}
	require.NotEmpty(t, offs)
	for _, off := range offs {
		for _, at := range []int{0, 5, 9, 20, 30, 40, 50, 56, 64, 70, 80, 100, 2000, 3000} {
			fs := b.fs.KillClone()
			require.NoError(t, fs.Corrupt(path, off, func(p []byte) { p[at] ^= 0x10 }))
			before := content(t, fs)
			_, _, err := b.openCopy(fs)
			var c *CorruptError
			require.ErrorAs(t, err, &c, "byte %d of the batch at %d", at, off)
			assert.Equal(t, path, c.File)
			assert.Equal(t, off, c.Offset)
			assert.Equal(t, before, content(t, fs), "nothing is changed on disk")
			_, _, again := b.openCopy(fs)
			assert.Equal(t, err.Error(), again.Error())
		}
	}
}

// A record that begins with a block and is replaced by one of another batch, whole and of the same length, is not
// taken: the header says which records are its own.
func TestRecordOfAnotherBatchIsNotTaken(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	g := b.group("g")
	_, err := b.appendAll(g, 1, 1, 10)
	require.NoError(t, err)
	b.run(time.Second)
	_, err = b.appendAll(g, 2, 1, 10) // goes on in the first segment that is zeroed
	require.NoError(t, err)
	size := block - batchHeadSize - entriesHeadSize
	for batchHeadSize+entriesHeadSize+batchAt(3, 1, 1, size).Size() > block {
		size--
	}
	require.Equal(t, block, batchHeadSize+entriesHeadSize+batchAt(3, 1, 1, size).Size())
	var offs []int64
	for i := range int64(2) {
		offs = append(offs, b.s.off)
		done := b.append(g, 3+i, 1, size)
		g.SaveHardState(HardState{Term: 1 + i, Vote: "v"}, 0, nil) // begins with the second block
		b.run(time.Second)
		require.NoError(t, *done)
		require.Equal(t, offs[i]+2*block, b.s.off)
	}
	fs := b.fs.CrashClone(func(vfs.Unit) bool { return true })
	old := content(t, fs)[segmentName(b.s.cur.seq)][offs[0]+block:][:block]
	require.NoError(t, fs.Corrupt(b.s.cur.path, offs[1]+block, func(p []byte) { copy(p, old) }))
	_, _, err = b.openCopy(fs)
	var c *CorruptError
	require.ErrorAs(t, err, &c)
	assert.Equal(t, offs[1], c.Offset)
}

// What an earlier life of the file, another place or another opening left is never part of the log.
func TestStaleBatchesAreNotRead(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 3, 100)
	require.NoError(t, err)
	b.run(time.Second)
	b.close()
	old := content(t, b.fs)[segmentName(b.s.cur.seq)]
	require.NoError(t, b.open())
	_, err = b.appendAll(b.group("g"), 4, 1, 100)
	require.NoError(t, err)
	fs := b.fs.CrashClone(nil)
	path, end := b.s.cur.path, b.s.off
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	cur := content(t, fs)[segmentName(b.s.cur.seq)]
	for _, stale := range []string{
		old[firstBatchOffset:], old[2*block:], cur[firstBatchOffset : firstBatchOffset+block], cur[2*block : 3*block],
		strings.Repeat("\x00", block), strings.Repeat("\xff", 3*block),
	} {
		_, err = f.WriteAt([]byte(stale[:min(len(stale), 4*block)]), end)
		require.NoError(t, err)
		s, _, err := b.openCopy(fs.KillClone())
		require.NoError(t, err)
		assert.EqualValues(t, 4, s.groups["g"].Recovered().Last)
	}
}

// One of several segments is missing, or cut short, or swapped with another.
func TestMissingAndMutilatedSegmentsAreFound(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 60, 5000)
	require.NoError(t, err)
	b.run(time.Second)
	b.close()
	require.Greater(t, len(b.s.segs), 4)
	damage := map[string]func(fs *vfs.Mem, seg *segment) error{
		"removed": func(fs *vfs.Mem, seg *segment) error { return fs.Remove(seg.path) },
		"emptied": func(fs *vfs.Mem, seg *segment) error {
			_, err := fs.OpenFile(seg.path, os.O_RDWR|os.O_TRUNC, 0)
			return err
		},
		"cut": func(fs *vfs.Mem, seg *segment) error {
			f, err := fs.OpenFile(seg.path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return f.Truncate(3*block + 77)
		},
		"swapped": func(fs *vfs.Mem, seg *segment) error { return fs.Rename(seg.path, b.s.segs[0].path) },
	}
	names := make([]string, 0, len(damage))
	for name := range damage {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		for i, seg := range b.s.segs[:len(b.s.segs)-1] { // what the newest lost looks as if never written
			if name == "swapped" && i == 0 {
				continue
			}
			fs := b.fs.KillClone()
			require.NoError(t, damage[name](fs, seg))
			before := content(t, fs)
			_, _, err := b.openCopy(fs)
			var c *CorruptError
			require.ErrorAs(t, err, &c, "segment %d of %d %s", i, len(b.s.segs), name)
			assert.Equal(t, before, content(t, fs))
		}
	}
}

// A newer version is refused by name, in the identity and in a segment.
func TestNewerVersionIsRefused(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	b.run(time.Second)
	b.close()
	fs := b.fs.KillClone()
	require.NoError(t, fs.Corrupt("/d/identity", 0, func(p []byte) { p[8] = 2 }))
	_, _, err := b.openCopy(fs)
	require.ErrorIs(t, err, ErrVersion)
	fs = b.fs.KillClone()
	require.NoError(t, fs.Corrupt(b.s.cur.path, 0, func(p []byte) {
		p[8] = 2
		clear(p[12:16])
		sum := crcOf(p[:segmentHeadSize])
		for i := range 4 {
			p[12+i] = byte(sum >> (8 * i))
		}
	}))
	_, _, err = b.openCopy(fs)
	require.ErrorIs(t, err, ErrVersion)
}

// The same seed gives the same run.
func TestSameSeedSameRun(t *testing.T) {
	trace := func() (uint64, int64) {
		w := newWorld(t, 5)
		sc := scripts()
		w.open()
		sc[len(sc)-1].run(w)
		return w.sim.TraceHash(), w.fs.Ops()
	}
	hash, ops := trace()
	again, opsAgain := trace()
	assert.Equal(t, hash, again)
	assert.Equal(t, ops, opsAgain)
}
