package sim

import (
	"slices"
	"time"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/wire"
)

// This file is what happens to leaderships that it takes several steps to bring about: logs that differ in more than
// their last entry, and elections with more than one candidate.

// awaited is somebody's wish to hear when one of some machines begins to lead.
type awaited struct {
	who  set
	call func()
}

// whenLeads calls f, once, when one of some machines begins to lead, before anything that it sends arrives, or when limit has passed.
func (c *Cluster) whenLeads(who set, limit time.Duration, f func()) {
	dice, over := c.rng, false
	call := func() {
		if !over {
			over = true
			c.with(dice, f)
		}
	}
	c.awaited = append(c.awaited, awaited{who, call})
	c.sim.After(limit, call)
}

// awake is called when a machine begins to lead.
func (c *Cluster) awake(m *machine) {
	c.awaited = slices.DeleteFunc(c.awaited, func(a awaited) bool {
		if a.who.has(m) {
			c.sim.After(1, a.call)
		}
		return a.who.has(m)
	})
}

func (c *Cluster) everybody() set { return 1<<len(c.machines) - 1 }

// some proposes a few values at a machine within d.
func (c *Cluster) some(m *machine, d time.Duration) {
	for range 1 + c.rng.IntN(8) {
		c.after(c.moment(d), func() { c.clients.write(m, 0) })
	}
}

// overwrite has entries cut off while they are on their way to the disk. What a leader sends comes behind the news of its term, and so
// behind all that was on the way then, with one exception: entries that the disk had no space for, and that it is given again.
// So a leader without space takes some, cut off from the rest; it hears that another leads, which does not hear
// it; it gets space, and while that takes long the other's entries arrive.
func (c *Cluster) overwrite() {
	l := c.leader()
	if l == nil || l.full || l.conf().voters.len() < 3 {
		return
	}
	c.Count.Overwrites++
	l.full = true
	l.fs.SetCapacity(l.fs.Used())
	c.hist.note(l.index, "split off, and without space")
	c.cutWhere(func(from, to int) bool { return from == l.index || to == l.index })
	c.after(c.moment(c.o.Election/2), func() {
		for range c.o.SegmentSize >> 12 { // at once: who knows that there is no space takes no more
			c.clients.bulky(l)
		}
	})
	c.whenLeads(c.everybody()&^setOf(l), 6*c.o.Election, func() {
		if c.healed {
			return
		}
		c.cutWhere(func(from, to int) bool { return from == l.index })
		c.after(c.o.Election/4+c.moment(c.o.Election), func() {
			if !c.healed {
				l.stick(5*c.o.Election/2 + c.moment(2*c.o.Election)) // a lost request is repeated after two
				l.empty()
			}
			c.after(c.o.Election/4+c.moment(c.o.Election), c.mend)
		})
	})
}

// comeback has one machine lead again and again, with entries that nobody gets, before another leads: the one has the
// entries of several terms cut off.
func (c *Cluster) comeback() {
	l := c.leader()
	if l == nil || l.conf().voters.len() < 3 {
		return
	}
	c.Count.Comebacks++
	c.hist.note(l.index, "comes back to lead")
	c.leadAlone(l, 1+c.rng.IntN(2))
}

// leadAlone keeps everything from everybody while a machine takes entries, until it does not lead any more.
func (c *Cluster) leadAlone(l *machine, again int) {
	if c.healed {
		return
	}
	c.some(l, 10*time.Millisecond)
	if again == 0 {
		c.cutWhere(func(from, to int) bool { return from == l.index || to == l.index })
		c.whenLeads(c.everybody()&^setOf(l), 6*c.o.Election, func() { c.after(c.moment(c.o.Election/2), c.mend) })
		return
	}
	c.cutWhere(func(from, to int) bool { return from != to })
	c.after(3*c.o.Election/2+c.moment(c.o.Election), func() {
		if c.healed {
			return
		}
		c.cutWhere(func(from, to int) bool { return from != l.index && to != l.index })
		c.whenLeads(c.everybody(), 6*c.o.Election, func() { c.leadAlone(l, again-1) })
	})
}

// rivals has all machines stand still for longer than they wait for a leader, and go on at the same moment without having heard it: the
// others campaign at once and share the votes, and the former leader, which has taken nothing meanwhile and goes on a little later, may
// decide.
func (c *Cluster) rivals() {
	l := c.leader()
	if l == nil {
		return
	}
	c.Count.Rivalries++
	c.hist.note(-1, "all stand still")
	c.cutWhere(func(from, to int) bool { return from == l.index || to == l.index })
	d := 2*c.o.Election + c.moment(c.o.Election/2)
	c.after(d-1, c.mend)
	for _, m := range c.machines {
		if m == l {
			m.freeze(d + c.moment(20*time.Millisecond))
		} else {
			m.freeze(d)
		}
	}
}

// falseDeath has the leader, perhaps with some others who are no quorum with it, be taken for dead by the rest, so that another
// leads while it believes to.
func (c *Cluster) falseDeath() {
	l := c.leader()
	if l == nil {
		return
	}
	conf, side := l.conf(), setOf(l)
	if conf.joint() && c.rng.chance(0.5) {
		side = c.newHalf(l)
	}
	for _, m := range conf.all.of(c.machines) {
		if with := side | setOf(m); !conf.quorum(with) && c.rng.chance(0.5) {
			side = with
		}
	}
	if c.rng.chance(0.5) {
		c.holdAnswers(l, side)
		return
	}
	c.duelOf(l, side, 0)
}

