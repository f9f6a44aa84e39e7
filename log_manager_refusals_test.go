package graft

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/wal"
)

// queuedStorage takes what it is given, in order, and answers when and what the test wants.
type queuedStorage struct {
	LogStorage
	asked []string // what was submitted since the test has looked
	done  []func(error)
}

func (s *queuedStorage) Recovered() wal.Recovered { return wal.Recovered{First: 1} }

func (s *queuedStorage) Append(b entry.Batch, _ int64, done func(error)) {
	s.asked, s.done = append(s.asked, fmt.Sprintf("append %d-%d", b.First, b.Last())), append(s.done, done)
}

func (s *queuedStorage) TruncateSuffix(last int64, done func(error)) {
	s.asked, s.done = append(s.asked, fmt.Sprintf("cut behind %d", last)), append(s.done, done)
}

// since returns what was submitted since the last time.
func (s *queuedStorage) since() []string {
	asked := s.asked
	s.asked = nil
	return asked
}

// answer answers the oldest requests, one with each of the errors.
func (s *queuedStorage) answer(errs ...error) {
	for _, err := range errs {
		done := s.done[0]
		s.done = s.done[1:]
		done(err)
	}
}

// newQueuedLog makes an empty log on such storage.
func newQueuedLog(t *testing.T, maxCache int) (*queuedStorage, *logWithOracle) {
	s := new(queuedStorage)
	l, err := newLogManager(s, Configuration{}, logBase{}, maxCache)
	require.NoError(t, err)
	l.onDurable, l.onError = func(int64, int64, []pendingAck) {}, func(error) {}
	l.onCut = func() { l.retry(0) }
	return s, &logWithOracle{logManager: l, t: t}
}

var (
	errFull       = fmt.Errorf("refused: %w", wal.ErrNoSpace)
	errOutOfOrder = fmt.Errorf("refused: %w", wal.ErrOrder)
)

// D16: what was cut off is durable no more, and what takes its place is not until storage says so.
func TestWhatReplacesDurableEntriesIsNotDurableYet(t *testing.T) {
	s, l := newQueuedLog(t, 1<<20)
	l.add(1, 3)
	s.answer(nil)
	require.EqualValues(t, 3, l.durableIndex())
	l.cutBehind(1)
	assert.EqualValues(t, 1, l.durableIndex())
	l.add(2, 1)
	assert.EqualValues(t, 1, l.durableIndex())
	now, _ := l.ack(pendingAck{index: 2})
	assert.False(t, now, "an answer that vouches for the new entry")
	s.answer(nil)
	assert.EqualValues(t, 1, l.durableIndex(), "the cut is durable, the entry is not")
	assert.Equal(t, []string{"append 1-3", "cut behind 1", "append 2-2"}, s.since())
	s.answer(nil)
	assert.EqualValues(t, 2, l.durableIndex())
}

// X1: who sends entries again has given up what he had sent behind them.
func TestRequestsThatAreSentAgainTakeTheOthersPlace(t *testing.T) {
	s, l := newQueuedLog(t, 1<<20)
	var answered []int64
	l.onDurable = func(_, _ int64, acks []pendingAck) {
		for _, a := range acks {
			answered = append(answered, a.index)
		}
	}
	l.add(1, 10)
	l.add(1, 30)
	wait := func(index int64, want ...int64) {
		t.Helper()
		now, replaced := l.ack(pendingAck{index: index})
		assert.False(t, now)
		var got []int64
		for _, a := range replaced {
			got = append(got, a.index)
		}
		assert.Equal(t, want, got)
	}
	wait(10)
	wait(20)
	wait(30)
	wait(10, 10, 20, 30)
	wait(25)
	wait(35)
	wait(30, 35)
	s.answer(nil)
	assert.Equal(t, []int64{10}, answered)
	now, replaced := l.ack(pendingAck{index: 10})
	assert.True(t, now)
	assert.Empty(t, replaced)
	s.answer(nil)
	assert.Equal(t, []int64{10, 25, 30}, answered)
}

