package sim

import (
	"slices"
	"syscall"
	"time"

	"github.com/graft-raft/graft"
)

// unleash lets faults happen until healed is set.
func (c *Cluster) unleash() {
	f := &c.o.Faults
	c.recurring("partition", f.Partition, c.partition)
	c.recurring("split-off", f.SplitOff, c.splitOff)
	c.recurring("cut-link", f.Cut, c.cutLink)
	c.recurring("reset", f.Reset, func() { c.net.Reset(c.rng.IntN(len(c.machines)), c.rng.IntN(len(c.machines))) })
	c.recurring("power-cut", f.PowerCut, func() { c.victim().crash(true, false) })
	c.recurring("power-cut-under-load", f.PowerCut, c.cutUnderLoad)
	c.recurring("kill", f.Kill, func() { c.victim().crash(false, false) })
	c.recurring("stop", f.Kill, func() { c.victim().stop() })
	c.recurring("power-cut-at-op", f.CutAtOp, func() {
		if m := c.victim(); m.up {
			m.cutIn = 1 + c.rng.Int64N(20)
		}
	})
	c.recurring("all-off", f.All, c.all)
	c.recurring("vanish", f.Vanish, func() { c.victim().crash(c.rng.chance(0.5), true) })
	c.recurring("wipe", f.Wipe, c.loseDisk)
	c.recurring("freeze", f.Freeze, func() { c.victim().freeze(c.rng.between(10*time.Millisecond, 4*c.o.Election)) })
	c.recurring("slow-disk", f.SlowDisk, func() {
		m := c.victim()
		m.slow = true
		c.Count.SlowDisks++
		c.hist.note(m.index, "slow disk")
		c.after(c.outage(), func() { m.slow = false })
	})
	c.recurring("clock-rate", f.Rate, func() {
		m := c.victim()
		m.rate = 0.9 + 0.2*c.rng.Float64()
		if m.up {
			m.proc.SetRate(m.rate)
		}
		c.Count.RateChanges++
	})
	c.recurring("disk-error", f.DiskError, func() {
		if m := c.victim(); m.up {
			m.failIn, m.failBy = 1+c.rng.Int64N(30), syscall.EIO
			if c.rng.chance(0.3) {
				m.failBy = syscall.ENOSPC
				c.Count.SpaceErrors++
			}
		}
	})
	c.recurring("disk-full", f.DiskFull, c.fillDisk)
	c.recurring("disk-stuck", f.Stuck, c.stickDisk)
	c.recurring("disk-rot", f.Rot, c.rot)
	c.recurring("wrong-directory", f.WrongDir, c.wrongHands)
	c.recurring("wipe-learner", f.WipeLearner, c.loseLearner)
	c.recurring("clock-jump", f.Jump, c.jump)
	c.recurring("crash-loop", f.CrashLoop, c.crashLoop)
	c.recurring("slow-link", f.SlowLink, c.slowLink)
	c.recurring("overwrite", f.Overwrite, c.overwrite)
	c.recurring("comeback", f.Comeback, c.comeback)
	c.recurring("rivals", f.Rivals, c.rivals)
	c.recurring("false-death", f.FalseDeath, c.falseDeath)
	c.recurring("lose-ack", f.LoseAck, c.loseAck)
	c.recurring("snapshot", c.o.Snap.Ask, func() { c.saveOn(c.victim()) })
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
	m := c.machines[c.rng.IntN(len(c.machines))]
	if l := c.leader(); m.boot == 0 && l != nil { // a spare one that nobody has wanted yet
		return l
	}
	return m
}

// cutUnderLoad takes a machine's power while the group is busy and its disk is late.
func (c *Cluster) cutUnderLoad() {
	l, m := c.leader(), c.victim()
	if l == nil {
		return
	}
	m.slow = true
	c.after(time.Second, func() { m.slow = false })
	for range 10 + c.rng.IntN(40) {
		c.after(c.moment(20*time.Millisecond), func() { c.clients.write(l, 0) })
	}
	c.harm(c.moment(20*time.Millisecond), func() { m.crash(true, false) })
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
	n, pattern := len(c.machines), c.rng.IntN(9)
	one, side := c.rng.IntN(n), c.rng.Uint64()
	place := c.rng.Perm(n) // who stands where
	if l := c.leader(); l != nil && c.rng.chance(0.7) {
		first := slices.Index(place, l.index)
		place[0], place[first] = place[first], place[0]
	}
	where := make([]int, n)
	for i, m := range place {
		where[m] = i
	}
	c.Count.Partitions++
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
		case 5: // chain
			return from-to != 1 && to-from != 1
		case 6: // triangle: two do not reach each other, all others reach both
			return where[from]+where[to] == 1
		case 7: // five: one of the leader's majority is the bridge to those whom the leader does not reach
			return !bridged(where[from], where[to])
		default: // constrained: the leader reaches nobody, and the others only one, which has heard nothing lately
			return where[from] == 0 || where[to] == 0 || where[from] != 1 && where[to] != 1
		}
	})
	c.after(c.outage(), c.mend)
}

// bridged reports whether two of five places are connected: 0, the leader's, with 1 and 2; 2, 3 and 4 with each other.
// Further ones are connected with everybody.
func bridged(a, b int) bool {
	a, b = min(a, b), max(a, b)
	return b > 4 || a == 0 && b <= 2 || a >= 2
}

