package graft

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/election"
)

// An entry was committed in term 1, behind one that all had. Since then any machines have lost their disks, but at least one that holds the entry has
// not. In all configurations with up to three voters in each half, joint ones too, for all such pasts: nobody is elected
// who lacks the entry, though everybody votes for it who may; and who holds it is elected if all vote.
func TestVotesOfWipedMachinesAgainstAllPasts(t *testing.T) {
	const lacks, holds, wiped = 0, 1, 2
	cases := 0
	shapes(3, func(s shape) {
		pasts := 1
		for range s.peers() {
			pasts *= 3
		}
		for past := range pasts {
			state := make([]int, s.peers())
			var left, held uint // who holds the entry, and who may have held it when it was committed
			for i, rest := 0, past; i < s.peers(); i, rest = i+1, rest/3 {
				state[i] = rest % 3
				if state[i] == holds {
					left |= 1 << i
				}
				if state[i] != lacks {
					held |= 1 << i
				}
			}
			if left == 0 || !s.enough(held) {
				continue
			}
			cases++
			for candidate := range s.peers() {
				won := electedBy(s, candidate, func(i int) election.Voter {
					v := election.Voter{Term: 2, Last: election.Position{Term: 1, Index: 1}, Waiting: state[i] == wiped}
					switch {
					case state[i] == holds:
						v.Last.Index = 2
					case state[i] == wiped && i != candidate: // a candidate has begun to copy the log
						v.Last = election.Position{}
					}
					return v
				})
				require.Equal(t, state[candidate] == holds, won, "%+v: states %v, candidate %d", s, state, candidate)
			}
		}
	})
	assert.Greater(t, cases, 900)
}

// electedBy has everybody vote that the rules allow to, the candidate first.
func electedBy(s shape, candidate int, voter func(i int) election.Voter) bool {
	votes, r := newBallot(s.entry()), election.Request{Term: 2, Last: voter(candidate).Last}
	for k := range s.peers() {
		i := (candidate + k) % s.peers()
		v := voter(i)
		switch {
		case !v.Vote(r):
		case v.Weak(r):
			votes.grantWeak(s.voter(i))
		default:
			votes.grant(s.voter(i))
		}
	}
	return votes.won()
}

// What a peer acknowledged before it was removed counts for no entry that is proposed once it is a member again: those are behind
// all that it can have acknowledged then. So it makes no difference for what is committed whether it is
// forgotten, nor when an answer of then comes late. Changes follow each other as a leader makes them: the next one begins when the one before is committed.
func TestEarlierLivesOfPeersCommitNothing(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e"}
	readmitted := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 11))
		lives := newLives(rng, names)
		for range 200 {
			switch rng.IntN(8) {
			case 0:
				lives.propose(1 + rng.Int64N(5))
			case 1:
				lives.change(anyRoles(rng, names))
			case 2:
				lives.late()
			default:
				lives.acknowledge(PeerID{Address: names[rng.IntN(len(names))] + ":1"})
			}
			require.Equal(t, lives.forgets.index(), lives.remembers.index(), "seed %d", seed)
		}
		readmitted += lives.readmitted
	}
	assert.Greater(t, readmitted, 300)
}

// lives are peers that come and go under one leader, each time without what they had before.
type lives struct {
	rng                *rand.Rand
	names              []string
	forgets, remembers ballotBox // one forgets who is removed, the other does not, and hears from it
	conf               confEntry
	confAt, last       int64
	now, before        map[PeerID]int64 // what they hold, and held when they were last removed
	readmitted         int
}

func newLives(rng *rand.Rand, names []string) *lives {
	l := &lives{rng: rng, names: names, conf: confEntry{conf: peersOf(names[:1+rng.IntN(5)]...)},
		now: make(map[PeerID]int64), before: make(map[PeerID]int64)}
	l.forgets.open(1, 1)
	l.remembers.open(1, 1)
	l.restate()
	return l
}

func (l *lives) propose(n int64) {
	l.forgets.propose(l.last+1, l.last+n, l.conf)
	l.remembers.propose(l.last+1, l.last+n, l.conf)
	l.last += n
}

// restate proposes the configuration itself.
func (l *lives) restate() {
	l.confAt = l.last + 1
	l.propose(1)
}

// change begins the next change, or goes on with one, if the latest configuration is committed.
func (l *lives) change(next Configuration) {
	switch {
	case l.forgets.index() < l.confAt:
		return
	case l.conf.joint():
		l.conf = confEntry{conf: l.conf.conf}
	case len(next.Voters()) == 0:
		return
	default:
		l.release()
		for _, p := range next.minus(l.conf.conf) {
			if l.before[p.ID()] > 0 {
				l.readmitted++
			}
		}
		old := l.conf.conf
		l.conf = confEntry{conf: next}
		if next.votersDiffering(old) > 1 {
			l.conf.old = old
		}
	}
	l.restate()
}

// release lets those go who do not belong to the group, and takes their disks away.
func (l *lives) release() {
	for _, name := range l.names {
		if p := (PeerID{Address: name + ":1"}); !l.conf.conf.Contains(p) && l.now[p] > 0 {
			l.before[p], l.now[p] = l.now[p], 0
			l.forgets.forget(1, p)
		}
	}
}

// acknowledge has a peer hold more than before, and say so. Those who were removed and know nothing of it go on.
func (l *lives) acknowledge(p PeerID) {
	if l.now[p] == 0 && !l.conf.conf.Contains(p) && !l.conf.old.Contains(p) {
		return
	}
	l.now[p] = max(l.now[p], 1+l.rng.Int64N(l.last))
	l.forgets.ack(1, p, 0, l.now[p])
	l.remembers.ack(1, p, 0, l.now[p])
}

// late has answers of earlier lives arrive.
func (l *lives) late() {
	for _, name := range l.names {
		if p := (PeerID{Address: name + ":1"}); l.before[p] > 0 {
			l.remembers.ack(1, p, 0, 1+l.rng.Int64N(l.before[p]))
		}
	}
}
