package graft

import "github.com/graft-raft/graft/internal/entry"

// SimState is what this module's simulator (internal/sim) compares between steps.
// It is not for users: see Node.Status.
type SimState struct {
	Role      NodeRole
	Term      int64
	Vote      PeerID
	Leader    PeerID
	Waiting   bool
	First     int64
	Last      int64
	LastTerm  int64
	Submitted int64 // what storage has been given, and has not refused
	Durable   int64
	LogEpoch  uint64
	Commit    int64
	Applied   int64
	SavedTerm int64 // the term that is durable
	Saved     bool  // term, vote and Waiting are durable as they are

	ConfIndex, ConfTerm int64 // of the configuration in force
	Stage               Stage
	Changing            bool // somebody waits for a change here
	Transferring        bool
	Departing           bool // it leads, and is no voter any more
	Told                bool // others have told it that it is removed

	Installing int64 // the index of the snapshot that is brought here; 0: none
	Snapshot   int64 // the index of the newest one that it relies on
}

// SimStateOf reads a node's state, without its locks: it is for a simulator that runs
// everything on one goroutine.
func SimStateOf(n *Node) SimState {
	return SimState{
		Role: n.role, Term: n.term, Vote: n.vote, Leader: n.leader, Waiting: n.waiting,
		First: n.lm.first, Last: n.lm.last, LastTerm: n.lm.termLocked(n.lm.last), Submitted: n.lm.submitted, Durable: n.lm.durable, LogEpoch: n.lm.epoch,
		Commit: n.box.committed, Applied: n.fsm.applied.Load(),
		SavedTerm: n.savedTerm.Load(), Saved: n.hard.saved == n.hard.wanted,
		ConfIndex: n.conf.index, ConfTerm: n.conf.term, Stage: n.ctx.Stage(), Changing: n.change != nil,
		Transferring: n.transfer != nil, Departing: n.departing != nil, Told: n.told,
		Installing: n.snap.incoming.Load(), Snapshot: n.snap.last.Load(),
	}
}

// SimPending is what counts against the budgets of those who call the node: entries and bytes that were proposed, and reads. It
// is for this module's simulator.
func SimPending(n *Node) (entries, bytes, reads int64) {
	entries, bytes = n.proposals.pending()
	return entries, bytes, n.reads.pending.Load()
}

// SimConf is the configuration in force on the node; old is empty unless it is joint. It is for
// this module's simulator.
func SimConf(n *Node) (conf, old Configuration) { return n.conf.conf, n.conf.old }

// SimConfAt is the configuration that governs an index, by what the node's log remembers; old is empty unless it is
// joint. It is for this module's simulator.
func SimConfAt(n *Node, index int64) (conf, old Configuration) {
	e := n.lm.confs.at(index)
	return e.conf, e.old
}

// SimConfIndexAt is the index of the entry with the configuration that SimConfAt returns, 0 if it is from no entry.
func SimConfIndexAt(n *Node, index int64) int64 { return n.lm.confs.at(index).index }

// SimVoter reports whether the node may campaign: it has a vote in a configuration that is or may be in force. It is
// for this module's simulator.
func SimVoter(n *Node) bool { return n.lm.confs.votes(n.peer, n.box.committed) }

// SimComing lists the peers of the configuration that the node, leading, is about to enter into its log. It
// is for this module's simulator.
func SimComing(n *Node) []PeerID {
	if n.ctx.stage != StageCatchingUp {
		return nil
	}
	return n.ctx.conf.peers
}

// SimRemoved reports whether the node knows that it was removed. It is for this module's simulator.
func SimRemoved(n *Node) bool { return n.removed() }

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

// SimResumed is how many bytes of the latest snapshot that the node was sent had been copied before. It is for this
// module's simulator.
func SimResumed(n *Node) int64 { return n.Status().Snapshot.Resumed }

// SimTransfer, SimCancelChange and SimResetPeers are methods of Node that block, as the single
// goroutine of a simulator can call them: done gets the outcome.
func SimTransfer(n *Node, peer PeerID, done func(error)) { n.transferTo(peer, done) }

// SimCancelChange is Node.CancelChange for this module's simulator.
func SimCancelChange(n *Node, done func(error)) { n.cancelChange(done) }

// SimResetPeers is Node.ResetPeers for this module's simulator.
func SimResetPeers(n *Node, conf Configuration, done func(error)) { n.resetPeers(conf, done) }
