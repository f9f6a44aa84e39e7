// Package progress is a leader's view of one follower: what it is known to store,
// what to send next, and how much may be on the way. It is pure: it neither sends
// nor waits.
package progress

import "slices"

// State says how entries are sent.
type State uint8

// The states of a Progress.
const (
	// Probe sends one request at a time until the logs are known to match.
	Probe State = iota
	// Replicate sends ahead of the answers, as far as the window allows.
	Replicate
	// Snapshot waits for a snapshot to be installed.
	Snapshot
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Probe:
		return "probe"
	case Replicate:
		return "replicate"
	case Snapshot:
		return "snapshot"
	}
	return "unknown"
}

// Window bounds what may be on the way.
type Window struct {
	Requests int
	Bytes    int
}

// Progress tracks one follower during one leadership.
//
// Invariants: Match < Next; inflight is ordered by last, all of it in
// (Match, Next); bytes is the sum of inflight; generation grows whenever requests on their
// way are given up.
//
// Ownership: its replicator's.
type Progress struct {
	State      State
	Match      int64 // the last index known to be durable there
	Next       int64 // the next index to send
	equal      int64 // up to here the logs were found to be the same, durable there or not
	generation uint64
	inflight   []request
	bytes      int
}

type request struct {
	last  int64
	bytes int
}

// New returns the progress of a follower of whom nothing is known: it is probed at
// the end of the leader's log first.
func New(last int64) Progress { return Progress{Next: last + 1} }

// Generation identifies the present sequence of requests. Refusals of requests that were sent in an
// earlier one say nothing any more.
func (p *Progress) Generation() uint64 { return p.generation }

// Inflight returns how many requests and bytes are on the way.
func (p *Progress) Inflight() (requests, bytes int) { return len(p.inflight), p.bytes }

// Room reports whether another request with entries may be sent.
func (p *Progress) Room(w Window) bool {
	switch p.State {
	case Replicate:
		return len(p.inflight) < w.Requests && p.bytes < w.Bytes
	case Probe:
		return len(p.inflight) == 0
	}
	return false
}

// Sent notes that entries up to last are on the way. A probe without entries is
// noted with last = Next-1.
func (p *Progress) Sent(last int64, bytes int) {
	p.inflight = append(p.inflight, request{last, bytes})
	p.bytes += bytes
	p.Next = max(p.Next, last+1)
}

// Stored notes that the follower stores all up to last, durably. It is true whatever the
// generation of the request that brought the news.
func (p *Progress) Stored(last int64) {
	p.Match = max(p.Match, last)
	p.Next = max(p.Next, last+1)
	if p.State != Snapshot { // late news do not end an install
		p.State = Replicate
	}
	n := 0
	for n < len(p.inflight) && p.inflight[n].last <= last {
		p.bytes -= p.inflight[n].bytes
		n++
	}
	p.inflight = slices.Delete(p.inflight, 0, n)
}

// StoredUpTo notes that the follower stores what the leader has up to last, durably, as it says without
// having been sent that now. What is on the way stays on the way.
func (p *Progress) StoredUpTo(last int64) {
	if last > p.Match {
		p.Match = last
		p.Next = max(p.Next, last+1)
	}
}

// Matched notes that a probe found the logs equal up to prev. That says nothing about
// durability, so Match stays.
func (p *Progress) Matched(prev int64) {
	if p.State != Probe {
		return
	}
	p.GiveUp()
	p.State = Replicate
	p.equal = prev
	p.Next = max(prev, p.Match) + 1
}

// Refused notes that the logs differ at prev and goes back to probing: from next,
// where the follower's answer suggests to try, but always lower than before and
// never at or below Match.
func (p *Progress) Refused(prev, next int64) {
	p.GiveUp()
	p.State = Probe
	p.equal = 0
	p.Next = max(min(next, prev), p.Match+1, 1)
}

// Failed notes that requests were lost: everything behind what is known of the follower's log may have to
// be sent again. While nothing is known, it is asked the same once more.
func (p *Progress) Failed() {
	p.GiveUp()
	if p.State != Probe {
		p.Next = max(p.Match, p.equal) + 1
	}
	p.State = Probe
}

// Regressed notes that the follower has lost what it once acknowledged, and holds at
// most up to last.
func (p *Progress) Regressed(last int64) {
	p.Match, p.equal = 0, 0
	p.GiveUp()
	p.State = Probe
	p.Next = max(last, 0) + 1
}

// BeginSnapshot notes that the follower needs entries that are in the log no more: nothing is sent
// until a snapshot is installed there.
func (p *Progress) BeginSnapshot() {
	p.GiveUp()
	p.State = Snapshot
}

// SnapshotInstalled notes that the follower holds all up to index, durably, by a snapshot or because it had it. What
// follows is sent without a probe (braft: Replicator::_on_install_snapshot_returned).
func (p *Progress) SnapshotInstalled(index int64) {
	p.GiveUp()
	p.State = Replicate
	p.Match = max(p.Match, index)
	p.Next = p.Match + 1
}

// SnapshotFailed notes that no snapshot was installed. What the follower holds is asked anew.
func (p *Progress) SnapshotFailed() {
	if p.State != Snapshot {
		return
	}
	p.GiveUp()
	p.State = Probe
	p.Next = max(p.Next, p.Match+1)
}

// GiveUp forgets what is on the way.
func (p *Progress) GiveUp() {
	p.generation++
	p.inflight, p.bytes = p.inflight[:0], 0
}
