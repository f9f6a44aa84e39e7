package fulltest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/graft-raft/graft"
)

// The outcomes that each call may have, beside nil.
var (
	notProposed = []graft.Code{graft.ErrNotLeader, graft.ErrBusy, graft.ErrOverloaded, graft.ErrNoSpace, graft.ErrShutdown, graft.ErrNodeFailed}
	ofApply     = append([]graft.Code{graft.ErrUnknownOutcome}, notProposed...)
	ofChange    = append([]graft.Code{graft.ErrCatchup, graft.ErrUnreachable, graft.ErrCanceled, graft.ErrTimeout}, ofApply...)
	ofTransfer  = []graft.Code{graft.ErrNotLeader, graft.ErrBusy, graft.ErrInvalid, graft.ErrUnreachable, graft.ErrCatchup, graft.ErrShutdown, graft.ErrNodeFailed}
	ofCancel    = []graft.Code{graft.ErrNotLeader, graft.ErrBusy, graft.ErrNotFound, graft.ErrShutdown, graft.ErrNodeFailed}
	ofReset     = []graft.Code{graft.ErrBusy, graft.ErrShutdown, graft.ErrNodeFailed, graft.ErrUnknownOutcome}
	ofRead      = []graft.Code{graft.ErrNotLeader, graft.ErrUnreachable, graft.ErrOverloaded, graft.ErrShutdown, graft.ErrNodeFailed}
)

// ledger knows every call with a callback: each has to have exactly one outcome, out of those
// that are documented.
//
// Ownership: any goroutine may use it. mu is a leaf lock.
type ledger struct {
	mu      sync.Mutex
	calls   []*call
	wrong   []string
	acked   map[string]int64 // data of proposals that were applied, and where
	refused map[string]error // that were said never to be applied
	highest int64            // of acked
}

// call is one of them.
type call struct {
	l       *ledger
	what    string
	allowed []graft.Code
	runs    int
	err     error
}

func newLedger() *ledger {
	return &ledger{acked: make(map[string]int64), refused: make(map[string]error)}
}

// begin notes a call.
func (l *ledger) begin(what string, allowed ...graft.Code) *call {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &call{l: l, what: what, allowed: allowed}
	l.calls = append(l.calls, c)
	return c
}

// done is the callback.
func (c *call) done(err error) {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	c.runs++
	if c.runs > 1 {
		c.l.complain("%s: its callback ran %d times, now with %v", c.what, c.runs, err)
		return
	}
	c.err = err
	if err != nil && !slices.Contains(c.allowed, graft.ErrorCode(err)) {
		c.l.complain("%s: ended with an outcome that is not documented: %v", c.what, err)
	}
}

// settle is done for proposals.
func (c *call) settle(_ any, err error) { c.done(err) }

// over reports whether the callback has run.
func (c *call) over() bool {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return c.runs > 0
}

// outcome is what the callback got.
func (c *call) outcome() error {
	c.l.mu.Lock()
	defer c.l.mu.Unlock()
	return c.err
}

// complain notes what must not be. The lock is held.
func (l *ledger) complain(format string, args ...any) {
	l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
}

// proposed notes a proposal's outcome.
func (l *ledger) proposed(data string, index int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch graft.ErrorCode(err) {
	case 0:
		l.acked[data] = index
		l.highest = max(l.highest, index)
	case graft.ErrUnknownOutcome:
	default:
		l.refused[data] = err
	}
}

// ackedUpTo is the highest index that a proposer was told of.
func (l *ledger) ackedUpTo() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.highest
}

// pending lists the calls without an outcome.
func (l *ledger) pending() (what []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		if c.runs == 0 {
			what = append(what, c.what)
		}
	}
	return what
}

// settled fails the test unless every call has had its one outcome.
func (l *ledger) settled(t *testing.T) {
	t.Helper()
	if what := l.pending(); len(what) > 0 {
		t.Errorf("%d callbacks never ran: %q", len(what), what[:min(len(what), 10)])
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.wrong {
		t.Error(w)
	}
	l.wrong = nil
}

// holds compares what a state machine has applied with what proposers were told.
func (l *ledger) holds(t *testing.T, who string, applied []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	count := make(map[string]int)
	for _, data := range applied {
		if count[data]++; count[data] > 1 {
			t.Errorf("%s has applied %q %d times", who, data, count[data])
		}
		if err := l.refused[data]; err != nil {
			t.Errorf("%s has applied %q, of which was said: %v", who, data, err)
		}
	}
	for data, index := range l.acked {
		if count[data] == 0 {
			t.Errorf("%s lacks %q, which was acknowledged at index %d", who, data, index)
		}
	}
}
