package graft

import (
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/progress"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// newReplicatorOnStage makes a leader whose peers have all, and say nothing any more; and the replicator of one of them.
func newReplicatorOnStage(t *testing.T, entries int) (*stage, *replicator) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 20 * time.Second})
	for range entries {
		s.apply("entry")
		s.pass(100 * time.Millisecond)
	}
	s.pass(time.Second)
	s.loyal = false
	return s, s.node.replicators[PeerID{Address: stagePeers[1]}]
}

func (r *replicator) success(stored int64) (rpc.Reply, wire.AppendResponse) {
	resp := wire.AppendResponse{Term: r.term, Success: true, StoredIndex: stored, Features: featurePipeline}
	return rpc.Reply{Message: resp.Append(nil)}, resp
}

// R17, C2: that a peer's log meets the leader's at an entry does not mean that the entry is durable there.
func TestAProbeThatMatchesIsNoAcknowledgement(t *testing.T) {
	s, r := newReplicatorOnStage(t, 3)
	r.life = s.node.box.begin(r.term, r.peer) // nothing is known of it
	rep, _ := r.success(0)
	r.answered(sentRequest{prev: 3, last: 3, life: r.life, at: r.now, generation: r.p.Generation()}, rep)
	assert.Zero(t, s.node.box.acknowledgedBy(r.peer))
	rep, _ = r.success(2)
	r.answered(sentRequest{prev: 3, last: 3, life: r.life, at: r.now, generation: r.p.Generation()}, rep)
	assert.EqualValues(t, 2, s.node.box.acknowledgedBy(r.peer), "as far as it says")
	r.answered(sentRequest{prev: 2, last: 3, entries: true, life: r.life, at: r.now, generation: r.p.Generation()}, rep)
	assert.EqualValues(t, 3, s.node.box.acknowledgedBy(r.peer), "entries are acknowledged when they are durable")
}

// V3: what a peer has answered says that it lived when it was asked, not that it lives now.
func TestAnAnswerCountsFromWhenItWasAskedFor(t *testing.T) {
	s, r := newReplicatorOnStage(t, 0)
	s.pass(5 * time.Second)
	asked := s.node.host.env.Exec.Now().Add(-2 * time.Second)
	require.True(t, r.contact().Before(asked))
	rep, _ := r.success(0)
	_, ok := r.parse(rep, asked)
	require.True(t, ok)
	assert.Equal(t, asked, r.contact())
	r.parse(rep, asked.Add(-time.Second))
	assert.Equal(t, asked, r.contact(), "what was asked earlier, and answered later, says less")
}

// V13: a removed peer knows that it is if it was told of the commit of an entry that it holds.
func TestARemovedPeerHasToHoldItsRemoval(t *testing.T) {
	_, r := newReplicatorOnStage(t, 5)
	r.known = 0
	r.p.Match = 3
	rep, resp := r.success(0)
	r.progress(sentRequest{prev: 2, last: 3, commit: 6, entries: true, life: r.life, generation: r.p.Generation()}, rep, resp, true)
	assert.EqualValues(t, 3, r.known)
	r.known = 0
	r.heartbeatAnswered(rep, resp, true, r.life, 3, 6)
	assert.EqualValues(t, 3, r.known)
	r.heartbeatAnswered(rep, resp, true, r.life, 3, 1)
	assert.EqualValues(t, 3, r.known, "older news")
}

// M11: what a peer has answered before it lost its disk moves nothing.
func TestAnswersOfAnEarlierLifeMoveNothing(t *testing.T) {
	_, r := newReplicatorOnStage(t, 5)
	before := r.life
	r.applied.Store(5)
	r.regressed(0)
	require.NotEqual(t, before, r.life)
	assert.Zero(t, r.applied.Load(), "what it had applied is lost too")
	rep, resp := r.success(5)
	for _, sent := range []sentRequest{
		{prev: 4, last: 5, entries: true, life: before, commit: 5, generation: r.p.Generation()},
		{prev: 5, last: 5, life: before, commit: 5, generation: r.p.Generation()},
	} {
		r.progress(sent, rep, resp, true)
		assert.Zero(t, r.p.Match)
		assert.Zero(t, r.known)
		assert.Equal(t, progress.Probe, r.p.State)
	}
	r.heartbeatAnswered(rep, resp, true, before, 5, 5)
	assert.Zero(t, r.p.Match)
	assert.Zero(t, r.known)
}

