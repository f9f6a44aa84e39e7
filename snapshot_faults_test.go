package graft

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
)

// failReads has a host's snapshots not be readable, until the injector is taken away. It counts how often that was met.
func (c *cluster) failReads(i int) *atomic.Int32 {
	var n atomic.Int32
	c.disks[i].SetInjector(func(op vfs.Op) error {
		if strings.Contains(op.Name, "snapshot_") && op.Kind == vfs.KindRead {
			n.Add(1)
			return syscall.EIO
		}
		return nil
	})
	return &n
}

// suspect has a host look whether its newest snapshot is what it should be, as when a follower could not read it.
func (c *cluster) suspect(i int) {
	c.t.Helper()
	s, done := c.nodes[i].snap, make(chan struct{})
	s.a.Post(func() {
		s.suspectAt = time.Time{}
		s.suspect(s.last.Load(), syscall.EIO)
		close(done)
	})
	receive(c.t, done)
}

// A snapshot that could not be read for a moment is not taken for damaged: nothing is saved in its place, and it is sent and loaded as
// before.
func TestAReadErrorThatPassesCondemnsNoSnapshot(t *testing.T) {
	c := compacted(t, 2, 0, NodeOptions{})
	index := c.nodes[0].Status().Snapshot.Index
	met := c.failReads(0)
	c.suspect(0)
	require.Positive(t, met.Load())
	s := c.nodes[0].Status()
	assert.Equal(t, SnapshotIdle, s.Snapshot.State, "nothing new could be saved")
	assert.ErrorIs(t, s.Snapshot.Err, syscall.EIO)
	assert.ErrorIs(t, s.Snapshot.Err, ErrIO)
	once := met.Load()
	done := make(chan struct{})
	c.nodes[0].snap.a.Post(func() {
		for range 100 { // as many as are being read at the time
			c.nodes[0].snap.suspect(index, syscall.EIO)
		}
		close(done)
	})
	receive(t, done)
	assert.Equal(t, once, met.Load(), "it is not read again and again")
	c.disks[0].SetInjector(nil)
	require.NoError(t, c.save(0), "there is nothing to do")
	require.NoError(t, c.add(0, 1).wait())
	assert.Equal(t, []int64{index}, c.fsms[1].loaded())
	assert.Equal(t, 1, c.fsms[0].saves)
	c.stop(0)
	c.start(0)
	c.campaign(0)
	c.propose("b")
	c.sameData(0, 1)
	assert.Equal(t, []int64{index}, c.fsms[0].loaded())
}

// If it still cannot be read when there is something new to save, that takes its place.
func TestASnapshotThatCannotBeReadIsReplacedByANewerOne(t *testing.T) {
	c := compacted(t, 2, 0, NodeOptions{})
	index := c.nodes[0].Status().Snapshot.Index
	c.propose("b")
	unreadable := fmt.Sprint(index, "/")
	c.disks[0].SetInjector(func(op vfs.Op) error {
		if strings.Contains(op.Name, unreadable) && op.Kind == vfs.KindRead {
			return syscall.EIO
		}
		return nil
	})
	c.suspect(0)
	c.status(0, func(s Status) bool { return s.Snapshot.Index > index && s.Snapshot.Err == nil }, "no other one")
	require.NoError(t, c.add(0, 1).wait())
	assert.Len(t, c.sameData(0, 1), 11)
}

// A snapshot whose manifest cannot be read for a moment is no damaged one: the replica says so, and starts once it can be.
func TestAManifestThatCannotBeReadForAMoment(t *testing.T) {
	c := compacted(t, 1, 0, NodeOptions{})
	require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
	c.failReads(0)
	err := c.restartErr(0)
	assert.ErrorIs(t, err, ErrIO)
	assert.ErrorIs(t, err, syscall.EIO)
	assert.NotErrorIs(t, err, ErrCorrupt)
	assert.NotContains(t, err.Error(), "delete its data")
	c.disks[0].SetInjector(nil)
	n, err := c.hosts[0].StartNode("g", c.nodes[0].o)
	require.NoError(t, err)
	c.nodes[0] = n
	c.ready()
	assert.Len(t, c.sameData(0), 10)
}

// A durable state machine's snapshot is verified when it is first needed. If it cannot be read then, that is what is said, and it
// stays.
func TestASnapshotOfADurableStateMachineThatCannotBeRead(t *testing.T) {
	g := newDurableGroup(t, 1, 1, NodeOptions{})
	g.startLed()
	g.proposeMany("a", 10)
	require.NoError(t, g.save(0))
	n := g.nodes[0]
	s := n.snap
	dir := g.snapshotDir(0)
	g.stopNode(0)
	store, err := snapdir.Open(g.disks[0], dir, snapdir.Options{}) // which has not verified anything
	require.NoError(t, err)
	s.store = store
	s.last.Store(0)
	s.stopping.Store(false)
	g.failReads(0)
	err = s.trustNewest(n.fsm.applied.Load())
	assert.ErrorIs(t, err, ErrIO)
	assert.ErrorIs(t, err, syscall.EIO)
	require.NoError(t, s.trustNewest(n.fsm.applied.Load()+1), "it is in nobody's way")
	assert.Zero(t, s.last.Load())
	g.disks[0].SetInjector(nil)
	require.NoError(t, s.trustNewest(n.fsm.applied.Load()))
	assert.Equal(t, n.fsm.applied.Load(), s.last.Load())
}

