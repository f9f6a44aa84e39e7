package graft

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
)

// lost loses a host's requests of a method to another one.
func lost(from, to int, method string) rule {
	return func(m *message) fate {
		return fate{lost: !m.answer && m.from == from && m.to == to && m.method == method}
	}
}

// H-03: what a replica asked before it heard its first leader gives it no right to campaign later. While it cannot hear the leader
// it asks, is refused by those who can, and raises no term.
func TestVotesOfAFirstStartAreVoidOnceThereIsALeader(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	var asked, elections atomic.Int64
	watch := []rule{calls(2, &asked, methodPreVote), calls(2, &elections, methodRequestVote)}
	// Host 2 gets one vote of two, which would do, and no answer from host 1.
	c.net.set(append(watch, lost(2, 1, methodPreVote))...)
	c.start(2)
	c.start(0)
	for range 2 {
		before := asked.Load()
		c.timeOut(2)
		c.eventually(func() bool { return asked.Load() >= before+2 }, "it does not ask")
	}
	c.start(1)
	c.hurry(0)
	c.ready()
	c.status(2, func(s Status) bool { return !s.Waiting && !s.Leader.IsZero() }, "it does not hear of the leader")
	c.handTo(0)
	c.status(2, func(s Status) bool { return s.Leader.Same(c.peer(0)) }, "it does not follow")
	elections.Store(0)
	asked.Store(0)
	term := c.nodes[0].Status().Term
	c.net.set(append(watch, oneWay(0, 2))...)
	n := c.nodes[2]
	n.post(func() { n.startedAt = n.now.Add(-patient) }) // so it may have waited for those who do not answer
	for range 2 {                                        // election timeouts
		before := asked.Load()
		c.timeOut(2)
		c.eventually(func() bool { return asked.Load() >= before+2 }, "it does not miss the leader")
	}
	c.never(50*ms, func() bool { return elections.Load() > 0 }, "it campaigns without having been allowed to")
	s := c.nodes[0].Status()
	assert.Equal(t, term, s.Term)
	assert.Equal(t, RoleLeader, s.Role)
}
