package graft

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// calls counts a host's requests of some methods.
func calls(by int, n *atomic.Int64, methods ...string) rule {
	return func(m *message) fate {
		if m.from == by && !m.answer && slices.Contains(methods, m.method) {
			n.Add(1)
		}
		return fate{}
	}
}

// votesAsked counts the votes that a host asks for.
func votesAsked(by int, n *atomic.Int64) rule { return calls(by, n, methodPreVote, methodRequestVote) }

// H-66, Q3, M21: a leader that is removed tells its user first, in a fixed order, and has a successor campaign at once.
func TestALeaderThatIsRemovedHandsOver(t *testing.T) {
	for _, test := range []struct {
		name string
		to   []int
	}{
		{"one voter", []int{1, 2}},
		{"two of three replaced", []int{1, 3, 4}},
		{"everybody replaced", []int{3, 4}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
			c.startLed()
			c.propose("before")
			term := c.nodes[0].Status().Term
			c.forget(0)
			conf := c.voters(test.to...)
			var asked atomic.Int32
			c.net.set(counting(methodPreVote, &asked))
			require.NoError(t, c.change(0, conf).wait())
			lead := c.settled(conf, test.to...)
			assert.Zero(t, asked.Load(), "nobody has waited for an election timeout")
			assert.Equal(t, term+1, c.nodes[lead].Status().Term, "the first election succeeds")
			c.eventually(func() bool { return c.fsms[0].lastStop() != nil }, "it does not stop")
			assert.Equal(t, []string{
				"conf " + c.name(conf), "done: change to " + c.name(conf), "stop: " + ErrLeaderRemoved.Error(),
			}, c.fsms[0].seen())
			assert.ErrorIs(t, c.fsms[0].lastStop(), ErrLeaderRemoved)
			c.status(0, func(s Status) bool { return s.Removed && s.Role == RoleFollower }, "it does not know")
			c.propose("after")
			assert.Equal(t, []string{"before", "after"}, c.sameData(test.to...))
		})
	}
}

// H-08, H-66: it waits for no callback, and what is committed is done whoever leads when the callback runs.
func TestARemovedLeaderWithASlowStateMachineLeavesAtOnce(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	held := newHoldup(t)
	c.onApply = func(host int, data string) {
		if host == 0 && data == "slow" {
			held.pass()
		}
	}
	c.startLed()
	c.forget(0)
	proposal := make(chan error, 1)
	c.nodes[0].Apply(Task{Data: []byte("slow"), Done: func(_ any, err error) { proposal <- err }})
	held.reached()
	p := c.remove(0, 0)
	c.settled(c.voters(1, 2), 1, 2)
	assert.True(t, p.open())
	assert.Empty(t, c.fsms[0].seen())
	held.release()
	assert.NoError(t, p.wait())
	assert.NoError(t, receive(t, proposal))
	c.eventually(func() bool { return len(c.fsms[0].seen()) == 3 }, "no OnLeaderStop")
	assert.Equal(t, []string{"conf 1,2", "done: remove 0", "stop: " + ErrLeaderRemoved.Error()}, c.fsms[0].seen())
}

// Everything that was proposed has an outcome, and whatever is not done was certainly not proposed.
func TestProposalsDuringTheRemovalOfTheLeader(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	const n = 500
	outcomes := make(chan error, 2*n)
	apply := func() {
		for range n {
			c.nodes[0].Apply(Task{Data: []byte("x"), Done: func(_ any, err error) { outcomes <- err }})
		}
	}
	apply()
	p := c.remove(0, 0)
	apply()
	require.NoError(t, p.wait())
	done := 0
	for range 2 * n {
		err := receive(t, outcomes)
		switch ErrorCode(err) {
		case 0:
			done++
		case ErrBusy, ErrNotLeader: // certain refusals
		default:
			t.Errorf("outcome %v", err)
		}
	}
	lead := c.settled(c.voters(1, 2), 1, 2)
	assert.Len(t, c.sameData(lead), done)
}

