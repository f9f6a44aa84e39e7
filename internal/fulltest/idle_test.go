package fulltest

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

// heartbeatPause is how long nothing happens between heartbeats, at an election timeout of 10 s.
const heartbeatPause = time.Second

// goroutinesAtRest waits for a moment at which no actor has had work for a while, and counts what is left.
func goroutinesAtRest(t *testing.T) (n int) {
	t.Helper()
	until(t, 7*time.Millisecond, time.Minute, "a moment of rest", func() bool {
		all := goroutines()
		n = len(all)
		return in(all, "actor.(*workers).work") == 0
	})
	return n
}

// An idle group has the goroutines of its connections and no others, and wakes up for heartbeats only.
func TestIdleGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, 0, graft.NodeOptions{ElectionTimeout: 10 * heartbeatPause})
		lead := w.settle()
		for range 100 {
			w.propose(lead)
		}
		time.Sleep(time.Minute)
		steps := make([]int64, len(w.hosts))
		for i, h := range w.hosts {
			steps[i] = h.exec.steps.Load()
		}
		attempts, traffic, term := 0, w.net.traffic(), w.node(lead).Status().Term
		for _, i := range w.others(lead) {
			attempts -= w.net.attempts(w.hosts[lead].addr, w.hosts[i].addr)
		}
		time.Sleep(time.Hour)
		synctest.Wait()

		const heartbeats = int64(time.Hour / heartbeatPause)
		for i, h := range w.hosts {
			took, most := h.exec.steps.Load()-steps[i], heartbeats*3
			if i == lead { // two peers, each with a heartbeat, its answer and a timer; and checks of the quorum
				most = heartbeats * 8
			}
			require.Less(t, took, most, "steps of host %d", i)
		}
		require.Less(t, w.net.traffic()-traffic, 2*heartbeats*400, "bytes")
		for _, i := range w.others(lead) {
			attempts += w.net.attempts(w.hosts[lead].addr, w.hosts[i].addr)
		}
		require.Zero(t, attempts, "connections are kept")
		require.Equal(t, term, w.node(lead).Status().Term)

		// Per host: acceptor and sweeper; per connection a reader and a writer at both ends. Followers have none
		// to each other, or one from the election.
		goroutinesAtRest(t)
		all := goroutines()
		require.Equal(t, 3, in(all, "rpc.(*TCP).accept("))
		require.Equal(t, 3, in(all, "rpc.(*TCP).sweep("))
		require.Len(t, all, 6+2*w.net.ends())
		w.finish()
	})
}

// A group of one has no heartbeats, and next to nothing to do.
func TestIdleSingle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		w.settle()
		w.propose(0)
		time.Sleep(time.Second)
		before := w.hosts[0].exec.steps.Load()
		time.Sleep(time.Hour)
		checks := int64(time.Hour / (electionTimeout / 4))
		require.LessOrEqual(t, w.hosts[0].exec.steps.Load()-before, checks+10)
		require.Equal(t, 2, goroutinesAtRest(t), "acceptor and sweeper")
		w.finish()
	})
}

// Whoever is left without a majority goes on asking for votes, at the pace of the election timeout.
func TestLoneSurvivorIsCalm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		for _, i := range w.others(lead) {
			w.await(time.Minute, w.close(i))
		}
		time.Sleep(10 * electionTimeout)
		before, votes, elections := w.hosts[lead].exec.steps.Load(), w.sees("pre_vote"), w.sees("request_vote")
		time.Sleep(time.Hour)
		asked := int64(w.sees("pre_vote") - votes)
		require.LessOrEqual(t, asked, 2*int64(time.Hour/electionTimeout))
		require.GreaterOrEqual(t, asked, int64(time.Hour/electionTimeout)/2)
		require.Less(t, w.hosts[lead].exec.steps.Load()-before, 4*asked)
		require.Zero(t, w.sees("request_vote")-elections)
		w.finish()
	})
}

// A replica that has failed rests until it is shut down.
func TestFailedReplicaRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		w.settle()
		w.hosts[0].fsm.sabotage("an entry")
		w.propose(0)
		time.Sleep(time.Second)
		require.Equal(t, graft.RoleFailed, w.node(0).Status().Role)
		before := w.hosts[0].exec.steps.Load()
		time.Sleep(time.Hour)
		require.LessOrEqual(t, w.hosts[0].exec.steps.Load()-before, int64(2))
		w.finish()
	})
}
