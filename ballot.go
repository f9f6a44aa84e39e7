package graft

import "github.com/graft-raft/graft/internal/quorum"

// ballot counts the yes-votes of one election, or the confirmations of one read round, against
// the majority of a configuration; of both halves if it is joint.
//
// Ownership: its user's.
type ballot struct {
	conf, old Configuration
	granted   map[PeerID]bool
	weak      map[PeerID]bool // votes that count only if all voters grant theirs
}

func newBallot(e confEntry) ballot {
	return ballot{conf: e.conf, old: e.old, granted: make(map[PeerID]bool, e.conf.Len())}
}

// grant counts a vote, once per peer, and reports whether the ballot is won.
func (b *ballot) grant(p PeerID) bool {
	b.granted[p.ID()] = true
	return b.won()
}

// grantWeak counts a vote that counts only if all voters grant theirs.
func (b *ballot) grantWeak(p PeerID) bool {
	if b.weak == nil {
		b.weak = make(map[PeerID]bool)
	}
	b.weak[p.ID()] = true
	return b.won()
}

func (b *ballot) won() bool {
	if b.majority(b.conf) && (b.old.Empty() || b.majority(b.old)) {
		return true
	}
	return len(b.weak) > 0 && b.all(b.conf) && (b.old.Empty() || b.all(b.old))
}

// all reports whether every voter of c said yes, weakly at least.
func (b *ballot) all(c Configuration) bool {
	voters := 0
	for _, p := range c.peers {
		if p.Role == Learner {
			continue
		}
		voters++
		if !b.granted[p.ID()] && !b.weak[p.ID()] {
			return false
		}
	}
	return voters > 0
}

// majority reports whether most voters of c said yes. A configuration without
// voters never does.
func (b *ballot) majority(c Configuration) bool {
	voters, yes := 0, 0
	for _, p := range c.peers {
		if p.Role == Learner {
			continue
		}
		voters++
		if b.granted[p.ID()] {
			yes++
		}
	}
	return yes >= quorum.Majority(voters)
}
