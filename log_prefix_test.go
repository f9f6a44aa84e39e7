package graft

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

// prefixLog is a log of which a test says when storage answers, and what.
type prefixLog struct {
	*logManager
	t       *testing.T
	s       *scriptedStorage
	errors  []error
	durable int64
}

// scriptedStorage holds everything back, and remembers it.
type scriptedStorage struct {
	LogStorage
	found wal.Recovered
	ops   []string
	done  []func(error)
}

func (s *scriptedStorage) Recovered() wal.Recovered { return s.found }

func (s *scriptedStorage) add(done func(error), format string, args ...any) {
	s.ops, s.done = append(s.ops, fmt.Sprintf(format, args...)), append(s.done, done)
}

func (s *scriptedStorage) Append(b entry.Batch, _ int64, done func(error)) {
	s.add(done, "append %d-%d", b.First, b.Last())
}

func (s *scriptedStorage) TruncateSuffix(last int64, done func(error)) {
	s.add(done, "cut behind %d", last)
}

func (s *scriptedStorage) TruncatePrefix(first, term int64, done func(error)) {
	s.add(done, "cut before %d, term %d", first, term)
}

// take returns what was submitted since, and has it answered.
func (s *scriptedStorage) take(errs ...error) []string {
	ops, done := s.ops, s.done
	s.ops, s.done = nil, nil
	for i, d := range done {
		var err error
		if i < len(errs) {
			err = errs[i]
		}
		d(err)
	}
	return ops
}

func newPrefixLog(t *testing.T, found wal.Recovered, base logBase) *prefixLog {
	s := &scriptedStorage{found: found}
	l, err := newLogManager(s, Configuration{}, base, 1<<20)
	require.NoError(t, err)
	p := &prefixLog{logManager: l, t: t, s: s}
	l.onDurable = func(index, _ int64, _ []pendingAck) { p.durable = index }
	l.onError, l.onCut = func(err error) { p.errors = append(p.errors, err) }, func() { l.retry(0) }
	return p
}

// add appends entries of a term, the first of which is a configuration if peers are given.
func (p *prefixLog) add(term int64, count int, peers ...string) {
	p.t.Helper()
	var b entry.Builder
	b.Reset(p.lastIndex() + 1)
	if len(peers) > 0 {
		b.AppendConf(term, peers, nil)
		count--
	}
	for range count {
		b.AppendData(term, []byte("entry"))
	}
	batch := b.Build()
	sum, err := entry.Check(batch)
	require.NoError(p.t, err)
	require.NoError(p.t, p.append(batch, sum, 0))
}

// What is cut off at the front is known by the term of its last entry and the configuration in force there, and no
// more than is durable goes.
func TestTheLogIsCutAtTheFront(t *testing.T) {
	p := newPrefixLog(t, wal.Recovered{First: 1}, logBase{})
	p.add(1, 3, "a:1")
	p.add(2, 3, "a:1", "b:1")
	p.s.take()
	p.add(2, 2)
	p.truncatePrefix(20)
	first, last := p.bounds()
	assert.EqualValues(t, 7, first, "8 is not durable yet")
	assert.EqualValues(t, 8, last)
	assert.Equal(t, []string{"append 7-8", "cut before 7, term 2"}, p.s.take())
	assert.EqualValues(t, 2, p.term(6))
	assert.Zero(t, p.term(5))
	assert.EqualValues(t, 2, p.term(7))
	assert.Equal(t, "a:1:0:0,b:1:0:0", p.conf().conf.String())
	assert.EqualValues(t, 4, p.confAt(6).index)
	p.truncatePrefix(3)
	assert.Empty(t, p.s.take(), "it is gone already")
	_, err := p.entries(nil, 6, 1<<20)
	assert.ErrorIs(t, err, wal.ErrCompacted)
	p.truncatePrefix(9)
	p.s.take(errFull)
	assert.Empty(t, p.errors, "storage keeps it for longer")
	tailTerm, tail := p.tail()
	assert.EqualValues(t, 2, tailTerm, "S22: the last term is known although nothing is left")
	assert.EqualValues(t, 8, tail)
	p.add(3, 1)
	assert.Equal(t, []string{"append 9-9"}, p.s.take())
}

