package graft

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
)

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
