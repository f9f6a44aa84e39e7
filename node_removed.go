package graft

import (
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/raftpb"
)

// A removed node may never have got the entry that removed it, and would ask for votes for
// ever. Those it asks tell it (Raft thesis §4.2.3).

// tellRemoved adds to a refused pre-vote the committed configuration in which the asker has no vote.
func (n *Node) tellRemoved(candidate PeerID, resp *raftpb.RequestVoteResponse) {
	c := n.lm.confAt(n.box.index())
	if n.overridden() || c.index == 0 || c.joint() || c.conf.ContainsVoter(candidate) {
		return
	}
	resp.GraftConfIndex, resp.GraftConfTerm, resp.GraftConfPeers = proto.Int64(c.index), proto.Int64(c.term), c.conf.strings()
}

// heedRemoval stops asking for votes if a peer knows of a later configuration in which
// this node has none. A leader's message ends that.
func (n *Node) heedRemoval(peer PeerID, m *raftpb.RequestVoteResponse) {
	index, term := m.GetGraftConfIndex(), m.GetGraftConfTerm()
	if index <= n.box.index() || n.overridden() || n.role != RoleFollower {
		return // what is committed here is known here
	}
	if term <= 0 { // no entry has such a term, and the log gives that of entries which it does not hold as 0
		return
	}
	if n.lm.term(index) == term { // it is in the log here, and now known to be committed
		n.followCommit(index)
		n.voteRound++
		n.dirty = true
		n.resetElection()
		return
	}
	if n.conf.index >= index && n.conf.term >= term {
		return // it may have been added again
	}
	conf, err := configurationOf(m.GetGraftConfPeers())
	if err != nil || conf.Empty() || conf.ContainsVoter(n.peer) {
		return
	}
	n.log.Info("no voter of the group any more", zap.Stringer("told_by", peer), zap.Int64("index", index), zap.Stringer("conf", conf))
	n.told, n.gone, n.dirty = true, !conf.Contains(n.peer), true
	n.voteRound++
	n.resetElection()
}

// rememberMembership has it known for good that this node was a member once. It is for when the log is about to forget the
// configurations up to one that is committed and does not have it: else nothing would tell it from one that is yet to be added.
func (n *Node) rememberMembership(committed confEntry) {
	if n.wasMember || committed.conf.Empty() || committed.has(n.peer) || !n.lm.wasMember(n.peer, n.box.index()) {
		return
	}
	n.wasMember = true
	n.lm.setFormer(n.peer)
	n.save()
}

// recoverMembership is for before the node runs: it takes up what rememberMembership has written.
func (n *Node) recoverMembership(r wal.Recovered) {
	if n.wasMember = r.Hard.WasMember; n.wasMember {
		n.lm.setFormer(n.peer)
	}
}

// removed reports whether the node has learned that it is no member any more.
func (n *Node) removed() bool {
	return n.gone || !n.conf.conf.Contains(n.peer) && n.lm.removed(n.peer, n.box.index())
}
