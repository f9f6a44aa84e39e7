package graft

import (
	"fmt"
	"sync"
	"time"
)

// SnapshotThrottle bounds what snapshots cost the other groups of a host, in each direction. Zero means default. Without any
// bound, copies still yield to writes: while the log of either host is being written, they go on in smaller pieces and with fewer
// of them on their way, at about half of the speed.
type SnapshotThrottle struct {
	// SendRate and ReceiveRate are bytes per second, of all snapshots together. Default: no bound. Tens of
	// KiB at least: a piece of a file is given up when it takes too long.
	SendRate, ReceiveRate int64
	// Sends and Receives are how many snapshots are on their way at the same time. Default 8 each; the others wait.
	Sends, Receives int
}

func (t SnapshotThrottle) withDefaults() SnapshotThrottle {
	t.Sends, t.Receives = orDefault(t.Sends, 8), orDefault(t.Receives, 8)
	return t
}

// Validate reports what is wrong with t.
func (t SnapshotThrottle) Validate() error {
	if t.SendRate < 0 || t.ReceiveRate < 0 || t.Sends < 0 || t.Receives < 0 {
		return fmt.Errorf("SnapshotThrottle is %+v, must not be negative", t)
	}
	return nil
}

// SetSnapshotThrottle replaces HostOptions.SnapshotThrottle; snapshots on their way go on by the new one.
func (h *Host) SetSnapshotThrottle(t SnapshotThrottle) error {
	if err := t.Validate(); err != nil {
		return &Error{Code: ErrInvalid, Op: "set snapshot throttle", Err: err}
	}
	h.sends.set(t.SendRate, t.withDefaults().Sends)
	h.receives.set(t.ReceiveRate, t.withDefaults().Receives)
	return nil
}

// throttle bounds one direction: a bucket of bytes that fills at a rate, and a number of places (braft:
// ThroughputSnapshotThrottle).
//
// Ownership: any goroutine may use it. mu is a leaf lock.
type throttle struct {
	mu     sync.Mutex
	rate   int64
	places int
	taken  int
	tokens int64
	filled time.Time
}

// throttleCycle is how long the bucket takes to fill.
const throttleCycle = 100 * time.Millisecond

func (t *throttle) set(rate int64, places int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rate, t.places, t.tokens = rate, places, 0
}

// enter takes a place, and reports whether there was one.
func (t *throttle) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.taken >= t.places {
		return false
	}
	t.taken++
	return true
}

// leave gives a place back.
func (t *throttle) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.taken--
}

// take takes up to want bytes. It may grant less, and then says when to ask again for the rest.
func (t *throttle) take(now time.Time, want int64) (granted int64, again time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rate == 0 {
		return want, time.Time{}
	}
	full := max(int64(float64(t.rate)*throttleCycle.Seconds()), 1)
	if d := now.Sub(t.filled); t.filled.IsZero() || d >= throttleCycle {
		t.tokens, t.filled = full, now
	} else if d > 0 {
		if add := int64(float64(t.rate) * d.Seconds()); add > 0 {
			t.tokens, t.filled = min(t.tokens+add, full), now
		}
	}
	granted = min(want, t.tokens)
	t.tokens -= granted
	if granted < want {
		again = now.Add(throttleCycle / 2)
	}
	return granted, again
}

// give returns what was not used.
func (t *throttle) give(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tokens += n
}
