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
	peer PeerID // without a role, which may change
	wire string // the peer as it goes over the wire
	term int64
	log  *zap.Logger
	a    *actor.Actor[func()]

	firstOwn int64 // the index of the leadership's first entry

	woken      atomic.Bool
	cold       atomic.Bool  // the next step is likely to need the disk
	resting    atomic.Bool  // nothing is on the way: a new commit index needs a nudge
	lastAnswer atomic.Int64 // when the latest answered request was sent, by the host's clock
	grownAt    atomic.Int64 // when it was known to store more than before
	heard      atomic.Bool  // it has answered anything
	braft      atomic.Bool  // its answers are not a graft node's
	voteless   atomic.Bool  // it says that it does not vote freely yet
	dropped    atomic.Bool  // stop was called
	applied    atomic.Int64 // how far its state machine has come, as it said last
	copied     copyNews     // how far the snapshot has come that it installs, as it said last
	roundCalls atomic.Int32 // requests of read rounds without an answer
	skipped    atomic.Bool  // a round did not ask it because of these: its next answer is news to the node
	status     followerStatus

	// The actor's.
	now         time.Time
	p           progress.Progress
	life        uint64 // of the peer: another one began whenever it had lost its disk
	calls       int    // requests that are not answered, those included that were given up
	callBytes   int    // of their entries
	budget      budget // of what is on the way
	graft       bool   // handles requests in order: they may be sent ahead of the answers
	heartbeatAt time.Time
	blockedTill time.Time
	commitAt    time.Time // when to tell an idle peer of a commit
	commitSent  int64     // it was told of commits up to here
	failures    int
	lastErr     error // why the latest request failed
	// contradicted is behind what the peer has refused to go on though it has it; it is told once.
	contradicted int64
	most         int64 // that it was known to store
	known        int64 // commits that the peer has learned of
	asking       int   // heartbeats without an answer
	rate         progress.Rate
	watched      *catchupWatch
	leaving      *leaveWatch
	stopped      bool
	batches      []entry.Batch
	offer        snapshotOffer

	// The node's actor's.
	leavingOn int64 // the configuration entry that removed the peer; 0 if it belongs to the group
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
	// A peer that is being added gets the log in pieces of catchupPiece, so many at a time at first, and
	// is left to itself for catchupRest times as long as it took for one, so that machines and disks
	// that it shares with others have time for them.
	catchupRequests = 1
	catchupRest     = 2
	catchupPiece    = 128 << 10
	// givenUp is how many windows of requests may wait for an answer, of which all but one were given up: a peer that
	// refuses or stalls again and again must not be sent more and more.
	givenUp = 2
	// braftEntries is what one request to a braft peer carries at most (braft: raft_max_entries_size).
	braftEntries = 1024
	// braftPace is how many bytes a second a braft peer gets at least, for as long as its connection lives. It is asked for all of a
	// large entry again, in vain, if it is given up before it has answered; a graft peer says by itself what it has stored.
	braftPace = 64 << 10
)

func newReplicator(n *Node, peer PeerID, last int64) *replicator {
	name := peer.ID()
	if peer.Role == Witness {
		name = peer // braft's witnesses are called by their role
	}
	r := &replicator{
		n: n, peer: peer.ID(), wire: name.String(), term: n.term, firstOwn: n.firstOwn,
		log: n.log.With(zap.String("to", peer.String())), p: progress.New(last), now: n.now,
		budget: newBudget(&n.o),
	}
	r.life = n.box.begin(n.term, r.peer)
	r.touch(n.now) // it has an election timeout to answer
	r.publish()
	r.a = actor.New(n.host.env.Exec, "replicator", r.step)
	return r
}

func (r *replicator) start() { r.wake() }

// wake says that there may be something to send.
func (r *replicator) wake() {
	if !r.woken.Swap(true) {
		r.post(nil)
	}
}

