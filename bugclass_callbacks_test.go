package graft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/raftpb"
)

// faltering is a state machine that fails at an entry.
type faltering struct {
	*recorder
	at    string
	how   func(it *Iterator) // called with that entry
	stuck bool
}

func (f *faltering) OnApply(it *Iterator) {
	for !f.stuck && it.Next() {
		if string(it.Data()) != f.at {
			f.entries = append(f.entries, string(it.Data()))
			it.Return(len(f.entries))
			continue
		}
		if f.how(it); f.stuck {
			return
		}
	}
}

// A2, A4: a state machine fails in the middle of a batch. Whoever proposed an entry of it, before the failure, at it and behind it,
// gets one answer, and a true one.
func TestEverybodyIsAnsweredWhenAStateMachineFails(t *testing.T) {
	const entries, bad = 10, 4 // the entry with this number, counted from 0, is the one at which it happens
	broken := errors.New("broken")
	rollBack := func(n int) func(*faltering, *owed) {
		return func(f *faltering, _ *owed) { f.how = func(it *Iterator) { it.Rollback(n, broken) } }
	}
	for _, failure := range []struct {
		name     string
		prepare  func(f *faltering, at *owed)
		answered int // so many are told that their entries are applied
		applied  int // and so many are, after all
	}{
		{"panics", func(f *faltering, _ *owed) { f.how = func(*Iterator) { panic(broken) } }, bad, bad},
		{"rolls back", rollBack(1), bad, bad},
		{"rolls back what it had called applied", rollBack(3), bad, bad - 2},
		{"takes no more entries", func(f *faltering, _ *owed) { f.how = func(*Iterator) { f.stuck = true } }, bad + 1, bad + 1},
		{"calls back somebody who panics", func(f *faltering, at *owed) {
			f.how = func(it *Iterator) { it.Return(bad + 1) }
			at.then = func() { panic(broken) }
		}, bad + 1, bad + 1},
	} {
		t.Run(failure.name, func(t *testing.T) {
			f := &faltering{at: fmt.Sprint("entry ", bad)}
			s := newLeader(t, 1, NodeOptions{StateMachine: f})
			before := s.last()
			var calls []*owed
			for i := range entries {
				calls = append(calls, s.apply(fmt.Sprint("entry ", i)))
			}
			failure.prepare(f, calls[bad])
			s.until(func() bool { return len(s.fsm.errors()) > 0 }, "OnError was not called")
			require.Equal(t, before+entries, s.last())
			late := s.apply("late")
			s.end()
			for i, a := range calls {
				if i < failure.answered {
					assert.NoError(t, a.err, a.what)
				} else {
					assert.ErrorIs(t, a.err, ErrUnknownOutcome, a.what)
				}
				if i < bad {
					assert.Equal(t, i+1, a.result, a.what)
				}
			}
			assert.ErrorIs(t, late.err, ErrNodeFailed)
			assert.Equal(t, before+int64(failure.applied), s.node.Status().AppliedIndex)
			s.shutDown()
		})
	}
}

// shutDown ends the node in good order.
func (s *stage) shutDown() {
	s.t.Helper()
	over := s.call("shutdown")
	s.node.Shutdown(over.closed)
	s.end()
	assert.NoError(s.t, over.err)
	assert.True(s.t, s.fsm.shut)
	assert.Equal(s.t, RoleShutdown, s.node.Status().Role)
}

// leading leaves a leader with entries that are committed to a part, and with others that are not in its log yet.
func leading(t *testing.T, o NodeOptions) (s *stage, done, open, queued []*owed) {
	s = newLeader(t, 3, o)
	s.silent = true
	before := s.last()
	for i := range 10 {
		a := s.apply(fmt.Sprint("entry ", i))
		if i < 4 {
			done = append(done, a)
		} else {
			open = append(open, a)
		}
	}
	s.until(func() bool { return s.last() == before+10 }, "the entries are not in the log")
	s.stored = before + 4
	s.until(func() bool { return s.node.Status().AppliedIndex == before+4 }, "a part of the batch is not committed")
	for i := range 3 {
		queued = append(queued, s.apply(fmt.Sprint("queued ", i)))
	}
	return s, done, open, queued
}

