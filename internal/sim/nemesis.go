package sim

import (
	"time"

	"github.com/graft-raft/graft"
)

// unleash lets faults happen until healed is set.
func (c *Cluster) unleash() {
	f := &c.o.Faults
	c.recurring(f.Partition, c.partition)
	c.recurring(f.Cut, c.cutLink)
	c.recurring(f.Reset, func() { c.net.Reset(c.rng.IntN(c.o.Nodes), c.rng.IntN(c.o.Nodes)) })
	c.recurring(f.PowerCut, func() { c.victim().crash(true, false) })
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
	if c.o.Nodes < 3 {
		return
	}
	for _, m := range c.machines {
		if !m.up || m != victim && m.st.Waiting {
			return
		}
	}
	victim.wipe()
}

// fillDisk leaves a machine little space for a while.
func (c *Cluster) fillDisk() {
	m := c.victim()
	if m.full {
		return
	}
	m.full = true
	c.Count.DiskFull++
	m.fs.SetCapacity(m.fs.Used() + c.rng.Int64N(2*c.o.SegmentSize))
	c.hist.note(m.index, "disk is full")
	c.sim.After(4*c.outage(), func() { m.empty() })
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
	c.mend()
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