// What such a peer takes then is more than before, though it had more once.
func TestALostPeerThatIsCaughtUpGrows(t *testing.T) {
	_, r := newReplicatorOnStage(t, 5)
	r.publish()
	r.regressed(0)
	r.publish()
	r.grownAt.Store(0)
	r.now = r.now.Add(time.Second)
	r.p.StoredUpTo(1)
	r.publish()
	assert.NotZero(t, r.grownAt.Load())
}

// A joiner whose disk was full has lost what it had copied. When there is space it begins anew, and that is progress though there
// was more before; but one whose disk is full again each time is given up.
func TestACopyThatBeginsAnewIsProgress(t *testing.T) {
	s, r := newReplicatorOnStage(t, 0)
	r.offer.lent = new(lentReader)
	timeout := s.node.o.CatchupTimeout
	watch := func() { r.watched = &catchupWatch{Catchup: progress.NewCatchup(10, timeout, r.now)} }
	verdict := func() progress.Verdict {
		r.touch(r.now) // it answers heartbeats
		r.checkInstall(r.watched)
		return r.watched.Judge(r.now, &r.p, 10_000, 0, true, true)
	}
	pass := func(d time.Duration) progress.Verdict {
		r.now = r.now.Add(d)
		return verdict()
	}
	attempt := func() {
		r.p.BeginSnapshot()
		r.copied.store(wire.AppendResponse{})
	}
	copied := func(done int64, loads bool) {
		r.copied.store(wire.AppendResponse{InstallDone: done, InstallTotal: 100, InstallLoads: loads})
	}
	full := rpc.Reply{Code: int32(ErrNoSpace), Text: "full"}

	watch()
	attempt()
	copied(90, false)
	require.Equal(t, progress.Lagging, pass(timeout/2))
	r.installFailed(full)
	for range maxFruitless { // it is refused, while others may need the space
		attempt()
		r.installFailed(full)
		require.Equal(t, progress.Lagging, pass(timeout/10))
	}
	attempt()
	for done := range int64(50) {
		copied(done+1, false)
		require.Equal(t, progress.Lagging, pass(timeout/2))
	}
	for range 10 {
		copied(100, true)
		require.Equal(t, progress.Lagging, pass(timeout/2))
	}

	watch()
	attempts := 0
	for v := progress.Lagging; v == progress.Lagging; attempts++ {
		require.Less(t, attempts, 100)
		attempt()
		copied(90, true)
		v = pass(timeout / 2)
		r.installFailed(full)
	}
	assert.LessOrEqual(t, attempts, 2*maxFruitless+2)
}

// As much as there is may be on the way.
func TestTheWindowMayBeUnbounded(t *testing.T) {
	s, r := newReplicatorOnStage(t, 1)
	s.node.o.MaxInflightBytes, s.node.o.MaxInflightRequests = math.MaxInt, math.MaxInt
	r.budget = newBudget(&s.node.o)
	calls := r.calls
	s.apply("a")
	s.pass(time.Millisecond)
	assert.Greater(t, r.calls, calls)
}

