package graft

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// slack is what a busy machine may take on top of a bound.
const slack = 15 * time.Second

// failsToCatchUp checks that a change failed because of a peer, and what that left.
func (c *cluster) failsToCatchUp(err error, lead, peer int, before Status) *Error {
	c.t.Helper()
	var e *Error
	require.ErrorAs(c.t, err, &e)
	assert.Equal(c.t, ErrCatchup, e.Code, err)
	assert.True(c.t, e.Peer.Same(c.peer(peer)), err)
	assert.Equal(c.t, "g", e.Group)
	after := c.nodes[lead].Status()
	assert.Equal(c.t, before.Conf, after.Conf)
	assert.Equal(c.t, before.LastIndex, after.LastIndex, "nothing was appended")
	assert.Equal(c.t, StageNone, after.Stage)
	assert.Nil(c.t, after.Change)
	for _, f := range after.Followers {
		assert.False(c.t, f.Peer.Same(c.peer(peer)), "it is left alone")
	}
	return e
}

// joins has a host's node add a peer, once more if a busy machine kept it from catching up in time.
func (c *cluster) joins(i, peer int) {
	c.t.Helper()
	c.eventually(func() bool { return c.add(i, peer).wait() == nil }, "it does not join")
}

// follower is what a node's status says of a peer.
func (s Status) follower(p PeerID) (FollowerStatus, bool) {
	for _, f := range s.Followers {
		if f.Peer.Same(p) {
			return f, true
		}
	}
	return FollowerStatus{}, false
}

// braft: JoinNode. Q7 and Q9: a peer that cannot be reached fails the change in time, and blocks nothing.
func TestAPeerThatDoesNotRunFailsTheChange(t *testing.T) {
	t.Parallel()
	const timeout = 400 * ms
	c := newGroup(t, 1, 3, NodeOptions{ElectionTimeout: patient, CatchupTimeout: timeout})
	c.startAll()
	c.ready()
	c.propose("one")
	before, began := c.nodes[0].Status(), time.Now()
	err := c.add(0, 1).wait()
	took := time.Since(began)
	e := c.failsToCatchUp(err, 0, 1, before)
	assert.ErrorIs(t, err, ErrUnreachable, "the cause")
	assert.Equal(t, before.LastIndex, e.Lag)
	assert.GreaterOrEqual(t, took, timeout)
	assert.Less(t, took, timeout+slack)

	c.start(2)
	c.joins(0, 2) // another change is not held up
	c.start(1)
	c.joins(0, 1) // nor is the peer once it runs
	last := c.nodes[0].Status().LastIndex
	require.NoError(t, c.add(0, 1).wait())
	assert.Equal(t, last, c.nodes[0].Status().LastIndex, "again: nothing to do")
	assert.Equal(t, []string{"one"}, c.sameData(0, 1, 2))
}

// H-07: a slow peer is not given up while it gets on, and status shows how it does.
func TestASlowPeerIsNotGivenUp(t *testing.T) {
	t.Parallel()
	var err error
	for range 5 { // in a stall nobody gets on
		if err = catchUpSlowly(t); err == nil {
			return
		}
		require.ErrorIs(t, err, ErrCatchup)
	}
	require.NoError(t, err)
}

// catchUpSlowly has a peer take much longer than it may without progress to join a new group. It returns why it did not join.
func catchUpSlowly(t *testing.T) error {
	const timeout = 1000 * ms
	c := newGroup(t, 1, 2, NodeOptions{
		ElectionTimeout: patient, CatchupTimeout: timeout,
		CatchupMargin: 1, MaxInflightRequests: 1, MaxAppendBytes: 1 << 10,
	})
	c.startGroup()
	for i := range 40 {
		c.propose(fmt.Sprint(i, strings.Repeat("x", 500)))
	}
	c.net.set(slowEntries(1, 100*ms))
	began := time.Now()
	p := c.add(0, 1)
	var f FollowerStatus
	c.eventually(func() bool {
		f, _ = c.nodes[0].Status().follower(c.peer(1))
		return f.CatchingUp && f.Rate > 0 && f.Lag > 1 || !p.open()
	}, "status does not show that it gets on")
	if err := p.wait(); err != nil {
		return err
	}
	assert.Greater(t, time.Since(began), 2*timeout, "it was not slow enough")
	assert.True(t, f.CatchingUp && f.Rate > 0, "status does not show that it gets on")
	assert.Positive(t, f.Remaining)
	assert.Less(t, f.Lag, int64(41))
	f, _ = c.nodes[0].Status().follower(c.peer(1))
	assert.False(t, f.CatchingUp)
	assert.Len(t, c.sameData(0, 1), 40)
	return nil
}

