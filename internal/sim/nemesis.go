package sim

import (
	"time"

	"github.com/graft-raft/graft"
)

// unleash lets faults happen until healed is set.
func (c *Cluster) unleash() {
	f := &c.o.Faults
	c.recurring(f.Partition, c.partition)
	c.recurring(f.SplitOff, c.splitOff)
	c.recurring(f.Cut, c.cutLink)
	c.recurring(f.Reset, func() { c.net.Reset(c.rng.IntN(c.o.Nodes), c.rng.IntN(c.o.Nodes)) })
	c.recurring(f.PowerCut, func() { c.victim().crash(true, false) })
	c.recurring(f.PowerCut, c.cutUnderLoad)
	c.recurring(f.Kill, func() { c.victim().crash(false, false) })
	c.recurring(f.Kill, func() { c.victim().stop() })
	c.recurring(f.CutAtOp, func() {
		if m := c.victim(); m.up {
			m.cutIn = 1 + c.rng.Int64N(20)
		}
	})
	c.recurring(f.All, c.all)
	c.recurring(f.Vanish, func() { c.victim().crash(c.rng.chance(0.5), true) })
	c.recurring(f.Wipe, c.loseDisk)
	c.recurring(f.Freeze, func() { c.victim().freeze(c.rng.between(10*time.Millisecond, 4*c.o.Election)) })
	c.recurring(f.SlowDisk, func() {
		m := c.victim()
		m.slow = true
		c.Count.SlowDisks++
		c.hist.note(m.index, "slow disk")
		c.sim.After(c.outage(), func() { m.slow = false })
	})
	c.recurring(f.Rate, func() {
		m := c.victim()
		m.rate = 0.9 + 0.2*c.rng.Float64()
		if m.up {
			m.proc.SetRate(m.rate)
		}
		c.Count.RateChanges++
	})
	c.recurring(f.DiskError, func() {
		if m := c.victim(); m.up {
			m.failIn = 1 + c.rng.Int64N(30)
		}
	})
	c.recurring(f.DiskFull, c.fillDisk)
}

// recurring has a fault happen at random times, every d in the mean.
func (c *Cluster) recurring(d time.Duration, f func()) {
	if d <= 0 {
		return
	}
	c.sim.After(time.Duration(c.rng.ExpFloat64()*float64(d)), func() {
		if !c.healed {
			f()
			c.recurring(d, f)
		}
	})
}

// outage draws how long something stays broken.
func (c *Cluster) outage() time.Duration {
	return time.Duration(c.rng.ExpFloat64() * float64(c.o.Faults.Outage))
}

// victim picks a machine, often the leader.
func (c *Cluster) victim() *machine {
	if m := c.leader(); m != nil && c.rng.chance(0.4) {
		return m
	}
	return c.machines[c.rng.IntN(len(c.machines))]
}

// cutUnderLoad takes a machine's power while the group is busy and its disk is late.
func (c *Cluster) cutUnderLoad() {
	l, m := c.leader(), c.victim()
	if l == nil {
		return
	}
	m.slow = true
	c.sim.After(time.Second, func() { m.slow = false })
	for range 10 + c.rng.IntN(40) {
		c.sim.After(c.moment(20*time.Millisecond), func() { c.clients.write(l, 0) })
	}
	c.sim.After(c.moment(20*time.Millisecond), func() { m.crash(true, false) })
}

// all takes the power of all machines.
func (c *Cluster) all() {
	power := c.rng.chance(0.7)
	for _, m := range c.machines {
		m.crash(power, false)
	}
}

// partition cuts the network into a pattern, and mends all of it after a while.
func (c *Cluster) partition() {
	n, pattern := c.o.Nodes, c.rng.IntN(6)
	one, side := c.rng.IntN(n), c.rng.Uint64()
	c.hist.note(-1, "partition %d around %d", pattern, one)
	c.cutWhere(func(from, to int) bool {
		switch pattern {
		case 0: // one is alone
			return from == one || to == one
		case 1: // two sides
			return side>>from&1 != side>>to&1
		case 2: // one hears nobody
			return to == one
		case 3: // nobody hears one
			return from == one
		case 4: // hub: all meet at one only
			return from != one && to != one
		default: // chain
			return from-to != 1 && to-from != 1
		}
	})
	c.sim.After(c.outage(), c.mend)
}

// splitOff leaves the leader alone with clients that do not know, and perhaps with a
// slow disk, until there is a new one: what it took meanwhile is to be cut off.
func (c *Cluster) splitOff() {
	m := c.leader()
	if m == nil || c.o.Nodes < 2 {
		return
	}
	c.hist.note(m.index, "split off")
	if c.rng.chance(0.5) {
		m.slow = true
		c.sim.After(c.outage()+3*c.o.Election, func() { m.slow = false })
	}
	c.cutWhere(func(from, to int) bool { return from == m.index || to == m.index })
	for range 1 + c.rng.IntN(8) {
		c.sim.After(time.Duration(c.rng.Int64N(int64(2*c.o.Election))), func() { c.clients.write(m, 0) })
	}
	c.sim.After(c.o.Election+time.Duration(c.rng.Int64N(int64(2*c.o.Election))), c.mend)
}

// cutWhere cuts exactly the links that cond names.
func (c *Cluster) cutWhere(cond func(from, to int) bool) {
	for from := range c.o.Nodes {
		for to := range c.o.Nodes {
			if from != to {
				c.net.Cut(from, to, cond(from, to))
			}
		}
	}
}