// H-06, Q6, braft's PreVote: a removed member is told, is silent, and raises no term; not after a restart either.
func TestARemovedMemberIsSilent(t *testing.T) {
	t.Parallel()
	const timeout = 300 * ms
	for _, absent := range []bool{false, true} {
		t.Run(fmt.Sprintf("absent=%v", absent), func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: timeout})
			c.startGroup()
			c.handTo(0)
			var asked, elections atomic.Int64
			count, raises := votesAsked(2, &asked), calls(2, &elections, methodRequestVote)
			if absent {
				var waited atomic.Bool // a leader whose configuration is without it sends to it: only for a while, so it is noted here
				leaving := func(m *message) fate {
					if m.to == 2 && m.from >= 0 && m.from < 2 && !m.answer && m.method == methodAppendEntries {
						if f, ok := c.nodes[m.from].Status().follower(c.peer(2)); ok && f.Leaving {
							waited.Store(true)
						}
					}
					return fate{}
				}
				c.net.set(leaving, isolate(2), count, raises)
				lead := -1
				c.eventually(func() bool {
					lead = c.ready()
					return c.remove(lead, 2).wait() == nil
				}, "it is not removed")
				c.status(lead, func(s Status) bool { return waited.Load() || s.Role != RoleLeader }, "it is not waited for")
				c.status(lead, func(s Status) bool { _, ok := s.follower(c.peer(2)); return !ok }, "it is waited for without end")
				c.net.set(count, raises)
			} else {
				c.net.set(count, raises)
				c.changeTo(c.voters(0, 1))
				c.status(2, func(s Status) bool { return s.Removed }, "it is not told")
				elections.Store(0) // before, it might campaign
			}
			for range 2 {
				c.status(2, func(s Status) bool { return s.Removed }, "it is not told")
				asked.Store(0)
				c.never(4*timeout, func() bool { return asked.Load() > 0 }, "it asks for votes")
				c.stop(2)
				c.start(2)
			}
			assert.Zero(t, elections.Load(), "pre-votes raise no term")
			c.changeTo(c.conf)
			c.status(2, func(s Status) bool { return !s.Removed }, "it is a member again")
		})
	}
}

// A removed member whose log begins behind a snapshot in which it is no member any more still knows that it was one, which one that is
// yet to be added was not.
func TestARemovedMemberKnowsWithoutItsLog(t *testing.T) {
	for _, margin := range []int{-1, 1000} {
		t.Run(fmt.Sprint("margin ", margin), func(t *testing.T) { removedMemberKnows(t, margin) })
	}
}

func removedMemberKnows(t *testing.T, margin int) {
	c := snapshotGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Minute, SnapshotMargin: margin})
	c.startLed()
	c.proposeMany("a", 3)
	c.changeTo(c.voters(0, 1))
	c.status(2, func(s Status) bool { return s.Removed }, "it is not told")
	conf := c.status(2, func(s Status) bool { return s.AppliedIndex == s.LastIndex }, "not all is applied").Conf
	if margin < 0 {
		c.saveAndCut(2)
		s := c.nodes[2].Status()
		assert.Equal(t, s.LastIndex+1, s.FirstIndex, "nothing is left of its log")
	} else {
		require.NoError(t, c.save(2))
	}
	for range 2 {
		s := c.status(2, func(s Status) bool { return s.Removed }, "it has forgotten")
		assert.Equal(t, conf, s.Conf)
		c.never(50*time.Millisecond, func() bool { return !c.nodes[2].Status().Removed }, "it forgets")
		c.stop(2)
		c.start(2)
	}
	c.changeTo(c.conf)
	c.status(2, func(s Status) bool { return !s.Removed }, "it is a member again")
	require.NoError(t, c.save(2))
	assert.False(t, c.nodes[2].Status().Removed)

	if margin >= 0 {
		return // a stranger gets no snapshot
	}
	lead := c.ready()
	c.saveAndCut(lead)
	c.net.set(atOnce(noEntries(3)))
	add := c.add(lead, 3)
	c.status(3, func(s Status) bool { return s.Snapshot.Index > 0 && s.Snapshot.State == SnapshotIdle }, "it gets no snapshot")
	c.never(50*time.Millisecond, func() bool { return c.nodes[3].Status().Removed }, "it is yet to be added")
	c.net.set()
	require.NoError(t, add.wait())
}

// A removed member to which the leader sends a snapshot, in place of the entries that removed it, knows too.
func TestARemovedMemberThatGetsASnapshotKnows(t *testing.T) {
	b := newInstallBed(t)
	self := b.cluster.peer(0)
	n := b.nodes[0]
	n.post(func() { // it was a member once
		n.lm.mu.Lock()
		n.lm.confs.base = confEntry{conf: b.confOf(self, b.leads)}
		n.lm.mu.Unlock()
	})
	b.serve(braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries"))
	installed(t, b.install(3, 100))
	b.status(0, func(s Status) bool { return s.Removed }, "it does not know")
	b.cluster.stop(0)
	b.cluster.startWith(0, Configuration{})
	b.status(0, func(s Status) bool { return s.Removed && s.FirstIndex == 101 }, "it has forgotten")
}

// A removed member that still gets the leader's messages says so as soon as it knows.
func TestARemovedFollowerSaysSoAtOnce(t *testing.T) {
	const timeout = 30 * time.Second
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: timeout})
	c.startLed()
	require.NoError(t, c.remove(0, 2).wait())
	began := time.Now()
	c.status(2, func(s Status) bool { return s.Conf.Equal(c.voters(0, 1)) && s.CommitIndex >= s.ConfIndex }, "it does not hear of it")
	c.status(2, func(s Status) bool { return s.Removed }, "it does not say so")
	assert.Less(t, time.Since(began), timeout/2, "it says so only when it misses the leader")
}

