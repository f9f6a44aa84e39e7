package sim

import (
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// TestContests shows that each of the faults that take several steps does what it is for, alone: else a check that needs it would
// be idle.
func TestContests(t *testing.T) {
	for _, test := range []struct {
		name string
		set  func(f *Faults)
		what func(c *Counters) (tries, hits int64)
	}{
		{"entries are cut off on their way to the disk", func(f *Faults) { f.Overwrite = 5 * time.Second },
			func(c *Counters) (int64, int64) { return c.Overwrites, c.TruncatedInFlight }},
		{"entries of several terms are cut off", func(f *Faults) { f.Comeback = 5 * time.Second },
			func(c *Counters) (int64, int64) { return c.Comebacks, c.TruncatedTerms }},
		{"a candidate has to give in to another of its term", func(f *Faults) { f.Rivals = 6 * time.Second },
			func(c *Counters) (int64, int64) { return c.Rivalries, c.SplitVotes }},
		{"two lead at the same time", func(f *Faults) { f.FalseDeath = 5 * time.Second },
			func(c *Counters) (int64, int64) { return c.FalseDeaths, c.Duels }},
		{"a deposed leader has late answers", func(f *Faults) { f.FalseDeath = 5 * time.Second },
			func(c *Counters) (int64, int64) { return c.FalseDeaths, c.HeldAnswers }},
		{"a follower loses what it has acknowledged", func(f *Faults) { f.LoseAck = 10 * time.Second },
			func(c *Counters) (int64, int64) { return c.Wipes, c.LostAcks }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var sum Counters
			enough := func() bool {
				tries, hits := test.what(&sum)
				return hits >= max(tries/10, 1)
			}
			for seed := uint64(1); seed <= 25 && (seed <= 5 && !raceEnabled || !enough()); seed++ {
				o := Quiet(seed, 3+2*int(seed%2))
				o.SegmentSize = 64 << 10
				test.set(&o.Faults)
				r := Run(o)
				if r.Err != nil {
					t.Fatal(r.Err)
				}
				sum.Add(&r.Count)
			}
			tries, hits := test.what(&sum)
			t.Logf("%d tries, %d hits", tries, hits)
			if !enough() {
				t.Errorf("%d tries, %d hits, want more", tries, hits)
			}
		})
	}
}

// A leader in a joint configuration whom the old majority does not answer stops, though the whole new half does (V3, M6).
func TestLeaderAloneWithTheNewHalfStops(t *testing.T) {
	family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
		target := List(leader, spare[0], spare[1])
		joint := target + "/" + s.Conf(leader)
		done := s.Change(leader, target)
		s.Wait(time.Second, "joint", func() bool { return s.Conf(leader) == joint })
		s.Separate(others, append(spare, leader))
		s.Run(3 * s.c.o.Election)
		if s.Leads(leader) {
			s.Fail("machine %d leads, and two of three old voters have not answered it for three election timeouts", leader)
		}
		if graft.ErrorCode(done()) != graft.ErrUnknownOutcome {
			s.Fail("the change ended with %v", done())
		}
	})
}
