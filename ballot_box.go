package graft

import (
	"fmt"
	"slices"
	"sync"
)

// ballotBox decides which proposed entries are committed. It is open from the moment
// a node becomes leader until it steps down.
//
// Every entry is judged by the configuration it was proposed under: a majority of
// conf, and of old too while that is joint. Runs of entries that share a configuration
// form an epoch, so an acknowledgement costs O(epochs × voters), not O(entries). The newest epoch that
// commits anything commits all before it, as braft's BallotBox::commit_at does: who
// holds an entry of this term holds all that precede it.
//
// Invariants, while open: committed+1 >= epochs[0].first; epochs are contiguous; nothing
// below first, the leader's first own entry, is committed by counting (Raft thesis
// §3.6.2). committed never decreases, across leaderships too.
//
// Ownership: any goroutine may call any method. mu is a leaf lock.
type ballotBox struct {
	mu        sync.Mutex
	term      int64 // of the leadership; 0 while closed
	first     int64
	committed int64
	acked     map[PeerID]int64
	epochs    []ballotEpoch
	scratch   []int64
}

// ballotEpoch is a run of entries proposed under one configuration.
type ballotEpoch struct {
	first, last int64
	conf, old   Configuration
}

// open starts a leadership whose first own entry is at index first.
func (b *ballotBox) open(term, first int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != 0 || first <= b.committed {
		panic(fmt.Sprintf("graft: ballot box opened at %d in term %d: term %d is open, committed is %d", first, term, b.term, b.committed))
	}
	b.term, b.first, b.acked, b.epochs = term, first, make(map[PeerID]int64), b.epochs[:0]
}

// close forgets everything pending. What was committed until then stays.
func (b *ballotBox) close() (committed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.term, b.acked, b.epochs = 0, nil, nil
	return b.committed
}

// propose registers the entries [first, last] under a configuration.
func (b *ballotBox) propose(first, last int64, e confEntry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := len(b.epochs); n > 0 && sameConf(b.epochs[n-1].conf, e.conf) && sameConf(b.epochs[n-1].old, e.old) {
		b.epochs[n-1].last = last
		return
	}
	b.epochs = append(b.epochs, ballotEpoch{first: first, last: last, conf: e.conf, old: e.old})
}

// ack records that the peer stores the log up to index, durably, as it was in term. It
// returns the commit index, and whether this moved it.
func (b *ballotBox) ack(term int64, peer PeerID, index int64) (committed int64, moved bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	peer = peer.ID()
	if term == 0 || b.term != term || index <= b.acked[peer] {
		return b.committed, false
	}
	b.acked[peer] = index
	for i := len(b.epochs) - 1; i >= 0; i-- {
		e := &b.epochs[i]
		index := min(b.quorumIndex(e), e.last)
		if index < e.first || index <= b.committed {
			continue
		}
		b.committed = index
		b.epochs = slices.Delete(b.epochs, 0, i)
		return index, true
	}
	return b.committed, false
}

// regress forgets what a peer has acknowledged: it has lost it.
func (b *ballotBox) regress(term int64, peer PeerID, index int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if term != 0 && b.term == term && b.acked[peer.ID()] > index {
		b.acked[peer.ID()] = index
	}
}

// follow raises the commit index by what a leader says, and reports whether it moved.
func (b *ballotBox) follow(index int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != 0 || index <= b.committed {
		return false
	}
	b.committed = index
	return true
}

// index returns the commit index.
func (b *ballotBox) index() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.committed
}

func (b *ballotBox) quorumIndex(e *ballotEpoch) int64 {
	index := b.majorityIndex(e.conf)
	if !e.old.Empty() {
		index = min(index, b.majorityIndex(e.old))
	}
	return index
}

// majorityIndex is what most voters of c have acknowledged; 0 if there are no voters.
func (b *ballotBox) majorityIndex(c Configuration) int64 {
	acked := b.scratch[:0]
	for _, p := range c.peers {
		if p.Role != Learner {
			acked = append(acked, b.acked[p.ID()])
		}
	}
	b.scratch = acked
	if len(acked) == 0 {
		return 0
	}
	slices.Sort(acked)
	return acked[(len(acked)-1)/2]
}

// sameConf reports whether two configurations are one and the same value; equal ones
// that are stored twice only make one epoch more.
func sameConf(a, b Configuration) bool {
	return len(a.peers) == len(b.peers) && (len(a.peers) == 0 || &a.peers[0] == &b.peers[0])
}
