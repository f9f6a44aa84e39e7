package graft

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// byHand is a group of which one node, the first member, is real and runs on the seeded executor. The test plays the others: it has every
// request of the node before it, and answers it when it likes. What it answers is what a healthy follower would.
//
// It is the node's transport. Ownership: the test's goroutine.
type byHand struct {
	t     *testing.T
	sim   *actor.Sim
	node  *Node
	start rpc.StartOptions
	asked []*asked         // by the node, in order
	last  map[string]int64 // by address, how far the logs of the others go
}

// asked is a request of the node to another member.
type asked struct {
	rpc.Call
	to   string
	over bool // it is answered
}

const handTerm = 1 // of all leaders

func handPeer(i int) PeerID { return PeerID{Address: fmt.Sprintf("10.0.0.%d:8000", i)} }

func handConf(t *testing.T, members ...int) Configuration {
	var peers []PeerID
	for _, i := range members {
		peers = append(peers, handPeer(i))
	}
	conf, err := NewConfiguration(peers...)
	require.NoError(t, err)
	return conf
}

// newByHand starts member 0 of a group of members.
func newByHand(t *testing.T, members int) *byHand {
	h := &byHand{t: t, sim: actor.NewSim(1), last: make(map[string]int64)}
	proc := h.sim.NewProcess(1)
	t.Cleanup(proc.Kill)
	e := &env.Env{Exec: proc, FS: vfs.NewMem(), Rand: h.sim.Rand().Uint64}
	host, err := NewHost(HostOptions{Address: handPeer(0).Address, Dir: "/data", SegmentSize: 64 << 10, Env: e, Transport: h})
	require.NoError(t, err)
	var all []int
	for i := range members {
		all = append(all, i)
	}
	h.node, err = host.StartNode("g", NodeOptions{
		StateMachine: new(recorder), InitialConf: handConf(t, all...), FirstStart: true, ElectionTimeout: time.Second, HeartbeatFactor: 10,
	})
	require.NoError(t, err)
	return h
}

// newLeaderByHand has member 0 be elected, and lead with an entry of its own that is committed.
func newLeaderByHand(t *testing.T, members int) *byHand {
	h := newByHand(t, members)
	h.faithful(func() bool { return h.node.role == RoleLeader && h.node.box.index() >= h.node.firstOwn })
	require.EqualValues(t, handTerm, h.node.term)
	settled := h.sim.Now().Add(time.Second / 4)
	h.faithful(func() bool { return h.sim.Now().After(settled) && h.open() > 0 })
	h.rest()
	h.answer(h.asked) // heartbeats: the next ones are due in a tenth of a second
	h.rest()
	return h
}

func (h *byHand) Start(o rpc.StartOptions) error { h.start = o; return nil }
func (h *byHand) Watch(string, bool)             {}
func (h *byHand) Retry(string)                   {}
func (h *byHand) Close() error                   { return nil }
func (h *byHand) Call(address string, c rpc.Call) {
	h.asked = append(h.asked, &asked{Call: c, to: address})
}

// rest lets what the node is about to do be done, in a time in which no heartbeat is due.
func (h *byHand) rest() { h.sim.RunFor(time.Millisecond) }

// faithful has everybody answer soon until cond holds.
func (h *byHand) faithful(cond func() bool) {
	h.t.Helper()
	const pause = 100 * time.Microsecond
	for limit := h.sim.Now().Add(time.Minute); !h.sim.RunUntil(pause, cond); h.answer(h.asked) {
		require.True(h.t, h.sim.Now().Before(limit), "it does not come to that")
	}
}

// open is how many requests have no answer.
func (h *byHand) open() (n int) {
	for _, a := range h.asked {
		if !a.over {
			n++
		}
	}
	return n
}

// from has some members give the answers that they have not given yet, and the node take note of them.
func (h *byHand) from(calls []*asked, members ...int) {
	h.t.Helper()
	n := 0
	for _, a := range calls {
		if slices.ContainsFunc(members, func(i int) bool { return handPeer(i).Address == a.to }) && !a.over {
			h.answer([]*asked{a})
			n++
		}
	}
	require.NotZero(h.t, n, "there is nothing that %v could answer", members)
	h.rest()
}

