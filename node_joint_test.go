package graft

import (
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// logged names the configuration entries in a host's log, as in "0,1,2", or "0,3 (0,1,2)" for a joint one.
func (c *cluster) logged(i int) (names []string) {
	for _, e := range confsLogged(c.nodes[i]) {
		name := c.name(e.conf)
		if e.joint() {
			name += " (" + c.name(e.old) + ")"
		}
		names = append(names, name)
	}
	return names
}

// reported names what OnConfigurationCommitted was given on a host.
func (c *cluster) reported(i int) (names []string) {
	for _, conf := range c.fsms[i].committedConfs() {
		names = append(names, c.name(conf))
	}
	return names
}

// inStage waits until a change is in a stage on a host.
func (c *cluster) inStage(i int, stage Stage) Status {
	c.t.Helper()
	return c.status(i, func(s Status) bool { return s.Stage == stage }, "not in stage "+stage.String())
}

// overdue has the deadline of the change on a host pass.
func (c *cluster) overdue(i int) {
	n := c.nodes[i]
	n.post(func() { n.change.deadline = n.now })
}

// settled waits until the hosts have a configuration and a leader among them is at rest.
func (c *cluster) settled(conf Configuration, hosts ...int) (lead int) {
	c.t.Helper()
	c.eventually(func() bool {
		lead = -1
		for _, i := range hosts {
			s := c.nodes[i].Status()
			if !s.Conf.Equal(conf) || !s.OldConf.Empty() {
				return false
			}
			if s.Role == RoleLeader && s.Stage == StageNone {
				lead = i
			}
		}
		return lead >= 0
	}, "it does not come to "+c.name(conf))
	return lead
}

// M4, M17: several voters at once go through one joint configuration, which no callback ever sees.
func TestSeveralVotersChangeThroughAJointConfiguration(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.propose("before")
	require.NoError(t, c.change(0, c.voters(0, 3, 4)).wait())
	c.propose("after")
	c.settled(c.voters(0, 3, 4), 0, 3, 4)
	assert.Equal(t, []string{"before", "after"}, c.sameData(0, 3, 4))
	want := []string{"0,3,4 (0,1,2)", "0,3,4"}
	for _, i := range []int{0, 3, 4} {
		assert.Equal(t, want, lastOf(2, c.logged(i)), "host %d", i)
	}
	for i := range 5 {
		c.status(i, func(s Status) bool { return s.CommitIndex >= s.ConfIndex && s.OldConf.Empty() }, "it does not hear of the end")
		c.eventually(func() bool { return slices.Contains(c.reported(i), "0,3,4") }, "it is not told")
		for _, conf := range c.reported(i) {
			assert.Contains(t, []string{"0,1,2", "0,3,4"}, conf, "host %d", i)
		}
	}
	for _, i := range []int{1, 2} {
		c.status(i, func(s Status) bool { return s.Removed }, "a removed member does not say so")
	}
	c.status(0, func(s Status) bool { return len(s.Followers) == 2 }, "removed members are not let go")
}

func lastOf[T any](n int, s []T) []T { return s[max(len(s)-n, 0):] }

// One voter goes straight to the new configuration, as in braft (H-62); learners never make a change joint.
func TestOneVoterNeedsNoJointConfiguration(t *testing.T) {
	for _, always := range []bool{false, true} {
		c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient, AlwaysJoint: always})
		c.startLed()
		last := len(c.logged(0))
		joint := func(name string) (names []string) {
			if always {
				return []string{name}
			}
			return nil
		}
		require.NoError(t, c.change(0, c.confOf(c.peer(0), c.peer(1), c.peer(2), c.learner(3), c.learner(4))).wait())
		require.NoError(t, c.change(0, c.confOf(c.peer(0), c.peer(1), c.peer(2), c.peer(3))).wait())
		require.NoError(t, c.change(0, c.voters(0, 1, 2)).wait())
		var want []string
		want = append(want, "0,1,2,3l,4l")
		want = append(want, joint("0,1,2,3 (0,1,2,3l,4l)")...)
		want = append(want, "0,1,2,3")
		want = append(want, joint("0,1,2 (0,1,2,3)")...)
		want = append(want, "0,1,2")
		assert.Equal(t, want, c.logged(0)[last:])
	}
}

