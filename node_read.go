package graft

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// read is somebody who waits for a read index.
type read struct {
	done func(index int64, err error)
	// harmless says that done is the library's own and takes no lock that others may hold: it may run in a step of the node.
	harmless bool
	// answer takes the place of done, if there is no error, when a follower asks, which waits for its own state
	// machine. It gets the term of the leader that vouches for the index: the follower may know less than that one.
	answer func(index, term int64)
}

func (r *read) remote() bool { return r.answer != nil }

// readQueue is where reads wait for the node's next round.
//
// Ownership: any goroutine adds, the node's actor takes. mu is a leaf lock.
type readQueue struct {
	pending atomic.Int64

	mu     sync.Mutex
	reads  []read
	closed error
}

// add queues a read and reports whether the node should be woken.
func (q *readQueue) add(r read) (wake bool, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed != nil {
		return false, q.closed
	}
	q.reads = append(q.reads, r)
	return len(q.reads) == 1, nil
}

func (q *readQueue) take() []read {
	q.mu.Lock()
	defer q.mu.Unlock()
	reads := q.reads
	q.reads = nil
	return reads
}

func (q *readQueue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.reads) == 0
}

// close refuses everything from now on, and returns what was not taken.
func (q *readQueue) close(err error) []read {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = err
	reads := q.reads
	q.reads = nil
	return reads
}

// ReadIndex returns an index that makes a read linearizable, on any replica: whatever was
// acknowledged before the call is at or below it, and it is applied here when ReadIndex
// returns. It costs a round of messages, which concurrent calls share (Raft thesis §6.4).
// On a follower it asks the leader. If ctx ends first the error is ErrTimeout wrapping ctx.Err(). Others are, for a while: ErrNotLeader,
// ErrUnreachable, which names the leader that cannot be reached or is shut down or has failed, ErrOverloaded, and ErrNoSpace while this
// node's disk has no space for the leader's term; for good: ErrShutdown and ErrNodeFailed of this node itself, ErrNotSupported if the
// leader is braft's, ErrGroupMismatch, and ErrInvalid if the leader's answer makes no sense. A read changes nothing, so each may be
// tried again.
func (n *Node) ReadIndex(ctx context.Context) (index int64, err error) {
	w := n.readers.Get().(*readWaiter)
	n.readIndex(read{done: w.done, harmless: true})
	select {
	case o := <-w.c:
		n.readers.Put(w)
		return o.index, o.err
	case <-ctx.Done():
		return 0, &Error{Code: ErrTimeout, Op: "read index", Group: n.group, Err: ctx.Err()}
	}
}

type readOutcome struct {
	index int64
	err   error
}

type readWaiter struct {
	c    chan readOutcome
	done func(int64, error)
}

func newReadWaiter() any {
	w := &readWaiter{c: make(chan readOutcome, 1)}
	w.done = func(index int64, err error) { w.c <- readOutcome{index, err} }
	return w
}

// ReadIndexAsync is ReadIndex with a callback. done runs exactly once, possibly before
// ReadIndexAsync returns; it must not block.
func (n *Node) ReadIndexAsync(done func(index int64, err error)) {
	n.readIndex(read{done: done})
}

// readIndex begins a read of this node's user.
func (n *Node) readIndex(r read) {
	done := r.done
	r.done = func(index int64, err error) {
		n.reads.pending.Add(-1)
		defer n.caught("read index")
		done(index, err)
	}
	if n.reads.pending.Add(1) > int64(n.o.MaxPendingReads) {
		r.done(0, &Error{Code: ErrOverloaded, Op: "read index", Group: n.group})
		return
	}
	n.addRead(r)
}

func (n *Node) addRead(r read) {
	wake, err := n.reads.add(r)
	switch {
	case err != nil:
		r.done(0, err)
	case wake:
		n.postInline(nil)
	}
}

