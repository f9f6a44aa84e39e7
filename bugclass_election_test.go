package graft

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// E14: replicas draw their election timeouts independently of each other, also those that start at the same moment.
func TestReplicasDrawTheirOwnElectionTimeouts(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{})
	drawn := make(map[uint64]int)
	for i := range c.nodes {
		c.start(i)
		done := make(chan []uint64)
		c.nodes[i].post(func() {
			var draws []uint64
			for range 64 { // generators that began alike have most of them in common, wherever they are by now
				draws = append(draws, c.nodes[i].rng.Uint64())
			}
			done <- draws
		})
		for _, d := range receive(t, done) {
			drawn[d] = i
		}
	}
	assert.Equal(t, 3*64, len(drawn), "different draws")
}

// E16, L6: two of three run, and the leader has lost the other for so long that it gave up. Only it has the latest entry, so only it can
// be elected, and what it was does not keep the other from voting for it.
func TestAFormerLeaderIsElectedAgain(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	lead := c.startGroup()
	c.stop((lead + 1) % 3)
	last := c.ahead(lead, "ahead", 1)
	c.cutOff(lead)
	c.net.set()
	c.hurry(lead)
	c.status(lead, func(s Status) bool { return s.Role == RoleLeader && s.AppliedIndex > last }, "it is not elected again")
	assert.Contains(t, c.sameData(lead, (lead+2)%3), "ahead-0")
}

// ahead has a host's log, if it leads, get entries that nobody else has, and returns the index of the last one.
func (c *cluster) ahead(lead int, name string, entries int) int64 {
	c.t.Helper()
	n, others := c.nodes[lead], make([]int, 0, len(c.hosts))
	for i := range c.hosts {
		if i != lead {
			others = append(others, i)
		}
	}
	c.net.set(noEntries(others...))
	last := n.Status().LastIndex + int64(entries)
	for i := range entries {
		c.begin(lead, fmt.Sprint(name, "-", i), func(n *Node, done Closure) {
			n.Apply(Task{Data: fmt.Appendf(nil, "%s-%d", name, i), Done: func(_ any, err error) { done(err) }})
		})
	}
	c.status(lead, func(s Status) bool { return s.LastIndex >= last && s.DurableIndex == s.LastIndex }, "the entries are not in the log")
	return last
}

// E18: whoever is behind in terms learns that from those who refuse its pre-vote, and asks for a term that they can grant.
func TestARefusedPreVoteBringsTheTermUp(t *testing.T) {
	const theirs = 9
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 100 * ms})
	var asked atomic.Int64 // the highest term
	peer := newScriptedPeer()
	require.NoError(t, peer.Start(rpc.StartOptions{Listen: c.addrs[1], Address: c.addrs[1], Incarnation: 1, Serve: func(req *rpc.Request) {
		m := new(raftpb.RequestVoteRequest)
		if req.Method != methodPreVote || proto.Unmarshal(req.Message, m) != nil {
			req.Fail(codeNoMethod, "not here")
			return
		}
		asked.Store(max(asked.Load(), m.GetTerm()))
		b, err := proto.Marshal(&raftpb.RequestVoteResponse{Term: proto.Int64(theirs), Granted: proto.Bool(false)})
		assert.NoError(t, err)
		req.Reply(b)
	}}))
	t.Cleanup(func() { assert.NoError(t, peer.Close()) })
	c.start(0)
	c.status(0, func(s Status) bool { return s.Term == theirs }, "the term is not taken over")
	c.eventually(func() bool { return asked.Load() == theirs+1 }, "it does not ask for a later term")
}

// E20: what a leader of an earlier term sends is no sign of life of the present one, and holds up no election.
func TestAStaleLeaderHoldsUpNoElection(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 100 * ms})
	var asked atomic.Int64
	c.net.set(func(m *message) fate {
		if m.from == 0 && !m.answer && m.method == methodPreVote {
			asked.Add(1)
		}
		return fate{}
	})
	c.start(0)
	s := newScriptedLeader(c)
	require.True(t, s.append(1, 2, 0, 0, 0, 1).Success)
	asked.Store(0) // it may have asked before it heard of that leader
	c.eventually(func() bool {
		resp := s.append(2, 1, 0, 0, 0, 0)
		require.False(t, resp.Success)
		require.EqualValues(t, 2, resp.Term)
		return asked.Load() > 0
	}, "messages of a stale leader keep a follower from campaigning")
}

