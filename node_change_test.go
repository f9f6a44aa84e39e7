package graft

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// anyConf and isJoint are kinds of configuration entries.
func anyConf(confEntry) bool   { return true }
func isJoint(e confEntry) bool { return e.joint() }

// changeCalls are all ways to ask for a change that concerns a host.
func (c *cluster) changeCalls(peer int) map[string]func(n *Node, done Closure) {
	return map[string]func(n *Node, done Closure){
		"AddPeer":       func(n *Node, done Closure) { n.AddPeer(c.peer(peer), done) },
		"RemovePeer":    func(n *Node, done Closure) { n.RemovePeer(c.peer(peer), done) },
		"AddLearner":    func(n *Node, done Closure) { n.AddLearner(c.peer(peer), done) },
		"RemoveLearner": func(n *Node, done Closure) { n.RemoveLearner(c.peer(peer), done) },
		"ChangePeers":   func(n *Node, done Closure) { n.ChangePeers(c.voters(peer), done) },
		"Change":        func(n *Node, done Closure) { n.Change(c.voters(peer), ChangeOptions{Deadline: time.Hour}, done) },
		"CancelChange":  func(n *Node, done Closure) { done(n.CancelChange()) },
		"Transfer":      func(n *Node, done Closure) { done(n.TransferLeadership(c.peer(peer))) },
	}
}

// Q7, the rows of the call itself.
func TestAFollowerNamesTheLeaderToAsk(t *testing.T) {
	t.Parallel()
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.status(1, func(s Status) bool { return s.Leader.Same(c.peer(0)) }, "the follower does not know the leader")
	for name, call := range c.changeCalls(3) {
		err := c.begin(1, name, call).wait()
		var e *Error
		require.ErrorAs(t, err, &e, name)
		assert.Equal(t, ErrNotLeader, e.Code, name)
		assert.True(t, e.Peer.Same(c.peer(0)), "%s: %v", name, err)
	}
	// NoLeader of braft's tests: nobody knows of one.
	c.net.set(isolate(1))
	c.status(1, func(s Status) bool {
		c.timeOut(1)
		return s.Leader.IsZero()
	}, "it does not notice")
	err := c.add(1, 3).wait()
	assert.ErrorIs(t, err, ErrNotLeader)
	assert.ErrorContains(t, err, "no leader is known")
}

func TestAChangeIsRefusedAfterShutdown(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.startLed()
	require.NoError(t, c.hosts[0].Close())
	for name, call := range c.changeCalls(0) {
		assert.ErrorIs(t, c.begin(0, name, call).wait(), ErrShutdown, name)
	}
	assert.ErrorIs(t, c.nodes[0].ResetPeers(c.conf), ErrShutdown)
}

// Q8: a second change while one is under way is refused, not queued.
func TestBusySaysThatNewPeersAreCatchingUp(t *testing.T) {
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.startAll()
	lead := c.ready()
	n := c.nodes[lead]
	first := c.add(lead, 3) // which does not run
	c.status(lead, func(s Status) bool { return s.Stage == StageCatchingUp }, "the change has not begun")
	second := c.add(lead, 4).wait()
	for _, err := range []error{second, n.TransferLeadership(PeerID{}), n.ResetPeers(c.voters(lead))} {
		assert.ErrorIs(t, err, ErrBusy)
		assert.ErrorContains(t, err, c.conf.String())
		assert.ErrorContains(t, err, c.voters(0, 1, 2, 3).String())
		assert.ErrorContains(t, err, "catching-up")
	}
	s := n.Status()
	require.NotNil(t, s.Change)
	assert.Equal(t, c.conf, s.Change.From)
	assert.Equal(t, c.voters(0, 1, 2, 3), s.Change.To)
	assert.Equal(t, c.conf, s.Conf, "nothing is in force before it is in the log")
	assert.True(t, first.open())
	c.propose("proposals go on")
	require.NoError(t, n.CancelChange())
	assert.ErrorIs(t, first.wait(), ErrCanceled)
}

func TestBusySaysThatLeadershipIsBeingTransferred(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.net.set(noCall(methodTimeoutNow))
	require.NoError(t, c.nodes[0].TransferLeadership(c.peer(1)))
	for _, err := range []error{c.add(0, 3).wait(), c.nodes[0].TransferLeadership(c.peer(2))} {
		assert.ErrorIs(t, err, ErrBusy)
		assert.ErrorContains(t, err, "transferred to "+c.peer(1).String())
	}
}

// H-10, M1: no change begins before an entry of the leader's own term is committed.
func TestBusySaysThatTheFirstEntryIsNotCommitted(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.net.set(atOnce(noConf(anyConf, 0, 1, 2)))
	for i := range 4 {
		c.start(i)
	}
	c.hurry(0)
	lead := c.leader()
	n := c.nodes[lead]
	s := c.status(lead, func(s Status) bool { return s.Stage == StageStable }, "the configuration is not restated")
	assert.Nil(t, s.Change)
	for _, err := range []error{c.add(lead, 3).wait(), n.TransferLeadership(PeerID{})} {
		assert.ErrorIs(t, err, ErrBusy)
		assert.ErrorContains(t, err, "first entry is not committed")
	}
	assert.Len(t, confsLogged(n), 1)
	c.net.set()
	lead = c.ready()
	assert.NoError(t, c.add(lead, 3).wait())
}