// H-61, and the deadline of a change that is in the log: the new majority is cut off between the append of the joint
// configuration and its commit.
func TestAJointConfigurationWaitsAndSaysForWhom(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	n, old, next := c.nodes[0], c.conf, c.voters(0, 3, 4)
	c.net.set(atOnce(noConf(isJoint, 3, 4)))
	p := c.begin(0, "change", func(n *Node, done Closure) { n.Change(next, ChangeOptions{Deadline: time.Minute}, done) })
	s := c.status(0, func(s Status) bool { return s.Stage == StageJoint && len(s.Awaited) == 2 }, "it does not wait")
	assert.Equal(t, c.voters(3, 4).Peers(), s.Awaited)
	assert.Equal(t, next, s.Conf, "in force from its append")
	assert.Equal(t, old, s.OldConf)
	require.NotNil(t, s.Change)
	assert.Equal(t, old, s.Change.From)
	assert.Equal(t, next, s.Change.To)
	assert.ErrorIs(t, n.CancelChange(), ErrBusy, "nobody can take it back")
	busy := c.add(0, 1).wait()
	assert.ErrorIs(t, busy, ErrBusy)
	assert.ErrorContains(t, busy, "joint")
	proposal := make(chan error, 1)
	n.Apply(Task{Data: []byte("waits"), Done: func(_ any, err error) { proposal <- err }})

	c.overdue(0)
	err := p.wait()
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, ErrUnknownOutcome, e.Code)
	assert.ErrorIs(t, err, ErrTimeout)
	assert.Equal(t, s.ConfIndex, e.Index, "it says which entry to look for")
	s = n.Status()
	assert.Equal(t, StageJoint, s.Stage, "it goes on")
	assert.Nil(t, s.Change)
	assert.Empty(t, proposal, "nothing commits without both majorities")
	assert.Equal(t, RoleLeader, s.Role)
	assert.ErrorContains(t, c.add(0, 1).wait(), "being finished")

	c.net.set()
	c.settled(next, 0, 3, 4)
	assert.NoError(t, receive(t, proposal))
	assert.Equal(t, []string{"0,3,4 (0,1,2)", "0,3,4"}, lastOf(2, c.logged(0)), "each entry once (M4)")
	assert.NotContains(t, c.fsms[0].seen(), "done: change", "the callback had its outcome")
}

// A change that is in the log cannot be called off, whether somebody still waits for it or not.
func TestCancelChangeOfAChangeThatIsBeingFinished(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(noConf(isJoint, 3, 4))
	p := c.begin(0, "change", func(n *Node, done Closure) {
		n.Change(c.voters(0, 3, 4), ChangeOptions{Deadline: time.Minute}, done)
	})
	c.inStage(0, StageJoint)
	c.overdue(0)
	assert.ErrorIs(t, p.wait(), ErrUnknownOutcome, "past its deadline nobody waits for it any more")
	assert.Equal(t, StageJoint, c.nodes[0].Status().Stage)
	assert.ErrorIs(t, c.nodes[0].CancelChange(), ErrBusy)
}

// Q7, Q10, M5: the next leader finishes a joint change that it finds in its log, and nobody need ask it to.
func TestTheNextLeaderFinishesAJointChange(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	next := c.voters(0, 3, 4)
	c.net.set(atOnce(noConf(isJoint, 3, 4)))
	p := c.change(0, next)
	c.status(0, func(s Status) bool { return s.Stage == StageJoint && len(s.Awaited) == 2 }, "the old majority does not get it")
	c.cutOff(0)
	c.hurry(1)
	err := p.wait()
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	assert.ErrorIs(t, err, ErrNotLeader, "the cause")
	c.settled(next, 3, 4)
	c.net.set()
	c.settled(next, 0, 3, 4)
	c.propose("after")
	c.sameData(0, 3, 4)
	for _, i := range []int{1, 2} {
		assert.True(t, within(20*time.Second, 100*ms, func() bool {
			c.timeOut(i) // who has not heard of it asks
			s := c.nodes[i].Status()
			return s.Removed && s.Role == RoleFollower
		}), "a removed member does not know")
	}
}

// Q7, Q10: a joint configuration that reached nobody is undone by the next leader.
func TestAJointChangeThatNobodyHasIsUndone(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(atOnce(noConf(isJoint, 1, 2, 3, 4)))
	p := c.change(0, c.voters(0, 3, 4))
	c.inStage(0, StageJoint)
	c.cutOff(0)
	c.hurry(1)
	assert.ErrorIs(t, p.wait(), ErrUnknownOutcome)
	assert.Equal(t, "0,3,4", c.name(c.nodes[0].Status().Conf), "it is still in its log")
	c.eventually(func() bool { return c.nodes[1].IsLeader() || c.nodes[2].IsLeader() }, "the others have no leader")
	c.net.set()
	c.settled(c.conf, 0, 1, 2)
	for i := range 5 {
		assert.NotContains(t, c.reported(i), "0,3,4", "host %d", i)
	}
	c.changeTo(c.voters(0, 3, 4)) // it can be done again
}

