package main

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Read indexes are confirmed by the goroutines that read the other replicas' answers. They go on while queries take long:
// else no heartbeat's answer would be seen, and the leader would step down.
func TestQueriesDoNotHoldUpTheGroup(t *testing.T) {
	g := newTestGroup(t, 3, 0)
	for i := range g.cfgs {
		g.cfgs[i].electionTimeout = 2 * time.Second
		g.start(i)
	}
	leader := g.replicas[g.waitLeader()]
	var clients []*rawConn
	for range 10 {
		clients = append(clients, dialRaw(t, leader.cfg.redis))
	}
	require.Equal(t, "+OK", clients[0].retry("set a 1"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()

	leader.machine.mu.Lock() // no query ends
	var err error
	for i, c := range clients {
		c.send("get a")
		if err = confirms(ctx, leader); err != nil {
			clients = clients[:i]
			break
		}
	}
	leader.machine.mu.Unlock()
	require.NoError(t, err)
	for _, c := range clients {
		assert.Equal(t, "$1", c.recv())
	}
}

// confirms has a leader confirm reads of its own, one after the other.
func confirms(ctx context.Context, r *replica) error {
	for range 10 {
		if _, err := r.node.ReadIndex(ctx); err != nil {
			return err
		}
	}
	return nil
}
