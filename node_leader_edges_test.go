package graft

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// fourth is a peer that is no member of a group on a stage yet.
var fourth = PeerID{Address: "10.0.0.4:1"}

// change begins a change on the node.
func (s *stage) change(what string, begin func(n *Node, done Closure)) *owed {
	a := s.call(what)
	begin(s.node, a.closed)
	return a
}

// settles waits until a change is over.
func (s *stage) settles(a *owed) {
	s.t.Helper()
	s.until(func() bool { return a.times > 0 }, a.what+" does not end")
	require.NoError(s.t, a.err)
}

// A2: everybody gets the outcome of his own entry, also if others do not want to know theirs.
func TestOutcomesFindTheirOwnersAmongOthersWithoutDone(t *testing.T) {
	for wanted := range 1 << 5 { // who of five has a Done
		s := newLeader(t, 1, NodeOptions{})
		var mine []*owed
		before := len(s.fsm.applied())
		for i := range 5 {
			if wanted>>i&1 == 0 {
				s.node.proposals.add(Task{Data: []byte(fmt.Sprint(i))})
			} else {
				mine = append(mine, s.apply(fmt.Sprint(i)))
			}
		}
		s.pass(time.Second)
		require.Equal(t, []string{"0", "1", "2", "3", "4"}, s.fsm.applied()[before:])
		for _, a := range mine {
			require.Equal(t, slices.Index(s.fsm.applied(), a.what)+1, a.result, "entry %s of %b", a.what, wanted)
		}
		s.end()
	}
}

// X5: proposals that are refused one by one because of their term cost the budget nothing, nor does what is taken along with them.
func TestProposalsOfAnotherTermCostNothing(t *testing.T) {
	s := newLeader(t, 1, NodeOptions{})
	for i := range 6 {
		a := s.call(fmt.Sprint(i))
		s.node.Apply(Task{Data: []byte("some bytes"), ExpectedTerm: int64(i % 3 * 99), Done: a.done})
		if i%3 != 0 {
			a.then = func() { assert.ErrorIs(t, a.err, ErrTermMismatch) }
		}
	}
	s.end() // looks at the budget
}

// X5: what is refused takes memory until its proposer has been told. A callback that takes long keeps that from being done: then proposals
// that are tried again and again are too many some time, at a node that does not lead as well.
func TestRefusedProposalsArePendingUntilTheyAreTold(t *testing.T) {
	const most = 10
	s := newStage(t, 3, NodeOptions{MaxPendingEntries: most})
	s.pass(100 * time.Millisecond)
	n := s.node
	var waiting, overloaded []*owed
	n.aside(func() { // somebody is called back, and is not through for long
		for i := range 3 * most {
			a := s.apply(fmt.Sprint(i))
			n.step(n.now, nil)
			if a.times == 0 {
				waiting = append(waiting, a)
			} else {
				overloaded = append(overloaded, a)
			}
		}
		n.proposals.add(Task{Data: []byte("too many")})
	})
	s.pass(time.Second)
	assert.Len(t, waiting, most)
	for _, a := range waiting {
		assert.ErrorIs(t, a.err, ErrNotLeader)
	}
	for _, a := range overloaded {
		assert.ErrorIs(t, a.err, ErrOverloaded)
	}
	n.proposals.add(Task{Data: []byte("nobody wants to know")})
	s.end() // looks at the budget
}

// prompt is storage that has written what it is given before the call returns; and the state machine has applied it by then.
type prompt struct {
	LogStorage
	s *stage
}

func (p prompt) Append(b entry.Batch, commit int64, done func(error)) {
	p.LogStorage.Append(b, commit, func(error) {})
	done(nil)
	f := p.s.node.fsm
	f.step(p.s.node.now, nil)
}

// A4, C6: who waits for an entry, and by whom it is to be acknowledged, is known before storage gets it. However fast that is, the
// entry is committed, and its proposer gets the result.
func TestStorageMayBeFasterThanTheLeader(t *testing.T) {
	s := newLeader(t, 1, NodeOptions{})
	s.node.lm.store = prompt{s.node.lm.store, s}
	for i := range 3 {
		a := s.apply(fmt.Sprint(i))
		s.pass(time.Second)
		require.Equal(t, 1, a.times, "entry %d", i)
		assert.NoError(t, a.err)
		assert.Equal(t, i+1, a.result)
	}
	s.end()
}