// V7: neither a state machine that is stuck nor a disk that is keeps a leader from being heard.
func TestALeaderWithSomethingStuckIsHeard(t *testing.T) {
	for _, what := range []string{"state machine", "disk"} {
		t.Run(what, func(t *testing.T) {
			for range 5 { // a busy machine may cost a leader its office all the same
				if heardWhileStuck(t, what == "disk") {
					return
				}
			}
			require.Fail(t, "the leader does not stay")
		})
	}
}

// heardWhileStuck reports whether the leader of a new group stays it for as long as something is stuck there.
func heardWhileStuck(t *testing.T, disk bool) bool {
	const factor = 10
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 300 * ms, HeartbeatFactor: factor})
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	c.onApply = func(_ int, data string) {
		if data == "stuck" {
			<-gate
		}
	}
	lead := c.startGroup()
	term := c.nodes[lead].Status().Term
	var sent atomic.Int64
	c.net.set(func(m *message) fate {
		if m.from == lead && !m.answer && m.method == methodAppendEntries && m.entries() == 0 {
			sent.Add(1)
		}
		return fate{}
	})
	stuck := c.getStuck(lead, disk, gate)
	before := sent.Load()
	// To two followers, three election timeouts long. Without answers it would give up after one.
	within(20*time.Second, ms, func() bool { return sent.Load() >= before+2*3*factor || !c.nodes[lead].IsLeader() })
	s := c.nodes[lead].Status()
	heard := sent.Load() >= before+2*3*factor && s.Role == RoleLeader && s.Term == term
	open()
	if err := stuck.wait(); err != nil {
		assert.Contains(t, []Code{ErrUnknownOutcome, ErrNotLeader}, ErrorCode(err))
		assert.False(t, heard, "%v", err)
	}
	c.disks[lead].SetInjector(nil)
	c.sameData(0, 1, 2)
	return heard
}

// getStuck has all state machines, or a leader's disk, wait for the gate. What it returns is an entry that is proposed then. The
// others commit it although the leader's disk has not got it.
func (c *cluster) getStuck(lead int, disk bool, gate chan struct{}) *pending {
	if disk {
		syncing := make(chan struct{}, 1000)
		c.disks[lead].SetInjector(stickSyncs(gate, syncing))
		c.propose("committed by the others")
		receive(c.t, syncing)
	}
	return c.begin(lead, "stuck", func(n *Node, done Closure) {
		n.Apply(Task{Data: []byte("stuck"), Done: func(_ any, err error) { done(err) }})
	})
}

// E10: whoever has given its vote waits for an election timeout from then on.
func TestAVoteStartsTheElectionTimeoutAnew(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	c.start(0)
	s := newScriptedLeader(c)
	require.True(t, s.append(1, 1, 0, 0, 0, 1).Success)
	n := c.nodes[0]
	ask := func(index int64) (vote PeerID, electionAt time.Time) {
		done := make(chan uint64)
		n.post(func() { done <- n.groupID })
		b, err := proto.Marshal(&raftpb.RequestVoteRequest{
			GroupId: proto.String("g"), ServerId: proto.String(c.peer(2).String()), PeerId: proto.String(c.peer(0).String()),
			Term: proto.Int64(2), LastLogTerm: proto.Int64(1), LastLogIndex: &index, GraftGroupId: proto.Uint64(receive(t, done)),
		})
		require.NoError(t, err)
		s.raw(0, methodRequestVote, [][]byte{b}, nil)
		n.post(func() { vote, electionAt = n.vote, n.electionAt; done <- 0 })
		receive(t, done)
		return vote, electionAt
	}
	_, first := ask(0) // lacks the entry, and brings the term
	vote, again := ask(0)
	require.True(t, vote.IsZero())
	assert.Equal(t, first, again, "a vote that is refused changes nothing")
	vote, again = ask(1)
	require.Equal(t, c.addrs[2], vote.Address)
	assert.NotEqual(t, first, again)
}
