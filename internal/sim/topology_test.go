package sim

import (
	"testing"
	"time"
)

// TestTopologies makes networks in which not everybody reaches everybody: within ten election timeouts there is one leader,
// which serves clients, and it stays.
func TestTopologies(t *testing.T) {
	link := func(pairs ...[2]int) [][2]int { return pairs }
	for _, test := range []struct {
		name  string
		nodes int
		links [][2]int // of places; the leader before is in place 0
		stays bool     // it has its majority, and must not be deposed
		equal bool     // all logs are equal when the links break
	}{
		{"triangle, Cloudflare 2020", 3, link([2]int{0, 1}, [2]int{1, 2}), true, false},
		{"chain, the leader in the middle", 3, link([2]int{1, 0}, [2]int{0, 2}), true, false},
		{"chain, the leader at its end", 3, link([2]int{0, 1}, [2]int{1, 2}), true, false},
		{"chain of five, the leader in the middle", 5, link([2]int{1, 2}, [2]int{2, 0}, [2]int{0, 3}, [2]int{3, 4}), true, false},
		{"chain of five, the leader second", 5, link([2]int{1, 0}, [2]int{0, 2}, [2]int{2, 3}, [2]int{3, 4}), true, false},
		{"chain of five, the leader at its end", 5, link([2]int{0, 1}, [2]int{1, 2}, [2]int{2, 3}, [2]int{3, 4}), false, false},
		{"hub, the leader in it", 5, link([2]int{0, 1}, [2]int{0, 2}, [2]int{0, 3}, [2]int{0, 4}), true, false},
		{"hub, another in it: quorum loss", 5, link([2]int{1, 0}, [2]int{1, 2}, [2]int{1, 3}, [2]int{1, 4}), false, false},
		{"hub of three", 3, link([2]int{1, 0}, [2]int{1, 2}), true, false},
		// The one whom all reach must be elected, so its log must be as good as that of a majority: no Raft gets on if it lacks an entry that
		// two of those have who reach nobody else, since they do not vote for it and it cannot get the entry.
		{"constrained election: the leader alone, the others behind one", 5, link([2]int{1, 2}, [2]int{1, 3}, [2]int{1, 4}), false, true},
		// Howard and Abraham's five: the leader has a majority, of which one is the bridge to two whom it does not reach. These would
		// depose it again and again without pre-votes that are refused by who hears a leader.
		{"five with a bridge, Howard and Abraham 2020", 5, link([2]int{0, 1}, [2]int{0, 2}, [2]int{2, 3}, [2]int{2, 4}, [2]int{3, 4}), true, false},
		// And it has lost its majority, while the bridge hears it: without check-quorum it would never go.
		{"five with a bridge, and the leader without a majority", 5, link([2]int{0, 2}, [2]int{2, 3}, [2]int{2, 4}, [2]int{3, 4}, [2]int{1, 3}), false, false},
		{"ring of five", 5, link([2]int{0, 1}, [2]int{1, 2}, [2]int{2, 3}, [2]int{3, 4}, [2]int{4, 0}), true, false},
		{"two halves and a bridge", 5, link([2]int{0, 1}, [2]int{0, 2}, [2]int{1, 2}, [2]int{2, 3}, [2]int{2, 4}, [2]int{3, 4}), true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			someSeeds(t, 8, test.nodes, func(s *Scenario) {
				before, term := s.Leader(), s.Term(s.Leader())
				place := append([]int{before}, s.Others(before)...)
				var pairs [][2]int
				for _, l := range test.links {
					pairs = append(pairs, [2]int{place[l[0]], place[l[1]]})
				}
				if test.equal {
					s.Equal()
				}
				s.Connect(pairs...)
				s.Settles()
				if test.stays && (s.Leader() != before || s.Term(before) != term) {
					s.Fail("leader %d of term %d has a majority and was deposed; now it is %d of term %d", before, term, s.Leader(), s.Term(s.Leader()))
				}
			})
		})
	}
}

// TestDirectedTopologies is the same for links of which one direction is dead.
func TestDirectedTopologies(t *testing.T) {
	for _, test := range []struct {
		name string
		dead func(from, to int) bool // of places
	}{
		{"the leader hears nobody", func(_, to int) bool { return to == 0 }},
		{"nobody hears the leader", func(from, _ int) bool { return from == 0 }},
		{"each hears but the one before it", func(from, to int) bool { return (from+1)%3 != to }},
		{"one hears all and nobody hears it", func(from, _ int) bool { return from == 1 }},
		{"the leader hears one, and another hears the leader", func(from, to int) bool { return from == 0 && to == 1 || from == 2 && to == 0 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			someSeeds(t, 8, 3, func(s *Scenario) {
				before := s.Leader()
				place := append([]int{before}, s.Others(before)...)
				for i, from := range place {
					for j, to := range place {
						if i != j && test.dead(i, j) {
							s.Cut(from, to)
						}
					}
				}
				if test.name == "each hears but the one before it" {
					// No two hear each other, so nobody can lead, and nobody may believe to.
					s.Run(10 * s.c.o.Election)
					if s.Leader() >= 0 {
						s.Fail("machine %d leads and gets no answer", s.Leader())
					}
					s.Mend()
				}
				if test.name == "the leader hears one, and another hears the leader" {
					s.c.net.Cut(place[1], place[2], false) // these two do
				}
				s.Settles()
			})
		})
	}
}

// Settles demands that within ten election timeouts there is a leader that serves clients, and that it stays.
func (s *Scenario) Settles() {
	e := s.c.o.Election
	s.Run(8 * e) // who leads without a majority has given up by then
	s.Works(2 * e)
	leader, term, before := s.Leader(), s.Term(s.Leader()), s.Count().Leaderships
	s.Run(30 * e)
	s.Works(e)
	if s.Leader() != leader || s.Term(leader) != term || s.Count().Leaderships != before {
		s.Fail("the leader was %d in term %d and is %d in term %d, after %d elections", leader, term, s.Leader(), s.Term(s.Leader()),
			s.Count().Leaderships-before)
	}
}

// Equal has clients wait until all logs are equal, and stay so.
func (s *Scenario) Equal() {
	s.c.clients.active = false
	s.Run(s.c.o.Election)
	s.Wait(5*s.c.o.Election, "equal logs", func() bool {
		for _, m := range s.c.machines {
			if m.marked != s.c.machines[0].marked || m.st.Commit != m.marked {
				return false
			}
		}
		return true
	})
}

// TestASaturatedLinkKeepsItsLeader has clients write faster than the links to both followers carry. What waits in a link holds up what comes
// behind it, heartbeats too: there must never be so much that the leader, which both followers take entries from, believes to have lost them.
func TestASaturatedLinkKeepsItsLeader(t *testing.T) {
	for seed := range upTo(1) {
		o := Quiet(seed, 3)
		o.Net.Bandwidth, o.MaxAppendBytes = 1<<20, 64<<10
		o.Load.Writes, o.Load.MaxSize = 150, 32<<10
		s := Begin(o)
		leader, term := s.Leader(), s.Term(s.Leader())
		s.Run(8 * time.Second)
		if s.Err() == nil && (s.Leader() != leader || s.Term(leader) != term) {
			s.Fail("%d led in term %d, now %d leads in term %d", leader, term, s.Leader(), s.Term(s.Leader()))
		}
		if s.Count().Queued == 0 {
			s.Fail("nothing had to wait")
		}
		if err := s.End(); err != nil {
			t.Error(err)
		}
	}
}