// M22, V13: when a change is called off nothing of it is left, neither at peers that were to be added nor at members that were to get
// another role: those are sent entries as fast as any.
func TestAChangeThatIsCalledOffLeavesNoWatch(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 10 * time.Second, CatchupTimeout: time.Hour})
	s.settles(s.change("add learner", func(n *Node, done Closure) { n.AddLearner(fourth, done) }))
	r := s.node.replicators[fourth]
	s.loyal = false // nobody answers for a moment
	a := s.change("promote", func(n *Node, done Closure) { n.AddPeer(fourth, done) })
	s.pass(100 * time.Millisecond)
	require.NotNil(t, r.watched)
	called := s.call("cancel")
	s.node.cancelChange(called.closed)
	s.pass(100 * time.Millisecond)
	require.NoError(t, called.err)
	assert.ErrorIs(t, a.err, ErrCanceled)
	assert.Same(t, r, s.node.replicators[fourth], "it is a member")
	assert.Nil(t, r.watched)
	f, _ := s.node.Status().follower(fourth)
	assert.False(t, f.CatchingUp)
	s.loyal = true
	s.end()
}

// V13, X7: a peer that is added again while it was being let go belongs to the group, and is let go when it is removed again.
func TestAPeerThatIsAddedAgainIsLetGoLater(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 10 * time.Second})
	s.settles(s.change("add", func(n *Node, done Closure) { n.AddLearner(fourth, done) }))
	r := s.node.replicators[fourth]
	s.change("remove", func(n *Node, done Closure) { n.RemoveLearner(fourth, done) })
	s.until(func() bool { return r.leavingOn != 0 }, "it is not let go")
	again := s.change("add again", func(n *Node, done Closure) { n.AddLearner(fourth, done) })
	s.settles(again)
	require.Same(t, r, s.node.replicators[fourth], "it had not left yet")
	s.settles(s.change("remove again", func(n *Node, done Closure) { n.RemoveLearner(fourth, done) }))
	s.until(func() bool { return s.node.replicators[fourth] == nil }, "it is not let go")
	s.end()
}

// M23: that C<old,new> is committed is heard of more than once, late too. It ends that stage, and not the next one.
func TestALateNoticeOfACommitEndsNoOtherStage(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 2 * time.Second})
	conf, err := NewConfiguration(append(stageConf(0).Peers(), fourth, PeerID{Address: "10.0.0.5:1"})...)
	require.NoError(t, err)
	a := s.change("change", func(n *Node, done Closure) { n.ChangePeers(conf, done) })
	late := func(stage Stage) {
		t.Helper()
		s.until(func() bool { return s.node.ctx.Stage() == stage }, "it does not come to that")
		s.silent = true
		s.pass(time.Second)
		require.Equal(t, stage, s.node.ctx.Stage(), "nobody has got the entry")
		index := s.node.conf.index
		s.node.onOwnCommit()
		require.Equal(t, stage, s.node.ctx.Stage())
		require.Equal(t, index, s.node.conf.index, "nothing was appended")
		s.silent = false
	}
	late(StageJoint)
	late(StageStable)
	s.settles(a)
	s.end()
}

// deaf is a transport whose peers answer one method in their own way.
type deaf struct {
	rpc.Transport
	s      *stage
	method string
	answer func() *rpc.Reply // nil: none
}

func (d deaf) Call(address string, c rpc.Call) {
	if c.Method != d.method {
		d.Transport.Call(address, c)
		return
	}
	d.s.asked[c.Method]++
	d.s.sim.After(time.Millisecond, func() {
		if r := d.answer(); r != nil {
			c.Done(*r)
		}
	})
}

// V4: the time for a transfer begins with it, however long the leader has led.
func TestATransferHasAnElectionTimeout(t *testing.T) {
	const timeout = time.Second
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: timeout})
	s.pass(10 * timeout)
	s.silent = true // so that the peer lacks an entry
	s.apply("entry")
	s.pass(10 * time.Millisecond)
	a := s.call("transfer")
	s.node.transferTo(PeerID{Address: stagePeers[1]}, a.closed)
	s.pass(timeout * 9 / 10)
	require.NoError(t, a.err)
	require.NotNil(t, s.node.transfer)
	require.Zero(t, s.asked[methodTimeoutNow], "the peer lacks an entry")
	s.pass(timeout / 5)
	assert.Nil(t, s.node.transfer)
	s.silent = false
	s.end()
}

