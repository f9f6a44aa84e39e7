package graft

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// confirmed waits until a leader has confirmed what a host was reset to.
func (c *cluster) confirmed(i int, conf Configuration) Status {
	c.t.Helper()
	return c.status(i, func(s Status) bool {
		return !s.Overridden && s.Conf.Equal(conf) && s.CommitIndex >= s.ConfIndex && s.ConfIndex > 0
	},
		"it is not confirmed")
}

// braft: SetPeer1. An empty replica founds a group.
func TestResetOfAnEmptyReplicaFoundsAGroup(t *testing.T) {
	c := newGroup(t, 0, 2, NodeOptions{ElectionTimeout: 500 * ms})
	c.start(0)
	c.start(1)
	s := c.nodes[0].Status()
	require.True(t, s.Conf.Empty())
	require.NoError(t, c.nodes[0].ResetPeers(c.voters(0)))
	c.confirmed(0, c.voters(0))
	assert.Equal(t, 0, c.ready())
	c.propose("one")
	c.changeTo(c.voters(0, 1))
	assert.Equal(t, []string{"one"}, c.sameData(0, 1))
	for i := range 2 {
		c.stop(i)
		c.start(i)
	}
	c.ready()
	c.propose("two")
	c.sameData(0, 1)
}

// braft: SetPeer2, set_peer. The majority is lost for good; one is left, and gets fresh peers.
func TestResetAfterTheMajorityIsLost(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: time.Second})
	c.startLed()
	c.propose("one")
	c.sameData(0, 1, 2)
	c.wipe(1)
	c.wipe(2)
	c.outOfReach(0)
	n := c.nodes[0]
	before := c.status(0, func(s Status) bool { return s.Role != RoleLeader }, "it leads without a majority")
	require.NoError(t, n.ResetPeers(c.conf), "what is in force already")
	after := n.Status()
	assert.Equal(t, before.Term, after.Term)
	assert.False(t, after.Overridden)
	assert.Equal(t, before.LastIndex, after.LastIndex)

	require.NoError(t, n.ResetPeers(c.voters(0)))
	assert.Greater(t, n.Status().Term, before.Term)
	c.confirmed(0, c.voters(0))
	c.propose("two")
	for _, i := range []int{1, 2} {
		c.startWith(i, Configuration{})
	}
	c.changeTo(c.voters(0, 1))
	c.changeTo(c.conf)
	c.propose("three")
	assert.Equal(t, []string{"one", "two", "three"}, c.sameData(0, 1, 2))
	assert.Equal(t, c.conf, n.Status().Conf)
}

// H-12: what braft keeps in memory only survives a restart, before and after a leader has confirmed it.
func TestAResetSurvivesRestarts(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 300 * ms})
	c.startGroup()
	c.propose("one")
	c.sameData(0, 1, 2)
	for i := range 3 {
		c.stop(i)
	}
	c.start(0)
	require.NoError(t, c.nodes[0].ResetPeers(c.voters(0, 1))) // 1 does not run, so nobody can confirm it
	term := c.nodes[0].Status().Term
	for range 3 {
		s := c.nodes[0].Status()
		assert.True(t, s.Overridden)
		assert.Equal(t, c.voters(0, 1), s.Conf)
		assert.Zero(t, s.ConfIndex, "it is not in the log")
		assert.GreaterOrEqual(t, s.Term, term)
		c.stop(0)
		c.start(0)
	}
	// Each of several voters is reset, away from the others.
	c.net.set(isolate(1))
	c.start(1)
	require.NoError(t, c.nodes[1].ResetPeers(c.voters(0, 1)))
	c.net.set()
	c.confirmed(0, c.voters(0, 1))
	c.confirmed(1, c.voters(0, 1))
	c.propose("two")
	for i := range 2 {
		c.stop(i)
	}
	c.start(0)
	c.start(1)
	lead := c.settled(c.voters(0, 1), 0, 1)
	assert.False(t, c.nodes[lead].Status().Overridden)
	c.propose("three") // what is in the log only is committed with it
	assert.Equal(t, []string{"one", "two", "three"}, c.sameData(0, 1))
}