// answer answers requests that are not answered yet.
func (h *byHand) answer(calls []*asked) {
	for _, a := range slices.Clone(calls) {
		if a.over {
			continue
		}
		a.over = true
		switch message := slices.Concat(a.Message...); a.Method {
		case methodPreVote, methodRequestVote:
			h.reply(a, &raftpb.RequestVoteResponse{Term: &h.node.term, Granted: proto.Bool(true)})
		case methodAppendEntries:
			r, err := wire.ParseAppendRequest(message, slices.Concat(a.Attachment...))
			require.NoError(h.t, err)
			resp := h.stored(a.to, &r)
			a.Done(rpc.Reply{Message: resp.Append(nil)})
		default:
			require.Fail(h.t, "nobody answers "+a.Method)
		}
	}
}

func (h *byHand) reply(a *asked, m proto.Message) {
	b, err := proto.Marshal(m)
	require.NoError(h.t, err)
	a.Done(rpc.Reply{Message: b})
}

// stored is what a member answers to entries: its log is always a part of the node's.
func (h *byHand) stored(at string, r *wire.AppendRequest) wire.AppendResponse {
	resp := wire.AppendResponse{Term: r.Term, HasLastIndex: true, Features: featurePipeline}
	if resp.Success = r.PrevIndex <= h.last[at]; resp.Success {
		h.last[at] = max(h.last[at], r.PrevIndex+int64(r.Entries.Count))
		resp.StoredIndex = h.last[at]
	}
	resp.LastIndex = h.last[at]
	return resp
}

// propose has a leader append an entry.
func (h *byHand) propose() {
	h.node.Apply(Task{Data: []byte("x")})
	h.rest()
}

// handRead is a read of a test.
type handRead struct {
	over  bool
	index int64
	err   error
}

// read begins a read at the node.
func (h *byHand) read() *handRead {
	r := new(handRead)
	h.node.ReadIndexAsync(func(index int64, err error) {
		require.False(h.t, r.over, "a read is answered twice")
		r.over, r.index, r.err = true, index, err
	})
	h.rest()
	return r
}

// readFrom begins a read that another member asks the node for.
func (h *byHand) readFrom() *handRead {
	r, group, from, to := new(handRead), "g", handPeer(1).String(), h.node.peer.String()
	b, err := proto.Marshal(&raftpb.ReadIndexRequest{GroupId: &group, ServerId: &from, PeerId: &to})
	require.NoError(h.t, err)
	answer := func(code int32, _ string, message []byte, _ [][]byte) {
		require.False(h.t, r.over, "a read is answered twice")
		resp := new(raftpb.ReadIndexResponse)
		if r.over = true; code != 0 {
			r.err = Code(code)
		} else if r.err = proto.Unmarshal(message, resp); r.err == nil {
			r.index = resp.GetIndex()
		}
	}
	h.start.Serve(rpc.NewRequest(nodeService, methodReadIndex, b, nil, handPeer(1).Address, answer))
	h.rest()
	return r
}

// waits demands that a read has no answer.
func (r *handRead) waits(t *testing.T, why string) {
	t.Helper()
	if r.over {
		t.Fatalf("a read was answered with %d, %v, %s", r.index, r.err, why)
	}
}

// gets demands that a read has an index.
func (r *handRead) gets(t *testing.T, index int64) {
	t.Helper()
	require.True(t, r.over, "a read has no answer")
	require.NoError(t, r.err)
	assert.Equal(t, index, r.index, "the read index")
}

// eachReader runs a test of reads at the leader of a group: of its own, and of those that another member asks it for.
func eachReader(t *testing.T, members int, test func(t *testing.T, h *byHand, read func() *handRead)) {
	for name, read := range map[string]func(h *byHand) *handRead{"the leader's own": (*byHand).read, "a follower's": (*byHand).readFrom} {
		t.Run(name, func(t *testing.T) {
			h := newLeaderByHand(t, members)
			test(t, h, func() *handRead {
				t.Helper()
				return read(h)
			})
		})
	}
}

