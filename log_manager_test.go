package graft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

// heldStorage holds everything back, and notes the commit indexes that come with it.
type heldStorage struct {
	LogStorage
	commits []int64
	done    []func(error)
}

func (s *heldStorage) Recovered() wal.Recovered { return wal.Recovered{First: 1} }

func (s *heldStorage) Append(_ entry.Batch, commit int64, done func(error)) {
	s.commits, s.done = append(s.commits, commit), append(s.done, done)
}

func (s *heldStorage) TruncateSuffix(_ int64, done func(error)) { s.done = append(s.done, done) }

// settle answers what is held back.
func (s *heldStorage) settle(err error) {
	done := s.done
	s.done = nil
	for _, d := range done {
		d(err)
	}
}

// A commit index is stored only with entries that storage is known to hold. It may yet refuse a truncation, and then
// what it holds under that index is what was cut off.
func TestCommitIsNotStoredBeforeItsEntries(t *testing.T) {
	s := &heldStorage{}
	l, err := newLogManager(s, Configuration{}, logBase{}, 1<<20)
	require.NoError(t, err)
	l.onDurable, l.onError, l.onCut = func(int64, int64, []pendingAck) {}, func(error) {}, func() {}
	add := func(term, commit int64) {
		t.Helper()
		var b entry.Builder
		b.Reset(l.lastIndex() + 1)
		b.AppendData(term, []byte("entry"))
		batch := b.Build()
		sum, err := entry.Check(batch)
		require.NoError(t, err)
		require.NoError(t, l.append(batch, sum, commit))
	}
	add(1, 0)
	add(1, 1)
	s.settle(nil)
	add(1, 2)
	assert.Equal(t, []int64{0, 0, 2}, s.commits)
	s.settle(nil)
	l.truncateSuffix(2)
	add(2, 3)
	s.settle(fmt.Errorf("refused: %w", wal.ErrNoSpace))
	l.retry(3)
	assert.Len(t, s.commits, 3, "entry 3 is that of term 1 there")
	s.settle(nil)
	l.retry(3)
	assert.EqualValues(t, 2, s.commits[3], "entry 3 may yet be refused")
	s.settle(nil)
	add(2, 3)
	assert.EqualValues(t, 3, s.commits[4])
}

// fullStorage refuses entries while it has no space.
type fullStorage struct {
	LogStorage
	full bool
}

func (s *fullStorage) Append(b entry.Batch, commit int64, done func(error)) {
	if s.full {
		done(fmt.Errorf("append: %w", wal.ErrNoSpace))
		return
	}
	s.LogStorage.Append(b, commit, done)
}

// logWithOracle is a log on real storage, and beside it a list of what it should hold.
type logWithOracle struct {
	*logManager
	t     *testing.T
	sim   *actor.Sim
	store *fullStorage
	terms []int64 // [i] is of entry i+1
}

// newLogWithOracle makes an empty log that is a group of its own in storage.
func newLogWithOracle(t *testing.T, sim *actor.Sim, storage *wal.Store, group string, maxCache int) *logWithOracle {
	g, err := storage.Group(group)
	require.NoError(t, err)
	store := &fullStorage{LogStorage: g}
	l, err := newLogManager(store, Configuration{}, logBase{}, maxCache)
	require.NoError(t, err)
	l.onDurable, l.onCut = func(int64, int64, []pendingAck) {}, func() { l.retry(0) }
	l.onError = func(err error) {
		if !errors.Is(err, wal.ErrNoSpace) {
			t.Errorf("storage: %v", err)
		}
	}
	return &logWithOracle{logManager: l, t: t, sim: sim, store: store}
}

// payload tells an entry from all others of the same log.
func (l *logWithOracle) payload(index int64) string {
	return fmt.Sprintf("entry %d of term %d", index, l.terms[index-1])
}

// add appends a batch of entries of a term.
func (l *logWithOracle) add(term int64, entries int) {
	l.t.Helper()
	var b entry.Builder
	b.Reset(int64(len(l.terms)) + 1)
	for range entries {
		l.terms = append(l.terms, term)
		b.AppendData(term, []byte(l.payload(int64(len(l.terms)))))
	}
	batch := b.Build()
	sum, err := entry.Check(batch)
	require.NoError(l.t, err)
	require.NoError(l.t, l.append(batch, sum, 0))
}

// cutBehind drops the entries behind one.
func (l *logWithOracle) cutBehind(keep int64) {
	l.truncateSuffix(keep)
	l.terms = l.terms[:keep]
}

// pass gives storage the time to write what it was given.
func (l *logWithOracle) pass() { l.sim.RunFor(time.Second) }

