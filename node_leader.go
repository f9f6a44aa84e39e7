package graft

import (
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/entry"
)

// becomeLeader begins a leadership with the entry that restates the configuration.
func (n *Node) becomeLeader() {
	last := n.lm.lastIndex()
	if err := n.box.open(n.term, last+1); err != nil {
		n.fail(&Error{Code: ErrCorrupt, Op: "lead", Group: n.group, Index: last + 1, Err: err})
		return
	}
	n.log.Info("leader", zap.Int64("term", n.term), zap.Int64("last_index", last))
	n.role, n.leader, n.dirty = RoleLeader, n.peer, true
	n.firstOwn, n.ledAt = last+1, n.now
	n.lm.setLead(n.term)
	n.replicators = make(map[PeerID]*replicator)
	for _, p := range n.conf.peers() {
		if !p.Same(n.peer) {
			n.replicators[p.ID()] = newReplicator(n, p, last)
		}
	}
	n.shareFollowers()
	n.quorumAt, n.disk = n.now.Add(n.quorumInterval()), diskWatch{}
	first := n.ctx.Lead(n.conf.conf, n.conf.old)
	n.publish() // OnLeaderStart is to see it, and the first entry may be committed before this step ends
	n.fsm.leaderStart(n.term, n.firstOwn)
	n.doConf(first)
	for _, r := range n.peersInOrder() {
		r.start()
	}
}

// peersInOrder lists the replicators: in the order of the configuration, then those of peers that
// come or go.
func (n *Node) peersInOrder() []*replicator {
	var rs, rest []*replicator
	for _, p := range n.conf.peers() {
		if r := n.replicators[p.ID()]; r != nil {
			rs = append(rs, r)
		}
	}
	if len(rs) == len(n.replicators) {
		return rs
	}
	for p, r := range n.replicators {
		if !n.conf.conf.Contains(p) && !n.conf.old.Contains(p) {
			rest = append(rest, r)
		}
	}
	slices.SortFunc(rest, func(a, b *replicator) int { return comparePeers(a.peer, b.peer) })
	return append(rs, rest...)
}

// shareFollowers shows the replicators to those who acknowledge outside the actor.
func (n *Node) shareFollowers() {
	rs := n.peersInOrder()
	n.followers.Store(&rs)
}

// proposeConf appends a configuration entry, which is in force from now on.
func (n *Node) proposeConf(e confEntry) {
	index := n.lm.lastIndex() + 1
	n.builder.Reset(index)
	n.builder.AppendConf(n.term, e.conf.strings(), e.old.strings())
	e.index, e.term = index, n.term
	n.conf = e
	n.confWatch.Store(index)
	n.appendOwn(n.builder.Build(), closureRun{})
	n.dirty = true
}

// onOwnCommit is called when the configuration entry of the present stage was committed.
func (n *Node) onOwnCommit() {
	watch := n.confWatch.Load()
	if n.role != RoleLeader || watch == 0 || n.box.index() < watch {
		return
	}
	n.confWatch.Store(0)
	n.fsm.commit(n.box.index()) // whoever moved it may not have come to that yet
	n.dirty = true
	if n.waiting { // it leads, so there is nothing it could have forgotten that counts
		n.waiting = false
		n.save()
	}
	n.confirmOverride()
	n.confCommitted()
}

// confCommitted goes on with the change of the configuration whose entry was committed.
func (n *Node) confCommitted() {
	a := n.ctx.Committed()
	n.doConf(a)
	if !a.over {
		return
	}
	n.releaseRemoved()
	if !n.conf.conf.ContainsVoter(n.peer) {
		n.beginDeparture(n.conf.index)
	}
}

// takeProposals turns what was proposed since the last step into entries.
func (n *Node) takeProposals() {
	if n.role == RoleLeader && n.gather() {
		return
	}
	tasks := n.proposals.take()
	if len(tasks) == 0 {
		return
	}
	switch {
	case n.role != RoleLeader:
		n.refuseTasks(tasks, n.notLeader("apply"))
	case n.transfer != nil, n.departing != nil:
		n.refuseTasks(tasks, &Error{Code: ErrBusy, Op: "apply", Group: n.group, Err: errors.New(n.busyWith())})
	default:
		if err := n.host.spaceError(); err != nil {
			n.refuseTasks(tasks, &Error{Code: ErrNoSpace, Op: "apply", Group: n.group, Err: err})
			break
		}
		n.propose(tasks)
	}
	n.proposals.recycle(tasks)
}

