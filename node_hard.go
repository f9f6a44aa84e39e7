package graft

import (
	"errors"

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
	drop   func() // in place of run, if the node stops before; may be nil
}

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
		return
	case err != nil:
		n.fail(&Error{Code: ErrIO, Op: "save term and vote", Group: n.group, Err: err})
		return
	}
	n.hard.saved = max(n.hard.saved, change)
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

// afterSave runs f once term and vote as they are now are durable: at once if they
// are. If the node stops before, f is dropped.
func (n *Node) afterSave(f func()) { n.afterSaveOr(f, nil) }

// afterSaveAnswer is afterSave for f that answers a request. If the node stops before, the request fails.
func (n *Node) afterSaveAnswer(req *rpc.Request, f func()) {
	n.afterSaveOr(f, func() { req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String()) })
}

// afterSaveOr is afterSave, but if the node stops before, drop is run instead.
func (n *Node) afterSaveOr(f, drop func()) {
	switch {
	case n.hard.saved == n.hard.wanted:
		f()
	case n.active():
		n.hard.waiters = append(n.hard.waiters, hardWaiter{n.hard.wanted, f, drop})
	case drop != nil: // it has stopped already
		drop()
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
