package graft

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/wal"
)

// applier is a state machine whose OnApply is written in the test.
type applier struct {
	recorder
	apply func(it *Iterator)
}

func (a *applier) OnApply(it *Iterator) { a.apply(it) }

// callerOnStage is an fsmCaller by itself, with a log in memory, on the seeded executor.
type callerOnStage struct {
	*fsmCaller
	sim      *actor.Sim
	fsm      *applier
	log      *logWithOracle
	released [2]int64
	failed   []error
}

func newCallerOnStage(t *testing.T, entries int) *callerOnStage {
	sim := actor.NewSim(1)
	proc := sim.NewProcess(1)
	t.Cleanup(proc.Kill)
	_, log := newQueuedLog(t, 1<<20)
	for range entries { // each in a batch of its own
		log.add(1, 1)
	}
	c := &callerOnStage{sim: sim, fsm: &applier{}, log: log}
	c.fsm.apply = c.fsm.recorder.OnApply
	c.fsmCaller = newFSMCaller(proc, c.fsm, "g")
	c.fsmCaller.log, c.grown = log.logManager, func(int64, int64) {}
	c.rested = func() {}
	c.aside = func(call func()) { call() }
	c.fail = func(err error) { c.failed = append(c.failed, err) }
	c.release = func(entries, bytes int64) { c.released[0] += entries; c.released[1] += bytes }
	return c
}

func (c *callerOnStage) pass() { c.sim.RunFor(time.Second) }

// V10: what is committed while the state machine works is applied when it is through, without another commit.
func TestACommitDuringOnApplyIsNotMissed(t *testing.T) {
	c := newCallerOnStage(t, 3)
	c.fsm.apply = func(it *Iterator) {
		for it.Next() {
			c.commit(it.Index() + 1)
		}
	}
	c.commit(1)
	c.pass()
	assert.EqualValues(t, 3, c.applied.Load(), "the log's end: there is no fourth entry")
}

// A2: an entry for which nothing is returned has no result. It does not get that of another one.
func TestAnEntryWithoutAResultGetsNone(t *testing.T) {
	c := newCallerOnStage(t, 0)
	c.log.add(1, 4) // in one batch
	c.fsm.apply = func(it *Iterator) {
		for it.Next() {
			if it.Index()%2 == 1 {
				it.Return(it.Index())
			}
		}
	}
	var results []any
	done := func(result any, err error) {
		assert.NoError(t, err)
		results = append(results, result)
	}
	c.addClosures(closureRun{first: 1, done: []func(any, error){done, done, done, done}, bytes: 40})
	c.commit(4)
	c.pass()
	assert.Equal(t, []any{int64(1), nil, int64(3), nil}, results)
	assert.Equal(t, [2]int64{4, 40}, c.released)
}

// A6: a leadership that ends before its first entry is applied has neither a start nor a stop, not even when that entry is applied later.
func TestALeadershipThatEndedDoesNotStart(t *testing.T) {
	c := newCallerOnStage(t, 1)
	log, _ := newQueuedLogOfConfs(t)
	c.fsmCaller.log = log
	c.leaderStart(1, 2)
	c.leaderStop(errors.New("over"))
	c.commit(3)
	c.pass()
	require.EqualValues(t, 3, c.applied.Load())
	assert.NotContains(t, c.fsm.seen(), "lead")
	c.leaderStart(2, 3) // applied already: it starts with what is applied next
	c.leaderStop(errors.New("over"))
	c.pass()
	assert.NotContains(t, c.fsm.seen(), "lead")
	assert.NoError(t, c.fsm.misuse)
}

// newQueuedLogOfConfs makes a log of three configuration entries.
func newQueuedLogOfConfs(t *testing.T) (*logManager, *queuedStorage) {
	s, l := newQueuedLog(t, 1<<20)
	for i := range int64(3) {
		var b entry.Builder
		b.Reset(i + 1)
		b.AppendConf(1, []string{"a:1:0:0"}, nil)
		batch := b.Build()
		sum, err := entry.Check(batch)
		require.NoError(t, err)
		require.NoError(t, l.append(batch, sum, 0))
	}
	return l.logManager, s
}

