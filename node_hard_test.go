package graft

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/raftpb"
)

// filler is another group on the node's disk.
type filler struct {
	*stage
	g *wal.Group
}

// fillAll fills the node's disk, until not even the space is left that is kept for terms, votes and configurations.
func (s *stage) fillAll() filler {
	s.t.Helper()
	g, err := s.node.host.store.Group("filler")
	require.NoError(s.t, err)
	f := filler{s, g}
	s.fs.SetCapacity(s.fs.Used())
	for f.more() {
		require.Less(s.t, g.Recovered().Last, int64(100_000), "there is always space")
	}
	return f
}

// more writes configurations and reports whether there was space for them.
func (f filler) more() bool {
	f.t.Helper()
	var b entry.Builder
	b.Reset(f.g.Recovered().Last + 1)
	for range 50 {
		b.AppendConf(1, f.node.o.InitialConf.strings(), nil)
	}
	over, result := false, error(nil)
	f.g.Append(b.Build(), 0, func(err error) { over, result = true, err })
	f.pass(time.Millisecond)
	require.True(f.t, over)
	require.True(f.t, result == nil || errors.Is(result, wal.ErrNoSpace), "%v", result)
	return result == nil
}

// led is what a leader begins with: its configuration, then data.
func (s *stage) led(term int64, data ...string) entry.Batch {
	var b entry.Builder
	b.Reset(1)
	b.AppendConf(term, s.node.o.InitialConf.strings(), nil)
	for _, d := range data {
		b.AppendData(term, []byte(d))
	}
	return b.Build()
}

