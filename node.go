package graft

import (
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
	store     LogStorage
	lm        *logManager
	box       ballotBox
	fsm       *fsmCaller
	proposals proposalQueue
	reads     readQueue
	stopped   chan struct{}
	shutdown  shutdownState

	view       atomic.Pointer[nodeView]
	termNow    atomic.Int64 // the term, for those who answer outside the actor
	savedTerm  atomic.Int64 // the term that is durable
	confWatch  atomic.Int64 // commit of this index is news to the actor; 0: none
	followers  atomic.Pointer[[]*replicator]
	roundsOpen atomic.Int64
	groupIDNow atomic.Uint64
	gathering  atomic.Bool // proposals wait for a commit

	// The actor's.
	now          time.Time
	rng          *rand.Rand
	role         NodeRole
	term         int64
	vote         PeerID
	waiting      bool
	groupID      uint64
	hard         hardState
	leader       PeerID
	leaderWire   []byte // as it names itself in requests
	watched      string // the address that is watched for its death
	matched      int64  // up to here the log is the leader's, in this term
	lastContact  time.Time
	leaderDead   bool // evidence that the leader's process is gone
	hurries      int  // how often to try again soon after that
	electionWait time.Duration
	electionAt   time.Time // when to campaign, if nothing is heard
	retryAt      time.Time // when to submit again what storage refused
	voteRound    uint64    // answers to earlier rounds are void
	votes        ballot
	conf         confEntry
	ctx          ConfigurationCtx
	firstOwn     int64 // index of this leadership's first entry
	replicators  map[PeerID]*replicator
	quorumAt     time.Time // when to check that a majority answers
	rounds       []*readRound
	forwarding   bool
	lastOwn      int64     // the last index that was proposed with somebody waiting for it
	gatherTill   time.Time // until then proposals wait for others; zero if none waits
	builder      entry.Builder
	err          error
	dirty        bool
}

// nodeView is what the outside sees of the actor's state.
type nodeView struct {
	role    NodeRole
	term    int64
	vote    PeerID
	leader  PeerID
	conf    confEntry
	stage   Stage
	waiting bool
	err     error
}

// shutdownState is who waits for the end.
type shutdownState struct {
	mu    sync.Mutex
	begun bool
	over  bool
	done  []Closure
}