// C14: Rollback takes back as many entries as it was told to, the current one included, and at least that.
func TestRollbackTakesBackAsManyAsItSays(t *testing.T) {
	for _, test := range []struct{ at, entries, want int64 }{{1, 1, 0}, {3, 1, 2}, {3, 2, 1}, {3, 3, 0}, {3, 9, 0}, {3, 0, 2}, {3, -1, 2}} {
		c := newCallerOnStage(t, 4)
		c.fsm.apply = func(it *Iterator) {
			for it.Next() {
				if it.Index() == test.at {
					it.Rollback(int(test.entries), errors.New("broken"))
				}
			}
		}
		c.commit(4)
		c.pass()
		assert.Equal(t, test.want, c.applied.Load(), "%d entries at %d", test.entries, test.at)
		assert.Len(t, c.failed, 1)
	}
}

// C14: a node that has failed, for whatever reason, applies nothing any more.
func TestNothingIsAppliedAfterAFailureElsewhere(t *testing.T) {
	c := newCallerOnStage(t, 3)
	c.commit(1)
	c.pass()
	c.reportError(errors.New("the disk is broken"))
	c.pass()
	c.commit(3)
	c.pass()
	assert.EqualValues(t, 1, c.applied.Load())
	assert.Len(t, c.fsm.applied(), 1)
	assert.Len(t, c.fsm.errors(), 1)
}

// L11, A5: who waits for an entry to be applied is failed when that may never come, and only then.
func TestWhoWaitsForAnEntryIsToldWhenItMayNotCome(t *testing.T) {
	c := newCallerOnStage(t, 4)
	got := make(map[int64]error)
	wait := func(index int64) {
		c.waitApplied(index, func(at int64, err error) {
			if err == nil {
				assert.Equal(t, index, at)
			}
			assert.NotContains(t, got, index, "told twice")
			got[index] = err
		})
	}
	for i := range int64(4) {
		wait(i + 1)
	}
	lost := errors.New("the leader is gone")
	c.failWaiters(2, lost) // 2 is committed: it is sure to come
	c.pass()
	assert.Equal(t, map[int64]error{3: lost, 4: lost}, got)
	c.commit(2)
	c.pass()
	assert.Equal(t, map[int64]error{1: nil, 2: nil, 3: lost, 4: lost}, got)
	wait(9)
	c.shutdown()
	c.pass()
	assert.ErrorIs(t, got[9], ErrShutdown)
	wait(10)
	assert.ErrorIs(t, got[10], ErrShutdown, "so is who comes later")
}

// outcomes notes what closures are told.
type outcomes struct {
	t   *testing.T
	got map[string]error
}

func (o *outcomes) run(first int64, names ...string) closureRun {
	run := closureRun{first: first, bytes: int64(10 * len(names))}
	for _, name := range names {
		run.done = append(run.done, func(_ any, err error) {
			assert.NotContains(o.t, o.got, name, "told twice")
			o.got[name] = err
		})
	}
	return run
}

// A1, V3: a leadership ends, and others' entries are committed where its own were, all while the state machine works. Those who waited
// for the leader's own are not told that they were applied, nor are those of the next leadership told that they were lost.
func TestWhatIsCommittedAfterALeadershipIsNotItsOwn(t *testing.T) {
	lost := errors.New("it leads no more")
	c := newCallerOnStage(t, 6)
	o := &outcomes{t, make(map[string]error)}
	c.addClosures(o.run(1, "a", "b", "c"))
	c.addClosures(o.run(4, "d"))
	c.post(func() {
		c.commit(2)
		c.failClosures(lost)
		c.addClosures(o.run(5, "e", "f"))
		c.commit(6)
	})
	c.pass()
	assert.EqualValues(t, 6, c.applied.Load())
	assert.Equal(t, map[string]error{"a": nil, "b": nil, "c": lost, "d": lost, "e": nil, "f": nil}, o.got)
	assert.Equal(t, [2]int64{6, 60}, c.released)
}

