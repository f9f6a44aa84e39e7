package wal

import (
	"bytes"
	"encoding/binary"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// failOnce lets one sync of a directory fail.
func failOnce(fs *vfs.Mem, dir string) {
	failed := false
	fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSyncDir && op.Name == dir && !failed && strings.Contains(dir, "/") {
			failed = true
			return syscall.EIO
		}
		return nil
	})
}

// The sync of the parent of a new directory fails, Open is tried again and succeeds, an entry is acknowledged, the
// power is cut: the whole log is gone and nobody notices.
func TestFailedSyncOfTheParentOfANewDirectory(t *testing.T) {
	b := newBed(t)
	n := 0
	b.fs.SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSyncDir && op.Name == "/" {
			if n++; n == 2 { // after /d was made
				return syscall.EIO
			}
		}
		return nil
	})
	require.ErrorIs(t, b.open(), syscall.EIO)
	b.fs = b.fs.KillClone()
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 1, 10)
	require.NoError(t, err)
	s, _, err := b.openCopy(b.fs.CrashClone(nil))
	require.NoError(t, err)
	require.NotNil(t, s.groups["g"], "acknowledged, and gone without a word")
}

// The sync after the first identity was renamed fails, Open is tried again, and the power is cut while it makes its
// first segment: segments without identity, refused for good although nothing was lost.
func TestFailedSyncOfANewIdentity(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.fs.MkdirAll("/d", 0o755))
	require.NoError(t, b.fs.SyncDir("/"))
	failOnce(b.fs, "/d")
	require.ErrorIs(t, b.open(), syscall.EIO)
	b.fs = b.fs.KillClone()
	var images []*vfs.Mem
	b.fs.OnOp(func(vfs.Op) { images = append(images, b.fs.CrashClone(nil)) })
	require.NoError(t, b.open())
	for i, img := range images {
		_, _, err := b.openCopy(img)
		require.NoError(t, err, "power cut at operation %d", i)
	}
}

// The header of the newest segment is overwritten by that of another one (a misdirected write). Its first batch says
// whose it is (FORMAT.md, Recovery 1: an error), and all of it is dropped all the same.
func TestForeignHeaderOverTheNewestSegment(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	_, err := b.appendAll(b.group("g"), 1, 40, 5000)
	require.NoError(t, err)
	b.run(time.Second)
	b.close()
	fs := b.fs.CrashClone(nil)
	other := content(t, fs)[segmentName(b.s.segs[0].seq)]
	require.NoError(t, fs.Corrupt(b.s.cur.path, 0, func(p []byte) { copy(p[:block], other) }))
	_, _, err = b.openCopy(fs)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	require.Contains(t, corrupt.Reason, "header")
	require.Equal(t, b.s.cur.path, corrupt.File)
}

// The newest segment of a store that was closed cleanly is deleted, or cut short by a file system check: what it held
// is gone without a word.
func TestNewestSegmentLost(t *testing.T) {
	for _, cut := range []bool{false, true} {
		b := newBed(t)
		require.NoError(t, b.open())
		_, err := b.appendAll(b.group("g"), 1, 40, 5000)
		require.NoError(t, err)
		b.run(time.Second)
		b.close()
		fs := b.fs.CrashClone(nil)
		if cut {
			f, err := fs.OpenFile(b.s.cur.path, 2, 0)
			require.NoError(t, err)
			require.NoError(t, f.Truncate(2*block))
		} else {
			require.NoError(t, fs.Remove(b.s.cur.path))
		}
		s, _, err := b.openCopy(fs)
		if err == nil {
			require.EqualValues(t, 40, s.groups["g"].Recovered().Last, "cut %v", cut)
		}
	}
}

// So it is with a store whose process was killed: what the log had gone on in is missed.
func TestNewestSegmentOfAKilledStoreLost(t *testing.T) {
	b := newBed(t)
	require.NoError(t, b.open())
	first := b.s.cur.seq
	last, err := b.appendAll(b.group("g"), 1, 200, 5000)
	require.NoError(t, err)
	b.run(time.Second)
	require.Greater(t, b.s.cur.seq, first)
	fs := b.fs.KillClone()
	require.NoError(t, fs.Remove(b.s.cur.path))
	s, _, err := b.openCopy(fs)
	if err == nil {
		require.Equal(t, last, s.groups["g"].Recovered().Last)
	}
}

// However full a segment is, there is room for the mark that tells a damaged last batch from a torn one.
func TestLastBatchOfAFullSegmentIsDamaged(t *testing.T) {
	b := newBed(t)
	b.o.SegmentSize = 8 * block
	require.NoError(t, b.open())
	g := b.group("g")
	last := int64(0)
	for b.s.off+block != b.s.cur.size {
		last++
		_, err := b.appendAll(g, last, 1, 10)
		require.NoError(t, err)
		require.Less(t, last, int64(100))
	}
	b.run(time.Second)
	fs := b.fs.KillClone()
	require.NoError(t, fs.Corrupt(b.s.cur.path, b.s.cur.size-2*block, func(p []byte) { p[70] ^= 1 }))
	_, _, err := b.openCopy(fs)
	var corrupt *CorruptError
	require.ErrorAs(t, err, &corrupt)
	full := b.s.cur.seq
	_, err = b.appendAll(g, last+1, 1, 10)
	require.NoError(t, err)
	require.Greater(t, b.s.cur.seq, full, "the last block is for the mark")
	b.close()
	require.NoError(t, b.open())
	require.Equal(t, last+1, b.group("g").Recovered().Last)
}

// An identity without the log's end, as the first programs of this version wrote it, is read.
func TestIdentityWithoutEnd(t *testing.T) {
	id := identity{store: 7, opening: 3, segment: 2, address: "10.0.0.1:8000", end: 99}
	b := id.encode()
	back, err := parseIdentity(b)
	require.NoError(t, err)
	require.Equal(t, id, back)
	old := bytes.Clone(b[:len(b)-identityTail])
	clear(old[12:16])
	binary.LittleEndian.PutUint32(old[12:], crcOf(old))
	back, err = parseIdentity(old)
	require.NoError(t, err)
	id.end = 0
	require.Equal(t, id, back)
	_, err = parseIdentity(b[:len(b)-1])
	require.Error(t, err)
}
