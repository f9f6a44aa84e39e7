package fulltest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
)

// What a follower learns from the answer to a forwarded read is what the leader of its own term has committed, also
// if the one it asked leads no more by then and asks its successor.
func TestReadIsNotForwardedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 5, 0, graft.NodeOptions{})
		for i := range w.hosts { // 0 leads, and 1 follows it, for longer than the others wait
			w.opts.ElectionTimeout = electionTimeout
			if i < 2 {
				w.opts.ElectionTimeout = 10 * electionTimeout
			}
			w.start(i)
		}
		if lead := w.agree(w.first()...); lead != 0 {
			w.await(electionTimeout, w.transfer(lead, 0))
			until(t, time.Millisecond, electionTimeout, "the transfer", func() bool { return w.leader() == 0 })
		}
		w.agree(w.first()...)
		w.part([]int{0, 1})
		for range 5 {
			w.propose(0) // host 1 gets these, and they cannot be committed
		}
		next := w.elected([]int{0, 1})
		for range 10 {
			w.await(electionTimeout, w.propose(next))
		}
		w.read(0) // two rounds of which nothing can come
		time.Sleep(time.Millisecond)
		w.read(0)
		time.Sleep(time.Millisecond)
		early := w.read(1) // waits at host 0 for the next round
		time.Sleep(time.Millisecond)
		require.Equal(t, graft.RoleLeader, w.node(0).Status().Role)
		// A heartbeat of the successor reaches host 0, host 1 hears of nothing.
		client := rpc.NewTCP(w.net.options("client"))
		require.NoError(t, client.Start(rpc.StartOptions{Listen: "client", Serve: func(*rpc.Request) {}}))
		m := wire.AppendRequest{
			GroupID: []byte(group), ServerID: []byte(w.peer(next).String()), PeerID: []byte(w.peer(0).String()),
			Term: w.node(next).Status().Term,
		}
		client.Call(w.hosts[0].addr, rpc.Call{
			Service: "braft.RaftService", Method: "append_entries", Message: [][]byte{m.AppendTail(m.AppendHead(nil))},
		})
		until(t, step, electionTimeout, "host 0 hears of its successor", func() bool { return w.node(0).LeaderID().Same(w.peer(next)) })
		for _, i := range []int{2, 3, 4} {
			w.net.heal(w.hosts[0].addr, w.hosts[i].addr)
		}
		time.Sleep(2 * time.Second)
		require.NoError(t, client.Close())
		for i := range 3 {
			t.Logf("%d %+v", i, w.node(i).Status())
		}
		t.Log(next, w.ledger.pending(), early.outcome(), early.over())
		got, want := w.hosts[1].fsm.applied(), w.hosts[next].fsm.applied()
		w.healAll()
		time.Sleep(electionTimeout)
		t.Log(w.node(1).Status().Role, w.node(1).Status().Err)
		require.True(t, len(got) <= len(want) && slices.Equal(got, want[:len(got)]), "applied %q\nthe group %q", got, want)
		w.finish()
	})
}
