package graft

import (
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

// stage is one node on the seeded executor, with a disk of its own. What its peers say is written in the test. Time passes only while the test
// lets it, and everything happens in the same order each time.
//
// Ownership: the test's goroutine, on which everything runs.
type stage struct {
	t     *testing.T
	sim   *actor.Sim
	fs    *vfs.Mem
	fsm   *recorder
	node  *Node
	calls []*owed // every one must have its answer in the end, once

	serve  func(*rpc.Request)
	asked  map[string]int              // requests that the node has sent, by method
	loyal  bool                        // the peers vote for the node, and answer its entries and heartbeats
	stored int64                       // up to here they say that they store its log
	silent bool                        // they do not get, and do not answer, requests with entries
	lossy  bool                        // their answers to requests with entries are lost
	braft  bool                        // they are braft's, whose answers do not say what they store
	stall  func(c rpc.Call) *rpc.Reply // if set, answers requests with entries, or does not
	down   string                      // the one of them at this address does not answer at all
	late   time.Duration               // their answers to heartbeats take so much longer
	beats  int                         // heartbeats that are not answered
}

// stageSegment is the size of a segment of the node's log.
const stageSegment = 64 << 10

// stagePeers are the members of a group on a stage, of which the node is the first one.
var stagePeers = []string{"10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"}

// newStage starts a node of a group with so many members, none of which has ever held anything.
func newStage(t *testing.T, members int, o NodeOptions) *stage {
	o.FirstStart = true
	return stageOn(t, vfs.NewMem(), members, o)
}

// stageOn is newStage for a node that finds on its disk what is there.
func stageOn(t *testing.T, disk *vfs.Mem, members int, o NodeOptions) *stage {
	s := &stage{t: t, sim: actor.NewSim(1), fs: disk, fsm: &recorder{}, asked: make(map[string]int)}
	proc := s.sim.NewProcess(1)
	t.Cleanup(proc.Kill)
	h, err := NewHost(HostOptions{
		Address: stagePeers[0], Dir: "/data", Transport: stageTransport{s}, SegmentSize: stageSegment,
		Env: &env.Env{Exec: proc, FS: s.fs, Rand: s.sim.Rand().Uint64},
	})
	require.NoError(t, err)
	var peers []PeerID
	for _, address := range stagePeers[:members] {
		peers = append(peers, PeerID{Address: address})
	}
	if o.StateMachine == nil {
		o.StateMachine = s.fsm
	} else if f, ok := o.StateMachine.(*faltering); ok {
		f.recorder = s.fsm
	}
	o.InitialConf, err = NewConfiguration(peers...)
	require.NoError(t, err)
	s.node, err = h.StartNode("g", o)
	require.NoError(t, err)
	return s
}

// newLeader starts a node that leads, and whose log is applied.
func newLeader(t *testing.T, members int, o NodeOptions) *stage {
	s := newStage(t, members, o)
	s.loyal = true
	s.until(func() bool { return len(s.fsm.seen()) > 0 && s.fsm.seen()[len(s.fsm.seen())-1] == "lead" }, "the node does not lead")
	return s
}

// pass lets time pass.
func (s *stage) pass(d time.Duration) { s.sim.RunFor(d) }

// until lets time pass until something holds.
func (s *stage) until(cond func() bool, otherwise string) {
	s.t.Helper()
	require.True(s.t, s.sim.RunUntil(10*time.Second, cond), otherwise)
}

// last is the index of the last entry in the node's log.
func (s *stage) last() int64 { return s.node.lm.lastIndex() }

// owed is the answer to a call of the node's user.
type owed struct {
	what   string
	times  int
	result any
	err    error
	then   func()
}

func (s *stage) call(what string) *owed {
	a := &owed{what: what}
	s.calls = append(s.calls, a)
	return a
}

// done is for calls with a result.
func (a *owed) done(result any, err error) {
	a.times, a.result, a.err = a.times+1, result, err
	if a.then != nil {
		a.then()
	}
}

// closed is a Closure.
func (a *owed) closed(err error) { a.done(nil, err) }

// apply proposes an entry.
func (s *stage) apply(data string) *owed {
	a := s.call(data)
	s.node.Apply(Task{Data: []byte(data), Done: a.done})
	return a
}

// end lets the node do what is left to do, and holds that by then every call has had one answer, and that the node keeps account of none of them
// any more.
func (s *stage) end() {
	s.t.Helper()
	s.pass(5 * time.Second)
	for _, a := range s.calls {
		if a.times != 1 {
			s.t.Errorf("%.30q was answered %d times, not once", a.what, a.times)
		}
	}
	if entries, bytes := s.node.proposals.pending(); entries != 0 || bytes != 0 {
		s.t.Errorf("%d entries with %d bytes count as pending, though nobody waits", entries, bytes)
	}
	if reads := s.node.reads.pending.Load(); reads != 0 {
		s.t.Errorf("%d reads count as pending, though nobody waits", reads)
	}
	assert.NoError(s.t, s.fsm.misuse)
}

// response is what the node has answered to a peer.
type response struct {
	over    bool
	code    int32
	text    string
	message []byte
}

// request has a peer send a message to the node.
func (s *stage) request(method string, message, attachment []byte) *response {
	r := new(response)
	s.serve(rpc.NewRequest(raftService, method, message, attachment, stagePeers[1], func(code int32, text string, message []byte, _ [][]byte) {
		r.over, r.code, r.text, r.message = true, code, text, message
	}))
	return r
}

// send sends a message that is not worth encoding by hand.
func (s *stage) send(method string, m proto.Message) *response {
	s.t.Helper()
	b, err := proto.Marshal(m)
	require.NoError(s.t, err)
	return s.request(method, b, nil)
}

// append sends entries, or a heartbeat if there are none, as a peer that leads.
func (s *stage) append(leader string, term, prev, prevTerm int64, data ...string) *response {
	s.t.Helper()
	var b entry.Builder
	b.Reset(prev + 1)
	for _, d := range data {
		b.AppendData(term, []byte(d))
	}
	return s.appendBatch(leader, term, prevTerm, b.Build())
}

// appendBatch sends a batch as a peer that leads.
func (s *stage) appendBatch(leader string, term, prevTerm int64, b entry.Batch) *response {
	m := wire.AppendRequest{
		GroupID: []byte("g"), ServerID: []byte(leader + ":0"), PeerID: []byte(stagePeers[0] + ":0"),
		Term: term, PrevTerm: prevTerm, PrevIndex: b.First - 1, Entries: b,
	}
	return s.request(methodAppendEntries, slices.Concat(m.AppendHead(nil), m.Entries.Metas, m.AppendTail(nil)), m.Entries.Data)
}

// stageTransport is the network of a stage: what the node sends reaches the test.
type stageTransport struct{ s *stage }

func (t stageTransport) Start(o rpc.StartOptions) error { t.s.serve = o.Serve; return nil }
func (t stageTransport) Watch(string, bool)             {}
func (t stageTransport) Retry(string)                   {}
func (t stageTransport) Close() error                   { return nil }

// Call answers for a peer after a millisecond, or not at all.
func (t stageTransport) Call(address string, c rpc.Call) {
	s := t.s
	s.asked[c.Method]++
	takes := time.Millisecond
	if done := c.Done; c.Method == methodAppendEntries && len(c.Attachment) == 0 {
		takes += s.late
		s.beats++
		c.Done = func(r rpc.Reply) { s.beats--; done(r) }
	}
	s.sim.After(takes, func() {
		if s.stall != nil && len(c.Attachment) > 0 {
			if r := s.stall(c); r != nil {
				c.Done(*r)
			} else if c.Timeout > 0 {
				s.sim.After(c.Timeout, func() { c.Done(rpc.Reply{Err: rpc.ErrTimeout}) })
			}
			return
		}
		if message := s.response(c); message != nil && address != s.down {
			c.Done(rpc.Reply{Message: message})
		} else if c.Timeout > 0 {
			s.sim.After(c.Timeout, func() { c.Done(rpc.Reply{Err: rpc.ErrTimeout}) })
		}
	})
}

// response is a peer's, nil if there is none.
func (s *stage) response(c rpc.Call) []byte {
	if !s.loyal {
		return nil
	}
	message := slices.Concat(c.Message...)
	switch c.Method {
	case methodAppendEntries:
		return s.stores(message, slices.Concat(c.Attachment...))
	case methodPreVote, methodRequestVote:
		m := new(raftpb.RequestVoteRequest)
		require.NoError(s.t, proto.Unmarshal(message, m))
		term := m.GetTerm()
		if c.Method == methodPreVote {
			term-- // that is not to come yet
		}
		b, err := proto.Marshal(&raftpb.RequestVoteResponse{Term: &term, Granted: proto.Bool(true)})
		require.NoError(s.t, err)
		return b
	}
	return nil
}

// stores is a peer's response to entries or to a heartbeat.
func (s *stage) stores(message, attachment []byte) []byte {
	m, err := wire.ParseAppendRequest(message, attachment)
	require.NoError(s.t, err)
	if m.Entries.Count > 0 {
		if s.silent {
			return nil
		}
		s.stored = max(s.stored, m.Entries.Last())
		if s.lossy {
			return nil
		}
	}
	if s.braft {
		return (&wire.AppendResponse{Term: m.Term, Success: true}).Append(nil)
	}
	r := wire.AppendResponse{Term: m.Term, Success: true, StoredIndex: s.stored, Features: featurePipeline}
	return r.Append(nil)
}
