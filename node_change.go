package graft

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
)

// ChangeOptions are conditions of a change of the configuration. The zero value has none.
type ChangeOptions struct {
	// Expected, unless empty, must be the configuration in force, roles included, when the change begins;
	// else it is refused with ErrConfMismatch. With it, administrators who race cannot
	// undo each other's work.
	Expected Configuration
	// Deadline bounds the whole change; 0 means none. New peers that have not caught up by then fail it with
	// ErrTimeout. If its first entry is in the log by then, nobody can take it back any more:
	// the callback gets ErrUnknownOutcome, and the change goes on.
	Deadline time.Duration
}

// AddPeer adds a peer, or gives one that is a member already the role that peer has: so
// it promotes a learner. It is Change with the configuration in force and that peer.
//
// Source: Raft thesis §4; braft Node::add_peer.
func (n *Node) AddPeer(peer PeerID, done Closure) {
	n.startChange("add peer", ChangeOptions{}, func(c Configuration) (Configuration, error) { return c.with(peer) }, done)
}

// RemovePeer removes a peer, whatever its role. It is Change with the configuration in
// force but for that peer; removing one that is no member succeeds at once.
//
// Source: braft Node::remove_peer.
func (n *Node) RemovePeer(peer PeerID, done Closure) {
	n.startChange("remove peer", ChangeOptions{}, func(c Configuration) (Configuration, error) {
		return NewConfiguration(c.without(peer)...)
	}, done)
}

// AddLearner adds a peer that gets the log, applies it and serves reads, and counts in no
// quorum. A voter becomes a learner by it.
func (n *Node) AddLearner(peer PeerID, done Closure) {
	peer.Role = Learner
	n.startChange("add learner", ChangeOptions{}, func(c Configuration) (Configuration, error) { return c.with(peer) }, done)
}

// RemoveLearner removes a learner. It refuses a voter with ErrInvalid; a peer that is no
// member succeeds at once.
func (n *Node) RemoveLearner(peer PeerID, done Closure) {
	n.startChange("remove learner", ChangeOptions{}, func(c Configuration) (Configuration, error) {
		if c.ContainsVoter(peer) {
			return c, fmt.Errorf("%v is no learner; RemovePeer removes it", peer)
		}
		return NewConfiguration(c.without(peer)...)
	}, done)
}

// ChangePeers is Change without conditions (braft: Node::change_peers).
func (n *Node) ChangePeers(conf Configuration, done Closure) {
	n.Change(conf, ChangeOptions{}, done)
}

// Change makes conf, learners included, the group's configuration. It returns at once; done gets
// exactly one outcome, never before Change returns on the same goroutine. Success is told on the goroutine that calls the state
// machine, an error on another, without waiting for the state machine: done must not block, and must not call what
// waits for the node.
//
//   - nil: conf is committed, and OnConfigurationCommitted has reported it here.
//   - ErrUnknownOutcome: leadership was lost after the change was in the log, or the state machine could not be told of it
//     any more, since it or the node has failed or was shut down. Some later leader finishes it, or it is undone; which
//     of both, the configuration in force then shows.
//   - any other error: nothing has changed, and nothing will. ErrNotLeader names the leader to ask;
//     ErrBusy says what else is going on, so retry; ErrInvalid says what is wrong with conf; ErrConfMismatch
//     and ErrTimeout, see ChangeOptions; ErrCatchup names the peer that cannot be reached or makes no progress, how
//     far behind it is, and why: a new one, or a voter without which conf could commit nothing; ErrUnreachable
//     says that most of conf's voters do not answer, so that the group would not work any more; ErrCanceled, see
//     CancelChange.
//
// A conf that is in force already succeeds at once, without an entry. New peers copy the log first,
// and count from when they are near its end (NodeOptions.CatchupMargin). If more than one voter differs
// the group then passes through a joint configuration, in which both majorities must agree. A leader
// that is no voter of conf hands leadership over and steps down when conf is committed.
//
// Source: Raft thesis §4.3; braft Node::change_peers.
func (n *Node) Change(conf Configuration, o ChangeOptions, done Closure) {
	n.startChange("change peers", o, func(Configuration) (Configuration, error) { return conf, nil }, done)
}

