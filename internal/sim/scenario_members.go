package sim

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/graft-raft/graft"
)

// This file is the part of a Scenario's language that is about who belongs to the group.
// Configurations are written by machine numbers, learners with an l: "0,1,3l"; joint ones as "0,3/0,1,2".

// Join turns a spare machine on, without a configuration.
func (s *Scenario) Join(machines ...int) {
	for _, i := range machines {
		s.Restart(i)
	}
}

// name writes a configuration by machine numbers.
func (c *Cluster) name(conf graft.Configuration) string {
	var parts []string
	for _, p := range conf.Peers() {
		part := p.String()
		if e := c.net.byName[p.Address]; e != nil {
			part = strconv.Itoa(e.index)
		}
		if p.Role == graft.Learner {
			part += "l"
		}
		parts = append(parts, part)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

func (c *Cluster) nameOf(conf *confInfo) string {
	if conf.joint() {
		return c.name(conf.conf) + "/" + c.name(conf.old)
	}
	return c.name(conf.conf)
}

// Configuration reads one.
func (s *Scenario) Configuration(name string) graft.Configuration {
	var peers []graft.PeerID
	for part := range strings.SplitSeq(name, ",") {
		number, isLearner := strings.CutSuffix(part, "l")
		i, err := strconv.Atoi(number)
		if err != nil {
			panic(fmt.Sprintf("sim: configuration %q: %v", name, err))
		}
		p := s.c.machines[i].peer
		if isLearner {
			p = learner(p)
		}
		peers = append(peers, p)
	}
	conf, err := graft.NewConfiguration(peers...)
	if err != nil {
		panic(fmt.Sprintf("sim: configuration %q: %v", name, err))
	}
	return conf
}

// List writes a configuration of voters.
func List(machines ...int) string {
	var parts []string
	for _, i := range machines {
		parts = append(parts, strconv.Itoa(i))
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// Conf is the configuration in force on a machine, by its log.
func (s *Scenario) Conf(i int) string { return s.c.nameOf(s.c.machines[i].conf()) }

// Stored is the latest configuration that is durable on a machine.
func (s *Scenario) Stored(i int) string {
	m := s.c.machines[i]
	return s.c.nameOf(m.confAt(m.marked))
}

// Committed is the latest configuration that was committed anywhere.
func (s *Scenario) Committed() string {
	k := s.c.check
	if len(k.confs) == 0 {
		return s.c.nameOf(k.initial)
	}
	return s.c.nameOf(k.confs[len(k.confs)-1])
}

// Stage is how far a change has come on a machine.
func (s *Scenario) Stage(i int) graft.Stage { return s.c.machines[i].st.Stage }

// Removed reports whether a machine runs and knows that it does not belong to the group.
func (s *Scenario) Removed(i int) bool {
	m := s.c.machines[i]
	return m.up && graft.SimRemoved(m.node)
}

// Quiet reports whether a machine has asked for no vote for d.
func (s *Scenario) Quiet(i int, d time.Duration) bool {
	at := s.c.machines[i].asked
	return at.IsZero() || s.c.sim.Now().Sub(at) >= d
}

// ask asks for a change. The result says how it ended, and that it has not.
func (s *Scenario) ask(i int, ch *change) (result func() error) {
	err := errPending
	s.c.guard(func() { s.c.admin.ask(s.c.machines[i], ch, func(e error) { err = e }) })
	return func() error { return err }
}

// Add asks machine at to add machine i as a voter.
func (s *Scenario) Add(at, i int) (result func() error) {
	return s.ask(at, &change{kind: addPeer, peer: s.c.machines[i].peer})
}

// AddLearner asks machine at to add machine i as a learner.
func (s *Scenario) AddLearner(at, i int) (result func() error) {
	return s.ask(at, &change{kind: addLearner, peer: s.c.machines[i].peer})
}

// Remove asks machine at to remove machine i.
func (s *Scenario) Remove(at, i int) (result func() error) {
	return s.ask(at, &change{kind: removePeer, peer: s.c.machines[i].peer})
}

// Change asks machine at for a configuration.
func (s *Scenario) Change(at int, conf string) (result func() error) {
	return s.ask(at, &change{kind: changePeers, conf: s.Configuration(conf)})
}

// Transfer asks machine at to hand leadership over to machine to.
func (s *Scenario) Transfer(at, to int) (result func() error) {
	err := errPending
	s.c.guard(func() { s.c.admin.transfer(s.c.machines[at], s.c.machines[to].peer, func(e error) { err = e }) })
	return func() error { return err }
}

// Reset puts a configuration in force on a machine by hand. From then on the checker does not ask whether
// configurations are safe together: they are not.
func (s *Scenario) Reset(i int, conf string) (result func() error) {
	m := s.c.machines[i]
	m.overridden, s.c.check.overridden = true, true
	err := errPending
	s.c.guard(func() { graft.SimResetPeers(m.node, s.Configuration(conf), func(e error) { err = e }) })
	return func() error { return err }
}

// Wait demands that cond holds within limit.
func (s *Scenario) Wait(limit time.Duration, what string, cond func() bool) {
	if took, ok := s.Until(limit, cond); !ok {
		s.Fail("waited %v for: %s", took, what)
	}
}

// Done demands that a call succeeds within limit.
func (s *Scenario) Done(limit time.Duration, what string, result func() error) {
	s.Until(limit, func() bool { return result() != errPending })
	if err := result(); err != nil {
		s.Fail("%s: %v", what, err)
	}
}

// Refused demands that a call is refused with code within limit.
func (s *Scenario) Refused(limit time.Duration, what string, code graft.Code, result func() error) {
	s.Until(limit, func() bool { return result() != errPending })
	if err := result(); graft.ErrorCode(err) != code {
		s.Fail("%s: %v, want %v", what, err, code)
	}
}

// Separate cuts the network between two groups of machines, in both directions.
func (s *Scenario) Separate(some, others []int) {
	for _, i := range some {
		for _, j := range others {
			s.c.net.Cut(i, j, true)
			s.c.net.Cut(j, i, true)
		}
	}
}

// Hub makes a network in which all machines reach one only, and that reaches all.
func (s *Scenario) Hub(hub int, others ...int) {
	var pairs [][2]int
	for _, i := range others {
		pairs = append(pairs, [2]int{hub, i})
	}
	s.Connect(pairs...)
}

// LeaderAmong waits for a leader among some machines.
func (s *Scenario) LeaderAmong(limit time.Duration, machines ...int) (leader int) {
	s.Wait(limit, fmt.Sprintf("a leader among %v", machines), func() bool { return slices.Contains(machines, s.Leader()) })
	return s.Leader()
}
