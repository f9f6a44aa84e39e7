package sim

import (
	"errors"
	"time"

	"github.com/graft-raft/graft"
)

// Scenario is a cluster that a test leads through a story, step by step. The checker
// watches all the while.
//
//	s := Begin(Quiet(1, 3))
//	old := s.Leader()
//	s.Isolate(old)
//	s.Run(5 * time.Second)
//	…
//	s.End()
type Scenario struct {
	c     *Cluster
	start time.Time
}

// Begin starts a cluster and waits until it has a leader that everybody follows and has
// been brought up to date by. It has clients as o says, and no faults but those that the story brings.
func Begin(o Options) *Scenario {
	s := &Scenario{c: New(o)}
	s.start = s.c.sim.Now()
	s.c.guard(func() {
		s.c.Start()
		s.c.clients.begin()
		if !s.c.until(20*o.Election, func() bool { return s.c.led() && !s.c.anyWaiting() }) {
			s.c.fail("no leader at the start")
		}
	})
	return s
}

// Err is what went wrong so far.
func (s *Scenario) Err() error { return s.c.result(s.start).Err }

// Fail records what the story finds wrong.
func (s *Scenario) Fail(format string, args ...any) { s.c.fail(format, args...) }

// Count is what has happened so far.
func (s *Scenario) Count() *Counters { return &s.c.Count }

// Run lets d pass.
func (s *Scenario) Run(d time.Duration) { s.c.guard(func() { s.c.run(d) }) }

// Until lets time pass until cond holds, at most limit, and says how long it took.
func (s *Scenario) Until(limit time.Duration, cond func() bool) (took time.Duration, ok bool) {
	before := s.c.sim.Now()
	s.c.guard(func() { ok = s.c.until(limit, cond) })
	return s.c.sim.Now().Sub(before), ok
}

// Leader is the machine that leads in the highest term, -1 if none does.
func (s *Scenario) Leader() int {
	if m := s.c.leader(); m != nil {
		return m.index
	}
	return -1
}

// Leads reports whether a machine believes to lead.
func (s *Scenario) Leads(i int) bool {
	return s.c.machines[i].up && s.c.machines[i].st.Role == graft.RoleLeader
}

// Campaigns reports whether a machine asks for votes.
func (s *Scenario) Campaigns(i int) bool {
	return s.c.machines[i].up && s.c.machines[i].st.Role == graft.RoleCandidate
}

// Lacks reports whether a machine lacks something that is committed.
func (s *Scenario) Lacks(i int) bool {
	n := int64(len(s.c.check.committed))
	return n > 0 && !s.c.machines[i].holds(s.c.check.committed[n-1], int64(len(s.c.machines[i].log)))
}

// Term is the term that a machine is in.
func (s *Scenario) Term(i int) int64 {
	if i < 0 {
		return 0
	}
	return s.c.machines[i].st.Term
}

// Others lists all machines but one.
func (s *Scenario) Others(i int) (others []int) {
	for j := range s.c.machines {
		if j != i {
			others = append(others, j)
		}
	}
	return others
}

// Connect makes a network in which just the given pairs reach each other.
func (s *Scenario) Connect(pairs ...[2]int) {
	s.c.cutWhere(func(from, to int) bool {
		for _, p := range pairs {
			if p == [2]int{from, to} || p == [2]int{to, from} {
				return false
			}
		}
		return true
	})
}

// Isolate cuts one machine off.
func (s *Scenario) Isolate(i int) {
	s.c.cutWhere(func(from, to int) bool { return from == i || to == i })
}

// Cut cuts one direction.
func (s *Scenario) Cut(from, to int) { s.c.net.Cut(from, to, true) }

// SlowLink has what goes from one machine to another take d longer.
func (s *Scenario) SlowLink(from, to int, d time.Duration) {
	s.c.net.links[from*len(s.c.machines)+to].delay = d
}

// Mend makes the network whole.
func (s *Scenario) Mend() { s.c.mend() }

// Kill ends a machine's process; nothing on the disk is lost. It stays off until Restart.
func (s *Scenario) Kill(i int) { s.off(i, false, false) }

// PowerCut takes a machine's power: what was not synced is lost, and nobody refuses
// connections. It stays off until Restart.
func (s *Scenario) PowerCut(i int) { s.off(i, true, true) }

func (s *Scenario) off(i int, power, vanish bool) {
	m := s.c.machines[i]
	if m.up {
		if power {
			s.c.Count.PowerCuts++
		} else {
			s.c.Count.Kills++
		}
		m.end(power, vanish)
	}
}

// Restart turns a machine on.
func (s *Scenario) Restart(i int) {
	if m := s.c.machines[i]; !m.up {
		s.c.guard(m.turnOn)
	}
}

// Wipe replaces a machine's disk by an empty one. It stays off until Restart.
func (s *Scenario) Wipe(i int) {
	m := s.c.machines[i]
	m.wipe()
	m.boot++ // calls off the restart
}

// Freeze stops a machine for d.
func (s *Scenario) Freeze(i int, d time.Duration) { s.c.machines[i].freeze(d) }

// Write proposes a value at a machine. The result says how it ended, and that it has not.
func (s *Scenario) Write(i int) (result func() error) {
	err := errPending
	s.c.clients.propose(s.c.machines[i], func(e error) { err = e })
	return func() error { return err }
}

var errPending = errors.New("not answered yet")

// Works demands that a write at the present leader is acknowledged within limit.
func (s *Scenario) Works(limit time.Duration) {
	var result func() error
	_, ok := s.Until(limit, func() bool {
		if result == nil || result() != nil && !errors.Is(result(), errPending) {
			if l := s.Leader(); l >= 0 {
				result = s.Write(l)
			}
			return false
		}
		return result() == nil
	})
	if !ok {
		s.Fail("no write is acknowledged within %v", limit)
	}
}

// End heals everything, demands that the group converges, ends it in good order and says what
// went wrong in all of the story.
func (s *Scenario) End() error {
	if s.c.err == nil {
		s.c.guard(s.c.recoverAll)
	}
	return s.Err()
}
