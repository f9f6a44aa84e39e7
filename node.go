package graft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/fnv"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/wal"
)

// Node is one replica of one group. Host.StartNode makes it.
//
// Ownership: its methods may be called from anywhere. What stands under "the
// actor's" below is touched by the actor's steps only; steps do not block.
type Node struct {
	host  *Host
	group string
	peer  PeerID // without a role
	name  string // peer as it goes over the wire
	o     NodeOptions
	log   *zap.Logger

	a         *actor.Actor[func()]
	callbacks *actor.Actor[func()] // see aside
	store     LogStorage
	lm        *logManager
	box       ballotBox
	fsm       *fsmCaller
	durable   DurableStateMachine // nil: the state machine is none
	snap      *snapshotter
	proposals proposalQueue
	waiters   sync.Pool // of *waiter; a node's own, since channels must not go from one synctest bubble to another
	reads     readQueue
	readers   sync.Pool // of *readWaiter
	stopped   chan struct{}
	shutdown  shutdownState

	view       atomic.Pointer[nodeView]
	termNow    atomic.Int64 // the term, for those who answer outside the actor
	savedTerm  atomic.Int64 // the term that is durable
	voteless   atomic.Bool  // waiting, or not being so is not durable yet
	confWatch  atomic.Int64 // commit of this index is news to the actor; 0: none
	followers  atomic.Pointer[[]*replicator]
	ackWatch   atomic.Int64 // acknowledgements of this index are news to the actor; 0: none
	roundsOpen atomic.Int64
	groupIDNow atomic.Uint64
	gathering  atomic.Bool // proposals wait for a commit

	// The actor's.
	now          time.Time
	rng          *rand.Rand
	role         NodeRole
	term         int64
	vote         PeerID
	votedAt      time.Time // when the vote was given to somebody else
	waiting      bool
	groupID      uint64
	hard         hardState
	leader       PeerID
	leaderWire   []byte // as it names itself in requests
	watched      string // the address that is watched for its death
	matched      int64  // up to here the log is the leader's, in this term
	early        int64  // up to here it is known to be committed, but the term is not durable yet
	lastContact  time.Time
	leaderDead   bool // evidence that the leader's process is gone
	hurries      int  // how often to try again soon after that
	electionWait time.Duration
	electionAt   time.Time // when to campaign, if nothing is heard
	retryAt      time.Time // when to submit again what storage refused
	disorder     int       // how often in a row it was refused only because of its order
	disorderAt   int64     // how far the log was durable then
	voteRound    uint64    // answers to earlier rounds are void
	votes        ballot
	unheard      map[PeerID]bool // who has not answered the pre-vote of a blank node; nil if that does not matter
	unheardRound uint64
	startedAt    time.Time
	begunAt      time.Time // when somebody said that it holds entries: this is not the group's first start
	conf         confEntry
	override     wal.Override // what ResetPeers has done, until a leader has confirmed a configuration
	told         bool         // another member knows that this node has no vote any more
	gone         bool         // and that it is no member
	wasMember    bool         // it was one, which the log does not say any more
	ctx          ConfigurationCtx
	change       *confChange // what a user waits for, nil if nobody does
	advanceAt    time.Time   // when to look again whether the new majority answers
	readyAt      time.Time   // since when that is all that is missing
	transfer     *transfer   // leadership is being handed over
	departing    *departure  // this leader is no voter any more
	ledAt        time.Time   // when it became leader
	firstOwn     int64       // index of this leadership's first entry
	replicators  map[PeerID]*replicator
	quorumAt     time.Time // when to check that a majority answers
	disk         diskWatch
	rounds       []*readRound
	forwarding   bool
	forwarded    []read    // who waits for the answer to what is forwarded
	lastOwn      int64     // the last index that was proposed with somebody waiting for it
	gatherTill   time.Time // until then proposals wait for others; zero if none waits
	builder      entry.Builder
	err          error
	dirty        bool
}

// nodeView is what the outside sees of the actor's state.
type nodeView struct {
	role       NodeRole
	term       int64
	vote       PeerID
	leader     PeerID
	conf       confEntry
	stage      Stage
	change     *confChange
	transfer   PeerID
	waiting    bool
	removed    bool
	overridden bool
	err        error
}

// shutdownState is who waits for the end.
type shutdownState struct {
	mu    sync.Mutex
	begun bool
	over  bool
	done  []Closure
}

