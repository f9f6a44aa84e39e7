package main

import (
	"bufio"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Read indexes are confirmed by the goroutines that read the other replicas' answers. They go on while queries take long:
// else no heartbeat's answer would be seen, and the leader would step down.
func TestQueriesDoNotHoldUpTheGroup(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	leader := g.replicas[g.waitLeader()]
	require.Equal(t, "+OK", dialRaw(t, leader.cfg.redis).retry("set a 1"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	get, refused := readGet([][]byte{[]byte("get"), []byte("a")})
	require.Nil(t, refused)
	begun, goOn := make(chan struct{}, 10), make(chan struct{})
	end := sync.OnceFunc(func() { close(goOn) })
	defer end()
	slow := func(m *machine) *reply {
		begun <- struct{}{}
		<-goOn // no query ends
		return get(m)
	}
	var clients []*rawConn
	for range 10 {
		clients = append(clients, slowQuery(t, leader, slow))
		require.NoError(t, confirms(ctx, leader))
	}
	for range clients {
		select {
		case <-begun:
		case <-ctx.Done():
			t.Fatal("not every query has begun")
		}
	}
	require.NoError(t, confirms(ctx, leader))
	end()
	for _, c := range clients {
		assert.Equal(t, "$1", c.recv())
	}
}

// slowQuery has a new connection of a replica begin a query.
func slowQuery(t *testing.T, r *replica, q query) *rawConn {
	t.Helper()
	client, conn := net.Pipe()
	s := newSession(r, conn, 1)
	var wg sync.WaitGroup
	wg.Go(s.writeAll)
	wg.Go(s.queryAll)
	t.Cleanup(func() {
		s.close()
		client.Close()
		wg.Wait()
	})
	s.beginRead(0, perItem, q)
	return &rawConn{t, client, bufio.NewReader(client)}
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
