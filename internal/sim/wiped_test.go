package sim

import (
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// These stories are about machines that have lost their disks, and with them the memory of what they had acknowledged. Each takes
// the one step after which a group that went on would have lost something that was committed, or would never go on again.

// stories runs a story with a few seeds, a part of them without clients, on a group whose leaders send the log in pieces of a kilobyte.
func stories(t *testing.T, nodes, spares int, set func(o *Options), story func(s *Scenario, leader int, others, spare []int)) {
	t.Helper()
	for seed := range upTo(10) {
		o := Quiet(seed, nodes)
		o.Spares, o.MaxAppendBytes, o.Members.Change = spares, 1<<10, time.Hour
		if seed%2 == 0 {
			o.Load.Writes, o.Load.Reads = 0, 0
		}
		if set != nil {
			set(&o)
		}
		tell(t, o, story)
	}
}

// inSmallPieces has a leader send one piece of the log at a time.
func inSmallPieces(o *Options) { o.MaxInflightRequests = 1 }

// writes has a machine take n values.
func (s *Scenario) writes(at, n int) {
	for range n {
		s.Write(at)
	}
}

// onDisk is how many entries a machine holds durably.
func (s *Scenario) onDisk(i int) int64 { return s.c.machines[i].marked }

// end is how long the log of a machine is.
func (s *Scenario) end(i int) int64 { return s.c.machines[i].st.Last }

// committedAt is how far a machine knows the log to be committed.
func (s *Scenario) committedAt(i int) int64 { return s.c.machines[i].st.Commit }

// nobodyLeads lets d pass, in which nobody may lead.
func (s *Scenario) nobodyLeads(d time.Duration, why string) {
	if _, led := s.Until(d, func() bool { return s.Leader() >= 0 }); led {
		s.Fail("machine %d leads: %s", s.Leader(), why)
	}
}

// asFounder has a machine without a disk start with the configuration that the group began with, as somebody would who
// does not know that the group has changed since.
func (s *Scenario) asFounder(i int) {
	m := s.c.machines[i]
	m.initial, m.base = s.c.conf, s.c.check.initial
}

// A and B hold what was committed, B loses its disk, and A is gone before B has got all of it again. C, which was cut off, votes for B: B's
// log is the longer one. With B's own vote that is a majority, and nobody in it knows what B has forgotten.
func TestWipedMachineDoesNotElectItself(t *testing.T) {
	stories(t, 3, 0, inSmallPieces, func(s *Scenario, a int, others, _ []int) {
		b, c := others[0], others[1]
		s.Isolate(c)
		s.writes(a, 400)
		s.Run(300 * time.Millisecond)
		lost := s.c.machines[b].st.Commit
		s.Wipe(b)
		s.Restart(b)
		s.Wait(500*time.Millisecond, "a part of the log", func() bool { return s.onDisk(b) > s.end(c)+20 })
		s.PowerCut(a)
		if s.end(b) >= lost {
			s.Fail("machine %d has got all %d entries again", b, lost)
		}
		s.Mend()
		s.nobodyLeads(20*time.Second, "only the machine that is gone holds all that was committed")
		s.Restart(a)
		s.Works(10 * time.Second)
	})
}

// Three of five hold what is committed, of whom one loses its disk and two are gone. The wiped one and those who were cut off are
// three of five as well, and share nothing with the former three.
func TestWipedMachineMakesNoMajority(t *testing.T) {
	stories(t, 5, 0, nil, func(s *Scenario, a int, others, _ []int) {
		b, d, late := others[0], others[1], others[2:]
		s.Separate(late, []int{a, b, d})
		s.writes(a, 5)
		s.Run(200 * time.Millisecond)
		s.Wipe(b)
		s.PowerCut(a)
		s.PowerCut(d)
		s.Mend()
		s.Restart(b)
		s.nobodyLeads(20*time.Second, "nobody who runs holds all that was committed")
		s.Restart(d)
		s.LeaderAmong(10*time.Second, d)
		s.Works(10 * time.Second)
	})
}

// A commits a lot with B, which has not heard that it is committed when A loses its disk. B leads next, and sends A the log with the commit
// index that it knows, an old one. What lies before that A holds soon, but not all that it had acknowledged. If its vote were
// a full one again then, A and C would go on without the rest.
func TestWipedMachineIsNotDoneWithAnOldCommit(t *testing.T) {
	far := func(o *Options) { // all of it is sent before the first answer comes
		o.Net.Delay, o.Load.MaxSize = 5*time.Millisecond, 512
	}
	stories(t, 3, 0, far, func(s *Scenario, a int, others, _ []int) {
		b, c := others[0], others[1]
		s.Isolate(c)
		s.writes(a, 100)
		s.Run(100 * time.Microsecond)
		s.Wait(time.Second, "all on the follower", func() bool { return s.onDisk(b) == s.end(a) })
		s.Cut(a, b)
		s.Wait(time.Second, "all committed", func() bool { return s.committedAt(a) == s.onDisk(b) })
		lost, known := s.committedAt(a), s.committedAt(b)
		s.Wipe(a)
		s.Kill(b)
		inSmallPieces(&s.c.o)
		s.Restart(b)
		s.Mend()
		s.Wait(5*time.Second, "the follower leads", func() bool { return s.Leads(b) })
		s.Separate([]int{b}, []int{c})
		s.Restart(a)
		s.Wait(500*time.Millisecond, "a part of the log", func() bool { return s.end(a) > max(known, s.end(c)) })
		if s.committedAt(b) != known || s.end(a) >= lost {
			s.Fail("the new leader knows of commits up to %d, and the wiped machine has %d entries again; %d were known, %d lost",
				s.committedAt(b), s.end(a), known, lost)
		}
		s.PowerCut(b)
		s.Mend()
		s.nobodyLeads(20*time.Second, "only the machine that is gone holds all that was committed")
		s.Restart(b)
		s.Works(10 * time.Second)
	})
}

// A group that has changed consists of A, B and C when B is replaced by an empty machine, which will not vote before it has copied the log.
// Without C, the two would be left to B's vote: if A starts anew before B has got that far, nobody can ever be elected.
func TestNobodyIsRemovedWhoseVoteIsNeeded(t *testing.T) {
	stories(t, 4, 0, inSmallPieces, func(s *Scenario, a int, others, _ []int) {
		b, c, d := others[0], others[1], others[2]
		s.Done(2*time.Second, "remove", s.Remove(a, d))
		s.writes(a, 1000)
		s.Run(500 * time.Millisecond)
		s.Wipe(b)
		s.Restart(b)
		s.Wait(500*time.Millisecond, "a part of the log", func() bool { return s.onDisk(b) > 20 })
		done := s.Remove(a, c)
		s.Run(5 * time.Millisecond)
		if !s.c.machines[b].st.Waiting || done() != errPending {
			s.Fail("machine %d waits: %v, the change ended with %v", b, s.c.machines[b].st.Waiting, done())
		}
		s.PowerCut(a)
		s.Run(time.Second)
		s.Restart(a)
		s.LeaderAmong(20*time.Second, a, c)
		s.Works(5 * time.Second)
	})
}

// Two of three founders, which the group has replaced, come back with empty disks and the configuration that the group began with, of which
// they are most. The third founder still belongs to the group, and its answer takes longer than those that they give each
// other. Who does not wait for it founds the group a second time.
func TestFoundersWaitForWhoAnswersLate(t *testing.T) {
	stories(t, 3, 2, nil, func(s *Scenario, leader int, others, spare []int) {
		stays, gone := others[0], []int{leader, others[1]}
		s.writes(leader, 5)
		s.Done(5*time.Second, "change", s.Change(leader, List(stays, spare[0], spare[1])))
		s.LeaderAmong(10*time.Second, stays, spare[0], spare[1])
		s.Run(5 * time.Second)
		now, term := s.Leader(), s.Term(s.Leader())
		for _, i := range gone {
			s.SlowLink(stays, i, s.c.o.Election/2)
			s.Wipe(i)
			s.asFounder(i)
		}
		for _, i := range gone {
			s.Restart(i)
		}
		for range 100 {
			s.Run(300 * time.Millisecond)
			if s.Leads(gone[0]) || s.Leads(gone[1]) {
				s.Fail("the founders have founded a second group")
			}
		}
		if s.Leader() != now || s.Term(now) != term {
			s.Fail("leader %d of term %d became leader %d of term %d", now, term, s.Leader(), s.Term(s.Leader()))
		}
		for _, i := range gone {
			s.SlowLink(stays, i, 0)
		}
	})
}

// B acknowledges a lot to A that is not committed, while it is being removed. Then it loses its disk, and is added again under the same
// leader. It has only begun to copy the log when it cannot be reached any more: leadership is not for it, however much it once had. For
// a commit it makes no difference: TestEarlierLivesOfPeersCommitNothing.
func TestWhoIsAddedAgainHasWhatItHasNow(t *testing.T) {
	addedAgain(t, func(s *Scenario, a, b, c int) {
		removed := s.Remove(a, b)
		s.Wait(time.Second, "the new configuration", func() bool { return s.Stored(c) == List(a, c) })
		last := s.end(a) + uncommitted
		s.Cut(a, c) // its answer arrives
		s.writes(a, uncommitted)
		s.Done(100*time.Millisecond, "remove", removed)
		s.Wait(100*time.Millisecond, "all on the removed one", func() bool { return s.onDisk(b) == last })
		s.Wait(100*time.Millisecond, "it knows", func() bool { return s.Removed(b) })
		s.Run(5 * time.Millisecond)
	})
}

// The same, where B's answer is still on its way to A when A has let go of B and adds it again.
func TestAnswersOfAnEarlierLifeComeLate(t *testing.T) {
	addedAgain(t, func(s *Scenario, a, b, c int) {
		s.Done(time.Second, "remove", s.Remove(a, b))
		s.Write(a)
		s.Wait(time.Second, "the removed one knows", func() bool { return s.Removed(b) })
		s.Run(600 * time.Microsecond) // it has answered that
		last := s.end(a) + uncommitted
		s.SlowLink(b, a, 50*time.Millisecond)
		s.Cut(a, c)
		s.writes(a, uncommitted)
		s.Wait(100*time.Millisecond, "all on the removed one", func() bool { return s.onDisk(b) == last })
		s.Run(time.Millisecond)
		s.PowerCut(b) // no connection breaks, which would end the wait for the answer
		s.SlowLink(b, a, 0)
	})
}

// uncommitted is how many entries that are not committed B of addedAgain has acknowledged.
const uncommitted = 50

// addedAgain has first happen, which removes b and lets it acknowledge entries that a cannot commit for want of c. Then b is wiped and
// added again, so far behind that it cannot be handed leadership.
func addedAgain(t *testing.T, first func(s *Scenario, a, b, c int)) {
	t.Helper()
	const margin = 2 * uncommitted
	set := func(o *Options) {
		o.Net.Delay, o.CatchupMargin, o.Load.Writes, o.Load.Reads = 2*time.Millisecond, margin, 0, 0
	}
	stories(t, 3, 0, set, func(s *Scenario, a int, others, _ []int) {
		b, c := others[0], others[1]
		first(s, a, b, c)
		s.Wipe(b)
		s.Restart(b)
		added := s.Add(a, b)
		s.Wait(300*time.Millisecond, "added", func() bool { return s.Conf(a) == List(a, b, c) })
		s.Mend()
		s.Cut(a, b)
		s.writes(a, margin-10)
		s.Done(100*time.Millisecond, "add", added)
		s.Run(20 * time.Millisecond)
		if lag := s.end(a) - s.onDisk(b); lag <= margin {
			s.Fail("machine %d lags by %d entries only", b, lag)
		}
		s.Refused(10*time.Millisecond, "transfer", graft.ErrCatchup, s.Transfer(a, b))
	})
}
