package sim

import (
	"errors"
	"math/rand/v2"
	"path"
	"slices"
	"time"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

// This file is what happens to disks beside lost power: they are late, rot, and get into the wrong hands.

const logDir = "/data/log"

// stickDisk has no sync of a machine return for a while.
func (c *Cluster) stickDisk() {
	m := c.victim()
	d := min(c.outage()+c.moment(3*c.o.Election), time.Minute)
	m.stick(d)
	c.Count.StuckDisks++
	c.hist.note(m.index, "disk is stuck for %v", d)
}

// stick has no sync of the machine return for a while. One that is stuck for longer already stays so.
func (m *machine) stick(d time.Duration) {
	if until := m.c.sim.Now().Add(d); until.After(m.stuckUntil) {
		m.stuckUntil = until
	}
}

// loseLearner takes a learner's data away. Nobody counts on it, unless it is about to be a voter.
func (c *Cluster) loseLearner() {
	l := c.leader()
	if l == nil {
		return
	}
	conf := l.conf()
	for _, m := range (conf.all &^ conf.voters &^ conf.olds).of(c.machines) {
		if c.countedOn(m) || m.boot == 0 {
			continue
		}
		c.Count.WipedLearners++
		for _, e := range m.log {
			e.on &^= setOf(m)
		}
		m.wipe()
		return
	}
}

// countedOn reports whether a machine is a voter by a configuration that may yet be in force, or is about to be one: what it
// has acknowledged must not be lost.
func (c *Cluster) countedOn(m *machine) bool {
	k := c.check
	if len(k.confs) == 0 {
		return true
	}
	latest := k.confs[len(k.confs)-1]
	for _, x := range c.machines {
		if x.up && x.node != nil && slices.ContainsFunc(graft.SimComing(x.node), m.peer.Same) {
			return true
		}
		if !x.holds(latest.entry, int64(len(x.log))) {
			continue // it can be elected by nobody
		}
		for conf := x.conf(); conf != nil && conf.index() >= latest.index(); conf = conf.prev {
			if (conf.voters | conf.olds).has(m) {
				return true
			}
		}
	}
	return false
}

// wrongHands starts a process on a directory that is another's, by its address, or that another process of the same
// machine has open. It must be refused, and must leave no trace.
func (c *Cluster) wrongHands() {
	m, other := c.victim(), c.machines[c.rng.IntN(len(c.machines))]
	switch {
	case m.up && !m.stopping && m.node != nil && c.rng.chance(0.5):
		m.quiet = true
		c.refuses(m, m.fs, "its own, which is in use")
		m.quiet = false
		c.Count.DoublyOpened++
	case other != m && other.boot > 0 && other.marked > 0:
		other.quiet = true
		disk := other.fs.KillClone()
		other.quiet = false
		c.refuses(m, disk, "another's")
		c.Count.WrongDirs++
	}
}

func (c *Cluster) refuses(m *machine, disk *vfs.Mem, whose string) {
	s := actor.NewSim(1)
	dice := rand.New(rand.NewPCG(1, 1))
	_, err := graft.NewHost(graft.HostOptions{
		Address: m.address, Dir: "/data", Transport: nowhere{}, SegmentSize: c.o.SegmentSize,
		Env: &env.Env{Exec: s.NewProcess(1), FS: disk, Rand: dice.Uint64},
	})
	if err == nil || errors.Is(err, errNowhere) {
		c.fail("I19 identity: machine %d takes up a directory that is %s", m.index, whose)
	}
}

var errNowhere = errors.New("the directory was accepted")

// nowhere is the transport of a process that must not get that far.
type nowhere struct{ rpc.Transport }

func (nowhere) Start(rpc.StartOptions) error { return errNowhere }

// rot changes a bit of what a machine's disk holds, on a copy of it, and opens that. What rots is noticed, and named, or what
// is read is what was written: nothing else is ever made of it. The machine itself goes on with what it has, as
// if an operator had replaced the disk's block.
func (c *Cluster) rot() {
	m := c.victim()
	if m.boot == 0 || m.blank {
		return
	}
	m.quiet = true
	disk := m.fs.CrashClone(nil)
	m.quiet = false
	names, err := disk.ReadDir(logDir)
	if err != nil || len(names) == 0 {
		return // the power would go before the directory was durable
	}
	name := path.Join(logDir, names[c.rng.IntN(len(names))])
	info, err := disk.Stat(name)
	if err != nil || info.IsDir() || info.Size() == 0 {
		return
	}
	off := c.rng.Int64N(info.Size())
	if c.rng.chance(0.5) { // most of a segment is empty
		off = c.rng.Int64N(min(info.Size(), 16<<10))
	}
	bit := byte(1) << c.rng.IntN(8)
	if err := disk.Corrupt(name, off, func(b []byte) { b[0] ^= bit }); err != nil {
		return
	}
	c.Count.Rotted++
	c.readsTrue(m, disk, name, off)
}

// readsTrue opens a disk on which a bit is wrong.
func (c *Cluster) readsTrue(m *machine, disk *vfs.Mem, name string, off int64) {
	s := actor.NewSim(1)
	dice := rand.New(rand.NewPCG(1, 1))
	store, err := wal.Open(wal.Options{
		FS: disk, Dir: logDir, Exec: s.NewProcess(1), Identity: m.address, Rand: dice.Uint64, SegmentSize: c.o.SegmentSize,
	})
	if err != nil {
		c.Count.RotRefused++
		var corrupt *wal.CorruptError
		if errors.As(err, &corrupt) && corrupt.File == "" {
			c.fail("I10 durability: machine %d: a rotten %s at %d is refused, and the refusal names no file: %v", m.index, name, off, err)
		}
		return
	}
	g, err := store.Group(groupName)
	if err != nil {
		return
	}
	for next, last := g.Recovered().First, g.Recovered().Last; next <= last; {
		b, err := g.Read(next, 1<<20)
		if err != nil || b.Count == 0 {
			c.Count.RotRefused++
			return
		}
		for it := b.Iter(); ; {
			e, ok := it.Next()
			if !ok {
				break
			}
			if !c.check.known(e) {
				c.fail("I3 log matching: machine %d: with a bit of %s at %d wrong, its log reads entry %d of term %d, which nobody wrote so",
					m.index, name, off, e.Index, e.Term)
				return
			}
		}
		next = b.Last() + 1
	}
}

// known reports whether some log has held just this entry.
func (k *checker) known(e entry.Entry) bool {
	info := k.entries[entryKey{e.Index, e.Term}]
	return info == nil || info.typ == e.Type && info.sum == entrySum(e)
}

// jump lets a machine's clock leap ahead, as after a pause of a virtual machine that nobody noticed.
func (c *Cluster) jump() {
	m := c.victim()
	if !m.up {
		return
	}
	d := c.rng.between(time.Millisecond, 10*c.o.Election)
	m.proc.Jump(d)
	m.surprised = c.sim.Now()
	c.Count.ClockJumps++
	c.hist.note(m.index, "clock jumps %v ahead", d)
}

// crashLoop cuts a machine off while it starts, several times in a row.
func (c *Cluster) crashLoop() {
	m := c.victim()
	m.cutStarts = 2 + c.rng.IntN(6)
	c.Count.CrashLoops++
	m.crash(c.rng.chance(0.5), false)
}

// slowLink has what goes from one machine to another take long for a while.
func (c *Cluster) slowLink() {
	n := len(c.machines)
	if n < 2 {
		return
	}
	from := c.rng.IntN(n)
	to := (from + 1 + c.rng.IntN(n-1)) % n
	l := &c.net.links[from*n+to]
	l.delay = c.rng.between(time.Millisecond, 2*c.o.Election)
	c.Count.SlowLinks++
	c.hist.note(from, "what it sends to m%d takes %v longer", to, l.delay)
	c.after(c.outage(), func() { l.delay = 0 })
}
