package sim

import (
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/graft-raft/graft"
)

// Membership says how the group's membership changes. A mean time of 0 means never.
type Membership struct {
	Change    time.Duration // between two changes
	Transfer  time.Duration // between two hand-overs of leadership
	Retire    time.Duration // between two fates of machines that were removed
	Storm     float64       // part of the changes that bring others with them
	Hit       float64       // part of the stages of changes in which something is done to who takes part
	Ends      float64       // part of these that begin with two leaders if joint, or end without one
	Learners  float64       // part of the changes that are about learners
	Cancel    float64       // part that somebody tries to call off
	Elsewhere float64       // part that is asked of somebody who may not lead
}

// hit is something that is to happen to a change under way.
type hit struct {
	step  uint64
	m     *machine
	boot  int
	stage graft.Stage
}

// maxVoters keeps groups small enough to try all quorums, and to get on.
const maxVoters = 7

// begin lets the membership change until everything heals.
func (a *admin) begin() {
	o := &a.c.o.Members
	a.c.recurring("change", o.Change, a.reshape)
	a.c.recurring("transfer", o.Transfer, a.handOver)
	a.c.recurring("retire", o.Retire, a.retire)
}

func (a *admin) moment(d time.Duration) time.Duration { return time.Duration(a.rng.Int64N(int64(d))) }

// reshape asks for a change, or for several in a short time.
func (a *admin) reshape() {
	a.one()
	if !a.rng.chance(a.c.o.Members.Storm) {
		return
	}
	a.c.Count.Storms++
	for range 1 + a.rng.IntN(6) {
		a.c.after(a.moment(2*time.Second), func() {
			if !a.c.healed {
				a.one()
			}
		})
	}
}

// one asks for one change.
func (a *admin) one() {
	m := a.c.leader()
	if m == nil || a.rng.chance(a.c.o.Members.Elsewhere) {
		m = a.c.machines[a.rng.IntN(len(a.c.machines))]
	}
	conf := m.conf()
	if !m.ready() || a.repairing(conf) {
		return
	}
	ch := a.drawChange(conf)
	if ch == nil {
		return
	}
	for _, p := range append(ch.conf.Peers(), ch.peer) {
		if e := a.c.net.byName[p.Address]; e != nil && !a.c.machines[e.index].up && a.rng.chance(0.9) {
			a.c.machines[e.index].turnOn()
		}
	}
	a.ask(m, ch, nil)
	if a.rng.chance(a.c.o.Members.Cancel) {
		a.c.after(a.moment(2*a.c.o.Election), func() { a.cancel(m) })
	}
}

// repairing reports whether a voter has lost its disk and is not back yet. Whoever changes the membership then can
// leave the group without a majority that votes.
func (a *admin) repairing(conf *confInfo) bool {
	return slices.ContainsFunc((conf.voters | conf.olds).of(a.c.machines), func(m *machine) bool { return m.blank })
}

// drawChange draws a change of a configuration, mostly one that makes sense.
func (a *admin) drawChange(conf *confInfo) *change {
	out, in := a.peers(^conf.all), conf.conf.Peers()
	about := a.rng.chance(a.c.o.Members.Learners)
	voters := len(conf.conf.Voters())
	switch n := a.rng.IntN(10); {
	case len(in) == 0 || n >= 7:
		return a.drawConf(conf.conf, about)
	case about && n < 3 && len(out) > 0:
		return &change{kind: addLearner, peer: a.any(out)}
	case about && n < 4:
		return &change{kind: addLearner, peer: a.any(in)}
	case about && n < 6:
		return &change{kind: removeLearner, peer: a.any(append(conf.conf.Learners(), a.any(in)))}
	case n < 1 || n < 4 && len(out) == 0:
		return &change{kind: addPeer, peer: a.any(in).ID()} // is there, or is promoted
	case n < 4 && voters < maxVoters:
		return &change{kind: addPeer, peer: a.any(out)}
	case voters > 1 && (voters > 2 || a.rng.chance(0.5)) || a.rng.chance(0.05):
		if l := a.c.leader(); l != nil && a.rng.chance(0.3) {
			return &change{kind: removePeer, peer: l.peer}
		}
		return &change{kind: removePeer, peer: a.any(in)}
	case len(out) > 0:
		return &change{kind: addPeer, peer: a.any(out)}
	}
	return nil
}