// gatherMost is how long proposals wait at most for what is on its way to be applied. They
// would hardly be durable any sooner without: disks and network are busy. But each batch
// costs a request, an answer and a record, so that fewer and larger ones make room for more.
const gatherMost = 2 * time.Millisecond

// gather reports whether proposals are to wait for others.
func (n *Node) gather() bool {
	bytes, waiting := n.proposals.waiting()
	if !waiting {
		n.gatherTill = time.Time{}
		return false
	}
	switch {
	case n.transfer != nil, n.departing != nil: // they are refused
	case n.fsm.applied.Load() >= n.lastOwn, bytes >= n.o.MaxAppendBytes:
	case !n.gatherTill.IsZero() && !n.now.Before(n.gatherTill):
	default:
		if n.gatherTill.IsZero() {
			n.gatherTill = n.now.Add(gatherMost)
		}
		n.gathering.Store(true)
		if n.fsm.applied.Load() < n.lastOwn { // else whoever applied may not have seen that
			return true
		}
	}
	n.gatherTill = time.Time{}
	n.gathering.Store(false)
	return false
}

// notLeader says where to go instead.
func (n *Node) notLeader(op string) error {
	if n.err != nil {
		return &Error{Code: ErrNodeFailed, Op: op, Group: n.group, Err: n.err}
	}
	if n.role == RoleShutdown {
		return &Error{Code: ErrShutdown, Op: op, Group: n.group}
	}
	return &Error{Code: ErrNotLeader, Op: op, Group: n.group, Peer: n.leader}
}

// refuseTasks answers tasks that were not proposed. That has nothing to do with what the state machine is given, which may be stuck.
func (n *Node) refuseTasks(tasks []Task, err error) {
	var dones []func(any, error)
	var bytes int64
	for i := range tasks {
		bytes += int64(len(tasks[i].Data))
		if tasks[i].Done != nil {
			dones = append(dones, tasks[i].Done)
		}
	}
	count := int64(len(tasks))
	if len(dones) == 0 {
		n.proposals.release(count, bytes)
		return
	}
	n.aside(func() {
		for _, done := range dones {
			n.callBackWith("done", func(err error) { done(nil, err) }, err)
		}
		n.proposals.release(count, bytes) // until then they take memory
	})
}

// propose appends tasks as entries, in as few batches as their size allows.
func (n *Node) propose(tasks []Task) {
	for len(tasks) > 0 {
		if n.role != RoleLeader { // an append failed
			n.refuseTasks(tasks, n.notLeader("apply"))
			return
		}
		count, bytes := batchOf(tasks, n.o.MaxAppendBytes)
		n.proposeBatch(tasks[:count], bytes)
		tasks = tasks[count:]
	}
}

// batchOf returns how many of the tasks make one batch, and their bytes.
func batchOf(tasks []Task, most int) (count, bytes int) {
	for count < len(tasks) && (count == 0 || bytes+len(tasks[count].Data) <= most) && count < maxBatchEntries {
		bytes += len(tasks[count].Data)
		count++
	}
	return count, bytes
}

// maxBatchEntries keeps a batch of empty entries from growing without bound.
const maxBatchEntries = 16 << 10

func (n *Node) proposeBatch(tasks []Task, bytes int) {
	n.builder.Reset(n.lm.lastIndex() + 1)
	n.builder.Grow(len(tasks), bytes)
	run := closureRun{first: n.lm.lastIndex() + 1, done: make([]func(any, error), 0, len(tasks)), bytes: int64(bytes)}
	var wrongTerm []Task
	for i := range tasks {
		t := &tasks[i]
		if t.ExpectedTerm != 0 && t.ExpectedTerm != n.term {
			wrongTerm = append(wrongTerm, *t)
			run.bytes -= int64(len(t.Data))
			continue
		}
		n.builder.AppendData(n.term, t.Data)
		run.done = append(run.done, t.Done)
	}
	if len(wrongTerm) > 0 {
		n.refuseTasks(wrongTerm, &Error{Code: ErrTermMismatch, Op: "apply", Group: n.group})
	}
	if len(run.done) > 0 {
		n.appendOwn(n.builder.Build(), run)
	}
}

