package sim

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// family runs a story about membership with a few seeds: some machines begin the group, the others are on and
// wait to be added. The seed changes the timing, and in a part of the runs clients are at work.
func family(t *testing.T, nodes, spares int, story func(s *Scenario, leader int, others, spare []int)) {
	t.Helper()
	for seed := range upTo(10) {
		o := Quiet(seed, nodes)
		o.Spares, o.Members.Change = spares, time.Hour // never; but the end tries changes
		if seed%2 == 0 {
			o.Load.Writes, o.Load.Reads = 0, 0
		}
		tell(t, o, story)
	}
}

func tell(t *testing.T, o Options, story func(s *Scenario, leader int, others, spare []int)) {
	t.Helper()
	s := Begin(o)
	var others, spare []int
	for i := range o.Nodes + o.Spares {
		switch {
		case i >= o.Nodes:
			s.Join(i)
			spare = append(spare, i)
		case i != s.Leader():
			others = append(others, i)
		}
	}
	s.Run(o.Election / 2)
	if s.Err() == nil {
		s.c.guard(func() { story(s, s.Leader(), others, spare) })
	}
	if err := s.End(); err != nil {
		t.Fatal(err)
	}
}

// A leader's death at each point of a change through a joint configuration (Q10). The change goes on
// or is undone as a whole, whatever was acknowledged survives, and nobody waits for an answer for ever.
func TestLeaderDiesAtEachPointOfAChange(t *testing.T) {
	const before, after, either = "old", "new", "either"
	type story struct {
		s           *Scenario
		leader      int
		olds, news  []int // voters by one half only
		target      string
		done        func() error
		jointIsHere func() bool
	}
	alone := func(st *story) { // what the leader appends stays with it
		st.s.Isolate(st.leader)
	}
	points := []struct {
		name string
		want string
		die  func(st *story)
	}{
		{"catching up", before, func(st *story) {
			st.s.Wait(time.Second, "catching up", func() bool { return st.s.Stage(st.leader) == graft.StageCatchingUp })
		}},
		{"joint appended", before, func(st *story) {
			st.s.Wait(time.Second, "joint", st.jointIsHere)
			alone(st)
			st.s.Wait(time.Second, "durable", func() bool { return st.s.Stored(st.leader) == st.s.Conf(st.leader) })
		}},
		{"joint on the old majority only", after, func(st *story) {
			st.s.Wait(time.Second, "joint", st.jointIsHere)
			st.s.Separate(st.news, st.s.Others(-1))
			st.s.Wait(time.Second, "joint there", func() bool { return st.s.all(st.olds, st.s.Conf(st.leader)) })
		}},
		{"joint on the new majority only", either, func(st *story) {
			st.s.Wait(time.Second, "joint", st.jointIsHere)
			st.s.Separate(st.olds, st.s.Others(-1))
			st.s.Wait(time.Second, "joint there", func() bool { return st.s.all(st.news, st.s.Conf(st.leader)) })
		}},
		{"joint committed", after, func(st *story) {
			st.s.Wait(time.Second, "joint", st.jointIsHere)
			st.s.Wait(time.Second, "committed", func() bool { return st.s.Committed() == st.s.Conf(st.leader) })
		}},
		{"new appended", after, func(st *story) {
			st.s.Wait(time.Second, "new", func() bool { return st.s.Conf(st.leader) == st.target })
			alone(st)
			st.s.Wait(time.Second, "durable", func() bool { return st.s.Stored(st.leader) == st.target })
		}},
		{"new committed", after, func(st *story) {
			st.s.Wait(time.Second, "committed", func() bool { return st.s.Committed() == st.target })
		}},
		{"before the answer", after, func(st *story) {
			st.s.Wait(time.Second, "over", func() bool {
				return st.s.Conf(st.leader) == st.target && st.s.Stage(st.leader) == graft.StageNone
			})
			if st.done() != errPending {
				st.s.Fail("answered in the step that ended the change: %v", st.done())
			}
		}},
	}
	for _, p := range points {
		for _, leaves := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, leader leaves: %v", p.name, leaves), func(t *testing.T) {
				family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
					st := &story{s: s, leader: leader, olds: others, news: spare, target: List(leader, spare[0], spare[1])}
					if leaves {
						st.target, st.olds, st.news = List(others[0], spare[0], spare[1]), others[1:], spare
					}
					old := s.Conf(leader)
					joint := st.target + "/" + old
					st.jointIsHere = func() bool { return s.Conf(leader) == joint }
					s.Write(leader)
					st.done = s.Change(leader, st.target)
					p.die(st)
					s.Kill(leader)
					s.Mend()
					s.Run(8 * time.Second)
					s.Restart(leader)
					s.Wait(20*time.Second, "an end of the change", func() bool { return s.c.led() && s.c.settled() })
					final := s.Conf(s.Leader())
					want := map[string][]string{before: {old}, after: {st.target}, either: {old, st.target}}[p.want]
					if !slices.Contains(want, final) {
						s.Fail("the configuration is %s, want one of %v", final, want)
					}
				})
			})
		}
	}
}