// drawConf draws a configuration that differs from another in some peers, or in most.
func (a *admin) drawConf(from graft.Configuration, learners bool) *change {
	ch := &change{kind: changePeers}
	peers := make(map[int]graft.PeerID)
	if !a.rng.chance(0.2) {
		for _, p := range from.Peers() {
			peers[a.c.net.byName[p.Address].index] = p
		}
	}
	voters := len(from.Voters())
	for range 1 + a.rng.IntN(5) {
		i := a.rng.IntN(len(a.c.machines))
		p := a.c.machines[i].peer
		if old, there := peers[i]; there {
			delete(peers, i)
			if old.Role != graft.Learner {
				voters--
			}
			continue
		}
		if learners && a.rng.chance(0.5) {
			p = learner(p)
		} else {
			voters++
		}
		peers[i] = p
	}
	var list []graft.PeerID
	for i := range a.c.machines {
		if p, there := peers[i]; there {
			list = append(list, p)
		}
	}
	conf, err := graft.NewConfiguration(list...)
	if err != nil || len(conf.Voters()) > maxVoters || len(conf.Voters()) == 0 && a.rng.chance(0.9) {
		return nil
	}
	ch.conf = conf
	if a.rng.chance(0.3) {
		ch.o.Deadline = a.rng.between(10*time.Millisecond, 4*a.c.o.Election)
	}
	if a.rng.chance(0.3) {
		ch.o.Expected = from
		if a.rng.chance(0.3) {
			ch.o.Expected = a.c.conf
		}
	}
	return ch
}

// peers lists machines of a set.
func (a *admin) peers(s set) (ps []graft.PeerID) {
	for _, m := range s.of(a.c.machines) {
		ps = append(ps, m.peer)
	}
	return ps
}

func (a *admin) any(ps []graft.PeerID) graft.PeerID { return ps[a.rng.IntN(len(ps))] }

// handOver asks the leader to hand over, mostly to somebody who can take it.
func (a *admin) handOver() {
	m := a.c.leader()
	if m == nil || a.rng.chance(a.c.o.Members.Elsewhere) {
		m = a.c.machines[a.rng.IntN(len(a.c.machines))]
	}
	to := a.c.machines[a.rng.IntN(len(a.c.machines))].peer
	if in := m.conf().conf.Voters(); len(in) > 0 && a.rng.chance(0.8) {
		to = a.any(in)
	}
	if a.rng.chance(0.2) {
		to = graft.PeerID{}
	}
	a.transfer(m, to, func(err error) {
		if err == nil && a.rng.chance(0.3) {
			a.c.clients.write(m, 0)
			a.one()
		}
	})
}

// gone reports whether a machine belongs to the group by no configuration that may yet be in force.
func (a *admin) gone(m *machine) bool {
	k := a.c.check
	if !m.dropped || len(k.confs) == 0 {
		return false
	}
	latest := k.confs[len(k.confs)-1]
	for _, x := range a.c.machines {
		// A peer that is being added becomes a voter at any moment, and a leader takes what it has heard of it
		// within an election timeout for true: it must not lose its disk.
		if x.up && x.node != nil && slices.ContainsFunc(graft.SimComing(x.node), m.peer.Same) {
			return false
		}
		if !x.holds(latest.entry, int64(len(x.log))) {
			continue
		}
		for c := x.conf(); c != nil && c.index() >= latest.index(); c = c.prev {
			if c.all.has(m) {
				return false
			}
		}
	}
	return true
}

// retire does with a removed machine what people do: turn it off, use the disk for something else, forget it, turn
// it on again.
func (a *admin) retire() {
	m := a.c.machines[a.rng.IntN(len(a.c.machines))]
	if !a.gone(m) {
		return
	}
	a.c.Count.Retired++
	switch n := a.rng.IntN(10); {
	case !m.up:
		a.c.Count.Zombies++
		m.turnOn()
	case n < 3:
		m.parked = m.ready()
		m.stop()
	case n < 5:
		m.parked = true
		m.end(n == 3, n == 4)
	case n < 9 && a.noneBlank(m):
		m.erase()
		if m.parked = n < 7; !m.parked {
			m.turnOn()
		}
	}
}

// noneBlank reports whether all machines that are started with a configuration have something on their disks. Two
// that have nothing cannot know that the group has begun without them.
func (a *admin) noneBlank(but *machine) bool {
	return !slices.ContainsFunc(a.c.machines, func(m *machine) bool {
		return m != but && !m.initial.Empty() && m.marked == 0
	})
}

