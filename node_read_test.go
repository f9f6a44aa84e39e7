package graft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// X5: of read rounds that are over a leader keeps none, however many there are until it looks whether it is heard.
func TestRoundsThatAreOverAreForgotten(t *testing.T) {
	t.Run("a sole voter's", func(t *testing.T) {
		s := newLeader(t, 1, NodeOptions{ElectionTimeout: time.Hour})
		for range 1000 {
			a := s.call("read")
			s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
			s.pass(time.Microsecond)
		}
		assert.LessOrEqual(t, len(s.node.rounds), maxRounds)
		s.end()
	})
	t.Run("that others confirm", func(t *testing.T) {
		h := newLeaderByHand(t, 3)
		for range 50 { // in a time in which no heartbeat is due
			before, committed := len(h.asked), h.node.box.index()
			r := h.read()
			h.from(h.asked[before:], 1, 2)
			r.gets(t, committed)
			require.LessOrEqual(t, len(h.node.rounds), maxRounds)
		}
	})
}

// X1: what is wrong with the leader is not said of the node that was asked. Whoever asks it may try again, unless that cannot help.
func TestAFollowersReadTellsOfTheLeadersStateAsOfTheLeaders(t *testing.T) {
	for _, test := range []struct {
		answer    rpc.Reply
		code      Code
		temporary bool
		named     bool // the leader is, as what is wrong
	}{
		{rpc.Reply{Err: rpc.ErrTimeout}, ErrUnreachable, true, true},
		{rpc.Reply{Code: int32(ErrShutdown), Text: "node is shut down"}, ErrUnreachable, true, true},
		{rpc.Reply{Code: int32(ErrNotFound), Text: "peer_id not exist"}, ErrUnreachable, true, true},
		{rpc.Reply{Code: int32(ErrNodeFailed), Text: "node has failed"}, ErrUnreachable, true, true},
		{rpc.Reply{Code: codeBadRequest, Text: "Fail to parse"}, ErrUnreachable, true, true},
		{rpc.Reply{Code: -1}, ErrUnreachable, true, true},
		{rpc.Reply{Code: int32(ErrNotLeader), Text: "not leader"}, ErrNotLeader, true, false},
		{rpc.Reply{Code: int32(ErrOverloaded), Text: "overloaded"}, ErrOverloaded, true, true},
		{rpc.Reply{Code: int32(ErrGroupMismatch), Text: "another group's data"}, ErrGroupMismatch, false, true},
		{rpc.Reply{Code: codeNoMethod, Text: "Fail to find method"}, ErrNotSupported, false, true},
	} {
		s := newFollower(t)
		s.append(stagePeers[1], 1, 0, 0)
		s.pass(10 * time.Millisecond)
		s.node.host.rpc = deaf{s.node.host.rpc, s, methodReadIndex, func() *rpc.Reply { return &test.answer }}
		a := s.call("read")
		s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
		s.pass(100 * time.Millisecond)
		require.Equal(t, 1, a.times)
		e := new(Error)
		require.ErrorAs(t, a.err, &e)
		assert.Equal(t, test.code, e.Code, "%+v", test.answer)
		assert.Equal(t, test.temporary, e.Code.Temporary(), "%+v", test.answer)
		assert.Equal(t, test.named, e.Peer.Same(PeerID{Address: stagePeers[1]}), "%+v: %v", test.answer, e)
		if e.Code == ErrUnreachable {
			assert.ErrorContains(t, e.Err, test.answer.Text)
		}
		s.end()
	}
}

// keeping is a transport that keeps the calls of one method. Their time does not run out before the test says so.
type keeping struct {
	rpc.Transport
	method string
	calls  *[]rpc.Call
}

func (k keeping) Call(address string, c rpc.Call) {
	if c.Method != k.method {
		k.Transport.Call(address, c)
		return
	}
	*k.calls = append(*k.calls, c)
}