// M22: a new peer that loses its disk is given the time to get everything again.
func TestALossIsProgressAgainFromThereOn(t *testing.T) {
	s, r := newReplicatorOnStage(t, 0)
	at := func(part int64) time.Time { return r.now.Add(time.Duration(part) * s.node.o.CatchupTimeout / 10) }
	r.watched = &catchupWatch{Catchup: progress.NewCatchup(10, s.node.o.CatchupTimeout, r.now)}
	judge := func(part, match int64) progress.Verdict {
		p := progress.Progress{State: progress.Replicate, Match: match, Next: match + 1}
		return r.watched.Judge(at(part), &p, 10_000, 0, true, true)
	}
	require.Equal(t, progress.Lagging, judge(0, 5000))
	r.regressed(0)
	assert.Equal(t, progress.Lagging, judge(9, 1))
	assert.Equal(t, progress.Lagging, judge(18, 1))
	assert.Equal(t, progress.Stalled, judge(19, 1))
}

// M22: a new peer works as a voter when it votes freely, and its state machine is about as far as the leader's.
func TestANewPeersStateMachineHasToFollow(t *testing.T) {
	s, r := newReplicatorOnStage(t, 0)
	margin := int64(s.node.o.CatchupMargin)
	r.watched = &catchupWatch{}
	s.node.fsm.applied.Store(margin + 100)
	for applied, works := range map[int64]bool{0: false, 99: false, 100: true, margin + 200: true} {
		r.applied.Store(applied)
		assert.Equal(t, works, r.worksAsVoter(), "%d", applied)
	}
	r.voteless.Store(true)
	assert.False(t, r.worksAsVoter())
}

// T1: a request to a braft peer has as many entries as that takes, and not one more.
func TestRequestsToBraftPeersAreLimitedToTheEntry(t *testing.T) {
	for _, sizes := range [][]int{{1}, {9}, {10}, {11}, {25}, {5, 5}, {5, 5, 5}, {4, 20}, {10, 1}, {9, 1, 1}} {
		r := new(replicator)
		first, all := int64(1), 0
		for _, n := range sizes {
			var b entry.Builder
			b.Reset(first)
			for range n {
				b.AppendData(1, nil)
			}
			r.batches = append(r.batches, b.Build())
			first += int64(n)
			all += n
		}
		r.limitEntries(10)
		count := 0
		for _, b := range r.batches {
			assert.EqualValues(t, count+1, b.First, "%v", sizes)
			count += b.Count
		}
		assert.Equal(t, min(all, 10), count, "%v", sizes)
	}
}

// E8: nothing is sent of what the log holds once the node does not lead in the replicator's term any more: it may be another leader's.
func TestWhatAnotherLeaderWroteIsNotSent(t *testing.T) {
	s, r := newReplicatorOnStage(t, 3)
	batches, err := s.node.lm.entries(nil, 2, 1<<20)
	require.NoError(t, err)
	r.p = progress.New(1)
	asked := s.asked[methodAppendEntries]
	require.True(t, r.sendEntries(batches))
	require.Equal(t, asked+1, s.asked[methodAppendEntries])
	for _, lead := range []int64{0, r.term + 1} {
		s.node.lm.setLead(lead)
		r.p = progress.New(1)
		calls := r.calls
		assert.False(t, r.sendEntries(batches))
		assert.False(t, r.sendEntries(nil))
		assert.Equal(t, calls, r.calls)
		assert.Equal(t, asked+1, s.asked[methodAppendEntries])
	}
}

// reading is storage that has the test do something before it reads, or when it has read.
type reading struct {
	LogStorage
	before, after func()
}

func (r reading) Read(first int64, most int) (entry.Batch, error) {
	if r.before != nil {
		r.before()
	}
	b, err := r.LogStorage.Read(first, most)
	if r.after != nil {
		r.after()
	}
	return b, err
}

