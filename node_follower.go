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
	if !n.fromLeader(req, r) {
		return
	}
	if r.PrevIndex < 0 || r.PrevTerm < 0 || r.Commit < 0 {
		req.Fail(codeBadRequest, "negative index or term")
		return
	}
	if r.PrevIndex == 0 && r.PrevTerm == 0 || r.PrevTerm != 0 && n.lm.term(r.PrevIndex) == r.PrevTerm {
		if r.Entries.Count == 0 {
			n.onEmpty(req, r)
		} else {
			n.accept(req, r)
		}
		return
	}
	_, last := n.lm.bounds()
	resp := wire.AppendResponse{Term: n.term, LastIndex: last, HasLastIndex: true}
	if t := n.lm.term(r.PrevIndex); t != 0 {
		resp.ConflictTerm, resp.ConflictIndex = t, n.lm.firstOfTerm(r.PrevIndex)
	}
	n.answer(req, resp)
}

// fromLeader checks who sends: it adopts a newer term and its leader, and answers itself
// if the sender does not lead. Afterwards the sender counts as alive.
func (n *Node) fromLeader(req *rpc.Request, r *wire.AppendRequest) bool {
	if !n.active() {
		req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String())
		return false
	}
	known := !n.leader.IsZero() && bytes.Equal(n.leaderWire, r.ServerID)
	leader := n.leader
	if !known {
		var err error
		if leader, err = ParsePeerID(string(r.ServerID)); err != nil {
			req.Fail(codeBadRequest, err.Error())
			return false
		}
	}
	if !validTerm(r.Term) {
		req.Fail(int32(ErrInvalid), fmt.Sprintf("term %d", r.Term))
		return false
	}
	if n.otherGroup(r.GraftGroup, leader) {
		req.Fail(int32(ErrGroupMismatch), "this node holds another group's data under the same name")
		return false
	}
	if r.Term < n.term {
		n.answer(req, wire.AppendResponse{Term: n.term})
		return false
	}
	if r.Term == n.term && (n.role == RoleLeader || !n.leader.IsZero() && !n.leader.Same(leader)) {
		n.log.Error("two leaders in one term", zap.Int64("term", r.Term), zap.Stringer("one", n.leader), zap.Stringer("other", leader))
		n.stepDown(r.Term+1, &Error{Code: ErrLeaderConflict, Group: n.group, Peer: leader})
		n.answer(req, wire.AppendResponse{Term: n.term})
		return false
	}
	if r.Term > n.term || n.role != RoleFollower {
		n.stepDown(r.Term, &Error{Code: ErrNewLeader, Group: n.group, Peer: leader})
	}
	if n.groupID == 0 && r.GraftGroup != 0 {
		n.groupID = r.GraftGroup
		n.save()
	}
	if n.leader.IsZero() {
		n.voteRound++
		n.follow(leader, r.ServerID)
	}
	n.heard()
	return true
}

// onEmpty answers a probe or a heartbeat whose previous entry is here.
func (n *Node) onEmpty(req *rpc.Request, r *wire.AppendRequest) {
	n.learnCommit(r.PrevIndex, r.Commit)
	_, last := n.lm.bounds()
	n.answer(req, wire.AppendResponse{
		Term: n.term, Success: true, LastIndex: last, HasLastIndex: true, HasReadonly: true,
	})
}

// accept appends the entries of a request whose previous entry is here, and answers when
// they are durable.
func (n *Node) accept(req *rpc.Request, r *wire.AppendRequest) {
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
		if err := n.lm.append(fresh, sum, n.box.index()); err != nil {
			n.log.Error("refused entries", zap.Stringer("leader", n.leader), zap.Error(err))
			req.Fail(codeBadRequest, err.Error())
			return
		}
	}
	n.adoptConf()
	n.learnCommit(last, r.Commit)
	if ack := (pendingAck{index: last, term: n.term, req: req}); n.lm.ack(ack) {
		n.answer(req, wire.AppendResponse{Term: n.term, Success: true})
	}
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
		n.matched = min(n.matched, e.Index-1)
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

// learnCommit takes over the leader's commit index as far as the log is known to be the
// leader's, up to matched.
func (n *Node) learnCommit(matched, commit int64) {
	n.matched = max(n.matched, matched)
	if n.box.follow(min(commit, n.matched)) {
		n.fsm.commit(n.box.index())
	}
	// Brought up to what a leader of this term has committed in this term, a node knows
	// all that it may ever have acknowledged.
	if n.waiting && commit > 0 && commit <= n.matched && n.lm.term(commit) == n.term {
		n.waiting, n.dirty = false, true
		n.log.Info("brought up to date by the leader", zap.Int64("commit", commit))
		n.save()
	}
}

// answer sends an append_entries response once the term it speaks of is durable.
func (n *Node) answer(req *rpc.Request, resp wire.AppendResponse) {
	resp.Features, resp.GraftGroup = featurePipeline, n.groupID
	n.afterSave(func() { req.Reply(resp.Append(nil)) })
}

// answerStored answers that entries are durable. It runs on a storage goroutine. If the term is
// another by now, the sender does not lead any more and must not count it.
func (n *Node) answerStored(a pendingAck) {
	if n.termNow.Load() == a.term && n.savedTerm.Load() >= a.term {
		resp := wire.AppendResponse{Term: a.term, Success: true, Features: featurePipeline}
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
