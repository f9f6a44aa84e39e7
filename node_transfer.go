package graft

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// TransferLeadership hands leadership over to peer, or to the best follower if peer is zero. It
// returns once the transfer has begun; OnLeaderStop, with ErrTransferring, tells that it has come about. Meanwhile
// proposals and changes are refused with ErrBusy. If nothing has come of it after an election
// timeout, this node leads on as if nothing had been.
//
// It fails with ErrNotLeader; with ErrBusy while a change or another transfer is under way, or before the leader's
// first entry is committed; with ErrInvalid if the peer is no voter; with ErrUnreachable if it does not answer, or
// nobody does; with ErrCatchup if it lags by more than NodeOptions.CatchupMargin entries. To the leader itself it
// succeeds at once. It must not be called from a callback that runs on the node's own goroutines.
//
// Source: Raft thesis §3.10; braft Node::transfer_leadership_to.
func (n *Node) TransferLeadership(peer PeerID) error {
	return n.ask(func(done func(error)) { n.transferTo(peer, done) })
}

// transfer is leadership that is being handed over. Proposals wait elsewhere, so the log does not grow.
type transfer struct {
	peer  PeerID
	last  int64 // what the peer must hold
	until time.Time
	sent  bool
}

// departure is a leader that is no voter of the committed configuration any more.
type departure struct {
	index int64 // of that configuration
	until time.Time
}

// transferTo is TransferLeadership; done runs on the actor.
func (n *Node) transferTo(peer PeerID, done func(error)) {
	const op = "transfer leadership"
	posted := n.post(func() {
		err := n.beginTransfer(op, peer)
		n.publish() // who called sees it begun
		done(err)
	})
	if !posted {
		done(&Error{Code: ErrShutdown, Op: op, Group: n.group})
	}
}

func (n *Node) beginTransfer(op string, peer PeerID) error {
	if n.role != RoleLeader {
		return n.notLeader(op)
	}
	if what := n.busyWith(); what != "" {
		return &Error{Code: ErrBusy, Op: op, Group: n.group, Err: errors.New(what)}
	}
	if peer.Same(n.peer) {
		return nil
	}
	last := n.lm.lastIndex()
	if peer.IsZero() {
		var ok bool
		if peer, ok = n.successor(); !ok {
			return &Error{Code: ErrUnreachable, Op: op, Group: n.group, Err: errors.New("no other voter answers")}
		}
	}
	if err := n.eligible(op, peer, last); err != nil {
		return err
	}
	n.log.Info("transfer of leadership", zap.Stringer("to", peer))
	n.transfer = &transfer{peer: peer.ID(), last: last, until: n.now.Add(n.o.ElectionTimeout)}
	n.dirty = true
	n.ackWatch.Store(last)
	n.tryTransfer()
	return nil
}

// eligible reports why a peer cannot be handed leadership.
func (n *Node) eligible(op string, peer PeerID, last int64) error {
	p, member := n.conf.conf.Find(peer)
	fail := func(code Code, cause string) error {
		return &Error{Code: code, Op: op, Group: n.group, Peer: peer, Err: errors.New(cause)}
	}
	switch {
	case !member:
		return fail(ErrInvalid, "not a member of the group")
	case p.Role != Voter:
		return fail(ErrInvalid, fmt.Sprintf("a %v cannot lead", p.Role))
	case !n.reachable(peer):
		return fail(ErrUnreachable, "the peer does not answer")
	}
	if lag := last - n.box.acknowledgedBy(peer); lag > int64(n.o.CatchupMargin) {
		return &Error{Code: ErrCatchup, Op: op, Group: n.group, Peer: peer, Lag: lag, Err: errors.New("proposals would have to wait for it")}
	}
	return nil
}

// reachable reports whether a peer has answered lately and its latest request did not fail.
func (n *Node) reachable(peer PeerID) bool {
	r := n.replicators[peer.ID()]
	return r != nil && r.heard.Load() && n.now.Sub(r.contact()) < n.o.ElectionTimeout && r.status.load().Failures == 0
}

