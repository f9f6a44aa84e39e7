package graft

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// historyOf makes a history whose base is the first configuration; the others stand at index 10, 20 and so on, in term 1,
// 2 and so on. "a,b/c" is joint: a,b is the new half.
func historyOf(base string, confs ...string) confHistory {
	h := confHistory{base: confAt(base, 0, 0)}
	for i, names := range confs {
		h.append(confAt(names, int64(10*(i+1)), int64(i+1)))
	}
	return h
}

func confAt(names string, index, term int64) confEntry {
	for i, c := range names {
		if c == '/' {
			return confEntry{index: index, term: term, conf: confFrom(names[:i]), old: confFrom(names[i+1:])}
		}
	}
	return confEntry{index: index, term: term, conf: confFrom(names)}
}

// Q11: a configuration governs from its own index on, and what is truncated was never there.
func TestConfHistorySaysWhatGovernsAnIndex(t *testing.T) {
	h := historyOf("a", "a,b", "a,b,c/a,b", "a,b,c")
	for _, test := range []struct {
		index int64
		want  int64
	}{{0, 0}, {9, 0}, {10, 10}, {19, 10}, {20, 20}, {29, 20}, {30, 30}, {1000, 30}} {
		assert.Equal(t, test.want, h.at(test.index).index, "at %d", test.index)
	}
	assert.EqualValues(t, 30, h.last().index)
	for _, test := range []struct{ keep, want int64 }{{30, 30}, {29, 20}, {20, 20}, {15, 10}, {9, 0}, {0, 0}} {
		h.truncateSuffix(test.keep)
		assert.Equal(t, test.want, h.last().index, "cut behind %d", test.keep)
		assert.Equal(t, test.want, h.at(1000).index)
	}
	assert.True(t, h.last().conf.Equal(confFrom("a")), "the base is never cut")
}

func TestConfEntryHasTheVotersAndPeersOfBothHalves(t *testing.T) {
	e := confAt("a,d,el/a,b,cl", 1, 1)
	assert.True(t, e.joint())
	for name, votes := range map[string]bool{"a": true, "b": true, "c": false, "d": true, "e": false, "x": false} {
		assert.Equal(t, votes, e.hasVoter(PeerID{Address: name + ":1"}), name)
	}
	assert.Equal(t, "a,d,el,b,cl", namesOf(e.peers()))
	assert.Equal(t, "a,bl", namesOf(confAt("a,bl/al,b", 1, 1).peers()), "each once, in its new role")
	assert.False(t, confAt("a", 1, 1).joint())
}

// H-12: an override is in force until an entry of its term or a later one is appended, and again if that is cut off.
func TestAnOverrideIsInForceUntilALeaderOfItsTermSpeaks(t *testing.T) {
	h := historyOf("a,b,c", "a,b,c", "a,d,e/a,b,c") // in terms 1 and 2
	h.override = confEntry{term: 5, conf: confFrom("a")}
	inForce := func() string { return namesOf(h.last().conf.peers) }
	assert.Equal(t, "a", inForce(), "joint or not")
	assert.False(t, h.last().joint())
	assert.Equal(t, "a,d,e", namesOf(h.logged().conf.peers), "the log says what it said")
	h.append(confAt("a,b", 30, 4))
	assert.Equal(t, "a", inForce(), "of an earlier term")
	h.append(confAt("a,x", 40, 5))
	assert.Equal(t, "a,x", inForce())
	h.append(confAt("a,y", 50, 7))
	assert.Equal(t, "a,y", inForce())
	h.truncateSuffix(40)
	assert.Equal(t, "a,x", inForce())
	h.truncateSuffix(39)
	assert.Equal(t, "a", inForce(), "it is back")
	h.truncateSuffix(0)
	assert.Equal(t, "a", inForce())
	assert.Equal(t, "a,b,c", namesOf(h.at(25).conf.peers), "what governs an index is the log's business")
	h.override = confEntry{}
	assert.Equal(t, "a,b,c", inForce())
}

// naiveHistory has one configuration per index, and what each question means in plain words.
type naiveHistory struct {
	confs    []confEntry // by index; 0 is the base
	override confEntry
}

func (h *naiveHistory) inForce(at confEntry) confEntry {
	if h.override.term > at.term {
		return h.override
	}
	return at
}

