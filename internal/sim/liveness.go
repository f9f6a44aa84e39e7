package sim

import (
	"math"
	"slices"
	"time"

	"github.com/graft-raft/graft"
)

// recoverAll is the second phase: everything heals, and the group must work again.
func (c *Cluster) recoverAll() {
	c.heal()
	c.until(c.stuck(), func() bool { return false }) // what a disk has begun it does not do faster now
	timeout := c.o.Election
	c.until(time.Duration(10)*timeout+10*time.Second, func() bool { return !c.stopping() }) // shutdowns that had begun
	for _, m := range c.machines {
		if !m.up && m.boot > 0 {
			m.turnOn()
		}
	}
	c.demand(10*timeout+c.backlog(c.longest().conf().all.of(c.machines)...), c.led, "L1: no leader everybody follows after 10 election timeouts")
	c.demand(20*timeout+c.backlog(c.served()...), c.settled, "L5 L7: a change of the configuration, or a hand-over, does not end in 20 election timeouts")
	if c.err == nil {
		c.freshWrites(20 * timeout)
	}
	c.steady(50 * timeout)
	c.clients.active = c.rng.chance(0.5) // the rest must work without anything new in the log, too
	if c.err == nil {
		c.freshChanges(20 * timeout)
	}
	if c.err != nil {
		return
	}
	c.clients.active = false
	c.demand(20*timeout, c.converged, "L4 L6 L8: the replicas differ, or calls are pending, after 20 election timeouts")
	c.demand(20*timeout, c.allDurable, "L9: at rest for 20 election timeouts, a member's log, term or vote is not durable")
	c.demand(20*timeout, c.nothingPending, "I18 bounded resources: nobody waits any more, and yet a budget is not given back after 20 election timeouts")
	if c.err == nil {
		c.clients.finalScan()
		c.stopAll()
	}
}

// stuck is how long it takes until no disk is stuck any more.
func (c *Cluster) stuck() (d time.Duration) {
	for _, m := range c.machines {
		d = max(d, m.stuckUntil.Sub(c.sim.Now()))
		m.stuckUntil = time.Time{}
	}
	return max(d, 0)
}

// demand lets time pass until cond holds, and fails if it does not within limit.
func (c *Cluster) demand(limit time.Duration, cond func() bool, otherwise string) {
	if c.err == nil && !c.until(limit, cond) && c.err == nil {
		c.fail("liveness %s", otherwise)
	}
}

// longest is the machine with the best log.
func (c *Cluster) longest() *machine {
	return slices.MaxFunc(c.machines, func(a, b *machine) int {
		switch {
		case a.covers(a.marked, b, b.marked) && b.covers(b.marked, a, a.marked):
			return 0
		case a.covers(a.marked, b, b.marked):
			return 1
		}
		return -1
	})
}

// backlog is how long it may take to copy what the shortest log among some machines lacks, if entries go one by one.
func (c *Cluster) backlog(ms ...*machine) time.Duration {
	least, most := int64(math.MaxInt64), int64(0)
	for _, m := range ms {
		least, most = min(least, m.marked), max(most, m.marked)
	}
	return time.Duration(max(most-least, 0)) * (c.o.Disk.Sync + c.o.Disk.Jitter + 2*(c.o.Net.Delay+c.o.Net.Jitter) + time.Millisecond)
}

// members is who belongs to the group as the leader sees it: all machines if none leads.
func (c *Cluster) members() []*machine {
	if l := c.leader(); l != nil {
		return l.conf().all.of(c.machines)
	}
	return c.machines
}

// served is the members and those whom the leader is about to add, to which it may have all of its log to copy.
func (c *Cluster) served() []*machine {
	l := c.leader()
	if l == nil || !l.st.Changing {
		return c.members()
	}
	peers := l.node.Status().Followers
	return slices.DeleteFunc(slices.Clone(c.machines), func(m *machine) bool {
		return m != l && !slices.ContainsFunc(peers, func(f graft.FollowerStatus) bool { return f.Peer.Same(m.peer) })
	})
}

func (c *Cluster) anyWaiting() bool {
	return slices.ContainsFunc(c.members(), func(m *machine) bool { return m.st.Waiting })
}

func (c *Cluster) stopping() bool {
	return slices.ContainsFunc(c.machines, func(m *machine) bool { return m.up && m.stopping })
}

// led reports whether one node leads and all other members follow it.
func (c *Cluster) led() bool {
	l := c.leader()
	if l == nil || l.app.leading != l.st.Term {
		return false
	}
	for _, m := range c.members() {
		if !m.up || m.st.Term != l.st.Term || m != l && !m.app.following.Same(l.peer) {
			return false
		}
	}
	return true
}

