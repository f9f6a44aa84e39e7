package graft

import (
	"bytes"
	"fmt"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
)

// onAppend handles append_entries: entries, a probe or a heartbeat (braft:
// NodeImpl::handle_append_entries_request).
func (n *Node) onAppend(req *rpc.Request, r *wire.AppendRequest) {
	from := sender{term: r.Term, wire: r.ServerID, group: r.GraftGroup}
	if !n.fromLeader(req, from, func() { n.answer(req, wire.AppendResponse{Term: n.term}) }) {
		return
	}
	if r.PrevIndex < 0 || r.PrevTerm < 0 || r.Commit < 0 {
		req.Fail(codeBadRequest, "negative index or term")
		return
	}
	if r.PrevIndex == 0 && r.PrevTerm == 0 || n.matches(r.PrevIndex, r.PrevTerm) {
		if r.Entries.Count == 0 {
			n.onEmpty(req, r)
		} else {
			n.accept(req, r)
		}
		return
	}
	_, last := n.lm.bounds()
	resp := wire.AppendResponse{Term: n.term, LastIndex: last, HasLastIndex: true}
	n.showInstall(&resp)
	if t := n.lm.term(r.PrevIndex); t != 0 {
		resp.ConflictTerm, resp.ConflictIndex = t, n.lm.firstOfTerm(r.PrevIndex)
	}
	n.answer(req, resp)
}

// matches reports whether the log agrees with the sender's up to an entry: it has it with that term, or a snapshot has
// taken its place, which includes only what every leader has.
func (n *Node) matches(index, term int64) bool {
	if term == 0 {
		return false
	}
	first, _ := n.lm.bounds()
	return index < first-1 || n.lm.term(index) == term
}

// sender is who sends a request that only the leader of a term may.
type sender struct {
	term  int64
	wire  []byte // its PeerID
	group uint64
}

// fromLeader checks who sends: it adopts a newer term and its leader, and answers itself, by refuse if nothing is
// wrong but the term, if the sender does not lead. Afterwards the sender counts as alive.
func (n *Node) fromLeader(req *rpc.Request, r sender, refuse func()) bool {
	if !n.active() {
		req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String())
		return false
	}
	known := !n.leader.IsZero() && bytes.Equal(n.leaderWire, r.wire)
	leader := n.leader
	if !known {
		var err error
		if leader, err = ParsePeerID(string(r.wire)); err != nil {
			req.Fail(codeBadRequest, err.Error())
			return false
		}
	}
	if !validTerm(r.term) {
		req.Fail(int32(ErrInvalid), fmt.Sprintf("term %d", r.term))
		return false
	}
	if n.otherGroup(r.group, leader) {
		req.Fail(int32(ErrGroupMismatch), "this node holds another group's data under the same name")
		return false
	}
	if r.term < n.term {
		refuse()
		return false
	}
	if r.term == n.term && (n.role == RoleLeader || !n.leader.IsZero() && !n.leader.Same(leader)) {
		n.log.Error("two leaders in one term", zap.Int64("term", r.term), zap.Stringer("one", n.leader), zap.Stringer("other", leader))
		n.stepDown(r.term+1, &Error{Code: ErrLeaderConflict, Group: n.group, Peer: leader})
		refuse()
		return false
	}
	if r.term > n.term || n.role != RoleFollower {
		n.stepDown(r.term, &Error{Code: ErrNewLeader, Group: n.group, Peer: leader})
	}
	if n.groupID == 0 && r.group != 0 {
		n.groupID = r.group
		n.save()
	}
	if n.leader.IsZero() {
		n.voteRound++
		n.follow(leader, r.wire)
	}
	n.heard()
	return true
}

// onEmpty answers a probe or a heartbeat whose previous entry is here.
func (n *Node) onEmpty(req *rpc.Request, r *wire.AppendRequest) {
	n.learnCommit(r.PrevIndex, r.Commit)
	_, last := n.lm.bounds()
	resp := wire.AppendResponse{
		Term: n.term, Success: true, LastIndex: last, HasLastIndex: true, HasReadonly: true,
		AppliedIndex: n.fsm.applied.Load(), StoredIndex: min(n.matched, n.lm.durableIndex()),
	}
	n.showInstall(&resp)
	n.answer(req, resp)
}

