package graft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
)

// newQueue makes the queue of a node that takes nothing by itself.
func newQueue(t *testing.T, o NodeOptions) *proposalQueue {
	proc := actor.NewSim(1).NewProcess(1)
	t.Cleanup(proc.Kill)
	n := &Node{o: o, lm: new(logManager)}
	n.a = actor.New(proc, "node", func(time.Time, []func()) time.Time { return time.Time{} })
	n.proposals.init(n)
	return &n.proposals
}

func names(tasks []Task) (names []string) {
	for _, t := range tasks {
		names = append(names, string(t.Data))
	}
	return names
}

// A2: what was taken stays as it is, whatever arrives while the node works on it.
func TestProposalsThatWereTakenStayAsTheyAre(t *testing.T) {
	q := newQueue(t, NodeOptions{MaxPendingEntries: 100, MaxPendingBytes: 1 << 20, MaxEntrySize: 10, MaxAppendBytes: 1 << 20})
	add := func(data string) { q.add(Task{Data: []byte(data)}) }
	for range 8 { // enough that what follows finds room in it
		add("a")
	}
	first := q.take()
	q.recycle(first) // from here on there is memory to be used again
	for range 3 {
		add("b")
		add("c")
		second := q.take()
		require.Equal(t, []string{"b", "c"}, names(second))
		add("d")
		add("e")
		assert.Equal(t, []string{"b", "c"}, names(second), "it is being worked on")
		third := q.take()
		assert.Equal(t, []string{"d", "e"}, names(third))
		add("f")
		assert.Equal(t, []string{"d", "e"}, names(third))
		q.recycle(second)
		q.recycle(third)
		assert.Equal(t, []string{"f"}, names(q.take()))
	}
	assert.Nil(t, q.take())
}

// X5: bounds are what may be used up, to the entry and to the byte.
func TestBudgetsMayBeUsedUp(t *testing.T) {
	const most = 4
	q := newQueue(t, NodeOptions{MaxPendingEntries: most, MaxPendingBytes: 25, MaxEntrySize: 10, MaxAppendBytes: 1 << 20})
	propose := func(size int) (refused error) {
		q.add(Task{Data: make([]byte, size), Done: func(_ any, err error) { refused = err }})
		return refused
	}
	assert.ErrorIs(t, propose(11), ErrTooLarge)
	require.NoError(t, propose(10))
	require.NoError(t, propose(10))
	assert.ErrorIs(t, propose(6), ErrOverloaded)
	require.NoError(t, propose(5))
	require.NoError(t, propose(0))
	assert.ErrorIs(t, propose(0), ErrOverloaded)
	entries, bytes := q.pending()
	assert.EqualValues(t, most, entries)
	assert.EqualValues(t, 25, bytes)
	q.take()
	q.release(1, 10)
	assert.NoError(t, propose(10))
}
