package graft

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
)

// scriptedLeader says to a host what a test wants a leader to say.
type scriptedLeader struct {
	c   *cluster
	tcp *rpc.TCP
}

// newScriptedPeer is the transport of a peer that a test plays. It outlasts the stalls of a busy machine.
func newScriptedPeer() *rpc.TCP {
	return rpc.NewTCP(rpc.TCPOptions{ConnectTimeout: time.Minute, SilenceTimeout: time.Minute})
}

func newScriptedLeader(c *cluster) *scriptedLeader {
	address := freeAddrs(c.t, 1)[0]
	s := &scriptedLeader{c: c, tcp: newScriptedPeer()}
	require.NoError(c.t, s.tcp.Start(rpc.StartOptions{
		Listen: address, Address: address, Incarnation: 1,
		Serve: func(req *rpc.Request) { req.Fail(codeNoMethod, "not here") },
	}))
	c.t.Cleanup(func() { assert.NoError(c.t, s.tcp.Close()) })
	return s
}

// append sends entries of a term behind prev to host 0, as if by a peer of the cluster, and returns the answer.
func (s *scriptedLeader) append(leader int, term, prev, prevTerm, commit int64, entries int) wire.AppendResponse {
	s.c.t.Helper()
	var b entry.Builder
	b.Reset(prev + 1)
	for range entries {
		b.AppendData(term, []byte("x"))
	}
	return s.send(leader, wire.AppendRequest{Term: term, PrevTerm: prevTerm, PrevIndex: prev, Commit: commit, Entries: b.Build()})
}

// send sends a request to host 0.
func (s *scriptedLeader) send(leader int, m wire.AppendRequest) wire.AppendResponse {
	s.c.t.Helper()
	m.GroupID, m.ServerID, m.PeerID = []byte("g"), []byte(s.c.peer(leader).String()), []byte(s.c.peer(0).String())
	answer := make(chan rpc.Reply, 1)
	s.tcp.Call(s.c.addrs[0], rpc.Call{
		Service: raftService, Method: methodAppendEntries, Timeout: time.Minute,
		Message:    [][]byte{m.AppendHead(nil), m.Entries.Metas, m.AppendTail(nil)},
		Attachment: [][]byte{m.Entries.Data},
		Done:       func(r rpc.Reply) { answer <- r },
	})
	r := receive(s.c.t, answer)
	require.NoError(s.c.t, r.Err)
	require.Zero(s.c.t, r.Code, r.Text)
	resp, err := wire.ParseAppendResponse(r.Message)
	require.NoError(s.c.t, err)
	return resp
}

// R17: an answer vouches for what was found to be the leader's, and not for what else is in the log.
func TestAnAnswerVouchesForNoMoreThanWasMatched(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	c.start(0)
	s := newScriptedLeader(c)
	resp := s.append(1, 1, 0, 0, 0, 5)
	require.True(t, resp.Success)
	resp = s.append(1, 1, 5, 1, 2, 0)
	assert.True(t, resp.Success)
	assert.EqualValues(t, 5, resp.StoredIndex, "the log up to there is this leader's, and durable")

	resp = s.append(2, 2, 2, 1, 0, 0) // another leader, whose log has only two of them
	assert.True(t, resp.Success)
	assert.LessOrEqual(t, resp.StoredIndex, int64(2), "what follows may be another leader's")
	assert.LessOrEqual(t, c.nodes[0].Status().CommitIndex, int64(2))
	resp = s.append(2, 2, 0, 0, 9, 0) // a heartbeat that matches anything, with a commit index far ahead
	assert.True(t, resp.Success)
	assert.LessOrEqual(t, resp.StoredIndex, int64(2))
	assert.EqualValues(t, 2, c.nodes[0].Status().CommitIndex, "nor is it committed")
	resp = s.append(2, 2, 3, 2, 9, 0)
	assert.False(t, resp.Success, "the third entry is not of this term")

	resp = s.append(2, 2, 2, 1, 0, 1) // replaces what does not fit
	assert.True(t, resp.Success)
	assert.EqualValues(t, 3, c.nodes[0].Status().LastIndex)
	resp = s.append(2, 2, 3, 2, 3, 0)
	assert.EqualValues(t, 3, resp.StoredIndex)
	assert.EqualValues(t, 3, c.nodes[0].Status().CommitIndex)
	resp = s.append(1, 1, 5, 1, 5, 0) // the old one again
	assert.False(t, resp.Success)
	assert.EqualValues(t, 2, resp.Term)
}

