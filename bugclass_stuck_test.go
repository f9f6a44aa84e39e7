package graft

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/wire"
)

// hangDisk has whatever the node's disk is given from now on take so long, or no longer than usual.
func (s *stage) hangDisk(d time.Duration) {
	s.sim.Latency = func(rng *rand.Rand, name string) time.Duration {
		if d > 0 && name == "wal-lane" {
			return d
		}
		return time.Duration(1 + rng.IntN(50_000))
	}
}

// X9: the other members of a group commit what its leader's own disk does not take. What it proposes all the same has a bound, be it
// by number or by size, and what is proposed beyond that is refused at once; so it is until the disk has caught up.
func TestALeaderWhoseDiskHangsTakesOnlySoMuch(t *testing.T) {
	for _, test := range []struct {
		name string
		o    NodeOptions
		data string
	}{
		{"entries", NodeOptions{MaxPendingEntries: 40, ElectionTimeout: time.Minute}, "x"},
		{"bytes", NodeOptions{MaxPendingBytes: 64 << 10, MaxEntrySize: 32 << 10, ElectionTimeout: time.Minute}, strings.Repeat("x", 2<<10)},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStage(t, 3, test.o)
			s.loyal = true
			s.pass(time.Minute)
			require.True(t, s.node.IsLeader())
			s.hangDisk(2 * time.Minute)
			propose := func() (taken, refused int) {
				for i := range 200 {
					a := s.apply(fmt.Sprint(i, test.data))
					s.pass(10 * time.Millisecond)
					require.Equal(t, 1, a.times, "its outcome does not wait for the leader's disk")
					if a.err == nil {
						taken++
						continue
					}
					refused++
					require.ErrorIs(t, a.err, ErrOverloaded)
				}
				return taken, refused
			}
			durable := s.node.lm.durableIndex()
			taken, refused := propose()
			assert.InDelta(t, 35, taken, 8)
			assert.Positive(t, refused)
			assert.Equal(t, durable, s.node.lm.durableIndex(), "the disk hangs")
			assert.EqualValues(t, taken, s.last()-durable)
			assert.True(t, s.node.IsLeader())

			s.hangDisk(0)
			s.pass(10 * time.Minute)
			require.True(t, s.node.IsLeader())
			s.atRest()
			for i := range 200 {
				require.NoError(t, s.node.Status().Err)
				a := s.apply(fmt.Sprint("later ", i, test.data))
				s.pass(10 * time.Millisecond)
				require.NoError(t, a.err)
			}
			s.end()
		})
	}
}

// A leader whose disk hangs hands over to others, if they can do without it.
func TestALeaderWhoseDiskHangsHandsOver(t *testing.T) {
	for _, test := range []struct {
		name    string
		members int
		down    string // who does not answer
		writes  bool   // something waits for the disk
		leaves  bool
	}{
		{"with others", 3, "", true, true},
		{"with nothing to write", 3, "", false, false},
		{"needed for a majority", 3, stagePeers[2], true, false},
		{"alone", 1, "", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newLeader(t, test.members, NodeOptions{})
			s.down = test.down
			s.pass(2 * time.Second)
			s.hangDisk(time.Hour)
			term := s.node.Status().Term
			if test.writes {
				s.apply("x")
			}
			s.pass((diskPatience - 1) * time.Second)
			require.True(t, s.node.IsLeader(), "a disk may be slow for a moment")
			s.pass(2 * time.Second)
			if !test.leaves {
				assert.True(t, s.node.IsLeader())
				assert.Zero(t, s.asked[methodTimeoutNow])
				return
			}
			assert.False(t, s.node.IsLeader())
			assert.Equal(t, 1, s.asked[methodTimeoutNow], "one of the others is to campaign at once")
			assert.Contains(t, s.fsm.seen(), "stop: timed out")
			s.pass(20 * time.Second)
			assert.False(t, s.node.IsLeader(), "it cannot store a vote, so it leads no more")
			assert.Equal(t, 2, s.asked[methodRequestVote], "nor does it ask for one that it cannot store")
			s.hangDisk(0)
			s.pass(2 * time.Hour)
			s.until(s.node.IsLeader, "the disk works again")
			assert.Greater(t, s.node.Status().Term, term)
			s.atRest()
			s.end()
		})
	}
}

