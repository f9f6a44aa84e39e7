package sim

import (
	"slices"
	"testing"
	"time"
)

// This file is stories of reads under two leaders. The old one has not heard that it is deposed; what it was told before, or what a part of
// the group tells it now, must not have a read that begins after a write was acknowledged by the new one see the state before. That is
// the checker's I12; what the stories demand is that the reads come to it.

// readers runs a story with a few seeds, without other clients.
func readers(t *testing.T, nodes, spares int, story func(s *Scenario, leader int, others, spare []int)) {
	t.Helper()
	for seed := range upTo(10) {
		o := Quiet(seed, nodes)
		o.Spares, o.Members.Change = spares, time.Hour // never; but the end tries changes
		o.Load.Writes, o.Load.Reads = 0, 0
		tell(t, o, story)
	}
}

// Read asks a machine for a read index. The result says how it ended, and that it has not.
func (s *Scenario) Read(i int) (result func() error) {
	err := errPending
	s.c.clients.ask(s.c.machines[i], func(e error) { err = e })
	return func() error { return err }
}

// Depose has some machines, whom nothing of what the leader says reaches any more, believe that its process is gone, so that they elect one
// of them, which has a write acknowledged. The old one is to believe that it leads all the while.
func (s *Scenario) Depose(old int, by []int) {
	term := s.Term(old)
	for _, i := range by {
		s.Cut(old, i)
		m := s.c.machines[i]
		s.c.later(time.Microsecond, m, func() { m.net.down(s.c.machines[old].address) })
	}
	s.Wait(s.c.o.Election/5, "another leader", func() bool { return slices.Contains(by, s.Leader()) })
	s.Done(s.c.o.Election/5, "a write at the new leader", s.Write(s.Leader()))
	if !s.Leads(old) || s.Term(old) != term {
		s.Fail("machine %d does not lead term %d any more", old, term)
	}
}

// Stale demands that reads which have begun at a deposed leader, or at who asks it, fail.
func (s *Scenario) Stale(results ...func() error) {
	for _, result := range results {
		s.Until(3*s.c.o.Election, func() bool { return result() != errPending })
		if err := result(); err == nil || err == errPending {
			s.Fail("a read at a deposed leader ended with %v, want an error", err)
		}
	}
}

// Answers to heartbeats and to entries are on their way to the leader when others depose it, and arrive while a read waits there that has
// begun since (L2).
func TestLateAnswersConfirmNoRead(t *testing.T) {
	readers(t, 3, 0, func(s *Scenario, old int, others, _ []int) {
		for _, i := range others {
			s.SlowLink(i, old, 2*s.c.o.Election/5)
		}
		s.Write(old)
		s.Run(s.c.o.Election / 5)
		s.Depose(old, others)
		read, began := s.Read(old), s.c.sim.Now()
		for _, i := range others {
			s.Wait(s.c.o.Election, "an answer that was late", func() bool { return s.Leads(old) && s.c.machines[old].heardOf[i].After(began) })
		}
		s.Stale(read)
	})
}

// A minority of the group answers its leader, and each message of theirs comes twice, while the others have another one (L2, M6).
func TestAMinorityConfirmsNoRead(t *testing.T) {
	readers(t, 5, 0, func(s *Scenario, old int, others, _ []int) {
		with, rest := others[0], others[1:]
		s.Separate([]int{old, with}, rest)
		s.Depose(old, rest)
		s.c.net.o.Dup = 1
		s.Stale(s.Read(old), s.Read(with), s.Read(old), s.Read(with))
	})
}

// The leader is the only one of the old voters who has the joint configuration. All of the new ones answer it; the old ones elect another
// by the old configuration (L1, M6).
func TestTheNewHalfAloneConfirmsNoRead(t *testing.T) {
	readers(t, 3, 2, func(s *Scenario, old int, others, spare []int) {
		target := List(old, spare[0], spare[1])
		joint := target + "/" + s.Conf(old)
		s.Separate(others, append(spare, old))
		s.Change(old, target)
		s.Wait(s.c.o.Election/5, "joint", func() bool { return s.all(append(spare, old), joint) })
		s.Depose(old, others)
		s.Stale(s.Read(old), s.Read(spare[0]), s.Read(spare[1]))
	})
}

// Rounds are under way, and what will confirm them, when the leader is deposed. A read that begins since has to wait for one of its own,
// which nobody will confirm (L2).
func TestAReadJoinsNoRoundUnderWay(t *testing.T) {
	readers(t, 3, 0, func(s *Scenario, old int, others, _ []int) {
		for _, i := range others {
			s.SlowLink(i, old, 2*s.c.o.Election/5)
		}
		first := s.Read(old)
		s.Run(time.Millisecond)
		second := s.Read(old)
		s.Run(time.Millisecond)
		s.Depose(old, others)
		third, fourth := s.Read(old), s.Read(old)
		s.Done(s.c.o.Election, "the first read", first)
		s.Done(s.c.o.Election, "the second read", second)
		s.Stale(third, fourth)
	})
}

// The leader's answer to a follower's read is late, and so are its entries. Meanwhile a write is acknowledged, by it or by who has deposed
// it, and another read begins at the follower (L2).
func TestAReadJoinsNoForwardUnderWay(t *testing.T) {
	late := func(s *Scenario, leader, reader int) (read func() error) {
		s.SlowLink(leader, reader, 2*s.c.o.Election/5)
		read = s.Read(reader)
		s.Run(s.c.o.Election / 50)
		return read
	}
	t.Run("one leader", func(t *testing.T) {
		readers(t, 3, 0, func(s *Scenario, leader int, others, _ []int) {
			first := late(s, leader, others[0])
			s.Done(s.c.o.Election/5, "a write", s.Write(leader))
			second := s.Read(others[0])
			if first() != errPending {
				s.Fail("the first read ended with %v before the second began", first())
			}
			s.Done(s.c.o.Election, "the first read", first)
			s.Done(s.c.o.Election, "the second read", second)
		})
	})
	t.Run("two leaders", func(t *testing.T) {
		readers(t, 5, 0, func(s *Scenario, old int, others, _ []int) {
			with, rest := others[0], others[1:]
			first := late(s, old, with)
			s.Separate([]int{old, with}, rest)
			s.Depose(old, rest)
			second := s.Read(with)
			s.Done(s.c.o.Election, "the first read", first)
			s.Stale(second)
		})
	})
}