// braft: follower_handle_out_of_order_append_entries. What arrives late or twice changes nothing.
func TestLateAndRepeatedEntriesChangeNothing(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	c.start(0)
	s := newScriptedLeader(c)
	require.True(t, s.append(1, 1, 0, 0, 0, 3).Success)
	resp := s.append(1, 1, 6, 1, 0, 3) // too early
	assert.False(t, resp.Success)
	assert.EqualValues(t, 3, resp.LastIndex)
	require.True(t, s.append(1, 1, 3, 1, 0, 3).Success)
	require.True(t, s.append(1, 1, 6, 1, 0, 3).Success)
	for range 3 {
		require.True(t, s.append(1, 1, 0, 0, 0, 3).Success, "late")
		require.True(t, s.append(1, 1, 3, 1, 9, 2).Success, "late, and with a commit index ahead of it")
	}
	st := c.nodes[0].Status()
	assert.EqualValues(t, 9, st.LastIndex, "nothing was cut off")
	assert.EqualValues(t, 5, st.CommitIndex, "as far as the request went")
	require.True(t, s.append(1, 1, 9, 1, 9, 0).Success)
	assert.EqualValues(t, 9, c.nodes[0].Status().CommitIndex)
	c.eventually(func() bool { return len(c.fsms[0].applied()) == 9 }, "not applied")
}

// Q11: a configuration entry is in force from its append, and no longer once it is cut off.
func TestAConfigurationIsUndoneWithItsEntry(t *testing.T) {
	c := newGroup(t, 3, 4, NodeOptions{ElectionTimeout: time.Minute})
	c.start(0)
	s := newScriptedLeader(c)
	require.True(t, s.append(1, 1, 0, 0, 0, 2).Success)
	var b entry.Builder
	b.Reset(3)
	next := c.voters(0, 3)
	b.AppendConf(1, next.strings(), c.conf.strings())
	require.True(t, s.send(1, wire.AppendRequest{Term: 1, PrevTerm: 1, PrevIndex: 2, Entries: b.Build()}).Success)
	st := c.nodes[0].Status()
	assert.Equal(t, next, st.Conf)
	assert.Equal(t, c.conf, st.OldConf)
	assert.EqualValues(t, 3, st.ConfIndex)
	require.True(t, s.append(2, 2, 2, 1, 0, 1).Success)
	st = c.nodes[0].Status()
	assert.Equal(t, c.conf, st.Conf)
	assert.Empty(t, st.OldConf.Peers())
	assert.Empty(t, c.reported(0))
}

// X1: entries that are kept in memory keep nothing there that came over the same connection.
func TestKeptEntriesPinNoOtherMessages(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	c.start(0)
	s := newScriptedLeader(c)
	require.True(t, s.append(1, 1, 0, 0, 0, 1).Success)
	const rounds, size = 400, 60 << 10
	before := heapInUse()
	for i := range int64(rounds) {
		require.True(t, s.append(1, 1, 1+i, 1, 0, 1).Success)
		answer := make(chan rpc.Reply, 1)
		s.tcp.Call(c.addrs[0], rpc.Call{
			Service: raftService, Method: "another", Timeout: time.Minute,
			Message: [][]byte{make([]byte, size)}, Done: func(r rpc.Reply) { answer <- r },
		})
		require.NoError(t, receive(t, answer).Err)
	}
	assert.True(t, c.nodes[0].lm.cached(2))
	assert.Less(t, heapInUse()-before, int64(rounds*size/4))
}

// heapInUse is how much memory is used and cannot be freed.
func heapInUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
