package graft

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A12: what comes of a call whose caller does not wait any more is told to nobody else.
func TestWhatWasAbandonedAnswersNobodyElse(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	n := c.nodes[0]
	ended, end := context.WithCancel(t.Context())
	end()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	for range 30 {
		if _, err := n.Propose(ended, []byte("left")); err != nil {
			require.ErrorIs(t, err, ErrUnknownOutcome)
		}
		if _, err := n.ReadIndex(ended); err != nil {
			require.ErrorIs(t, err, ErrTimeout)
		}
		c.eventually(func() bool { return len(c.fsms[0].applied())%2 == 1 }, "what was left is not applied")
		result, err := n.Propose(ctx, []byte("kept"))
		require.NoError(t, err)
		require.Equal(t, len(c.fsms[0].applied()), result)
		committed := n.Status().CommitIndex
		index, err := n.ReadIndex(ctx)
		require.NoError(t, err)
		require.GreaterOrEqual(t, index, committed)
	}
	assert.Len(t, c.sameData(0, 1, 2), 60)
}
