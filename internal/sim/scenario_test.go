package sim

import (
	"fmt"
	"iter"
	"testing"
	"time"
)

// upTo yields seeds from 1 on, fewer where they take long.
func upTo(n uint64) iter.Seq[uint64] {
	if raceEnabled {
		n /= 5
	}
	return func(yield func(uint64) bool) {
		for seed := uint64(1); seed <= n && yield(seed); seed++ {
		}
	}
}

// scenario runs a story with a few seeds, half of them without clients: then all logs are equal.
func scenario(t *testing.T, nodes int, story func(s *Scenario)) {
	t.Helper()
	someSeeds(t, 20, nodes, story)
}

func someSeeds(t *testing.T, seeds uint64, nodes int, story func(s *Scenario)) {
	t.Helper()
	for seed := range upTo(seeds) {
		o := Quiet(seed, nodes)
		if seed%2 == 0 {
			o.Load.Writes, o.Load.Reads = 0, 0
		}
		s := Begin(o)
		if s.Err() == nil {
			s.c.guard(func() { story(s) })
		}
		if err := s.End(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIsolatedLeaderIsReplaced(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		old := s.Leader()
		s.Isolate(old)
		took, ok := s.Until(5*time.Second, func() bool { return s.Leader() != old && s.Leader() >= 0 })
		if !ok || took > 3*time.Second {
			s.Fail("leader %d was isolated; after %v the leader is %d", old, took, s.Leader())
		}
		if _, ok := s.Until(2*time.Second, func() bool { return !s.Leads(old) }); !ok {
			s.Fail("isolated leader %d does not step down", old)
		}
		s.Works(time.Second)
		leader, term := s.Leader(), s.Term(s.Leader())
		s.Mend()
		s.Run(10 * time.Second)
		if s.Leader() != leader || s.Term(leader) != term {
			s.Fail("the return of %d deposed %d", old, leader)
		}
	})
}

// The process is gone and its machine refuses connections: nobody needs to wait for
// the election timeout of one second.
func TestKilledLeaderIsReplacedAtOnce(t *testing.T) {
	var all []time.Duration
	scenario(t, 3, func(s *Scenario) {
		s.Run(time.Second)
		old := s.Leader()
		s.Kill(old)
		took, ok := s.Until(5*time.Second, func() bool { return s.Leader() >= 0 && s.Leader() != old })
		if !ok || took > 200*time.Millisecond {
			s.Fail("leader %d was killed; after %v the leader is %d", old, took, s.Leader())
		}
		all = append(all, took)
		s.Works(100 * time.Millisecond)
		s.Restart(old)
		s.Run(5 * time.Second)
		if s.Leader() == old {
			s.Fail("the return of %d deposed the leader", old)
		}
	})
	var sum time.Duration
	for _, d := range all {
		sum += d
	}
	mean := sum / time.Duration(len(all))
	t.Logf("a killed leader is replaced after %v in the mean", mean)
	if mean > 100*time.Millisecond {
		t.Errorf("a killed leader is replaced after %v in the mean, want less than 100ms", mean)
	}
}

func TestVanishedLeaderIsReplaced(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		old := s.Leader()
		s.PowerCut(old)
		if took, ok := s.Until(6*time.Second, func() bool { return s.Leader() >= 0 && s.Leader() != old }); !ok {
			s.Fail("leader %d vanished; after %v there is no other", old, took)
		}
		s.Works(time.Second)
	})
}

// A follower that hears nobody must not depose the leader when it comes back.
func TestDeafFollowerDisturbsNobody(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		leader, term := s.Leader(), s.Term(s.Leader())
		deaf := s.Others(leader)[0]
		for _, o := range s.Others(deaf) {
			s.Cut(o, deaf)
		}
		s.Run(20 * time.Second)
		s.Works(time.Second)
		s.Mend()
		s.Run(10 * time.Second)
		if s.Leader() != leader || s.Term(leader) != term {
			s.Fail("follower %d, deaf for a while, deposed %d: leader is %d in term %d", deaf, leader, s.Leader(), s.Term(s.Leader()))
		}
	})
}