// D10: after a want of space everything is submitted again that was refused, and nothing else, whatever came in between: further refusals,
// cuts, and answers that are heard late.
func TestRefusedEntriesAreSubmittedAgainOnce(t *testing.T) {
	s, l := newQueuedLog(t, 1<<20)
	settled := func(last int64, when string) {
		t.Helper()
		require.Empty(t, s.done, when)
		require.EqualValues(t, last, l.durableIndex(), when)
		require.False(t, l.retry(0), "%s: nothing is left to be submitted", when)
	}

	l.add(1, 1)
	l.add(1, 1)
	l.add(1, 1)
	require.Equal(t, []string{"append 1-1", "append 2-2", "append 3-3"}, s.since())
	s.answer(nil, errFull, errOutOfOrder)
	l.add(1, 1)
	require.Empty(t, s.since(), "it waits for those before it")
	require.True(t, l.retry(0))
	require.Equal(t, []string{"append 2-2", "append 3-3", "append 4-4"}, s.since())
	s.answer(nil, nil, nil)
	settled(4, "refused, and what follows it")

	l.add(1, 1)
	l.add(1, 1)
	s.since()
	s.answer(errFull)
	require.True(t, l.retry(0), "before the second refusal is heard of")
	require.Equal(t, []string{"append 5-5", "append 6-6"}, s.since())
	s.answer(errOutOfOrder)
	l.add(1, 1)
	require.Equal(t, []string{"append 7-7"}, s.since(), "a refusal of the first attempt says nothing about the second")
	s.answer(nil, nil, nil)
	settled(7, "a refusal that is heard late")

	l.add(1, 1)
	l.cutBehind(7)
	l.add(2, 1)
	s.since()
	s.answer(errFull, nil) // it was refused, and the cut was not known to have nothing to do
	require.Equal(t, []string{"append 8-8"}, s.since(), "only now: what it follows is known to be stored")
	s.answer(nil)
	settled(8, "replaced")

	l.add(2, 1)
	s.since()
	s.answer(errFull)
	l.cutBehind(7)
	l.add(3, 1)
	require.Equal(t, []string{"cut behind 7"}, s.since())
	s.answer(nil)
	require.Equal(t, []string{"append 8-8"}, s.since())
	s.answer(nil)
	settled(8, "replaced while it was refused")
}

// D10, D16: a cut that was refused is made up for once. What takes the place of what was cut off is not cut off by it at a later
// want of space.
func TestARefusedCutIsMadeUpForOnce(t *testing.T) {
	s, l := newQueuedLog(t, 1<<20)
	l.add(1, 4)
	s.answer(nil)
	l.cutBehind(2)
	l.add(2, 1)
	s.since()
	s.answer(errFull)
	require.True(t, l.retry(0))
	require.Equal(t, []string{"cut behind 2"}, s.since())
	require.False(t, l.retry(0), "what follows waits for the answer")
	s.answer(nil)
	require.Equal(t, []string{"append 3-3"}, s.since())
	s.answer(nil)
	l.add(2, 2)
	s.answer(nil)
	require.EqualValues(t, 5, l.durableIndex())
	l.add(2, 1)
	s.since()
	s.answer(errFull)
	require.True(t, l.retry(0))
	assert.Equal(t, []string{"append 6-6"}, s.since())
	s.answer(nil)
	assert.EqualValues(t, 6, l.durableIndex())
}