// newNode makes a node of what storage and snapshots hold. It has the state machine load a snapshot, which may take
// long.
func newNode(h *Host, group string, store LogStorage, o NodeOptions) (*Node, error) {
	n := &Node{
		host: h, group: group, store: store, o: o,
		peer:    PeerID{Address: h.o.Address, Index: o.Index},
		stopped: make(chan struct{}),
		waiters: sync.Pool{New: newWaiter},
		readers: sync.Pool{New: newReadWaiter},
		rng:     rand.New(rand.NewPCG(h.env.Rand(), h.env.Rand())),
	}
	n.name = n.peer.String()
	n.log = h.log.With(zap.String("group", group), zap.String("peer", n.name))
	r := store.Recovered()
	n.recoverHard(r)
	n.fsm = newFSMCaller(h.env.Exec, o.StateMachine, group)
	n.durable, _ = o.StateMachine.(DurableStateMachine)
	n.snap = newSnapshotter(n, h.snapshotDir(group, o.Index))
	base, err := n.restore(r)
	if err != nil {
		return nil, err
	}
	lm, err := newLogManager(store, o.InitialConf, base, o.CacheBytes)
	if err != nil {
		return nil, &Error{Code: ErrCorrupt, Op: "start node", Group: group, Err: err}
	}
	n.lm, n.fsm.log = lm, lm
	n.fsm.release = n.proposals.release
	n.fsm.rested = n.releaseGathered
	n.fsm.grown = n.snap.onApplied
	n.fsm.aside = n.aside
	n.fsm.fail = func(err error) { n.post(func() { n.fail(err) }) }
	lm.onDurable = n.onDurable
	lm.onCut = func() { n.post(n.onCut) }
	lm.onError = func(err error) { n.post(func() { n.onStorageError(err) }) }
	n.recoverLog(r, base)
	n.recoverMembership(r)
	n.snap.replay.begin(n.fsm.applied.Load(), lm.lastIndex(), h.env.Exec.Now())
	if n.durable != nil {
		n.fsm.bound = lm.durableIndex
		if err := n.fsm.tellConf(); err != nil {
			return nil, err
		}
	}
	n.proposals.init(n)
	n.a = actor.New(h.env.Exec, "node", n.step)
	n.callbacks = actor.New(h.env.Exec, "callback", callAll)
	return n, nil
}

// releaseGathered has proposals taken that waited for others, now that those before them are
// applied. Whoever got an answer first has the chance to propose again, so that
// all travel together.
func (n *Node) releaseGathered() {
	if !n.gathering.Load() {
		return
	}
	runtime.Gosched()
	if n.gathering.Swap(false) {
		n.post(nil)
	}
}

// recoverHard takes over the hard state that storage holds.
func (n *Node) recoverHard(r wal.Recovered) {
	n.term, n.groupID, n.waiting = r.Hard.Term, r.Hard.GroupID, r.Hard.Waiting
	if v, err := ParsePeerID(r.Hard.Vote); err == nil {
		n.vote = v.ID()
	}
	if r.Hard != (wal.HardState{}) {
		return
	}
	// It never had a term, and so has never acknowledged anything, if it did not lose what it held. Entries do not show that: there
	// may have been space for them when there was none for the term.
	n.waiting = !n.o.FirstStart
	if r.Last == 0 && !n.o.InitialConf.Empty() {
		n.groupID = groupIDOf(n.group, n.o.InitialConf)
	}
}

// recoverLog goes on from the log that storage holds, or from the snapshot where that is ahead of it.
func (n *Node) recoverLog(r wal.Recovered, base logBase) {
	if base.index > 0 && !n.lm.holds(base) {
		n.log.Info("the log goes on behind the snapshot", zap.Int64("index", base.index), zap.Int64("was_first", r.First), zap.Int64("was_last", r.Last))
		n.lm.startAfterLater(base)
	}
	if term, _ := n.lm.tail(); n.term < term { // term and vote were lost, or not durable yet: in that term it has said nothing
		n.term, n.vote = term, PeerID{}
	}
	n.voteless.Store(n.waiting)
	n.groupIDNow.Store(n.groupID)
	n.termNow.Store(n.term)
	n.savedTerm.Store(r.Hard.Term)
	n.recoverOverride(r.Hard.Override)
	n.conf = n.lm.conf()
	n.box.follow(max(min(r.Commit, n.lm.lastIndex()), base.index, n.fsm.applied.Load()))
}

