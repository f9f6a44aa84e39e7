package sim

import (
	"errors"
	"math/rand/v2"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

const groupName = "g"

// machine is a computer with a disk, on which one process at a time runs a replica.
//
// Invariants: while up a process runs; st and log are what the checker last saw of it,
// and when it is down what it last saw.
//
// Ownership: the simulation's goroutine.
type machine struct {
	c       *Cluster
	index   int
	address string
	peer    graft.PeerID
	rng     *rand.Rand

	fs   *vfs.Mem
	proc *actor.Process
	net  *Transport
	host *graft.Host
	node *graft.Node
	app  *app
	up   bool
	boot int // processes so far

	// What the checker knows.
	st     graft.SimState
	log    []*entryInfo // [i] has index i+1
	marked int64        // up to here entries are noted as durable here
	claim  *entryInfo   // the last entry that it called durable before it died
	said   spoken
	cutAt  time.Time // when it last cut its log
	loads  int64     // the snapshot that is brought here; at the end of its process also one that it still loads
	unsure bool      // it cut its log while entries were on their way to its disk, and not all that it has got since is durable
	writes int       // calls of this process that are not answered
	reads  int
	calls  int // hand-overs and cancellations
	// changes of the configuration that are not answered, in the order in which they were asked for
	changes []*change

	// Its part in the group.
	initial    graft.Configuration // what it is started with
	base       *confInfo           // the same
	parked     bool                // it is off, and stays so until somebody wants it
	blank      bool                // its disk says that it has nothing, or that it waits to be brought up to date
	dropped    bool                // it has been a member, and is not
	wipedOut   bool                // its disk was taken away since
	overridden bool                // its configuration was reset by hand
	lame       bool                // it leads, and is no voter of what is committed
	asked      time.Time           // when it asked for a vote last
	contact    time.Time           // when it heard a leader last, or started, as far as steady cares
	ledSince   time.Time           // when it began to lead last
	heardOf    [16]time.Time       // when which machine's answer to a message of this leadership came last
	lost       [16]lostDisk        // what it was told in this leadership by machines that have lost their disks
	lostDisk   int                 // its processes from this on know nothing of what was on the disk before; 0: it never lost one
	heardFirst [16]time.Time       // when the first of these came
	heardSent  [16]time.Time       // when the latest of these was sent that was answered
	lastAppend appendSeen          // what it heard of a leader last
	surprised  time.Time           // when its clock last jumped, or it was told that another is gone
	ends       *confInfo           // it is to be stopped when this is about to be committed
	thawedAt   time.Time           // when it was last frozen and went on
	tellable   time.Time           // when it first asked somebody since who could tell it that it has no vote

	// What is done to it.
	rate       float64
	slow       bool
	full       bool
	quiet      bool      // the checker reads
	ops        int64     // operations so far that changed what a power cut leaves
	cutIn      int64     // power fails at this disk operation; 0: it does not
	failIn     int64     // this disk operation fails
	failBy     error     // so
	stuckUntil time.Time // no sync returns before
	cutStarts  int       // so many starts are cut off
	injected   bool      // one has failed in this process
	powerCut   bool      // how the last process ended
	stopping   bool
	opening    bool // its replica is being started
	fresh      bool // it may be told that it never held data

	kept        kept  // by a durable state machine
	appliedOnce int64 // up to here some process of it has applied entries
}

// lostDisk is an answer by which a leader knows that a machine has lost what it held behind last.
type lostDisk struct {
	boot int
	at   time.Time
	last int64
}

// appendSeen is a leader's message that has arrived.
type appendSeen struct {
	at                  time.Time
	from                *Transport
	message, attachment []byte
}

func newMachine(c *Cluster, index int, address string, rng *rand.Rand) *machine {
	m := &machine{c: c, index: index, address: address, peer: graft.PeerID{Address: address}, rng: rng, rate: 1, fresh: true, blank: true}
	m.initial, m.base = c.conf, c.check.initial
	if index >= c.o.Nodes {
		m.joins()
	}
	m.setDisk(vfs.NewMem())
	return m
}

// joins has the machine start without a configuration from now on: others will add it.
func (m *machine) joins() {
	m.initial, m.base = graft.Configuration{}, m.c.check.nothing
}

// setDisk puts a disk in.
func (m *machine) setDisk(fs *vfs.Mem) {
	m.fs = fs
	fs.SetCrashModel(vfs.CrashModel{Sectors: m.c.o.Disk.Sectors, OrderedDirs: m.c.o.Disk.OrderedDirs})
	fs.OnOp(m.onOp)
	fs.SetInjector(m.inject)
}

// onOp sees every operation on the disk before it has an effect.
func (m *machine) onOp(op vfs.Op) {
	if m.quiet {
		return
	}
	if op.Kind == vfs.KindWrite || op.Kind == vfs.KindPreallocate {
		m.c.writer = m
	}
	if op.Writes() {
		m.ops++
	}
	if m.cutIn > 0 && op.Writes() {
		m.cutIn--
		if m.cutIn == 0 {
			m.c.Count.CutsAtOp++
			m.crash(true, false)
		}
	}
}

func (m *machine) inject(op vfs.Op) error {
	if m.quiet || m.failIn == 0 || op.Kind == vfs.KindLock {
		return nil
	}
	m.failIn--
	if m.failIn > 0 {
		return nil
	}
	m.c.Count.DiskErrors++
	m.injected = true
	m.c.hist.note(m.index, "disk error: %v %s: %v", op.Kind, op.Name, m.failBy)
	if op.Kind == vfs.KindWrite && m.rng.IntN(2) == 0 {
		return vfs.ShortWrite{N: m.rng.IntN(int(op.Len) + 1), Err: m.failBy}
	}
	return m.failBy
}

// start runs a process on whatever the disk holds.
func (m *machine) start() {
	if m.up || m.c.err != nil {
		return
	}
	o := &m.c.o
	m.parked = false
	m.boot++
	m.c.hist.note(m.index, "start of process %d", m.boot)
	m.proc = m.c.sim.NewProcess(m.rate)
	m.net = m.c.net.attach(m.index, m.proc)
	m.app = &app{m: m}
	m.writes, m.reads, m.injected, m.stopping, m.unsure = 0, 0, false, false, false
	m.lastAppend, m.ends = appendSeen{}, nil
	m.contact, m.tellable = m.c.sim.Now(), time.Time{}
	m.up = true // a power cut in the middle sets it back
	if !m.c.healed && m.boot > 1 && o.Faults.RecoveryCut > 0 && m.rng.Float64() < o.Faults.RecoveryCut {
		m.cutIn = 1 + m.rng.Int64N(60)
	}
	if m.cutStarts > 0 && !m.c.healed {
		m.cutStarts--
		m.cutIn = 1 + m.rng.Int64N(60)
	}
	cutsBefore := m.c.Count.CutsAtOp
	err := m.open()
	if m.c.Count.CutsAtOp > cutsBefore && !m.up {
		m.c.Count.CutsInRecovery++
		return
	}
	if err != nil {
		m.notOpened(err)
		return
	}
	if m.boot > 1 {
		m.c.Count.Restarts++
	}
	m.fresh = false
	m.c.check.recovered(m)
}

func (m *machine) open() error {
	o := &m.c.o
	host, err := graft.NewHost(graft.HostOptions{
		Address: m.address, Dir: "/data", Transport: m.net, SegmentSize: o.SegmentSize,
		Logger:           zap.New(logCore{m.c.hist, m.index}),
		SnapshotThrottle: graft.SnapshotThrottle{SendRate: o.Snap.Rate, ReceiveRate: o.Snap.Rate, Sends: o.Snap.Places, Receives: o.Snap.Places},
		Env: &env.Env{Exec: m.proc, FS: m.fs, Rand: m.rng.Uint64, WAL: wal.Options{
			InFlight: o.InFlight, OverlapBytes: o.OverlapBytes, IdleMark: o.IdleMark, MaxBatch: o.MaxBatch,
		}},
	})
	if err != nil {
		return err
	}
	m.host = host
	m.opening = true
	defer func() { m.opening = false }()
	m.node, err = host.StartNode(groupName, graft.NodeOptions{
		StateMachine: m.stateMachine(), InitialConf: m.initial, ElectionTimeout: o.Election, HeartbeatFactor: o.Heartbeat,
		MaxAppendBytes: o.MaxAppendBytes, MaxInflightRequests: o.MaxInflightRequests, MaxInflightBytes: o.MaxInflightBytes,
		CacheBytes: o.CacheBytes, MaxPendingEntries: o.MaxPendingEntries, MaxPendingReads: o.MaxPendingReads,
		SnapshotInterval: -1, SnapshotBytes: -1, SnapshotEntries: o.Snap.Entries, SnapshotMargin: o.Snap.Margin, SnapshotKeep: o.Snap.Keep,
		FirstStart: o.FirstStart && m.fresh, AlwaysJoint: o.AlwaysJoint, CatchupMargin: o.CatchupMargin, CatchupTimeout: o.CatchupTimeout,
	})
	return err
}

// notOpened judges why a process could not take up its data.
func (m *machine) notOpened(err error) {
	if !m.injected && !(m.full && errors.Is(err, graft.ErrNoSpace)) && !(m.full && errors.Is(err, syscall.ENOSPC)) {
		m.c.fail("I10 durability: machine %d does not start on what it stored: %v", m.index, err)
		return
	}
	m.c.hist.note(m.index, "cannot start: %v", err)
	m.end(m.rng.IntN(2) == 0, false)
	m.restartIn(m.c.rng.between(50*time.Millisecond, 5*time.Second))
}

// crash ends the process at once. With power the machine forgets what its disk had
// not synced; a vanished machine leaves its peers without notice.
func (m *machine) crash(power, vanish bool) {
	if !m.up {
		return
	}
	if power {
		m.c.Count.PowerCuts++
	} else {
		m.c.Count.Kills++
	}
	m.end(power, vanish)
	m.restartIn(time.Duration(m.c.rng.ExpFloat64() * float64(min(m.c.o.Faults.Outage, 10*time.Second))))
}

// end is crash without what comes afterwards.
func (m *machine) end(power, vanish bool) {
	m.c.hist.note(m.index, "end of process %d: power cut %v, vanished %v, durable %d", m.boot, power, vanish, m.st.Durable)
	m.c.Count.LostWithProcess += int64(m.writes + m.reads)
	if m.st.Role == graft.RoleLeader {
		m.c.check.leaderLost(m, m.st)
	}
	m.c.admin.died(m)
	m.up, m.powerCut, m.cutIn, m.failIn = false, power, 0, 0
	m.proc.Kill()
	m.fs.Kill()
	m.c.net.kill(m.index, vanish)
	m.claim = nil
	if n := m.st.Durable; n > 0 && n <= int64(len(m.log)) {
		m.claim = m.log[n-1]
	}
	if vanish {
		m.c.Count.Vanished++
	}
}

func (m *machine) restartIn(d time.Duration) {
	boot := m.boot
	m.c.sim.After(d, func() {
		if !m.up && m.boot == boot && !m.parked {
			m.turnOn()
		}
	})
}

// turnOn starts a process on what the last one left.
func (m *machine) turnOn() {
	if m.up {
		return
	}
	if m.boot > 0 {
		m.setDisk(m.left())
	}
	m.start()
}

// left is the disk as the last process left it.
func (m *machine) left() *vfs.Mem {
	if !m.powerCut {
		return m.fs.KillClone()
	}
	keep := m.c.o.Faults.Keep
	if keep < 0 {
		keep = [...]float64{0, 0.1, 0.5, 0.9, 1}[m.rng.IntN(5)]
	}
	units, kept := 0, 0
	disk := m.fs.CrashClone(func(vfs.Unit) bool {
		units++
		if m.rng.Float64() >= keep {
			return false
		}
		kept++
		return true
	})
	if kept > 0 && kept < units {
		m.c.Count.TornCuts++
	}
	return disk
}

// wipe ends the process and takes the disk away.
func (m *machine) wipe() {
	m.erase()
	m.restartIn(time.Duration(m.c.rng.ExpFloat64() * float64(m.c.o.Faults.Outage)))
}

// erase is wipe without what comes afterwards.
func (m *machine) erase() {
	m.c.Count.Wipes++
	m.end(true, false)
	m.c.hist.note(m.index, "disk lost")
	m.setDisk(vfs.NewMem())
	m.fs.Kill() // turnOn clones it
	m.powerCut, m.blank, m.lostDisk, m.kept = false, true, m.boot+1, kept{}
	if m.dropped {
		// Nobody counts on it any more, and what is in flight cannot have been
		// counted for what comes after it is added again.
		m.wipedOut = true
		for _, e := range m.log {
			e.on &^= setOf(m)
		}
	}
	if k := m.c.check; m.dropped || k.changed() {
		m.joins()
	}
	m.log, m.marked, m.claim, m.said, m.st = nil, 0, nil, spoken{}, graft.SimState{}
	m.c.check.confNews = true
}

// freeze stops the process for a while, its clock goes on.
func (m *machine) freeze(d time.Duration) {
	if !m.up || m.net.frozen {
		return
	}
	m.c.Count.Freezes++
	m.c.hist.note(m.index, "frozen for %v", d)
	m.proc.Freeze()
	m.net.frozen = true
	boot := m.boot
	m.c.sim.After(d, func() {
		if m.up && m.boot == boot {
			m.thaw()
		}
	})
}

func (m *machine) thaw() {
	if m.up && m.net.frozen {
		m.c.hist.note(m.index, "goes on")
		m.thawedAt = m.c.sim.Now()
		m.proc.Thaw()
		m.net.thaw()
		for range m.rng.IntN(4) { // clients do not know how long it was away
			m.c.clients.read(m)
			m.c.clients.write(m, 0)
		}
	}
}

// stop ends the replica in good order, then the process.
func (m *machine) stop() {
	if !m.up || m.stopping || m.net.frozen {
		return
	}
	m.stopping = true
	m.c.Count.Stops++
	m.c.hist.note(m.index, "shutdown")
	boot := m.boot
	m.node.Shutdown(func(err error) {
		if !m.up || m.boot != boot {
			return
		}
		m.app.stopped(err)
		m.c.later(0, m, m.stopped)
	})
}

// stopped ends the process, when every call was answered.
func (m *machine) stopped() {
	switch {
	case m.writes > 0:
		m.c.fail("I13 exactly one answer: machine %d: %d writes are not answered after shutdown", m.index, m.writes)
		return
	case m.asks() > 0:
		m.c.fail("I13 exactly one answer: machine %d: %d changes and other calls are not answered after shutdown", m.index, m.asks())
		return
	case m.reads > 0: // also of those that went to another process
		m.c.fail("I13 exactly one answer: machine %d: %d reads are not answered after shutdown", m.index, m.reads)
		return
	}
	m.end(false, false)
	if !m.c.healed && !m.parked {
		m.restartIn(time.Duration(m.c.rng.ExpFloat64() * float64(min(m.c.o.Faults.Outage, 10*time.Second))))
	}
}

// asks is how many changes, hand-overs and cancellations are not answered.
func (m *machine) asks() (n int) {
	for _, ch := range m.changes {
		if !ch.over {
			n++
		}
	}
	return n + m.calls
}

// ready reports whether clients can call the process.
func (m *machine) ready() bool { return m.up && !m.net.frozen && m.node != nil }