const (
	// maxRounds is how many read rounds are under way at once. While they are, the
	// next readers gather.
	maxRounds = 2
	// roundRetry is how many election timeouts a round waits for answers before its readers get
	// another.
	roundRetry = 1
	// maxRoundCalls is how many requests of rounds a member may have without an answer. One that does not answer is not
	// asked again for each of the rounds that the others confirm meanwhile. With its next answer, or when the time of a
	// request is over, it is asked for those that are open still: whoever has confirmed rounds faster may be dead by then.
	maxRoundCalls = 4 * maxRounds
)

// takeReads serves the reads that wait, if they can be served now.
func (n *Node) takeReads() {
	if n.reads.empty() {
		return
	}
	switch {
	case n.role == RoleLeader:
		// Before an entry of its own term is committed a leader does not know what is
		// (Raft thesis §6.4, step 1).
		if n.box.index() >= n.firstOwn && n.roundsOpen.Load() < maxRounds {
			n.openRound(n.reads.take())
		}
	case n.role == RoleFollower && !n.leader.IsZero():
		if !n.forwarding {
			n.forwardReads(n.ownReads(n.reads.take()))
		}
	default:
		n.tellReads(n.reads.take(), 0, n.notLeader("read index"))
	}
}

// ownReads refuses the reads of others and returns the rest. Who asked this node as the leader looks for the new one
// himself: its answer is worth something only in the term of whoever gives it.
func (n *Node) ownReads(reads []read) (own []read) {
	var others []read
	for _, r := range reads {
		if r.remote() {
			others = append(others, r)
		} else {
			own = append(own, r)
		}
	}
	n.tellReads(others, 0, n.notLeader("read index"))
	return own
}

// callReads tells readers the outcome. It must not run in a step of the node; see aside.
func callReads(reads []read, index int64, err error) {
	for _, r := range reads {
		r.done(index, err)
	}
}

// tellReads is callReads for a step of the node. It takes the slice over.
func (n *Node) tellReads(reads []read, index int64, err error) {
	users := reads[:0]
	for _, r := range reads {
		if r.harmless {
			r.done(index, err)
		} else {
			users = append(users, r)
		}
	}
	if len(users) > 0 {
		n.aside(func() { callReads(users, index, err) })
	}
}

// readRound is one confirmation that the node still leads, for all readers that
// waited when it was opened.
//
// Invariant: it ends once, confirmed or failed. What confirms it are answers in its
// term to requests that were sent after it opened, matched by the calls themselves.
//
// Ownership: mu, a leaf lock, guards the ballot and reads; skipped is the node's actor's.
type readRound struct {
	n        *Node
	term     int64
	index    int64 // the commit index when it opened
	openedAt time.Time
	skipped  []*replicator // voters that had too many requests to be asked, and have not been since

	mu    sync.Mutex
	votes ballot
	reads []read
	over  bool
}

func (n *Node) openRound(reads []read) {
	n.rounds = slices.DeleteFunc(n.rounds, (*readRound).isOver) // so that no more are kept than may be open
	round := &readRound{n: n, term: n.term, index: n.box.index(), openedAt: n.now, votes: newBallot(n.conf), reads: reads}
	n.roundsOpen.Add(1)
	n.rounds = append(n.rounds, round)
	if round.votes.grant(n.peer) {
		round.confirm(n.tellReads)
		return
	}
	for _, r := range n.peersInOrder() {
		switch {
		case !n.conf.hasVoter(r.peer):
		case r.takesRound():
			round.ask(r)
		default:
			round.skipped = append(round.skipped, r)
		}
	}
}

// takesRound reports whether a round may ask the member. If not, the node asks it when it has answered; see askSkipped.
func (r *replicator) takesRound() bool {
	if r.roundCalls.Load() < maxRoundCalls {
		return true
	}
	r.skipped.Store(true)
	return r.roundCalls.Load() < maxRoundCalls // again: an answer that has come in between may not have seen it
}

// ask has a member confirm the round.
func (r *readRound) ask(peer *replicator) {
	sentAt := r.n.now
	call := peer.heartbeat(r.term)
	peer.roundCalls.Add(1)
	call.Done = func(rep rpc.Reply) {
		peer.roundCalls.Add(-1)
		resp, ok := peer.parse(rep, sentAt)
		if ok && resp.Term == r.term {
			r.grant(peer.peer)
		}
		if peer.skipped.Load() && peer.skipped.Swap(false) {
			peer.n.post(func() { peer.n.askSkipped(peer) })
		}
	}
	r.n.host.call(peer.peer, call)
}