// A log that a snapshot replaces is empty at once. What comes next is submitted behind that, and counts when storage
// has all of it.
func TestTheLogBeginsAnewBehindASnapshot(t *testing.T) {
	conf := confEntry{index: 7, term: 5, conf: MustParseConfiguration("a:1,c:1")}
	base := logBase{index: 10, term: 5, conf: conf}
	for _, test := range []struct {
		name    string
		entries int
		want    []string
	}{
		{"it is shorter", 4, []string{"cut before 11, term 5"}},
		{"it is another", 15, []string{"cut behind 10", "cut before 11, term 5"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPrefixLog(t, wal.Recovered{First: 1}, logBase{})
			p.add(1, test.entries, "a:1")
			p.s.take()
			p.add(1, 1)
			late := p.s.done
			p.s.ops, p.s.done = nil, nil
			require.False(t, p.holds(base))
			began := false
			p.ack(pendingAck{index: int64(test.entries + 1)})
			assert.Len(t, p.startAfter(base, func() { began = true }), 1, "who waits is told")
			first, last := p.bounds()
			assert.EqualValues(t, 11, first)
			assert.EqualValues(t, 10, last)
			assert.True(t, p.holds(base))
			assert.Equal(t, conf, p.conf())
			for _, d := range late {
				d(nil)
			}
			assert.EqualValues(t, 10, p.durableIndex(), "what was written before counts no more")
			p.add(5, 2)
			assert.False(t, began)
			assert.Equal(t, append(test.want, "append 11-12"), p.s.take())
			assert.True(t, began)
			assert.EqualValues(t, 12, p.durableIndex())
		})
	}
}

// If storage has no space for that, it is told again later, in order, before what follows; nothing counts until then.
func TestANewBeginningThatIsRefusedIsRepeated(t *testing.T) {
	base := logBase{index: 10, term: 5}
	for _, test := range []struct {
		name string
		errs []error
	}{
		{"all of it", []error{errFull, errFull, errFull}},
		{"its first part", []error{errFull, nil, errFull}},
		{"its second part", []error{nil, errFull, fmt.Errorf("%w", wal.ErrOrder)}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPrefixLog(t, wal.Recovered{First: 1}, logBase{})
			p.add(1, 15, "a:1")
			p.s.take()
			began := false
			p.startAfter(base, func() { began = true })
			p.add(5, 1)
			p.s.take(test.errs...)
			assert.False(t, began)
			assert.NotEmpty(t, p.errors)
			p.add(5, 1)
			assert.Empty(t, p.s.take(), "it waits")
			require.True(t, p.retry(0))
			assert.Equal(t, []string{"cut behind 10", "cut before 11, term 5", "append 11-11", "append 12-12"}, p.s.take())
			assert.True(t, began)
			assert.EqualValues(t, 12, p.durableIndex())
			assert.False(t, p.retry(0))
		})
	}
}

// Whether a log goes on from a snapshot shows in its terms, also where only a part of a new beginning is on disk.
func TestWhichLogsGoOnFromASnapshot(t *testing.T) {
	runs := func(r ...int64) (runs []entry.TermRun) {
		for i := 0; i < len(r); i += 2 {
			runs = append(runs, entry.TermRun{First: r[i], Term: r[i+1]})
		}
		return runs
	}
	base := logBase{index: 10, term: 5}
	for _, test := range []struct {
		name  string
		found wal.Recovered
		want  bool
	}{
		{"nothing", wal.Recovered{First: 1}, false},
		{"shorter", wal.Recovered{First: 1, Last: 9, Runs: runs(1, 5)}, false},
		{"just as long", wal.Recovered{First: 1, Last: 10, Runs: runs(1, 4, 8, 5)}, true},
		{"longer", wal.Recovered{First: 1, Last: 12, Runs: runs(1, 5, 11, 6)}, true},
		{"another entry there", wal.Recovered{First: 1, Last: 12, Runs: runs(1, 4)}, false},
		{"begins behind it", wal.Recovered{First: 11, Last: 10, PrevTerm: 5}, true},
		{"goes on behind it", wal.Recovered{First: 11, Last: 12, PrevTerm: 5, Runs: runs(11, 5)}, true},
		{"its front was cut, its old tail was not", wal.Recovered{First: 11, Last: 12, PrevTerm: 5, Runs: runs(11, 4)}, false},
		{"begins later", wal.Recovered{First: 12, Last: 12, PrevTerm: 5, Runs: runs(12, 5)}, false},
	} {
		p := newPrefixLog(t, test.found, base)
		assert.Equal(t, test.want, p.holds(base), test.name)
		if !test.want && test.found.First < 12 {
			p.startAfterLater(base)
			assert.True(t, p.holds(base), test.name)
			require.True(t, p.retry(0))
			ops := p.s.take()
			assert.Equal(t, "cut before 11, term 5", ops[len(ops)-1], test.name)
		}
	}
}

