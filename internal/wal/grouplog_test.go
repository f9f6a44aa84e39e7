package wal

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
)

// entriesOf makes a batch of entries with the given terms.
func entriesOf(first int64, terms ...int64) entry.Batch {
	var b entry.Builder
	b.Reset(first)
	for _, term := range terms {
		b.AppendData(term, []byte("x"))
	}
	return b.Build()
}

// applyAll carries records out on a group that is open.
func applyAll(t *testing.T, records ...*record) *groupLog {
	t.Helper()
	l := &groupLog{number: 7, first: 1}
	opening := new(record)
	encodeState(opening, 7, 0, 0, &extra{name: "g"})
	for i, r := range append([]*record{opening}, records...) {
		require.NoError(t, l.apply(r, position(1, int64(firstBatchOffset+i*block))))
	}
	return l
}

func appendOf(t *testing.T, commit int64, b entry.Batch) *record {
	t.Helper()
	sum, err := entry.Check(b)
	require.NoError(t, err)
	r := new(record)
	encodeEntries(r, 7, b, sum, commit)
	return r
}

func stateOf(commit int64, h HardState) *record {
	r := new(record)
	encodeState(r, 7, commit, 0, &extra{name: "g", hard: h})
	return r
}

// C11: what is known to be committed stays so, whatever later records say of it.
func TestTheCommitIndexOfAGroupDoesNotGoBack(t *testing.T) {
	l := applyAll(t, appendOf(t, 0, entriesOf(1, 1, 1, 1)), stateOf(3, HardState{Term: 1}), stateOf(2, HardState{Term: 2}))
	assert.EqualValues(t, 3, l.commit)
	assert.EqualValues(t, 2, l.hard.Term)
	l = applyAll(t, appendOf(t, 0, entriesOf(1, 1, 1, 1)), stateOf(2, HardState{Term: 1}), appendOf(t, 1, entriesOf(4, 1)))
	assert.EqualValues(t, 2, l.commit)
}

// After a prefix truncation the terms are those of the entries that are left, wherever it cuts.
func TestTermsAfterAPrefixTruncation(t *testing.T) {
	terms := []int64{1, 1, 2, 2, 2, 5, 9, 9}
	for first := int64(1); first <= int64(len(terms))+2; first++ {
		l := applyAll(t, appendOf(t, 0, entriesOf(1, terms[:4]...)), appendOf(t, 0, entriesOf(5, terms[4:]...)))
		cut := new(record)
		encodeNumbers(cut, recPrefix, 7, uint64(first), 3)
		cut.index, cut.prevTerm = first, 3
		require.NoError(t, l.apply(cut, position(1, 100*block)))
		var want []entry.TermRun
		for index := first; index <= int64(len(terms)); index++ {
			if term := terms[index-1]; len(want) == 0 || want[len(want)-1].Term != term {
				want = append(want, entry.TermRun{First: index, Term: term})
			}
		}
		assert.Equal(t, len(want), len(l.runs), "from %d on", first)
		for i, run := range want {
			assert.Equal(t, run, l.runs[i], "from %d on", first)
		}
	}
}

// Entries that take the place of others are found where they are, however near to those.
func TestEntriesBehindATruncationAreIndexedAnew(t *testing.T) {
	at := func(n int) uint64 { return position(1, int64(firstBatchOffset+n*block)) }
	var x index
	x.add(1, at(0))
	x.add(2, at(1))
	x.add(3, at(2))
	require.Len(t, x.points, 1, "the first point is near enough")
	x.cutSuffix(1)
	x.add(2, at(3))
	require.Len(t, x.points, 2)
	assert.Equal(t, point{2, at(3)}, x.points[x.find(2)])
	assert.Equal(t, point{1, at(0)}, x.points[x.find(1)])
	x.add(3, at(4))
	assert.Len(t, x.points, 2, "and this one is near enough again")
}

