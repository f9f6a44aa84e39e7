package sim

import (
	"slices"
	"time"
)

// recoverAll is the second phase: everything heals, and the group must work again.
func (c *Cluster) recoverAll() {
	c.heal()
	timeout := c.o.Election
	c.until(time.Duration(10)*timeout+10*time.Second, func() bool { return !c.stopping() }) // shutdowns that had begun
	for _, m := range c.machines {
		if !m.up {
			m.turnOn()
		}
	}
	if !c.until(10*timeout, c.led) && c.err == nil {
		c.fail("liveness: no leader everybody follows after 10 election timeouts")
	}
	if c.err == nil {
		c.freshWrites(20 * timeout)
	}
	c.steady(20 * timeout)
	if c.err != nil {
		return
	}
	c.clients.active = false
	if !c.until(20*timeout, c.converged) && c.err == nil {
		c.fail("liveness: the replicas differ, or calls are pending, after 20 election timeouts")
	}
	if c.err == nil {
		c.stopAll()
	}
}

func (c *Cluster) anyWaiting() bool {
	for _, m := range c.machines {
		if m.st.Waiting {
			return true
		}
	}
	return false
}

func (c *Cluster) stopping() bool {
	for _, m := range c.machines {
		if m.up && m.stopping {
			return true
		}
	}
	return false
}

// led reports whether one node leads and all others follow it.
func (c *Cluster) led() bool {
	l := c.leader()
	if l == nil || l.app.leading != l.st.Term {
		return false
	}
	for _, m := range c.machines {
		if !m.up || m.st.Term != l.st.Term || m != l && !m.app.following.Same(l.peer) {
			return false
		}
	}
	return true
}

// freshWrites demands that clients get something done: writes at the leader, reads at every
// machine. They try again while they are refused.
func (c *Cluster) freshWrites(limit time.Duration) {
	c.o.Load.WrongTerm = 0
	writes, reads := 3, make([]bool, len(c.machines))
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
		for i, m := range c.machines {
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
		c.fail("liveness: after 20 election timeouts %d fresh writes are not acknowledged, reads are answered: %v", max(writes, 0), reads)
	}
}

// steady demands that nothing changes while nothing happens.
func (c *Cluster) steady(d time.Duration) {
	if c.err != nil {
		return
	}
	before, failures := c.Count.Leaderships, c.Count.NodeFailures
	if c.run(d) && c.Count.Leaderships != before && c.Count.NodeFailures == failures {
		c.fail("liveness: leadership changes though nothing happens")
	}
}

// converged reports whether all replicas are equal and nobody waits.
func (c *Cluster) converged() bool {
	l := c.leader()
	if l == nil {
		return false
	}
	for _, m := range c.machines {
		if !m.up || m.writes+m.reads > 0 || m.st.Waiting || m.st.Applied != l.st.Last ||
			m.app.applied != l.app.applied || m.app.digest != l.app.digest {
			return false
		}
	}
	return true
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
		c.fail("liveness: shutdown does not end")
	}
}