// So it is if the state machine is in the middle of those entries when the leadership ends.
func TestALeadershipThatEndsDuringOnApply(t *testing.T) {
	lost := errors.New("it leads no more")
	c := newCallerOnStage(t, 6)
	o := &outcomes{t, make(map[string]error)}
	c.addClosures(o.run(1, "a", "b", "c", "d"))
	c.fsm.apply = func(it *Iterator) {
		for it.Next() {
			if it.Index() == 1 {
				c.failClosures(lost)
				c.addClosures(o.run(5, "e"))
				c.commit(6)
			}
		}
	}
	c.commit(2)
	c.pass()
	assert.EqualValues(t, 6, c.applied.Load())
	assert.Equal(t, map[string]error{"a": nil, "b": nil, "c": lost, "d": lost, "e": nil}, o.got)
	assert.Equal(t, [2]int64{5, 50}, c.released)
}

// A state machine that has failed applies nothing of what is committed: then its proposers hear of that when the leadership ends.
func TestWhatAFailedStateMachineDoesNotApplyIsSettled(t *testing.T) {
	lost := errors.New("it leads no more")
	c := newCallerOnStage(t, 4)
	o := &outcomes{t, make(map[string]error)}
	c.addClosures(o.run(1, "a", "b"))
	c.addClosures(o.run(3, "c", "d"))
	c.fsm.apply = func(it *Iterator) {
		it.Next()
		it.Rollback(1, errors.New("broken"))
	}
	c.commit(3)
	c.failClosures(lost)
	c.pass()
	assert.ErrorIs(t, o.got["a"], ErrUnknownOutcome)
	delete(o.got, "a")
	assert.Equal(t, map[string]error{"b": lost, "c": lost, "d": lost}, o.got)
	assert.Equal(t, [2]int64{4, 40}, c.released)
}

// A6: a leadership is told of although its first entry was committed before the state machine had time for the news, and one that has
// ended is not started by the next leader's entries.
func TestALeadershipStartsWhileTheStateMachineWorks(t *testing.T) {
	c := newCallerOnStage(t, 0)
	c.fsmCaller.log, _ = newQueuedLogOfConfs(t)
	c.post(func() {
		c.leaderStart(1, 2)
		c.commit(3)
	})
	c.pass()
	require.EqualValues(t, 3, c.applied.Load())
	assert.Contains(t, c.fsm.seen(), "lead")

	c = newCallerOnStage(t, 0)
	c.fsmCaller.log, _ = newQueuedLogOfConfs(t)
	c.post(func() {
		c.leaderStart(1, 2)
		c.leaderStop(errors.New("over"))
		c.commit(3)
	})
	c.pass()
	require.EqualValues(t, 3, c.applied.Load())
	assert.NotContains(t, c.fsm.seen(), "lead")
}

// A4: callbacks that wait for nothing overtake the events that wait for the disk of a durable state machine. They stay in their order, and so
// does everything else.
func TestCallbacksDoNotWaitForTheDisk(t *testing.T) {
	c := newCallerOnStage(t, 4)
	var held int64 = 2
	c.bound = func() int64 { return held }
	var ran []string
	note := func(what string) func() {
		return func() { ran = append(ran, what) }
	}
	c.commit(4)
	c.post(note("waits for 4"))
	c.postFree(note("refused 1"))
	c.postNow(note("load"))
	c.post(note("stop"))
	c.postFree(note("refused 2"))
	c.pass()
	assert.EqualValues(t, 2, c.applied.Load(), "what the disk holds")
	assert.Equal(t, []string{"refused 1", "refused 2"}, ran)
	c.postFree(note("refused 3"))
	c.pass()
	assert.Equal(t, []string{"refused 1", "refused 2", "refused 3"}, ran)
	ran = nil
	held = 4
	c.postFree(note("refused 4"))
	c.pass()
	assert.EqualValues(t, 4, c.applied.Load())
	assert.Equal(t, []string{"waits for 4", "load", "stop", "refused 4"}, ran)
}