// all reports whether all of some machines hold a configuration durably.
func (s *Scenario) all(machines []int, conf string) bool {
	return !slices.ContainsFunc(machines, func(i int) bool { return s.Stored(i) != conf })
}

// While it catches up, a new peer goes by the old configuration, is counted by nobody and campaigns never, even if
// the leader dies (Q1).
func TestWhoCatchesUpKeepsQuiet(t *testing.T) {
	for seed := range upTo(10) {
		o := Quiet(seed, 3)
		o.Spares, o.CatchupMargin, o.MaxAppendBytes, o.MaxInflightRequests = 1, 1, 1<<10, 1
		o.Members.Change = time.Hour
		tell(t, o, func(s *Scenario, leader int, others, spare []int) {
			for range 400 {
				s.Write(leader)
			}
			s.Run(time.Second)
			x := spare[0]
			old := s.Conf(leader)
			s.Add(leader, x)
			s.Wait(2*time.Second, "a part of the log", func() bool { return s.c.machines[x].st.Last > 50 })
			if s.Stage(leader) != graft.StageCatchingUp || s.Conf(x) != old {
				s.Fail("stage %v, the new peer goes by %s, want catching-up, %s", s.Stage(leader), s.Conf(x), old)
			}
			s.PowerCut(leader)
			s.Run(10 * time.Second)
			if !s.Quiet(x, 20*time.Second) || s.Conf(x) != old {
				s.Fail("the new peer asks for votes, or goes by %s", s.Conf(x))
			}
			s.LeaderAmong(time.Second, others...)
			s.Works(time.Second)
		})
	}
}

// A peer that is being added may lead as soon as the joint configuration is in its log, with majorities of both
// halves; then it completes the change. Without one of the majorities nobody leads (Q2).
func TestNewPeerCompletesTheChange(t *testing.T) {
	family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
		target := List(leader, spare[0], spare[1])
		joint := target + "/" + s.Conf(leader)
		all := append(slices.Clone(others), spare...)
		s.Change(leader, target)
		s.Wait(time.Second, "joint", func() bool { return s.Conf(leader) == joint })
		// Nobody's acknowledgement arrives, so that it stays uncommitted.
		for _, i := range all {
			s.Cut(i, leader)
		}
		s.Wait(time.Second, "joint everywhere", func() bool { return s.all(all, joint) })
		s.PowerCut(leader)
		x, y := spare[0], spare[1]
		s.Hub(x, others[0], y) // it lacks the old majority
		s.Run(10 * time.Second)
		if l := s.Leader(); l >= 0 {
			s.Fail("machine %d leads without a majority of the old configuration", l)
		}
		s.Hub(x, others[0], others[1], y)
		s.LeaderAmong(10*time.Second, x)
		s.Wait(5*time.Second, "the new configuration", func() bool { return s.Committed() == target })
	})
}