// X1: a leader that gets no answer sends the same again and again. A follower whose disk hangs keeps one request of each kind waiting, and of
// what it has already in its log not the bytes.
func TestAFollowerWhoseDiskHangsKeepsOneOfEachRequest(t *testing.T) {
	s := newStage(t, 3, NodeOptions{ElectionTimeout: time.Minute})
	s.pass(time.Second)
	first := s.append(stagePeers[1], 1, 0, 0, "a")
	s.pass(time.Second)
	require.True(t, first.over)
	s.hangDisk(24 * time.Hour)
	const sizes = 10
	var rounds [][]*response
	for range 50 {
		var round []*response
		for i := range int64(sizes) {
			round = append(round, s.append(stagePeers[1], 1, 1+i, 1, large))
		}
		rounds = append(rounds, round)
		s.pass(time.Second)
	}
	assert.Len(t, s.node.lm.acks, sizes)
	kept := 0
	for _, a := range s.node.lm.acks {
		kept += len(a.req.Message) + len(a.req.Attachment)
	}
	assert.Zero(t, kept, "bytes of requests whose entries are in the log")
	for _, round := range rounds[:len(rounds)-1] {
		for _, r := range round {
			require.True(t, r.over)
			require.EqualValues(t, ErrBusy, r.code, "nothing is said about the entries: %s", r.text)
		}
	}
	for _, r := range rounds[len(rounds)-1] {
		require.False(t, r.over)
	}

	// Another leader sends the same, and more; its term cannot be stored either.
	var beats []*response
	later := s.append(stagePeers[2], 2, 1, 1, "b")
	for range 2 * maxHardWaiters {
		beats = append(beats, s.append(stagePeers[2], 2, 1, 1))
		s.pass(10 * time.Millisecond)
	}
	assert.Len(t, s.node.hard.waiters, maxHardWaiters)
	answered := 0
	for _, r := range beats {
		if r.over {
			require.EqualValues(t, ErrBusy, r.code, r.text)
			answered++
		}
	}
	assert.InDelta(t, maxHardWaiters, answered, sizes+1)

	s.hangDisk(0)
	s.pass(100 * time.Hour)
	s.atRest()
	for _, r := range append(beats[len(beats)-100:], later) {
		require.True(t, r.over)
		require.Zero(t, r.code, r.text)
		resp, err := wire.ParseAppendResponse(r.message)
		require.NoError(t, err)
		assert.True(t, resp.Success)
		assert.EqualValues(t, 2, resp.Term)
	}
	for _, r := range rounds[len(rounds)-1] {
		require.True(t, r.over, "everybody is answered in the end")
	}
	assert.Empty(t, s.node.hard.waiters)
	assert.Empty(t, s.node.lm.acks)
}

// Elections that come to nothing for want of a disk leave nothing behind.
func TestElectionsWithoutADiskPileUpNothing(t *testing.T) {
	s := newStage(t, 3, NodeOptions{})
	s.hangDisk(time.Hour)
	s.loyal = true
	s.pass(30 * time.Minute)
	require.Zero(t, s.asked[methodRequestVote], "a vote that is not stored was asked for")
	require.Greater(t, s.node.Status().Term, int64(10))
	assert.LessOrEqual(t, len(s.node.hard.waiters), 1)
	s.hangDisk(0)
	s.pass(2 * time.Hour)
	assert.True(t, s.node.IsLeader())
	s.end()
}

// X1: who has nothing to send to a peer tells it of each commit, but not again and again while the peer does not answer.
func TestAPeerThatAnswersLateIsToldOfFewCommits(t *testing.T) {
	s := newLeader(t, 3, NodeOptions{})
	s.pass(2 * time.Second)
	s.late = 500 * time.Millisecond
	most := 0
	for i := range 200 {
		s.apply(fmt.Sprint(i))
		s.pass(10 * time.Millisecond)
		most = max(most, s.beats)
	}
	assert.LessOrEqual(t, most, 2*2*s.node.o.HeartbeatFactor)
	s.late = 0
	s.pass(2 * time.Second)
	sent := s.asked[methodAppendEntries]
	s.apply("last")
	s.pass(10 * time.Millisecond)
	assert.GreaterOrEqual(t, s.asked[methodAppendEntries]-sent, 4, "now they are told at once again")
	s.end()
}