// The real store takes a new beginning as this one gives it, and a restart finds the same.
func TestANewBeginningInTheStore(t *testing.T) {
	fs, s := vfs.NewMem(), actor.NewSim(1)
	open := func(fs vfs.FS) *wal.Group {
		store, err := wal.Open(wal.Options{FS: fs, Dir: "/log", Exec: s.NewProcess(1), Identity: "a:1", Rand: func() uint64 { return 7 }, SegmentSize: 64 << 10})
		require.NoError(t, err)
		g, err := store.Group("g")
		require.NoError(t, err)
		return g
	}
	g := open(fs)
	l, err := newLogManager(g, Configuration{}, logBase{}, 1<<20)
	require.NoError(t, err)
	p := &prefixLog{logManager: l, t: t}
	l.onDurable, l.onError = func(int64, int64, []pendingAck) {}, func(err error) { require.NoError(t, err) }
	p.add(1, 15, "a:1")
	began := false
	p.startAfter(logBase{index: 10, term: 5}, func() { began = true })
	p.add(5, 3, "a:1", "b:1")
	s.RunFor(1e9)
	assert.True(t, began)
	r := open(fs.CrashClone(nil)).Recovered()
	assert.EqualValues(t, 11, r.First)
	assert.EqualValues(t, 13, r.Last)
	assert.EqualValues(t, 5, r.PrevTerm)
	got, err := p.entries(nil, 11, 1<<20)
	require.NoError(t, err)
	assert.EqualValues(t, 11, got[0].First)
}

// A new beginning that storage refused is repeated also if the log was cut behind it meanwhile.
func TestARefusedBeginningOutlivesATruncation(t *testing.T) {
	p := newPrefixLog(t, wal.Recovered{First: 1}, logBase{})
	p.add(1, 5, "a:1")
	p.s.take()
	began := false
	p.startAfter(logBase{index: 10, term: 5}, func() { began = true })
	p.add(5, 2)
	p.truncateSuffix(11)
	assert.Equal(t, []string{"cut before 11, term 5", "append 11-12", "cut behind 11"},
		p.s.take(errFull, fmt.Errorf("%w", wal.ErrOrder), fmt.Errorf("%w", wal.ErrOrder)))
	require.True(t, p.retry(0))
	assert.Equal(t, []string{"cut behind 10", "cut before 11, term 5", "append 11-11"}, p.s.take(fmt.Errorf("%w", wal.ErrOrder)))
	assert.True(t, began)
	assert.EqualValues(t, 11, p.durableIndex())
}

// A new beginning cuts off what an earlier cut was to, if that was refused or is not answered.
func TestANewBeginningDoesTheWorkOfACut(t *testing.T) {
	for _, refused := range []bool{false, true} {
		p := newPrefixLog(t, wal.Recovered{First: 1}, logBase{})
		p.add(1, 15, "a:1")
		p.s.take()
		p.truncateSuffix(8)
		begin := []string{"cut behind 10", "cut before 11, term 5"}
		if refused {
			require.Equal(t, []string{"cut behind 8"}, p.s.take(errFull))
		} else {
			begin = append([]string{"cut behind 8"}, begin...)
		}
		p.startAfter(logBase{index: 10, term: 5}, func() {})
		assert.Equal(t, begin, p.s.take(), "refused: %v", refused)
	}
}

// Until storage goes on behind the snapshot, nothing that it takes counts, since it may follow the old log, and it is not
// told of commits: those are not of what it holds.
func TestNothingCountsBeforeTheLogHasBegunAnew(t *testing.T) {
	for _, length := range []int{10, 15} {
		p := newPrefixLog(t, wal.Recovered{First: 1}, logBase{})
		p.add(1, length, "a:1")
		p.s.take()
		assert.EqualValues(t, 7, p.stored(7))
		p.startAfter(logBase{index: 10, term: 5}, func() {})
		assert.Zero(t, p.stored(10))
		p.add(5, 1)
		if length > 10 { // it has room again just for the last of them
			assert.Equal(t, []string{"cut behind 10", "cut before 11, term 5", "append 11-11"}, p.s.take(nil, errFull, nil))
		} else {
			assert.Equal(t, []string{"cut before 11, term 5", "append 11-11"}, p.s.take(errFull, nil))
		}
		assert.EqualValues(t, 10, p.durableIndex(), "storage has it behind the old log")
		assert.Zero(t, p.stored(10))
		require.True(t, p.retry(0))
		assert.Equal(t, []string{"cut behind 10", "cut before 11, term 5", "append 11-11"}, p.s.take())
		assert.EqualValues(t, 11, p.durableIndex())
		assert.EqualValues(t, 10, p.stored(10))
	}
}