// A leader that is not in the new configuration brings the change to its end, says so, and leaves leadership to
// one of the new voters without a pause (Q3a, H-66).
func TestLeaderLeaves(t *testing.T) {
	family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
		target := []int{others[0], spare[0], spare[1]}
		s.Done(2*time.Second, "change", s.Change(leader, List(target...)))
		before := s.Count().LeadersRemoved
		took, ok := s.Until(2*time.Second, func() bool { return s.Leader() >= 0 && s.Leader() != leader })
		if !ok || took > 100*time.Millisecond || !slices.Contains(target, s.Leader()) {
			s.Fail("after %v machine %d leads", took, s.Leader())
		}
		s.Run(100 * time.Millisecond)
		if s.Count().LeadersRemoved != 1 || before > 1 {
			s.Fail("OnLeaderStop with ErrLeaderRemoved came %d times", s.Count().LeadersRemoved)
		}
		term := s.Term(s.Leader())
		s.Run(10 * time.Second)
		if s.Term(s.Leader()) != term || !s.Removed(leader) || !s.Quiet(leader, 9*time.Second) {
			s.Fail("term %d became %d; the old leader knows: %v", term, s.Term(s.Leader()), s.Removed(leader))
		}
	})
}

// From the moment when it is no voter any more a leader takes no proposals, and it leaves within an election
// timeout even if nobody is there to take over; H-66.
func TestLeavingLeaderTakesNoProposals(t *testing.T) {
	for seed := range upTo(10) {
		o := Quiet(seed, 3)
		o.MaxInflightRequests, o.Members.Change = 1, time.Hour
		tell(t, o, func(s *Scenario, leader int, others, _ []int) {
			target := List(others...)
			done := s.Remove(leader, leader)
			s.Wait(time.Second, "new", func() bool { return s.Conf(leader) == target })
			s.Run(100 * time.Microsecond)
			s.Write(leader) // it is sent when the configuration was acknowledged, and so keeps the leader here
			s.Wait(time.Second, "committed", func() bool { return s.Committed() == target })
			s.Isolate(leader)
			s.Done(100*time.Millisecond, "remove", done)
			s.Refused(100*time.Millisecond, "write", graft.ErrBusy, s.Write(leader))
			s.Wait(1100*time.Millisecond, "the leader leaves", func() bool { return !s.Leads(leader) })
		})
	}
}

// The new configuration reaches nobody but the leader that it leaves out, and that dies and comes back;
// (Q3b)
func TestLeavingLeaderAloneHasTheNewConfiguration(t *testing.T) {
	family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
		target := List(others[0], spare[0], spare[1])
		s.Change(leader, target)
		s.Wait(time.Second, "new", func() bool { return s.Conf(leader) == target })
		s.Isolate(leader)
		s.Wait(time.Second, "durable", func() bool { return s.Stored(leader) == target })
		s.Kill(leader)
		s.Run(200 * time.Millisecond)
		s.Mend()
		s.Restart(leader)
		s.Wait(10*time.Second, "the new configuration", func() bool { return s.Committed() == target })
		s.LeaderAmong(5*time.Second, others[0], spare[0], spare[1])
	})
}

// A dead member is replaced in one change, while clients write (Q5).
func TestDeadMemberIsReplaced(t *testing.T) {
	family(t, 3, 1, func(s *Scenario, leader int, others, spare []int) {
		s.PowerCut(others[1])
		s.Run(2 * time.Second)
		done := s.Change(leader, List(leader, others[0], spare[0]))
		for range 20 {
			s.Write(s.Leader())
		}
		s.Works(time.Second)
		s.Done(time.Second, "change", done)
		if s.Leader() != leader {
			s.Fail("leadership went from %d to %d", leader, s.Leader())
		}
	})
}

