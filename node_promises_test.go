package graft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// A transfer for which the peer has not been asked yet is not what ends a leadership that ends meanwhile.
func TestATransferThatWasNotAskedForEndsNothing(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{})
	s.silent = true
	s.apply("1 and 2 do not get it")
	s.pass(10 * time.Millisecond)
	transfer := s.call("transfer")
	s.node.transferTo(PeerID{Address: stagePeers[1]}, transfer.closed)
	s.pass(10 * time.Millisecond)
	require.NoError(t, transfer.err)
	require.NotNil(t, s.node.transfer)
	require.False(t, s.node.transfer.sent)
	s.loyal = false
	s.append(stagePeers[2], s.node.term+1, 0, 0)
	s.pass(10 * time.Millisecond)
	require.Error(t, s.fsm.lastStop())
	assert.NotErrorIs(t, s.fsm.lastStop(), ErrTransferring)
	assert.ErrorIs(t, s.fsm.lastStop(), ErrNewLeader)
	s.end()
}

// M13: how long a change waits for its voters does not count what an earlier one has waited.
func TestEachChangeHasItsOwnPatience(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{})
	for range 2 {
		s.settles(s.change("add", func(n *Node, done Closure) { n.AddPeer(fourth, done) }))
		assert.Zero(t, s.node.readyAt)
		s.settles(s.change("remove", func(n *Node, done Closure) { n.RemovePeer(fourth, done) }))
		assert.Zero(t, s.node.readyAt)
	}
	s.end()
}

// M11: what is said of a peer that leaves does not concern it once it is a member again.
func TestALateFarewellConcernsNoMember(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{})
	s.settles(s.change("add", func(n *Node, done Closure) { n.AddPeer(fourth, done) }))
	s.change("remove", func(n *Node, done Closure) { n.RemovePeer(fourth, done) })
	s.until(func() bool { r := s.node.replicators[fourth]; return r == nil || r.leavingOn != 0 }, "it does not leave")
	r := s.node.replicators[fourth]
	require.NotNil(t, r)
	index := r.leavingOn
	s.change("add again", func(n *Node, done Closure) { n.AddPeer(fourth, done) })
	s.until(func() bool { r := s.node.replicators[fourth]; return r != nil && r.leavingOn == 0 }, "it does not come back")
	r = s.node.replicators[fourth]
	s.node.onLeft(r, index)
	assert.Same(t, r, s.node.replicators[fourth])
	s.pass(time.Second)
	assert.Contains(t, s.node.replicators, fourth)
	s.end()
}

// C10: the leader of a later term has committed what this node need not hold, though it holds as much.
func TestAReadOfALaterTermCommitsNothingOfAnEarlierOne(t *testing.T) {
	s := newFollower(t)
	lead := stagePeers[1]
	require.True(t, s.leaderMessage(lead, 5, 0, 0, 0, dataAt(1, 5, "a", "b", "c")).Success)
	forwarded := func(term, index int64) {
		message, err := proto.Marshal(&raftpb.ReadIndexResponse{Term: &term, Index: &index})
		require.NoError(t, err)
		s.node.forwarding, s.node.forwarded = true, []read{{done: s.call("read").readDone()}}
		s.node.post(func() { s.node.onForwarded(s.node.leader, rpc.Reply{Message: message}) })
		s.pass(10 * time.Millisecond)
	}
	forwarded(6, 3)
	assert.Zero(t, s.node.box.index())
	forwarded(5, 2)
	assert.EqualValues(t, 2, s.node.box.index())
	s.leaderMessage(lead, 5, 3, 5, 3, dataAt(4, 5, "d"))
	s.end()
}

// readDone is for reads.
func (a *owed) readDone() func(int64, error) {
	return func(index int64, err error) { a.done(index, err) }
}

// What was stored by a braft peer whose answers were lost is sent once more, since only such an answer is an acknowledgement.
func TestWhatABraftPeerHasAlreadyIsAcknowledged(t *testing.T) {
	s := newStage(t, 3, NodeOptions{})
	s.braft, s.loyal = true, true
	s.until(func() bool { return s.fsm.leading }, "the node does not lead")
	s.lossy = true
	a := s.apply("stored, and nobody says so")
	failed := func() bool {
		for _, r := range s.node.replicators {
			if r.failures == 0 {
				return false
			}
		}
		return true
	}
	s.until(failed, "nothing was lost")
	require.Zero(t, a.times)
	s.lossy = false
	s.until(func() bool { return a.times == 1 }, "it is never committed")
	assert.NoError(t, a.err)
	s.end()
}

// R11: a peer that refuses the first of what it is sent, again and again, and keeps the rest unanswered, is not sent more and more.
func TestWhatAPeerNeverAnswersDoesNotPileUp(t *testing.T) {
	const most = 8
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: time.Minute, MaxInflightRequests: most, MaxAppendBytes: 1000})
	waiting, peak := 0, 0
	s.stall = func(c rpc.Call) *rpc.Reply {
		m, err := wire.ParseAppendRequest(slices.Concat(c.Message...), slices.Concat(c.Attachment...))
		require.NoError(t, err)
		if m.PrevIndex == s.stored {
			return &rpc.Reply{Code: int32(ErrBusy), Text: "not now"}
		}
		waiting++
		peak = max(peak, waiting)
		return nil
	}
	for i := range 100 {
		s.apply(fmt.Sprintf("%0900d", i))
	}
	s.pass(30 * time.Second)
	assert.LessOrEqual(t, peak, 2*givenUp*most, "of two peers")
	s.stall = nil
	s.end()
}
