package graft

import "sync/atomic"

// pendingWrites counts what a node has submitted to storage and storage has not answered. A node has not ended
// before that: the next one of the same group begins with what storage says it holds, and takes that for durable. Callbacks
// that are on their way count too.
//
// Invariant: last runs once, when close has been called and every write is answered.
//
// Ownership: the node's actor adds and closes; storage answers on its own goroutines.
type pendingWrites struct {
	n        atomic.Int64 // one more than there are, until close
	calls    atomic.Int64 // of these, callbacks
	answered atomic.Int64
	last     func()
}

func (p *pendingWrites) open() { p.n.Store(1) }

// add counts a write; done is called when it has been answered and dealt with.
func (p *pendingWrites) add() { p.n.Add(1) }

// tryAddCall is add for a callback, on any goroutine and at any time: it reports false, and counts nothing, if the end has
// come. calledBack is called when it has run.
func (p *pendingWrites) tryAddCall() bool {
	for {
		n := p.n.Load()
		if n == 0 {
			return false
		}
		if p.n.CompareAndSwap(n, n+1) {
			p.calls.Add(1)
			return true
		}
	}
}

func (p *pendingWrites) calledBack() {
	p.calls.Add(-1)
	p.gone()
}

func (p *pendingWrites) done() {
	p.answered.Add(1)
	p.gone()
}

func (p *pendingWrites) gone() {
	if p.n.Add(-1) == 0 {
		p.last()
	}
}

// progress reports whether writes wait for their answer, and how many had one so far.
func (p *pendingWrites) progress() (waiting bool, answered int64) {
	return p.n.Load()-p.calls.Load() > 1, p.answered.Load()
}

// close has last run once everything is answered, at once if it is. Nothing may be added any more, but by tryAddCall. last
// must not block.
func (p *pendingWrites) close(last func()) {
	p.last = last
	p.gone()
}