// A peer is removed that hears nothing of it. When it comes back it must disturb nobody, and is told;
// (Q6, H-06)
func TestRemovedPeerIsToldAndKeepsQuiet(t *testing.T) {
	family(t, 3, 0, func(s *Scenario, leader int, others, _ []int) {
		x := others[1]
		s.Isolate(x)
		s.Run(100 * time.Millisecond)
		s.Done(2*time.Second, "remove", s.Remove(leader, x))
		s.Run(5 * time.Second)
		if s.Removed(x) {
			s.Fail("machine %d knows of its removal, which nobody could tell it", x)
		}
		term := s.Term(leader)
		s.Mend()
		s.Run(20 * time.Second)
		if s.Leader() != leader || s.Term(leader) != term {
			s.Fail("leader %d of term %d became leader %d of term %d", leader, term, s.Leader(), s.Term(s.Leader()))
		}
		if !s.Removed(x) || !s.Quiet(x, 15*time.Second) {
			s.Fail("the removed machine %d knows: %v, keeps quiet: %v", x, s.Removed(x), s.Quiet(x, 15*time.Second))
		}
	})
}

// A removed peer that can be reached learns it from the leader, before it ever misses it (H-06).
func TestLeaderTellsWhomItRemoves(t *testing.T) {
	family(t, 3, 0, func(s *Scenario, leader int, others, _ []int) {
		done := s.Remove(leader, others[0])
		s.Wait(time.Second, "the removed peer knows", func() bool { return s.Removed(others[0]) })
		s.Done(time.Second, "remove", done)
		s.Run(5 * time.Second)
		if !s.Quiet(others[0], time.Minute) {
			s.Fail("the removed machine %d asked for votes", others[0])
		}
	})
}

// A client that tries again through leader changes adds a peer once (Q8, H-60).
func TestRetriedChangeHappensOnce(t *testing.T) {
	family(t, 3, 1, func(s *Scenario, leader int, others, spare []int) {
		x := spare[0]
		for i := range 5 {
			done := s.Add(s.Leader(), x)
			s.Run(time.Duration(i) * 2 * time.Millisecond)
			old := s.Leader()
			s.Isolate(old)
			s.Wait(10*time.Second, "another leader", func() bool { return s.Leader() >= 0 && s.Leader() != old })
			s.Run(2 * time.Second)
			if err := done(); err == errPending {
				s.Fail("leader %d is cut off and has not answered", old)
			}
			s.Mend()
			s.Wait(10*time.Second, "quiet", func() bool { return s.c.led() && s.c.settled() })
		}
		s.Done(5*time.Second, "add", s.Add(s.Leader(), x))
		s.Done(5*time.Second, "add again", s.Add(s.Leader(), x))
		if want := List(0, 1, 2, x); s.Committed() != want {
			s.Fail("the configuration is %s, want %s", s.Committed(), want)
		}
		changes := 0
		for _, c := range s.c.check.confs {
			if c.owner != nil {
				changes++
			}
		}
		if changes != 1 {
			s.Fail("the peer was added by %d committed changes", changes)
		}
	})
}

// The longest log is that of a voter that the uncommitted configuration in it leaves out. It may campaign, by the
// configuration before, or there is no leader any more (H-04).
func TestOutsiderWithTheLongestLogLeads(t *testing.T) {
	family(t, 3, 1, func(s *Scenario, a int, others, spare []int) {
		b, c, d := others[0], others[1], spare[0]
		target := List(a, b, d)
		s.Change(a, target)
		s.Wait(time.Second, "new", func() bool { return s.Conf(a) == target })
		s.Connect([2]int{a, c})
		s.Wait(time.Second, "new on the outsider", func() bool { return s.Stored(c) == target })
		s.PowerCut(a)
		s.Mend()
		s.LeaderAmong(10*time.Second, c)
		s.LeaderAmong(10*time.Second, b, d)
		if s.Committed() != target {
			s.Fail("the configuration is %s, want %s", s.Committed(), target)
		}
		s.Wait(10*time.Second, "the outsider knows", func() bool { return s.Removed(c) })
		s.Works(2 * time.Second)
	})
}

