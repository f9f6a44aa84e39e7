package graft

import (
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// slowSaver hands over what it is to save.
type slowSaver struct {
	*recorder
	saves chan slowSave
}

type slowSave struct {
	w    *SnapshotWriter
	done Closure
}

func (s slowSaver) OnSnapshotSave(w *SnapshotWriter, done Closure) { s.saves <- slowSave{w, done} }

// A node ends although its state machine is saving, and whoever writes for that may do so for a while. It does not write to what the
// node saves that was started in its place.
func TestAStateMachineThatStillSavesWritesToNoLaterSnapshot(t *testing.T) {
	c, saves := snapshotGroup(t, 1, 1, NodeOptions{}), make(chan slowSave, 1)
	c.machine = func(_ int, r *recorder) StateMachine { return slowSaver{r, saves} }
	begin := func() (*pending, slowSave) {
		o := c.begin(0, "save", func(n *Node, done Closure) { n.Snapshot(done) })
		return o, receive(t, saves)
	}
	write := func(s slowSave, text string) error {
		f, err := c.disks[0].OpenFile(s.w.Path()+"/data", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		_, err = f.WriteAt([]byte(text), 0)
		return errors.Join(err, f.Close())
	}
	c.startLed()
	c.propose("a")
	saved, old := begin()
	c.stop(0)
	assert.ErrorIs(t, saved.wait(), ErrShutdown)
	c.start(0)
	c.ready()
	c.propose("b")
	saved, now := begin()
	require.NoError(t, write(now, "new"))
	require.NoError(t, now.w.AddFile("data", nil))
	assert.ErrorIs(t, write(old, "old"), os.ErrNotExist)
	old.done(nil)
	now.done(nil)
	require.NoError(t, saved.wait())
	f, err := c.disks[0].OpenFile(c.snapshotFile(0, "data"), os.O_RDONLY, 0)
	require.NoError(t, err)
	text := make([]byte, 3)
	_, err = f.ReadAt(text, 0)
	require.NoError(t, errors.Join(err, f.Close()))
	assert.Equal(t, "new", string(text))
}