// newHalf is a leader with enough of the new half of its configuration. It prefers those who come, so that a majority of the old half may
// be left.
func (c *Cluster) newHalf(l *machine) set {
	conf, side := l.conf(), setOf(l)
	for _, part := range []set{conf.voters &^ conf.olds, conf.voters} {
		for _, m := range part.of(c.machines) {
			if !conf.voters.majority(side) || c.rng.chance(0.2) {
				side |= setOf(m)
			}
		}
	}
	return side
}

// holdAnswers is a duel in which what a leader was told before, and what its followers were, arrives late: when another leads. Clients read
// from before until after.
func (c *Cluster) holdAnswers(l *machine, side set) {
	d, term := c.rng.between(c.o.Election/20, c.o.Election/2), l.st.Term
	for _, m := range c.machines {
		switch {
		case m == l:
		case !side.has(m):
			c.net.link(c.net.ends[m.index], c.net.ends[l.index]).delay = d
		case c.rng.chance(0.5):
			c.net.link(c.net.ends[l.index], c.net.ends[m.index]).delay = d
		}
	}
	c.hist.note(l.index, "what it hears is late by %v", d)
	c.readsAt(side, 5, d)
	c.after(d/2+c.moment(d), func() {
		if !c.healed && l.up && l.st.Role == graft.RoleLeader && l.st.Term == term {
			c.duelOf(l, side, c.everybody()&^side)
		}
	})
	c.after(2*d+c.moment(c.o.Election), func() {
		for _, e := range c.net.ends {
			c.net.link(e, c.net.ends[l.index]).delay, c.net.link(c.net.ends[l.index], e).delay = 0, 0
		}
	})
}

// duelOf cuts a leader's side off from the rest, which is told that its process is gone; what those in late say still reaches the leader. Clients
// that do not know of the next leader read at the old one and at its followers, whose answers may be late.
func (c *Cluster) duelOf(l *machine, side, late set) {
	rest := c.everybody() &^ side
	if l.conf().quorum(side) || rest == 0 {
		return
	}
	c.Count.FalseDeaths++
	c.hist.note(l.index, "taken for dead by %b", rest)
	c.cutWhere(func(from, to int) bool {
		return side>>from&1 != side>>to&1 && (to != l.index || late>>from&1 == 0)
	})
	for _, m := range rest.of(c.machines) {
		c.later(c.moment(5*time.Millisecond), m, func() { m.net.down(l.address) })
	}
	for _, m := range (side &^ setOf(l)).of(c.machines) {
		if link := &c.net.links[m.index*len(c.machines)+l.index]; c.rng.chance(0.3) {
			link.delay = c.rng.between(time.Millisecond, c.o.Election/2)
			c.after(c.moment(c.o.Election), func() { link.delay = 0 })
		}
	}
	c.readsAt(side, 20, 3*c.o.Election/2)
	c.after(c.o.Election+c.moment(2*c.o.Election), c.mend)
}

// readsAt has clients read at some machines, n times within d.
func (c *Cluster) readsAt(some set, n int, d time.Duration) {
	machines := some.of(c.machines)
	for range n {
		m := machines[c.rng.IntN(len(machines))]
		c.after(c.moment(d), func() { c.clients.read(m) })
	}
}

// heardLate counts the answers that a deposed leader had been given before, and that reach it while somebody waits for a read there: they
// must not confirm it.
func (c *Cluster) heardLate(m *machine, sent time.Time, message []byte) {
	l := c.leader()
	if l == nil || l == m || m.st.Role != graft.RoleLeader || m.reads == 0 || !sent.Before(l.ledSince) {
		return
	}
	if r, err := wire.ParseAppendResponse(message); err == nil && r.Term == m.st.Term {
		c.Count.HeldAnswers++
	}
}

// loseAck has a machine lose its disk, with entries that it has acknowledged and that are not committed, under the leader that it
// acknowledged them to: once that knows, they are on one disk less than it was told.
func (c *Cluster) loseAck() {
	l := c.leader()
	if l == nil {
		return
	}
	voters := l.conf().voters
	others := (voters &^ setOf(l)).of(c.machines)
	if len(others) < 3 || l.conf().joint() {
		return
	}
	victim := others[c.rng.IntN(len(others))]
	if !c.wipeable(victim) {
		return
	}
	side := setOf(l, victim)
	c.hist.note(victim.index, "is to lose what it has acknowledged to m%d", l.index)
	c.cutWhere(func(from, to int) bool { return side>>from&1 != side>>to&1 })
	c.some(l, 5*time.Millisecond)
	c.after(c.rng.between(5*time.Millisecond, c.o.Election/10), func() {
		if c.healed || !c.wipeable(victim) || c.leader() != l {
			c.mend()
			return
		}
		boot, acked := victim.boot, victim.marked > int64(len(c.check.committed))
		victim.wipe()
		victim.turnOnAgain()
		c.whenHeard(l, victim, boot+1, c.o.Election/2, func() {
			if acked {
				c.Count.LostAcks++
			}
			victim.stick(c.o.Election)
			c.after(c.rng.between(5*time.Millisecond, 20*time.Millisecond), c.mend)
		})
	})
}

// whenHeard calls f when a leader has had an answer of a machine's process, or once limit has passed.
func (c *Cluster) whenHeard(l, m *machine, boot int, limit time.Duration, f func()) {
	const step = 100 * time.Microsecond
	switch {
	case c.healed:
	case limit <= 0 || l.lost[m.index].boot >= boot:
		f()
	default:
		c.after(step, func() { c.whenHeard(l, m, boot, limit-step, f) })
	}
}