// The new voters crash before they get the new configuration, the old ones hold it (H-04, second case).
func TestNewVotersCrashBeforeTheyKnow(t *testing.T) {
	family(t, 5, 0, func(s *Scenario, a int, others, _ []int) {
		news, olds := others[:2], append([]int{a}, others[2:]...)
		target := List(news...)
		s.Change(a, target)
		s.Wait(time.Second, "new", func() bool { return s.Conf(a) == target })
		s.Separate(news, olds)
		s.Wait(time.Second, "new on the old ones", func() bool { return s.all(olds, target) })
		for i := range 5 {
			s.PowerCut(i)
		}
		s.Mend()
		s.Run(time.Second)
		for i := range 5 {
			s.Restart(i)
		}
		s.Wait(10*time.Second, "the new configuration", func() bool { return s.Committed() == target })
		s.LeaderAmong(10*time.Second, news...)
		s.Works(2 * time.Second)
	})
}

// A restated configuration must not hide by which one a node may campaign: the one with the longest log is left out
// by an uncommitted configuration, is elected all the same, and loses contact again before anybody has
// what it restates (H-04).
func TestOutsiderLeadsTwice(t *testing.T) {
	family(t, 2, 0, func(s *Scenario, a int, others, _ []int) {
		b := others[0]
		s.Remove(a, a)
		s.Wait(time.Second, "new", func() bool { return s.Conf(a) == List(b) })
		for range 3 {
			s.Isolate(a)
			s.Wait(5*time.Second, "nobody leads", func() bool { return !s.Leads(a) })
			term := s.Term(a)
			s.Mend()
			s.Wait(10*time.Second, "the outsider leads again", func() bool { return s.Leads(a) && s.Term(a) > term })
		}
		s.Wait(10*time.Second, "the new configuration", func() bool { return s.Committed() == List(b) })
	})
}

// Voters do not ask whether a candidate is a member by their own configuration (H-05).
func TestVoterElectsWhomItDoesNotKnow(t *testing.T) {
	family(t, 2, 1, func(s *Scenario, a int, others, spare []int) {
		b, d := others[0], spare[0]
		target := List(a, b, d)
		s.Add(a, d)
		s.Wait(time.Second, "new", func() bool { return s.Conf(a) == target })
		s.Connect([2]int{a, d})
		s.Wait(time.Second, "new there", func() bool { return s.Stored(d) == target })
		s.PowerCut(a)
		if s.Conf(b) == target {
			s.Fail("machine %d has the new configuration already", b)
		}
		s.Mend()
		s.LeaderAmong(10*time.Second, d)
		s.Works(2 * time.Second)
	})
}

// A leader begins no change before an entry of its own term is committed: two leaders with an uncommitted change
// each could decide without each other (H-10; Ongaro 2015).
func TestNoChangeBeforeTheTermsOwnEntry(t *testing.T) {
	family(t, 4, 1, func(s *Scenario, first int, others, spare []int) {
		s.Add(first, spare[0])
		s.Wait(time.Second, "appended", func() bool { return s.Conf(first) == List(0, 1, 2, 3, spare[0]) })
		s.Isolate(first)
		s.Wait(10*time.Second, "a second leader", func() bool { return s.Leader() >= 0 && s.Leader() != first })
		second := s.Leader()
		s.Isolate(second)
		old := s.Conf(second)
		s.Refused(time.Second, "remove", graft.ErrBusy, s.Remove(second, first))
		s.Run(500 * time.Millisecond)
		if s.Conf(second) != old {
			s.Fail("leader %d without a committed entry went from %s to %s", second, old, s.Conf(second))
		}
	})
}