// groupIDOf is the identity of a group that is started with a configuration; never 0.
func groupIDOf(group string, conf Configuration) uint64 {
	h := fnv.New128a()
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(group)))
	h.Write(size[:])
	h.Write([]byte(group))
	h.Write([]byte(conf.String()))
	sum := h.Sum(nil)
	return max(binary.BigEndian.Uint64(sum)^binary.BigEndian.Uint64(sum[8:]), 1)
}

// start begins to follow or to campaign.
func (n *Node) start() {
	n.post(func() {
		n.dirty, n.startedAt = true, n.now
		n.lm.retry(n.box.index()) // the log may have to begin behind the snapshot
		n.compact()               // which a crash may have kept from being done when the snapshot was saved
		if n.savedTerm.Load() != n.term {
			n.save()
		}
		n.resetElection()
		if n.waiting && n.lm.lastIndex() == 0 {
			n.log.Info("nothing on disk: waiting for a leader, or for a group that is empty as well",
				zap.Stringer("conf", n.conf.conf))
		}
		n.fsm.commit(n.box.index())
		if !n.electionAt.IsZero() {
			// If there is a leader, those who hear it refuse the pre-vote. If there is none, because
			// all have been started just now, nobody need wait for long.
			n.hurries = hurries
			n.electionAt = n.now.Add(n.jitter(n.o.ElectionTimeout / 5))
		}
		if n.soleVoter() { // nobody else could lead
			n.electionAt = n.now
		}
	})
}

func (n *Node) soleVoter() bool {
	v := n.conf.conf.Voters()
	return len(v) == 1 && v[0].Same(n.peer) && !n.conf.joint()
}

// post has f run in the actor. After the end it is dropped.
func (n *Node) post(f func()) bool { return n.a.Post(f) }

// postInline is post for callers that hold no lock and are in no hurry, such as proposers and
// the readers of connections: an idle node takes its step on their goroutine. A proposer may hold locks of his own
// all the same, which is why a step calls nobody back; see aside.
func (n *Node) postInline(f func()) bool { return n.a.PostInline(f) }

func (n *Node) step(now time.Time, batch []func()) time.Time {
	n.now = now
	for _, f := range batch {
		if f != nil {
			f()
		}
	}
	n.tick()
	// Behind whatever may end a leadership: only the first of those that wait has woken the node, and what is not taken now
	// has to have somebody else who will, as there is while this node leads. takeProposals may end it too.
	n.takeProposals()
	n.takeReads()
	if n.dirty {
		n.publish()
	}
	return n.deadline()
}

// tick does what is due.
func (n *Node) tick() {
	if !n.active() {
		return
	}
	if !n.retryAt.IsZero() && !n.now.Before(n.retryAt) {
		n.retryAt = time.Time{}
		n.retrySave()
		n.lm.retry(n.box.index())
	}
	switch {
	case n.role == RoleLeader:
		if !n.now.Before(n.quorumAt) {
			n.checkQuorum()
		}
		n.tickChange()
	case !n.electionAt.IsZero() && !n.now.Before(n.electionAt):
		n.electionTimeout()
	}
}

// deadline is when the next step is due without a message.
func (n *Node) deadline() time.Time {
	if !n.active() {
		return time.Time{}
	}
	at := n.electionAt
	if n.role == RoleLeader {
		at = earlier(n.quorumAt, n.gatherTill)
		at = earlier(at, n.changeDeadline())
	}
	return earlier(at, n.retryAt)
}

// earlier returns the earlier of two times, of which the zero time is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func (n *Node) active() bool { return n.role < RoleFailed }

// publish shows the actor's state to the outside.
func (n *Node) publish() {
	n.dirty = false
	v := &nodeView{
		role: n.role, term: n.term, vote: n.vote, leader: n.leader, conf: n.conf,
		stage: n.ctx.Stage(), change: n.change, waiting: n.waiting, removed: n.removed(),
		overridden: n.overridden(), err: n.err,
	}
	if n.transfer != nil {
		v.transfer = n.transfer.peer
	}
	n.view.Store(v)
}

// onDurable is called when the log is durable up to index; see logManager.
func (n *Node) onDurable(index, lead int64, acks []pendingAck) {
	for _, a := range acks {
		n.answerStored(a)
	}
	if lead != 0 {
		n.acknowledged(lead, n.peer, 0, index)
	}
	n.fsm.reached()
}