// successor is the voter that would lead best: it answers, and has the longest log; of several, the one
// whose state machine has come farthest, for it answers soonest.
func (n *Node) successor() (best PeerID, ok bool) {
	var have, applied int64
	for _, p := range n.conf.conf.peers {
		if p.Role != Voter || p.Same(n.peer) || !n.reachable(p) || n.replicators[p.ID()].voteless.Load() {
			continue
		}
		h, a := n.box.acknowledgedBy(p), n.replicators[p.ID()].applied.Load()
		if !ok || h > have || h == have && a > applied {
			best, have, applied, ok = p, h, a, true
		}
	}
	return best, ok
}

// onHandover is told of acknowledgements that a hand-over may wait for.
func (n *Node) onHandover() {
	if n.role != RoleLeader {
		return
	}
	n.tryTransfer()
	if d := n.departing; d != nil {
		// Nobody need learn of an unknown outcome if the rest is committed first; but that must not take long.
		last := n.lm.lastIndex()
		if p, ok := n.successor(); ok && n.box.index() >= last && n.box.acknowledgedBy(p) >= last {
			n.depart()
		}
	}
}

// tryTransfer lets the peer go ahead once it has the whole log.
func (n *Node) tryTransfer() {
	t := n.transfer
	if t == nil || t.sent || n.box.acknowledgedBy(t.peer) < t.last {
		return
	}
	t.sent = true
	n.ackWatch.Store(0)
	n.sendTimeoutNow(t.peer, false, func(refused error) {
		if n.transfer == t {
			n.endTransfer(refused)
		}
	})
}

// endTransfer gives the leader back its control.
func (n *Node) endTransfer(cause error) {
	n.log.Warn("transfer of leadership came to nothing", zap.Stringer("to", n.transfer.peer), zap.Error(cause))
	n.transfer, n.dirty = nil, true
	n.ackWatch.Store(0)
}

// beginDeparture lets a leader that is no voter of the committed configuration go: it takes
// no proposals any more, and leaves as soon as a successor has everything.
func (n *Node) beginDeparture(index int64) {
	n.departing = &departure{index: index, until: n.now.Add(n.o.ElectionTimeout)}
	n.dirty = true
	n.ackWatch.Store(1) // any news may be what it takes
	n.onHandover()
}

// depart steps down in favour of the best successor.
func (n *Node) depart() {
	n.wakeSuccessor(n.departing.index)
	n.stepDown(n.term, &Error{Code: ErrLeaderRemoved, Op: "lead", Group: n.group, Peer: n.peer})
}

// wakeSuccessor has the best follower campaign at once, if it holds the log up to index, instead of
// waiting for the silence of a leader that goes.
func (n *Node) wakeSuccessor(index int64) {
	if p, ok := n.successor(); ok && n.box.acknowledgedBy(p) >= index {
		n.sendTimeoutNow(p, true, func(error) {})
	}
}

// sendTimeoutNow asks a peer to campaign at once. refused runs on the actor if it does not.
func (n *Node) sendTimeoutNow(peer PeerID, steppedDown bool, refused func(error)) {
	m := &raftpb.TimeoutNowRequest{
		GroupId: &n.group, ServerId: &n.name, PeerId: proto.String(peer.String()), Term: proto.Int64(n.term),
	}
	if steppedDown {
		m.OldLeaderSteppedDown = proto.Bool(true)
	}
	if n.groupID != 0 {
		m.GraftGroupId = proto.Uint64(n.groupID)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		refused(err)
		return
	}
	term := n.term
	n.host.call(peer, rpc.Call{
		Service: raftService, Method: methodTimeoutNow, Message: [][]byte{b}, Timeout: n.o.ElectionTimeout,
		Done: func(r rpc.Reply) { n.post(func() { n.onTimeoutNowAnswer(term, peer, r, refused) }) },
	})
}

func (n *Node) onTimeoutNowAnswer(term int64, peer PeerID, r rpc.Reply, refused func(error)) {
	m := new(raftpb.TimeoutNowResponse)
	switch {
	case r.Err != nil:
		refused(r.Err)
		return
	case r.Code != 0:
		refused(&Error{Code: Code(r.Code), Peer: peer, Err: errors.New(r.Text)})
		return
	}
	if err := proto.Unmarshal(r.Message, m); err != nil {
		refused(err)
		return
	}
	if m.GetTerm() > n.term && validTerm(m.GetTerm()) {
		n.onHigherTerm(m.GetTerm(), peer)
		return
	}
	if n.term == term && !m.GetSuccess() {
		refused(errors.New("the peer refused"))
	}
}