// askSkipped asks a member that has answered for the open rounds that have skipped it.
func (n *Node) askSkipped(r *replicator) {
	if n.replicators[r.peer] != r {
		return
	}
	for _, round := range n.rounds {
		i := slices.Index(round.skipped, r)
		switch {
		case i < 0, round.isOver():
		case r.takesRound():
			round.skipped = slices.Delete(round.skipped, i, i+1)
			round.ask(r)
		default: // rounds that were opened since have asked it
			return
		}
	}
}

// grant counts an answer.
func (r *readRound) grant(p PeerID) {
	r.mu.Lock()
	won := !r.over && r.votes.grant(p)
	r.mu.Unlock()
	if won && r.n.lm.pending.tryHold() { // else the node has ended, and its readers know
		r.confirm(callReads)
		r.n.lm.pending.letGo()
	}
}

func (r *readRound) isOver() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.over
}

// end takes the readers, once.
func (r *readRound) end() []read {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return nil
	}
	r.over = true
	reads := r.reads
	r.reads = nil
	r.mu.Unlock()
	r.n.roundsOpen.Add(-1)
	return reads
}

// confirm lets the readers go on. tell tells those whose index is applied by now.
func (r *readRound) confirm(tell func(reads []read, index int64, err error)) {
	reads := r.end()
	local := reads[:0]
	for _, rd := range reads {
		if rd.remote() {
			rd.answer(r.index, r.term)
		} else {
			local = append(local, rd)
		}
	}
	if len(local) > 0 {
		r.n.fsm.waitApplied(r.index, func(index int64, err error) { tell(local, index, err) })
	}
	if !r.n.reads.empty() {
		r.n.post(nil)
	}
}

// failRounds ends all rounds of a leadership.
func (n *Node) failRounds(reason error) {
	for _, round := range n.rounds {
		n.tellReads(round.end(), 0, &Error{Code: ErrNotLeader, Op: "read index", Group: n.group, Err: reason})
	}
	n.rounds = nil
}

// renewRounds gives the readers of rounds whose answers were lost another one, and forgets rounds
// that are over.
func (n *Node) renewRounds() {
	open := n.rounds[:0]
	var again []read
	for _, round := range n.rounds {
		switch {
		case round.isOver():
		case n.now.Sub(round.openedAt) > roundRetry*n.o.ElectionTimeout:
			again = append(again, round.end()...)
		default:
			open = append(open, round)
		}
	}
	clear(n.rounds[len(open):])
	n.rounds = open
	if len(again) > 0 {
		n.openRound(again)
	}
}

// forwardReads asks the leader for a read index on behalf of all readers that wait.
func (n *Node) forwardReads(reads []read) {
	if len(reads) == 0 {
		return
	}
	m := &raftpb.ReadIndexRequest{GroupId: &n.group, ServerId: &n.name, PeerId: proto.String(n.leader.String())}
	if n.groupID != 0 {
		m.GraftGroupId = &n.groupID
	}
	b, err := proto.Marshal(m)
	if err != nil {
		n.tellReads(reads, 0, &Error{Code: ErrInvalid, Op: "read index", Group: n.group, Err: err})
		return
	}
	n.forwarding, n.forwarded = true, reads
	leader := n.leader
	n.host.call(leader, rpc.Call{
		Service: nodeService, Method: methodReadIndex, Message: [][]byte{b}, Timeout: n.o.ElectionTimeout,
		Done: func(r rpc.Reply) { n.post(func() { n.onForwarded(leader, r) }) }, // after the end nobody waits for it
	})
}