// deposedBy has the node hear of a leader of the next term, which has committed entries of its own behind those that are committed.
func (s *stage) deposedBy(data ...string) {
	n := s.node
	committed, term := n.box.index(), n.term
	b := dataAt(committed+1, term+1, data...)
	m := &wire.AppendRequest{
		GroupID: []byte("g"), ServerID: []byte(stagePeers[2] + ":0"), PeerID: []byte(stagePeers[0] + ":0"),
		Term: term + 1, PrevTerm: term, PrevIndex: committed, Commit: b.Last(), Entries: b,
	}
	req := rpc.NewRequest(raftService, methodAppendEntries, nil, nil, stagePeers[2], func(int32, string, []byte, [][]byte) {})
	n.step(n.now, []func(){func() {
		n.stepDown(term+1, errors.New("there is a later term"))
		n.savedTerm.Store(term + 1) // and that is durable
		n.onAppend(req, m)
	}})
}

// newColdLeader makes a leader with entries that nobody else gets, and the replicator of a peer that needs the given one of them next,
// which is not in memory any more.
func newColdLeader(t *testing.T, lost, next int) (*stage, *replicator) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 20 * time.Second, CacheBytes: 1})
	for range 3 {
		s.apply("entry")
		s.pass(100 * time.Millisecond)
	}
	s.loyal = false
	committed := s.node.box.index()
	for range lost {
		s.apply("lost")
		s.pass(100 * time.Millisecond)
	}
	s.pass(time.Second)
	require.Equal(t, committed, s.node.box.index())
	r := s.node.replicators[PeerID{Address: stagePeers[1]}]
	r.p = progress.New(1)
	r.p.SnapshotInstalled(committed + int64(next) - 1)
	require.False(t, s.node.lm.cached(r.p.Next))
	return s, r
}

// heard is a transport that keeps the requests of one kind.
type heard struct {
	rpc.Transport
	appends  []wire.AppendRequest
	timeouts []time.Duration // of these
}

func (h *heard) Call(address string, c rpc.Call) {
	if m, err := wire.ParseAppendRequest(slices.Concat(c.Message...), slices.Concat(c.Attachment...)); c.Method == methodAppendEntries && err == nil {
		h.appends, h.timeouts = append(h.appends, m), append(h.timeouts, c.Timeout)
	}
	h.Transport.Call(address, c)
}

// E8: a replicator reads from the disk when the node hears of the next leader, and of what that has committed. Nothing of it is sent
// under the old term, neither the entries nor the commit index: whoever does not know the next leader yet holds other entries there, and would
// take those for committed.
func TestADeposedLeaderDoesNotTellOfItsSuccessorsCommits(t *testing.T) {
	s, r := newColdLeader(t, 2, -2)
	n, committed := s.node, s.node.box.index()
	out := &heard{Transport: n.host.rpc}
	n.host.rpc = out
	deposed := false
	n.lm.store = reading{LogStorage: n.lm.store, after: func() {
		if !deposed {
			deposed = true
			s.deposedBy("its", "and its")
		}
	}}
	r.heartbeatAt = time.Time{}
	r.step(n.host.env.Exec.Now(), nil)
	require.True(t, deposed)
	require.Equal(t, committed+2, n.box.index())
	assert.Empty(t, out.appends)
	n.lm.store = n.lm.store.(reading).LogStorage
	s.end()
}

// A7: what a replicator is about to read is cut off by the next leader. It does not find that any more, which says nothing about the disk: the
// node follows.
func TestADeposedLeaderThatFindsNoEntriesIsSound(t *testing.T) {
	s, r := newColdLeader(t, 3, 2)
	n, next := s.node, r.p.Next
	deposed := false
	n.lm.store = reading{LogStorage: n.lm.store, before: func() {
		if !deposed {
			deposed = true
			s.deposedBy("its")
			require.Less(t, n.lm.lastIndex(), next)
		}
	}}
	r.step(n.host.env.Exec.Now(), nil)
	require.True(t, deposed)
	assert.True(t, r.blockedTill.IsZero(), "it takes that for an error")
	r.unreadable(wal.ErrCompacted)
	assert.False(t, r.offer.holding, "nor does it offer a snapshot any more")
	n.lm.store = n.lm.store.(reading).LogStorage
	s.end()
	require.NoError(t, n.Status().Err)
	assert.Equal(t, RoleFollower, n.role)
}

