package graft

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/progress"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/internal/wire"
)

// replicator brings one peer's log to where the leader's is, and tells it that the
// leader lives (braft: Replicator). There is one per peer and leadership.
//
// Invariants: it sends only what the log held while the node led in term; at most
// the window is on the way.
//
// Ownership: its actor owns what is not atomic. Answers that count for a commit are
// reported where they arrive, before the actor sees them.
type replicator struct {
	n    *Node
	peer PeerID
	wire string // the peer as it goes over the wire
	term int64
	log  *zap.Logger
	a    *actor.Actor[func()]

	firstOwn int64 // the index of the leadership's first entry

	woken      atomic.Bool
	resting    atomic.Bool  // nothing is on the way: a new commit index needs a nudge
	lastAnswer atomic.Int64 // when the latest answered request was sent, by the host's clock
	status     followerStatus

	// The actor's.
	now         time.Time
	p           progress.Progress
	graft       bool // handles requests in order: they may be sent ahead of the answers
	heartbeatAt time.Time
	blockedTill time.Time
	commitAt    time.Time // when to tell an idle peer of a commit
	commitSent  int64
	failures    int
	stopped     bool
	batches     []entry.Batch
}

// followerStatus is what Status sees of a replicator.
type followerStatus struct {
	sync.Mutex
	FollowerStatus
}

func (s *followerStatus) load() FollowerStatus {
	s.Lock()
	defer s.Unlock()
	return s.FollowerStatus
}

const (
	// commitDelay is how long a commit index waits for a request to ride on.
	commitDelay = 2 * time.Millisecond
	// busyDelay is the pause after a peer said that it is busy (braft: raft_retry_replicate_interval_ms).
	busyDelay = time.Second
	// braftEntries is what one request to a braft peer carries at most (braft: raft_max_entries_size).
	braftEntries = 1024
)

func newReplicator(n *Node, peer PeerID, last int64) *replicator {
	r := &replicator{
		n: n, peer: peer, wire: peer.String(), term: n.term, firstOwn: last + 1,
		log: n.log.With(zap.String("to", peer.String())), p: progress.New(last), now: n.now,
	}
	r.touch(n.now) // it has an election timeout to answer
	r.publish()
	r.a = actor.New(n.host.env.Exec, "replicator", r.step)
	return r
}

func (r *replicator) start() { r.wake() }

// wake says that there may be something to send.
func (r *replicator) wake() {
	if !r.woken.Swap(true) {
		r.a.PostInline(nil)
	}
}

// nudge says that the commit index has moved.
func (r *replicator) nudge() {
	if r.resting.Load() && !r.woken.Swap(true) {
		r.a.Post(nil) // this may be a storage goroutine, which has better things to do
	}
}

func (r *replicator) stop() {
	r.a.Post(func() { r.stopped = true })
	r.a.Close()
}

// touch notes that a request sent at that time was answered.
func (r *replicator) touch(sentAt time.Time) {
	at := int64(sentAt.Sub(r.n.host.base))
	for {
		old := r.lastAnswer.Load()
		if at <= old || r.lastAnswer.CompareAndSwap(old, at) {
			return
		}
	}
}

func (r *replicator) contact() time.Time {
	return r.n.host.base.Add(time.Duration(r.lastAnswer.Load()))
}

func (r *replicator) interval() time.Duration {
	return max(r.n.o.ElectionTimeout/time.Duration(r.n.o.HeartbeatFactor), time.Millisecond)
}

func (r *replicator) step(now time.Time, batch []func()) time.Time {
	r.now = now
	r.woken.Store(false)
	r.resting.Store(false)
	for _, f := range batch {
		if f != nil {
			f()
		}
	}
	if r.stopped {
		return time.Time{}
	}
	if !now.Before(r.blockedTill) {
		r.blockedTill = time.Time{}
		r.send()
	}
	r.keepAlive()
	r.publish()
	return r.deadline()
}

// keepAlive sends a heartbeat if one is due, or if an idle peer is to learn of a commit.
func (r *replicator) keepAlive() {
	requests, _ := r.p.Inflight()
	idle := requests == 0 && r.blockedTill.IsZero()
	r.resting.Store(idle)
	if !idle || r.commitSent >= r.n.box.index() {
		r.commitAt = time.Time{}
	} else if r.commitAt.IsZero() {
		r.commitAt = r.now.Add(commitDelay)
		if r.commitSent < r.firstOwn {
			r.commitAt = r.now // a peer that has just been set up may not vote freely before it knows
		}
	}
	if r.now.Before(r.heartbeatAt) && (r.commitAt.IsZero() || r.now.Before(r.commitAt)) {
		return
	}
	r.commitAt = time.Time{}
	r.heartbeatAt = r.now.Add(r.interval())
	call := r.heartbeatAfter(r.p.Match)
	sentAt, match := r.now, r.p.Match
	call.Done = func(rep rpc.Reply) {
		resp, ok := r.parse(rep, sentAt)
		r.a.Post(func() { r.heartbeatAnswered(rep, resp, ok, match) })
	}
	r.n.host.call(r.peer, call)
}

