package snapdir

import (
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// A file without hashes is read when all of it is there, which may take minutes. Who gives the copy up does not wait for that.
func TestAbortEndsTheHashingOfAFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs := vfs.NewMem()
		c, _ := unhashed(t, fs, 20, CopyOptions{})
		held := make(chan struct{})
		reads := onRead(fs, func(int) { <-held })
		finished, aborted := make(chan error, 1), make(chan error, 1)
		go func() { finished <- c.Finish("big") }()
		synctest.Wait()
		go func() { aborted <- c.Abort(true) }()
		synctest.Wait()
		require.Empty(t, aborted, "it is still being read")
		close(held)
		require.ErrorIs(t, <-finished, ErrStopped)
		require.NoError(t, <-aborted)
		require.Equal(t, 1, *reads)
		names, err := fs.ReadDir(testDir)
		require.NoError(t, err)
		require.Equal(t, []string{copyDir}, names, "what was received is kept")
	})
}

// Nor does who stops it by its Watch, and then it can be done again: nothing was lost.
func TestAStoppedFinishCanBeRepeated(t *testing.T) {
	fs := vfs.NewMem()
	stop, read := false, 0
	c, a := unhashed(t, fs, 20, CopyOptions{Watch: Watch{Stop: func() bool { return stop }, Read: func(n int) { read += n }}})
	reads := onRead(fs, func(n int) { stop = n == 3 })
	require.ErrorIs(t, c.Finish("big"), ErrStopped)
	require.Equal(t, 3, *reads)
	require.Equal(t, 3*testLeaf, read, "it can be slowed down too")
	stop = false
	_, err := c.Commit()
	require.ErrorIs(t, err, ErrIncomplete)
	require.NoError(t, c.Finish("big"))
	r, err := c.Commit()
	require.NoError(t, err)
	requireWhole(t, r, a)
	require.NoError(t, r.Close())
}

// While such a file is read others have their turn, after each piece.
func TestTheHashingOfAFileLetsOthersWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fs, turns := vfs.NewMem(), NewTurns(1)
		c, a := unhashed(t, fs, 20, CopyOptions{Turns: turns})
		held, turn := make(chan struct{}), 0
		reads := onRead(fs, func(n int) {
			if n == 3 {
				<-held
			}
		})
		finished := make(chan error, 1)
		go func() { finished <- c.Finish("big") }()
		synctest.Wait()
		go func() { _ = take(turns.work, func() error { turn = *reads; return nil }) }()
		synctest.Wait()
		require.Zero(t, turn, "it is being hashed")
		close(held)
		require.NoError(t, <-finished)
		require.Equal(t, 3, turn)
		r, err := c.Commit()
		require.NoError(t, err)
		requireWhole(t, r, a)
		require.NoError(t, r.Close())
	})
}
