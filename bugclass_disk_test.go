package graft

import (
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// large fills a disk soon.
var large = strings.Repeat(" ", 4<<10)

// refusals is how often storage has refused something.
func (s *stage) refusals() int64 { return int64(s.node.host.StorageStats().Refusals) }

// atRest holds that all of the log, term and vote are durable.
func (s *stage) atRest() {
	s.t.Helper()
	if st := SimStateOf(s.node); st.Durable != st.Last || st.SavedTerm != st.Term || !st.Saved {
		s.t.Errorf("%d of %d entries are durable, and term %d of %d; all of term and vote: %v", st.Durable, st.Last, st.SavedTerm, st.Term, st.Saved)
	}
	assert.NoError(s.t, s.node.Status().Err)
}

// D10: what was taken before the disk proved full waits for space, and is written when there is some, though nobody proposes anything more.
func TestEntriesThatFoundNoSpaceAreWrittenLater(t *testing.T) {
	s := newLeader(t, 1, NodeOptions{})
	s.fs.SetCapacity(s.fs.Used())
	var calls []*owed
	for i := range 100 {
		calls = append(calls, s.apply(fmt.Sprint(i, large)))
	}
	s.pass(5 * time.Second)
	require.Positive(t, s.refusals())
	require.Zero(t, calls[len(calls)-1].times, "there was space for all")
	s.fs.SetCapacity(-1)
	s.pass(5 * time.Second)
	s.atRest()
	for _, a := range calls {
		assert.NoError(t, a.err)
	}
	s.end()
}

// D10: the same at a follower, whose leader sends nothing again.
func TestEntriesThatFoundNoSpaceAreAcknowledgedLater(t *testing.T) {
	s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	s.pass(time.Second)
	s.fs.SetCapacity(s.fs.Used())
	var answers []*response
	for i := range int64(100) {
		answers = append(answers, s.append(stagePeers[1], 1, i, min(i, 1), large))
	}
	s.pass(5 * time.Second)
	require.Positive(t, s.refusals())
	require.False(t, answers[len(answers)-1].over, "there was space for all")
	s.fs.SetCapacity(-1)
	s.pass(5 * time.Second)
	s.atRest()
	for _, r := range answers {
		require.True(t, r.over)
		resp, err := wire.ParseAppendResponse(r.message)
		require.NoError(t, err)
		assert.True(t, resp.Success)
	}
}

// fillReserve fills the node's disk up to the space that is kept for configurations, terms and votes.
func (s *stage) fillReserve() {
	s.t.Helper()
	s.fs.SetCapacity(s.fs.Used())
	peers := s.node.o.InitialConf.strings()
	for answered := true; answered; {
		require.Less(s.t, s.last(), int64(100_000), "there is always space")
		prev := s.last()
		var b entry.Builder
		b.Reset(prev + 1)
		for range 50 {
			b.AppendConf(1, peers, nil)
		}
		r := s.appendBatch(stagePeers[1], 1, min(prev, 1), b.Build())
		s.pass(10 * time.Millisecond)
		answered = r.over
	}
}

// D7, D10: so do term and vote, if not even the space was left that is kept for them; whoever asked for the vote has his answer then, and not before.
func TestAVoteThatFoundNoSpaceIsWrittenLater(t *testing.T) {
	s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Hour})
	s.pass(time.Second)
	s.fillReserve()
	r := s.send(methodRequestVote, &raftpb.RequestVoteRequest{
		GroupId: proto.String("g"), ServerId: proto.String(stagePeers[1] + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
		Term: proto.Int64(2), LastLogTerm: proto.Int64(1), LastLogIndex: proto.Int64(1 << 20),
	})
	s.pass(5 * time.Second)
	require.False(t, SimStateOf(s.node).Saved, "there was space for the vote")
	require.False(t, r.over, "a vote that is not durable was given")
	s.fs.SetCapacity(-1)
	s.pass(5 * time.Second)
	s.atRest()
	require.True(t, r.over, "no answer")
	m := new(raftpb.RequestVoteResponse)
	require.NoError(t, proto.Unmarshal(r.message, m))
	assert.True(t, m.GetGranted())
	assert.EqualValues(t, 2, m.GetTerm())
}

// X10: a disk that hangs holds up those who need it. What a replicator has to read, entries that are in memory no more or a snapshot, is
// never read on the goroutine that reads a connection, where all other groups' answers from that host would wait too.
func TestNoConnectionWaitsForTheDisk(t *testing.T) {
	c := snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient, CacheBytes: 1, MaxAppendBytes: 2 << 10, MaxInflightRequests: 2})
	c.startLed()
	c.fsms[0].filler = 1 << 20
	var mu sync.Mutex
	var reads int
	var lent []string
	c.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind != vfs.KindRead && op.Kind != vfs.KindOpen {
			return nil
		}
		stack := string(debug.Stack())
		mu.Lock()
		defer mu.Unlock()
		reads++
		if strings.Contains(stack, ").PostInline(") {
			lent = append(lent, stack)
		}
		return nil
	})
	for round := range 4 {
		c.stop(1)
		for i := range 30 {
			c.propose(fmt.Sprint(round, "-", i, strings.Repeat(" ", 1000)))
		}
		if round%2 == 1 { // the log is cut: it needs a snapshot
			require.NoError(t, c.save(0))
		}
		c.start(1)
		c.sameData(0, 1, 2)
	}
	require.NotEmpty(t, c.fsms[1].loaded())
	mu.Lock()
	defer mu.Unlock()
	require.NotZero(t, reads)
	assert.Empty(t, lent)
}