// D16: what is cut off while it is on its way to the disk is not read from memory any more.
func TestMemoryHidesWhatIsCutOff(t *testing.T) {
	visible := func(m *memLog) (indexes []int64) {
		for _, b := range m.visible() {
			for i := b.batch.First; i <= b.keep; i++ {
				indexes = append(indexes, i)
			}
		}
		return indexes
	}
	for last := int64(0); last <= 6; last++ {
		var m memLog
		m.push(entriesOf(1, 1, 1, 1), 1)
		m.push(entriesOf(4, 1, 1, 1), 2)
		m.cut(last)
		assert.Equal(t, []int64{1, 2, 3, 4, 5, 6}[:last], append([]int64{}, visible(&m)...))
		m.push(entriesOf(last+1, 2, 2), 3)
		assert.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7, 8}[:last+2], visible(&m))
		m.cut(last + 1)
		assert.Equal(t, []int64{1, 2, 3, 4, 5, 6, 7}[:last+1], visible(&m))
		for seq := range uint64(4) {
			m.drop(seq)
		}
		assert.Empty(t, m.visible())
	}
}

// D10: when storage refuses what is pending, a group is again what was placed in the log: what that has cut off is not read.
func TestARefusalLeavesWhatWasPlaced(t *testing.T) {
	cut := new(record)
	encodeNumbers(cut, recSuffix, 7, 1)
	cut.index = 1
	placed := []*record{appendOf(t, 0, entriesOf(1, 1, 1, 1)), cut, appendOf(t, 0, entriesOf(2, 2))}
	for n := 1; n <= len(placed); n++ {
		s := &Store{o: Options{MaxBatch: 1 << 20}}
		g := &Group{s: s, name: "g", number: 7, announced: true, log: *applyAll(t, placed[:n]...)}
		submit := func(q *queue, r *record) {
			c := *r
			s.seq++
			c.g, c.seq = g, s.seq
			f := new(flight)
			f.add(&c)
			q.push(f)
		}
		for _, r := range placed[:n] {
			submit(&s.ring, r)
		}
		last := []int64{3, 1, 2}[n-1]
		submit(&s.pend, appendOf(t, 0, entriesOf(last+1, 3, 3)))
		g.first, g.last = 1, last+2
		g.mem.push(entriesOf(1, 1, 1, 1), 1)
		s.refuse(true, ErrNoSpace)
		assert.EqualValues(t, last, g.last, "%d records are placed", n)
		var visible []int64
		for _, b := range g.mem.visible() {
			for i := b.batch.First; i <= b.keep; i++ {
				visible = append(visible, i)
			}
		}
		assert.Equal(t, []int64{1, 2, 3}[:last], visible, "%d records are placed", n)
		require.Equal(t, 1, s.pend.len())
		assert.ErrorIs(t, s.pend.front().recs[0].err, ErrNoSpace)
	}
}

// D10: a truncation of the prefix goes to what it was to leave, not beyond it: if the entries there are refused, so is it, and does not begin
// the log anew behind them.
func TestARefusalMakesNoCutANewBeginning(t *testing.T) {
	placed := appendOf(t, 0, entriesOf(1, 1, 1, 1))
	s := &Store{o: Options{MaxBatch: 1 << 20}}
	g := &Group{s: s, name: "g", number: 7, announced: true, log: *applyAll(t, placed)}
	g.first, g.last = 1, 3
	for _, r := range []*record{appendOf(t, 0, entriesOf(4, 1, 1, 1)), {typ: recPrefix, index: 6, urgent: true}} {
		require.NoError(t, g.check(r))
		s.seq++
		r.g, r.seq = g, s.seq
		g.submitted(r)
		f := new(flight)
		f.add(r)
		s.pend.push(f)
	}
	require.EqualValues(t, 6, g.first)
	s.refuse(false, ErrNoSpace)
	assert.EqualValues(t, 1, g.first)
	assert.EqualValues(t, 3, g.last)
	s.pend.each(func(f *flight) {
		for _, r := range f.recs {
			assert.ErrorIs(t, r.err, ErrNoSpace)
		}
	})
}