// CancelChange calls off the change under way on this leader, whose callback gets ErrCanceled. It
// works until the change's first configuration entry is in the log; then it fails with
// ErrBusy, as nobody can take that back, and as it does while a new leader restates the configuration. Without a
// change it fails with ErrNotFound. It must not be called from a callback that runs on the node's own goroutines.
func (n *Node) CancelChange() error { return n.ask(n.cancelChange) }

// ask runs a call that the actor answers without waiting for anything.
func (n *Node) ask(call func(done func(error))) error {
	c := make(chan error, 1)
	call(func(err error) { c <- err })
	return <-c
}

// confChange is a change that a user waits for. It is not changed once it was made.
type confChange struct {
	op       string
	from, to Configuration
	done     Closure
	began    time.Time
	deadline time.Time // zero: none
}

// startChange has the actor begin a change to what target makes of the configuration in force.
func (n *Node) startChange(op string, o ChangeOptions, target func(Configuration) (Configuration, error), done Closure) {
	if done == nil {
		done = func(error) {}
	}
	if !n.post(func() { n.beginChange(op, o, target, done) }) {
		n.settleChange(op, done, &Error{Code: ErrShutdown, Op: op, Group: n.group})
	}
}

func (n *Node) beginChange(op string, o ChangeOptions, target func(Configuration) (Configuration, error), done Closure) {
	current := n.conf.conf
	conf, err := n.admit(op, o, target)
	if err != nil || conf.Equal(current) {
		n.settleChange(op, done, err)
		return
	}
	n.log.Info("change of the configuration", zap.Stringer("from", current), zap.Stringer("to", conf))
	n.change = &confChange{op: op, from: current, to: conf, done: done, began: n.now}
	if o.Deadline > 0 {
		n.change.deadline = n.now.Add(o.Deadline)
	}
	n.dirty = true
	n.doConf(n.ctx.Start(current, conf))
	n.advance()
}

// admit reports which configuration a change leads to, or why it cannot begin.
func (n *Node) admit(op string, o ChangeOptions, target func(Configuration) (Configuration, error)) (Configuration, error) {
	fail := func(code Code, cause error) (Configuration, error) {
		return Configuration{}, &Error{Code: code, Op: op, Group: n.group, Err: cause}
	}
	if n.role != RoleLeader {
		return Configuration{}, n.notLeader(op)
	}
	conf, err := target(n.conf.conf)
	if err == nil {
		err = conf.validate()
	}
	if err == nil && o.Deadline < 0 {
		err = fmt.Errorf("ChangeOptions.Deadline is %v, must not be negative", o.Deadline)
	}
	if err != nil {
		return fail(ErrInvalid, err)
	}
	if what := n.busyWith(); what != "" {
		return fail(ErrBusy, errors.New(what))
	}
	if !o.Expected.Empty() && !o.Expected.Equal(n.conf.conf) {
		return fail(ErrConfMismatch, fmt.Errorf("the configuration is %v, expected was %v", n.conf.conf, o.Expected))
	}
	if p, ok := n.withoutLearners(conf); ok {
		return fail(ErrNotSupported, fmt.Errorf("%v %s", p, braftOnly))
	}
	return conf, nil
}

// validate reports why a group could not have the configuration.
func (c Configuration) validate() error {
	voter := false
	for _, p := range c.peers {
		if q, err := ParsePeerID(p.String()); err != nil || q != p {
			return fmt.Errorf("peer %+v is not valid: want %s, role 0 to 2; ParsePeerID makes such", p, "host:port[:index[:role]]")
		}
		voter = voter || p.Role == Voter
	}
	if !voter {
		return errors.New("the configuration has no voter")
	}
	return nil
}

// busyWith says what keeps a change or a transfer from beginning, or nothing.
func (n *Node) busyWith() string {
	switch {
	case n.transfer != nil:
		return fmt.Sprintf("leadership is being transferred to %v", n.transfer.peer)
	case n.departing != nil:
		return "the leader is no voter any more and hands leadership over"
	case n.ctx.Stage() == StageNone:
		return ""
	case n.change != nil:
		return fmt.Sprintf("a change from %v to %v is under way, stage %v", n.change.from, n.change.to, n.ctx.Stage())
	case n.conf.joint() || n.box.index() >= n.firstOwn:
		return fmt.Sprintf("a change to %v that began earlier is being finished, stage %v", n.conf.conf, n.ctx.Stage())
	}
	return "the new leader's first entry is not committed yet"
}

