package graft

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// naiveBox is the oracle: a ballot per entry, as braft keeps them. The last entry whose ballot
// is won commits all before it.
type naiveBox struct {
	first, committed int64
	confs            []confEntry
	acked            map[PeerID]int64
}

func (b *naiveBox) ack(p PeerID, index int64) {
	b.acked[p] = max(b.acked[p], index)
	for i, e := range b.confs {
		at := b.first + int64(i)
		v := newBallot(e)
		for q, acked := range b.acked {
			if acked >= at {
				v.grant(q)
			}
		}
		if v.won() {
			b.committed = max(b.committed, at)
		}
	}
}

func peersOf(names ...string) Configuration {
	var ps []PeerID
	for _, n := range names {
		ps = append(ps, PeerID{Address: n + ":1"})
	}
	c, err := NewConfiguration(ps...)
	if err != nil {
		panic(err)
	}
	return c
}

// anyRoles draws a configuration of some of the peers, of whom some are learners. It may lack voters.
func anyRoles(rng *rand.Rand, names []string) Configuration {
	var ps []PeerID
	for _, n := range names {
		switch rng.IntN(3) {
		case 0:
			ps = append(ps, PeerID{Address: n + ":1"})
		case 1:
			if rng.IntN(2) == 0 {
				ps = append(ps, PeerID{Address: n + ":1", Role: Learner})
			}
		}
	}
	c, err := NewConfiguration(ps...)
	if err != nil {
		panic(err)
	}
	return c
}

// M4, M20, E9, H-11: entries under one configuration after the other, joint ones among them, with learners, demotions, and leaders
// that are no voters any more; acknowledgements in any order, late ones and such of strangers too.
func TestBallotBoxAgreesWithOneBallotPerEntry(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e"}
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 7))
		var box ballotBox
		first := 1 + rng.Int64N(100)
		require.NoError(t, box.open(3, first))
		naive := naiveBox{first: first, committed: 0, acked: map[PeerID]int64{}}
		last := first - 1
		conf := confEntry{conf: peersOf(names[:1+rng.IntN(5)]...)}
		for range 60 {
			switch rng.IntN(4) {
			case 0:
				switch next := anyRoles(rng, names); {
				case len(next.Voters()) == 0:
				case conf.joint():
					conf = confEntry{conf: conf.conf}
				case next.votersDiffering(conf.conf) > 1:
					conf = confEntry{conf: next, old: conf.conf}
				default:
					conf = confEntry{conf: next}
				}
				n := 1 + rng.Int64N(4)
				box.propose(last+1, last+n, conf)
				for range n {
					naive.confs = append(naive.confs, conf)
				}
				last += n
			default:
				p := PeerID{Address: append(names, "x")[rng.IntN(6)] + ":1"}
				index := first - 5 + rng.Int64N(last-first+6) // nobody acknowledges what was not proposed
				box.ack(3, p, 0, index)
				naive.ack(p, index)
			}
			require.Equal(t, naive.committed, box.index(), "seed %d", seed)
		}
	}
}

// A peer that has lost what it acknowledged does not count for it any more, whatever answers of its earlier life still say;
// what is committed stays so.
func TestBallotBoxForgetsWhatAPeerHasLost(t *testing.T) {
	var box ballotBox
	a, b := PeerID{Address: "a:1"}, PeerID{Address: "b:1"}
	require.NoError(t, box.open(2, 1))
	box.propose(1, 10, confEntry{conf: peersOf("a", "b", "c")})
	first := box.begin(2, b)
	box.ack(2, a, 0, 5)
	box.ack(2, b, first, 8)
	assert.EqualValues(t, 8, box.acknowledgedBy(b))
	assert.EqualValues(t, 5, box.index())

	second, ok := box.renew(2, b, first)
	assert.True(t, ok)
	_, ok = box.renew(2, b, first)
	assert.False(t, ok, "that life has ended")
	box.ack(2, b, first, 9)
	box.ack(2, a, 0, 10)
	assert.Zero(t, box.acknowledgedBy(b))
	assert.EqualValues(t, 5, box.index())
	assert.NotEqual(t, second, box.begin(1, b))
	_, ok = box.renew(1, b, second)
	assert.False(t, ok)
	box.ack(2, b, second, 9)
	assert.EqualValues(t, 9, box.index(), "a life that begins in another term ends none in this")
}

// What a peer that was removed answers late does not count, not even when it belongs to the group again.
func TestBallotBoxForgetsRemovedPeers(t *testing.T) {
	var box ballotBox
	a, b := PeerID{Address: "a:1"}, PeerID{Address: "b:1"}
	require.NoError(t, box.open(2, 1))
	box.propose(1, 10, confEntry{conf: peersOf("a", "b", "c")})
	life := box.begin(2, b)
	box.ack(2, a, 0, 10)
	box.forget(2, b)
	box.ack(2, b, life, 10)
	_, ok := box.renew(2, b, life)
	assert.False(t, ok)
	again := box.begin(2, b)
	box.ack(2, b, life, 10)
	assert.Zero(t, box.index())
	_, ok = box.renew(2, b, life)
	assert.False(t, ok)
	box.ack(2, b, again, 10)
	assert.EqualValues(t, 10, box.index())
}