// D3, D10: storage may refuse a cut and what follows it, and then have room again for what comes next, of which the indexes just fit what
// was to be cut off. So nothing is given to it before it has cut.
func TestNothingFollowsACutThatMayBeRefused(t *testing.T) {
	for _, twice := range []bool{false, true} {
		s, l := newQueuedLog(t, 1<<20)
		l.add(1, 4)
		s.answer(nil)
		s.since()
		l.cutBehind(2)
		l.add(2, 2)
		if twice {
			l.cutBehind(3) // of what storage has never seen
			l.add(3, 1)
		}
		l.add(3, 1)
		assert.Equal(t, []string{"cut behind 2"}, s.since())
		assert.False(t, l.retry(0), "it may be on its way to the disk")
		s.answer(append([]error{errFull, errFull}, make([]error, len(s.done))...)[:len(s.done)]...)
		assert.EqualValues(t, 2, l.durableIndex(), "the rest of what is on the disk was to be cut off")
		assert.True(t, l.retry(0))
		assert.Equal(t, []string{"cut behind 2"}, s.since())
		s.answer(nil)
		assert.EqualValues(t, 2, l.durableIndex())
		assert.NotEmpty(t, s.since())
		s.answer(make([]error, len(s.done))...)
		assert.EqualValues(t, 5, l.durableIndex())
		l.add(3, 1)
		assert.Equal(t, []string{"append 6-6"}, s.since())
		s.answer(nil)
		assert.EqualValues(t, 6, l.durableIndex())
	}
}

// newLogCutTwice returns a log of six entries that storage was asked to cut behind 4, and behind 2, and has not yet.
func newLogCutTwice(t *testing.T) (*queuedStorage, *logWithOracle) {
	s, l := newQueuedLog(t, 1<<20)
	l.add(1, 6)
	s.answer(nil)
	l.cutBehind(4)
	l.cutBehind(2)
	s.since()
	return s, l
}

// A further cut does the work of the one before it, also if that was refused.
func TestALowerCutDoesTheWorkOfARefusedOne(t *testing.T) {
	s, l := newLogCutTwice(t)
	s.answer(errFull)
	assert.False(t, l.retry(0), "the second is not answered")
	s.answer(nil)
	assert.EqualValues(t, 2, l.durableIndex())
	l.add(2, 1)
	assert.Equal(t, []string{"append 3-3"}, s.since())
	s.answer(nil)
	assert.EqualValues(t, 3, l.durableIndex())

	l.cutBehind(2)
	s.since()
	s.answer(errFull) // heard of before the next
	l.cutBehind(1)
	l.add(3, 1)
	assert.Equal(t, []string{"cut behind 1"}, s.since())
	s.answer(nil)
	assert.Equal(t, []string{"append 2-2"}, s.since())
	s.answer(nil)
	assert.EqualValues(t, 2, l.durableIndex())
	assert.False(t, l.retry(0))
}

// What follows a cut does not follow one before it: the later one may be refused yet.
func TestWhatFollowsWaitsForTheLatestCut(t *testing.T) {
	s, l := newLogCutTwice(t)
	s.answer(nil)
	l.add(2, 1)
	assert.Empty(t, s.since())
	s.answer(errFull)
	require.True(t, l.retry(0))
	assert.Equal(t, []string{"cut behind 2"}, s.since())
	s.answer(nil)
	assert.Equal(t, []string{"append 3-3"}, s.since())
	s.answer(nil)
	assert.EqualValues(t, 3, l.durableIndex())
}

// D10, X9: however little memory there is for entries, what is not durable stays in it: storage may refuse it yet.
func TestWhatIsNotDurableStaysInMemory(t *testing.T) {
	s, l := newQueuedLog(t, 1)
	for range 5 {
		l.add(1, 1)
	}
	s.since()
	s.answer(nil, errFull, errOutOfOrder, errOutOfOrder, errOutOfOrder)
	require.True(t, l.retry(0))
	require.Equal(t, []string{"append 2-2", "append 3-3", "append 4-4", "append 5-5"}, s.since())
	s.answer(nil, nil, nil, nil)
	assert.EqualValues(t, 5, l.durableIndex())
	l.add(1, 1)
	assert.LessOrEqual(t, len(l.cache), 2, "what is durable does not")
}