// C15: what a snapshot brings need not be on the disk: an event that waits for no more than that comes next, without anything else that wakes it.
func TestWhatASnapshotBringsIsReached(t *testing.T) {
	c := newCallerOnStage(t, 0)
	c.bound = func() int64 { return 2 }
	var ran bool
	c.postNow(func() { c.appliedOne(5, 1) })
	c.commit(5)
	c.post(func() { ran = true })
	c.pass()
	assert.True(t, ran)
}

// Nothing that was queued is lost at the end, not even if whoever queued it has not come to wake the actor yet.
func TestTheLastEventsAreNotLost(t *testing.T) {
	c := newCallerOnStage(t, 0)
	var ran []string
	c.mu.Lock()
	c.events = append(c.events, fsmEvent{run: func() { ran = append(ran, "queued") }})
	c.woken = true
	c.mu.Unlock()
	c.end(func() { ran = append(ran, "end") })
	assert.False(t, c.postNow(func() { ran = append(ran, "too late") }))
	c.pass()
	assert.Equal(t, []string{"queued", "end"}, ran)
	assert.False(t, c.a.Post(struct{}{}), "it is told too late, and that does not matter")
	receive(t, c.a.Done())
}

// A14: a change is done when the state machine was told of it; one that has failed before is not told of anything any more.
func TestAChangeThatAFailedStateMachineIsNotToldOf(t *testing.T) {
	s := newLeader(t, len(stagePeers), NodeOptions{})
	s.pass(100 * time.Millisecond)
	s.fsm.onApply = func(string) { panic("simulated") }
	s.silent = true // so that entry and change are committed at once
	entry, before := s.apply("breaks it"), s.last()
	s.until(func() bool { return s.last() == before+1 }, "the entry is not in the log")
	change := s.call("change")
	s.node.ChangePeers(MustParseConfiguration(stagePeers[0]+","+stagePeers[1]), change.closed)
	s.until(func() bool { return s.last() == before+2 }, "the change is not in the log")
	last, told := s.last(), len(s.fsm.committedConfs())
	s.silent, s.stored = false, last
	s.until(func() bool { return entry.times > 0 && change.times > 0 }, "no answer")
	assert.Equal(t, last, s.node.Status().CommitIndex, "it is not committed")
	assert.ErrorIs(t, entry.err, ErrUnknownOutcome)
	assert.ErrorIs(t, change.err, ErrUnknownOutcome)
	assert.ErrorContains(t, change.err, "simulated")
	assert.Len(t, s.fsm.committedConfs(), told)
	s.end()
}

// lockedStorage is storage whose entries cannot be read for now.
type lockedStorage struct {
	LogStorage
	batches []entry.Batch
	open    bool
	asked   int
}

func (s *lockedStorage) Read(first int64, _ int) (entry.Batch, error) {
	s.asked++
	if !s.open {
		return entry.Batch{}, fmt.Errorf("read: %w", wal.ErrNotOpened)
	}
	for _, b := range s.batches {
		if b.First <= first && first <= b.Last() {
			return b.From(first), nil
		}
	}
	return entry.Batch{}, wal.ErrOrder
}

// lock has the entries in storage alone, which cannot be read for now.
func (c *callerOnStage) lock() *lockedStorage {
	l := c.log.logManager
	s := &lockedStorage{LogStorage: l.store, batches: l.cache}
	l.store, l.cache = s, nil
	return s
}