// withoutLearners finds a member that could not read a configuration with learners, if it has some. A braft peer could
// never start again with such an entry in its log.
func (n *Node) withoutLearners(conf Configuration) (PeerID, bool) {
	return n.firstOf(conf, func(r *replicator) bool { return r.braft.Load() })
}

const braftOnly = "speaks braft's protocol only, which has no learners"

func noLearners(p PeerID) error {
	return &Error{Code: ErrNotSupported, Peer: p, Err: errors.New("the peer " + braftOnly)}
}

// unknownProtocol finds a member that may be one of those: this leader has not heard it yet. A group with learners
// has shown before that it has none.
func (n *Node) unknownProtocol(conf Configuration) (PeerID, bool) {
	if n.conf.conf.hasLearners() {
		return PeerID{}, false
	}
	return n.firstOf(conf, func(r *replicator) bool { return !r.heard.Load() })
}

// firstOf finds the first peer of a configuration with learners to whose replicator something applies. One that is
// new has none yet, and is asked while it catches up.
func (n *Node) firstOf(conf Configuration, is func(*replicator) bool) (PeerID, bool) {
	if !conf.hasLearners() {
		return PeerID{}, false
	}
	for _, p := range conf.peers {
		if r := n.replicators[p.ID()]; r != nil && is(r) {
			return p, true
		}
	}
	return PeerID{}, false
}

// settleChange tells the caller of a change. Success, which is that the configuration in force is committed, comes behind everything
// that is committed by now, on the goroutine that calls the state machine, and only if that was told. An error does
// not wait for a state machine, which may be stuck.
func (n *Node) settleChange(op string, done Closure, err error) {
	if err == nil {
		index := n.conf.index
		n.fsm.postAlways(func() { n.fsm.guard("done", func() { done(n.fsm.untold(op, index)) }) })
		return
	}
	n.aside(func() { n.callBackWith("done", done, err) })
}

// doConf carries out what the configuration change asks for.
func (n *Node) doConf(a confAction) {
	for _, p := range a.catchUp {
		n.host.retry(p)
		n.replicatorOf(p).catchUp(n.ctx.version, len(a.catchUp))
	}
	if a.propose != nil {
		n.proposeConf(*a.propose)
	}
	if a.over {
		n.endChange(a)
	}
}

// replicatorOf returns the peer's replicator, a new one if there is none.
func (n *Node) replicatorOf(p PeerID) *replicator {
	r := n.replicators[p.ID()]
	if r == nil {
		r = newReplicator(n, p, n.lm.lastIndex())
		n.replicators[p.ID()] = r
		n.shareFollowers()
		r.start()
	}
	r.leavingOn = 0
	return r
}

// endChange tells the user, and leaves alone whom the change concerned.
func (n *Node) endChange(a confAction) {
	for _, p := range a.drop {
		if r := n.replicators[p.ID()]; r != nil {
			n.dropReplicator(r)
		}
	}
	for _, r := range n.peersInOrder() {
		r.forgetCatchup()
	}
	c := n.change
	n.change, n.advanceAt, n.readyAt = nil, time.Time{}, time.Time{}
	n.publish() // whoever is called back sees it over
	if c != nil {
		n.log.Info("end of the change of the configuration", zap.Stringer("to", c.to), zap.Error(a.err))
		n.settleChange(c.op, c.done, n.outcomeOf(c, a.err))
	}
}

// outcomeOf adds to an error what the user asked for.
func (n *Node) outcomeOf(c *confChange, err error) error {
	var e *Error
	if errors.As(err, &e) {
		with := *e
		with.Op, with.Group = c.op, n.group
		return &with
	}
	return err
}

func (n *Node) dropReplicator(r *replicator) {
	r.stop()
	delete(n.replicators, r.peer)
	n.box.forget(n.term, r.peer) // it may come back without its data
	n.shareFollowers()
}

