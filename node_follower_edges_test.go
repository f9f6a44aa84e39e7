package graft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// leaderMessage has a peer that leads send a request, and returns the answer, which must come, without an error.
func (s *stage) leaderMessage(leader string, term, prev, prevTerm, commit int64, b entry.Batch) wire.AppendResponse {
	s.t.Helper()
	r := s.leaderRequest(leader, term, prev, prevTerm, commit, b)
	s.pass(10 * time.Millisecond)
	require.True(s.t, r.over, "no answer")
	require.Zero(s.t, r.code, r.text)
	resp, err := wire.ParseAppendResponse(r.message)
	require.NoError(s.t, err)
	return resp
}

// leaderRequest has a peer that leads send a request.
func (s *stage) leaderRequest(leader string, term, prev, prevTerm, commit int64, b entry.Batch) *response {
	m := wire.AppendRequest{
		GroupID: []byte("g"), ServerID: []byte(leader + ":0"), PeerID: []byte(stagePeers[0] + ":0"),
		Term: term, PrevTerm: prevTerm, PrevIndex: prev, Commit: commit, Entries: b,
	}
	return s.request(methodAppendEntries, slices.Concat(m.AppendHead(nil), b.Metas, m.AppendTail(nil)), b.Data)
}

// dataAt makes entries of a term.
func dataAt(first, term int64, data ...string) entry.Batch {
	var b entry.Builder
	b.Reset(first)
	for _, d := range data {
		b.AppendData(term, []byte(d))
	}
	return b.Build()
}

// confBatch makes a configuration entry, with an old half if it is joint.
func confBatch(index, term int64, conf, old Configuration) entry.Batch {
	var b entry.Builder
	b.Reset(index)
	b.AppendConf(term, conf.strings(), old.strings())
	return b.Build()
}

// stageConf is the configuration of some of the stage's peers, by their numbers.
func stageConf(numbers ...int) Configuration {
	var peers []PeerID
	for _, i := range numbers {
		peers = append(peers, PeerID{Address: fmt.Sprintf("10.0.0.%d:1", i+1)})
	}
	c, err := NewConfiguration(peers...)
	if err != nil {
		panic(err)
	}
	return c
}

// newFollower starts one of three members, which does not campaign.
func newFollower(t *testing.T) *stage {
	s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Hour})
	s.pass(time.Second)
	return s
}

// R17: what was matched with a leader stays so, though messages about earlier places come later.
func TestWhatWasMatchedStaysMatched(t *testing.T) {
	s := newFollower(t)
	lead := stagePeers[1]
	require.True(t, s.leaderMessage(lead, 1, 0, 0, 0, dataAt(1, 1, "a", "b", "c", "d", "e")).Success)
	for _, prev := range []int64{2, 0} {
		resp := s.leaderMessage(lead, 1, prev, min(prev, 1), 1+prev, entry.Batch{First: prev + 1})
		assert.True(t, resp.Success)
		assert.EqualValues(t, 5, resp.StoredIndex, "a probe of %d", prev)
	}
	resp := s.leaderMessage(lead, 1, 0, 0, 0, dataAt(1, 1, "a", "b")) // late
	assert.True(t, resp.Success)
	s.leaderMessage(lead, 1, 5, 1, 5, entry.Batch{First: 6})
	assert.EqualValues(t, 5, s.node.Status().CommitIndex)
}

// C10: a commit index counts up to the entry that the message names, or the last one it carries, and no further, though more was matched
// earlier: whoever sends it vouches for no more. braft's followers do the same.
func TestACommitIndexCountsUpToWhatTheMessageNames(t *testing.T) {
	s := newFollower(t)
	lead := stagePeers[1]
	require.True(t, s.leaderMessage(lead, 1, 0, 0, 0, dataAt(1, 1, "a", "b", "c", "d", "e")).Success)
	for _, m := range []struct {
		prev, last, commit, want int64
	}{
		{prev: 0, last: 0, commit: 5, want: 0},
		{prev: 2, last: 2, commit: 5, want: 2},
		{prev: 0, last: 3, commit: 5, want: 3}, // the entries are here already
		{prev: 1, last: 1, commit: 5, want: 3},
		{prev: 4, last: 4, commit: 2, want: 3},
		{prev: 5, last: 5, commit: 9, want: 5},
	} {
		b := dataAt(m.prev+1, 1, []string{"a", "b", "c", "d", "e"}[m.prev:m.last]...)
		require.True(t, s.leaderMessage(lead, 1, m.prev, min(m.prev, 1), m.commit, b).Success)
		assert.Equal(t, m.want, s.node.Status().CommitIndex, "after %+v", m)
	}
}

