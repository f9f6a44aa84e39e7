package graft

import (
	"errors"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/wal"
)

// ResetPeers puts conf in force on this node alone, for a group that has lost its majority for
// good. It is unsafe. It returns when that is durable: it survives restarts, ends a joint configuration too, and lasts
// until a leader of the new configuration has confirmed one.
//
// What can go wrong: entries that only the lost majority held are lost, although they were
// acknowledged. If the lost nodes are not lost and come back, or if several nodes are reset to
// configurations that do not share a majority, there are two groups under one name, and both acknowledge:
// nothing here can fence the old majority. So stop the other nodes for good first; reset the node with
// the greatest last term and index (Status); then add fresh peers with AddPeer. If conf has several voters, reset each of
// them to it.
//
// It fails with ErrInvalid if conf is not valid or this node no voter of it, with ErrBusy while this node leads and new peers are
// catching up, with ErrNodeFailed, ErrShutdown, and with ErrUnknownOutcome if the node stops before it is durable. If conf is in
// force already, nothing happens. It must not be called from a callback that runs on the node's own goroutines.
//
// Source: braft Node::reset_peers, whose effect a restart undoes.
func (n *Node) ResetPeers(conf Configuration) error {
	return n.ask(func(done func(error)) { n.resetPeers(conf, done) })
}

// resetPeers is ResetPeers; done runs on the actor.
func (n *Node) resetPeers(conf Configuration, done func(error)) {
	const op = "reset peers"
	if !n.post(func() { n.reset(op, conf, done) }) {
		done(&Error{Code: ErrShutdown, Op: op, Group: n.group})
	}
}

func (n *Node) reset(op string, conf Configuration, done func(error)) {
	if err := conf.validate(); err != nil {
		done(&Error{Code: ErrInvalid, Op: op, Group: n.group, Err: err})
		return
	}
	switch {
	case n.role == RoleShutdown:
		done(&Error{Code: ErrShutdown, Op: op, Group: n.group})
		return
	case !n.active():
		done(&Error{Code: ErrNodeFailed, Op: op, Group: n.group, Err: n.err})
		return
	case n.role == RoleLeader && n.ctx.Stage() == StageCatchingUp:
		done(&Error{Code: ErrBusy, Op: op, Group: n.group, Err: errors.New(n.busyWith() + "; cancel it first")})
		return
	case !conf.ContainsVoter(n.peer):
		done(&Error{Code: ErrInvalid, Op: op, Group: n.group, Err: errors.New("this node would not be a voter, and so could never lead")})
		return
	case n.conf.conf.Equal(conf) && !n.conf.joint():
		n.afterReset(op, done) // it may be another call's, and not durable yet
		return
	}
	last := n.lm.lastIndex()
	n.log.Error("CONFIGURATION RESET BY HAND: from now on this node follows it, and no majority of the old one is asked. "+
		"If that majority lives, the group is split and loses data.",
		zap.Stringer("from", n.conf.conf), zap.Stringer("from_old", n.conf.old), zap.Stringer("to", conf),
		zap.Int64("term", n.term+1), zap.Int64("last_index", last))
	n.stepDown(n.term, &Error{Code: ErrReset, Op: op, Group: n.group})
	if n.groupID == 0 {
		n.groupID = groupIDOf(n.group, conf)
	}
	n.term, n.vote = n.term+1, PeerID{}
	n.waiting = false // the operator takes what is left here for all there is
	n.override = wal.Override{Term: n.term, Last: last, Conf: conf.String()}
	n.lm.setOverride(confEntry{term: n.term, conf: conf})
	n.conf, n.told, n.gone, n.dirty = n.lm.conf(), false, false, true
	n.save()
	n.resetElection()
	if n.soleVoter() {
		n.electionAt = n.now
	}
	n.publish()
	n.afterReset(op, done)
}

// afterReset answers once what is in force is durable.
func (n *Node) afterReset(op string, done func(error)) {
	n.afterSaveOr(func() { done(nil) }, func() {
		done(&Error{Code: ErrUnknownOutcome, Op: op, Group: n.group, Err: n.err})
	})
}

// recoverOverride takes up an override that storage holds.
func (n *Node) recoverOverride(o wal.Override) {
	if o.Term == 0 {
		return
	}
	conf, err := ParseConfiguration(o.Conf)
	if err != nil { // what was written has been valid, and storage has checksums
		n.log.Error("configuration override on disk is not readable; it is ignored", zap.Error(err))
		return
	}
	n.override = o
	n.lm.setOverride(confEntry{term: o.Term, conf: conf})
	if n.lm.overridden() {
		n.log.Warn("a configuration that was reset by hand is in force", zap.Stringer("conf", conf), zap.Int64("term", o.Term))
	}
}

// overridden reports whether the configuration in force comes from ResetPeers.
func (n *Node) overridden() bool { return n.override.Term != 0 && n.lm.overridden() }

// confirmOverride forgets an override once a leader's configuration of its term or a later one is committed.
func (n *Node) confirmOverride() {
	if n.override.Term != 0 && n.lm.confAt(n.box.index()).term >= n.override.Term {
		n.override = wal.Override{}
		n.lm.setOverride(confEntry{})
		n.save()
	}
}