// entered is told that a leader has entered a stage of a change. Now and then something is to happen some steps later.
func (a *admin) entered(m *machine, stage graft.Stage) {
	if !a.c.healed && a.rng.chance(a.c.o.Members.Hit) {
		if ends := a.c.o.Members.Ends; ends > 0 && m.st.Changing && m.conf().index() > m.st.Commit && a.rng.chance(ends) {
			m.ends = m.conf()
			return
		}
		if ends := a.c.o.Members.Ends; ends > 0 && stage == graft.StageJoint && a.rng.chance(ends) {
			// Before the old half hears of it: that may elect another without the new one.
			a.strikes++
			a.c.act(fmt.Sprintf("strike#%d", a.strikes), func() { a.c.duelOf(m, a.c.newHalf(m), 0) })
			return
		}
		steps := uint64(a.rng.betweenF(1, 800))
		a.hits = append(a.hits, hit{step: a.c.sim.Steps() + steps, m: m, boot: m.boot, stage: stage})
	}
}

// beforeCommit is called when an answer is about to reach a leader. It may be the one by which a configuration is committed: then
// the leader may be told to stop a moment before, so that it stops first and hears afterwards that the configuration is committed.
func (a *admin) beforeCommit(m, from *machine) {
	c := m.ends
	if c == nil || m.conf() != c || m.st.Commit >= c.index() || !c.entry.on.has(from) || !c.quorum(c.entry.on) || a.c.healed {
		return
	}
	m.ends = nil
	a.strikes++
	a.c.act(fmt.Sprintf("strike#%d", a.strikes), m.stop)
}

// stepped is called after every step.
func (a *admin) stepped() {
	for len(a.fresh) > 0 {
		ch := a.fresh[0]
		a.fresh = a.fresh[1:]
		a.judge(ch)
	}
	for i := 0; i < len(a.hits); i++ {
		if h := a.hits[i]; h.step <= a.c.sim.Steps() {
			a.hits = slices.Delete(a.hits, i, i+1)
			i--
			if h.m.up && h.m.boot == h.boot && !a.c.healed {
				a.strikes++
				a.c.act(fmt.Sprintf("strike#%d", a.strikes), func() { a.strike(h) })
			}
		}
	}
}

// strike hits who takes part in a change: the leader, who comes, or one of the majorities.
func (a *admin) strike(h hit) {
	a.c.Count.Hits++
	m, conf := h.m, h.m.conf()
	comes := a.coming(m) &^ setOf(m)
	olds, news := conf.olds, conf.voters
	if !conf.joint() && conf.prev != nil {
		olds = conf.prev.voters
	}
	what := a.rng.IntN(12)
	if a.c.o.Faults.FalseDeath > 0 && a.rng.chance(0.15) {
		what = 12 + a.rng.IntN(2)
	}
	a.c.hist.note(m.index, "strike %d in stage %v: of %b those come: %b", what, h.stage, conf.all, comes)
	switch what {
	case 0:
		m.crash(false, false)
	case 1:
		m.crash(true, a.rng.chance(0.5))
	case 2:
		m.stop()
	case 3:
		m.freeze(a.rng.between(10*time.Millisecond, 4*a.c.o.Election))
	case 4:
		a.cutOff(setOf(m))
	case 5:
		a.cutOff(comes)
	case 6:
		a.cutOff(olds)
	case 7:
		a.cutOff(news &^ olds)
	case 8:
		a.crashAll(comes)
	case 9:
		a.crashAll(a.most(olds))
	case 10:
		a.crashAll(a.most(news))
	case 13: // the leader reaches the new half only
		a.cutOff(olds &^ setOf(m))
	case 12:
		a.c.duelOf(m, a.c.newHalf(m), 0)
	default:
		m.slow = true
		a.c.after(a.c.outage(), func() { m.slow = false })
	}
}

// coming is who is being added, or was just now.
func (a *admin) coming(m *machine) (s set) {
	conf := m.conf()
	for _, ch := range m.changes {
		s |= a.c.check.machinesOf(append(ch.conf.Peers(), ch.peer))
	}
	if s == 0 && conf.prev != nil {
		return conf.all &^ conf.prev.all
	}
	return s &^ (conf.olds | conf.prevAll())
}

func (c *confInfo) prevAll() set {
	if c.prev == nil {
		return 0
	}
	return c.prev.all
}

// most draws a majority of s.
func (a *admin) most(s set) (part set) {
	for part.len() <= s.len()/2 && s != 0 {
		rest := s &^ part
		n := a.rng.IntN(rest.len())
		for range n {
			rest &= rest - 1
		}
		part |= 1 << bits.TrailingZeros16(uint16(rest))
	}
	return part
}

func (a *admin) cutOff(s set) {
	a.c.cutWhere(func(from, to int) bool { return s>>from&1 != s>>to&1 })
	a.c.after(a.c.outage(), a.c.mend)
}

func (a *admin) crashAll(s set) {
	power := a.rng.chance(0.5)
	for _, m := range s.of(a.c.machines) {
		m.crash(power, false)
	}
}