// H-12: a joint configuration whose old majority is lost is reset to its own new half, which is no no-op.
func TestResetEndsAJointConfiguration(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.propose("one")
	next := c.voters(0, 3)
	c.net.set(noConf(isJoint, 1, 2))
	p := c.change(0, next)
	c.status(0, func(s Status) bool { return s.Stage == StageJoint && len(s.Awaited) == 2 }, "the new majority does not get it")
	c.stop(1)
	c.stop(2)
	c.outOfReach(0)
	assert.ErrorIs(t, p.wait(), ErrUnknownOutcome)
	s := c.nodes[0].Status()
	require.Equal(t, next, s.Conf)
	require.Equal(t, c.conf, s.OldConf)
	require.NoError(t, c.nodes[0].ResetPeers(next))
	s = c.nodes[0].Status()
	assert.Empty(t, s.OldConf.Peers())
	c.hurry(0)
	c.settled(next, 0, 3)
	c.confirmed(0, next)
	c.propose("two")
	for _, i := range []int{0, 3} {
		c.stop(i)
		c.start(i)
	}
	c.hurry(0)
	c.settled(next, 0, 3)
	c.propose("three") // what is in the log only is committed with it
	assert.Equal(t, []string{"one", "two", "three"}, c.sameData(0, 3))
}

// A leader that is reset stops to lead first, and says why.
func TestResetOfALeader(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.forget(0)
	c.net.set(isolate(0)) // the others are thought to be lost
	proposal := make(chan error, 1)
	c.nodes[0].Apply(Task{Data: []byte("one"), Done: func(_ any, err error) { proposal <- err }})
	c.status(0, func(s Status) bool { return s.LastIndex > s.CommitIndex }, "it is not proposed")
	require.NoError(t, c.nodes[0].ResetPeers(c.voters(0)))
	err := receive(t, proposal)
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	assert.ErrorIs(t, err, ErrReset)
	c.confirmed(0, c.voters(0))
	_, err = c.nodes[0].Propose(t.Context(), []byte("two"))
	require.NoError(t, err)
	c.eventually(func() bool { return len(c.fsms[0].seen()) == 3 }, "events are missing")
	assert.Equal(t, []string{"stop: " + ErrReset.Error(), "conf 0", "lead"}, c.fsms[0].seen())
	assert.Equal(t, []string{"one", "two"}, c.fsms[0].applied(), "it had the first, and keeps it")
}

func TestResetIsRefused(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: time.Second, CatchupTimeout: time.Hour})
	c.startAll()
	c.ready()
	n := c.nodes[0]
	assert.ErrorIs(t, n.ResetPeers(Configuration{}), ErrInvalid)
	assert.ErrorIs(t, n.ResetPeers(c.confOf(c.learner(0))), ErrInvalid)
	assert.ErrorIs(t, n.ResetPeers(c.voters(1)), ErrInvalid, "it could not lead that")
	assert.ErrorIs(t, n.ResetPeers(c.confOf(c.learner(0), c.peer(1))), ErrInvalid)
	p := c.add(0, 1)
	c.inStage(0, StageCatchingUp)
	assert.ErrorIs(t, n.ResetPeers(c.voters(0, 1)), ErrBusy)
	assert.True(t, p.open())
	require.NoError(t, n.CancelChange())
	assert.False(t, n.Status().Overridden)
	assert.Equal(t, RoleLeader, n.Status().Role)
	assert.ErrorIs(t, p.wait(), ErrCanceled)
}

// Nothing is answered before it is durable.
func TestResetOnABrokenDisk(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{ElectionTimeout: time.Second})
	c.startLed()
	c.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			return syscall.EIO
		}
		return nil
	})
	err := c.nodes[0].ResetPeers(c.confOf(c.peer(0), c.learner(0).withIndex(1)))
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	c.status(0, func(s Status) bool { return s.Role == RoleFailed }, "it does not fail")
	assert.ErrorIs(t, c.nodes[0].ResetPeers(c.conf), ErrNodeFailed)
	c.disks[0].SetInjector(nil)
}

// withIndex is another replica of the same process.
func (p PeerID) withIndex(i int) PeerID { p.Index = i; return p }

// A node may be reset while it loads a snapshot whose leader is gone for good. What it was reset to stays in force, whatever configuration
// is in the snapshot.
func TestAResetWhileASnapshotIsLoadedStaysInForce(t *testing.T) {
	t.Parallel()
	c, release := laggard(t)
	defer release()
	c.stop(0)
	c.stop(1)
	n := c.nodes[2]
	require.NoError(t, n.ResetPeers(c.voters(2)))
	assert.Equal(t, c.voters(2), n.Status().Conf)
	release()
	s := c.confirmed(2, c.voters(2))
	assert.Equal(t, c.voters(2), s.Conf)
	assert.Positive(t, s.Snapshot.Index)
	c.propose("on its own")
	assert.Len(t, c.sameData(2), 11)
	c.stop(2)
	c.start(2)
	c.propose("again")
	assert.Len(t, c.sameData(2), 12)
	assert.Equal(t, c.voters(2), c.nodes[2].Status().Conf)
}
