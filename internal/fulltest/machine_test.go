package fulltest

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// machine is a state machine that remembers what it was given, and holds the library to its contract.
//
// Ownership: the library calls it, the test asks it. mu is a leaf lock.
type machine struct {
	graft.BaseStateMachine
	who  string
	busy atomic.Bool // within a call

	mu        sync.Mutex
	entries   []string
	last      int64 // index of the last one
	leading   bool
	following graft.PeerID
	conf      graft.Configuration // reported last
	lived     bool                // something was called
	shut      bool
	failures  []error
	wrong     []string
	gate      chan struct{} // entries wait for it to be closed; nil: they do not
	pause     time.Duration // of each entry
	panicIn   string        // the callback that panics, once, or "an entry"
	meddleIn  string        // the callback in which meddler is called
	meddler   func()
	lastDone  int64 // index of the last proposal of this node that was settled

	snapshots  bool          // it has some
	shelf      chan struct{} // they wait for it to be closed; nil: they do not
	shelfPause time.Duration // of each entry in them
	saves      sync.WaitGroup
}

// enter notes that a call has begun; the result is called at its end, and panics if the test wants that.
func (m *machine) enter(callback string) (leave func()) {
	if !m.busy.CompareAndSwap(false, true) {
		m.complain("%s while another callback runs", callback)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shut {
		m.complainHeld("%s after OnShutdown", callback)
	}
	m.lived = true
	meddler := m.meddler
	if m.meddleIn != callback {
		meddler = nil
	}
	return func() {
		if meddler != nil {
			meddler()
		}
		m.busy.Store(false)
		m.explode(callback)
	}
}

// meddle has something done within each call of a callback.
func (m *machine) meddle(callback string, meddler func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.meddleIn, m.meddler = callback, meddler
}

// explode panics if the test wants that of a callback.
func (m *machine) explode(callback string) {
	m.mu.Lock()
	bad := m.panicIn == callback
	if bad {
		m.panicIn = ""
	}
	m.mu.Unlock()
	if bad {
		panic("the test wants " + callback + " to panic")
	}
}

func (m *machine) complain(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.complainHeld(format, args...)
}

func (m *machine) complainHeld(format string, args ...any) {
	m.wrong = append(m.wrong, m.who+": "+fmt.Sprintf(format, args...))
}

// OnApply takes entries, slowly or not at all if the test wants that.
func (m *machine) OnApply(it *graft.Iterator) {
	defer m.enter("OnApply")()
	for it.Next() {
		m.explode("an entry")
		m.mu.Lock()
		gate, pause := m.gate, m.pause
		m.mu.Unlock()
		if gate != nil {
			<-gate
		}
		if pause > 0 {
			<-time.After(pause)
		}
		m.mu.Lock()
		if it.Index() <= m.last {
			m.complainHeld("entry %d after %d", it.Index(), m.last)
		}
		m.last = it.Index()
		m.entries = append(m.entries, string(it.Data()))
		m.mu.Unlock()
		it.Return(it.Index())
	}
}

// OnConfigurationCommitted takes note of the configuration.
func (m *machine) OnConfigurationCommitted(conf graft.Configuration, _ int64) {
	defer m.enter("OnConfigurationCommitted")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(conf.Voters()) == 0 {
		m.complainHeld("a configuration without voters: %v", conf)
	}
	m.conf = conf
}

// changed checks that a configuration that is said to be in force was reported.
func (m *machine) changed(to graft.Configuration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.conf.Equal(to) {
		m.complainHeld("a change to %v is done, but reported was %v", to, m.conf)
	}
}

// over reports whether OnShutdown was called, or nothing ever was.
func (m *machine) over() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.shut || !m.lived
}

// unborn says that the library has refused the machine.
func (m *machine) unborn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lived {
		m.complainHeld("it was called, though its replica was not started")
	}
	m.shut = true
}

// OnLeaderStart must follow an OnLeaderStop, and nobody is followed meanwhile.
func (m *machine) OnLeaderStart(int64) {
	defer m.enter("OnLeaderStart")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leading || !m.following.IsZero() {
		m.complainHeld("OnLeaderStart, leading %v, following %v", m.leading, m.following)
	}
	m.leading = true
}

// OnLeaderStop must follow an OnLeaderStart.
func (m *machine) OnLeaderStop(reason error) {
	defer m.enter("OnLeaderStop")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leading || reason == nil {
		m.complainHeld("OnLeaderStop, leading %v, reason %v", m.leading, reason)
	}
	m.leading = false
}

// OnStartFollowing must follow an OnStopFollowing.
func (m *machine) OnStartFollowing(c graft.LeaderChange) {
	defer m.enter("OnStartFollowing")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leading || !m.following.IsZero() || c.Leader.IsZero() {
		m.complainHeld("OnStartFollowing %v, leading %v, following %v", c.Leader, m.leading, m.following)
	}
	m.following = c.Leader
}

// OnStopFollowing must name the leader that OnStartFollowing named.
func (m *machine) OnStopFollowing(c graft.LeaderChange) {
	defer m.enter("OnStopFollowing")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.following.Same(c.Leader) || c.Reason == nil {
		m.complainHeld("OnStopFollowing %v for %v, following %v", c.Leader, c.Reason, m.following)
	}
	m.following = graft.PeerID{}
}

// OnError comes once at most.
func (m *machine) OnError(err error) {
	defer m.enter("OnError")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failures = append(m.failures, err); len(m.failures) > 1 {
		m.complainHeld("OnError again: %v", err)
	}
}

// OnShutdown is the last.
func (m *machine) OnShutdown() {
	defer m.enter("OnShutdown")()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leading || !m.following.IsZero() {
		m.complainHeld("OnShutdown, leading %v, following %v", m.leading, m.following)
	}
	m.shut = true
}

// settled checks the order in which proposals are answered.
func (m *machine) settled(index int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.lastDone {
		m.complainHeld("the proposal at %d was answered after that at %d", index, m.lastDone)
	}
	m.lastDone = index
}

// hold has entries wait until open.
func (m *machine) hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.gate == nil {
		m.gate = make(chan struct{})
	}
}

// open lets entries and snapshots go on.
func (m *machine) open() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shelf != nil {
		close(m.shelf)
		m.shelf = nil
	}
	if m.gate != nil {
		close(m.gate)
		m.gate = nil
	}
}

// sabotage has the next call of a callback panic.
func (m *machine) sabotage(callback string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.panicIn = callback
}

// slow has each entry take a while.
func (m *machine) slow(pause time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pause = pause
}

func (m *machine) applied() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}

// ended fails the test unless the machine was treated by its contract, to the end.
func (m *machine) ended(t *testing.T) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.shut {
		t.Errorf("%s: OnShutdown was not called", m.who)
	}
	for _, w := range m.wrong {
		t.Error(w)
	}
	m.wrong = nil
}