// onForwarded passes the leader's answer on to the readers.
func (n *Node) onForwarded(leader PeerID, r rpc.Reply) {
	n.forwarding = false
	reads := n.forwarded
	if n.forwarded = nil; len(reads) == 0 { // the node has ended
		return
	}
	resp := new(raftpb.ReadIndexResponse)
	var err error
	switch {
	case r.Err != nil:
		err = &Error{Code: ErrUnreachable, Op: "read index", Group: n.group, Peer: leader, Err: r.Err}
	case r.Code == codeNoMethod:
		err = &Error{Code: ErrNotSupported, Op: "read index", Group: n.group, Peer: leader}
	case r.Code != 0:
		err = n.readRefused(leader, r)
	case proto.Unmarshal(r.Message, resp) != nil:
		err = &Error{Code: ErrInvalid, Op: "read index", Group: n.group, Peer: leader}
	}
	if err != nil {
		n.tellReads(reads, 0, err)
		return
	}
	// What the leader has committed is committed here as far as the logs are known to be the same.
	if n.role == RoleFollower && resp.GetTerm() == n.term {
		n.learnCommit(n.matched, resp.GetIndex())
	}
	if !n.leader.Same(leader) && resp.GetIndex() > n.box.index() {
		// It is not followed any more, so what it promised may never come here; see unfollow.
		n.tellReads(reads, 0, n.notLeader("read index"))
		return
	}
	n.fsm.waitApplied(resp.GetIndex(), func(index int64, err error) { n.tellReads(reads, index, err) })
}

// readRefused is what a reader here is told of the leader's error. What is wrong with that node, or with its process, is no state of
// this one's, and passes as soon as another leads: for whoever asks here the leader cannot be reached.
func (n *Node) readRefused(leader PeerID, r rpc.Reply) error {
	switch code := Code(r.Code); code {
	case ErrNotLeader:
		return &Error{Code: code, Op: "read index", Group: n.group} // whom to ask instead it does not say
	case ErrOverloaded, ErrGroupMismatch:
		return &Error{Code: code, Op: "read index", Group: n.group, Peer: leader}
	default:
		return &Error{Code: ErrUnreachable, Op: "read index", Group: n.group, Peer: leader,
			Err: fmt.Errorf("it serves no read: %s (error %d)", clip(r.Text), r.Code)}
	}
}

// onReadIndex serves a follower's read.
func (n *Node) onReadIndex(req *rpc.Request, m *raftpb.ReadIndexRequest) {
	switch {
	case n.otherGroup(m.GetGraftGroupId(), PeerID{}):
		req.Fail(int32(ErrGroupMismatch), "this node holds another group's data under the same name")
		return
	case n.role != RoleLeader:
		req.Fail(int32(ErrNotLeader), "not leader")
		return
	}
	n.addRead(read{
		harmless: true,
		done: func(_ int64, err error) {
			code := ErrorCode(err)
			req.Fail(int32(code), code.Error())
		},
		answer: func(index, term int64) {
			n.reply(req, &raftpb.ReadIndexResponse{Index: &index, Term: &term, LeaderId: &n.name})
		},
	})
}

// parse reads an append_entries answer and notes that the peer is alive. ok is false if there is
// none, or one of a higher term, which resp has then.
func (r *replicator) parse(rep rpc.Reply, sentAt time.Time) (resp wire.AppendResponse, ok bool) {
	if rep.Err != nil || rep.Code != 0 {
		return resp, false
	}
	resp, err := wire.ParseAppendResponse(rep.Message)
	if err != nil || resp.Term > r.term && !validTerm(resp.Term) {
		return wire.AppendResponse{}, false
	}
	if resp.Term > r.term {
		r.n.post(func() { r.n.onHigherTerm(resp.Term, r.peer) })
		return resp, false
	}
	r.touch(sentAt)
	r.voteless.Store(resp.Features&featureVoteless != 0)
	if resp.AppliedIndex > 0 {
		r.applied.Store(resp.AppliedIndex)
	}
	r.copied.store(resp)
	r.heard.Store(true)
	return resp, true
}

// onHigherTerm is told of a term that somebody else is in.
func (n *Node) onHigherTerm(term int64, peer PeerID) {
	if n.active() && term > n.term {
		n.stepDown(term, &Error{Code: ErrHigherTerm, Group: n.group, Peer: peer})
	}
}