// V4: a peer that lacks an entry, committed or not, is not asked to take over; with it, it is at once.
func TestATransferWaitsForWhatIsNotCommittedToo(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 10 * time.Second})
	s.silent = true
	s.apply("entry")
	s.pass(10 * time.Millisecond)
	require.Less(t, s.node.box.index(), s.last())
	a := s.call("transfer")
	s.node.transferTo(PeerID{Address: stagePeers[1]}, a.closed)
	s.pass(time.Second)
	require.Zero(t, s.asked[methodTimeoutNow])
	s.stored = s.last()
	s.until(func() bool { return s.asked[methodTimeoutNow] == 1 }, "it is not asked")
}

// V4: a transfer that the peer refuses is over at once: the leader takes proposals again.
func TestARefusedTransferIsOver(t *testing.T) {
	for name, answer := range map[string]*rpc.Reply{
		"refused":     {},
		"an error":    {Code: int32(ErrInvalid), Text: "node is not active"},
		"unreachable": {Err: rpc.ErrUnreachable},
	} {
		s := newLeader(t, 3, NodeOptions{ElectionTimeout: 10 * time.Second})
		b, err := proto.Marshal(&raftpb.TimeoutNowResponse{Term: proto.Int64(s.node.term), Success: proto.Bool(false)})
		require.NoError(t, err)
		if answer.Err == nil && answer.Code == 0 {
			answer.Message = b
		}
		s.node.host.rpc = deaf{s.node.host.rpc, s, methodTimeoutNow, func() *rpc.Reply { return answer }}
		a := s.call("transfer")
		s.node.transferTo(PeerID{Address: stagePeers[1]}, a.closed)
		s.pass(100 * time.Millisecond)
		require.Equal(t, 1, s.asked[methodTimeoutNow], name)
		assert.Nil(t, s.node.transfer, name)
		taken := s.apply("entry")
		s.pass(time.Second)
		assert.NoError(t, taken.err, name)
		s.end()
	}
}

// V4, M11, M15: the successor is a voter that votes freely, has the longest log and, of those, has applied most of it.
func TestTheBestSuccessor(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 10 * time.Second})
	n, one, two := s.node, PeerID{Address: stagePeers[1]}, PeerID{Address: stagePeers[2]}
	s.settles(s.change("add learner", func(n *Node, done Closure) { n.AddLearner(fourth, done) }))
	s.pass(time.Second)
	best := func() PeerID {
		p, ok := n.successor()
		require.True(t, ok)
		return p
	}
	n.replicators[fourth].applied.Store(100)
	n.box.ack(n.term, fourth, n.replicators[fourth].life, 100)
	for _, better := range []PeerID{one, two, one} {
		n.replicators[one].applied.Store(10)
		n.replicators[two].applied.Store(10)
		n.replicators[better].applied.Store(20)
		assert.Equal(t, better, best())
	}
	n.replicators[one].voteless.Store(true)
	assert.Equal(t, two, best())
	n.replicators[two].voteless.Store(true)
	_, ok := n.successor()
	assert.False(t, ok)
}

// A14, M21: a leader that is removed stays until what is in its log is committed, if that does not take long: its proposers need
// not learn of an unknown outcome.
func TestARemovedLeaderStaysUntilTheRestIsCommitted(t *testing.T) {
	const timeout = 10 * time.Second
	for _, commits := range []bool{true, false} {
		s := newLeader(t, 3, NodeOptions{ElectionTimeout: timeout})
		n, one := s.node, PeerID{Address: stagePeers[1]}
		s.silent = true
		s.change("remove", func(n *Node, done Closure) { n.RemovePeer(n.peer, done) })
		s.until(func() bool { return n.ctx.Stage() == StageStable }, "it is not in the log")
		rest := s.apply("rest")
		s.pass(100 * time.Millisecond)
		require.Equal(t, n.conf.index+1, s.last())
		s.stored = n.conf.index // as heartbeats tell
		s.until(func() bool { return n.departing != nil }, "it is not committed")
		n.acknowledged(n.term, one, n.replicators[one].life, s.last()) // one has the rest, which is not enough
		s.pass(time.Second)
		require.Equal(t, RoleLeader, n.role)
		require.Zero(t, s.asked[methodTimeoutNow])
		if commits {
			s.stored = s.last()
			s.until(func() bool { return rest.times == 1 }, "it is not committed")
			assert.NoError(t, rest.err)
		} else {
			s.pass(timeout)
			assert.ErrorIs(t, rest.err, ErrUnknownOutcome)
		}
		s.until(func() bool { return n.role == RoleFollower }, "it stays for ever")
		assert.Equal(t, 1, s.asked[methodTimeoutNow])
		s.end()
	}
}

