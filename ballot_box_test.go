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

func TestBallotBoxAgreesWithOneBallotPerEntry(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e"}
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 7))
		var box ballotBox
		first := 1 + rng.Int64N(100)
		box.open(3, first)
		naive := naiveBox{first: first, committed: 0, acked: map[PeerID]int64{}}
		last := first - 1
		conf := confEntry{conf: peersOf(names[:1+rng.IntN(5)]...)}
		for range 60 {
			switch rng.IntN(4) {
			case 0:
				switch rng.IntN(4) {
				case 0:
					conf = confEntry{conf: peersOf(names[rng.IntN(3):]...), old: conf.conf}
				case 1:
					conf = confEntry{conf: conf.conf}
				}
				n := 1 + rng.Int64N(4)
				box.propose(last+1, last+n, conf)
				for range n {
					naive.confs = append(naive.confs, conf)
				}
				last += n
			default:
				p := PeerID{Address: names[rng.IntN(5)] + ":1"}
				index := first - 5 + rng.Int64N(last-first+6) // nobody acknowledges what was not proposed
				box.ack(3, p, index)
				naive.ack(p, index)
			}
			require.Equal(t, naive.committed, box.index(), "seed %d", seed)
		}
	}
}

func TestBallotBoxCountsOnlyItsTermAndItsOwnEntries(t *testing.T) {
	var box ballotBox
	box.open(5, 10)
	box.propose(10, 11, confEntry{conf: peersOf("a", "b", "c")})
	a, b := PeerID{Address: "a:1"}, PeerID{Address: "b:1"}
	box.ack(4, a, 11)
	box.ack(4, b, 11)
	assert.Zero(t, box.index(), "acknowledgements of an earlier term")
	box.ack(5, a, 9)
	box.ack(5, b, 9)
	assert.Zero(t, box.index(), "entries of earlier terms are not counted (Raft paper, figure 8)")
	box.ack(5, a, 10)
	index, moved := box.ack(5, b, 11)
	assert.True(t, moved)
	assert.EqualValues(t, 10, index)
	assert.EqualValues(t, 10, box.close())
	_, moved = box.ack(5, a, 11)
	assert.False(t, moved, "closed")
	assert.False(t, box.follow(3), "the commit index never goes back")
}

func TestBallotBoxIgnoresStrangersAndLearners(t *testing.T) {
	var box ballotBox
	box.open(1, 1)
	conf := MustParseConfiguration("a:1,b:1,c:1:0:2")
	box.propose(1, 1, confEntry{conf: conf})
	box.ack(1, PeerID{Address: "a:1"}, 1)
	box.ack(1, PeerID{Address: "c:1"}, 1)
	box.ack(1, PeerID{Address: "x:1"}, 1)
	assert.Zero(t, box.index())
	box.ack(1, PeerID{Address: "b:1"}, 1)
	assert.EqualValues(t, 1, box.index())
}

func TestConfHistoryIsUndoneByTruncation(t *testing.T) {
	h := confHistory{base: confEntry{conf: peersOf("a")}}
	h.append(confEntry{index: 3, conf: peersOf("a", "b")})
	h.append(confEntry{index: 7, conf: peersOf("a", "b", "c")})
	assert.EqualValues(t, 0, h.at(2).index)
	assert.EqualValues(t, 3, h.at(3).index)
	assert.EqualValues(t, 3, h.at(6).index)
	assert.EqualValues(t, 7, h.last().index)
	h.truncateSuffix(6)
	assert.EqualValues(t, 3, h.last().index)
	previous, ok := h.previous()
	assert.True(t, ok)
	assert.EqualValues(t, 0, previous.index)
	h.truncateSuffix(0)
	assert.True(t, h.last().conf.Equal(peersOf("a")))
}

func TestConfigurationCtxFinishesAJointChange(t *testing.T) {
	var c ConfigurationCtx
	a := c.Lead(peersOf("b"), peersOf("a"))
	assert.Equal(t, StageJoint, c.Stage())
	assert.True(t, a.propose.joint())
	a = c.Committed()
	assert.Equal(t, StageStable, c.Stage())
	assert.False(t, a.propose.joint(), "C<new> follows only now")
	assert.True(t, c.Committed().done)
	assert.Equal(t, StageNone, c.Stage())
	c.Abort()
	assert.Panics(t, func() { c.Committed() }, "what the table does not have cannot happen")
}