// splitOff leaves the leader alone with clients that do not know, and perhaps with a
// slow disk, until there is a new one: what it took meanwhile is to be cut off.
func (c *Cluster) splitOff() {
	m := c.leader()
	if m == nil || len(c.machines) < 2 {
		return
	}
	c.hist.note(m.index, "split off")
	if c.rng.chance(0.5) {
		m.slow = true
		c.after(c.outage()+3*c.o.Election, func() { m.slow = false })
	}
	c.cutWhere(func(from, to int) bool { return from == m.index || to == m.index })
	for range 1 + c.rng.IntN(8) {
		c.after(time.Duration(c.rng.Int64N(int64(2*c.o.Election))), func() { c.clients.write(m, 0) })
	}
	c.after(c.o.Election+time.Duration(c.rng.Int64N(int64(2*c.o.Election))), c.mend)
}

// cutWhere cuts exactly the links that cond names.
func (c *Cluster) cutWhere(cond func(from, to int) bool) {
	for from := range c.machines {
		for to := range c.machines {
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
	n := len(c.machines)
	if n < 2 {
		return
	}
	from := c.rng.IntN(n)
	to := (from + 1 + c.rng.IntN(n-1)) % n
	both := c.rng.chance(0.5)
	c.net.Cut(from, to, true)
	if both {
		c.net.Cut(to, from, true)
	}
	c.after(c.outage(), func() {
		c.net.Cut(from, to, false)
		if both {
			c.net.Cut(to, from, false)
		}
	})
}

// loseDisk takes one member's data away. A group bears this only if everybody else
// has theirs, and only one at a time.
func (c *Cluster) loseDisk() {
	victim := c.victim()
	if !c.wipeable(victim) {
		return
	}
	if l := c.leader(); l != nil && l != victim && c.rng.chance(0.6) {
		c.loseDiskBadly(l, victim)
		return
	}
	victim.wipe()
}

// wipeable reports whether the group bears the loss of a member's data now: no other configuration is on its way,
// all others have theirs, and they suffice until a leader has brought up who has nothing.
func (c *Cluster) wipeable(victim *machine) bool {
	conf, k := victim.conf(), c.check
	if n := len(k.confs); n == 0 || conf != k.confs[n-1] || conf.joint() || !conf.voters.has(victim) || conf.voters.len() < 2 {
		return false
	}
	if (victim.initial.Empty() || k.changed() || k.everChanged()) && !conf.quorum(conf.voters&^setOf(victim)) {
		return false // as a joiner it will not vote, nor while it copies the past and goes by configurations of then
	}
	for _, m := range c.machines {
		if m.asks() > 0 || m.conf().prev == conf {
			return false
		}
		if conf.voters.has(m) && (!m.up || m != victim && (m.st.Waiting || m.conf() != conf)) {
			return false
		}
	}
	return c.admin.noneBlank(victim)
}

// loseDiskBadly has a majority take entries that the rest lacks, one of the majority lose them
// with its disk, and the leader vanish while it brings that one up to date.
func (c *Cluster) loseDiskBadly(l, victim *machine) {
	voters := victim.conf().voters
	with := setOf(l, victim)
	for _, m := range voters.of(c.machines) {
		if !voters.majority(with) {
			with |= setOf(m)
		}
	}
	c.hist.note(victim.index, "is to lose its disk")
	c.cutWhere(func(from, to int) bool { return with>>from&1 != with>>to&1 })
	for range 3 + c.rng.IntN(100) {
		c.after(c.moment(time.Second), func() { c.clients.write(l, 0) })
	}
	c.after(time.Second+c.moment(100*time.Millisecond), func() {
		if !c.wipeable(victim) || c.healed {
			c.mend()
			return
		}
		victim.wipe()
		c.after(c.moment(20*time.Millisecond), victim.turnOnAgain)
		enough := int64(1) // or as much as those have that know the least
		for _, m := range voters.of(c.machines) {
			if !with.has(m) && c.rng.chance(0.7) {
				enough = max(enough, m.st.Last+c.rng.Int64N(3))
			}
		}
		c.whenCaughtUp(victim, enough, 2*time.Second, func() {
			l.crash(c.rng.chance(0.5), true)
			c.after(c.moment(20*time.Millisecond), c.mend)
		})
		if c.rng.chance(0.4) {
			c.harm(c.moment(60*time.Millisecond), func() {
				victim.crash(c.rng.chance(0.5), false)
				c.after(c.moment(10*time.Millisecond), victim.turnOnAgain)
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
		c.harm(c.rng.between(time.Microsecond, 10*time.Millisecond), f)
	default:
		c.after(step, func() { c.whenCaughtUp(m, index, limit-step, f) })
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
		c.after(c.moment(2*time.Second), func() {
			if l := c.leader(); l != nil {
				c.clients.bulky(l)
			}
		})
	}
	m.fs.SetCapacity(m.fs.Used() + max(c.rng.Int64N(2*c.o.SegmentSize)-c.o.SegmentSize, 0))
	c.hist.note(m.index, "disk is full")
	c.after(time.Second+4*c.outage(), func() { m.empty() })
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
	c.net.o.Loss, c.net.o.Dup, c.net.o.Reorder, c.net.o.Spike, c.net.o.Bandwidth = 0, 0, 0, 0, 0
	c.o.Load.SlowApp = 0
	c.mend()
	for i := range c.net.links { // what is late comes late, and nothing waits for it
		c.net.links[i].last, c.net.links[i].free, c.net.links[i].delay = c.sim.Now(), c.sim.Now(), 0
	}
	for _, m := range c.machines {
		m.slow, m.rate, m.cutIn, m.failIn, m.cutStarts = false, 1, 0, 0, 0
		m.empty()
		switch {
		case !m.up && m.boot == 0:
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
