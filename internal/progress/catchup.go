package progress

import "time"

// Catchup watches a follower that is to be brought near the end of the log before it counts
// (Raft thesis §4.2.1; braft: Replicator::wait_for_caught_up). It is pure: the caller brings the clock.
//
// Ownership: its replicator's.
type Catchup struct {
	Margin  int64         // how far behind is near enough
	Timeout time.Duration // how long it may go without progress

	got   int64
	bytes int64     // of a snapshot, that are there
	at    time.Time // of the latest progress
}

// Verdict is what Catchup thinks of a follower.
type Verdict uint8

// The verdicts.
const (
	Lagging Verdict = iota
	CaughtUp
	Stalled // no progress for Timeout
)

// NewCatchup begins to watch at the given time.
func NewCatchup(margin int64, timeout time.Duration, now time.Time) Catchup {
	return Catchup{Margin: margin, Timeout: timeout, got: -1, at: now}
}

// Judge looks at a follower. last is the end of the leader's log, answered whether it has answered
// anything since the watch began: one that was near the end before may be dead by now. ready says whether it
// could do a voter's work: nearness alone does not make it one. applied is how far its state machine has come.
//
// What becomes durable there, or is applied, counts as progress, and that the logs were found to meet. A slow
// follower is not given up as long as it gets on.
func (c *Catchup) Judge(now time.Time, p *Progress, last, applied int64, answered, ready bool) Verdict {
	met := answered && p.State == Replicate
	if met && ready && p.Match+c.Margin >= last {
		return CaughtUp
	}
	if got := p.Match + applied; met && got > c.got {
		c.got, c.at = got, now
	}
	if !now.Before(c.Deadline()) {
		return Stalled
	}
	return Lagging
}

// Received notes how many bytes of a snapshot the follower has. More than ever before is progress.
func (c *Catchup) Received(now time.Time, bytes int64) {
	if bytes > c.bytes {
		c.at = now
	}
	c.bytes = max(c.bytes, bytes)
}

// Works notes that the follower is at something that has no measure, such as to load a snapshot, and has
// answered meanwhile.
func (c *Catchup) Works(now time.Time) { c.at = now }

// Regressed notes that the follower has lost what it had: it starts from there.
func (c *Catchup) Regressed() { c.got, c.bytes = -1, 0 }

// Deadline is when the follower is given up unless it gets on.
func (c *Catchup) Deadline() time.Time { return c.at.Add(c.Timeout) }
