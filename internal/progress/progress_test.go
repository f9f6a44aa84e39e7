package progress

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestProbeThenReplicate(t *testing.T) {
	w := Window{Requests: 2, Bytes: 100}
	p := New(10)
	require.True(t, p.Room(w))
	p.Sent(10, 0) // the probe
	assert.False(t, p.Room(w), "one probe at a time")
	p.Matched(10)
	assert.Equal(t, Replicate, p.State)
	assert.Zero(t, p.Match, "a matching probe says nothing about durability")
	p.Sent(12, 60)
	require.True(t, p.Room(w))
	p.Sent(14, 60)
	assert.False(t, p.Room(w), "the window is full")
	p.Stored(12)
	assert.EqualValues(t, 12, p.Match)
	assert.True(t, p.Room(w))
	assert.EqualValues(t, 15, p.Next)
}

func TestLaterSuccessCoversEarlierRequests(t *testing.T) {
	p := New(0)
	p.Matched(0)
	p.Sent(1, 10)
	p.Sent(2, 10)
	p.Sent(3, 10)
	p.Stored(3)
	requests, bytes := p.Inflight()
	assert.Zero(t, requests)
	assert.Zero(t, bytes)
}

func TestRefusedAlwaysGoesBackAndNeverBelowMatch(t *testing.T) {
	p := New(20)
	p.Sent(20, 0)
	p.Refused(20, 25)
	assert.EqualValues(t, 20, p.Next, "a hint ahead of the probe is not followed")
	p.Stored(8)
	p.Refused(19, 3)
	assert.EqualValues(t, 9, p.Next)
}

func TestFailureStartsOverBehindMatch(t *testing.T) {
	p := New(0)
	p.Matched(0)
	p.Sent(5, 10)
	before := p.Generation()
	p.Failed()
	assert.Equal(t, Probe, p.State)
	assert.EqualValues(t, 1, p.Next)
	assert.NotEqual(t, before, p.Generation(), "answers to what was given up are told apart")
	p.Stored(5) // the answer came after all
	assert.EqualValues(t, 6, p.Next)
}

func TestFailureBeforeAnythingIsKnownAsksTheSameAgain(t *testing.T) {
	p := New(500)
	p.Sent(500, 0)
	p.Failed()
	assert.EqualValues(t, 501, p.Next, "a follower that was down need not get the whole log")
	p.Sent(500, 0)
	p.Matched(500)
	p.Sent(510, 10)
	p.Failed()
	assert.EqualValues(t, 501, p.Next)
	p.Sent(500, 0)
	p.Refused(500, 301) // it has lost what it had not synced
	p.Failed()
	assert.EqualValues(t, 301, p.Next)
}

func TestRegressedForgetsWhatWasAcknowledged(t *testing.T) {
	p := New(0)
	p.Stored(9)
	p.Regressed(4)
	assert.Zero(t, p.Match)
	assert.EqualValues(t, 5, p.Next)
	assert.Equal(t, Probe, p.State)
}

// Whatever happens, the invariants hold: Match < Next, and the counters are those of the
// requests on the way.
func TestInvariantsUnderRandomEvents(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	p := New(100)
	for range 100_000 {
		match := p.Match
		switch rng.IntN(9) {
		case 0, 1:
			if p.State == Replicate {
				p.Sent(p.Next+rng.Int64N(5), rng.IntN(100))
			}
		case 2:
			p.Stored(rng.Int64N(p.Next))
		case 3:
			p.Refused(p.Next-1, rng.Int64N(p.Next+1))
		case 4:
			p.Failed()
		case 5:
			p.Matched(p.Next - 1)
		case 6:
			p.BeginSnapshot()
			require.False(t, p.Room(Window{Requests: 100, Bytes: 1 << 30}), "nothing is sent beside a snapshot")
		case 7:
			p.SnapshotInstalled(rng.Int64N(200))
		case 8:
			p.SnapshotFailed()
			require.NotEqual(t, Snapshot, p.State)
		}
		require.GreaterOrEqual(t, p.Match, match)
		require.Less(t, p.Match, p.Next)
		requests, bytes := p.Inflight()
		require.GreaterOrEqual(t, bytes, 0)
		if requests == 0 {
			require.Zero(t, bytes)
		}
	}
}

func TestSnapshotIsFollowedByWhatComesNext(t *testing.T) {
	w := Window{Requests: 2, Bytes: 100}
	p := New(50)
	p.Sent(50, 0)
	p.Refused(50, 1)
	before := p.Generation()
	p.BeginSnapshot()
	assert.False(t, p.Room(w))
	assert.NotEqual(t, before, p.Generation(), "what was sent before says nothing any more")
	p.Stored(3)
	assert.Equal(t, Snapshot, p.State, "a late acknowledgement does not end the install")
	p.SnapshotInstalled(40)
	assert.Equal(t, Replicate, p.State, "no probe is needed")
	assert.EqualValues(t, 40, p.Match)
	assert.EqualValues(t, 41, p.Next)
	assert.True(t, p.Room(w))
}

func TestAfterAFailedSnapshotTheFollowerIsAskedAnew(t *testing.T) {
	p := New(50)
	p.Sent(50, 0)
	p.Refused(50, 1)
	p.BeginSnapshot()
	p.SnapshotFailed()
	assert.Equal(t, Probe, p.State)
	assert.EqualValues(t, 1, p.Next)
	p.Stored(7)
	p.SnapshotFailed()
	assert.Equal(t, Replicate, p.State, "news of a failure that come too late change nothing")
}