// L1: a new leader does not know what is committed until an entry of its own term is, and then it has to be confirmed like any other.
func TestANewLeaderReadsNothingBeforeItsOwnEntry(t *testing.T) {
	h := newByHand(t, 3)
	h.faithful(func() bool { return h.node.role == RoleLeader })
	first := h.node.firstOwn
	own, other := h.read(), h.readFrom()
	h.faithful(func() bool {
		committed := h.node.box.index() >= first
		if !committed {
			own.waits(t, "before an entry of its term was committed")
			other.waits(t, "before an entry of its term was committed")
		}
		return committed
	})
	before := len(h.asked)
	h.rest()
	own.waits(t, "which nobody has confirmed")
	other.waits(t, "which nobody has confirmed")
	h.from(h.asked[before:], 1)
	own.gets(t, first)
	other.gets(t, first)
}

// L2: what was sent before a read began says nothing about it: another may have been elected, and have acknowledged something, since it
// was answered. That holds for heartbeats, for entries, and for what an earlier round has sent.
func TestEarlierAnswersConfirmNoRead(t *testing.T) {
	for what, send := range map[string]func(h *byHand, read func() *handRead){
		"heartbeats": func(h *byHand, _ func() *handRead) {
			h.sim.RunFor(time.Second / 10)
		},
		"entries": func(h *byHand, _ func() *handRead) {
			h.propose()
		},
		"an earlier round": func(_ *byHand, read func() *handRead) {
			read()
		},
	} {
		t.Run(what, func(t *testing.T) {
			eachReader(t, 5, func(t *testing.T, h *byHand, read func() *handRead) {
				committed := h.node.box.index()
				send(h, read)
				early := h.asked
				r := read()
				late := h.asked[len(early):]
				h.from(early, 1, 2, 3, 4)
				r.waits(t, "when answers came to what was sent before it began")
				h.from(late, 1)
				r.waits(t, "when two of five had confirmed it")
				h.from(late, 2)
				r.gets(t, committed)
			})
		})
	}
}

// L2: a member counts once in a round, however many requests it answers: of the round, and of other kinds that were sent later.
func TestAMemberConfirmsAReadOnce(t *testing.T) {
	eachReader(t, 5, func(t *testing.T, h *byHand, read func() *handRead) {
		before, committed := len(h.asked), h.node.box.index()
		r := read()
		h.from(h.asked[before:], 1)
		h.propose()
		h.sim.RunFor(time.Second / 4)
		h.from(h.asked, 1)
		r.waits(t, "when one of the four others had answered all that it was asked")
		h.from(h.asked[before:], 2)
		r.gets(t, committed)
	})
}

// L1, M6: a round under a joint configuration takes majorities of both halves. The new half alone does not know whether the old one has
// elected another, who does not need it.
func TestBothHalvesConfirmARead(t *testing.T) {
	for _, test := range []struct {
		what          string
		first, second []int
	}{
		{"the new half first", []int{3, 4}, []int{1}},
		{"the old half first", []int{1, 2}, []int{4}},
	} {
		t.Run(test.what, func(t *testing.T) {
			eachReader(t, 3, func(t *testing.T, h *byHand, read func() *handRead) {
				h.node.ChangePeers(handConf(t, 0, 3, 4), func(error) {})
				h.faithful(func() bool { return h.node.conf.joint() })
				h.rest()
				before, committed := len(h.asked), h.node.box.index()
				r := read()
				late := h.asked[before:]
				h.from(late, test.first...)
				r.waits(t, "without a majority of one half")
				h.from(late, test.second...)
				r.gets(t, committed)
			})
		})
	}
}

// L2: a read is served by a round that was opened after it had begun, and none is taken along by one under way; whoever comes when
// enough of them are waits, and shares the next one.
func TestAReadJoinsNoRoundUnderWay(t *testing.T) {
	eachReader(t, 3, func(t *testing.T, h *byHand, read func() *handRead) {
		var rounds [maxRounds][]*asked
		var firsts [maxRounds]*handRead
		for i := range rounds {
			before := len(h.asked)
			firsts[i] = read()
			rounds[i] = h.asked[before:]
			require.Len(t, rounds[i], 2, "requests of a round")
		}
		before := len(h.asked)
		third, fourth := read(), read()
		require.Len(t, h.asked, before, "there are enough rounds")
		committed := h.node.box.index()

		for i, r := range firsts {
			h.from(rounds[i], 1, 2)
			r.gets(t, committed)
			for _, later := range firsts[i+1:] {
				later.waits(t, "by a round that was open when it began")
			}
		}
		next := h.asked[before:]
		require.Len(t, next, 2, "requests of the one round that is next")
		third.waits(t, "by a round that was open when it began")
		fourth.waits(t, "by a round that was open when it began")
		h.from(next, 1)
		third.gets(t, committed)
		fourth.gets(t, committed)
	})
}

