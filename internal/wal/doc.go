// Package wal is the log that all groups of one process share: the entries of
// every group, their terms and votes, in one sequence of segments, with one write
// and one sync for whatever gathered while the writes before were under way.
//
// FORMAT.md says what is on disk and how it is read back. The parts:
//
//	Group     what a raft group sees: append, truncate, save, read
//	Store     what is pending, where the next batch goes, what is durable
//	lane      an actor that writes and syncs one batch at a time (InFlight of them)
//	keeper    an actor that prepares, recycles and removes segments
//	groupLog  a group as its records say, in the order of the log; recovery and
//	          writing share it
//
// A record is submitted by any goroutine into the queue of flights under the
// store's one mutex. A free lane places the first flight (position, chain and mark
// are fixed in that moment), writes and syncs it without any lock, and whoever
// completes the oldest one delivers all that are ready, in order.
package wal
