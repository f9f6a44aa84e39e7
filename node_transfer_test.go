package graft

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// transferred waits until a host leads in the term after the given one.
func (c *cluster) transferred(to int, term int64) {
	c.t.Helper()
	c.eventually(func() bool { return c.nodes[to].IsLeader() }, "the transfer has come to nothing")
	require.Equal(c.t, term+1, c.nodes[to].Status().Term, "one election")
}

// braft: leader_transfer.
func TestLeadershipIsTransferred(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	var asked atomic.Int32
	c.net.set(counting(methodPreVote, &asked))
	for round := range 6 {
		from, to := round%3, (round+1)%3
		term := c.nodes[from].Status().Term
		require.NoError(t, c.nodes[from].TransferLeadership(c.peer(to)))
		c.transferred(to, term)
		assert.Zero(t, asked.Load(), "nobody has waited for an election timeout")
		c.eventually(func() bool { return c.fsms[from].lastStop() != nil }, "no OnLeaderStop")
		assert.ErrorIs(t, c.fsms[from].lastStop(), ErrTransferring)
		c.propose(fmt.Sprint(round))
		c.ready()
		c.eventually(c.nodes[to].hasAll, "not all answer")
	}
	assert.Len(t, c.sameData(0, 1, 2), 6)
	for i := range 3 { // c.stop checks that they alternate
		events := c.fsms[i].seen()
		assert.Contains(t, events, "stop: "+ErrTransferring.Error(), "host %d: %v", i, events)
	}
}

// braft: on_start_following_and_on_stop_following. A follower is told of each leader once, through transfer, removal and loss; the
// recorder checks that starts and stops are paired.
func TestFollowersAreToldWhomTheyFollow(t *testing.T) {
	c := newTestCluster(t, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.eventually(func() bool { return slices.Equal(lastOf(1, c.fsms[3].leaders()), []PeerID{c.peer(0)}) }, "it does not follow")
	before := len(c.fsms[3].leaders())
	require.NoError(t, c.nodes[0].TransferLeadership(c.peer(1)))
	c.eventually(c.nodes[1].IsLeader, "no transfer")
	c.ready()
	c.eventually(c.nodes[1].hasAll, "not all answer")
	require.NoError(t, c.remove(1, 1).wait())
	next := c.settled(c.voters(0, 2, 3), 0, 2, 3)
	if next == 3 {
		assert.Equal(t, []PeerID{c.peer(1)}, c.fsms[3].leaders()[before:])
		return
	}
	want := []PeerID{c.peer(1), c.peer(next)}
	c.eventually(func() bool { return len(c.fsms[3].leaders()) == before+2 }, "it does not follow the successor")
	assert.Equal(t, want, c.fsms[3].leaders()[before:])
	assert.Contains(t, c.fsms[0].leaders(), c.peer(1), "who led before follows")
}

func TestTransferToNobodyInParticularChoosesTheBest(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	for _, best := range []int{1, 2} {
		t.Run(fmt.Sprint(best), func(t *testing.T) {
			c := newTestCluster(t, 3, c.opts)
			c.startLed()
			c.net.set(noEntries(3 - best))
			c.propose("the other one does not have it")
			term := c.nodes[0].Status().Term
			require.NoError(t, c.nodes[0].TransferLeadership(PeerID{}))
			c.transferred(best, term)
		})
	}
}

func TestTransferIsRefusedWhereItMakesNoSense(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	require.NoError(t, c.addLearner(0, 3).wait())
	n, term := c.nodes[0], c.nodes[0].Status().Term
	transfer := func(to PeerID) error {
		err := n.TransferLeadership(to)
		assert.True(t, n.Status().Transferring.IsZero(), "%v", to)
		return err
	}
	assert.NoError(t, transfer(c.peer(0)), "to itself")
	assert.ErrorIs(t, transfer(c.peer(4)), ErrInvalid, "no member")
	assert.ErrorIs(t, transfer(c.peer(3)), ErrInvalid, "a learner")
	assert.ErrorContains(t, transfer(c.learner(3)), "learner")
	c.stop(2)
	c.status(0, func(s Status) bool { f, _ := s.follower(c.peer(2)); return f.Failures > 0 }, "it is not missed")
	err := transfer(c.peer(2))
	assert.ErrorIs(t, err, ErrUnreachable)
	assert.ErrorContains(t, err, c.peer(2).String())
	c.propose("it leads on")
	assert.Equal(t, term, n.Status().Term)
	assert.NotContains(t, c.fsms[0].seen(), "stop: "+ErrTransferring.Error())

	// braft: leader_transfer_before_log_is_compleleted.
	c.start(2)
	c.eventually(func() bool { return n.TransferLeadership(c.peer(2)) == nil }, "it is not handed over when it is back")
	c.transferred(2, term)
}

func TestALoneLeaderHasNobodyToTransferTo(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	require.NoError(t, c.addLearner(0, 1).wait())
	assert.ErrorIs(t, c.nodes[0].TransferLeadership(PeerID{}), ErrUnreachable)
	assert.NoError(t, c.nodes[0].TransferLeadership(c.peer(0)))
}

// b#422, b#443: proposals would wait for a peer that lags far behind.
func TestTransferToAPeerFarBehindIsRefused(t *testing.T) {
	const margin = 10
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient, CatchupMargin: margin})
	c.startLed()
	c.net.set(noEntries(2))
	for i := range margin + 5 {
		c.propose(fmt.Sprint(i))
	}
	err := c.nodes[0].TransferLeadership(c.peer(2))
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, ErrCatchup, e.Code)
	assert.GreaterOrEqual(t, e.Lag, int64(margin+5))
	assert.True(t, e.Peer.Same(c.peer(2)))
	c.propose("it leads on")
}