func (r *replicator) deadline() time.Time {
	at := r.heartbeatAt
	if !r.blockedTill.IsZero() && r.blockedTill.Before(at) {
		at = r.blockedTill
	}
	if !r.commitAt.IsZero() && r.commitAt.Before(at) {
		at = r.commitAt
	}
	return at
}

// send sends what the window has room for.
func (r *replicator) send() {
	for {
		window := progress.Window{Requests: 1, Bytes: r.n.o.MaxInflightBytes}
		if r.graft {
			window.Requests = r.n.o.MaxInflightRequests
		}
		if !r.p.Room(window) {
			return
		}
		if r.p.State == progress.Probe {
			r.sendEntries(nil)
			return
		}
		var err error
		r.batches, err = r.n.lm.entries(r.batches, r.p.Next, r.n.o.MaxAppendBytes)
		if err != nil {
			r.unreadable(err)
			return
		}
		if len(r.batches) == 0 {
			return
		}
		if !r.graft {
			r.limitEntries(braftEntries)
		}
		if !r.sendEntries(r.batches) {
			return
		}
		clear(r.batches)
	}
}

// limitEntries keeps the first n entries of what is to be sent.
func (r *replicator) limitEntries(n int) {
	for i, b := range r.batches {
		if b.Count >= n {
			r.batches[i] = b.Upto(b.First + int64(n) - 1)
			clear(r.batches[i+1:])
			r.batches = r.batches[:i+1]
			return
		}
		n -= b.Count
	}
}

// unreadable handles a log that cannot be read.
func (r *replicator) unreadable(err error) {
	if errors.Is(err, wal.ErrCompacted) {
		r.log.Error("peer needs entries that are compacted away, and there is no snapshot", zap.Int64("next", r.p.Next))
		r.block(busyDelay)
		return
	}
	if errors.Is(err, wal.ErrClosed) {
		r.block(busyDelay)
		return
	}
	r.block(busyDelay)
	r.n.post(func() { r.n.fail(&Error{Code: ErrIO, Op: "read log", Group: r.n.group, Index: r.p.Next, Err: err}) })
}

// block keeps from sending entries for a while.
func (r *replicator) block(d time.Duration) { r.blockedTill = r.now.Add(d) }

// sendEntries sends a request with entries, or a probe without. It reports false
// if nothing was sent.
func (r *replicator) sendEntries(batches []entry.Batch) bool {
	prev := r.p.Next - 1
	prevTerm := r.n.lm.term(prev)
	if prevTerm == 0 && prev != 0 {
		if r.n.lm.leads(r.term) {
			r.unreadable(wal.ErrCompacted)
		}
		return false
	}
	last, size := prev, 0
	call := r.request(prev, prevTerm)
	for _, b := range batches {
		call.Message = append(call.Message, b.Metas)
		if len(b.Data) > 0 {
			call.Attachment = append(call.Attachment, b.Data)
		}
		last = b.Last()
		size += b.Size()
	}
	call = r.finish(call)
	call.Timeout = 2 * r.n.o.ElectionTimeout
	sent := sentRequest{prev: prev, last: last, entries: len(batches) > 0, generation: r.p.Generation(), at: r.now}
	call.Done = func(rep rpc.Reply) { r.answered(sent, rep) }
	if !r.n.lm.leads(r.term) {
		return false // what was read may be another leader's by now
	}
	r.p.Sent(last, size)
	r.n.host.call(r.peer, call)
	return true
}

// sentRequest is what must be known of a request when its answer comes.
type sentRequest struct {
	prev, last int64
	entries    bool
	generation uint64
	at         time.Time
}

// request begins a request; finish ends it.
func (r *replicator) request(prev, prevTerm int64) rpc.Call {
	m := r.head(r.term, prev, prevTerm)
	return rpc.Call{
		Service: raftService, Method: methodAppendEntries,
		Message: append(make([][]byte, 0, 4), m.AppendHead(make([]byte, 0, m.Size()))),
	}
}

func (r *replicator) head(term, prev, prevTerm int64) *wire.AppendRequest {
	return &wire.AppendRequest{
		GroupID: []byte(r.n.group), ServerID: []byte(r.n.name), PeerID: []byte(r.wire),
		Term: term, PrevTerm: prevTerm, PrevIndex: prev,
	}
}

func (r *replicator) finish(call rpc.Call) rpc.Call {
	commit := r.n.box.index()
	r.commitSent = commit
	m := wire.AppendRequest{Commit: commit, GraftGroup: r.n.groupIDNow.Load()}
	call.Message = append(call.Message, m.AppendTail(make([]byte, 0, 24)))
	return call
}

