package graft

import (
	"time"

	"go.uber.org/zap"
)

// diskPatience is how many election timeouts a leader waits for its disk to answer anything.
const diskPatience = 4

// diskWatch is a leader's look at its own disk, which may hang without an error: the others go on committing, nothing here
// gets any older, and one more failure among them brings the group to a halt.
type diskWatch struct {
	answered int64     // writes, when it was looked at last
	since    time.Time // since when there are no more of them though some wait
}

// diskStuck reports whether writes of this node wait, and none has been answered for long.
func (n *Node) diskStuck() bool {
	waiting, answered := n.lm.pending.progress()
	if w := &n.disk; !waiting || w.since.IsZero() || answered != w.answered {
		*w = diskWatch{answered, n.now}
		return false
	}
	return n.now.Sub(n.disk.since) >= diskPatience*n.o.ElectionTimeout
}

// othersMayLead reports whether the other voters can elect one of them, that has all that is committed, without this node's
// vote: if its disk is stuck it cannot give one.
func (n *Node) othersMayLead() bool {
	free := newBallot(n.conf)
	for id, r := range n.replicators {
		if r.canVote() && n.now.Sub(r.contact()) < n.o.ElectionTimeout {
			free.grant(id)
		}
	}
	p, ok := n.successor()
	return ok && free.won() && n.box.acknowledgedBy(p) >= n.box.index()
}

// leaveStuckDisk gives leadership to a node whose disk works. This one cannot take it back before its own does, since it would
// have to store its vote.
func (n *Node) leaveStuckDisk() {
	n.log.Error("the disk does not answer; others are to lead", zap.Duration("for", n.now.Sub(n.disk.since)))
	n.wakeSuccessor(n.box.index())
	n.stepDown(n.term, &Error{Code: ErrTimeout, Op: "write log", Group: n.group, Err: errDiskBehind})
}
