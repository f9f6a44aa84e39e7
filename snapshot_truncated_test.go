package graft

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// resize cuts a file of a disk off, or makes it longer.
func resize(t *testing.T, fs vfs.FS, path string, size int64) {
	t.Helper()
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, errors.Join(f.Truncate(size), f.Close()))
}

// A file that has another size than when it was saved is no end of that file, and is not offered for ever: the leader finds out
// when it is asked for it, and saves another snapshot.
func TestASnapshotOfAnotherSizeIsReplaced(t *testing.T) {
	for name, size := range map[string]int64{"shorter": 1<<20 + 5, "empty": 0, "longer": 4 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each piece that is refused is asked for again a few times
			c := compacted(t, 2, 3<<20, NodeOptions{})
			resize(t, c.disks[0], c.snapshotFile(0, "more/filler"), size)
			require.NoError(t, c.add(0, 1).wait())
			assert.Len(t, c.sameData(0, 1), 10)
			assert.NotEqual(t, RoleFailed, c.nodes[0].Status().Role)
			for _, info := range c.nodes[0].snap.opened().List() {
				assert.NoError(t, info.Damage)
			}
		})
	}
}