// M21: only who holds what the leader that goes has committed is asked to take over.
func TestASuccessorThatLagsIsNotWoken(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 10 * time.Second})
	s.pass(time.Second)
	s.node.wakeSuccessor(s.last() + 1)
	s.pass(100 * time.Millisecond)
	assert.Zero(t, s.asked[methodTimeoutNow])
	s.node.wakeSuccessor(s.last())
	s.pass(100 * time.Millisecond)
	assert.Equal(t, 1, s.asked[methodTimeoutNow])
}

// L11: a follower whose forwarded read fails forwards the next one.
func TestReadsAreForwardedAfterAnError(t *testing.T) {
	s := newFollower(t)
	s.append(stagePeers[1], 1, 0, 0)
	s.pass(10 * time.Millisecond)
	var answer rpc.Reply
	s.node.host.rpc = deaf{s.node.host.rpc, s, methodReadIndex, func() *rpc.Reply { return &answer }}
	for i, answer2 := range []rpc.Reply{
		{Err: errors.New("lost")}, {Code: codeNoMethod}, {Code: int32(ErrNotLeader)}, {Message: []byte("no message")}, {},
	} {
		answer = answer2
		if i == 4 {
			b, err := proto.Marshal(&raftpb.ReadIndexResponse{Index: proto.Int64(0), Term: proto.Int64(1)})
			require.NoError(t, err)
			answer.Message = b
		}
		a := s.call(fmt.Sprint("read ", i))
		s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
		s.pass(100 * time.Millisecond)
		require.Equal(t, i+1, s.asked[methodReadIndex])
		require.Equal(t, 1, a.times)
		assert.Equal(t, i == 4, a.err == nil, "read %d: %v", i, a.err)
	}
	s.end()
}

// L11: a leader answers a read, and is not followed any more when the answer comes. What it promised may never come here: the reader is
// told so, whether another leader is known or not.
func TestAPromiseOfADeposedLeaderIsNotWaitedFor(t *testing.T) {
	for _, other := range []bool{true, false} {
		s := newFollower(t)
		s.append(stagePeers[1], 1, 0, 0)
		s.pass(10 * time.Millisecond)
		b, err := proto.Marshal(&raftpb.ReadIndexResponse{Index: proto.Int64(100), Term: proto.Int64(1)})
		require.NoError(t, err)
		s.node.host.rpc = deaf{s.node.host.rpc, s, methodReadIndex, func() *rpc.Reply {
			if other {
				s.append(stagePeers[2], 2, 0, 0)
			} else {
				s.node.post(func() { s.node.stepDown(5, ErrHigherTerm) })
			}
			return &rpc.Reply{Message: b}
		}}
		a := s.call("read")
		s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
		s.pass(time.Second)
		require.Equal(t, 1, a.times, "another leader is known: %v", other)
		assert.ErrorIs(t, a.err, ErrNotLeader)
	}
}

// muting is a transport over which some peers say that they do not vote freely.
type muting struct {
	rpc.Transport
	mute map[string]bool
}

func (m muting) Call(address string, c rpc.Call) {
	done := c.Done
	c.Done = func(r rpc.Reply) {
		if resp, err := wire.ParseAppendResponse(r.Message); m.mute[address] && c.Method == methodAppendEntries && r.Err == nil && err == nil {
			resp.Features |= featureVoteless
			r.Message = resp.Append(nil)
		}
		done(r)
	}
	m.Transport.Call(address, c)
}

// M11, M22: a change is entered into the log when most of those who vote then can, and most of those who vote now: until it is over they
// may be all there are.
func TestAChangeWaitsForMajoritiesThatCanVote(t *testing.T) {
	const fifth = "10.0.0.5:1"
	conf, err := NewConfiguration(append(stageConf(0).Peers(), fourth, PeerID{Address: fifth})...)
	require.NoError(t, err)
	for name, mute := range map[string][]string{
		"those who vote now":   stagePeers[1:],
		"those who will":       {fourth.Address, fifth},
		"one of each, and one": {stagePeers[1], fourth.Address, fifth},
	} {
		s := newLeader(t, 3, NodeOptions{ElectionTimeout: 2 * time.Second, CatchupTimeout: time.Minute})
		m := muting{s.node.host.rpc, make(map[string]bool)}
		for _, address := range mute {
			m.mute[address] = true
		}
		s.node.host.rpc = m
		s.pass(2 * time.Second)
		before := s.last()
		a := s.change(name, func(n *Node, done Closure) { n.ChangePeers(conf, done) })
		s.pass(10 * time.Second)
		require.Zero(t, a.times, name)
		assert.Equal(t, StageCatchingUp, s.node.ctx.Stage(), name)
		assert.Equal(t, before, s.last(), name)
		clear(m.mute)
		s.settles(a)
		s.end()
	}
}

