package sim

import (
	"time"

	"github.com/graft-raft/graft"
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
		if c.stuckAtFirstStart() {
			c.Count.StuckAtFirstStart++
			return
		}
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

// stuckAtFirstStart reports whether nobody may vote for those that hold something, because nobody
// knows of a commit. TODO: see finding F1.
func (c *Cluster) stuckAtFirstStart() bool {
	waiting, some := 0, false
	for _, m := range c.machines {
		if m.st.Waiting {
			waiting++
			some = some || m.st.Last > 0
		}
	}
	return some && waiting > len(c.machines)-c.majority()
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

// freshWrites demands that every machine's clients get something done.
func (c *Cluster) freshWrites(limit time.Duration) {
	before, reads := c.Count.Acked, c.Count.FollowerReads+c.Count.LeaderReads
	started := false
	done := c.until(limit, func() bool {
		if l := c.leader(); l != nil && !started {
			started = true
			for range 3 {
				c.clients.write(l, 0)
			}
			for _, m := range c.machines {
				c.clients.read(m)
			}
		}
		return c.Count.Acked >= before+3 && c.Count.FollowerReads+c.Count.LeaderReads >= reads+int64(len(c.machines))
	})
	if !done && c.err == nil {
		c.fail("liveness: fresh writes and reads are not answered after 20 election timeouts")
	}
}

// steady demands that nothing changes while nothing happens.
func (c *Cluster) steady(d time.Duration) {
	if c.err != nil {
		return
	}
	before := c.Count.Leaderships
	if c.run(d) && c.Count.Leaderships != before {
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

// roleOf is short for tests.
func (c *Cluster) roleOf(i int) graft.NodeRole { return c.machines[i].st.Role }