func (h *naiveHistory) last() confEntry { return h.inForce(h.confs[len(h.confs)-1]) }

// votes: some configuration that is in force, or would be if the log were cut somewhere behind the commit index,
// has the peer as a voter. A log that an override rules is no matter of doubt.
func (h *naiveHistory) votes(p PeerID, commit int64) bool {
	if h.override.term > h.confs[len(h.confs)-1].term {
		return h.override.hasVoter(p)
	}
	for _, e := range h.confs[min(commit, int64(len(h.confs)-1)):] {
		if h.inForce(e).hasVoter(p) {
			return true
		}
	}
	return false
}

// removed: the peer was a member once, and neither what is committed nor anything later has it.
func (h *naiveHistory) removed(p PeerID, commit int64) bool {
	has := func(e confEntry) bool { return e.conf.Contains(p) || e.old.Contains(p) }
	commit = min(commit, int64(len(h.confs)-1))
	if h.confs[commit].conf.Empty() || has(h.last()) {
		return false
	}
	return slices.ContainsFunc(h.confs[:commit], has) && !slices.ContainsFunc(h.confs[commit:], has)
}

// Random histories against the naive ones: appends, truncations, overrides.
func TestConfHistoryAgreesWithOneConfigurationPerIndex(t *testing.T) {
	confs := []string{"a", "a,b", "a,b,c", "b,c/a,b", "a,bl,c", "c,d/a,b,c", "c,d", "", "a,b,cl,d"}
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 5))
		base := confAt(confs[rng.IntN(len(confs))], 0, 0)
		h, naive := confHistory{base: base}, naiveHistory{confs: []confEntry{base}}
		term, commit := int64(1), int64(0)
		for step := range 40 {
			last := int64(len(naive.confs) - 1)
			switch rng.IntN(6) {
			case 0:
				term += rng.Int64N(3)
			case 1:
				h.override = confEntry{}
				if rng.IntN(2) == 0 {
					term++
					h.override = confEntry{term: term, conf: confFrom("a,d")}
				}
				naive.override = h.override
			case 2:
				keep := commit + rng.Int64N(last-commit+1)
				h.truncateSuffix(keep)
				naive.confs = naive.confs[:keep+1]
			case 3: // entries of other kinds
				for range rng.IntN(3) {
					naive.confs = append(naive.confs, naive.confs[len(naive.confs)-1])
				}
			case 4:
				e := confAt(confs[rng.IntN(len(confs))], last+1, term)
				if e.conf.Empty() {
					continue
				}
				h.append(e)
				naive.confs = append(naive.confs, e)
			case 5:
				commit += rng.Int64N(last - commit + 1)
			}
			what := fmt.Sprintf("seed %d, step %d", seed, step)
			require.Equal(t, naive.last(), h.last(), what)
			for i := range naive.confs {
				require.Equal(t, naive.confs[i], h.at(int64(i)), "%s, at %d", what, i)
			}
			for _, name := range []string{"a", "b", "c", "d", "x"} {
				p := PeerID{Address: name + ":1"}
				require.Equal(t, naive.votes(p, commit), h.votes(p, commit), "%s: %s votes", what, name)
				require.Equal(t, naive.removed(p, commit), h.removed(p, commit), "%s: %s is removed", what, name)
			}
		}
	}
}

// What is cut off at the front leaves the configuration that was in force there, joint or not, with its index.
func TestConfHistoryIsCutAtTheFront(t *testing.T) {
	for first := int64(1); first <= 40; first++ {
		whole, cut := historyOf("a", "a,b", "a,b,c/a,b", "a,b,c"), historyOf("a", "a,b", "a,b,c/a,b", "a,b,c")
		cut.truncatePrefix(first)
		for index := first - 1; index <= 40; index++ {
			assert.Equal(t, whole.at(index), cut.at(index), "at %d, cut before %d", index, first)
		}
		assert.Equal(t, whole.last(), cut.last())
		for keep := int64(40); keep >= first-1; keep-- {
			whole.truncateSuffix(keep)
			cut.truncateSuffix(keep)
			assert.Equal(t, whole.last(), cut.last(), "cut before %d and behind %d", first, keep)
		}
	}
}