// Cloudflare, November 2020: two followers, one of which does not reach the leader. The leader has
// its quorum, so it must stay.
func TestTriangleKeepsItsLeader(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		leader, term := s.Leader(), s.Term(s.Leader())
		o := s.Others(leader)
		s.Connect([2]int{leader, o[0]}, [2]int{o[0], o[1]})
		s.Run(30 * time.Second)
		if s.Leader() != leader || s.Term(leader) != term {
			s.Fail("leader %d of term %d was deposed; now it is %d of term %d", leader, term, s.Leader(), s.Term(s.Leader()))
		}
		s.Works(time.Second)
	})
}

// The leader loses everybody but a hub; only the hub has a quorum.
func TestHubTakesOver(t *testing.T) {
	scenario(t, 5, func(s *Scenario) {
		leader := s.Leader()
		hub := s.Others(leader)[0]
		var pairs [][2]int
		for _, o := range s.Others(hub) {
			pairs = append(pairs, [2]int{hub, o})
		}
		s.Connect(pairs...)
		s.Until(20*time.Second, func() bool { return s.Leads(hub) })
		s.Works(5 * time.Second)
		if s.Leader() != hub {
			s.Fail("machine %d leads and reaches no majority", s.Leader())
		}
		before := s.Count().Leaderships
		s.Run(30 * time.Second)
		if got := s.Count().Leaderships - before; got > 0 {
			s.Fail("%d leader changes behind a hub", got)
		}
	})
}

// A chain of three: the middle one reaches both. Whoever leads, leadership settles.
func TestChainSettles(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		leader := s.Leader()
		o := s.Others(leader)
		s.Connect([2]int{o[0], o[1]}, [2]int{o[1], leader})
		s.Run(20 * time.Second)
		before := s.Count().Leaderships
		s.Run(60 * time.Second)
		if got := s.Count().Leaderships - before; got > 0 {
			s.Fail("%d leader changes in a minute", got)
		}
		s.Works(time.Second)
	})
}

// One direction of the link between leader and one follower is dead.
func TestHalfDeadLink(t *testing.T) {
	for _, toLeader := range []bool{false, true} {
		scenario(t, 3, func(s *Scenario) {
			leader := s.Leader()
			f := s.Others(leader)[0]
			if toLeader {
				s.Cut(f, leader)
			} else {
				s.Cut(leader, f)
			}
			s.Run(20 * time.Second)
			before := s.Count().Leaderships
			s.Run(30 * time.Second)
			if got := s.Count().Leaderships - before; got > 0 {
				s.Fail("%d leader changes over a half-dead link (to the leader: %v)", got, toLeader)
			}
			s.Works(time.Second)
		})
	}
}

// A member that lost its disk must not help to forget what it acknowledged: neither
// the entry on it and the leader's disk, nor its vote.
func TestWipedMemberForgetsNothing(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		leader := s.Leader()
		o := s.Others(leader)
		s.Run(time.Second)
		s.Isolate(o[1]) // holds less than the others from now on
		s.Run(200 * time.Millisecond)
		for range 5 {
			s.Write(leader)
		}
		s.Run(200 * time.Millisecond)
		s.Wipe(o[0])
		s.PowerCut(leader)
		s.Mend()
		s.Restart(o[0])
		s.Run(20 * time.Second) // no two of the rest may go on without what was acknowledged
		if l := s.Leader(); l >= 0 {
			s.Fail("machine %d leads; only machine %d has all that was acknowledged", l, leader)
		}
		s.Restart(leader)
		s.Works(10 * time.Second)
	})
}

// A wiped follower is brought up to date and is a full member again.
func TestWipedMemberComesBack(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		leader := s.Leader()
		s.Run(5 * time.Second)
		f := s.Others(leader)[1]
		s.Wipe(f)
		s.Run(time.Second)
		s.Restart(f)
		s.Run(3 * time.Second)
		if s.Leader() != leader {
			s.Fail("the return of %d with an empty disk deposed %d", f, leader)
		}
		s.Kill(leader) // the other two have to do
		s.Until(5*time.Second, func() bool { return s.Leader() >= 0 && s.Leader() != leader })
		s.Works(2 * time.Second)
	})
}

