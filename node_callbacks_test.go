package graft

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// stackOf keeps the stack on which a callback ran.
type stackOf struct {
	ran   atomic.Int32
	stack atomic.Pointer[string]
}

func (s *stackOf) done(error) {
	text := string(debug.Stack())
	s.stack.Store(&text)
	s.ran.Add(1)
}

// notIn holds that the callback did not run within a call of one of the node's methods.
func (s *stackOf) notIn(t *testing.T, method string) {
	t.Helper()
	require.NotContains(t, *s.stack.Load(), "(*Node)."+method+"(")
}

// A3: whoever calls Apply may hold a lock, since it does not block. An idle node takes its step on his goroutine; but if that ends
// somebody else's change, whose callback wants the same lock, it must not run there.
func TestTheCallbackOfAChangeDoesNotRunInApply(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{})
	c.startAll()
	n := c.nodes[c.ready()]
	for range 20 {
		var s stackOf
		n.Change(c.voters(0, 1), ChangeOptions{Deadline: 5 * time.Millisecond}, s.done) // host 1 does not run
		c.eventually(func() bool {
			for range 1000 {
				n.Apply(Task{})
			}
			return s.ran.Load() > 0
		}, "the change does not end")
		s.notIn(t, "Apply")
	}
}

// A3: nor do the callbacks of reads that wait.
func TestTheCallbackOfAReadDoesNotRunInApply(t *testing.T) {
	c := newGroup(t, 1, 1, NodeOptions{})
	c.startAll()
	n := c.nodes[c.ready()]
	for range 100 {
		var s stackOf
		_, err := n.reads.add(read{done: func(_ int64, err error) { s.done(err) }}) // its node will be woken in a moment
		require.NoError(t, err)
		n.Apply(Task{})
		c.eventually(func() bool { n.Apply(Task{}); return s.ran.Load() > 0 }, "the read is not answered")
		s.notIn(t, "Apply")
	}
}

// A3: a caller that may hold a lock is not called back before his call returns, unless the method says so; not after the end of the
// node either.
func TestChangesOfANodeThatHasEndedAreRefusedElsewhere(t *testing.T) {
	c := newGroup(t, 1, 1, NodeOptions{})
	c.startAll()
	n := c.nodes[0]
	c.stop(0)
	for name, call := range map[string]func(done Closure){
		"AddPeer":  func(done Closure) { n.AddPeer(c.peer(0), done) },
		"Change":   func(done Closure) { n.Change(c.conf, ChangeOptions{}, done) },
		"Snapshot": func(done Closure) { n.Snapshot(done) },
		"Shutdown": func(done Closure) { n.Shutdown(done) },
	} {
		var s stackOf
		call(s.done)
		c.eventually(func() bool { return s.ran.Load() > 0 }, name+" is not answered")
		s.notIn(t, name)
	}
}

// A2, A5: a node does not say that it has ended before it has called back everybody else.
func TestANodeHasEndedWhenEverybodyWasCalledBack(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	a := s.change("add", func(n *Node, done Closure) { n.AddPeer(fourth, done) })
	read := s.call("read")
	s.loyal = false
	s.node.ReadIndexAsync(func(_ int64, err error) { read.closed(err) })
	s.pass(10 * time.Millisecond)
	over := s.call("shutdown")
	over.then = func() {
		assert.Equal(t, 1, a.times, a.what)
		assert.Equal(t, 1, read.times, read.what)
	}
	s.node.Shutdown(over.closed)
	s.end()
	assert.Error(t, a.err)
}

// So it is however long a callback takes.
func TestANodeWaitsForItsCallbacksToEnd(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: patient, CatchupTimeout: time.Hour})
	c.net.set(isolate(3))
	c.startLed()
	held := newHoldup(t)
	c.nodes[0].AddPeer(c.peer(3), func(error) { held.pass() })
	c.status(0, func(s Status) bool { return s.Stage == StageCatchingUp }, "the change does not begin")
	ended := make(chan error, 1)
	c.nodes[0].Shutdown(func(err error) { ended <- err })
	held.reached()
	c.never(50*ms, func() bool { return len(ended) > 0 }, "it has ended while it calls somebody back")
	held.release()
	require.NoError(t, receive(t, ended))
}

// What was given to Propose is its caller's again when that returns, also if it returns before the node has looked at it: whoever uses
// the memory again changes no entry.
func TestWhoseTimeIsUpMayChangeWhatWasProposed(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.startLed()
	n, busy, held := c.nodes[0], make(chan struct{}), make(chan struct{})
	n.post(func() { close(busy); <-held })
	receive(t, busy)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	data := []byte("before")
	_, err := n.Propose(ctx, data)
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	copy(data, "after!")
	close(held)
	c.propose("next")
	assert.Equal(t, []string{"before", "next"}, c.sameData(0))
}