// A removed member that takes its time to hear of it is let go whatever else changes meanwhile.
func TestRemovedPeersAreLetGoOneAfterTheOther(t *testing.T) {
	t.Parallel()
	const timeout = 300 * ms
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: timeout})
	c.startGroup()
	c.changeTo(c.voters(0, 1, 2, 3, 4))
	c.stop(4)
	c.changeTo(c.voters(0, 1, 2, 3))
	c.changeTo(c.voters(0, 1, 2))
	began := time.Now()
	c.eventually(func() bool { return len(c.nodes[c.leader()].Status().Followers) == 2 }, "the leader still sends to removed members")
	assert.Less(t, time.Since(began), 2*timeout+slack)
}

// A removed member that was sent the next change as well, but (most of the time) not its end, knows that it is removed.
func TestARemovedMemberThatSawALaterChangeKnows(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	require.NoError(t, c.change(0, c.confOf(c.peer(0), c.peer(1), c.peer(2), c.learner(3), c.learner(4))).wait())
	c.status(3, func(s Status) bool { return s.CommitIndex >= s.ConfIndex && s.Conf.Len() == 5 }, "it is not up to date")
	c.net.set(slowEntries(3, 100*ms), noHeartbeats(3))
	require.NoError(t, c.remove(0, 3).wait())
	require.NoError(t, c.remove(0, 4).wait())
	c.status(3, func(s Status) bool { return s.Conf.Equal(c.conf) }, "it is not sent the next change")
	c.status(0, func(s Status) bool { _, ok := s.follower(c.peer(3)); return !ok }, "it is not let go")
	c.net.set()
	c.status(3, func(s Status) bool { return s.Removed }, "it does not know")
}

// braft: RemoveFollower.
func TestAFollowerIsRemovedWipedAndAddedBack(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.propose("one")
	c.wipe(2)
	require.NoError(t, c.remove(0, 2).wait())
	c.propose("two")
	c.startWith(2, Configuration{})
	c.propose("three")
	require.NoError(t, c.add(0, 2).wait())
	c.propose("four")
	assert.Equal(t, []string{"one", "two", "three", "four"}, c.sameData(0, 1, 2))
}

// braft: RemoveLeader.
func TestTheLeaderIsRemovedWipedAndAddedBack(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.propose("one")
	require.NoError(t, c.remove(0, 0).wait())
	lead := c.settled(c.voters(1, 2), 1, 2)
	c.propose("two")
	c.wipe(0)
	c.startWith(0, Configuration{})
	require.NoError(t, c.add(lead, 0).wait())
	c.propose("three")
	assert.Equal(t, []string{"one", "two", "three"}, c.sameData(0, 1, 2))
}

// braft: change_peers. A group hops from host to host; each hop replaces everybody and removes the leader.
func TestAGroupHopsOverTenHosts(t *testing.T) {
	c := newGroup(t, 1, 10, NodeOptions{ElectionTimeout: patient})
	c.startGroup()
	var want []string
	for i := range 10 {
		c.propose(fmt.Sprint(i))
		want = append(want, fmt.Sprint(i))
		if i == 9 {
			break
		}
		require.NoError(t, c.change(i, c.voters(i+1)).wait(), "hop %d", i)
		assert.Equal(t, i+1, c.settled(c.voters(i+1), i+1))
	}
	assert.Equal(t, want, c.sameData(9))
}

// braft: change_peers_add_multiple_node. M22: nobody counts who does not run.
func TestSeveralPeersAreAddedOnlyIfAllRun(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 1, 3, NodeOptions{ElectionTimeout: 500 * ms, CatchupTimeout: 400 * ms})
	c.startAll()
	c.ready()
	c.propose("one")
	before := c.nodes[0].Status()
	assert.ErrorIs(t, c.change(0, c.voters(0, 1, 2)).wait(), ErrCatchup)
	c.start(1)
	var err error
	c.eventually(func() bool {
		err = c.change(0, c.voters(0, 1, 2)).wait()
		var e *Error
		return errors.As(err, &e) && e.Peer.Same(c.peer(2))
	}, "the one that runs is in time")
	c.failsToCatchUp(err, 0, 2, before)
	assert.Empty(t, c.nodes[0].Status().Followers)
	c.start(2)
	c.eventually(func() bool { return c.change(0, c.voters(0, 1, 2)).wait() == nil }, "they do not join")
	assert.Equal(t, []string{"0,1,2 (0)", "0,1,2"}, lastOf(2, c.logged(0)))
	c.sameData(0, 1, 2)
}

// M13, Q5: changes while a member is down: it is replaced, and another one is added.
func TestADeadMemberIsReplaced(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.stop(2)
	c.propose("without it")
	require.NoError(t, c.change(0, c.voters(0, 1, 3)).wait())
	require.NoError(t, c.add(0, 4).wait())
	c.propose("after")
	c.sameData(0, 1, 3, 4)
	c.start(2)
	c.status(2, func(s Status) bool { return s.Removed }, "the dead one is not told when it is back")
}
