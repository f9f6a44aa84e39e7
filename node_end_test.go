package graft

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A5: a node has not ended while it tells a reader what its peers have confirmed.
func TestANodeWaitsForItsReadersToBeTold(t *testing.T) {
	c := newGroup(t, 3, 3, NodeOptions{ElectionTimeout: 10 * time.Second})
	c.startLed()
	c.propose("a")
	n, held, ended := c.nodes[0], newHoldup(t), make(chan error, 1)
	n.ReadIndexAsync(func(int64, error) { held.pass() })
	held.reached()
	n.Shutdown(func(err error) { ended <- err })
	c.never(50*ms, func() bool { return len(ended) > 0 }, "it has ended while it calls somebody back")
	held.release()
	require.NoError(t, receive(t, ended))
}

// A5: who joins a node may end the process, so everybody who asked for the end has been told of it by then.
func TestJoinWaitsForWhoIsToldOfTheEnd(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.startLed()
	n, held, joined := c.nodes[0], newHoldup(t), make(chan int32, 1)
	var told atomic.Int32
	n.Shutdown(func(error) { held.pass(); told.Add(1) })
	n.Shutdown(func(error) { told.Add(1) })
	go func() {
		n.Join()
		joined <- told.Load()
	}()
	held.reached()
	c.never(50*ms, func() bool { return len(joined) > 0 }, "it is joined while it calls somebody back")
	held.release()
	assert.EqualValues(t, 2, receive(t, joined))
}

// A5: nor while a callback calls back others in turn, as when readers that wait for what will not come are told.
func TestANodeWaitsForReadersWhoseEntriesDoNotCome(t *testing.T) {
	c := newGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.propose("a")
	c.sameData(0, 1, 2)
	c.net.set(noEntries(1))
	c.propose("b")
	n, held, ended := c.nodes[1], newHoldup(t), make(chan bool, 1)
	var told atomic.Bool
	n.ReadIndexAsync(func(int64, error) { told.Store(true) })
	c.eventually(func() bool {
		n.fsm.mu.Lock()
		defer n.fsm.mu.Unlock()
		return len(n.fsm.waiters) > 0
	}, "it does not wait")
	n.aside(held.pass)
	held.reached()
	n.Shutdown(func(error) { ended <- told.Load() })
	c.never(50*ms, func() bool { return len(ended) > 0 }, "it has ended while it calls somebody back")
	held.release()
	assert.True(t, receive(t, ended), "the reader is told behind the end")
}

// A5: nor while it tells those who waited for its state machine, which was busy when the node was told to end.
func TestANodeWaitsForReadersOfABusyStateMachine(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	busy, held := newHoldup(t), newHoldup(t)
	c.fsms[0].onApply = func(string) { busy.pass() }
	n, ended, told := c.nodes[0], make(chan error, 1), make(chan error, 1)
	n.Apply(Task{Data: []byte("a")})
	busy.reached()
	n.Apply(Task{Data: []byte("b")})
	c.status(0, func(s Status) bool { return s.CommitIndex == s.AppliedIndex+2 }, "b is not committed")
	n.ReadIndexAsync(func(_ int64, err error) { held.pass(); told <- err })
	c.eventually(func() bool {
		n.fsm.mu.Lock()
		defer n.fsm.mu.Unlock()
		return len(n.fsm.waiters) > 0
	}, "it does not wait")
	n.Shutdown(func(err error) { ended <- err })
	c.eventually(func() bool {
		running := n.lm.pending.tryHold()
		if running {
			n.lm.pending.letGo()
		}
		return !running
	}, "it does not begin to end")
	busy.release()
	held.reached()
	c.never(50*ms, func() bool { return len(ended) > 0 }, "it has ended while it calls somebody back")
	held.release()
	assert.NoError(t, receive(t, ended))
	assert.NoError(t, receive(t, told), "what is committed is applied before the end")
}
