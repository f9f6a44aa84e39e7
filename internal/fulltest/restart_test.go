package fulltest

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// A node that is started anew at once, while the store still has records of its former life that are submitted
// and not placed, works.
func TestNodeIsStartedAnewAfterPendingWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		w.settle()
		w.hosts[0].disk.slow(200 * time.Millisecond)
		w.propose(0)
		time.Sleep(20 * time.Millisecond)
		w.propose(0) // gathers behind the first
		time.Sleep(20 * time.Millisecond)
		w.await(time.Minute, w.stopNode(0)...)
		w.startNode(0)
		until(t, 10*time.Millisecond, time.Minute, "a leader", func() bool { return w.leader() >= 0 })
		c := w.propose(0)
		w.await(time.Minute, c)
		require.NoError(t, c.outcome())
		w.finish()
	})
}

// A node that ends answers the requests that wait for its disk.
func TestVoteRequestIsAnsweredWhenTheNodeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		to := w.others(lead)[0]
		client := rpc.NewTCP(w.net.options("client"))
		require.NoError(t, client.Start(rpc.StartOptions{Listen: "client", Serve: func(*rpc.Request) {}}))
		w.hosts[to].disk.slow(300 * time.Millisecond)
		term, index := w.node(to).Status().Term, w.node(to).Status().LastIndex
		m, err := proto.Marshal(&raftpb.RequestVoteRequest{
			GroupId: proto.String(group), ServerId: proto.String(w.peer(lead).String()), PeerId: proto.String(w.peer(to).String()),
			Term: proto.Int64(term + 1), LastLogTerm: proto.Int64(term), LastLogIndex: proto.Int64(index),
		})
		require.NoError(t, err)
		c := w.ledger.begin("vote request")
		client.Call(w.hosts[to].addr, rpc.Call{
			Service: "braft.RaftService", Method: "request_vote", Message: [][]byte{m},
			Done: func(rpc.Reply) { c.done(nil) },
		})
		time.Sleep(10 * time.Millisecond)
		w.await(time.Minute, w.stopNode(to)...)
		time.Sleep(time.Minute)
		synctest.Wait()
		over := c.over()
		require.NoError(t, client.Close())
		w.finish()
		require.True(t, over, "the request was not answered within a minute after the node ended")
	})
}

// A read that a follower forwards ends, even if the answer comes when the follower has lost its leader.
func TestForwardedReadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		to := w.others(lead)[0]
		a, b := w.hosts[lead].addr, w.hosts[to].addr
		w.net.stick(a, b) // heartbeats do not come through, answers do
		w.net.dialing(a, b, dialHangs)
		w.net.slow(a, b, 250*time.Millisecond)
		c := w.propose(lead)
		w.await(time.Minute, c)
		index := w.node(lead).Status().CommitIndex
		time.Sleep(900 * time.Millisecond)
		var calls []*call
		seen := w.sees("pre_vote")
		for w.sees("pre_vote") == seen { // the follower has given its leader up
			calls = append(calls, w.read(to))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(600 * time.Millisecond) // the answer arrives
		w.isolate(to)
		time.Sleep(10 * time.Minute)
		require.Less(t, w.node(to).Status().CommitIndex, index)
		pending := w.ledger.pending()
		w.finish()
		require.Empty(t, pending, "of %d reads on host %d", len(calls), to)
	})
}

// A node has not ended while its writes are on their way: started anew before that, it would take for durable what is
// only written, and acknowledge it.
func TestNodeThatEndsWaitsForItsWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		rest := w.others(lead)
		follower, third := rest[0], rest[1]
		time.Sleep(time.Second) // all disks are at rest, so that the next entry is written at once
		w.isolate(third)
		h := w.hosts[follower]
		h.disk.hang()
		c := w.propose(lead)
		time.Sleep(10 * time.Millisecond)
		stopped := w.stopNode(follower)
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		require.False(t, stopped[0].over(), "StopNode returned while writes were on their way")
		_, err := h.host.StartNode(group, graft.NodeOptions{StateMachine: h.fsm})
		require.ErrorIs(t, err, graft.ErrBusy)
		require.False(t, c.over(), "acknowledged, while the only other copy is not on any disk")
		h.disk.mend()
		w.await(time.Minute, stopped...)
		w.startNode(follower)
		w.healAll()
		w.await(time.Minute, c)
		w.finish()
	})
}

// Two callers of Host.Close do not keep the bubble's clock from going on.
func TestConcurrentClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		w.settle()
		w.hosts[0].disk.slow(200 * time.Millisecond)
		w.propose(0)
		time.Sleep(20 * time.Millisecond)
		w.close(0)
		time.Sleep(time.Millisecond)
		require.NoError(t, w.hosts[0].host.Close())
		w.finish()
	})
}

// Programs that use graft can test themselves in bubbles.
func TestProposeInTwoBubbles(t *testing.T) {
	for range 20 { // a pool gives what was put into it by the same processor, mostly
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
			w.settle()
			for range 10 {
				_, err := w.node(0).Propose(context.Background(), []byte("x"))
				require.NoError(t, err)
				_, err = w.node(0).ReadIndex(context.Background())
				require.NoError(t, err)
			}
			w.closeAll()
		})
	}
}

// A panic in a callback stops the node, not the process.
func TestPanicInReadCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		w.settle()
		w.node(0).ReadIndexAsync(func(int64, error) { panic("in a callback") })
		time.Sleep(time.Second)
		require.Equal(t, graft.RoleFailed, w.node(0).Status().Role)
		w.finish()
	})
}

func TestPanicInShutdownCallback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		w.settle()
		w.node(0).Shutdown(func(error) { panic("in a callback") })
		time.Sleep(time.Second)
		w.finish()
	})
}

// Done is called after the last entry of a batch was applied, between two of them, and where a proposal is refused: on the
// state machine's goroutine, or on the caller's.
func TestPanicInDone(t *testing.T) {
	explode := func(any, error) { panic("in a callback") }
	for _, proposals := range [][]graft.Task{
		{{Data: []byte("alone"), Done: explode}},
		{{Data: []byte("first"), Done: explode}, {Data: []byte("second")}},
		{{Data: []byte("another term"), Done: explode, ExpectedTerm: 1 << 40}},
		{{Data: make([]byte, 1<<20+1), Done: explode}}, // too large
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, 1, 1, 0, graft.NodeOptions{MaxEntrySize: 1 << 20})
			w.settle()
			for _, task := range proposals {
				w.node(0).Apply(task)
			}
			time.Sleep(time.Second)
			require.Equal(t, graft.RoleFailed, w.node(0).Status().Role)
			w.finish()
		})
	}
}
