package graft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// X5: of read rounds that are over a leader keeps none, however many there are until it looks whether it is heard.
func TestRoundsThatAreOverAreForgotten(t *testing.T) {
	t.Run("a sole voter's", func(t *testing.T) {
		s := newLeader(t, 1, NodeOptions{ElectionTimeout: time.Hour})
		for range 1000 {
			a := s.call("read")
			s.node.ReadIndexAsync(func(index int64, err error) { a.done(index, err) })
			s.pass(time.Microsecond)
		}
		assert.LessOrEqual(t, len(s.node.rounds), maxRounds)
		s.end()
	})
	t.Run("that others confirm", func(t *testing.T) {
		h := newLeaderByHand(t, 3)
		for range 50 { // in a time in which no heartbeat is due
			before, committed := len(h.asked), h.node.box.index()
			r := h.read()
			h.from(h.asked[before:], 1, 2)
			r.gets(t, committed)
			require.LessOrEqual(t, len(h.node.rounds), maxRounds)
		}
	})
}
