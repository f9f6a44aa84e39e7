package graft

import "sync/atomic"

// pendingWrites counts what a node has submitted to storage and storage has not answered. A node has not ended
// before that: the next one of the same group begins with what storage says it holds, and takes that for durable. Callbacks
// that are on their way and snapshots that are lent hold it up too.
//
// Invariant: last runs once, when close has been called and every write is answered.
//
// Ownership: the node's actor adds and closes; storage answers on its own goroutines.
type pendingWrites struct {
	n        atomic.Int64 // one more than there are, until close
	held     atomic.Int64 // of these, what is no write: it may take as long as it likes
	answered atomic.Int64
	last     func()
}

func (p *pendingWrites) open() { p.n.Store(1) }

// add counts a write; done is called when it has been answered and dealt with.
func (p *pendingWrites) add() { p.n.Add(1) }

// hold is add for what is no write and says nothing about the disk; letGo is called when it is over.
func (p *pendingWrites) hold() {
	p.n.Add(1)
	p.held.Add(1)
}

// tryHold is hold for any goroutine and any time: it reports false, and counts nothing, if the end has come.
func (p *pendingWrites) tryHold() bool {
	for {
		n := p.n.Load()
		if n == 0 {
			return false
		}
		if p.n.CompareAndSwap(n, n+1) {
			p.held.Add(1)
			return true
		}
	}
}

func (p *pendingWrites) letGo() {
	p.held.Add(-1)
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
	return p.n.Load()-p.held.Load() > 1, p.answered.Load()
}

// close has last run once everything is answered, at once if it is. Nothing may be added any more, but by tryHold. last
// must not block.
func (p *pendingWrites) close(last func()) {
	p.last = last
	p.gone()
}
