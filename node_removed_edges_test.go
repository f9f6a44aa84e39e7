package graft

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/raftpb"
)

// askedBy has a peer ask the node for a pre-vote, and returns the answer.
func (s *stage) askedBy(peer string, term int64) *raftpb.RequestVoteResponse {
	s.t.Helper()
	r := s.send(methodPreVote, &raftpb.RequestVoteRequest{
		GroupId: proto.String("g"), ServerId: proto.String(peer + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
		Term: &term, LastLogTerm: proto.Int64(0), LastLogIndex: proto.Int64(0), GraftGroupId: proto.Uint64(0),
	})
	s.pass(10 * time.Millisecond)
	m := new(raftpb.RequestVoteResponse)
	require.NoError(s.t, proto.Unmarshal(r.message, m))
	return m
}

// M21: who asks for votes is told that it is removed by a committed configuration that ends the matter. While a joint one is in force
// whoever is in its old half still has a vote.
func TestOnlyACommittedSimpleConfigurationTellsOfARemoval(t *testing.T) {
	s := newFollower(t)
	lead, removed := stagePeers[1], stagePeers[2]
	told := func() int64 { return s.askedBy(removed, 2).GetGraftConfIndex() }
	require.True(t, s.leaderMessage(lead, 1, 0, 0, 0, confBatch(1, 1, stageConf(0, 1, 2), Configuration{})).Success)
	s.leaderMessage(lead, 1, 1, 1, 1, confBatch(2, 1, stageConf(0, 1), stageConf(0, 1, 2)))
	assert.Zero(t, told(), "it is a voter")
	s.leaderMessage(lead, 1, 2, 1, 2, entry.Batch{First: 3})
	require.EqualValues(t, 2, s.node.Status().CommitIndex)
	assert.Zero(t, told(), "it has a vote in the old half")
	s.leaderMessage(lead, 1, 2, 1, 2, confBatch(3, 1, stageConf(0, 1), Configuration{}))
	assert.Zero(t, told(), "its removal is not committed")
	s.leaderMessage(lead, 1, 3, 1, 3, entry.Batch{First: 4})
	assert.EqualValues(t, 3, told())
	assert.Zero(t, s.askedBy(lead, 2).GetGraftConfIndex(), "that one is a member")
}

// M15, M21: who is told that it has no vote any more keeps silent. It takes itself for removed only if it is no learner either.
func TestWhoIsToldOfItsRemovalKnowsWhatItIs(t *testing.T) {
	learner := PeerID{Address: stagePeers[0], Role: Learner}
	demoted, err := stageConf(1, 2).with(learner)
	require.NoError(t, err)
	for _, test := range []struct {
		name            string
		conf            Configuration
		silent, removed bool
	}{
		{"removed", stageConf(1, 2), true, true},
		{"made a learner", demoted, true, false},
		{"a voter", stageConf(0, 1, 2), false, false},
	} {
		s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Second})
		s.pass(100 * time.Millisecond)
		s.node.heedRemoval(PeerID{Address: stagePeers[1]}, &raftpb.RequestVoteResponse{
			GraftConfIndex: proto.Int64(7), GraftConfTerm: proto.Int64(3), GraftConfPeers: test.conf.strings(),
		})
		s.asked = make(map[string]int)
		s.node.post(nil)
		s.pass(10 * time.Second)
		assert.Equal(t, test.silent, s.asked[methodPreVote] == 0, test.name)
		assert.Equal(t, test.removed, s.node.Status().Removed, test.name)

		// A leader that sends to it knows better: it added it again.
		require.True(t, s.leaderMessage(stagePeers[1], 9, 0, 0, 0, dataAt(1, 9, "a")).Success)
		assert.False(t, s.node.Status().Removed, test.name)
	}
}

// M21, H-12: what a node was told about its removal does not keep it from leading the group that an operator makes of it.
func TestAReplicaThatIsRemovedMayBeReset(t *testing.T) {
	s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Second})
	s.pass(100 * time.Millisecond)
	s.node.heedRemoval(PeerID{Address: stagePeers[1]}, &raftpb.RequestVoteResponse{
		GraftConfIndex: proto.Int64(7), GraftConfTerm: proto.Int64(3), GraftConfPeers: stageConf(1, 2).strings(),
	})
	s.pass(10 * time.Second)
	require.True(t, s.node.removed())
	a := s.call("reset")
	s.node.resetPeers(stageConf(0), a.closed)
	s.until(func() bool { return s.node.IsLeader() }, "it does not lead")
	assert.NoError(t, a.err)
	assert.False(t, s.node.Status().Removed)
	assert.NoError(t, s.apply("entry").err)
	s.end()
}