// appendOwn appends the leader's own entries: who waits for them is registered first, the
// ballot next, then disk and network get them at once.
func (n *Node) appendOwn(b entry.Batch, run closureRun) {
	if len(run.done) > 0 {
		n.fsm.addClosures(run)
		n.lastOwn = b.Last()
	}
	n.box.propose(b.First, b.Last(), n.conf)
	sum := entry.Summary{FirstTerm: n.term, LastTerm: n.term}
	if len(run.done) == 0 {
		checked, err := entry.Check(b)
		if err != nil {
			n.fail(&Error{Code: ErrInvalid, Op: "propose", Group: n.group, Index: b.First, Err: err})
			return
		}
		sum = checked
	}
	if err := n.lm.append(b, sum, n.box.index()); err != nil {
		n.fail(&Error{Code: ErrIO, Op: "propose", Group: n.group, Index: b.First, Err: err})
		return
	}
	if f := n.followers.Load(); f != nil {
		for _, r := range *f {
			r.wake()
		}
	}
}

// stopLeading ends a leadership. What is not committed by now has an unknown outcome.
func (n *Node) stopLeading(reason error) {
	n.log.Info("stop leading", zap.Int64("term", n.term), zap.Error(reason))
	n.role, n.leader = RoleFollower, PeerID{}
	n.publish() // who is called back below does not take this node for the leader any more
	n.lm.setLead(0)
	n.lastOwn, n.gatherTill = 0, time.Time{}
	n.gathering.Store(false)
	watch := n.confWatch.Swap(0)
	committed := n.box.close()
	n.fsm.commit(committed)
	if n.transfer != nil && n.transfer.sent {
		reason = &Error{Code: ErrTransferring, Op: "lead", Group: n.group, Peer: n.transfer.peer, Err: reason}
	}
	n.abortChange(reason, watch != 0 && committed >= watch)
	n.fsm.failClosures(&Error{Code: ErrUnknownOutcome, Op: "apply", Group: n.group, Err: reason})
	n.fsm.leaderStop(reason)
	for _, r := range n.peersInOrder() {
		r.stop()
	}
	n.replicators = nil
	n.followers.Store(nil)
	n.failRounds(reason)
}

// abortChange ends this leader's part in a change. committed says that the entry of its stage was committed, of
// which the actor has not heard yet.
func (n *Node) abortChange(reason error, committed bool) {
	n.transfer, n.departing, n.advanceAt, n.readyAt = nil, nil, time.Time{}, time.Time{}
	n.ackWatch.Store(0)
	c, stage := n.change, n.ctx.Stage()
	a := n.ctx.Abort(&Error{Code: ErrNotLeader, Op: "change peers", Group: n.group, Err: reason})
	n.change = nil
	n.publish()
	if c == nil {
		return
	}
	err := n.outcomeOf(c, a.err)
	if committed && stage == StageStable { // it is done, whoever leads
		err = nil
	}
	n.settleChange(c.op, c.done, err)
}

// quorumInterval is how often a leader checks that it is heard.
func (n *Node) quorumInterval() time.Duration { return n.o.ElectionTimeout / 4 }

// checkQuorum steps down when no majority has answered for an election timeout.
func (n *Node) checkQuorum() {
	n.quorumAt = n.now.Add(n.quorumInterval())
	if err := n.host.store.Err(); err != nil { // also when nothing is being written
		n.fail(&Error{Code: ErrIO, Op: "write log", Group: n.group, Err: err})
		return
	}
	if !n.quorumAnswers() {
		n.stepDown(n.term, &Error{Code: ErrQuorumLost, Op: "lead", Group: n.group})
		return
	}
	if n.diskStuck() && n.othersMayLead() {
		n.leaveStuckDisk()
		return
	}
	n.renewRounds()
}

// quorumAnswers reports whether most voters, of both halves if joint, have answered a
// request of the last election timeout.
func (n *Node) quorumAnswers() bool {
	heard := newBallot(n.conf)
	heard.grant(n.peer)
	for id, r := range n.replicators {
		if n.now.Sub(r.contact()) < n.o.ElectionTimeout {
			heard.grant(id)
		}
	}
	return heard.won()
}