// heartbeat makes a request without entries that matches any log.
func (r *replicator) heartbeat(term int64) rpc.Call {
	m := r.head(term, 0, 0)
	m.GraftGroup = r.n.groupIDNow.Load()
	return rpc.Call{
		Service: raftService, Method: methodAppendEntries, Timeout: r.n.o.ElectionTimeout,
		Message: [][]byte{m.AppendTail(m.AppendHead(make([]byte, 0, m.Size())))},
	}
}

// heartbeatAfter makes a heartbeat that tells the peer of commits up to prev, which it
// is known to hold. A peer that has lost it gives itself away by its answer.
func (r *replicator) heartbeatAfter(prev int64) rpc.Call {
	prevTerm := r.n.lm.term(prev)
	if prevTerm == 0 {
		prev = 0
	}
	call := r.finish(r.request(prev, prevTerm))
	call.Timeout = r.n.o.ElectionTimeout
	return call
}

// answered runs where the answer arrives. What it says about durability counts at once.
func (r *replicator) answered(sent sentRequest, rep rpc.Reply) {
	resp, ok := r.parse(rep, sent.at)
	if ok && resp.Success && resp.Term == r.term && sent.entries {
		r.n.acknowledged(r.term, r.peer, sent.last)
	}
	r.a.PostInline(func() { r.progress(sent, rep, resp, ok) })
}

// progress takes an answer into account.
func (r *replicator) progress(sent sentRequest, rep rpc.Reply, resp wire.AppendResponse, ok bool) {
	if r.stopped {
		return
	}
	if !ok {
		r.failed(sent, rep)
		return
	}
	r.failures = 0
	r.graft = resp.Features&featurePipeline != 0
	switch {
	case resp.Term != r.term: // of an earlier term: it does not know ours yet
		r.lost(sent)
	case resp.Success && sent.entries:
		r.p.Stored(sent.last)
	case resp.Success:
		r.p.Matched(sent.prev)
	case sent.generation == r.p.Generation():
		r.refused(sent, resp)
	}
}

// lost has what was sent repeated after a pause.
func (r *replicator) lost(sent sentRequest) {
	if sent.generation == r.p.Generation() {
		r.p.Failed()
		r.block(r.interval())
	}
}

// failed handles a request without an answer, or with an error in its place.
func (r *replicator) failed(sent sentRequest, rep rpc.Reply) {
	if rep.Err == nil && rep.Code == 0 {
		return // a higher term, which is the node's business
	}
	r.failures++
	if sent.generation != r.p.Generation() {
		return
	}
	if r.failures == 1 || r.failures%100 == 0 {
		r.log.Info("peer does not take entries", zap.Int("failures", r.failures), zap.NamedError("local", rep.Err),
			zap.Int32("code", rep.Code), zap.String("text", rep.Text))
	}
	r.p.Failed()
	r.block(r.interval())
	if Code(rep.Code) == ErrBusy || Code(rep.Code) == ErrGroupMismatch {
		r.block(busyDelay)
	}
}

// refused looks for the place where the logs part.
func (r *replicator) refused(sent sentRequest, resp wire.AppendResponse) {
	if resp.LastIndex < r.p.Match {
		r.regressed(resp.LastIndex)
		return
	}
	next := min(sent.prev, resp.LastIndex+1)
	if resp.ConflictTerm != 0 {
		// The last entry here that the peer may have too: entries of its conflicting term
		// or earlier. Each round trip skips a whole term (Raft paper §5.3).
		next = min(next, r.n.lm.lastUpToTerm(sent.prev-1, resp.ConflictTerm)+1)
	}
	r.p.Refused(sent.prev, next)
}

// regressed is what becomes of a peer that does not hold any more what it acknowledged.
func (r *replicator) regressed(last int64) {
	r.log.Error("peer has lost entries that it had acknowledged; it is being caught up",
		zap.Int64("acknowledged", r.p.Match), zap.Int64("holds", last))
	r.n.box.regress(r.term, r.peer, last)
	r.p.Regressed(last)
}

// heartbeatAnswered takes the answer to a heartbeat into account.
func (r *replicator) heartbeatAnswered(rep rpc.Reply, resp wire.AppendResponse, ok bool, match int64) {
	switch {
	case r.stopped:
	case !ok:
		if rep.Err != nil || rep.Code != 0 {
			r.failures++
		}
	case resp.Features&featurePipeline == 0 || resp.Term != r.term:
		// braft: a heartbeat's success says nothing
	case !resp.Success && resp.HasLastIndex && resp.LastIndex < match:
		r.regressed(resp.LastIndex)
	}
}

// publish shows the progress to Status.
func (r *replicator) publish() {
	_, bytes := r.p.Inflight()
	r.status.Lock()
	defer r.status.Unlock()
	r.status.FollowerStatus = FollowerStatus{
		Peer: r.peer, State: r.p.State.String(), Match: r.p.Match, Next: r.p.Next, InflightBytes: bytes, Failures: r.failures,
	}
}