// post has the actor run f; on this goroutine if it is idle and does not seem to need the disk.
func (r *replicator) post(f func()) {
	if r.cold.Load() {
		r.a.Post(f)
		return
	}
	r.a.PostInline(f)
}

// elsewhere has the step that is about to use the disk taken on another goroutine, if this one is lent by somebody who does
// not wait for disks: the reader of a connection, say, which many groups share. It reports whether that is so.
func (r *replicator) elsewhere() bool {
	if !r.a.Lent() {
		return false
	}
	r.cold.Store(true)
	r.a.Post(nil)
	return true
}

// nudge says that the commit index has moved.
func (r *replicator) nudge() {
	if r.resting.Load() && !r.woken.Swap(true) {
		r.a.Post(nil) // this may be a storage goroutine, which has better things to do
	}
}

func (r *replicator) stop() {
	r.dropped.Store(true)
	r.a.Post(func() {
		r.stopped = true
		r.withdraw()
		r.n.snap.release(r)
	})
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

// canVote reports whether the peer has answered in this leadership, and votes freely.
func (r *replicator) canVote() bool { return r.heard.Load() && !r.voteless.Load() }

func (r *replicator) contact() time.Time {
	return r.n.host.base.Add(time.Duration(r.lastAnswer.Load()))
}

// grown is when the peer was known to store more than before.
func (r *replicator) grown() time.Time {
	return r.n.host.base.Add(time.Duration(r.grownAt.Load()))
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
	r.checkOffer()
	r.checkCatchup()
	r.checkLeaving()
	if r.offer.lent != nil { // to give it back may take the disk too
		r.cold.Store(true)
	}
	r.publish()
	return r.deadline()
}

// keepAlive sends a heartbeat if one is due, or if an idle peer is to learn of a commit.
func (r *replicator) keepAlive() {
	requests, _ := r.p.Inflight()
	// Who is slow to answer is not sent more and more: the next answer, or heartbeat, is soon enough.
	idle := requests == 0 && r.blockedTill.IsZero() && r.p.State != progress.Snapshot && r.asking < r.n.o.HeartbeatFactor
	r.resting.Store(idle)
	// What it does not hold yet comes with a request that tells it the rest.
	if !idle || r.commitSent >= min(r.n.box.index(), r.p.Match) {
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
	call, match := r.heartbeatAfter(r.p.Match)
	sentAt, life, commit := r.now, r.life, r.commitSent
	call.Done = func(rep rpc.Reply) {
		resp, ok := r.parse(rep, sentAt)
		if ok && resp.Success && resp.Term == r.term {
			r.storedBy(resp, life)
		}
		r.a.Post(func() { r.heartbeatAnswered(rep, resp, ok, life, match, commit) })
	}
	if !r.n.lm.leads(r.term) {
		return // what was read, the commit index too, may be another leader's by now
	}
	r.asking++
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
	if r.watched != nil && r.watched.Deadline().Before(at) {
		at = r.watched.Deadline()
	}
	if r.leaving != nil && r.leaving.until.Before(at) {
		at = r.leaving.until
	}
	return at
}

// window is how much may be on the way, and how much one request carries.
func (r *replicator) window() (w progress.Window, piece int) {
	o := &r.n.o
	w, piece = progress.Window{Requests: 1, Bytes: o.MaxInflightBytes}, o.MaxAppendBytes
	if !r.graft {
		return w, piece
	}
	w.Requests, w.Bytes = o.MaxInflightRequests, r.budget.bytes
	if r.watched != nil { // nobody waits for what it lacks: it must not get in the way of those who write
		w.Requests, piece = min(w.Requests, r.watched.pace), min(piece, catchupPiece)
	}
	return w, piece
}

// send sends what the window has room for.
func (r *replicator) send() {
	for {
		window, piece := r.window()
		if !r.p.Room(window) || r.calls/givenUp >= window.Requests || r.callBytes/givenUp >= r.n.o.MaxInflightBytes {
			return
		}
		if r.p.State == progress.Probe {
			r.sendEntries(nil)
			return
		}
		cold := !r.n.lm.cached(r.p.Next)
		r.cold.Store(cold)
		if cold && r.elsewhere() {
			return
		}
		var err error
		r.batches, err = r.n.lm.entries(r.batches, r.p.Next, piece)
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
	if !r.n.lm.leads(r.term) {
		return // what was to be read may have been cut off by another leader
	}
	if errors.Is(err, wal.ErrCompacted) {
		if !r.elsewhere() { // it opens a snapshot
			r.install()
		}
		return
	}
	r.block(busyDelay)
	if errors.Is(err, wal.ErrClosed) {
		return
	}
	failure := &Error{Code: ErrIO, Op: "read log", Group: r.n.group, Index: r.p.Next, Err: err}
	if errors.Is(err, wal.ErrNotOpened) {
		r.lastErr = failure
		r.log.Warn("the log waits to be read", zap.Error(err))
		return
	}
	r.n.post(func() {
		if r.n.role == RoleLeader && r.n.term == r.term {
			r.n.fail(failure)
		}
	})
}

// block keeps from sending entries for a while.
func (r *replicator) block(d time.Duration) { r.blockedTill = r.now.Add(d) }

// sendEntries sends a request with entries, or a probe without. It reports false
// if nothing was sent.
func (r *replicator) sendEntries(batches []entry.Batch) bool {
	prev := r.p.Next - 1
	prevTerm := r.n.lm.term(prev)
	if prevTerm == 0 && prev != 0 {
		r.unreadable(wal.ErrCompacted)
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
	call = r.finish(call, last)
	call.Timeout = 2 * r.n.o.ElectionTimeout
	if !r.graft {
		call.Timeout += time.Duration(size) * time.Second / braftPace
	}
	_, onTheWay := r.p.Inflight()
	sent := sentRequest{
		prev: prev, last: last, size: size, commit: r.commitSent, entries: len(batches) > 0,
		generation: r.p.Generation(), life: r.life, match: r.p.Match, at: r.now,
		onTheWay: onTheWay + size,
	}
	call.Done = func(rep rpc.Reply) { r.answered(sent, rep) }
	if !r.n.lm.leads(r.term) {
		return false // what was read may be another leader's by now
	}
	r.p.Sent(last, size)
	r.calls++
	r.callBytes += size
	r.n.host.call(r.peer, call)
	return true
}

// sentRequest is what must be known of a request when its answer comes.
type sentRequest struct {
	prev, last int64
	size       int // of the entries, in bytes
	onTheWay   int // of all of them
	commit     int64
	entries    bool
	generation uint64
	life       uint64 // of the peer, and what it had acknowledged in that when this was sent
	match      int64
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

// finish adds the commit index, which the peer follows up to what the request shows it to hold, and no further.
func (r *replicator) finish(call rpc.Call, upto int64) rpc.Call {
	commit := r.n.box.index()
	r.commitSent = max(r.commitSent, min(commit, upto))
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

// heartbeatAfter makes a heartbeat that tells the peer of commits up to match, which it is known to hold. A peer that has
// lost it gives itself away by its answer. If the log does not hold that any more, the heartbeat matches any log and tells
// of no commit: the peer needs a snapshot, or what comes next, and learns of it by that. prev is what it is about.
func (r *replicator) heartbeatAfter(match int64) (call rpc.Call, prev int64) {
	prevTerm := r.n.lm.term(match)
	if prev = match; prevTerm == 0 {
		prev = 0
	}
	call = r.finish(r.request(prev, prevTerm), match)
	call.Timeout = r.n.o.ElectionTimeout
	return call, prev
}

// answered runs where the answer arrives. What it says about durability counts at once.
func (r *replicator) answered(sent sentRequest, rep rpc.Reply) {
	resp, ok := r.parse(rep, sent.at)
	if ok && resp.Success && resp.Term == r.term {
		if sent.entries {
			r.n.acknowledged(r.term, r.peer, sent.life, sent.last)
		}
		r.storedBy(resp, sent.life)
	}
	r.post(func() { r.progress(sent, rep, resp, ok) })
}

// storedBy counts what an answer to a request without entries says about durability.
func (r *replicator) storedBy(resp wire.AppendResponse, life uint64) {
	if resp.StoredIndex > 0 {
		r.n.acknowledged(r.term, r.peer, life, resp.StoredIndex)
	}
}

// progress takes an answer into account.
func (r *replicator) progress(sent sentRequest, rep rpc.Reply, resp wire.AppendResponse, ok bool) {
	r.calls--
	r.callBytes -= sent.size
	if r.stopped {
		return
	}
	if !ok {
		if resp.Term <= r.term { // a higher one is the node's business
			r.failed(sent, rep)
		}
		return
	}
	r.succeeded()
	r.graft = resp.Features&featurePipeline != 0
	r.braft.Store(!r.graft)
	if resp.Success && sent.entries {
		r.budget.answered(r.now, sent.at, sent.size, sent.onTheWay)
	}
	if resp.Success && resp.Term == r.term && sent.life == r.life {
		r.known = max(r.known, min(sent.commit, sent.last))
	}
	switch {
	case resp.Term != r.term: // of an earlier term: it does not know ours yet
		r.again(sent)
	case r.lost(resp, sent.life, sent.match):
		r.regressed(resp.LastIndex)
	case sent.life != r.life: // it says nothing about the disk that the peer has now
	case resp.Success && sent.entries:
		r.p.Stored(sent.last)
		r.rest(sent)
	case resp.Success && !r.graft && sent.prev > r.p.Match:
		r.p.Matched(sent.prev - 1) // what is sent once more is acknowledged, which a probe is not
	case resp.Success:
		r.p.Matched(sent.prev)
		r.p.StoredUpTo(resp.StoredIndex)
	case sent.generation == r.p.Generation():
		r.refused(sent, resp)
	}
}

// again has what was sent repeated after a pause.
func (r *replicator) again(sent sentRequest) {
	if sent.generation == r.p.Generation() {
		r.p.Failed()
		r.block(r.interval())
	}
}

// failed handles a request without an answer, or with an error or nonsense in its place.
func (r *replicator) failed(sent sentRequest, rep rpc.Reply) {
	r.failedWith(rep)
	if sent.entries && rep.Err != nil {
		r.budget.lost(r.now, sent.at)
	}
	if sent.generation != r.p.Generation() {
		return
	}
	if r.failures == 1 || r.failures%100 == 0 {
		r.log.Info("peer does not take entries", zap.Int("failures", r.failures), zap.Error(r.lastErr))
	}
	r.p.Failed()
	r.block(r.interval())
	if Code(rep.Code) == ErrBusy || Code(rep.Code) == ErrGroupMismatch {
		r.block(busyDelay)
	}
}

// refused looks for the place where the logs part.
func (r *replicator) refused(sent sentRequest, resp wire.AppendResponse) {
	next := min(sent.prev, resp.LastIndex+1)
	if resp.ConflictTerm != 0 {
		// The last entry here that the peer may have too: entries of its conflicting term
		// or earlier. Each round trip skips a whole term (Raft paper §5.3).
		next = min(next, r.n.lm.lastUpToTerm(sent.prev-1, resp.ConflictTerm)+1)
	}
	if sent.prev <= r.p.Match { // there is nowhere else to look
		r.failures++
		r.lastErr = &Error{Code: ErrCorrupt, Op: "append", Group: r.n.group, Peer: r.peer, Index: sent.prev, Err: errContradicted}
		if r.contradicted != sent.prev {
			r.contradicted = sent.prev
			r.log.Error("peer refuses to go on behind entries that it has acknowledged", zap.Int64("index", sent.prev), zap.Int64("acknowledged", r.p.Match))
		}
		r.block(busyDelay)
	}
	r.p.Refused(sent.prev, next)
}

// errContradicted is what is wrong with a peer that has acknowledged an entry and has another one there.
var errContradicted = errors.New("it refuses entries behind one that it has acknowledged: it holds another log")

// lost reports whether a refusal shows that the peer does not hold any more what it had acknowledged when it was asked. An
// earlier request may have come before what it acknowledged since.
func (r *replicator) lost(resp wire.AppendResponse, life uint64, match int64) bool {
	return !resp.Success && resp.HasLastIndex && resp.LastIndex < match && life == r.life
}

// regressed is what becomes of a peer that does not hold any more what it acknowledged.
func (r *replicator) regressed(last int64) {
	r.log.Error("peer has lost entries that it had acknowledged; it is being caught up",
		zap.Int64("acknowledged", r.p.Match), zap.Int64("holds", last))
	life, ok := r.n.box.renew(r.term, r.peer, r.life)
	if !ok { // this replicator, or the leadership, is over: what has become of the peer is its successor's business
		return
	}
	r.life = life
	r.p.Regressed(last)
	r.most = 0
	r.known, r.commitSent = 0, 0
	r.applied.Store(0)
	if r.watched != nil {
		r.watched.Regressed()
	}
	if r.leaving != nil { // another life began there, which need not know what the removed one was to
		r.leaving.until = r.now
		r.block(busyDelay)
	}
}

// heartbeatAnswered takes the answer to a heartbeat into account.
func (r *replicator) heartbeatAnswered(rep rpc.Reply, resp wire.AppendResponse, ok bool, life uint64, match, commit int64) {
	r.asking--
	switch {
	case r.stopped:
	case !ok:
		if resp.Term <= r.term {
			r.failedWith(rep)
		}
	case resp.Features&featurePipeline == 0 || resp.Term != r.term:
		// braft: a heartbeat's success says nothing
	case r.lost(resp, life, match):
		r.regressed(resp.LastIndex)
	case resp.Success && life == r.life:
		if errors.Is(r.lastErr, ErrUnreachable) { // else it says nothing about what had failed
			r.succeeded()
		}
		r.known = max(r.known, min(commit, match))
		r.p.StoredUpTo(resp.StoredIndex)
	}
}

func (r *replicator) succeeded() { r.failures, r.lastErr = 0, nil }

// failedWith notes a request without an answer, or with an error or nonsense in its place.
func (r *replicator) failedWith(rep rpc.Reply) {
	r.failures++
	code, err := Code(rep.Code), errors.New(rep.Text)
	switch {
	case rep.Err != nil:
		code, err = ErrUnreachable, rep.Err
	case rep.Code == 0:
		code, err = ErrInvalid, errSenseless
	}
	r.lastErr = &Error{Code: code, Op: "append", Group: r.n.group, Peer: r.peer, Err: err}
}

// errSenseless is why an answer without an error is none.
var errSenseless = errors.New("the answer makes no sense")

// publish shows the progress to Status.
func (r *replicator) publish() {
	_, bytes := r.p.Inflight()
	rate := r.rate.Observe(r.now, r.p.Match)
	if r.p.Match > r.most {
		r.most = r.p.Match
		r.grownAt.Store(int64(r.now.Sub(r.n.host.base)))
	}
	r.status.Lock()
	defer r.status.Unlock()
	r.status.FollowerStatus = FollowerStatus{
		SnapshotIndex: r.offer.index(), SnapshotDone: r.copied.done.Load(), SnapshotTotal: r.copied.total.Load(),
		Peer: r.peer, State: r.p.State.String(), Match: r.p.Match, Next: r.p.Next, InflightBytes: bytes,
		Failures: r.failures, Err: r.lastErr, Rate: rate,
		CatchingUp: r.watched != nil, Leaving: r.leaving != nil,
	}
}