// onCaughtUp is told by a replicator what has become of a peer that is being added.
func (n *Node) onCaughtUp(version uint64, r *replicator, err error) {
	if n.role != RoleLeader || n.replicators[r.peer] != r {
		return
	}
	if err == nil && r.braft.Load() && n.change != nil && n.change.to.hasLearners() {
		err = noLearners(r.peer)
	}
	n.doConf(n.ctx.CaughtUp(version, r.peer, err))
	n.advance()
}

// advance enters a change into the log once all new peers have caught up, if it does not leave the group
// without a majority: once that is in the log, nobody could take it back.
func (n *Node) advance() {
	n.advanceAt = time.Time{}
	if n.role != RoleLeader || !n.ctx.Ready() {
		return
	}
	if n.readyAt.IsZero() {
		n.readyAt = n.now
	}
	silent, mute := n.missingIn(n.ctx.conf, (*replicator).answers), n.missingIn(n.ctx.conf, (*replicator).canVote)
	if mute == nil { // those who vote now may be all there are until the change is over
		mute = n.missingIn(n.conf.conf, (*replicator).canVote)
	}
	behind := n.missingIn(n.ctx.conf, n.keepsUp)
	unknown, some := n.unknownProtocol(n.ctx.conf)
	braft, mixed := n.withoutLearners(n.ctx.conf) // it may have been unknown when the change began
	switch {
	case mixed:
		n.doConf(n.ctx.Fail(noLearners(braft)))
	case silent == nil && mute == nil && behind == nil && !some:
		n.dirty = true
		n.doConf(n.ctx.Proceed(n.o.AlwaysJoint))
	case n.now.Sub(n.ledAt) < n.o.ElectionTimeout, // they may not have had the time to answer
		silent == nil && !some && n.now.Sub(n.readyAt) < n.o.CatchupTimeout:
		n.advanceAt = n.now.Add(n.o.ElectionTimeout / 20)
	case silent != nil:
		n.doConf(n.ctx.Fail(&Error{Code: ErrUnreachable, Peer: silent[0], Err: fmt.Errorf(
			"no majority of the new configuration answers, and with it the group would stand still; silent: %s", joinPeers(silent))}))
	case some:
		n.doConf(n.ctx.Fail(&Error{Code: ErrUnreachable, Peer: unknown, Err: errors.New(
			"it has not answered this leader yet, and perhaps " + braftOnly + "; wait for it, or remove it first")}))
	case mute == nil:
		peer, lag := n.slowestOf(behind)
		n.doConf(n.ctx.Fail(&Error{Code: ErrCatchup, Peer: peer, Lag: lag, Err: fmt.Errorf(
			"no majority of the new configuration takes entries now, and with it the group would stand still; behind or silent: %s", joinPeers(behind))}))
	default:
		n.doConf(n.ctx.Fail(&Error{Code: ErrUnreachable, Peer: mute[0], Err: fmt.Errorf(
			"no majority votes freely yet: these began with an empty disk and wait to be brought up to date: %s", joinPeers(mute))}))
	}
}

// answers reports whether the peer has answered in this leadership.
func (r *replicator) answers() bool { return r.heard.Load() }

// keepsUp reports whether a peer takes entries: one that has caught up may have been waiting for others ever since, and one whose
// disk is full, or that installs a snapshot, answers heartbeats all the same.
func (n *Node) keepsUp(r *replicator) bool {
	return n.lagOf(r) == 0 || n.now.Sub(r.grown()) < n.o.ElectionTimeout
}

// lagOf is how many entries a peer lacks, 0 if that is no more than a peer may lack that is added.
func (n *Node) lagOf(r *replicator) int64 {
	lag := n.lm.lastIndex() - n.box.acknowledgedBy(r.peer)
	if lag <= int64(n.o.CatchupMargin) {
		return 0
	}
	return lag
}

// slowestOf is the peer that lacks the most of those that answer, and how much.
func (n *Node) slowestOf(behind []PeerID) (peer PeerID, lag int64) {
	peer = behind[0]
	for _, p := range behind {
		if r := n.replicators[p.ID()]; r != nil && n.hears(r) && n.lagOf(r) > lag {
			peer, lag = p, n.lagOf(r)
		}
	}
	return peer, lag
}