// acknowledged counts that a peer stores the log up to index. Any goroutine may call it.
func (n *Node) acknowledged(term int64, peer PeerID, life uint64, index int64) {
	committed, moved := n.box.ack(term, peer, life, index)
	if w := n.ackWatch.Load(); w != 0 && index >= w {
		n.post(n.onHandover)
	}
	if !moved {
		return
	}
	n.fsm.commit(committed)
	if w := n.confWatch.Load(); w != 0 && committed >= w {
		n.post(n.onOwnCommit)
	}
	if f := n.followers.Load(); f != nil {
		for _, r := range *f {
			r.nudge()
		}
	}
}

// onCut submits what waited until storage had cut the log.
func (n *Node) onCut() {
	if n.active() {
		n.lm.retry(n.box.index())
	}
}

// onStorageError decides what a failed write means. A full disk passes; everything
// else ends this node.
func (n *Node) onStorageError(err error) {
	if !n.active() {
		return
	}
	if durable := n.lm.durableIndex(); durable != n.disorderAt || errors.Is(err, wal.ErrNoSpace) {
		n.disorder, n.disorderAt = 0, durable
	}
	switch {
	case errors.Is(err, wal.ErrNoSpace):
	case errors.Is(err, wal.ErrOrder) && (!n.retryAt.IsZero() || n.disorder < maxDisorder):
		// What came behind a record that found no space is out of order.
		if n.retryAt.IsZero() {
			n.disorder++
		}
	default:
		n.fail(&Error{Code: ErrIO, Op: "write log", Group: n.group, Err: err})
		return
	}
	if n.retryAt.IsZero() {
		n.retryAt = n.now.Add(spaceRetry)
		n.log.Warn("log storage refuses entries; what was accepted waits and is tried again", zap.Error(err))
	}
}

// maxDisorder is how often in a row what storage calls out of order is tried again, although nothing was refused for
// want of space. After that storage and node are taken to disagree about what is stored.
const maxDisorder = 10

// spaceRetry is the pause before something is tried again for which there was no space.
const spaceRetry = 200 * time.Millisecond

// fail puts the node into its error state for good. The process lives on.
func (n *Node) fail(err error) {
	if !n.active() {
		return
	}
	n.log.Error("node failed", zap.Error(err))
	n.err = err
	n.leave(RoleFailed, &Error{Code: ErrNodeFailed, Group: n.group, Err: err})
	n.fsm.reportError(err)
}

// leave gives up whatever the node does and takes a final role.
func (n *Node) leave(role NodeRole, reason error) {
	if n.role == RoleLeader {
		n.wakeSuccessor(n.box.index())
	}
	n.stepDown(n.term, reason)
	n.role, n.electionAt, n.dirty = role, time.Time{}, true
	if role == RoleFailed {
		n.snap.abandon()
		n.fsm.free()
	}
	for _, a := range n.lm.allAcks() {
		a.req.Fail(int32(ErrInvalid), "node is not active: "+role.String())
	}
	n.dropWaiters()
}

// Apply proposes an entry. It never blocks; Task.Done gets the outcome. Only
// refusals that are certain at once (too large, overloaded, shut down) run Done before
// Apply returns. Nobody else is called back in it.
func (n *Node) Apply(t Task) { n.proposals.add(t) }

// Propose proposes an entry and waits until it is applied here; result is what the
// state machine returned. If ctx ends first the error is ErrUnknownOutcome wrapping
// ctx.Err(): nothing is cancelled. data is the caller's again when Propose returns.
func (n *Node) Propose(ctx context.Context, data []byte) (result any, err error) {
	if ctx.Done() != nil { // it may return before data was taken
		data = bytes.Clone(data)
	}
	w := n.waiters.Get().(*waiter)
	n.Apply(Task{Data: data, Done: w.done})
	select {
	case o := <-w.c:
		n.waiters.Put(w)
		return o.result, o.err
	case <-ctx.Done():
		return nil, &Error{Code: ErrUnknownOutcome, Op: "propose", Group: n.group, Err: ctx.Err()}
	}
}

type outcome struct {
	result any
	err    error
}

// waiter carries one outcome to a blocked caller. One whose caller went away is not reused.
type waiter struct {
	c    chan outcome
	done func(any, error)
}

func newWaiter() any {
	w := &waiter{c: make(chan outcome, 1)}
	w.done = func(result any, err error) { w.c <- outcome{result, err} }
	return w
}