// showInstall adds how far a snapshot has come that is being installed.
func (n *Node) showInstall(resp *wire.AppendResponse) {
	if n.snap.incoming.Load() != 0 {
		s := n.snap.status()
		resp.InstallDone, resp.InstallTotal, resp.InstallLoads = s.Done, s.Total, s.State == SnapshotLoading
	}
}

// accept appends the entries of a request whose previous entry is here, and answers when
// they are durable.
func (n *Node) accept(req *rpc.Request, r *wire.AppendRequest) {
	if n.snap.incoming.Load() != 0 {
		req.Fail(int32(ErrBusy), "Is installing snapshot")
		return
	}
	b := r.Entries
	sum, err := entry.Check(b)
	if err == nil && (sum.FirstTerm < r.PrevTerm || sum.LastTerm > r.Term) {
		err = fmt.Errorf("entries of terms %d to %d behind term %d, from a leader of term %d", sum.FirstTerm, sum.LastTerm, r.PrevTerm, r.Term)
	}
	if err != nil {
		n.log.Error("refused malformed entries", zap.Stringer("leader", n.leader), zap.Error(err))
		req.Fail(codeBadRequest, err.Error())
		return
	}
	last := b.Last()
	fresh, ok := n.resolve(b)
	if !ok {
		req.Fail(int32(ErrInvalid), "entries contradict what is committed here")
		return
	}
	if fresh.Count > 0 {
		if fresh.Count != b.Count {
			if sum, err = entry.Check(fresh); err != nil {
				req.Fail(codeBadRequest, err.Error())
				return
			}
		}
		if err := n.lm.append(ownedOf(fresh, req), sum, n.box.index()); err != nil {
			n.log.Error("refused entries", zap.Stringer("leader", n.leader), zap.Error(err))
			n.adoptConf() // a part of the log may have been cut
			req.Fail(codeBadRequest, err.Error())
			return
		}
	}
	n.adoptConf()
	n.learnCommit(last, r.Commit)
	if fresh.Count == 0 {
		req.LetGo() // the log has it from an earlier one, and the disk may take long
	}
	now, replaced := n.lm.ack(pendingAck{index: last, term: n.term, req: req})
	if now {
		n.answer(req, wire.AppendResponse{Term: n.term, Success: true})
	}
	for _, a := range replaced {
		n.answerReplaced(a)
	}
}

// answerReplaced answers a request whose place another has taken. It says nothing about entries: whoever still waits for it
// sends them again.
func (n *Node) answerReplaced(a pendingAck) {
	if a.term != n.term {
		n.answer(a.req, wire.AppendResponse{Term: n.term})
		return
	}
	a.req.Fail(int32(ErrBusy), "the same entries were sent again")
}

// ownedOf returns entries of a request such that they may be kept. Small ones are views into memory that they share with whatever
// else came over the connection, all of which would stay with them.
func ownedOf(b entry.Batch, req *rpc.Request) entry.Batch {
	if 2*b.Size() < rpc.Pinned(len(req.Message)+len(req.Attachment)) {
		return b.Clone()
	}
	return b
}

// resolve compares entries with the log and returns those that are to be appended. The log is
// cut only where an entry truly conflicts: a late duplicate changes nothing. It
// refuses to cut what is committed.
func (n *Node) resolve(b entry.Batch) (fresh entry.Batch, ok bool) {
	_, last := n.lm.bounds()
	if b.First > last {
		return b, true
	}
	for it := b.Iter(); ; {
		e, more := it.Next()
		if !more || e.Index > last {
			return b.From(last + 1), true
		}
		if e.Index <= n.box.index() || n.lm.term(e.Index) == e.Term {
			if t := n.lm.term(e.Index); t != 0 && t != e.Term {
				n.fail(&Error{Code: ErrCorrupt, Op: "append", Group: n.group, Peer: n.leader, Index: e.Index,
					Err: fmt.Errorf("committed here with term %d, sent with term %d", t, e.Term)})
				return entry.Batch{}, false
			}
			continue
		}
		n.log.Info("cut conflicting entries", zap.Int64("from", e.Index), zap.Int64("last", last))
		n.matched, n.early = min(n.matched, e.Index-1), min(n.early, e.Index-1)
		for _, a := range n.lm.truncateSuffix(e.Index - 1) {
			n.answer(a.req, wire.AppendResponse{Term: n.term})
		}
		return b.From(e.Index), true
	}
}