// M6, M19: a group that was stopped in the middle of a joint change finishes it when it is back.
func TestAJointChangeOutlivesARestartOfAll(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(noConf(isJoint, 3, 4))
	p := c.change(0, c.voters(0, 3, 4))
	c.status(0, func(s Status) bool { return s.Stage == StageJoint && len(s.Awaited) == 2 }, "the old majority does not get it")
	for i := range 5 {
		c.stop(i)
	}
	assert.ErrorIs(t, p.wait(), ErrUnknownOutcome)
	c.net.set()
	c.opts.ElectionTimeout = 400 * ms // what follows is right whoever leads
	for i := range 5 {
		c.start(i)
	}
	c.settled(c.voters(0, 3, 4), 0, 3, 4)
}

// E9, Q2: votes count in both halves of a joint configuration, not in their union.
func TestAnElectionInAJointConfigurationNeedsBothMajorities(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	next := c.voters(0, 3, 4)
	isNext := func(e confEntry) bool { return !e.joint() && e.conf.Equal(next) }
	c.net.set(atOnce(noConf(isJoint, 1, 2)))
	p := c.change(0, next)
	for _, i := range []int{3, 4} {
		c.status(i, func(s Status) bool { return !s.OldConf.Empty() }, "the joint configuration is not there")
	}
	c.net.set(atOnce(noConf(isJoint, 1)), noConf(isNext, 2, 3, 4)) // a majority of the old voters stores the joint one
	c.inStage(0, StageStable)
	c.status(2, func(s Status) bool { return !s.OldConf.Empty() }, "the joint configuration was committed without it")
	c.stop(1)
	c.stop(0)
	assert.ErrorIs(t, p.wait(), ErrUnknownOutcome)
	var asked atomic.Int64 // only now: until it has stopped the leader sends the new configuration again
	c.net.set(votesAsked(2, &asked), votesAsked(3, &asked), votesAsked(4, &asked))
	elected := func() bool { // 2, 3 and 4 are most of the five, and a majority of the new voters
		return slices.ContainsFunc(c.running(), func(i int) bool { return c.nodes[i].IsLeader() })
	}
	for range 5 {
		before := asked.Load()
		c.timeOut(2, 3, 4)
		c.eventually(func() bool { return asked.Load() >= before+3*4 }, "they do not ask the four others")
		c.never(50*ms, elected, "elected without a majority of the old voters")
	}
	c.start(1)
	c.hurry(3)
	c.settled(next, 3, 4)
}

// H-61, and braft's change_peers_steps_down_in_joint_consensus: a configuration whose majority is dead is refused at once, and
// the group works on.
func TestADeadNewMajorityIsRefused(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 4, 4, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startLed()
	c.stop(3)
	c.status(0, func(s Status) bool { f, _ := s.follower(c.peer(3)); return f.Failures > 0 }, "it is not missed")
	n := c.nodes[0]
	n.post(func() { // as if that were long ago, and its leadership older
		n.replicators[c.peer(3).ID()].lastAnswer.Store(-int64(time.Hour))
		n.ledAt = n.now.Add(-time.Hour)
	})
	c.status(0, func(s Status) bool {
		up, _ := s.follower(c.peer(2))
		f, _ := s.follower(c.peer(3))
		return f.Silent > patient && up.Silent < patient/2
	}, "its silence does not show")
	before, began := c.nodes[0].Status(), time.Now()
	err := c.change(0, c.voters(2, 3)).wait()
	assert.Less(t, time.Since(began), slack)
	assert.ErrorIs(t, err, ErrUnreachable)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.True(t, e.Peer.Same(c.peer(3)), err)
	after := c.nodes[0].Status()
	assert.Equal(t, before.Conf, after.Conf)
	assert.Equal(t, before.LastIndex, after.LastIndex)
	assert.Equal(t, before.Term, after.Term)
	assert.Equal(t, StageNone, after.Stage)
	c.propose("writes go on")
	c.start(3)
	c.status(0, func(s Status) bool { f, _ := s.follower(c.peer(3)); return f.Silent < patient/2 }, "it is not heard again")
	assert.NoError(t, c.change(0, c.voters(2, 3)).wait())
	c.settled(c.voters(2, 3), 2, 3)
}