// E8: no leader has entries of a later term than its own, and none behind one of a later term.
func TestEntriesOfImpossibleTermsAreRefused(t *testing.T) {
	s := newFollower(t)
	lead := stagePeers[1]
	require.True(t, s.leaderMessage(lead, 2, 0, 0, 0, dataAt(1, 2, "a")).Success)
	for _, term := range []int64{1, 4, 5} { // behind an entry of term 2, by the leader of term 3
		r := s.leaderRequest(lead, 3, 1, 2, 0, dataAt(2, term, "b"))
		s.pass(10 * time.Millisecond)
		require.True(t, r.over)
		assert.NotZero(t, r.code, "an entry of term %d was taken", term)
		assert.EqualValues(t, 1, s.last())
	}
	require.True(t, s.leaderMessage(lead, 3, 1, 2, 0, dataAt(2, 3, "b")).Success)
}

// R1: of a batch whose first part is in the log already only the rest is appended, and noted: each entry has one term, and each
// configuration one place.
func TestOfABatchThatIsThereInPartTheRestIsTaken(t *testing.T) {
	s := newFollower(t)
	lead := stagePeers[1]
	var b entry.Builder
	b.Reset(1)
	b.AppendData(1, []byte("a"))
	b.AppendConf(2, stageConf(0, 1, 2).strings(), nil)
	b.AppendData(3, []byte("c"))
	b.AppendConf(4, stageConf(0, 1).strings(), nil)
	b.AppendData(4, []byte("e"))
	all := b.Build()
	for last := int64(1); last <= 5; last++ {
		require.True(t, s.leaderMessage(lead, 4, 0, 0, 0, all.Upto(last)).Success)
		require.Equal(t, last, s.last())
		for i, term := range []int64{1, 2, 3, 4, 4}[:last] {
			require.Equal(t, term, s.node.lm.term(int64(i+1)), "entry %d of %d", i+1, last)
		}
		var places []int64
		for _, e := range confsLogged(s.node) {
			places = append(places, e.index)
		}
		require.Equal(t, fmt.Sprint([]int64{2, 4}[:last/2]), fmt.Sprint(places))
		for i, run := range s.node.lm.runs[1:] {
			require.Greater(t, run.First, s.node.lm.runs[i].First)
			require.Greater(t, run.Term, s.node.lm.runs[i].Term)
		}
	}
	assert.Equal(t, stageConf(0, 1), s.node.Status().Conf)
}

// M2, M7: a configuration that stands where another was cut off is another one, also at the same index.
func TestAConfigurationTakesThePlaceOfAnotherAtItsIndex(t *testing.T) {
	s := newFollower(t)
	require.True(t, s.leaderMessage(stagePeers[1], 1, 0, 0, 0, dataAt(1, 1, "a")).Success)
	require.True(t, s.leaderMessage(stagePeers[1], 1, 1, 1, 0, confBatch(2, 1, stageConf(0, 1), Configuration{})).Success)
	require.Equal(t, stageConf(0, 1), s.node.Status().Conf)
	term := int64(1)
	for _, c := range [][2]Configuration{{stageConf(0, 2), {}}, {stageConf(0, 2), stageConf(0, 1)}, {stageConf(0, 2), stageConf(0, 1, 2)}} {
		term++
		require.True(t, s.leaderMessage(stagePeers[2], term, 1, 1, 0, confBatch(2, term, c[0], c[1])).Success)
		assert.Equal(t, c[0], s.node.Status().Conf, "term %d", term)
		assert.True(t, c[1].Equal(s.node.Status().OldConf), "term %d", term)
	}
}

// gate is storage that keeps back what it is asked, or refuses it, as long as the test wants.
type gate struct {
	LogStorage
	entries bool // entries and cuts are kept back
	states  bool // so are hard states
	full    bool // hard states are refused
	kept    []func()
}