// X5: a member that does not answer is not asked once more by each of the rounds that the others confirm; it is asked again when it has let
// those pass that it was asked by.
func TestASilentMemberIsAskedByFewReads(t *testing.T) {
	eachReader(t, 3, func(t *testing.T, h *byHand, read func() *handRead) {
		silent := func() (open []*asked) {
			for _, a := range h.asked {
				if a.to == handPeer(2).Address && !a.over {
					open = append(open, a)
				}
			}
			return open
		}
		for range 50 {
			before, committed := len(h.asked), h.node.box.index()
			r := read()
			h.from(h.asked[before:], 1)
			r.gets(t, committed)
		}
		const heartbeats = 2
		require.LessOrEqual(t, len(silent()), maxRoundCalls+heartbeats, "requests that wait for who does not answer")

		for _, a := range silent() {
			a.over = true
			a.Done(rpc.Reply{Err: rpc.ErrTimeout})
		}
		h.rest()
		before, committed := len(h.asked), h.node.box.index()
		r := read()
		h.from(h.asked[before:], 2)
		r.gets(t, committed)
	})
}

// fullOfRounds has member 1 confirm so many reads that member 2, which answers none of them yet, is asked no more. It returns what that one
// was asked for.
func (h *byHand) fullOfRounds(read func() *handRead) []*asked {
	h.t.Helper()
	before, committed := len(h.asked), h.node.box.index()
	for range maxRoundCalls + 1 {
		opened := len(h.asked)
		r := read()
		h.from(h.asked[opened:], 1)
		r.gets(h.t, committed)
	}
	require.EqualValues(h.t, maxRoundCalls, h.roundCalls(2))
	return h.askedOf(2, before)
}

func (h *byHand) roundCalls(member int) int32 {
	return h.node.replicators[handPeer(member)].roundCalls.Load()
}

// askedOf is what a member was asked for since so many requests had been made.
func (h *byHand) askedOf(member, since int) (of []*asked) {
	for _, a := range h.asked[since:] {
		if a.to == handPeer(member).Address {
			of = append(of, a)
		}
	}
	return of
}

// L11: a round asks a member later that it has skipped because of what that one had not answered yet. Whoever has confirmed reads faster may be
// dead, and the member the only one who can: reads would stand still until the round is given up.
func TestARoundAsksLaterWhomItSkipped(t *testing.T) {
	for what, answer := range map[string]func(h *byHand, a *asked){
		"as it answers": func(h *byHand, a *asked) { h.answer([]*asked{a}) },
		"as what it was asked for times out": func(_ *byHand, a *asked) {
			a.over = true
			a.Done(rpc.Reply{Err: rpc.ErrTimeout})
		},
	} {
		t.Run(what, func(t *testing.T) {
			eachReader(t, 3, func(t *testing.T, h *byHand, read func() *handRead) {
				began, committed := h.sim.Now(), h.node.box.index()
				old := h.fullOfRounds(read)
				require.Len(t, old, maxRoundCalls)
				before := len(h.asked)
				var rounds [maxRounds]*handRead
				for i := range rounds {
					rounds[i] = read()
				}
				late := read()
				require.Len(t, h.askedOf(1, before), maxRounds, "requests to whom the rounds do not skip")
				require.Empty(t, h.askedOf(2, before), "requests to whom they do")

				for i, a := range old {
					answer(h, a)
					h.rest()
					asks := min(i+1, maxRounds)
					require.Len(t, h.askedOf(2, before), asks, "requests after %d answers, one for each round at most", i+1)
					require.EqualValues(t, maxRoundCalls-(i+1)+asks, h.roundCalls(2), "requests of rounds without an answer")
				}
				for i, a := range h.askedOf(2, before) {
					rounds[i].waits(t, "by answers to rounds that were over")
					h.from([]*asked{a}, 2)
					rounds[i].gets(t, committed)
				}
				h.from(h.askedOf(2, before)[maxRounds:], 2)
				late.gets(t, committed)
				require.Len(t, h.askedOf(2, before), maxRounds+1, "requests of three rounds")
				assert.Less(t, h.sim.Now().Sub(began), h.node.quorumInterval(), "else the rounds may have been given up")
				assert.Zero(t, h.roundCalls(2), "requests of rounds without an answer")
			})
		})
	}
}