// A2, A4, A5, R15, X5: leadership ends, in one way or another, while a batch is committed to a part, and more is queued. Everybody gets
// one answer, and the node keeps account of nothing that is over.
func TestEverybodyIsAnsweredWhenLeadershipEnds(t *testing.T) {
	for _, end := range []struct {
		name   string
		do     func(s *stage)
		queued Code // what those get whose entries were not in the log
	}{
		{"another leads", func(s *stage) { s.append(stagePeers[1], s.node.Status().Term+1, 0, 0) }, ErrNotLeader},
		{"the node fails", func(s *stage) { s.node.post(func() { s.node.fail(errors.New("broken")) }) }, ErrNodeFailed},
		{"the node is shut down", func(s *stage) { s.node.Shutdown(s.call("shutdown").closed) }, ErrShutdown},
	} {
		t.Run(end.name, func(t *testing.T) {
			s, done, open, queued := leading(t, NodeOptions{})
			end.do(s)
			s.end()
			for _, a := range done {
				assert.NoError(t, a.err, a.what)
			}
			for _, a := range open {
				assert.ErrorIs(t, a.err, ErrUnknownOutcome, a.what)
			}
			for _, a := range queued {
				assert.ErrorIs(t, a.err, end.queued, a.what)
			}
			s.shutDown()
		})
	}
}

// A5: a node that is shut down answers what it has not looked at yet, whatever it is at the time.
func TestShutdownAnswersWhatNobodyHasTaken(t *testing.T) {
	for name, s := range map[string]*stage{
		"a leader alone": newLeader(t, 1, NodeOptions{}),
		"a leader":       newLeader(t, 3, NodeOptions{}),
		"a follower":     newStage(t, 3, NodeOptions{}),
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			s.pass(time.Millisecond)
			a, read, over := s.apply("not looked at"), s.call("read"), s.call("shutdown")
			s.node.ReadIndexAsync(func(_ int64, err error) { read.closed(err) })
			s.node.Shutdown(over.closed)
			s.end()
			assert.ErrorIs(t, a.err, ErrShutdown)
			assert.ErrorIs(t, read.err, ErrShutdown)
			assert.NoError(t, over.err)
			assert.ErrorIs(t, s.apply("after the end").err, ErrShutdown)
		})
	}
}

// V4: what a leader of an earlier term sends late, to have a follower stand for election, starts none.
func TestATimeoutNowOfAnEarlierTermStartsNoElection(t *testing.T) {
	for _, steppedDown := range []bool{false, true} {
		s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Minute})
		const old, leader = 1, 2 // among the peers
		heartbeat := s.append(stagePeers[leader], 2, 0, 0)
		s.pass(time.Second)
		require.True(t, heartbeat.over)
		timeoutNow := func(from int, term int64) *raftpb.TimeoutNowResponse {
			r := s.send(methodTimeoutNow, &raftpb.TimeoutNowRequest{
				GroupId: proto.String("g"), ServerId: proto.String(stagePeers[from] + ":0"), PeerId: proto.String(stagePeers[0] + ":0"),
				Term: &term, OldLeaderSteppedDown: &steppedDown,
			})
			s.pass(time.Second)
			require.True(t, r.over)
			require.Zero(t, r.code, r.text)
			m := new(raftpb.TimeoutNowResponse)
			require.NoError(t, proto.Unmarshal(r.message, m))
			return m
		}
		m := timeoutNow(old, 1)
		assert.False(t, m.GetSuccess())
		assert.EqualValues(t, 2, m.GetTerm())
		st := s.node.Status()
		assert.Equal(t, RoleFollower, st.Role)
		assert.EqualValues(t, 2, st.Term)
		assert.Equal(t, stagePeers[leader], st.Leader.Address)
		assert.Empty(t, s.asked, "it asks for votes")

		m = timeoutNow(leader, 2) // the present leader may
		assert.True(t, m.GetSuccess())
		assert.EqualValues(t, 3, m.GetTerm())
		assert.Equal(t, map[string]int{methodRequestVote: 2}, s.asked)
		s.end()
	}
}