// L11, A4: a leader that is removed steps down because its time is up, while reads wait for room for another round. Nobody contacts such a
// node any more, and it does not campaign, so nothing else will ever wake it: they are refused, and so is each read that comes later.
func TestReadsOfALeaderWhoseTimeIsUpAreAnswered(t *testing.T) {
	const timeout = 2 * time.Second
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: timeout})
	n := s.node
	s.silent = true
	s.change("remove", func(n *Node, done Closure) { n.RemovePeer(n.peer, done) })
	s.until(func() bool { return n.ctx.Stage() == StageStable }, "it is not in the log")
	s.apply("rest") // which keeps it in office for a while
	s.pass(10 * time.Millisecond)
	s.stored = n.conf.index
	s.until(func() bool { return n.departing != nil }, "it is not committed")
	s.loyal = false
	read := func() *owed {
		a := s.call(fmt.Sprint("read ", len(s.calls)))
		n.ReadIndexAsync(func(_ int64, err error) { a.closed(err) })
		s.pass(time.Millisecond)
		return a
	}
	var reads []*owed
	for range maxRounds + 2 {
		reads = append(reads, read())
	}
	require.False(t, n.reads.empty())
	s.until(func() bool { return n.role == RoleFollower }, "it stays for ever")
	s.pass(timeout)
	for _, a := range append(reads, read()) {
		require.Equal(t, 1, a.times, a.what)
		assert.ErrorIs(t, a.err, ErrNotLeader, a.what)
	}
	s.end()
}

// A4: the store fails while nothing of this group is being written, and proposals gather. They are refused when the leader sees it, and so are
// those that come later.
func TestProposalsThatGatherWhenTheStoreFailsAreAnswered(t *testing.T) {
	s := newLeader(t, 1, NodeOptions{})
	n := s.node
	g := s.gateOf()
	g.entries, g.states = true, true // storage is busy with others
	s.apply("in the log")
	s.pass(10 * time.Millisecond)
	require.Greater(t, n.lastOwn, n.fsm.applied.Load())
	s.fs.SetInjector(vfs.Fail(syscall.EIO, vfs.KindSync))
	other, err := n.host.StartNode("other", NodeOptions{StateMachine: &recorder{}, InitialConf: stageConf(0)})
	require.NoError(t, err)
	s.until(func() bool { return n.host.store.Err() != nil }, "the store does not fail")
	s.pass(n.quorumAt.Sub(n.host.env.Exec.Now()) - gatherMost/2)
	gathered := s.apply("gathered")
	s.pass(gatherMost / 4)
	require.True(t, n.gathering.Load())
	require.Equal(t, RoleLeader, n.role)
	s.pass(time.Second)
	require.Equal(t, RoleFailed, n.role)
	late := s.apply("late")
	s.pass(time.Second)
	for _, a := range []*owed{gathered, late} {
		require.Equal(t, 1, a.times, a.what)
		assert.ErrorIs(t, a.err, ErrNodeFailed, a.what)
	}
	g.open()
	s.end()
	other.Shutdown(nil)
	s.pass(time.Second)
}

// Whoever is told of a leader sees it: what tells runs beside the node's step, and may be ahead of its end.
func TestALeaderShowsBeforeItIsToldOf(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{ElectionTimeout: 20 * time.Second})
	n := s.node
	n.post(func() { n.stepDown(n.term+1, errors.New("simulated")) })
	s.pass(10 * time.Millisecond)
	require.False(t, n.IsLeader())
	require.Zero(t, n.LeaderID())
	other := PeerID{Address: stagePeers[1]}
	var follows, leads bool
	var stage Stage
	n.post(func() {
		n.follow(other, nil)
		follows = n.LeaderID().Same(other)
		n.unfollow(errors.New("simulated"))
	})
	s.pass(10 * time.Millisecond)
	n.post(func() {
		n.becomeLeader()
		leads = n.IsLeader()
		stage = n.view.Load().stage
	})
	s.pass(10 * time.Millisecond)
	assert.True(t, follows)
	assert.True(t, leads)
	assert.Equal(t, StageStable, stage, "no change can begin yet")
}