func (g *gate) pass(keep bool, do func()) {
	if keep {
		g.kept = append(g.kept, do)
		return
	}
	do()
}

func (g *gate) Append(b entry.Batch, commit int64, done func(error)) {
	g.pass(g.entries, func() { g.LogStorage.Append(b, commit, done) })
}

func (g *gate) TruncateSuffix(last int64, done func(error)) {
	g.pass(g.entries, func() { g.LogStorage.TruncateSuffix(last, done) })
}

func (g *gate) SaveHardState(h wal.HardState, commit int64, done func(error)) {
	if g.full {
		done(errFull)
		return
	}
	g.pass(g.states, func() { g.LogStorage.SaveHardState(h, commit, done) })
}

// open lets go of what was kept back.
func (g *gate) open() {
	g.entries, g.states, g.full = false, false, false
	kept := g.kept
	g.kept = nil
	for _, do := range kept {
		do()
	}
}

// gateOf puts a gate before the node's storage.
func (s *stage) gateOf() *gate {
	g := &gate{LogStorage: s.node.store}
	s.node.store, s.node.lm.store = g, g
	return g
}

// A5: who sent entries that are cut off before they are durable gets an answer. It is no success, and names the present term.
func TestEntriesThatAreCutOffBeforeTheyAreDurableAreAnswered(t *testing.T) {
	s := newFollower(t)
	g := s.gateOf()
	g.entries = true
	var waiting []*response
	for i := range int64(3) {
		waiting = append(waiting, s.append(stagePeers[1], 1, i, min(i, 1), "lost"))
	}
	s.pass(time.Second)
	for _, r := range waiting {
		require.False(t, r.over)
	}
	s.append(stagePeers[2], 2, 1, 1, "kept")
	s.pass(10 * time.Millisecond)
	require.False(t, waiting[0].over, "it is not cut off")
	g.open()
	s.pass(time.Second)
	for i, r := range waiting {
		require.True(t, r.over, "entry %d", i+1)
		resp, err := wire.ParseAppendResponse(r.message)
		require.NoError(t, err)
		assert.False(t, resp.Success, "entry %d", i+1)
		assert.EqualValues(t, 2, resp.Term)
	}
}

// E3, D7: that entries are durable is not said in a term which is not, not even if an earlier one has become so meanwhile.
func TestNothingIsSaidInATermThatIsNotDurable(t *testing.T) {
	s := newFollower(t)
	g := s.gateOf()
	g.states = true
	first := s.append(stagePeers[1], 1, 0, 0)
	s.pass(10 * time.Millisecond)
	g.full = true
	second := s.append(stagePeers[2], 2, 0, 0, "a")
	s.pass(10 * time.Millisecond)
	kept := g.kept
	g.kept, g.states = nil, false
	for _, do := range kept { // term 1
		do()
	}
	s.pass(10 * time.Millisecond)
	third := s.append(stagePeers[2], 2, 1, 2, "b")
	s.pass(5 * time.Second)
	require.EqualValues(t, 2, s.node.Status().DurableIndex)
	require.EqualValues(t, 2, s.node.Status().Term)
	assert.False(t, second.over, "term 2 is not durable")
	assert.False(t, third.over, "term 2 is not durable")
	g.open()
	s.pass(5 * time.Second)
	assert.True(t, first.over && second.over && third.over)
}

// D14: that it votes freely from now on a node says only when that is durable: a crash would make it wait again.
func TestThatANodeVotesFreelyIsSaidWhenItIsDurable(t *testing.T) {
	s := newFollower(t)
	s.node.waiting = true
	s.node.voteless.Store(true)
	lead := stagePeers[1]
	require.True(t, s.leaderMessage(lead, 1, 0, 0, 0, dataAt(1, 1, "a", "b")).Success)
	g := s.gateOf()
	g.states = true
	s.leaderRequest(lead, 1, 2, 1, 2, entry.Batch{First: 3})
	s.pass(10 * time.Millisecond)
	require.False(t, s.node.waiting, "it has what the leader has committed")
	resp := s.leaderMessage(lead, 1, 2, 1, 2, dataAt(3, 1, "c"))
	assert.NotZero(t, resp.Features&featureVoteless)
	g.open()
	s.pass(time.Second)
	resp = s.leaderMessage(lead, 1, 3, 1, 2, dataAt(4, 1, "d"))
	assert.Zero(t, resp.Features&featureVoteless)
}