// A7: so it is if the leader finds that it cannot read, and is deposed before it has taken note of that. Whoever reads next will find it again.
func TestADeposedLeaderNeedNotRead(t *testing.T) {
	s, r := newColdLeader(t, 3, 2)
	r.unreadable(errors.New("simulated"))
	s.deposedBy("its")
	s.end()
	require.NoError(t, s.node.Status().Err)
	assert.Equal(t, RoleFollower, s.node.role)
}

// senseless are answers that no peer gives: without what an answer needs, or with a term that there cannot be.
var senseless = map[string][]byte{
	"nothing":                  nil,
	"rubbish":                  []byte("rubbish"),
	"no success":               (&wire.AppendResponse{Term: 1}).Append(nil)[:2],
	"a term that there is not": (&wire.AppendResponse{Term: maxTerm, Success: true}).Append(nil),
	"another":                  (&wire.AppendResponse{Term: maxTerm + 1, LastIndex: 7, HasLastIndex: true}).Append(nil),
}

// T2: an answer that makes no sense is as good as none: the peer is asked again after a pause, and Status says why.
func TestAnAnswerThatMakesNoSenseIsAFailure(t *testing.T) {
	for name, message := range senseless {
		t.Run(name, func(t *testing.T) {
			s, r := newReplicatorOnStage(t, 3)
			r.p = progress.New(3) // it probes
			asked := r.calls
			r.send()
			require.Equal(t, asked+1, r.calls)
			sent := sentRequest{prev: 3, last: 3, life: r.life, at: r.now, generation: r.p.Generation()}
			r.answered(sent, rpc.Reply{Message: message})
			s.pass(time.Millisecond)
			requests, _ := r.p.Inflight()
			assert.Zero(t, requests, "it is not on the way any more")
			assert.False(t, r.blockedTill.IsZero(), "not again at once")
			assert.Equal(t, 1, r.failures)
			assert.ErrorIs(t, r.lastErr, ErrInvalid)
			rep := rpc.Reply{Message: message}
			resp, ok := r.parse(rep, r.now)
			r.heartbeatAnswered(rep, resp, ok, r.life, 3, 3)
			assert.Equal(t, 2, r.failures, "so it is with heartbeats")
			s.loyal = true
			s.apply("another")
			s.pass(2 * r.interval())
			assert.Equal(t, s.last(), r.p.Match)
			assert.NoError(t, r.lastErr)
			assert.True(t, s.node.IsLeader())
			s.end()
		})
	}
}

// T2: so it is with the answer to a request to install a snapshot.
func TestAnInstallIsOverWhenTheAnswerMakesNoSense(t *testing.T) {
	for _, term := range []int64{maxTerm, maxTerm + 1} {
		_, r := newReplicatorOnStage(t, 0)
		r.offer.lent = new(lentReader)
		r.p.BeginSnapshot()
		message, err := proto.Marshal(&raftpb.InstallSnapshotResponse{Term: &term, Success: proto.Bool(true)})
		require.NoError(t, err)
		r.installAnswered(r.offer.asked, r.life, r.now, rpc.Reply{Message: message})
		assert.Equal(t, progress.Probe, r.p.State, "%d", term)
		assert.False(t, r.blockedTill.IsZero(), "%d", term)
	}
}

// A higher term that there can be is the node's business: nothing is counted, and nothing is sent any more.
func TestAHigherTermIsNoFailure(t *testing.T) {
	s, r := newReplicatorOnStage(t, 3)
	rep := rpc.Reply{Message: (&wire.AppendResponse{Term: maxTerm - 1}).Append(nil)}
	resp, ok := r.parse(rep, r.now)
	r.failures = 0
	r.progress(sentRequest{prev: 3, last: 3, life: r.life, at: r.now, generation: r.p.Generation()}, rep, resp, ok)
	r.heartbeatAnswered(rep, resp, ok, r.life, 3, 3)
	assert.Zero(t, r.failures)
	s.pass(time.Millisecond)
	assert.EqualValues(t, maxTerm-1, s.node.term)
	assert.False(t, s.node.IsLeader())
}

