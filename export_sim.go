package graft

import "github.com/graft-raft/graft/internal/entry"

// SimState is what this module's simulator (internal/sim) compares between steps.
// It is not for users: see Node.Status.
type SimState struct {
	Role      NodeRole
	Term      int64
	Vote      PeerID
	Waiting   bool
	Last      int64
	LastTerm  int64
	Durable   int64
	LogEpoch  uint64
	Commit    int64
	Applied   int64
	SavedTerm int64 // the term that is durable
}

// SimStateOf reads a node's state, without its locks: it is for a simulator that runs
// everything on one goroutine.
func SimStateOf(n *Node) SimState {
	return SimState{
		Role: n.role, Term: n.term, Vote: n.vote, Waiting: n.waiting,
		Last: n.lm.last, LastTerm: n.lm.termLocked(n.lm.last), Durable: n.lm.durable, LogEpoch: n.lm.epoch,
		Commit: n.box.committed, Applied: n.fsm.applied.Load(),
		SavedTerm: n.savedTerm.Load(),
	}
}

// SimTerm is the term of an entry in the node's log, 0 if it has none there. It is for
// this module's simulator.
func SimTerm(n *Node, index int64) int64 { return n.lm.termLocked(index) }

// SimEntries visits the entries of the node's log from index first on. It is for this
// module's simulator.
func SimEntries(n *Node, first int64, visit func(e entry.Entry)) error {
	for first <= n.lm.last {
		batches, err := n.lm.entries(nil, first, 1<<20)
		if err != nil {
			return err
		}
		for _, b := range batches {
			for it := b.Iter(); ; {
				e, ok := it.Next()
				if !ok {
					break
				}
				visit(e)
			}
			first = b.Last() + 1
		}
	}
	return nil
}