// mend makes the network whole.
func (c *Cluster) mend() { c.cutWhere(func(int, int) bool { return false }) }

// cutLink cuts one link, in one direction or both.
func (c *Cluster) cutLink() {
	if c.o.Nodes < 2 {
		return
	}
	from := c.rng.IntN(c.o.Nodes)
	to := (from + 1 + c.rng.IntN(c.o.Nodes-1)) % c.o.Nodes
	both := c.rng.chance(0.5)
	c.net.Cut(from, to, true)
	if both {
		c.net.Cut(to, from, true)
	}
	c.sim.After(c.outage(), func() {
		c.net.Cut(from, to, false)
		if both {
			c.net.Cut(to, from, false)
		}
	})
}

// loseDisk takes one machine's data away. A group bears this only if everybody else
// has theirs, and only one at a time.
func (c *Cluster) loseDisk() {
	victim := c.victim()
	if c.o.Nodes < 2 || !c.wipeable(victim) {
		return
	}
	if l := c.leader(); l != nil && l != victim && c.rng.chance(0.6) {
		c.loseDiskBadly(l, victim)
		return
	}
	victim.wipe()
}

func (c *Cluster) wipeable(victim *machine) bool {
	for _, m := range c.machines {
		if !m.up || m != victim && m.st.Waiting {
			return false
		}
	}
	return true
}

// loseDiskBadly has a majority take entries that the rest lacks, one of the majority lose them
// with its disk, and the leader vanish while it brings that one up to date.
func (c *Cluster) loseDiskBadly(l, victim *machine) {
	with := map[int]bool{l.index: true, victim.index: true} // for look-up only
	for i := 0; len(with) < c.majority(); i++ {
		with[i] = true
	}
	c.hist.note(victim.index, "is to lose its disk")
	c.cutWhere(func(from, to int) bool { return with[from] != with[to] })
	for range 3 + c.rng.IntN(100) {
		c.sim.After(c.moment(time.Second), func() { c.clients.write(l, 0) })
	}
	c.sim.After(time.Second+c.moment(100*time.Millisecond), func() {
		if !c.wipeable(victim) || c.healed {
			c.mend()
			return
		}
		victim.wipe()
		c.sim.After(c.moment(20*time.Millisecond), victim.turnOnAgain)
		enough := int64(1) // or as much as those have that know the least
		for _, m := range c.machines {
			if !with[m.index] && c.rng.chance(0.7) {
				enough = max(enough, m.st.Last+c.rng.Int64N(3))
			}
		}
		c.whenCaughtUp(victim, enough, 2*time.Second, func() {
			l.crash(c.rng.chance(0.5), true)
			c.sim.After(c.moment(20*time.Millisecond), c.mend)
		})
		if c.rng.chance(0.4) {
			c.sim.After(c.moment(60*time.Millisecond), func() {
				victim.crash(c.rng.chance(0.5), false)
				c.sim.After(c.moment(10*time.Millisecond), victim.turnOnAgain)
			})
		}
	})
}

// whenCaughtUp calls f when a machine has got entries up to an index, or soon after.
func (c *Cluster) whenCaughtUp(m *machine, index int64, limit time.Duration, f func()) {
	const step = 100 * time.Microsecond
	switch {
	case c.healed:
	case m.up && m.st.Last >= index || limit <= 0:
		c.sim.After(c.rng.between(time.Microsecond, 10*time.Millisecond), f)
	default:
		c.sim.After(step, func() { c.whenCaughtUp(m, index, limit-step, f) })
	}
}

// moment draws a time up to d.
func (c *Cluster) moment(d time.Duration) time.Duration { return time.Duration(c.rng.Int64N(int64(d))) }

// turnOnAgain is turnOn unless the faults are over.
func (m *machine) turnOnAgain() {
	if !m.up && !m.c.healed {
		m.turnOn()
	}
}

// fillDisk leaves a machine little space for a while.
func (c *Cluster) fillDisk() {
	m := c.victim()
	if m.full {
		return
	}
	m.full = true
	c.Count.DiskFull++
	for range 60 {
		c.sim.After(c.moment(2*time.Second), func() {
			if l := c.leader(); l != nil {
				c.clients.bulky(l)
			}
		})
	}
	m.fs.SetCapacity(m.fs.Used() + max(c.rng.Int64N(2*c.o.SegmentSize)-c.o.SegmentSize, 0))
	c.hist.note(m.index, "disk is full")
	c.sim.After(time.Second+4*c.outage(), func() { m.empty() })
}

// empty gives a machine all the space it wants.
func (m *machine) empty() {
	if m.full {
		m.full = false
		m.fs.SetCapacity(-1)
		m.c.hist.note(m.index, "disk has space")
	}
}

// heal ends all faults and turns everything on.
func (c *Cluster) heal() {
	c.healed = true
	c.hist.note(-1, "everything heals")
	c.net.o.Loss, c.net.o.Dup, c.net.o.Reorder, c.net.o.Spike = 0, 0, 0, 0
	c.o.Load.SlowApp = 0
	c.mend()
	for i := range c.net.links { // what is late comes late, and nothing waits for it
		c.net.links[i].last = c.sim.Now()
	}
	for _, m := range c.machines {
		m.slow, m.rate, m.cutIn, m.failIn = false, 1, 0, 0
		m.empty()
		switch {
		case !m.up:
			m.turnOn()
		case m.st.Role == graft.RoleFailed:
			m.end(true, false)
			m.turnOn()
		default:
			m.proc.SetRate(1)
			m.thaw()
		}
	}
}