// damaged has a host find out that its snapshot of an index is damaged.
func (c *cluster) damaged(i int, index int64) {
	c.t.Helper()
	damage(c.t.(*testing.T), c.disks[i], filepath.Join(c.snapshotDir(i), fmt.Sprintf("snapshot_%020d", index), "entries"))
	s, done := c.nodes[i].snap, make(chan struct{})
	s.a.Post(func() {
		s.suspect(index, syscall.EIO)
		close(done)
	})
	receive(c.t, done)
}

// Damage of a snapshot that there is a newer one of is no reason to save that again, which cannot be: the old one goes.
func TestDamageOfAnOlderSnapshotTouchesNoNewerOne(t *testing.T) {
	c := snapshotGroup(t, 1, 2, NodeOptions{SnapshotKeep: 2})
	c.startLed()
	c.proposeMany("a", 5)
	require.NoError(t, c.save(0))
	older := c.nodes[0].Status().Snapshot.Index
	c.proposeMany("b", 5)
	require.NoError(t, c.save(0))
	newer := c.nodes[0].Status().Snapshot.Index
	c.damaged(0, older)
	assert.Equal(t, newer, c.nodes[0].snap.last.Load())
	require.NoError(t, c.save(0), "it has one of this index")
	s := c.nodes[0].Status().Snapshot
	assert.Equal(t, newer, s.Index)
	assert.Equal(t, SnapshotIdle, s.State)
	var left []int64
	for _, info := range c.nodes[0].snap.opened().List() {
		left = append(left, info.Index)
	}
	assert.Equal(t, []int64{newer}, left)
	assert.Equal(t, 2, c.fsms[0].saves, "saved for nothing")
	require.NoError(t, c.add(0, 1).wait())
	assert.Len(t, c.sameData(0, 1), 10)
}

// A damaged snapshot is there until what takes its place is: it may be all that is left, and what could not be read once
// may be sound.
func TestADamagedSnapshotStaysUntilThereIsAnother(t *testing.T) {
	c := compacted(t, 1, 0, NodeOptions{})
	index := c.nodes[0].Status().Snapshot.Index
	held := newHoldup(t)
	c.fsms[0].mu.Lock()
	c.fsms[0].onSave = func(write func() error) error {
		held.pass()
		return write()
	}
	c.fsms[0].mu.Unlock()
	c.damaged(0, index)
	held.reached()
	_, err := c.disks[0].Stat(c.snapshotFile(0, "entries"))
	assert.NoError(t, err, "it is gone, and there is no other")
	held.release()
	store := c.nodes[0].snap.opened()
	c.eventually(func() bool {
		list := store.List()
		return len(list) == 1 && list[0].Index == index && list[0].Damage == nil && list[0].Verified
	}, "it is not replaced")
	c.stop(0)
	c.start(0)
	c.ready()
	assert.Equal(t, []int64{index}, c.fsms[0].loaded())
	assert.Len(t, c.sameData(0), 10)
}

// A file of a snapshot that the state machine has open for longer than its node lives deletes nothing when it is closed: the
// snapshot may be what the next node has.
func TestAFileThatOutlivesItsNodeDeletesNoSnapshot(t *testing.T) {
	c := compacted(t, 1, 0, NodeOptions{})
	index := c.nodes[0].Status().Snapshot.Index
	var file SnapshotFile
	c.prepare = func(_ int, r *recorder) {
		r.snapshots = true
		r.onLoad = func(s *SnapshotReader) (err error) {
			file, err = s.Open("entries")
			return err
		}
	}
	c.stop(0)
	c.start(0)
	c.ready()
	require.NotNil(t, file)
	c.propose("b")
	require.NoError(t, c.save(0)) // the other one is to be deleted
	c.prepare = func(_ int, r *recorder) { r.snapshots = true }
	c.stop(0)
	c.start(0)
	c.ready()
	dir := filepath.Join(c.snapshotDir(0), fmt.Sprintf("snapshot_%020d", index))
	_, err := c.disks[0].Stat(dir)
	require.NoError(t, err, "it is read")
	require.NoError(t, file.Close())
	_, err = c.disks[0].Stat(dir)
	assert.NoError(t, err, "it is the next node's")
	c.propose("c")
	require.NoError(t, c.save(0))
	_, err = c.disks[0].Stat(dir)
	assert.ErrorIs(t, err, os.ErrNotExist)
}