// M11: a peer's replicator is dropped while it takes in that the peer has lost its disk, and the peer is added again. What it
// acknowledges to its new replicator counts, whatever the old one still makes of that.
func TestADroppedReplicatorLeavesItsSuccessorAlone(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 20 * time.Second})
	s.settles(s.change("add", func(n *Node, done Closure) { n.AddLearner(fourth, done) }))
	n := s.node
	old := n.replicators[fourth]
	n.step(n.now, []func(){func() {
		n.dropReplicator(old)
		n.replicatorOf(fourth)
	}})
	old.regressed(0) // its step has gone on all the time
	r := n.replicators[fourth]
	require.NotSame(t, old, r)
	n.acknowledged(n.term, fourth, old.life, 2)
	assert.Zero(t, n.box.acknowledgedBy(fourth), "that is said of an earlier life")
	n.acknowledged(n.term, fourth, r.life, 2)
	assert.EqualValues(t, 2, n.box.acknowledgedBy(fourth))
	r.regressed(0)
	n.acknowledged(n.term, fourth, r.life, 1)
	assert.EqualValues(t, 1, n.box.acknowledgedBy(fourth), "it has lost its disk once more")
	s.end()
}

// A7: a leader that cannot open its log for want of descriptors goes on leading, and reads again after a pause.
func TestALeaderWaitsForDescriptors(t *testing.T) {
	s, r := newColdLeader(t, 3, 2)
	n, sent := s.node, r.calls
	store, asked := n.lm.store, 0
	n.lm.store = reading{LogStorage: &lockedStorage{LogStorage: store}, before: func() { asked++ }}
	r.step(n.host.env.Exec.Now(), nil)
	s.pass(100 * time.Millisecond)
	require.Equal(t, 1, asked)
	require.Equal(t, sent, r.calls)
	require.ErrorIs(t, r.status.load().Err, wal.ErrNotOpened, "Status says why")
	require.NoError(t, n.Status().Err)
	require.Equal(t, RoleLeader, n.role)
	s.pass(2 * busyDelay)
	require.LessOrEqual(t, asked, 4, "after a pause each")
	n.lm.store, s.loyal = store, true
	s.pass(2 * busyDelay)
	require.Equal(t, RoleLeader, n.role)
	assert.Equal(t, n.lm.lastIndex(), n.box.index(), "what nobody got is sent")
	s.end()
}

// A peer that refuses to go on behind what it has acknowledged, and has not lost it, holds another log. That is said, and it is asked again
// after a pause each: there is nothing else to look for.
func TestAPeerThatContradictsItselfIsNotAskedWithoutEnd(t *testing.T) {
	s, r := newReplicatorOnStage(t, 3)
	out := &heard{Transport: s.node.host.rpc}
	s.node.host.rpc = out
	r.p = progress.New(r.p.Match + 1) // it probes
	r.p.SnapshotInstalled(3)
	resp := wire.AppendResponse{Term: r.term, LastIndex: 150, HasLastIndex: true, Features: featurePipeline}
	refused := 0
	for range 200 {
		r.step(s.node.host.env.Exec.Now(), nil)
		for ; refused < len(out.appends); refused++ {
			r.answered(sentRequest{prev: r.p.Match, last: r.p.Match, life: r.life, at: r.now, generation: r.p.Generation()}, rpc.Reply{Message: resp.Append(nil)})
		}
		s.pass(10 * time.Millisecond)
	}
	assert.ErrorIs(t, r.status.load().Err, ErrCorrupt, "Status says why")
	assert.Positive(t, refused)
	assert.LessOrEqual(t, refused, 8, "in two seconds")
	s.end()
}