// Fewer voters make a smaller majority, which commits what was proposed under the larger one as well, as it
// stands before the new configuration (H-11).
func TestRemovalCommitsWhatCameBefore(t *testing.T) {
	family(t, 4, 0, func(s *Scenario, a int, others, _ []int) {
		s.Run(500 * time.Millisecond)
		b, c, d := others[0], others[1], others[2]
		s.Separate([]int{c, d}, []int{a, b})
		s.Run(50 * time.Millisecond)
		write := s.Write(a)
		s.Run(100 * time.Millisecond)
		if write() != errPending {
			s.Fail("two of four have acknowledged a write: %v", write())
		}
		s.Done(200*time.Millisecond, "remove", s.Remove(a, d))
		s.Done(200*time.Millisecond, "write", write)
		s.PowerCut(a)
		s.Mend()
		s.LeaderAmong(10*time.Second, b) // the only one left that has all
	})
}

// The same with a joint configuration, which needs the old majority as well (H-11).
func TestJointConfigurationWaitsForTheOldMajority(t *testing.T) {
	family(t, 4, 1, func(s *Scenario, a int, others, spare []int) {
		s.Run(500 * time.Millisecond)
		b, c, d, e := others[0], others[1], others[2], spare[0]
		target := List(a, b, e)
		done := s.Change(a, target)
		s.Wait(time.Second, "joint", func() bool { return s.Conf(a) == target+"/"+List(0, 1, 2, 3) })
		s.Separate([]int{c, d}, []int{a, b, e})
		write := s.Write(a)
		s.Run(300 * time.Millisecond)
		if done() != errPending || write() != errPending {
			s.Fail("the joint configuration was committed by two of the four old voters: %v, %v", done(), write())
		}
		s.Separate([]int{d}, []int{a, b, c, e})
		s.Connect([2]int{a, b}, [2]int{a, c}, [2]int{a, e}, [2]int{b, c}, [2]int{b, e}, [2]int{c, e})
		s.Done(2*time.Second, "change", done)
		s.Done(time.Second, "write", write)
	})
}

// A change to voters of which most are dead is refused before anything is in the log, which nobody could take
// back (H-61).
func TestChangeToADeadMajorityIsRefused(t *testing.T) {
	family(t, 4, 0, func(s *Scenario, leader int, others, _ []int) {
		s.PowerCut(others[2])
		s.Run(2 * time.Second)
		old := s.Conf(leader)
		s.Refused(time.Second, "change", graft.ErrUnreachable, s.Change(leader, List(others[1], others[2])))
		if s.Conf(leader) != old || s.Leader() != leader {
			s.Fail("machine %d leads under %s, want %d, %s", s.Leader(), s.Conf(leader), leader, old)
		}
		s.Works(100 * time.Millisecond)
	})
}

// The new majority dies between the joint configuration and its commit: the status says who is missing, and
// when they are back the change goes on (H-61).
func TestNewMajorityDiesInTheJointStage(t *testing.T) {
	family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
		target := List(spare...)
		joint := target + "/" + s.Conf(leader)
		s.Change(leader, target)
		s.Wait(time.Second, "joint", func() bool { return s.Conf(leader) == joint })
		for _, i := range spare {
			s.Kill(i)
		}
		s.Run(50 * time.Millisecond)
		st := s.c.machines[leader].node.Status()
		if st.Stage != graft.StageJoint || len(st.Awaited) != 2 || st.Change == nil {
			s.Fail("stage %v, awaited are %v, change %v", st.Stage, st.Awaited, st.Change)
		}
		s.Run(5 * time.Second)
		for _, i := range spare {
			s.Restart(i)
		}
		s.LeaderAmong(20*time.Second, spare...)
		s.Wait(5*time.Second, "the new configuration", func() bool { return s.Committed() == target })
	})
}

