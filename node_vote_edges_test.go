package graft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// T2: a damaged answer with a term that there cannot be puts nobody out of the group for good.
func TestAnAbsurdTermInAnAnswerIsNotAdopted(t *testing.T) {
	for _, ask := range []func(*Node){func(n *Node) { n.preVote() }, func(n *Node) { n.elect(nil) }} {
		for _, term := range absurd {
			s := newFollower(t)
			n := s.node
			ask(n)
			s.pass(10 * time.Millisecond)
			before := n.term
			for _, granted := range []bool{false, true} {
				n.onVoteAnswer(n.voteRound, PeerID{Address: stagePeers[1]}, &raftpb.RequestVoteResponse{Term: &term, Granted: &granted})
				s.pass(10 * time.Millisecond)
				assert.LessOrEqual(t, n.term, before+1, "%d, granted: %v", term, granted)
			}
			s.append(stagePeers[2], before+2, 0, 0)
			s.pass(10 * time.Millisecond)
			assert.Equal(t, stagePeers[2], n.leader.Address, "it follows nobody any more")
		}
	}
}

// voteFor has a candidate, which need not be graft's, ask for the node's vote. Its log ends at the index, in term 0.
func (s *stage) voteFor(candidate string, term, index int64, groupID *uint64) *raftpb.RequestVoteResponse {
	s.t.Helper()
	r := s.send(methodRequestVote, &raftpb.RequestVoteRequest{
		GroupId: proto.String("g"), ServerId: &candidate, PeerId: proto.String(stagePeers[0] + ":0"),
		Term: &term, LastLogTerm: proto.Int64(0), LastLogIndex: &index, GraftGroupId: groupID,
	})
	s.pass(10 * time.Millisecond)
	require.True(s.t, r.over)
	m := new(raftpb.RequestVoteResponse)
	require.NoError(s.t, proto.Unmarshal(r.message, m))
	return m
}

// H-21: a vote is for one replica, not for all of the group in the same process.
func TestAVoteForOneReplicaIsNoneForItsNeighbour(t *testing.T) {
	s := newFollower(t)
	id := proto.Uint64(s.node.groupIDNow.Load())
	for range 2 {
		assert.True(t, s.voteFor(stagePeers[1]+":0", 1, 0, id).GetGranted())
		assert.False(t, s.voteFor(stagePeers[1]+":1", 1, 0, id).GetGranted())
		assert.False(t, s.voteFor(stagePeers[2]+":0", 1, 0, id).GetGranted())
	}
	assert.True(t, s.voteFor(stagePeers[1]+":1", 2, 0, id).GetGranted())
	assert.False(t, s.voteFor(stagePeers[1]+":0", 2, 0, id).GetGranted())
}

// D14: who began with nothing votes only for candidates that can tell such a vote from others; braft's cannot.
func TestABraftCandidateGetsNoWeakVote(t *testing.T) {
	s := stageOn(t, vfs.NewMem(), 3, NodeOptions{ElectionTimeout: time.Hour})
	s.pass(time.Second)
	require.True(t, s.node.Status().Waiting)
	assert.False(t, s.voteFor(stagePeers[1]+":0", 1, 5, nil).GetGranted())
	weak := s.voteFor(stagePeers[2]+":0", 1, 5, proto.Uint64(0))
	assert.True(t, weak.GetGranted(), "its vote of this term is still free")
	assert.True(t, weak.GetGraftWaiting())
}

// D14: blank nodes found a group without those who do not answer only after an election timeout, though they try more often: who is slow
// may have what they have lost.
func TestBlankFoundersWaitForTheSlow(t *testing.T) {
	const timeout = 5 * time.Second
	s := stageOn(t, vfs.NewMem(), 3, NodeOptions{ElectionTimeout: timeout})
	s.loyal, s.down = true, stagePeers[2]
	s.pass(timeout * 9 / 10)
	assert.Greater(t, s.asked[methodPreVote], 2, "it has tried more than once")
	assert.Zero(t, s.asked[methodRequestVote])
	s.until(func() bool { return s.asked[methodRequestVote] > 0 }, "it never founds the group")
}