// hears reports whether a peer has answered in this leadership, not longer ago than an election timeout.
func (n *Node) hears(r *replicator) bool {
	return r.heard.Load() && n.now.Sub(r.contact()) < n.o.ElectionTimeout
}

// missingIn lists the voters that have not answered for an election timeout, or are not what else is asked, if a majority is not
// left without them.
func (n *Node) missingIn(conf Configuration, is func(*replicator) bool) (missing []PeerID) {
	heard := newBallot(confEntry{conf: conf})
	heard.grant(n.peer)
	for _, p := range conf.Voters() {
		r := n.replicators[p.ID()]
		if r != nil && n.hears(r) && is(r) {
			heard.grant(p)
		} else if !p.Same(n.peer) {
			missing = append(missing, p)
		}
	}
	if heard.won() {
		return nil
	}
	return missing
}

func joinPeers(peers []PeerID) string {
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = p.String()
	}
	return strings.Join(names, ", ")
}

// cancelChange is CancelChange; done runs on the actor.
func (n *Node) cancelChange(done func(error)) {
	const op = "cancel change"
	posted := n.post(func() {
		switch {
		case n.role != RoleLeader:
			done(n.notLeader(op))
		case n.ctx.Stage() == StageNone:
			done(&Error{Code: ErrNotFound, Op: op, Group: n.group, Err: errors.New("no change is under way")})
		case n.ctx.Stage() != StageCatchingUp:
			done(&Error{Code: ErrBusy, Op: op, Group: n.group, Index: n.conf.index, Err: errors.New(n.busyWith() + ": it is in the log already")})
		default:
			n.doConf(n.ctx.Fail(&Error{Code: ErrCanceled}))
			done(nil)
		}
	})
	if !posted {
		done(&Error{Code: ErrShutdown, Op: op, Group: n.group})
	}
}

// changeDeadline is when tickChange has something to do.
func (n *Node) changeDeadline() time.Time {
	at := n.advanceAt
	if n.change != nil {
		at = earlier(at, n.change.deadline)
	}
	if n.transfer != nil {
		at = earlier(at, n.transfer.until)
	}
	if n.departing != nil {
		at = earlier(at, n.departing.until)
	}
	return at
}

// tickChange does what is due.
func (n *Node) tickChange() {
	due := func(at time.Time) bool { return !at.IsZero() && !n.now.Before(at) }
	if due(n.advanceAt) {
		n.advance()
	}
	if c := n.change; c != nil && due(c.deadline) {
		n.expireChange()
	}
	if n.transfer != nil && due(n.transfer.until) {
		n.endTransfer(errors.New("the new leader has not come up in time"))
	}
	if n.departing != nil && due(n.departing.until) {
		n.depart()
	}
}

// expireChange ends the wait of a user whose deadline has passed.
func (n *Node) expireChange() {
	c := n.change
	late := &Error{Code: ErrTimeout, Err: fmt.Errorf("not done by the deadline, %v", c.deadline.Sub(c.began))}
	if n.ctx.Stage() == StageCatchingUp {
		n.doConf(n.ctx.Fail(late))
		return
	}
	n.change = nil
	n.publish()
	n.settleChange(c.op, c.done, &Error{Code: ErrUnknownOutcome, Op: c.op, Group: n.group, Index: n.conf.index, Err: late})
}

// releaseRemoved lets the replicators of removed peers go once those know that they are.
func (n *Node) releaseRemoved() {
	for _, r := range n.peersInOrder() {
		if !n.conf.conf.Contains(r.peer) && r.leavingOn == 0 {
			r.leavingOn = n.conf.index
			r.leave(n.conf.index, 2*n.o.ElectionTimeout)
		}
	}
}

// onLeft is told that a removed peer needs nothing more.
func (n *Node) onLeft(r *replicator, index int64) {
	if n.role == RoleLeader && n.replicators[r.peer] == r && r.leavingOn == index {
		n.dropReplicator(r)
	}
}