// check reads all of the log in every way, from every entry on, in pieces of several sizes.
func (l *logWithOracle) check(when string) {
	l.t.Helper()
	last := int64(len(l.terms))
	require.Equal(l.t, last, l.lastIndex(), when)
	for _, most := range []int{1, 60, 1 << 20} {
		for first := int64(1); first <= last+1; first++ {
			l.readsFrom(first, most, when)
		}
	}
	for index := int64(1); index <= last; index++ {
		require.Equal(l.t, l.terms[index-1], l.term(index), "%s: term of %d", when, index)
	}
	require.Zero(l.t, l.term(last+1), "%s: an entry behind the last one", when)
	require.Equal(l.t, l.held(), l.cacheBytes, "%s: bytes in memory", when)
	entries, bytes := l.behind.load()
	for index := l.durableIndex() + 1; index <= last; index++ {
		entries, bytes = entries-1, bytes-int64(len(l.payload(index)))
	}
	require.Zero(l.t, entries, "%s: entries that are not durable", when)
	require.Zero(l.t, bytes, "%s: bytes that are not durable", when)
}

// readsFrom reads from an entry to the end of the log.
func (l *logWithOracle) readsFrom(first int64, most int, when string) {
	l.t.Helper()
	next := first
	for next <= int64(len(l.terms)) {
		batches, err := l.entries(nil, next, most)
		require.NoError(l.t, err, "%s: from %d", when, next)
		require.NotEmpty(l.t, batches, "%s: from %d", when, next)
		for _, b := range batches {
			next = l.compare(b, next, when)
		}
	}
	batches, err := l.entries(nil, next, most)
	require.NoError(l.t, err, when)
	require.Empty(l.t, batches, "%s: entries behind the last one", when)
}

// compare compares entries, of which the first should have the given index, with the oracle, and returns the index behind them.
func (l *logWithOracle) compare(b entry.Batch, next int64, when string) int64 {
	l.t.Helper()
	for it := b.Iter(); ; {
		e, ok := it.Next()
		if !ok {
			return next
		}
		require.Equal(l.t, next, e.Index, when)
		require.LessOrEqual(l.t, e.Index, int64(len(l.terms)), "%s: %q, behind the last entry", when, e.Data)
		require.Equal(l.t, l.payload(e.Index), string(e.Data), when)
		require.Equal(l.t, l.terms[e.Index-1], e.Term, when)
		next++
	}
}

// stored compares what storage holds with the oracle.
func (l *logWithOracle) stored(when string) {
	l.t.Helper()
	require.Equal(l.t, int64(len(l.terms)), l.durableIndex(), "%s: durable", when)
	for next := int64(1); next <= int64(len(l.terms)); {
		b, err := l.store.Read(next, 1<<20)
		require.NoError(l.t, err, when)
		next = l.compare(b, next, when+", in storage")
	}
}

// D16: wherever the log is cut, and however far storage has come by then, nobody reads what was cut off: not from memory, not from storage, not
// right behind the cut, nor when others have taken its place.
func TestWhatWasCutOffIsNotRead(t *testing.T) {
	sim := actor.NewSim(1)
	storage, err := wal.Open(wal.Options{
		FS: vfs.NewMem(), Dir: "/log", Exec: sim.NewProcess(1), Identity: "a:1", SegmentSize: 256 << 10, Rand: sim.Rand().Uint64,
	})
	require.NoError(t, err)
	for _, state := range []struct {
		name  string
		begin func(l *logWithOracle)
	}{
		{"durable", func(l *logWithOracle) { l.add(1, 4); l.add(1, 4); l.pass() }},
		{"the second half on its way to the disk", func(l *logWithOracle) { l.add(1, 4); l.pass(); l.add(1, 4) }},
		{"on its way to the disk", func(l *logWithOracle) { l.add(1, 4); l.add(1, 4) }},
		{"refused for want of space", func(l *logWithOracle) { l.store.full = true; l.add(1, 4); l.add(1, 4) }},
		{"the second half refused", func(l *logWithOracle) { l.add(1, 4); l.pass(); l.store.full = true; l.add(1, 4) }},
	} {
		for _, maxCache := range []int{1 << 20, 1} {
			for keep := range int64(9) {
				group := fmt.Sprintf("%s, %d bytes of memory, cut behind %d", state.name, maxCache, keep)
				l := newLogWithOracle(t, sim, storage, group, maxCache)
				state.begin(l)
				l.check(group)
				l.cutBehind(keep)
				l.check(group + ": right behind the cut")
				l.add(2, 3)
				l.check(group + ": with others in their place")
				l.store.full = false
				l.retry(0)
				l.pass()
				l.check(group + ": all of it written")
				l.stored(group)
				l.cutBehind(keep + 1) // of what has taken the place
				l.check(group + ": cut again")
			}
		}
	}
}