// settled reports whether the group has one configuration, which is not joint and which all members know to be
// committed, and nobody waits for a change or a transfer.
func (c *Cluster) settled() bool {
	l := c.leader()
	if l == nil || l.st.Stage != graft.StageNone || l.conf().joint() || !l.conf().voters.has(l) {
		return false
	}
	conf := l.conf()
	for _, m := range c.machines {
		if m.up && (m.asks() > 0 || m.st.Changing || m.st.Transferring || m.st.Departing) {
			return false
		}
		if conf.all.has(m) && (!m.up || m.conf() != conf || m.st.Commit < conf.index() || m.app.confAt != conf.index()) {
			return false
		}
	}
	return true
}

// freshWrites demands that clients get something done: writes at the leader, reads at every
// member. They try again while they are refused.
func (c *Cluster) freshWrites(limit time.Duration) {
	c.o.Load.WrongTerm = 0
	writes, members := 3, c.members()
	reads := make([]bool, len(members))
	var try func()
	try = func() {
		if l := c.leader(); l != nil {
			for range writes {
				c.clients.propose(l, func(err error) {
					if err == nil {
						writes--
					}
				})
			}
		}
		for i, m := range members {
			if !reads[i] {
				c.clients.ask(m, func(err error) { reads[i] = reads[i] || err == nil })
			}
		}
		c.sim.After(c.o.Election, func() {
			if writes > 0 || slices.Contains(reads, false) {
				try()
			}
		})
	}
	try()
	if !c.until(limit, func() bool { return writes <= 0 && !slices.Contains(reads, false) }) && c.err == nil {
		c.fail("liveness L2: after 20 election timeouts %d fresh writes are not acknowledged, reads are answered: %v", max(writes, 0), reads)
	}
}

// freshChanges demands that the membership can be changed, and leadership handed over.
func (c *Cluster) freshChanges(limit time.Duration) {
	if c.o.Members == (Membership{}) {
		return
	}
	conf := c.leader().conf()
	if out := (1<<len(c.machines) - 1) &^ conf.all; out != 0 && conf.voters.len() < maxVoters {
		m := out.of(c.machines)[c.rng.IntN(out.len())]
		m.turnOn()
		c.insist(limit+c.backlog(m, c.leader()), &change{kind: addPeer, peer: m.peer})
	}
	l := c.leader()
	if l == nil || c.err != nil {
		return
	}
	if in := l.conf().conf.Voters(); len(in) > 1 {
		c.insist(limit, &change{kind: removePeer, peer: in[c.rng.IntN(len(in))]})
		c.demand(limit, func() bool { return c.led() && c.settled() }, "L1: no leader after a voter was removed")
	}
	if l = c.leader(); l != nil && c.err == nil {
		if in := (l.conf().voters &^ setOf(l)).of(c.machines); len(in) > 0 {
			c.insistOnLeader(limit, in[c.rng.IntN(len(in))])
		}
	}
}

// insist has a change made, whoever leads, and tries again while it is refused.
func (c *Cluster) insist(limit time.Duration, what *change) {
	done := false
	var last error
	var try func()
	try = func() {
		if l := c.leader(); l != nil && !done && c.err == nil {
			ch := *what
			c.admin.ask(l, &ch, func(err error) {
				if last = err; err == nil {
					done = true
				} else {
					c.sim.After(c.o.Election/5, try)
				}
			})
			return
		}
		c.sim.After(c.o.Election/5, try)
	}
	try()
	if c.err == nil && !c.until(limit, func() bool { return done }) && c.err == nil {
		c.fail("liveness L5: %v %v does not succeed within 20 election timeouts; the latest answer is %v", what.kind, what.peer, last)
	}
}

// insistOnLeader has a machine made the leader.
func (c *Cluster) insistOnLeader(limit time.Duration, m *machine) {
	leads := func() bool { return c.leader() == m }
	for range 10 {
		var answer error = errPending
		if l := c.leader(); l != nil && l != m {
			c.admin.transfer(l, m.peer, func(err error) { answer = err })
		}
		if c.until(limit/10, leads) {
			c.demand(limit, func() bool { return c.led() && c.settled() }, "L1: no leader that everybody follows after a transfer")
			return
		}
		c.hist.note(m.index, "does not lead after a transfer to it: %v", answer)
	}
	if c.err == nil {
		c.fail("liveness L5: leadership cannot be handed over to machine %d", m.index)
	}
}