// So it is refused if a peer that had caught up long ago takes nothing any more when the last one has: heartbeats, which it answers, are not
// enough to commit anything.
func TestANewMajorityThatTakesNothingAnyMoreIsRefused(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient, CatchupTimeout: 4 * time.Second, CatchupMargin: 1})
	c.startLed()
	c.proposeMany("a", 5)
	c.net.set(noEntries(4))
	change := c.change(0, c.voters(3, 4))
	c.status(0, func(s Status) bool {
		f, ok := s.follower(c.peer(3))
		return ok && f.Match == s.LastIndex && !f.CatchingUp
	}, "the first does not catch up")
	c.net.set(noEntries(3, 4))
	c.proposeMany("b", 5)
	n := c.nodes[0]
	n.post(func() { n.replicators[c.peer(3).ID()].grownAt.Store(-int64(time.Hour)) }) // as if that were long ago
	c.net.set(noEntries(3))
	err := change.wait()
	assert.ErrorIs(t, err, ErrCatchup)
	assert.ErrorContains(t, err, "takes entries")
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.True(t, e.Peer.Same(c.peer(3)), err)
	assert.EqualValues(t, 5, e.Lag, err)
	assert.Equal(t, StageNone, n.Status().Stage)
	assert.Equal(t, "0,1,2", c.name(n.Status().Conf))
	c.propose("writes go on")
	c.net.set()
	c.eventually(func() bool { return c.change(0, c.voters(3, 4)).wait() == nil }, "they do not join")
	c.settled(c.voters(3, 4), 3, 4)
}

// An old voter counts as little as a new one if it takes nothing, for its disk is full or it installs a snapshot: the group can do
// without it as it is, and could not once another is removed. The error names it, and not one that is only silent.
func TestAVoterThatTakesNothingIsNotReliedOn(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 5, 5, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Second, CatchupMargin: 1})
	c.startLed()
	c.propose("a")
	c.eventually(c.nodes[0].hasAll, "not all have it")
	c.stop(1)
	c.net.set(noEntries(4))
	c.proposeMany("b", 5)
	n := c.nodes[0]
	n.post(func() { // as if all that were long ago
		n.replicators[c.peer(1).ID()].lastAnswer.Store(-int64(time.Hour))
		n.replicators[c.peer(4).ID()].grownAt.Store(-int64(time.Hour))
		n.ledAt = n.now.Add(-time.Hour)
	})
	err := c.change(0, c.voters(0, 1, 2, 4)).wait()
	assert.ErrorIs(t, err, ErrCatchup)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.True(t, e.Peer.Same(c.peer(4)), err)
	assert.EqualValues(t, 5, e.Lag, err)
	c.propose("writes go on")
	require.NoError(t, c.change(0, c.voters(0, 1, 2, 3)).wait(), "it can be removed itself")
	c.net.set()
	c.start(1)
	c.settled(c.voters(0, 1, 2, 3), 0, 1, 2, 3)
	c.propose("after")
	c.sameData(0, 1, 2, 3)
}

// The same, but the new majority dies after the joint configuration is in the log: the leader steps down, and
// the change is finished without a client when they are back.
func TestADeadNewMajorityEndsALeadershipInAJointConfiguration(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 4, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(noConf(isJoint, 2, 3))
	p := c.change(0, c.voters(2, 3))
	c.inStage(0, StageJoint)
	c.stop(2)
	c.stop(3)
	c.outOfReach(0)
	err := p.wait()
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	assert.ErrorIs(t, err, ErrQuorumLost)
	c.net.set()
	c.start(2)
	c.start(3)
	c.hurry(0) // it has the joint configuration
	c.settled(c.voters(2, 3), 2, 3)
	c.propose("after")
	c.sameData(2, 3)
}