// Who inherits a joint configuration must have both majorities for an entry of its own term before the new
// configuration follows (H-67, M23).
func TestInheritedJointConfigurationNeedsBothMajorities(t *testing.T) {
	family(t, 3, 2, func(s *Scenario, leader int, others, spare []int) {
		target := List(leader, spare[0], spare[1])
		joint := target + "/" + s.Conf(leader)
		all := append(slices.Clone(others), spare...)
		s.Change(leader, target)
		s.Wait(time.Second, "joint", func() bool { return s.Conf(leader) == joint })
		for _, i := range all {
			s.Cut(i, leader)
		}
		s.Wait(time.Second, "joint everywhere", func() bool { return s.all(all, joint) })
		s.PowerCut(leader)
		x := spare[0]
		s.Hub(x, all...)
		s.Wait(10*time.Second, "the heir leads", func() bool { return s.Leads(x) })
		s.Separate([]int{x}, others) // no acknowledgement of the old majority
		s.Run(900 * time.Millisecond)
		if s.Conf(x) != joint {
			s.Fail("the heir went on to %s without the old majority", s.Conf(x))
		}
		s.Run(5 * time.Second)
		s.Mend()
		s.Wait(20*time.Second, "the new configuration", func() bool { return s.Committed() == target })
	})
}

// Who is added counts only when it can vote: the leader that adds it may die at once; a group of one would be
// without any majority.
func TestWhoCountsCanVote(t *testing.T) {
	family(t, 1, 1, func(s *Scenario, a int, _, spare []int) {
		done := s.Add(a, spare[0])
		s.Wait(2*time.Second, "added", func() bool { return s.Conf(a) == List(a, spare[0]) })
		s.Isolate(a)
		s.Wait(time.Second, "durable", func() bool { return s.Stored(a) == s.Conf(a) })
		s.PowerCut(a)
		s.Mend()
		s.Restart(a)
		s.Wait(10*time.Second, "a leader", func() bool { return s.c.led() && s.c.settled() })
		if done() == nil {
			s.Fail("the process that was asked is dead, and has answered")
		}
	})
}

// Machines that were removed and wiped must not help one that was removed too, and does not know, to go on
// with the past.
func TestWipedJoinersElectNobody(t *testing.T) {
	family(t, 3, 3, func(s *Scenario, leader int, others, spare []int) {
		s.Run(time.Second)
		zombie := others[0]
		s.PowerCut(zombie)
		s.Run(2 * time.Second)
		s.Done(5*time.Second, "change", s.Change(leader, List(spare...)))
		s.Run(2 * time.Second)
		for _, i := range []int{leader, others[1]} {
			s.Wipe(i)
			s.Restart(i)
		}
		s.Restart(zombie)
		s.Run(20 * time.Second)
		if s.Leads(zombie) || !slices.Contains(spare, s.Leader()) {
			s.Fail("machine %d leads, the zombie too: %v", s.Leader(), s.Leads(zombie))
		}
	})
}

// A machine that was once a group of its own is wiped, and added again: as it copies the past it must not take
// that for the present.
func TestWipedMachineCopiesThePast(t *testing.T) {
	for seed := range upTo(10) {
		o := Quiet(seed, 1)
		o.Spares, o.MaxAppendBytes, o.MaxInflightRequests, o.CatchupMargin = 2, 1<<10, 1, 1
		o.Members.Change = time.Hour
		tell(t, o, func(s *Scenario, first int, _, spare []int) {
			for range 400 {
				s.Write(first)
			}
			s.Run(time.Second)
			s.Done(10*time.Second, "change", s.Change(first, List(spare...)))
			leader := s.LeaderAmong(10*time.Second, spare...)
			s.Run(2 * time.Second)
			s.Wipe(first)
			s.Restart(first)
			s.Add(leader, first)
			s.Wait(2*time.Second, "a part of the log", func() bool { return s.c.machines[first].marked > 100 })
			if s.Conf(first) != List(first) {
				s.Fail("machine %d goes by %s", first, s.Conf(first))
			}
			s.PowerCut(first)
			s.Restart(first)
			s.Run(10 * time.Second)
			if s.Leads(first) || s.Leader() != leader {
				s.Fail("machine %d leads, the one that copies the past too: %v", s.Leader(), s.Leads(first))
			}
		})
	}
}