// Q8, H-60: what is so already succeeds at once, and nothing is appended.
func TestWhatIsInForceAlreadySucceedsWithoutAnEntry(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	c.startAll()
	lead := c.ready()
	n := c.nodes[lead]
	before := n.Status()
	for what, call := range map[string]func(n *Node, done Closure){
		"add a member":         func(n *Node, done Closure) { n.AddPeer(c.peer(1), done) },
		"remove a stranger":    func(n *Node, done Closure) { n.RemovePeer(c.peer(3), done) },
		"remove no learner":    func(n *Node, done Closure) { n.RemoveLearner(c.peer(3), done) },
		"the same":             func(n *Node, done Closure) { n.ChangePeers(c.conf, done) },
		"the same, in reverse": func(n *Node, done Closure) { n.ChangePeers(c.voters(2, 1, 0), done) },
		"the same, as expected": func(n *Node, done Closure) {
			n.Change(c.conf, ChangeOptions{Expected: c.conf, Deadline: time.Nanosecond}, done)
		},
	} {
		assert.NoError(t, c.begin(lead, what, call).wait(), what)
	}
	n.AddPeer(c.peer(1), nil) // nobody need wait
	after := n.Status()
	assert.Equal(t, before.LastIndex, after.LastIndex)
	assert.Equal(t, before.ConfIndex, after.ConfIndex)
	assert.Equal(t, StageNone, after.Stage)
}

// H-09: a configuration without voters would end the group.
func TestAConfigurationWithoutVotersIsRefused(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	n := c.nodes[0]
	last := n.Status().LastIndex
	for what, call := range map[string]func(n *Node, done Closure){
		"empty":              func(n *Node, done Closure) { n.ChangePeers(Configuration{}, done) },
		"learners only":      func(n *Node, done Closure) { n.ChangePeers(c.confOf(c.learner(0), c.learner(1)), done) },
		"last voter removed": func(n *Node, done Closure) { n.RemovePeer(c.peer(0), done) },
		"last voter demoted": func(n *Node, done Closure) { n.AddLearner(c.peer(0), done) },
		"no such peer":       func(n *Node, done Closure) { n.AddPeer(PeerID{}, done) },
		"no port":            func(n *Node, done Closure) { n.AddPeer(PeerID{Address: "127.0.0.1"}, done) },
		"no such role":       func(n *Node, done Closure) { n.AddPeer(PeerID{Address: c.addrs[1], Role: 7}, done) },
		"negative deadline": func(n *Node, done Closure) {
			n.Change(c.voters(0, 1), ChangeOptions{Deadline: -1}, done)
		},
		"voter is no learner": func(n *Node, done Closure) {
			n.RemoveLearner(c.peer(0), done)
		},
	} {
		assert.ErrorIs(t, c.begin(0, what, call).wait(), ErrInvalid, what)
	}
	assert.Equal(t, last, n.Status().LastIndex, "nothing was appended")
	c.propose("it leads on")
	require.NoError(t, c.begin(0, "add a learner", func(n *Node, done Closure) { n.AddLearner(c.peer(1), done) }).wait())
	assert.ErrorIs(t, c.remove(0, 0).wait(), ErrInvalid, "a learner is left, which cannot lead")
}

func TestExpectedIsComparedWithWhatIsInForce(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient})
	lead := c.startGroup()
	try := func(expected Configuration) error {
		return c.begin(lead, "change", func(n *Node, done Closure) {
			n.Change(c.voters(0, 1, 2, 3), ChangeOptions{Expected: expected}, done)
		}).wait()
	}
	last := c.nodes[lead].Status().LastIndex
	err := try(c.voters(0, 1))
	assert.ErrorIs(t, err, ErrConfMismatch)
	assert.ErrorContains(t, err, c.conf.String(), "it says what is in force")
	assert.ErrorIs(t, try(c.confOf(c.peer(0), c.peer(1), c.learner(2))), ErrConfMismatch, "roles count")
	assert.Equal(t, last, c.nodes[lead].Status().LastIndex)
	assert.NoError(t, try(c.conf))
	assert.ErrorIs(t, try(c.conf), ErrConfMismatch, "although it is what is wanted")
}

// M18, Q8: of two administrators who start from the same configuration one wins.
func TestOfTwoAdministratorsOneWins(t *testing.T) {
	c := newGroup(t, 1, 9, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	current := c.conf
	for round := range 4 {
		outcomes := make([]error, 2)
		var wg sync.WaitGroup
		for admin := range outcomes {
			wg.Go(func() {
				next := c.confOf(append(current.Peers(), c.peer(1+2*round+admin))...)
				outcomes[admin] = c.begin(0, "change", func(n *Node, done Closure) {
					n.Change(next, ChangeOptions{Expected: current}, done)
				}).wait()
			})
		}
		wg.Wait()
		won := 0
		for _, err := range outcomes {
			if err == nil {
				won++
			} else if code := ErrorCode(err); code != ErrBusy && code != ErrConfMismatch {
				t.Errorf("the loser is told %v", err)
			}
		}
		assert.Equal(t, 1, won, "%v", outcomes)
		current = c.nodes[0].Status().Conf
		assert.Equal(t, round+2, current.Len())
	}
}