// shape is a configuration by numbers: of the voters of the new half, of those of the old one (0: it is not joint),
// and of those in both.
type shape struct{ voters, old, both int }

// shapes are all up to five voters in each half.
func shapes(most int, visit func(s shape)) {
	for voters := 1; voters <= most; voters++ {
		for old := range most + 1 {
			for both := range min(voters, old) + 1 {
				visit(shape{voters, old, both})
			}
		}
	}
}

// peers is how many voters there are in both halves together. The first ones are in the new half, the last ones in
// the old one.
func (s shape) peers() int { return s.voters + s.old - s.both }

func (s shape) entry() confEntry {
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}[:s.peers()]
	e := confEntry{conf: peersOf(names[:s.voters]...)}
	if s.old > 0 {
		e.old = peersOf(names[s.peers()-s.old:]...)
	}
	return e
}

func (s shape) voter(i int) PeerID { return PeerID{Address: string(rune('a'+i)) + ":1"} }

// enough reports whether a set of voters, as bits, has most of each half. It counts bit by bit.
func (s shape) enough(set uint) bool {
	in := func(from, to int) (n int) {
		for i := from; i < to; i++ {
			if set&(1<<i) != 0 {
				n++
			}
		}
		return n
	}
	if 2*in(0, s.voters) <= s.voters {
		return false
	}
	return s.old == 0 || 2*in(s.peers()-s.old, s.peers()) > s.old
}

// E9, M20: all sets of yes-votes, and of acknowledgements, in all configurations with up to five voters in each half.
func TestMajoritiesAgainstBruteForce(t *testing.T) {
	cases := 0
	shapes(5, func(s shape) {
		e := s.entry()
		for set := range uint(1) << s.peers() {
			votes := newBallot(e)
			var box ballotBox
			require.NoError(t, box.open(1, 1))
			box.propose(1, 1, e)
			for i := range s.peers() {
				if set&(1<<i) == 0 {
					continue
				}
				sofar := s.enough(set & (2<<i - 1))
				require.Equal(t, sofar, votes.grant(s.voter(i)), "%+v, votes %b up to %d", s, set, i)
				box.ack(1, s.voter(i), 0, 1)
				require.Equal(t, sofar, box.index() == 1, "%+v, acknowledged %b up to %d", s, set, i)
			}
			require.Equal(t, s.enough(set), votes.won(), "%+v, votes %b", s, set)
			cases++
		}
	})
	assert.Greater(t, cases, 7_000)
}

// Votes of replicas that may have forgotten something count only if nobody else could know better: all voters say yes.
func TestWeakVotesAgainstBruteForce(t *testing.T) {
	const no, weak, full = 0, 1, 2
	shapes(3, func(s shape) {
		all := 1
		for range s.peers() {
			all *= 3
		}
		for combination := range all {
			votes := newBallot(s.entry())
			var sure uint
			everybody, anyWeak := true, false
			for i, rest := 0, combination; i < s.peers(); i, rest = i+1, rest/3 {
				switch rest % 3 {
				case no:
					everybody = false
				case weak:
					anyWeak = true
					votes.grantWeak(s.voter(i))
				case full:
					sure |= 1 << i
					votes.grant(s.voter(i))
				}
			}
			votes.grantWeak(PeerID{Address: "x:1"})
			want := s.enough(sure) || everybody && anyWeak
			require.Equal(t, want, votes.won(), "%+v, votes %d", s, combination)
		}
	})
}

func TestBallotBoxCountsOnlyItsTermAndItsOwnEntries(t *testing.T) {
	var box ballotBox
	require.NoError(t, box.open(5, 10))
	box.propose(10, 11, confEntry{conf: peersOf("a", "b", "c")})
	a, b := PeerID{Address: "a:1"}, PeerID{Address: "b:1"}
	box.ack(4, a, 0, 11)
	box.ack(4, b, 0, 11)
	assert.Zero(t, box.index(), "acknowledgements of an earlier term")
	box.ack(5, a, 0, 9)
	box.ack(5, b, 0, 9)
	assert.Zero(t, box.index(), "entries of earlier terms are not counted (Raft paper, figure 8)")
	box.ack(5, a, 0, 10)
	index, moved := box.ack(5, b, 0, 11)
	assert.True(t, moved)
	assert.EqualValues(t, 10, index)
	assert.EqualValues(t, 10, box.close())
	_, moved = box.ack(5, a, 0, 11)
	assert.False(t, moved, "closed")
	assert.False(t, box.follow(3), "the commit index never goes back")
}

func TestBallotBoxIgnoresStrangersAndLearners(t *testing.T) {
	var box ballotBox
	require.NoError(t, box.open(1, 1))
	conf := MustParseConfiguration("a:1,b:1,c:1:0:2")
	box.propose(1, 1, confEntry{conf: conf})
	box.ack(1, PeerID{Address: "a:1"}, 0, 1)
	box.ack(1, PeerID{Address: "c:1"}, 0, 1)
	box.ack(1, PeerID{Address: "x:1"}, 0, 1)
	assert.Zero(t, box.index())
	box.ack(1, PeerID{Address: "b:1"}, 0, 1)
	assert.EqualValues(t, 1, box.index())
}
