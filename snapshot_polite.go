package graft

import (
	"sync"
	"time"
)

// Whoever waits for the log has to wait for nothing else: while the log of a host is being written, a copy from it or to it
// is to be noticed as little as may be. Pieces are small then, so that neither a processor nor the disk is taken for long,
// and no more of them are on their way than the distance demands. A sender says so by giving less than it is asked for.
const (
	// politePiece is the largest piece then. A write that comes meanwhile may have to wait until one is on the disk: with
	// twice as much the slowest of a hundred writes wait half as long again, with half as much a copy takes half as long again.
	politePiece = 256 << 10
	// politeWait is how long a piece takes at most that need not have others on their way beside it.
	politeWait = 5 * time.Millisecond
	// busyFor is how long a host counts as busy after a write to its log.
	busyFor = 100 * time.Millisecond
)

// traffic tells whether a log is being written. mu is a leaf lock.
type traffic struct {
	mu    sync.Mutex
	syncs int64
	at    time.Time // when there was another number of them; zero: never
}

// busy reports whether there were writes a moment ago, of which there have been so many.
func (t *traffic) busy(now time.Time, syncs int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if syncs != t.syncs {
		t.syncs, t.at = syncs, now
	}
	return !t.at.IsZero() && now.Sub(t.at) < busyFor
}

// busy reports whether the host's log is being written.
func (h *Host) busy(now time.Time) bool { return h.traffic.busy(now, h.store.Stats().Syncs) }

// room is how many pieces there may be on their way.
func (in *install) room(polite bool) int {
	if !polite {
		return in.window
	}
	return min(in.window, 1+int(in.quickest/politeWait))
}

// given notes that the sender gave less of a piece than there is, or not.
func (in *install) given(now time.Time, asked, got int64, eof bool) {
	switch {
	case got < asked && !eof:
		in.short = now.Add(in.patience)
	case asked > politePiece:
		in.short = time.Time{}
	}
}

// comesShort reports whether the sender has given less than it was asked for, and nothing has shown since that it does no more.
func (in *install) comesShort(now time.Time) bool { return now.Before(in.short) }