// A leader stands still for longer than its followers wait, and goes on as if nothing had
// happened.
func TestPausedLeader(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		old := s.Leader()
		s.Freeze(old, 5*time.Second)
		s.Until(4*time.Second, func() bool { return s.Leader() >= 0 && s.Leader() != old })
		s.Works(time.Second)
		s.Run(10 * time.Second)
		if s.Leads(old) {
			s.Fail("machine %d was paused for 5s and leads", old)
		}
	})
}

// All lose power in the middle of work.
func TestAllLosePower(t *testing.T) {
	scenario(t, 3, func(s *Scenario) {
		for range 5 {
			for range 20 {
				if l := s.Leader(); l >= 0 {
					s.Write(l)
				}
				s.Run(300 * time.Microsecond)
			}
			for i := range 3 {
				s.PowerCut(i)
			}
			s.Run(time.Second)
			for i := range 3 {
				s.Restart(i)
			}
			s.Works(10 * time.Second)
		}
	})
}

// Everybody stops in the first moments of a group's life, again and again.
func TestFirstStartsThatFail(t *testing.T) {
	for seed := range upTo(40) {
		o := Quiet(seed, 3)
		o.Load = LoadOptions{MaxSize: 16}
		s := &Scenario{c: New(o)}
		s.start = s.c.sim.Now()
		s.c.Start()
		s.Until(10*time.Second, func() bool { return s.Leader() >= 0 })
		s.Run(time.Duration(s.c.rng.Int64N(int64(3 * time.Millisecond))))
		for i := range 3 {
			s.PowerCut(i)
		}
		for i := range 3 {
			s.Restart(i)
		}
		s.Works(20 * time.Second)
		if err := s.End(); err != nil {
			t.Fatal(err)
		}
	}
}

// Quiet groups of all sizes do what they should and nothing else.
func TestQuiet(t *testing.T) {
	for nodes := 1; nodes <= 7; nodes++ {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			r := Run(Quiet(uint64(nodes), nodes))
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			if r.Count.Leaderships != 1 || r.Count.Truncations != 0 || r.Count.Timeouts != 0 {
				t.Errorf("%d leaderships, %d truncations, %d timeouts, want 1, 0, 0", r.Count.Leaderships, r.Count.Truncations, r.Count.Timeouts)
			}
			if r.Count.Acked == 0 || r.Count.UnknownOutcomes > 10 {
				t.Errorf("%d writes acknowledged, %d with unknown outcome", r.Count.Acked, r.Count.UnknownOutcomes)
			}
		})
	}
}

// Votes that are heard late elect a leader of a term that is over, behind the back of a later one that has
// committed more already. That is no fault: it can commit nothing, and the group goes on with the later one.
func TestLateVotesElectALeaderOfAnOlderTerm(t *testing.T) {
	elected := 0
	someSeeds(t, 60, 3, func(s *Scenario) {
		b := s.Leader()
		a, c := s.Others(b)[0], s.Others(b)[1]
		s.Isolate(b)
		s.Cut(a, c)
		s.Cut(c, a)
		s.Run(3 * time.Second)
		s.Connect([2]int{b, c})
		s.Until(10*time.Second, func() bool { return s.Campaigns(c) || s.Campaigns(b) })
		s.Connect([2]int{a, b}) // nobody hears that
		s.Until(2*time.Second, func() bool { return s.Campaigns(a) })
		s.SlowLink(b, a, 900*time.Millisecond)
		s.Run(20 * time.Millisecond)
		s.Connect([2]int{a, b}, [2]int{b, c})
		if _, ok := s.Until(2*time.Second, func() bool { return s.Leads(a) }); ok && s.Leader() != a && s.Lacks(a) {
			elected++
		}
		s.SlowLink(b, a, 0)
		s.Mend()
		s.Works(5 * time.Second)
	})
	t.Logf("elected late: %d", elected)
	if elected == 0 {
		t.Error("no vote came late enough")
	}
}