// A5: who waits for the leader's answer to a forwarded read is told of the node's end before those who wait for the end are, and not once
// more when the answer comes.
func TestForwardedReadsEndWithTheNode(t *testing.T) {
	index, term := int64(0), int64(1)
	served, err := proto.Marshal(&raftpb.ReadIndexResponse{Index: &index, Term: &term})
	require.NoError(t, err)
	for name, answer := range map[string]rpc.Reply{
		"an answer":              {Message: served},
		"a refusal":              {Code: int32(ErrNotLeader)},
		"no answer in good time": {Err: rpc.ErrTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			s := newFollower(t)
			s.append(stagePeers[1], 1, 0, 0)
			s.pass(10 * time.Millisecond)
			var calls []rpc.Call
			s.node.host.rpc = keeping{s.node.host.rpc, methodReadIndex, &calls}
			var reads []*owed
			read := func() {
				a := s.call("read")
				s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
				s.pass(time.Millisecond)
				reads = append(reads, a)
			}
			read()
			read() // and one that waits until that is over
			require.Len(t, calls, 1)
			over := s.call("shutdown")
			over.then = func() {
				for _, a := range reads {
					assert.Equal(t, 1, a.times, "answers when the node has ended")
					assert.ErrorIs(t, a.err, ErrShutdown)
				}
			}
			s.node.Shutdown(over.closed)
			s.pass(time.Second)
			calls[0].Done(answer)
			s.end()
		})
	}
}

// sluggish is a state machine whose OnApply runs something in the midst of it, once.
type sluggish struct {
	*recorder
	during func()
}

func (s *sluggish) OnApply(it *Iterator) {
	if f := s.during; f != nil {
		s.during = nil
		f()
	}
	s.recorder.OnApply(it)
}

// A4: whoever is refused something does not wait for a state machine that is busy, be he a proposer or a reader, here or at another node. Nor
// does he who waits for an entry that may never come.
func TestRefusalsDoNotWaitForAStateMachine(t *testing.T) {
	f := &sluggish{recorder: &recorder{}}
	s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Hour, StateMachine: f})
	s.fsm = f.recorder
	s.pass(time.Second)
	lead := stagePeers[1]
	require.True(t, s.leaderMessage(lead, 1, 0, 0, 0, dataAt(1, 1, "a")).Success)
	promise, err := proto.Marshal(&raftpb.ReadIndexResponse{Index: proto.Int64(100), Term: proto.Int64(1)})
	require.NoError(t, err)
	s.node.host.rpc = deaf{s.node.host.rpc, s, methodReadIndex, func() *rpc.Reply { return &rpc.Reply{Message: promise} }}
	read := func(what string) *owed {
		a := s.call(what)
		s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
		return a
	}
	waits := read("of what is promised")
	s.pass(10 * time.Millisecond)
	require.Zero(t, waits.times)

	asking, err := proto.Marshal(&raftpb.ReadIndexRequest{
		GroupId: proto.String("g"), ServerId: proto.String(stagePeers[2] + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
	})
	require.NoError(t, err)
	during := false
	f.during = func() {
		proposal := s.apply("at a follower")
		s.pass(10 * time.Millisecond)
		s.node.post(func() { s.node.stepDown(5, ErrHigherTerm) }) // there is no leader any more
		s.pass(10 * time.Millisecond)
		own := read("of a follower without a leader")
		var other int32
		s.serve(rpc.NewRequest(nodeService, methodReadIndex, asking, nil, stagePeers[2], func(code int32, _ string, _ []byte, _ [][]byte) { other = code }))
		s.pass(10 * time.Millisecond)
		for _, a := range []*owed{proposal, own, waits} {
			assert.Equal(t, 1, a.times, a.what)
			assert.ErrorIs(t, a.err, ErrNotLeader, a.what)
		}
		entries, _ := s.node.proposals.pending()
		assert.Zero(t, entries)
		assert.EqualValues(t, ErrNotLeader, other)
		during = true
	}
	s.leaderRequest(lead, 1, 1, 1, 2, dataAt(2, 1, "b"))
	s.pass(time.Second)
	require.True(t, during)
	s.end()
}
