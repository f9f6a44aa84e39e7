package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// A learner has everything, and counts nowhere: not for a commit, not for an election.
func TestLearnerCountsNowhere(t *testing.T) {
	family(t, 2, 1, func(s *Scenario, a int, others, spare []int) {
		b, x := others[0], spare[0]
		s.Done(2*time.Second, "add", s.AddLearner(a, x))
		s.Done(time.Second, "add again", s.AddLearner(a, x))
		s.Separate([]int{b}, []int{a, x})
		write := s.Write(a)
		s.Wait(500*time.Millisecond, "the learner has it", func() bool { return s.c.machines[x].marked == s.c.machines[a].marked })
		s.Run(300 * time.Millisecond)
		if write() == nil {
			s.Fail("a leader and a learner have committed a write")
		}
		s.PowerCut(a)
		s.Mend()
		s.Run(10 * time.Second)
		if l := s.Leader(); l >= 0 || !s.Quiet(x, time.Minute) {
			s.Fail("machine %d leads; the learner asks for votes: %v", l, !s.Quiet(x, time.Minute))
		}
		s.Restart(a)
		s.Works(10 * time.Second)
		s.PowerCut(x)
		s.Refused(5*time.Second, "promote a dead learner", graft.ErrCatchup, s.Add(s.Leader(), x))
		s.Restart(x)
		s.Done(5*time.Second, "promote", s.Add(s.Leader(), x))
		s.Done(5*time.Second, "demote", s.AddLearner(s.Leader(), x))
		if want := List(a, b) + "," + fmt.Sprintf("%dl", x); s.Committed() != want {
			s.Fail("the configuration is %s, want %s", s.Committed(), want)
		}
	})
}

// Leadership goes where it is sent, in milliseconds, and nobody else gets it.
func TestTransfer(t *testing.T) {
	family(t, 3, 0, func(s *Scenario, leader int, others, _ []int) {
		s.Run(500 * time.Millisecond)
		s.Done(time.Second, "transfer", s.Transfer(leader, others[1]))
		if took, ok := s.Until(time.Second, func() bool { return s.Leads(others[1]) }); !ok || took > 50*time.Millisecond {
			s.Fail("after %v machine %d leads", took, s.Leader())
		}
		s.Works(100 * time.Millisecond)
	})
}

// A transfer to a peer that is gone gives control back after an election timeout.
func TestTransferThatComesToNothing(t *testing.T) {
	family(t, 3, 0, func(s *Scenario, leader int, others, _ []int) {
		s.Run(500 * time.Millisecond)
		s.Separate(others[1:], []int{leader, others[0]})
		s.Write(leader)
		s.Run(10 * time.Millisecond)
		s.Done(time.Second, "transfer", s.Transfer(leader, others[1]))
		s.Refused(100*time.Millisecond, "write", graft.ErrBusy, s.Write(leader))
		s.Run(1100 * time.Millisecond)
		if s.Leader() != leader {
			s.Fail("machine %d leads, want %d", s.Leader(), leader)
		}
		s.Works(100 * time.Millisecond)
	})
}

// A group that has lost its majority in the joint stage goes on from what one machine has, by hand, and does
// not fall back after a restart (H-12).
func TestResetEndsAJointConfiguration(t *testing.T) {
	family(t, 3, 1, func(s *Scenario, leader int, others, spare []int) {
		target := List(leader, spare[0])
		s.Change(leader, target)
		s.Wait(time.Second, "joint", func() bool { return s.Conf(leader) == target+"/"+List(0, 1, 2) })
		for _, i := range append(others, spare...) {
			s.PowerCut(i)
		}
		s.Wait(5*time.Second, "the leader gives up", func() bool { return !s.Leads(leader) })
		s.Done(time.Second, "reset", s.Reset(leader, List(leader)))
		s.Works(5 * time.Second)
		s.PowerCut(leader)
		s.Restart(leader)
		s.Works(5 * time.Second)
		if s.Conf(leader) != List(leader) {
			s.Fail("the configuration is %s", s.Conf(leader))
		}
		for _, i := range others { // they are lost for good
			s.Wipe(i)
		}
		s.Restart(spare[0])
		s.Done(5*time.Second, "add", s.Add(leader, spare[0]))
	})
}
