package wal

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// A sync of the directory that is refused for want of space, and so is no reason to stop, makes nothing undone of what the
// directory is to hold: a segment that is being made meanwhile keeps its name.
func TestARefusedSyncOfTheDirectoryTakesNoSegmentsName(t *testing.T) {
	for _, test := range []struct {
		name string
		kind vfs.Kind // of what the sync is for
	}{
		{"when segments are removed", vfs.KindRemove},
		{"when the identity is written", vfs.KindRename},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBed(t)
			b.o.SegmentSize = 1 << 20
			b.o.Retry = 10 * time.Millisecond
			require.NoError(t, b.open())
			b.s.o.Keep = 0
			g := b.group("g")
			b.run(time.Second)
			made := b.refuseSyncsAfter(test.kind)
			last := int64(0)
			for used := 0; used < 3; { // so many of them go into use, one after the other
				l, err := b.appendAll(g, last+1, 1, 50_000)
				require.NoError(t, err)
				if last = l; last%3 == 0 {
					g.TruncatePrefix(last, 1, nil)
				}
				require.Less(t, last, int64(4000), "no segment was being made when the directory was synced")
				if made[b.s.cur] {
					delete(made, b.s.cur)
					used++
				}
			}
			last, err := b.appendAll(g, last+1, 1, 50_000)
			require.NoError(t, err)
			b.fs.SetInjector(nil)
			b.fs = b.fs.CrashClone(nil)
			require.NoError(t, b.open())
			require.EqualValues(t, last, b.group("g").Recovered().Last)
		})
	}
}

// refuseSyncsAfter refuses each sync of a directory that is for operations of a kind and comes while a new segment is being
// made, once for each of these. It returns them, as they come.
func (b *bed) refuseSyncsAfter(kind vfs.Kind) (made map[*segment]bool) {
	made = make(map[*segment]bool)
	seen := make(map[*segment]bool)
	last := vfs.Kind(0)
	b.fs.SetInjector(func(op vfs.Op) error {
		switch op.Kind {
		case vfs.KindRemove, vfs.KindRename, vfs.KindCreate:
			last = op.Kind
		case vfs.KindSyncDir:
			was := last
			last = 0
			if m := b.s.keeper.making; was == kind && m != nil && !m.reused && !seen[m.seg] {
				seen[m.seg], made[m.seg] = true, true
				return syscall.ENOSPC
			}
		}
		return nil
	})
	return made
}
