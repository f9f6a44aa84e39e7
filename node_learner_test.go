package graft

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// addLearner begins to add a learner on a host's node, or to make a voter one.
func (c *cluster) addLearner(i, peer int) *pending {
	return c.begin(i, fmt.Sprint("learner ", peer), func(n *Node, done Closure) { n.AddLearner(c.peer(peer), done) })
}

// jraft: SingleNodeWithLearner, ReadIndexFromLearner.
func TestALearnerAppliesAndServesReads(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.propose("before")
	require.NoError(t, c.addLearner(0, 1).wait())
	for i := range 20 {
		data := fmt.Sprint(i)
		c.propose(data)
		c.read(1)
		entries := c.fsms[1].applied()
		require.Equal(t, data, entries[len(entries)-1], "a read on the learner sees what was acknowledged")
	}
	s := c.status(1, func(s Status) bool { return s.Leader.Same(c.peer(0)) }, "it does not know the leader")
	assert.Equal(t, RoleFollower, s.Role)
	assert.False(t, s.Removed)
	assert.Equal(t, []PeerID{c.learner(1)}, s.Conf.Learners())
	_, err := c.nodes[1].Propose(t.Context(), []byte("x"))
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, ErrNotLeader, e.Code)
	assert.True(t, e.Peer.Same(c.peer(0)))
	f, ok := c.nodes[0].Status().follower(c.peer(1))
	assert.True(t, ok)
	assert.Equal(t, Learner, f.Peer.Role)
}

// jraft: TripleNodesWithStaticLearners.
func TestAGroupMayStartWithLearners(t *testing.T) {
	c := newGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	c.conf = c.confOf(c.peer(0), c.peer(1), c.learner(2))
	c.startAll()
	assert.NotEqual(t, 2, c.ready())
	c.propose("one")
	c.read(2)
	assert.Equal(t, []string{"one"}, c.fsms[2].applied())
}

// M15: a learner does not campaign, not even when all voters are gone, nor after a restart.
func TestALearnerNeverLeads(t *testing.T) {
	t.Parallel()
	const timeout = 200 * ms
	c := newGroup(t, 2, 3, NodeOptions{ElectionTimeout: timeout})
	c.startGroup()
	c.changeTo(c.confOf(c.peer(0), c.peer(1), c.learner(2)))
	c.status(2, func(s Status) bool {
		return len(s.Conf.Learners()) == 1 && s.CommitIndex >= s.ConfIndex && !s.Waiting
	}, "it is not brought up to date")
	var asked atomic.Int64
	c.net.set(votesAsked(2, &asked))
	c.stop(0)
	c.stop(1)
	for range 2 {
		c.never(5*timeout, func() bool { return asked.Load() > 0 || c.nodes[2].Status().Role != RoleFollower }, "it campaigns")
		c.stop(2)
		c.start(2)
	}
	c.start(0)
	c.start(1)
	assert.NotEqual(t, 2, c.ready())
	c.propose("they are back")
	c.sameData(0, 1, 2)
}

// M15: two voters and two learners are a group of two.
func TestALearnerCountsInNoQuorum(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 2, 4, NodeOptions{ElectionTimeout: patient})
	c.startGroup()
	c.changeTo(c.confOf(c.peer(0), c.peer(1), c.learner(2), c.learner(3)))
	c.propose("before")
	lead := c.ready()
	c.stop(1 - lead)
	n := c.nodes[lead]
	last := n.Status().LastIndex + 1
	proposal := c.begin(lead, "it may yet be", func(n *Node, done Closure) {
		n.Apply(Task{Data: []byte("it may yet be"), Done: func(_ any, err error) { done(err) }})
	})
	for _, i := range []int{2, 3} {
		c.status(i, func(s Status) bool { return s.DurableIndex >= last }, "learners do not get it")
	}
	c.eventually(func() bool {
		n.post(func() { // the other voter has not answered for long; the learners have
			if r := n.replicators[c.peer(1-lead)]; r != nil {
				r.lastAnswer.Store(-int64(time.Hour))
			}
			n.quorumAt = n.now
		})
		return !n.IsLeader()
	}, "learners keep a leader in office")
	err := proposal.wait()
	assert.ErrorIs(t, err, ErrUnknownOutcome, "learners do not commit it")
	assert.ErrorIs(t, err, ErrQuorumLost, "nor do they keep a leader in office")
	for range 3 {
		c.timeOut(lead)
		c.never(200*ms, n.IsLeader, "they do not elect one")
	}
	_, err = c.nodes[2].ReadIndex(t.Context())
	assert.Error(t, err, "nor do they confirm a read")
	c.start(1 - lead)
	c.campaign(lead)
	c.propose("after")
	c.sameData(0, 1, 2, 3)
}