// One that lags a little is waited for; proposals wait elsewhere, so that the log does not grow meanwhile.
func TestTransferWaitsForTheLogAndRefusesProposals(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(slowEntries(1, 300*ms))
	n, term := c.nodes[0], c.nodes[0].Status().Term
	c.propose("2 has it, and 1 has not said so")
	require.NoError(t, n.TransferLeadership(c.peer(1)))
	s := n.Status()
	assert.True(t, s.Transferring.Same(c.peer(1)))
	assert.Equal(t, RoleLeader, s.Role)
	_, err := n.Propose(t.Context(), []byte("refused"))
	assert.ErrorIs(t, err, ErrBusy, "certain: it may be proposed elsewhere")
	assert.ErrorContains(t, err, c.peer(1).String())
	assert.ErrorIs(t, c.add(0, 3).wait(), ErrBusy)
	c.transferred(1, term)
	_, err = c.nodes[1].Propose(t.Context(), []byte("accepted"))
	assert.NoError(t, err)
	c.eventually(func() bool { return n.Status().Transferring.IsZero() }, "who stepped down still transfers")
	assert.Equal(t, []string{"2 has it, and 1 has not said so", "accepted"}, c.sameData(1, 0, 2))
}

// braft: leader_transfer_resume_on_failure. The peer is cut off after the transfer has begun; no flag is left.
func TestATransferThatComesToNothingLeavesNoTrace(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		cut  rule
	}{
		{"before it has the log", noEntries(1)},
		{"before it is told", noCall(methodTimeoutNow)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
			c.startLed()
			c.forget(0)
			c.net.set(test.cut)
			c.propose("one")
			n := c.nodes[0]
			term := n.Status().Term
			require.NoError(t, n.TransferLeadership(c.peer(1)))
			_, err := n.Propose(t.Context(), []byte("x"))
			require.ErrorIs(t, err, ErrBusy)
			left := make(chan time.Duration, 1)
			n.post(func() {
				left <- n.transfer.until.Sub(n.now)
				n.transfer.until = n.now
			})
			rest := receive(t, left) // of an election timeout
			assert.Positive(t, rest)
			assert.LessOrEqual(t, rest, patient)
			s := c.status(0, func(s Status) bool { return s.Transferring.IsZero() }, "it does not end")
			assert.Equal(t, RoleLeader, s.Role)
			assert.Equal(t, term, s.Term)
			_, err = n.Propose(t.Context(), []byte("two"))
			assert.NoError(t, err, "it has its control back")
			assert.Empty(t, c.fsms[0].seen(), "it never stopped to lead")
			c.net.set()
			c.ports[0].giveUp() // so that what was lost is sent again
			c.eventually(func() bool {
				lead := c.leader()
				return lead == 1 || c.nodes[lead].TransferLeadership(c.peer(1)) != nil && c.nodes[1].IsLeader()
			}, "a second transfer does not succeed")
			assert.Equal(t, []string{"one", "two"}, c.sameData(1, 0, 2))
		})
	}
}

// A peer that campaigns and cannot be elected costs the group an election, and no more.
func TestATransferToAPeerThatCannotBeElected(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 400 * ms})
	c.startLed()
	c.propose("one")
	c.net.set(func(m *message) fate { return fate{lost: m.from == 1 && m.method == methodRequestVote} })
	require.NoError(t, c.nodes[0].TransferLeadership(c.peer(1)))
	c.eventually(func() bool { return c.fsms[0].lastStop() != nil }, "it does not hand over")
	assert.ErrorIs(t, c.fsms[0].lastStop(), ErrTransferring)
	c.propose("two")
	assert.NotEqual(t, 1, c.ready())
	c.net.set()
	assert.Equal(t, []string{"one", "two"}, c.sameData(0, 1, 2))
}

// OnLeaderStop says that what was committed before has been applied, however slow the state machine is.
func TestOnLeaderStopFollowsWhatWasCommitted(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	held := newHoldup(t)
	c.onApply = func(host int, data string) {
		if host != 0 {
			return
		}
		if data == "slow" {
			held.pass()
		}
		c.fsms[0].note("applied " + data)
	}
	c.startLed()
	c.forget(0)
	before := c.nodes[0].Status().CommitIndex
	for _, data := range []string{"slow", "a", "b"} {
		c.nodes[0].Apply(Task{Data: []byte(data)})
		held.reached() // a and b are not committed yet when the state machine begins with what is
	}
	c.status(0, func(s Status) bool { return s.CommitIndex >= before+3 }, "the entries are not committed")
	require.NoError(t, c.nodes[0].TransferLeadership(c.peer(1)))
	c.status(0, func(s Status) bool { return s.Role == RoleFollower }, "it leads on")
	held.release()
	c.eventually(func() bool { return c.fsms[0].lastStop() != nil }, "no OnLeaderStop")
	assert.Equal(t, []string{"applied slow", "applied a", "applied b", "stop: " + ErrTransferring.Error()}, c.fsms[0].seen()[:4])
}