// L11: a round asks nobody any more once it is over.
func TestARoundThatIsOverAsksNobody(t *testing.T) {
	t.Run("it is confirmed", func(t *testing.T) {
		eachReader(t, 3, func(t *testing.T, h *byHand, read func() *handRead) {
			old := h.fullOfRounds(read)
			before := len(h.asked)
			h.from(old, 2)
			require.Empty(t, h.askedOf(2, before), "requests of rounds that are over")
			require.Zero(t, h.roundCalls(2))
		})
	})
	t.Run("its leadership has ended", func(t *testing.T) {
		eachReader(t, 3, func(t *testing.T, h *byHand, read func() *handRead) {
			old := h.fullOfRounds(read)
			before, r := len(h.asked), read()
			peer := h.node.replicators[handPeer(2)]
			h.node.post(func() { h.node.stepDown(h.node.term+1, &Error{Code: ErrHigherTerm}) })
			h.rest()
			require.ErrorIs(t, r.err, ErrNotLeader)
			h.from(old, 2)
			require.Empty(t, h.askedOf(2, before), "requests of a leadership that has ended")
			require.Zero(t, peer.roundCalls.Load())
		})
	})
}

// L2: the answer to what a follower has asked the leader for is for those who had begun before it asked. Whoever came later gets what the
// leader says to a request of his own, and waits until it is applied here.
func TestAReadJoinsNoForwardUnderWay(t *testing.T) {
	h := newByHand(t, 3)
	h.append(0, 3)
	require.Equal(t, RoleFollower, h.node.role)
	forward := func() *asked {
		t.Helper()
		h.rest()
		last := h.asked[len(h.asked)-1]
		require.Equal(t, methodReadIndex, last.Method)
		require.False(t, last.over)
		return last
	}
	answer := func(a *asked, index int64) {
		a.over = true
		h.reply(a, &raftpb.ReadIndexResponse{Index: &index, Term: proto.Int64(handTerm)})
		h.rest()
	}

	first := h.read()
	a := forward()
	second, third := h.read(), h.read()
	require.Same(t, a, forward(), "one request is under way at a time")
	answer(a, 3)
	first.gets(t, 3)
	second.waits(t, "by what was asked for before it began")
	third.waits(t, "by what was asked for before it began")

	a = forward()
	answer(a, 5) // what was acknowledged before they began, and has not come here
	second.waits(t, "before that is applied here")
	h.append(3, 2)
	second.gets(t, 5)
	third.gets(t, 5)
	assert.Zero(t, h.open(), "requests without an answer")
}

// append has the node get entries behind prev from a leader, all of them committed.
func (h *byHand) append(prev int64, entries int) {
	h.t.Helper()
	var b entry.Builder
	b.Reset(prev + 1)
	for range entries {
		b.AppendData(handTerm, []byte("x"))
	}
	m := wire.AppendRequest{
		GroupID: []byte("g"), ServerID: []byte(handPeer(1).String()), PeerID: []byte(h.node.peer.String()),
		Term: handTerm, PrevIndex: prev, Commit: prev + int64(entries), Entries: b.Build(),
	}
	if prev > 0 {
		m.PrevTerm = handTerm
	}
	message := slices.Concat(m.AppendHead(nil), m.Entries.Metas, m.AppendTail(nil))
	stored := false
	answer := func(code int32, _ string, b []byte, _ [][]byte) {
		resp, err := wire.ParseAppendResponse(b)
		stored = code == 0 && err == nil && resp.Success
	}
	h.start.Serve(rpc.NewRequest(raftService, methodAppendEntries, message, m.Entries.Data, handPeer(1).Address, answer))
	h.rest()
	require.True(h.t, stored, "the node does not take entries")
}