func TestRemoveLearnerRemovesLearnersOnly(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	lead := c.startGroup()
	remove := func(peer int) error {
		return c.begin(lead, "remove learner", func(n *Node, done Closure) { n.RemoveLearner(c.peer(peer), done) }).wait()
	}
	require.NoError(t, c.addLearner(lead, 3).wait())
	require.NoError(t, c.addLearner(lead, 4).wait())
	for i := range 3 {
		err := remove(i)
		assert.ErrorIs(t, err, ErrInvalid)
		assert.ErrorContains(t, err, "RemovePeer", "it says what to use")
	}
	assert.NoError(t, remove(3))
	assert.NoError(t, remove(3), "it is no member any more")
	c.status(3, func(s Status) bool { return s.Removed }, "it does not know")
	assert.NoError(t, c.remove(lead, 4).wait(), "RemovePeer removes either")
	c.status(4, func(s Status) bool { return s.Removed }, "it does not know")
	assert.Equal(t, c.conf, c.nodes[lead].Status().Conf)
}

// H-63: a change of the role is a change.
func TestALearnerIsPromotedAndDemoted(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	for round := range 5 {
		require.NoError(t, c.addLearner(0, 1).wait())
		require.Len(t, c.nodes[0].Status().Conf.Voters(), 1)
		c.stop(1)
		c.propose(fmt.Sprint(round)) // it does not count
		c.start(1)
		require.NoError(t, c.add(0, 1).wait())
		require.Len(t, c.nodes[0].Status().Conf.Voters(), 2)
		c.propose(fmt.Sprint(round, " again"))
	}
	assert.Equal(t, []string{"0,1l", "0,1", "0,1l", "0,1"}, lastOf(4, c.logged(0)))
	assert.Len(t, c.sameData(0, 1), 10)
	c.handTo(1) // it is a voter in earnest
}

// M22: a dead learner is not promoted.
func TestADeadLearnerIsNotPromoted(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: 500 * ms, CatchupTimeout: 300 * ms})
	c.startLed()
	c.eventually(func() bool { return c.addLearner(0, 1).wait() == nil }, "it does not join")
	c.stop(1)
	before := c.nodes[0].Status()
	err := c.add(0, 1).wait()
	assert.ErrorIs(t, err, ErrCatchup)
	assert.ErrorIs(t, err, ErrUnreachable)
	after := c.nodes[0].Status()
	assert.Equal(t, before.Conf, after.Conf)
	assert.Equal(t, before.LastIndex, after.LastIndex)
	c.propose("it goes on")
	c.start(1)
	c.read(1) // it is still a learner, and is still sent the log
	assert.Equal(t, []string{"it goes on"}, c.fsms[1].applied())
}

// A leader that is made a learner hands over, and follows as a learner.
func TestALeaderThatIsDemotedHandsOver(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.forget(0)
	var asked atomic.Int32
	c.net.set(counting(methodPreVote, &asked))
	require.NoError(t, c.addLearner(0, 0).wait())
	conf := c.confOf(c.learner(0), c.peer(1), c.peer(2))
	c.settled(conf, 0, 1, 2)
	assert.Zero(t, asked.Load(), "nobody has waited for an election timeout")
	c.eventually(func() bool { return c.fsms[0].lastStop() != nil }, "it does not stop")
	assert.Equal(t, []string{"conf 0l,1,2", "done: learner 0", "stop: " + ErrLeaderRemoved.Error()}, c.fsms[0].seen()[:3])
	c.propose("after")
	c.read(0)
	assert.Equal(t, []string{"after"}, c.fsms[0].applied())
	assert.False(t, c.nodes[0].Status().Removed, "it is a member")
	c.changeTo(c.conf)
	c.handTo(0)
}

// Demotions and promotions of several at once are joint; learners come and go along with them.
func TestRolesAndMembersChangeTogether(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	require.NoError(t, c.addLearner(0, 3).wait())
	next := c.confOf(c.peer(0), c.learner(1), c.learner(2), c.peer(3), c.peer(4))
	require.NoError(t, c.change(0, next).wait())
	assert.Equal(t, []string{"0,1l,2l,3,4 (0,1,2,3l)", "0,1l,2l,3,4"}, lastOf(2, c.logged(0)))
	c.propose("one")
	c.stop(1)
	c.stop(2)
	c.propose("without the learners")
	c.sameData(0, 3, 4)
}

// A member that this leader has never heard may be a braft peer, which could not start again with a learner in its log.
func TestNoFirstLearnerWhileAMemberIsUnknown(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.stop(2)
	c.handTo(1)
	n := c.nodes[1]
	c.eventually(func() bool { // the new leader hears the other one soon
		n.post(func() { n.ledAt = n.now.Add(-patient) }) // nor does it wait for long
		err := c.addLearner(1, 3).wait()
		require.ErrorIs(t, err, ErrUnreachable)
		return strings.Contains(err.Error(), c.peer(2).String())
	}, "it does not say whom to wait for or to remove")
	require.NoError(t, c.remove(1, 2).wait())
	require.NoError(t, c.addLearner(1, 3).wait())
	c.start(2)
	c.status(2, func(s Status) bool { return s.Removed }, "it does not know")
}

// Who leads since a moment ago waits for the first answers of all members instead of refusing the learner.
func TestAFreshLeaderAsksWhetherMembersKnowLearners(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(func(m *message) fate {
		if m.answer && m.to == 2 && m.method == methodAppendEntries {
			return fate{delay: 300 * ms}
		}
		return fate{}
	})
	c.handTo(1)
	require.NoError(t, c.addLearner(1, 3).wait())
}