// vote has a peer whose log ends so ask for the node's vote in a term.
func (s *stage) vote(term, lastTerm, lastIndex int64) *raftpb.RequestVoteResponse {
	s.t.Helper()
	r := s.send(methodRequestVote, &raftpb.RequestVoteRequest{
		GroupId: proto.String("g"), ServerId: proto.String(stagePeers[2] + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
		Term: &term, LastLogTerm: &lastTerm, LastLogIndex: &lastIndex, GraftGroupId: proto.Uint64(s.node.groupIDNow.Load()),
	})
	s.pass(10 * time.Millisecond)
	require.True(s.t, r.over)
	m := new(raftpb.RequestVoteResponse)
	require.NoError(s.t, proto.Unmarshal(r.message, m))
	return m
}

// D14, D10: that a node began with nothing it still knows after a crash, though there was space for entries and none, just before, for
// its term and for that. Its vote, and whoever it votes for, would make a majority without those who know what it has acknowledged.
func TestAFullDiskDoesNotHideThatItWasLost(t *testing.T) {
	for _, first := range []bool{false, true} {
		s := stageOn(t, vfs.NewMem(), 3, NodeOptions{ElectionTimeout: time.Hour, FirstStart: first})
		s.pass(time.Second)
		other := s.fillAll()
		s.append(stagePeers[1], 5, 0, 0) // a heartbeat
		s.pass(time.Millisecond)
		require.True(t, s.node.hard.refused, "there was space for the term")
		s.fs.SetCapacity(-1)
		s.until(other.more, "there is no space")
		r := s.leaderRequest(stagePeers[1], 5, 0, 0, 0, s.led(5, "a", "b"))
		s.pass(5 * time.Millisecond)
		st := SimStateOf(s.node)
		require.False(t, r.over || st.Saved, "term 5 is durable")
		require.EqualValues(t, 3, st.Durable)

		again := stageOn(t, s.fs.CrashClone(nil), 3, NodeOptions{ElectionTimeout: time.Hour, FirstStart: first})
		again.pass(time.Second)
		require.EqualValues(t, 3, again.last())
		assert.Equal(t, !first, again.node.Status().Waiting)
		m := again.vote(6, 5, 3)
		assert.True(t, m.GetGranted())
		assert.Equal(t, !first, m.GetGraftWaiting())
	}
}

// D14: so it is if all there is on its disk is where the log goes on behind a snapshot.
func TestWithoutATermANodeHasBegunWithNothing(t *testing.T) {
	s := stageOn(t, vfs.NewMem(), 3, NodeOptions{ElectionTimeout: time.Hour})
	for _, r := range []wal.Recovered{{First: 1}, {First: 1, Last: 3}, {First: 8, Last: 7}, {First: 8, Last: 9, Commit: 8}} {
		s.node.waiting = false
		s.node.recoverHard(r)
		assert.True(t, s.node.waiting, "%+v", r)
		r.Hard.Term = 1
		s.node.recoverHard(r)
		assert.False(t, s.node.waiting, "%+v", r)
	}
}

// E3, D10: a node that had space for entries of a term, and none for the term, does not go back behind it: it would take a leader that
// is deposed for the one to follow, and what that one sends for damage.
func TestAFullDiskDoesNotTakeANodeBackBehindItsLog(t *testing.T) {
	s := newFollower(t)
	require.True(t, s.leaderMessage(stagePeers[1], 5, 0, 0, 0, entry.Batch{First: 1}).Success)
	g := s.gateOf()
	g.full = true
	r := s.leaderRequest(stagePeers[2], 6, 0, 0, 1, s.led(6))
	s.pass(5 * time.Millisecond)
	s.leaderRequest(stagePeers[2], 6, 1, 6, 1, dataAt(2, 6, "a"))
	s.pass(5 * time.Millisecond)
	require.False(t, r.over, "term 6 is durable")

	again := stageOn(t, s.fs.CrashClone(nil), 3, NodeOptions{ElectionTimeout: time.Hour})
	again.pass(10 * time.Millisecond)
	require.EqualValues(t, 2, again.last())
	again.atRest()
	assert.False(t, again.node.Status().Waiting)
	resp := again.leaderMessage(stagePeers[1], 5, 0, 0, 0, again.led(5, "b"))
	assert.False(t, resp.Success)
	assert.EqualValues(t, 6, resp.Term)
	assert.True(t, again.leaderMessage(stagePeers[2], 6, 2, 6, 2, entry.Batch{First: 3}).Success)
	again.end()
}

// E3, D10: nor does it know what is committed from the leader of a term that it has forgotten: be it by its log, by a snapshot or by what
// its state machine has kept. The entries may be of an earlier term, and that one has others at their place.
func TestNothingIsCommittedBeforeItsTermIsDurable(t *testing.T) {
	s := newFollower(t)
	require.True(t, s.leaderMessage(stagePeers[1], 5, 0, 0, 0, entry.Batch{First: 1}).Success)
	g := s.gateOf()
	g.full = true
	s.leaderRequest(stagePeers[2], 6, 0, 0, 1, s.led(4))
	s.pass(5 * time.Millisecond)
	s.leaderRequest(stagePeers[2], 6, 1, 4, 2, dataAt(2, 4, "a"))
	s.pass(5 * time.Millisecond)
	s.node.heedRemoval(PeerID{Address: stagePeers[1]}, &raftpb.RequestVoteResponse{
		GraftConfIndex: proto.Int64(1), GraftConfTerm: proto.Int64(4), GraftConfPeers: stageConf(1, 2).strings(),
	})
	s.pass(5 * time.Millisecond)
	assert.Zero(t, s.node.Status().CommitIndex)
	assert.Zero(t, s.node.Status().AppliedIndex)

	again := stageOn(t, s.fs.CrashClone(nil), 3, NodeOptions{ElectionTimeout: time.Hour})
	again.pass(10 * time.Millisecond)
	require.EqualValues(t, 2, again.last())
	assert.True(t, again.leaderMessage(stagePeers[1], 5, 0, 0, 0, again.led(5, "b", "c")).Success)
	again.atRest()
	again.end()

	g.open()
	s.pass(2 * spaceRetry)
	assert.EqualValues(t, 2, s.node.Status().CommitIndex, "nobody says it again")
	assert.EqualValues(t, 2, s.node.Status().AppliedIndex)
	s.end()
}

// R17: whoever hears of a success does not say again what is committed, so that is known here before the answer goes out.
func TestWhatCameBeforeItsTermWasDurableIsCommittedThen(t *testing.T) {
	s := newFollower(t)
	g := s.gateOf()
	g.states = true
	r := s.leaderRequest(stagePeers[2], 6, 0, 0, 2, s.led(6, "a"))
	s.pass(time.Second)
	require.False(t, r.over)
	require.Zero(t, s.node.Status().CommitIndex)
	s.leaderRequest(stagePeers[2], 6, 0, 0, 1, entry.Batch{First: 1}) // it is late, and says less
	g.open()
	for !r.over {
		s.pass(time.Microsecond)
	}
	assert.EqualValues(t, 2, s.node.box.index())
	s.end()
}

// L11, D10: readers do not wait for a disk that has no space for the term, which may be for ever.
func TestReadersDoNotWaitForSpace(t *testing.T) {
	s := newFollower(t)
	require.True(t, s.leaderMessage(stagePeers[1], 5, 0, 0, 0, entry.Batch{First: 1}).Success)
	g := s.gateOf()
	g.full = true
	s.leaderRequest(stagePeers[2], 6, 0, 0, 1, s.led(4))
	s.pass(5 * time.Millisecond)
	var errs []error
	s.node.forwarding, s.node.forwarded = true, []read{{done: func(_ int64, err error) { errs = append(errs, err) }}}
	message, err := proto.Marshal(&raftpb.ReadIndexResponse{Term: proto.Int64(6), Index: proto.Int64(1)})
	require.NoError(t, err)
	s.node.post(func() { s.node.onForwarded(s.node.leader, rpc.Reply{Message: message}) })
	s.pass(2 * spaceRetry)
	require.Len(t, errs, 1)
	assert.ErrorIs(t, errs[0], ErrNoSpace)
	g.open()
	s.pass(2 * spaceRetry)
	s.end()
}