// M14, H-07: to answer is no progress.
func TestAPeerThatAnswersAndTakesNothingIsGivenUp(t *testing.T) {
	t.Parallel()
	const timeout time.Duration = 300 * ms
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient, CatchupTimeout: timeout, CatchupMargin: 1})
	c.startGroup()
	for i := range 10 {
		c.propose(fmt.Sprint(i))
	}
	c.net.set(noEntries(1))
	var began time.Time
	var err error
	c.eventually(func() bool { // in a stall it may not have answered either
		before := c.nodes[0].Status()
		began = time.Now()
		err = c.add(0, 1).wait()
		c.failsToCatchUp(err, 0, 1, before)
		return !errors.Is(err, ErrUnreachable)
	}, "it does not answer")
	assert.ErrorIs(t, err, ErrTimeout)
	assert.ErrorContains(t, err, "no progress for "+timeout.String())
	assert.Less(t, time.Since(began), timeout+slack)
	c.net.set()
	c.joins(0, 1)
}

// Q9: a new peer in its error state.
func TestAPeerThatHasFailedIsGivenUp(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient, CatchupTimeout: 600 * ms, CatchupMargin: 1})
	c.startGroup()
	c.propose("one")
	c.disks[1].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			return syscall.EIO
		}
		return nil
	})
	before := c.nodes[0].Status()
	p := c.add(0, 1)
	c.status(0, func(s Status) bool {
		if !p.open() { // it was over before anybody looked
			p = c.add(0, 1)
		}
		f, _ := s.follower(c.peer(1))
		return f.Err != nil && strings.Contains(f.Err.Error(), "not active: failed")
	}, "status does not say why it takes nothing")
	c.failsToCatchUp(p.wait(), 0, 1, before)
	c.disks[1].SetInjector(nil)
	c.wipe(1)
	c.start(1)
	c.joins(0, 1)
}