func newNode(h *Host, group string, store LogStorage, o NodeOptions) (*Node, error) {
	n := &Node{
		host: h, group: group, store: store, o: o,
		peer:    PeerID{Address: h.o.Address, Index: o.Index},
		stopped: make(chan struct{}),
		rng:     rand.New(rand.NewPCG(h.env.Rand(), h.env.Rand())),
	}
	n.name = n.peer.String()
	n.log = h.log.With(zap.String("group", group), zap.String("peer", n.name))
	lm, err := newLogManager(store, o.InitialConf, o.CacheBytes)
	if err != nil {
		return nil, &Error{Code: ErrCorrupt, Op: "start node", Group: group, Err: err}
	}
	n.lm = lm
	n.recover(store.Recovered())
	n.fsm = newFSMCaller(h.env.Exec, o.StateMachine, lm, group)
	n.fsm.release = n.proposals.release
	n.fsm.rested = n.releaseGathered
	n.fsm.fail = func(err error) { n.post(func() { n.fail(err) }) }
	lm.onDurable = n.onDurable
	lm.onError = func(err error) { n.post(func() { n.onStorageError(err) }) }
	n.proposals.init(n)
	n.a = actor.New(h.env.Exec, "node", n.step)
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

// recover takes over what storage holds.
func (n *Node) recover(r wal.Recovered) {
	n.term, n.groupID, n.waiting = r.Hard.Term, r.Hard.GroupID, r.Hard.Waiting
	if v, err := ParsePeerID(r.Hard.Vote); err == nil {
		n.vote = v.ID()
	}
	empty := r.Last == 0 && r.Hard == (wal.HardState{})
	if empty {
		n.waiting = !n.o.FirstStart
		if !n.o.InitialConf.Empty() {
			n.groupID = groupIDOf(n.group, n.o.InitialConf)
		}
	}
	n.groupIDNow.Store(n.groupID)
	n.termNow.Store(n.term)
	n.savedTerm.Store(n.term)
	n.conf = n.lm.conf()
	n.box.follow(min(r.Commit, r.Last))
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
		n.dirty = true
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
// the readers of connections: an idle node takes its step on their goroutine.
func (n *Node) postInline(f func()) bool { return n.a.PostInline(f) }

func (n *Node) step(now time.Time, batch []func()) time.Time {
	n.now = now
	for _, f := range batch {
		if f != nil {
			f()
		}
	}
	n.takeProposals()
	n.takeReads()
	n.tick()
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
		at = n.quorumAt
		if !n.gatherTill.IsZero() && n.gatherTill.Before(at) {
			at = n.gatherTill
		}
	}
	if !n.retryAt.IsZero() && (at.IsZero() || n.retryAt.Before(at)) {
		at = n.retryAt
	}
	return at
}

func (n *Node) active() bool { return n.role < RoleFailed }

// publish shows the actor's state to the outside.
func (n *Node) publish() {
	n.dirty = false
	n.view.Store(&nodeView{
		role: n.role, term: n.term, vote: n.vote, leader: n.leader, conf: n.conf,
		stage: n.ctx.Stage(), waiting: n.waiting, err: n.err,
	})
}

// onDurable is called when the log is durable up to index; see logManager.
func (n *Node) onDurable(index, lead int64, acks []pendingAck) {
	for _, a := range acks {
		n.answerStored(a)
	}
	if lead != 0 {
		n.acknowledged(lead, n.peer, index)
	}
}

// acknowledged counts that a peer stores the log up to index. Any goroutine may call it.
func (n *Node) acknowledged(term int64, peer PeerID, index int64) {
	committed, moved := n.box.ack(term, peer, index)
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

// onStorageError decides what a failed write means. A full disk passes; everything
// else ends this node.
func (n *Node) onStorageError(err error) {
	if !n.active() {
		return
	}
	if errors.Is(err, wal.ErrNoSpace) || errors.Is(err, wal.ErrOrder) {
		if n.retryAt.IsZero() {
			n.retryAt = n.now.Add(spaceRetry)
			n.log.Warn("log storage has no space; what was accepted waits for it", zap.Error(err))
		}
		return
	}
	n.fail(&Error{Code: ErrIO, Op: "write log", Group: n.group, Err: err})
}

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
	n.stepDown(n.term, reason)
	n.role, n.electionAt, n.dirty = role, time.Time{}, true
	for _, a := range n.lm.allAcks() {
		a.req.Fail(int32(ErrInvalid), "node is not active: "+role.String())
	}
	n.hard.waiters = nil
}

// Apply proposes an entry. It never blocks; Task.Done gets the outcome. Only
// refusals that are certain at once (too large, overloaded, shut down) run Done before
// Apply returns.
func (n *Node) Apply(t Task) { n.proposals.add(t) }

// Propose proposes an entry and waits until it is applied here; result is what the
// state machine returned. If ctx ends first the error is ErrUnknownOutcome wrapping
// ctx.Err(): nothing is cancelled.
func (n *Node) Propose(ctx context.Context, data []byte) (result any, err error) {
	w := waiterPool.Get().(*waiter)
	n.Apply(Task{Data: data, Done: w.done})
	select {
	case o := <-w.c:
		waiterPool.Put(w)
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

var waiterPool = sync.Pool{New: func() any {
	w := &waiter{c: make(chan outcome, 1)}
	w.done = func(result any, err error) { w.c <- outcome{result, err} }
	return w
}}

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

// ListPeers returns the peers of the configuration in force, on the leader; elsewhere
// ErrNotLeader.
func (n *Node) ListPeers() ([]PeerID, error) {
	v := n.view.Load()
	if v.role != RoleLeader {
		return nil, &Error{Code: ErrNotLeader, Op: "list peers", Group: n.group, Peer: v.leader}
	}
	return v.conf.conf.Peers(), nil
}

// Status describes the node.
func (n *Node) Status() Status {
	v := n.view.Load()
	s := Status{
		Group: n.group, Peer: n.peer, Role: v.role, Term: v.term, Vote: v.vote, Leader: v.leader,
		Conf: v.conf.conf, OldConf: v.conf.old, Stage: v.stage, Waiting: v.waiting, Err: v.err,
		AppliedIndex: n.fsm.applied.Load(), CommitIndex: n.box.index(),
	}
	s.FirstIndex, s.LastIndex = n.lm.bounds()
	s.DurableIndex = n.lm.durableIndex()
	s.PendingEntries, s.PendingBytes = n.proposals.pending()
	s.PendingReads = n.reads.pending.Load()
	if s.Err == nil {
		s.Err = n.host.spaceError()
	}
	if f := n.followers.Load(); f != nil {
		for _, r := range *f {
			s.Followers = append(s.Followers, r.status.load())
		}
	}
	return s
}

// Shutdown ends the node: it stops to lead or to follow, whoever waits gets an
// answer, OnShutdown is called, then done. It returns at once and may be called again.
func (n *Node) Shutdown(done Closure) {
	s := &n.shutdown
	s.mu.Lock()
	if s.over {
		s.mu.Unlock()
		if done != nil {
			done(nil)
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
	n.reads.close(reason)
	n.fsm.shutdown(func() {
		n.host.remove(n)
		n.shutdown.mu.Lock()
		n.shutdown.over = true
		done := n.shutdown.done
		n.shutdown.done = nil
		n.shutdown.mu.Unlock()
		close(n.stopped)
		for _, d := range done {
			d(nil)
		}
	})
}

// Join waits until the node has ended. It must not be called from a StateMachine's
// method or a callback.
func (n *Node) Join() {
	<-n.stopped
	<-n.a.Done()
	<-n.fsm.a.Done()
}
