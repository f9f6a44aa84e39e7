package graft

import (
	"fmt"
	"slices"
	"sync"

	"github.com/graft-raft/graft/internal/quorum"
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
	lives     map[PeerID]uint64 // the number of each follower's present life
	lastLife  uint64
	epochs    []ballotEpoch
	scratch   []int64
}

// ballotEpoch is a run of entries proposed under one configuration.
type ballotEpoch struct {
	first, last int64
	conf, old   Configuration
}

// open starts a leadership whose first own entry is at index first. It refuses if that is committed: then the log lacks
// what a leader must hold, whoever has said that it was committed.
func (b *ballotBox) open(term, first int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.term != 0 || first <= b.committed {
		return fmt.Errorf("leadership begins at %d in term %d, but %d is committed, and term %d not over", first, term, b.committed, b.term)
	}
	b.term, b.first, b.epochs = term, first, b.epochs[:0]
	b.acked, b.lives = make(map[PeerID]int64), make(map[PeerID]uint64)
	return nil
}

// close forgets everything pending. What was committed until then stays.
func (b *ballotBox) close() (committed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.term, b.acked, b.lives, b.epochs = 0, nil, nil, nil
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

// ack records that the peer stores the log up to index, durably, as it was in term, if that is said of its present
// life; the leader's own disk has one only, number 0. It returns the commit index, and whether this moved it.
func (b *ballotBox) ack(term int64, peer PeerID, life uint64, index int64) (committed int64, moved bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	peer = peer.ID()
	if term == 0 || b.term != term || b.lives[peer] != life || index <= b.acked[peer] {
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

// begin starts the life of a follower that joins. Nothing that it acknowledged before counts any more, nor what an answer
// may still say of that.
func (b *ballotBox) begin(term int64, peer PeerID) (life uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.beginLocked(term, peer)
}

// renew starts another life of a follower that has lost its disk, in place of the one that the caller knows of. It refuses
// if that is not the present one: the peer was let go meanwhile, and may have joined again.
func (b *ballotBox) renew(term int64, peer PeerID, life uint64) (next uint64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if term == 0 || b.term != term || b.lives[peer.ID()] != life {
		return life, false
	}
	return b.beginLocked(term, peer), true
}

// beginLocked is begin. The caller holds mu.
func (b *ballotBox) beginLocked(term int64, peer PeerID) (life uint64) {
	b.lastLife++
	if term != 0 && b.term == term {
		delete(b.acked, peer.ID())
		b.lives[peer.ID()] = b.lastLife
	}
	return b.lastLife
}

// forget forgets a peer that does not belong to the group any more.
func (b *ballotBox) forget(term int64, peer PeerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if term != 0 && b.term == term {
		delete(b.acked, peer.ID())
		delete(b.lives, peer.ID())
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

// acknowledgedBy returns what a peer is known to store; 0 while the box is closed.
func (b *ballotBox) acknowledgedBy(peer PeerID) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.acked[peer.ID()]
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
	return quorum.CommittedIndex(acked)
}

// sameConf reports whether two configurations are one and the same value; equal ones
// that are stored twice only make one epoch more.
func sameConf(a, b Configuration) bool {
	return len(a.peers) == len(b.peers) && (len(a.peers) == 0 || &a.peers[0] == &b.peers[0])
}