// Q12, b#204: a change can be called off until it is in the log.
func TestAChangeIsCalledOffInTime(t *testing.T) {
	c := newGroup(t, 1, 3, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startAll()
	c.ready()
	n, before := c.nodes[0], c.nodes[0].Status()
	assert.ErrorIs(t, n.CancelChange(), ErrNotFound, "nothing to call off")
	p := c.add(0, 1)
	c.status(0, func(s Status) bool { _, ok := s.follower(c.peer(1)); return ok }, "it is not sent anything")
	require.NoError(t, n.CancelChange())
	assert.ErrorIs(t, p.wait(), ErrCanceled)
	after := n.Status()
	assert.Equal(t, before.Conf, after.Conf)
	assert.Equal(t, before.LastIndex, after.LastIndex)
	assert.Equal(t, StageNone, after.Stage)
	assert.Empty(t, after.Followers, "the peer is left alone")
	assert.ErrorIs(t, n.CancelChange(), ErrNotFound, "it is over")
	c.start(2)
	assert.NoError(t, c.add(0, 2).wait())
}

// Reports about an earlier change do not count for a later one (H-07's ABA).
func TestCanceledAndBegunAgain(t *testing.T) {
	c := newGroup(t, 1, 3, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startAll()
	c.ready()
	c.start(1)
	for range 20 {
		p := c.change(0, c.voters(0, 1, 2)) // 2 does not run, 1 catches up at once
		c.eventually(func() bool { return c.nodes[0].Status().Stage == StageCatchingUp || !p.open() }, "it does not begin")
		require.NoError(t, c.nodes[0].CancelChange())
		require.ErrorIs(t, p.wait(), ErrCanceled)
	}
	p := c.change(0, c.voters(0, 1, 2))
	c.start(2)
	assert.NoError(t, p.wait())
	assert.Len(t, confsLogged(c.nodes[0]), 3, "the leader's first, the joint one and the new one")
}

// Q9, ts#3014: ChangeOptions.Deadline bounds what CatchupTimeout does not.
func TestTheDeadlineEndsACatchUp(t *testing.T) {
	t.Parallel()
	const deadline = 300 * ms
	c := newGroup(t, 1, 3, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startAll()
	c.ready()
	before, began := c.nodes[0].Status(), time.Now()
	err := c.begin(0, "add 1", func(n *Node, done Closure) {
		n.Change(c.voters(0, 1), ChangeOptions{Deadline: deadline}, done)
	}).wait()
	took := time.Since(began)
	assert.ErrorIs(t, err, ErrTimeout)
	assert.ErrorContains(t, err, deadline.String())
	assert.GreaterOrEqual(t, took, deadline)
	assert.Less(t, took, deadline+slack)
	after := c.nodes[0].Status()
	assert.Equal(t, before.Conf, after.Conf)
	assert.Equal(t, before.LastIndex, after.LastIndex)
	c.start(2)
	assert.NoError(t, c.add(0, 2).wait())
}

// Q7: leadership that is lost while new peers catch up ends the change, and nobody takes it up.
func TestAChangeThatIsNotInTheLogDiesWithItsLeadership(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startAll()
	lead := c.ready()
	p := c.add(lead, 3)
	c.status(lead, func(s Status) bool { return s.Stage == StageCatchingUp }, "the change has not begun")
	c.cutOff(lead)
	err := p.wait()
	assert.ErrorIs(t, err, ErrNotLeader)
	assert.ErrorIs(t, err, ErrQuorumLost, "why it leads no more")
	assert.Equal(t, StageNone, c.nodes[lead].Status().Stage)
	c.net.set()
	c.hurry((lead + 1) % 3)
	c.propose("after")
	next := c.ready()
	for _, e := range confsLogged(c.nodes[next]) {
		assert.Equal(t, c.conf, e.conf)
	}
	c.start(3)
	c.changeTo(c.voters(0, 1, 2, 3))
}

// Q4, M12, H-14: a replica of another group under the same name is refused, and loses nothing.
func TestAPeerWithAnotherGroupsDataIsRefused(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startAll()
	lead := c.ready()
	c.propose("ours")
	c.startWith(3, c.voters(3))
	c.eventually(c.nodes[3].IsLeader, "the other group has no leader")
	for _, data := range []string{"theirs", "too"} {
		_, err := c.nodes[3].Propose(t.Context(), []byte(data))
		require.NoError(t, err)
	}
	before, other := c.nodes[lead].Status(), c.nodes[3].Status()
	err := c.add(lead, 3).wait() // at once: waiting does not mend that
	c.failsToCatchUp(err, lead, 3, before)
	assert.ErrorIs(t, err, ErrGroupMismatch)
	after := c.nodes[3].Status()
	assert.Equal(t, RoleLeader, after.Role)
	assert.Equal(t, other.Term, after.Term)
	assert.Equal(t, []string{"theirs", "too"}, c.fsms[3].applied())
	_, err = c.nodes[3].Propose(t.Context(), []byte("and more"))
	assert.NoError(t, err)
	_, err = c.nodes[lead].Propose(t.Context(), []byte("also here"))
	assert.NoError(t, err)
}

// H-65: the same address comes and goes, with its data, without, and as a new process.
func TestOneAddressIsAddedAndRemovedTwentyTimes(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	lead := c.startGroup()
	for round := range 20 {
		c.propose(fmt.Sprint(round))
		require.NoError(t, c.add(lead, 3).wait(), "round %d", round)
		require.NoError(t, c.remove(lead, 3).wait(), "round %d", round)
		switch round % 4 {
		case 1:
			c.wipe(3)
			c.start(3)
		case 3:
			c.stop(3)
			c.start(3)
		}
	}
	assert.Equal(t, c.conf, c.nodes[lead].Status().Conf)
	require.NoError(t, c.add(lead, 3).wait())
	assert.Len(t, c.sameData(lead, 3), 20)
}

// A peer that was a member before lacks nothing, and nothing new is proposed that it could acknowledge.
func TestAPeerThatHasTheWholeLogIsAddedToAnIdleGroup(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient, CatchupMargin: 1})
	c.startLed()
	for i := range 10 {
		c.propose(fmt.Sprint(i))
	}
	require.NoError(t, c.add(0, 1).wait())
	require.NoError(t, c.remove(0, 1).wait())
	c.status(0, func(s Status) bool { return len(s.Followers) == 0 }, "it is not let go")
	require.Equal(t, c.nodes[0].Status().LastIndex, c.nodes[1].Status().LastIndex)
	require.NoError(t, c.add(0, 1).wait())
	c.status(0, func(s Status) bool { f, ok := s.follower(c.peer(1)); return ok && f.Lag == 0 }, "it lags")
}
