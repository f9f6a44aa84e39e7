// Package quorum is the arithmetic of majorities, on plain numbers.
//
// It is pure: no I/O, no goroutines, no clock.
package quorum

import "slices"

// MaxVoters is the largest number of voters that one half of a configuration may
// have. Callers that keep one number per voter in an array may size it by this.
const MaxVoters = 128

// Majority returns how many of n voters are more than half of them. Of no voters it
// is 1: nobody can decide anything there.
func Majority(n int) int { return n/2 + 1 }

// CommittedIndex returns the largest index that a majority of voters has
// acknowledged, where acked holds one index per voter, in any order. It reorders
// acked and allocates nothing. No voters commit nothing: the result is 0.
func CommittedIndex(acked []int64) int64 {
	if len(acked) == 0 {
		return 0
	}
	slices.Sort(acked) // by insertion up to 12 numbers, which is nearly always
	return acked[len(acked)-Majority(len(acked))]
}

// JointCommitted returns the largest index that both a majority of a and a majority
// of b have acknowledged. An empty b is no half at all: the configuration is not
// joint, and a decides alone (Raft thesis §4.3). It reorders both.
func JointCommitted(a, b []int64) int64 {
	if len(b) == 0 {
		return CommittedIndex(a)
	}
	return min(CommittedIndex(a), CommittedIndex(b))
}