// H-08: stages advance when entries are committed. A slow state machine delays only what it is told.
func TestASlowStateMachineHoldsUpNoChange(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	held := newHoldup(t)
	c.onApply = func(host int, data string) {
		if host == 0 && data == "slow" {
			held.pass()
		}
	}
	c.startLed()
	c.forget(0)
	c.nodes[0].Apply(Task{Data: []byte("slow")})
	held.reached()
	assert.ErrorIs(t, c.change(0, Configuration{}).wait(), ErrInvalid, "what has not happened is told at once")
	first := c.add(0, 3)
	c.status(0, func(s Status) bool { return s.Stage == StageNone && s.Conf.Equal(c.voters(0, 1, 2, 3)) }, "the change waits for the state machine")
	second := c.add(0, 4)
	s := c.status(0, func(s Status) bool { return s.Stage == StageNone && s.Conf.Len() == 5 }, "the second change waits for it")
	assert.GreaterOrEqual(t, s.CommitIndex, s.ConfIndex)
	assert.Less(t, s.AppliedIndex, s.ConfIndex)
	assert.Len(t, c.fsms[0].seen(), 1, "what has happened is told in log order")
	assert.True(t, first.open() && second.open())
	held.release()
	require.NoError(t, first.wait())
	require.NoError(t, second.wait())
	assert.Equal(t, []string{"conf 0,1,2,3", "done: add 3", "conf 0,1,2,3,4", "done: add 4"}, c.fsms[0].seen()[1:])
}

// Q7: a leader that is closed ends the change on it once, and says what that means.
func TestClosingInEachStageAnswersOnce(t *testing.T) {
	adds3 := func(e confEntry) bool { return e.conf.Len() == 4 }
	for _, test := range []struct {
		stage   Stage
		network rule
		to      []int
		certain bool // that nothing has happened
	}{
		{StageCatchingUp, isolate(3), []int{0, 1, 2, 3}, true},
		{StageJoint, noConf(isJoint, 1, 2), []int{0, 3, 4}, false},
		{StageStable, noConf(adds3, 1, 2), []int{0, 1, 2, 3}, false},
	} {
		t.Run(test.stage.String(), func(t *testing.T) {
			c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
			c.startLed()
			c.net.set(test.network)
			p := c.change(0, c.voters(test.to...))
			c.inStage(0, test.stage)
			require.NoError(t, c.hosts[0].Close())
			err := p.wait()
			assert.ErrorIs(t, err, ErrShutdown)
			if test.certain {
				assert.ErrorIs(t, err, ErrNotLeader)
				assert.NotErrorIs(t, err, ErrUnknownOutcome)
			} else {
				assert.ErrorIs(t, err, ErrUnknownOutcome)
			}
		})
	}
}

// Q7: a leader whose disk fails ends the change on it; the others lead on.
func TestALeaderWhoseDiskFailsEndsTheChange(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		stage   Stage
		network rule
		outcome Code
	}{
		{StageCatchingUp, isolate(3), ErrNotLeader},
		{StageJoint, noConf(isJoint, 1, 2, 3, 4), ErrUnknownOutcome},
	} {
		t.Run(test.stage.String(), func(t *testing.T) {
			c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
			c.startLed()
			c.net.set(test.network)
			p := c.change(0, c.voters(0, 3, 4))
			c.inStage(0, test.stage)
			c.disks[0].SetInjector(func(op vfs.Op) error {
				if op.Kind == vfs.KindSync {
					return syscall.EIO
				}
				return nil
			})
			c.nodes[0].Apply(Task{Data: []byte("it notices")})
			err := p.wait()
			assert.Equal(t, test.outcome, ErrorCode(err), err)
			assert.ErrorIs(t, err, ErrIO, "why")
			c.status(0, func(s Status) bool { return s.Role == RoleFailed }, "it has not failed")
			c.net.set()
			c.missed(0)
			c.hurry(1)
			c.eventually(func() bool { return c.nodes[1].IsLeader() || c.nodes[2].IsLeader() }, "the others have no leader")
			c.settled(c.conf, 1, 2)
			c.changeTo(c.voters(1, 2, 3))
			c.disks[0].SetInjector(nil)
		})
	}
}

// Whenever the leader is closed, each callback runs once; the cluster checks that in the end.
func TestCloseAtAnyMomentOfAChange(t *testing.T) {
	t.Parallel()
	for i := range 20 {
		c := newGroup(t, 1, 3, NodeOptions{ElectionTimeout: 200 * ms})
		c.startLed()
		deadline := time.Now().Add(time.Duration(i) * time.Millisecond)
		for k := 0; time.Now().Before(deadline); k++ {
			conf := c.voters(0, 1, 2)
			if k%2 == 1 {
				conf = c.voters(0)
			}
			p := c.change(0, conf)
			extra := c.begin(0, fmt.Sprint("learner ", k), func(n *Node, done Closure) { n.AddLearner(c.peer(1), done) })
			c.eventually(func() bool { return !p.open() && !extra.open() || time.Now().After(deadline) }, "no outcome")
		}
		c.close()
	}
}