// steady demands that nothing changes while nothing happens.
func (c *Cluster) steady(d time.Duration) {
	if c.err != nil {
		return
	}
	c.run(5 * c.o.Election) // who was removed and does not know yet asks for votes, and is told
	before, failures := c.Count.Leaderships, c.Count.NodeFailures
	c.steadySince = c.sim.Now()
	for _, m := range c.machines {
		m.contact, m.tellable = c.steadySince, time.Time{}
	}
	if c.run(d) && c.Count.NodeFailures == failures && c.Count.Leaderships != before {
		c.fail("liveness L3: leadership changes though nothing happens")
	}
	c.steadySince = time.Time{}
}

// nagging judges a request for a vote while nothing happens. Who is no voter any more is told so by those it asks, and
// stops. What a former leader sent long ago may still arrive and have it forget that, once for each message: it waits for
// an election timeout, asks, perhaps a few times in a row, and is told again. Whoever asks later than that though it could have been
// told before goes on for ever.
func (c *Cluster) nagging(m *machine) {
	now := c.sim.Now()
	if c.steadySince.IsZero() {
		return
	}
	late := now.Sub(m.contact) > 3*c.o.Election+time.Second // two of them are the longest election timeout
	if late && !m.tellable.IsZero() && now.Sub(m.tellable) > c.o.Election/2 {
		c.fail("liveness L3: machine %d goes on asking for votes though there is a leader, last heard %v ago; its configuration is %v",
			m.index, now.Sub(m.contact), m.conf())
	}
	if m.tellable.IsZero() && c.canBeTold(m) {
		m.tellable = now
	}
}

// canBeTold reports whether somebody whom a machine would ask for a vote knows that it has none: a configuration without
// it that is committed, and later than what the machine knows to be. The others may have been
// removed as well, and know no more than the machine does. If one of them is in a later term, the machine learns that first, by which
// the answers of all others become void, and asks again.
func (c *Cluster) canBeTold(m *machine) bool {
	conf := m.conf()
	asked := (conf.voters | conf.olds).of(c.machines)
	ahead := func(v *machine) bool { return v.up && v.st.Term > m.st.Term }
	return !slices.ContainsFunc(asked, ahead) && slices.ContainsFunc(asked, func(v *machine) bool {
		known := v.confAt(v.st.Commit)
		return v != m && v.up && !known.joint() && known.index() > m.st.Commit && !known.voters.has(m)
	})
}

// converged reports whether all members are equal and nobody waits.
func (c *Cluster) converged() bool {
	l := c.leader()
	if l == nil || !c.settled() {
		return false
	}
	for _, m := range c.machines {
		if m.writes+m.reads > 0 {
			return false
		}
		if l.conf().all.has(m) && (m.st.Waiting || m.st.Applied != l.st.Last ||
			m.app.applied != l.app.applied || m.app.digest != l.app.digest) {
			return false
		}
	}
	// Nor does the leader go on sending to who was removed.
	return len(l.node.Status().Followers) == l.conf().all.len()-1
}

// allDurable reports whether all members' disks hold all that these know: what was refused for want of space is written once there
// is some, whether anything new comes or not.
func (c *Cluster) allDurable() bool {
	return !slices.ContainsFunc(c.members(), func(m *machine) bool {
		return m.st.Durable != m.st.Last || m.st.SavedTerm != m.st.Term || !m.st.Saved
	})
}

// nothingPending reports whether no calls count against a machine's budgets. It is for when all calls are answered.
func (c *Cluster) nothingPending() bool {
	return !slices.ContainsFunc(c.machines, func(m *machine) bool {
		if !m.up || m.node == nil {
			return false
		}
		entries, bytes, reads := graft.SimPending(m.node)
		return entries != 0 || bytes != 0 || reads != 0
	})
}

// stopAll ends everything in good order, some of it in the middle of work.
func (c *Cluster) stopAll() {
	if c.rng.chance(0.5) {
		c.clients.active = true
		for _, m := range c.machines {
			for range 1 + c.rng.IntN(20) {
				c.clients.write(m, 0)
				c.clients.read(m)
			}
		}
		c.run(time.Duration(c.rng.Int64N(int64(10 * time.Millisecond))))
		c.clients.active = false
	}
	for _, m := range c.machines {
		m.stop()
	}
	over := func() bool {
		for _, m := range c.machines {
			if m.up {
				return false
			}
		}
		return true
	}
	if !c.until(20*c.o.Election, over) && c.err == nil {
		c.fail("liveness L6: shutdown does not end")
	}
}