// H-13: a replica that began with nothing is up to date when its disk holds what the leader has committed, not before: else a crash, or a disk
// that is full, would make it forget that once more.
func TestAReplicaIsUpToDateOnceThatIsOnItsDisk(t *testing.T) {
	s := newFollower(t)
	s.node.waiting = true
	s.node.voteless.Store(true)
	lead := stagePeers[1]
	g := s.gateOf()
	g.entries = true
	s.leaderRequest(lead, 1, 0, 0, 0, dataAt(1, 1, "a", "b"))
	s.pass(10 * time.Millisecond)
	s.leaderRequest(lead, 1, 2, 1, 2, entry.Batch{First: 3})
	s.pass(10 * time.Millisecond)
	require.EqualValues(t, 2, s.node.matched)
	assert.True(t, s.node.waiting)
	g.open()
	s.pass(time.Second)
	s.leaderMessage(lead, 1, 2, 1, 2, entry.Batch{First: 3})
	assert.False(t, s.node.waiting)
}

// E1, E5: answers to what a node asked for before it followed a leader, or before it stepped down, are void: it does not stand for
// election because of them.
func TestAnswersToAVoteThatIsOverAreVoid(t *testing.T) {
	granted := &raftpb.RequestVoteResponse{Term: proto.Int64(1), Granted: proto.Bool(true)}
	preVote := func(n *Node) { n.preVote() }
	elect := func(n *Node) { n.elect(nil) }
	for _, test := range []struct {
		name string
		ask  func(n *Node)
		end  func(n *Node, s *stage)
	}{
		{"a leader of its term is heard", preVote, func(n *Node, s *stage) { s.append(stagePeers[1], 1, 0, 0) }},
		{"a leader of a later term is heard", preVote, func(n *Node, s *stage) { s.append(stagePeers[1], 2, 0, 0) }},
		{"a candidate hears of a leader", elect, func(n *Node, s *stage) { s.append(stagePeers[1], n.term, 0, 0) }},
		{"a candidate hears of another term", elect, func(n *Node, _ *stage) { n.stepDown(n.term+1, ErrHigherTerm) }},
		{"a candidate gives up", elect, func(n *Node, _ *stage) { n.stepDown(n.term, ErrQuorumLost) }},
		{"another pre-vote", preVote, func(n *Node, _ *stage) { n.preVote() }},
	} {
		s := newFollower(t)
		n := s.node
		n.stepDown(1, ErrHigherTerm)
		s.pass(10 * time.Millisecond)
		test.ask(n)
		s.pass(10 * time.Millisecond)
		asked := n.voteRound
		test.end(n, s)
		s.pass(10 * time.Millisecond)
		term := n.term
		for round := range asked + 1 {
			for _, peer := range stagePeers[1:] {
				n.onVoteAnswer(round, PeerID{Address: peer}, granted)
			}
		}
		s.pass(10 * time.Millisecond)
		assert.Equal(t, RoleFollower, n.role, test.name)
		assert.Equal(t, term, n.term, test.name)
	}
}

// E12: a node that has seen its leader's process die grants others its pre-vote at once.
func TestADeadLeaderIsNotHeard(t *testing.T) {
	s := newFollower(t)
	s.append(stagePeers[1], 1, 0, 0)
	ask := func() bool {
		r := s.send(methodPreVote, &raftpb.RequestVoteRequest{
			GroupId: proto.String("g"), ServerId: proto.String(stagePeers[2] + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
			Term: proto.Int64(2), LastLogTerm: proto.Int64(1), LastLogIndex: proto.Int64(1),
		})
		s.pass(10 * time.Millisecond)
		m := new(raftpb.RequestVoteResponse)
		require.NoError(t, proto.Unmarshal(r.message, m))
		return m.GetGranted()
	}
	require.False(t, ask(), "a live leader is heard")
	s.node.onPeerDown(stagePeers[2])
	require.False(t, ask(), "somebody else has died")
	s.node.onPeerDown(stagePeers[1])
	assert.True(t, ask())
	s.append(stagePeers[1], 1, 0, 0)
	s.pass(10 * time.Millisecond)
	assert.False(t, ask(), "it lives after all")
}
