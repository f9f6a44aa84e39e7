package graft

import (
	"errors"
	"slices"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wal"
)

// hardState follows the writes of term and vote, so that nothing that depends on
// them is said before they are durable.
//
// Invariant: saved <= wanted; waiters are ordered.
//
// Ownership: the node's actor.
type hardState struct {
	wanted  uint64 // number of the newest change
	saved   uint64 // number of the newest durable one
	refused bool   // storage had no space for it
	waiters []hardWaiter
}

type hardWaiter struct {
	change uint64
	run    func()
	drop   func()       // in place of run, if the node stops before; may be nil
	req    *rpc.Request // that run answers, if it does
}

// maxHardWaiters bounds what waits while storage takes long with term and vote: more than a leader sends ahead of the answers. Of
// requests, those that have waited the longest are refused then, for whom hardly anybody waits any more.
const maxHardWaiters = 1024

// save makes term, vote and the like durable as they are now.
func (n *Node) save() {
	n.hard.wanted++
	n.dirty = true
	n.termNow.Store(n.term)
	n.groupIDNow.Store(n.groupID)
	if n.snap.incoming.Load() != 0 {
		n.snap.a.Post(n.snap.termChanged)
	}
	n.submitHard()
}

func (n *Node) submitHard() {
	change, term := n.hard.wanted, n.term
	vote := ""
	if !n.vote.IsZero() {
		vote = n.vote.String()
	}
	h := wal.HardState{Term: term, Vote: vote, GroupID: n.groupID, Waiting: n.waiting, WasMember: n.wasMember, Override: n.override}
	n.lm.pending.add()
	commit := n.lm.stored(n.box.index()) // see logManager.append
	n.store.SaveHardState(h, commit, func(err error) {
		if err == nil {
			// Entries submitted later are reported later, so whoever answers for
			// them sees this term as durable.
			n.savedTerm.Store(term)
			if !h.Waiting {
				n.voteless.Store(false)
			}
		}
		n.post(func() { n.hardSaved(change, err) })
		n.lm.pending.done()
	})
}

func (n *Node) hardSaved(change uint64, err error) {
	switch {
	case !n.active():
		return
	case errors.Is(err, wal.ErrNoSpace):
		n.hard.refused = true
		if n.retryAt.IsZero() {
			n.retryAt = n.now.Add(spaceRetry)
		}
		n.log.Warn("no space to save term and vote; answers wait for it", zap.Error(err))
		if n.savedTerm.Load() < n.term { // till then nothing is applied, and nobody knows how long that takes
			n.fsm.failWaiters(n.box.index(), &Error{Code: ErrNoSpace, Op: "read index", Group: n.group, Err: err})
		}
		return
	case err != nil:
		n.fail(&Error{Code: ErrIO, Op: "save term and vote", Group: n.group, Err: err})
		return
	}
	n.hard.saved = max(n.hard.saved, change)
	n.followEarly()
	i := 0
	for i < len(n.hard.waiters) && n.hard.waiters[i].change <= n.hard.saved {
		i++
	}
	ready := n.hard.waiters[:i:i]
	n.hard.waiters = n.hard.waiters[i:]
	for _, w := range ready {
		w.run()
	}
}

// retrySave submits again what storage had no space for.
func (n *Node) retrySave() {
	if n.hard.refused {
		n.hard.refused = false
		n.submitHard()
	}
}

// afterSave runs f, which goes on with an election, once term and vote as they are now are durable: at once if they
// are. If the node stops before, or there is another election, f is dropped.
func (n *Node) afterSave(f func()) {
	n.hard.waiters = slices.DeleteFunc(n.hard.waiters, func(w hardWaiter) bool { return w.drop == nil })
	n.whenSaved(hardWaiter{run: f})
}

// afterSaveAnswer is afterSave for f that answers a request. If the node stops before, the request fails.
func (n *Node) afterSaveAnswer(req *rpc.Request, f func()) {
	n.whenSaved(hardWaiter{
		run: f, req: req,
		drop: func() { req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String()) },
	})
}

// afterSaveOr is afterSave for what every call has an answer to: if the node stops before, drop is run instead.
func (n *Node) afterSaveOr(f, drop func()) { n.whenSaved(hardWaiter{run: f, drop: drop}) }

// whenSaved runs w.run once term and vote as they are now are durable, or w.drop if the node stops before.
func (n *Node) whenSaved(w hardWaiter) {
	switch {
	case n.hard.saved == n.hard.wanted:
		w.run()
	case n.active():
		w.change = n.hard.wanted
		n.await(w)
	case w.drop != nil: // it has stopped already
		w.drop()
	}
}

// await has something wait for term and vote to be durable.
func (n *Node) await(w hardWaiter) {
	if w.req != nil {
		w.req.LetGo() // all that is left to do is to answer
	}
	n.hard.waiters = append(n.hard.waiters, w)
	if len(n.hard.waiters) <= maxHardWaiters {
		return
	}
	if i := slices.IndexFunc(n.hard.waiters, func(w hardWaiter) bool { return w.req != nil }); i >= 0 {
		n.hard.waiters[i].req.Fail(int32(ErrBusy), "term and vote are not on the disk yet")
		n.hard.waiters = slices.Delete(n.hard.waiters, i, i+1)
	}
}

// dropWaiters is for when the node stops.
func (n *Node) dropWaiters() {
	waiters := n.hard.waiters
	n.hard.waiters = nil
	for _, w := range waiters {
		if w.drop != nil {
			w.drop()
		}
	}
}
