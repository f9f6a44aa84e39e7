// Package election holds the rules of voting as functions of values: who may be
// voted for, who may ask, and when. It is pure: the caller brings the clock and
// the dice.
package election

import "time"

// Position is the end of a log. Positions are compared by term first.
type Position struct{ Term, Index int64 }

// Covers reports whether a log that ends at p is at least as up to date as one that
// ends at o (Raft thesis §3.6.1).
func (p Position) Covers(o Position) bool {
	return p.Term > o.Term || p.Term == o.Term && p.Index >= o.Index
}

// Voter is what a node knows when it is asked for a vote.
type Voter struct {
	Term  int64
	Voted bool // has voted in Term, for whomever
	For   bool // and that was the one who asks
	Last  Position
	// Waiting says that the node began with nothing on disk, and may have forgotten
	// what it once acknowledged; see Weak.
	Waiting bool
	// Mute says that the node has no vote at all at present: it may have forgotten what it acknowledged,
	// and the group has moved on from the configuration that it began with, so that not even the votes of all
	// whom it knows prove anything.
	Mute bool
	// HearsLeader says that a leader was heard within the minimum election timeout, or
	// is this node with its quorum.
	HearsLeader bool
}

// Request is what a candidate says of itself.
type Request struct {
	Term int64
	Last Position
}

// logOK reports whether the candidate's log allows to vote for it.
func (v Voter) logOK(r Request) bool { return r.Last.Covers(v.Last) }

// Weak reports whether the node's vote counts only together with those of all other voters:
// it may have forgotten what it once acknowledged, so that a majority with it proves nothing. If all
// grant, the candidate has whatever is left on any disk. In a group that is empty altogether there is nothing to forget.
func (v Voter) Weak(r Request) bool { return v.Waiting && r.Last != (Position{}) }

// PreVote reports whether the node would vote for the candidate. Nothing changes by the answer.
// It is sticky: whoever hears a leader does not help to depose it (Raft thesis §9.6, §6.4.1).
func (v Voter) PreVote(r Request) bool {
	return r.Term >= v.Term && v.logOK(r) && !v.HearsLeader && !v.Mute
}

// Vote reports whether the node votes for the candidate, after it has adopted
// the candidate's term if that was higher. It is not sticky: a vote is asked for
// only after a won pre-vote or on a leader's own request.
func (v Voter) Vote(r Request) bool {
	return r.Term == v.Term && (!v.Voted && v.logOK(r) || v.For) && !v.Mute
}

// Timeout draws an election timeout: at least base, at most twice that, and not
// more than maxDelay above it (braft: raft_max_election_delay_ms). r is uniform in [0, 1).
func Timeout(base, maxDelay time.Duration, r float64) time.Duration {
	return base + time.Duration(float64(min(base, maxDelay))*r)
}