// Await runs a call that takes a Closure and waits for its outcome. If ctx ends first the error
// is ErrUnknownOutcome wrapping ctx.Err(); nothing is cancelled.
func Await(ctx context.Context, call func(done Closure)) error {
	c := make(chan error, 1)
	call(func(err error) { c <- err })
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return &Error{Code: ErrUnknownOutcome, Op: "await", Err: ctx.Err()}
	}
}

// Group returns the name of the node's group.
func (n *Node) Group() string { return n.group }

// PeerID returns the node's own name.
func (n *Node) PeerID() PeerID { return n.peer }

// LeaderID returns the leader this node knows of, or the zero PeerID. It may be out of date.
func (n *Node) LeaderID() PeerID { return n.view.Load().leader }

// IsLeader reports whether the node believes to lead. It is true from the moment
// the election is won, before OnLeaderStart.
func (n *Node) IsLeader() bool { return n.view.Load().role == RoleLeader }

// Shutdown ends the node: it stops to lead or to follow, whoever waits gets an answer, OnShutdown is called, and when
// storage has answered what was submitted to it, done. Until then the group cannot be started again here. It returns
// at once and may be called again.
func (n *Node) Shutdown(done Closure) {
	s := &n.shutdown
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		if done != nil {
			n.aside(func() { n.callBack("shutdown", done) })
		}
		return
	}
	if done != nil {
		s.done = append(s.done, done)
	}
	first := !s.begun
	s.begun = true
	s.mu.Unlock()
	if first {
		n.post(n.end)
		n.a.Close()
	}
}

// end is the last thing that the actor does.
func (n *Node) end() {
	reason := &Error{Code: ErrShutdown, Group: n.group}
	if n.active() {
		n.leave(RoleShutdown, reason)
	}
	n.role, n.dirty = RoleShutdown, true
	n.proposals.close(reason)
	n.tellReads(n.reads.close(reason), 0, reason)
	n.tellReads(n.forwarded, 0, reason)
	n.forwarded = nil
	n.lm.pending.add()
	n.snap.stop(n.lm.pending.done)
	n.fsm.shutdown()
	n.lm.pending.close(func() {
		n.fsm.free() // of what is not stored now, nothing will be
		// Behind what those who waited for the state machine are still told.
		n.fsm.end(func() { n.callbacks.Post(n.ended) })
	})
}

// ended tells everybody that nothing of the node is left. It runs where callbacks do, as the last of them.
func (n *Node) ended() {
	n.host.remove(n)
	n.shutdown.mu.Lock()
	n.shutdown.over = true
	done := n.shutdown.done
	n.shutdown.done = nil
	n.shutdown.mu.Unlock()
	for _, d := range done {
		n.callBack("shutdown", d)
	}
	close(n.stopped) // whoever joins may end the process
}

// aside has a callback of a user run on a goroutine that belongs to nobody else, for those that cannot wait for the state machine. A
// step of the node may be running on the goroutine of somebody who has called Apply with a lock held that the
// callback wants as well. The node has not ended before it has run, nor before what that has called back in turn, unless the
// node has ended already.
func (n *Node) aside(call func()) {
	if !n.lm.pending.tryHold() {
		n.callbacks.Post(call)
		return
	}
	n.callbacks.Post(func() {
		call()
		n.lm.pending.letGo()
	})
}

// callAll is the step of an actor that does nothing by itself. It is never closed, as it has nothing to end: who comes late is
// to be called back too.
func callAll(_ time.Time, batch []func()) time.Time {
	for _, call := range batch {
		call()
	}
	return time.Time{}
}

// callBack runs a Closure with nil.
func (n *Node) callBack(op string, done Closure) { n.callBackWith(op, done, nil) }

// callBackWith runs a Closure.
func (n *Node) callBackWith(op string, done Closure, err error) {
	defer n.caught(op)
	done(err)
}

// caught is deferred around user code that may run on any goroutine. A panic there stops the node, not the process.
func (n *Node) caught(op string) {
	v := recover()
	if v == nil {
		return
	}
	err := panicked(op, n.group, v)
	n.log.Error("panic in a callback", zap.Error(err))
	n.post(func() { n.fail(err) })
}

// Join waits until the node has ended. It must not be called from a StateMachine's
// method or a callback.
func (n *Node) Join() {
	<-n.stopped
	<-n.a.Done()
	<-n.snap.a.Done()
	<-n.fsm.a.Done()
}