// M2: what an operator has put in force is given up when a leader's configuration is committed, and not when it is appended: it may be cut
// off again.
func TestAnOverrideIsInForceAgainIfWhatReplacedItIsCutOff(t *testing.T) {
	s := newFollower(t)
	require.True(t, s.leaderMessage(stagePeers[1], 1, 0, 0, 0, dataAt(1, 1, "a", "b", "c")).Success)
	a := s.call("reset")
	s.node.resetPeers(stageConf(0, 1), a.closed)
	s.pass(10 * time.Millisecond)
	require.NoError(t, a.err)
	require.True(t, s.node.Status().Overridden)

	s.leaderMessage(stagePeers[1], 3, 3, 1, 0, entry.Batch{First: 4}) // so that the term is durable
	s.leaderMessage(stagePeers[1], 3, 3, 1, 2, confBatch(4, 3, stageConf(0, 1, 2), Configuration{}))
	require.EqualValues(t, 2, s.node.Status().CommitIndex)
	assert.Equal(t, stageConf(0, 1, 2), s.node.Status().Conf)
	s.leaderMessage(stagePeers[2], 4, 3, 1, 0, entry.Batch{First: 4})
	s.leaderMessage(stagePeers[2], 4, 3, 1, 3, dataAt(4, 4, "d"))
	require.EqualValues(t, 3, s.node.Status().CommitIndex)
	assert.Equal(t, stageConf(0, 1), s.node.Status().Conf)
	assert.True(t, s.node.Status().Overridden)

	s.leaderMessage(stagePeers[2], 4, 4, 4, 4, confBatch(5, 4, stageConf(0, 1, 2), Configuration{}))
	s.leaderMessage(stagePeers[2], 4, 5, 4, 5, entry.Batch{First: 6})
	assert.Equal(t, stageConf(0, 1, 2), s.node.Status().Conf)
	assert.Zero(t, s.node.override, "it is confirmed")
}

// M12, E2, E7: a restarted node knows all that it has written down: whom it voted for and in which term, whether it waits, and which group it
// belongs to, so that it has nothing to do with another under the same name.
func TestARestartedNodeKnowsWhatItHasWrittenDown(t *testing.T) {
	s := newFollower(t)
	n := s.node
	r := wal.Recovered{First: 1, Hard: wal.HardState{Term: 9, Vote: stagePeers[2] + ":0", GroupID: 77, Waiting: true}}
	n.recoverHard(r)
	n.recoverLog(r, logBase{})
	assert.EqualValues(t, 9, n.term)
	assert.EqualValues(t, 9, n.termNow.Load())
	assert.EqualValues(t, 9, n.savedTerm.Load())
	assert.Equal(t, PeerID{Address: stagePeers[2]}, n.vote)
	assert.True(t, n.waiting && n.voteless.Load())
	assert.EqualValues(t, 77, n.groupIDNow.Load())
	for id, code := range map[uint64]Code{0: 0, 77: 0, 78: ErrGroupMismatch} {
		r := s.send(methodPreVote, &raftpb.RequestVoteRequest{
			GroupId: proto.String("g"), ServerId: proto.String(stagePeers[1] + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
			Term: proto.Int64(10), LastLogTerm: proto.Int64(0), LastLogIndex: proto.Int64(0), GraftGroupId: &id,
		})
		s.pass(10 * time.Millisecond)
		require.True(t, r.over)
		assert.EqualValues(t, code, r.code, "group %d", id)
	}
}

// M21: what a peer says about a removal moves the commit index only if that entry is in the log here. One without a term is none,
// whatever its index.
func TestARemovalWithoutATermCommitsNothing(t *testing.T) {
	for _, m := range []*raftpb.RequestVoteResponse{
		{GraftConfIndex: proto.Int64(1 << 40)},
		{GraftConfIndex: proto.Int64(1 << 40), GraftConfTerm: proto.Int64(0), GraftConfPeers: stageConf(1, 2).strings()},
		{GraftConfIndex: proto.Int64(math.MaxInt64), GraftConfTerm: proto.Int64(-1), GraftConfPeers: stageConf(1, 2).strings()},
		{GraftConfIndex: proto.Int64(1), GraftConfPeers: stageConf(1, 2).strings()},
		{GraftConfIndex: proto.Int64(-1), GraftConfTerm: proto.Int64(-1)},
	} {
		s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Second})
		s.pass(100 * time.Millisecond)
		m.Term, m.Granted = proto.Int64(0), proto.Bool(false)
		s.node.onVoteAnswer(s.node.voteRound, PeerID{Address: stagePeers[1]}, m)
		s.pass(10 * time.Millisecond)
		assert.Zero(t, s.node.box.index(), "%v", m)
		assert.False(t, s.node.told, "%v", m)
		assert.Empty(t, s.fsm.errors(), "%v", m)
		s.loyal = true
		s.until(func() bool { return s.node.IsLeader() }, "it does not lead")
		s.end()
	}
}

// T2: a node that took more for committed than its log holds could not lead. It fails, and says why; the process lives.
func TestWhoTakesMoreForCommittedThanItHoldsDoesNotLead(t *testing.T) {
	s := newFollower(t)
	n := s.node
	require.True(t, n.box.follow(9))
	n.stepDown(1, ErrHigherTerm)
	n.role = RoleCandidate
	n.becomeLeader()
	s.pass(time.Second)
	assert.Equal(t, RoleFailed, n.role)
	assert.ErrorIs(t, n.Status().Err, ErrCorrupt)
	assert.Len(t, s.fsm.errors(), 1)
	s.shutDown()
}
