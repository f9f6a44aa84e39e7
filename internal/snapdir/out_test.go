package snapdir

import (
	"os"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// outFS has files that can be written out, each piece of which takes a millisecond, and counts the pieces that nobody has waited for.
type outFS struct {
	*vfs.Mem
	mu      sync.Mutex
	leaving map[string]int // of each file
	most    int            // of any
}

type outFile struct {
	vfs.File
	fs *outFS
}

func (fs *outFS) OpenFile(name string, flag int, perm os.FileMode) (vfs.File, error) {
	f, err := fs.Mem.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return outFile{f, fs}, nil
}

func (f outFile) BeginWriteOut(int64, int64) (bool, error) { f.fs.leave(f.Name(), 1); return true, nil }

func (f outFile) WriteOut(int64, int64) error {
	time.Sleep(time.Millisecond)
	f.fs.leave(f.Name(), -1)
	return nil
}

func (fs *outFS) leave(name string, pieces int) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.leaving[name] += pieces
	fs.most = max(fs.most, fs.leaving[name])
}

// Of a file that several write no more than two pieces are on their way to the disk: whoever syncs another has to wait for those.
func TestPiecesLeaveOneBehindTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := content{"big": noise(1, 64*testLeaf)}
		from := mustServe(t, 10, a)
		fs := &outFS{Mem: vfs.NewMem(), leaving: make(map[string]int)}
		s, err := Open(fs, testDir, small())
		require.NoError(t, err)
		c, err := s.OpenCopy(mustManifest(t, from), CopyOptions{Turns: NewTurns(4)})
		require.NoError(t, err)
		var wg sync.WaitGroup
		pieces := make(chan int64)
		for range 4 {
			wg.Go(func() {
				for off := range pieces {
					assert.NoError(t, c.WriteAt("big", a["big"][off:off+testLeaf], off))
				}
			})
		}
		for off := int64(0); off < 64*testLeaf; off += testLeaf {
			pieces <- off
		}
		close(pieces)
		wg.Wait()
		require.Equal(t, 2, fs.most)
		r, err := c.Commit()
		require.NoError(t, err)
		requireWhole(t, r, a)
		require.NoError(t, r.Close())
	})
}