// adoptConf puts the latest configuration in the log in force.
func (n *Node) adoptConf() {
	latest := n.lm.conf()
	if latest.index == n.conf.index && latest.conf.Equal(n.conf.conf) && latest.old.Equal(n.conf.old) {
		return
	}
	n.conf, n.dirty = latest, true
}

// learnCommit takes over the leader's commit index, but no further than upto: up to there the message that brought it
// shows the log to be the leader's. That more was matched earlier does not count, nor does it with braft: a commit index is
// about the log that the message names (Raft thesis §3.6: min(leaderCommit, index of last new entry)).
func (n *Node) learnCommit(upto, commit int64) {
	n.matched = max(n.matched, upto)
	n.followCommit(min(commit, upto))
	// Brought up to what a leader of this term has committed in this term, a node knows
	// all that it may ever have acknowledged. It must not forget that again: a full disk may have refused it.
	if n.waiting && commit > 0 && commit <= min(n.matched, n.lm.durableIndex()) && n.lm.term(commit) == n.term {
		n.waiting, n.dirty = false, true
		n.log.Info("brought up to date by the leader", zap.Int64("commit", commit))
		n.save()
	}
}

// followCommit has applied what others have committed, but nothing before this term is durable: its leader may be the only one who knows
// of that. Whoever forgets the term in a crash, but has kept what it has applied, be it in a snapshot, takes what an
// earlier leader sends, rightly, for damage. Snapshots of this leader's are installed all the same: that may be what makes room for the
// term.
func (n *Node) followCommit(index int64) {
	if n.savedTerm.Load() < n.term {
		n.early = max(n.early, index)
		return
	}
	before := n.box.index()
	if n.box.follow(index) {
		n.fsm.commit(n.box.index())
		n.confirmOverride()
		n.dirty = n.dirty || n.conf.index > before // the configuration may be committed now
	}
}

// followEarly follows what was committed before the term was durable, once it is, and before that is answered: to whom a message was a
// success it is not said again.
func (n *Node) followEarly() {
	if n.early > 0 && n.savedTerm.Load() >= n.term {
		n.followCommit(min(n.early, n.lm.lastIndex()))
		n.early = 0
	}
}

// answer sends an append_entries response once the term it speaks of is durable.
func (n *Node) answer(req *rpc.Request, resp wire.AppendResponse) {
	resp.GraftGroup = n.groupID
	n.afterSaveAnswer(req, func() {
		resp.Features = n.features()
		req.Reply(resp.Append(nil))
	})
}

// features is what the node says of itself in answers. Any goroutine may call it.
func (n *Node) features() uint64 {
	if n.voteless.Load() {
		return featurePipeline | featureVoteless
	}
	return featurePipeline
}

// answerStored answers that entries are durable. It runs on a storage goroutine. If the term is
// another by now, the sender does not lead any more and must not count it.
func (n *Node) answerStored(a pendingAck) {
	if n.termNow.Load() == a.term && n.savedTerm.Load() >= a.term {
		resp := wire.AppendResponse{Term: a.term, Success: true, Features: n.features()}
		a.req.Reply(resp.Append(make([]byte, 0, 16)))
		return
	}
	posted := n.post(func() {
		if n.active() {
			n.answer(a.req, wire.AppendResponse{Term: n.term})
		} else {
			a.req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String())
		}
	})
	if !posted {
		a.req.Fail(int32(ErrInvalid), "node is shut down")
	}
}