// A7: a log that cannot be opened for want of descriptors is read again after a pause, and the state machine goes on as if nothing had
// been. Only what waits for no entry does not wait for that.
func TestAStateMachineWaitsForDescriptors(t *testing.T) {
	c := newCallerOnStage(t, 4)
	s := c.lock()
	var ran []string
	note := func(what string) func() {
		return func() { ran = append(ran, fmt.Sprint(what, " at ", c.applied.Load())) }
	}
	c.postNow(note("begin"))
	c.commit(2)
	c.post(note("waits for 2"))
	c.postFree(note("refused"))
	c.postNow(note("load"))
	for range 100 { // none of them reads at once
		c.postFree(func() {})
		c.sim.RunFor(10 * time.Millisecond)
	}
	c.commit(4)
	c.pass()
	assert.LessOrEqual(t, s.asked, int(2*time.Second/readRetry)+1)
	assert.Empty(t, c.failed)
	assert.Zero(t, c.applied.Load())
	assert.Equal(t, []string{"begin at 0", "refused at 0"}, ran)
	s.open = true
	c.pass()
	assert.EqualValues(t, 4, c.applied.Load())
	assert.Equal(t, []string{"begin at 0", "refused at 0", "waits for 2 at 2", "load at 2"}, ran)
	assert.Len(t, c.fsm.applied(), 4)
	assert.Zero(t, c.sim.RunFor(time.Hour), "nothing is left to do")
}

// A5: a node that ends does not wait for descriptors. What was not applied is settled.
func TestANodeThatEndsDoesNotWaitForDescriptors(t *testing.T) {
	lost := errors.New("it leads no more")
	c := newCallerOnStage(t, 2)
	s := c.lock()
	o := &outcomes{t, make(map[string]error)}
	c.addClosures(o.run(1, "a", "b"))
	c.commit(2)
	c.pass()
	assert.Empty(t, o.got)
	c.failClosures(lost)
	c.shutdown()
	ended := false
	c.end(func() { ended = true })
	c.pass()
	require.True(t, ended)
	assert.Equal(t, map[string]error{"a": lost, "b": lost}, o.got)
	asked := s.asked
	s.open = true
	c.pass()
	assert.Equal(t, asked, s.asked)
	assert.Empty(t, c.fsm.applied())
}

// A5: nor does one that has failed: its user is told, and may be the one who has taken them all.
func TestANodeThatFailsDoesNotWaitForDescriptors(t *testing.T) {
	lost := errors.New("it leads no more")
	c := newCallerOnStage(t, 2)
	c.lock()
	o := &outcomes{t, make(map[string]error)}
	c.addClosures(o.run(1, "a", "b"))
	c.commit(2)
	c.pass()
	assert.Empty(t, o.got)
	c.failClosures(lost)
	c.free()
	c.reportError(errors.New("a callback panicked"))
	c.pass()
	assert.Equal(t, map[string]error{"a": lost, "b": lost}, o.got)
	require.Len(t, c.fsm.failures, 1)
	assert.EqualError(t, c.fsm.failures[0], "a callback panicked")
}

// lockedOut reports whether a goroutine waits for a mutex in a function.
func lockedOut(function string) bool {
	stacks := make([]byte, 4<<20)
	for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
		if strings.Contains(stack, function) && strings.Contains(stack, "lockSlow") {
			return true
		}
	}
	return false
}

// L11: who begins to wait for an entry while it is applied does not miss that.
func TestNobodyMissesWhatIsAppliedMeanwhile(t *testing.T) {
	f := new(fsmCaller)
	told := make(chan error, 1)
	f.mu.Lock()
	go f.waitApplied(7, func(_ int64, err error) { told <- err })
	require.True(t, within(20*time.Second, time.Millisecond, func() bool { return lockedOut("waitApplied") }))
	f.applied.Store(7)
	f.mu.Unlock()
	require.NoError(t, receive(t, told))
}
