package sim

import (
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/graft-raft/graft"
)

// clients propose unique values and read, and keep the ledger: every call gets one
// answer, and the answer is true.
//
// Ownership: the simulation's goroutine.
type clients struct {
	c      *Cluster
	rng    draw
	ledger []write // the write with id i+1
	acked  int64   // the greatest index that anybody has seen: by a write that was acknowledged, or a read
	late   bool    // a detached answer is given: these come in any order
	filler []byte
	bulk   bool // the next value is large
	active bool
	doubts []int // writes that were answered with an unknown outcome in this step
}

type outcome uint8

const (
	pendingYet outcome = iota
	acked
	unknown
	refused // certainly not proposed
)

// write is a proposal.
type write struct {
	boot    int
	machine int
	state   outcome
	entry   *entryInfo // in whose log it was seen
	index   int64      // where it was applied
	floor   int64      // what had been seen when it was proposed
	term    int64      // the only one in which it may be; 0: any
}

func newClients(c *Cluster, rng *rand.Rand) *clients {
	l := &clients{c: c, rng: draw{rng}, filler: make([]byte, 64<<10)}
	for i := range l.filler {
		l.filler[i] = byte(i * 7)
	}
	return l
}

// begin starts everybody.
func (l *clients) begin() {
	l.active = true
	load := &l.c.o.Load
	l.every(load.Writes, func() { l.write(l.target(), 0) })
	l.every(load.Reads, func() { l.read(l.target()) })
	l.every(load.Bursts, func() {
		m := l.target()
		for range 1 + l.rng.IntN(load.BurstSize) {
			l.write(m, 0)
		}
		for range l.rng.IntN(load.BurstSize) / 4 {
			l.read(m)
		}
	})
}

// every runs f at random times, perSecond in the mean.
func (l *clients) every(perSecond float64, f func()) {
	if perSecond <= 0 {
		return
	}
	var next func()
	next = func() {
		l.c.sim.After(time.Duration(1+l.rng.ExpFloat64()/perSecond*float64(time.Second)), func() {
			if l.active {
				if !l.c.lull || l.rng.chance(callInLull) {
					f()
				}
				next()
			}
		})
	}
	next()
}

// target picks a machine, mostly one that leads.
func (l *clients) target() *machine {
	ms := l.c.machines
	first := l.rng.IntN(len(ms))
	if !l.rng.chance(l.c.o.Load.Elsewhere) {
		for i := range ms {
			if m := ms[(first+i)%len(ms)]; m.ready() && m.st.Role == graft.RoleLeader {
				return m
			}
		}
	}
	return ms[first]
}

// duel is called when somebody begins to lead. While others believe to lead as well,
// clients write at the newest leader and read at the others.
func (l *clients) duel() {
	if !l.active {
		return
	}
	newest, others := l.c.leader(), 0
	for _, m := range l.c.machines {
		if m.ready() && m.st.Role == graft.RoleLeader && m != newest {
			others++
			l.read(m)
		}
	}
	if others == 0 {
		return
	}
	l.c.Count.Duels++
	l.write(newest, 0)
	l.c.sim.After(time.Duration(1+l.rng.Int64N(int64(l.c.o.Election/20))), l.duel)
}

// payload makes a unique value.
func (l *clients) payload(id int) []byte {
	size := l.rng.IntN(l.c.o.Load.MaxSize + 1)
	if l.bulk || l.rng.chance(l.c.o.Load.Large) {
		size = l.rng.IntN(len(l.filler) / 4)
	}
	b := make([]byte, 8, 8+size)
	binary.LittleEndian.PutUint64(b, uint64(id))
	return append(b, l.filler[:size]...)
}

func idOf(data []byte) int { return int(binary.LittleEndian.Uint64(data)) }

// write proposes a value. depth is how many writes led to this one.
func (l *clients) write(m *machine, depth int) {
	l.propose(m, func(error) {
		if depth < 3 && l.active && l.rng.chance(l.c.o.Load.Chain) {
			l.c.Count.Chained++
			l.write(m, depth+1)
		}
	})
}

// bulky proposes a large value.
func (l *clients) bulky(m *machine) {
	l.bulk = true
	l.write(m, 3)
	l.bulk = false
}

// propose proposes a value and tells then how that ended.
func (l *clients) propose(m *machine, then func(err error)) {
	if !m.ready() {
		return
	}
	l.c.Count.Writes++
	l.ledger = append(l.ledger, write{machine: m.index, boot: m.boot, floor: l.acked})
	id := len(l.ledger)
	task := graft.Task{Data: l.payload(id)}
	if l.rng.chance(l.c.o.Load.WrongTerm) {
		task.ExpectedTerm = max(m.st.Term+int64(l.rng.IntN(2)), 1)
		l.ledger[id-1].term = task.ExpectedTerm
	}
	boot := m.boot
	task.Done = func(result any, err error) {
		if l.written(m, boot, id, result, err) {
			then(err)
		}
	}
	m.writes++
	m.node.Apply(task)
}

// written is told what became of a write, and reports whether that is to be believed.
func (l *clients) written(m *machine, boot, id int, result any, err error) bool {
	w := &l.ledger[id-1]
	switch {
	case m.boot != boot:
		l.c.fail("I13 exactly one answer: write %d: answered by a dead process of machine %d", id, m.index)
		return false
	case m.proc.Dead(): // it is killed in this very step
		return false
	case w.state != pendingYet:
		l.c.fail("I13 exactly one answer: write %d on machine %d: answered twice, the second time with %v", id, m.index, err)
		return false
	}
	m.writes--
	switch code := graft.ErrorCode(err); {
	case err == nil:
		l.succeeded(m, w, id, result)
	case code == graft.ErrUnknownOutcome:
		w.state = unknown
		l.c.Count.UnknownOutcomes++
		l.doubts = append(l.doubts, id)
	default:
		w.state = refused
		l.refusal(m, id, err)
		if w.entry != nil {
			l.c.fail("I14 honest failure: write %d on machine %d: refused with %v, and yet it is entry %d of term %d", id, m.index, err, w.entry.index, w.entry.term)
		}
	}
	return true
}

func (l *clients) succeeded(m *machine, w *write, id int, result any) {
	w.state = acked
	l.c.Count.Acked++
	index, _ := result.(int64)
	if index == 0 || index != w.index || m.app.applied < index {
		l.c.fail("I14 honest failure: write %d on machine %d: result %v, applied at %d; the machine has applied %d", id, m.index, result, w.index, m.app.applied)
	}
	if index <= w.floor {
		l.c.fail("I20 client history: write %d on machine %d takes effect at %d, but %d had been seen before it was proposed", id, m.index, index, w.floor)
	}
	if !l.late {
		if index <= m.app.acked {
			l.c.fail("I13 exactly one answer: write %d on machine %d: acknowledged %d after %d", id, m.index, index, m.app.acked)
		}
		m.app.acked = index
	}
	l.acked = max(l.acked, index)
}

// refusal demands of a refusal that it tells why.
func (l *clients) refusal(m *machine, id int, err error) {
	n := &l.c.Count
	switch code := graft.ErrorCode(err); code {
	case graft.ErrNotLeader:
		n.NotLeader++
	case graft.ErrNoSpace:
		n.NoSpace++
	case graft.ErrOverloaded:
		n.Overloaded++
	case graft.ErrTermMismatch:
		n.TermMismatch++
	default:
		n.OtherRefusals++
		if code != graft.ErrBusy && !overFor(m, code) {
			l.c.fail("I14 honest failure: write %d on machine %d is refused for no reason that there is: %v", id, m.index, err)
		}
	}
}

// overFor reports whether a code says that the asked node is gone for good, and that is so.
func overFor(m *machine, code graft.Code) bool {
	return code == graft.ErrShutdown && m.stopping || code == graft.ErrNodeFailed && m.injected
}

// stepped is called after every step: an outcome is unknown only of what was proposed.
func (l *clients) stepped() {
	for _, id := range l.doubts {
		w := &l.ledger[id-1]
		if m := l.c.machines[w.machine]; w.entry == nil && !m.stopping && !m.injected {
			l.c.fail("I14 honest failure: write %d on machine %d: outcome unknown, though it is in nobody's log", id, w.machine)
		}
	}
	l.doubts = l.doubts[:0]
}

// logged is told of an entry that some log holds.
func (l *clients) logged(info *entryInfo, data []byte) {
	id := 0
	if len(data) >= 8 {
		id = idOf(data)
	}
	if id < 1 || id > len(l.ledger) {
		l.c.fail("I20 client history: entry %d of term %d was proposed by nobody", info.index, info.term)
		return
	}
	w := &l.ledger[id-1]
	switch {
	case w.entry != nil:
		l.c.fail("I20 client history: write %d became entries %d of term %d and %d of term %d", id, w.entry.index, w.entry.term, info.index, info.term)
	case w.term != 0 && w.term != info.term:
		l.c.fail("I14 honest failure: write %d was proposed for term %d only, and becomes entry %d of term %d", id, w.term, info.index, info.term)
	case w.state == refused:
		l.c.fail("I14 honest failure: write %d was refused, and yet becomes entry %d of term %d", id, info.index, info.term)
	}
	w.entry = info
}

// applied is told of each entry that a machine applies.
func (l *clients) applied(m *machine, index int64, data []byte) {
	id := 0
	if len(data) >= 8 {
		id = idOf(data)
	}
	if id < 1 || id > len(l.ledger) {
		l.c.fail("I20 client history: machine %d applies %d, which nobody proposed", m.index, index)
		return
	}
	w := &l.ledger[id-1]
	if w.index != 0 && w.index != index {
		l.c.fail("I20 client history: write %d is applied at %d and at %d", id, w.index, index)
	}
	w.index = index
}

// finalScan looks for every write that was acknowledged: it is committed where it was said to be, and on the disks of a
// quorum of those who count now.
func (l *clients) finalScan() {
	committed, conf := l.c.check.committed, l.c.leader().conf()
	for i := range l.ledger {
		w := &l.ledger[i]
		if w.state != acked {
			continue
		}
		switch e := w.entry; {
		case e == nil || w.index > int64(len(committed)) || committed[w.index-1] != e:
			l.c.fail("I10 durability: write %d was acknowledged at %d and is lost", i+1, w.index)
		case !conf.quorum(e.on):
			l.c.fail("I10 durability: write %d, entry %d of term %d, is on the disks of machines %b only, under configuration %v",
				i+1, e.index, e.term, e.on, conf)
		}
	}
}

// read asks for a read index.
func (l *clients) read(m *machine) { l.ask(m, func(error) {}) }

// ask asks for a read index and tells then how that ended.
func (l *clients) ask(m *machine, then func(err error)) {
	if !m.ready() {
		return
	}
	l.c.Count.Reads++
	floor, boot, over, role := l.acked, m.boot, false, m.st.Role
	m.reads++
	m.node.ReadIndexAsync(func(index int64, err error) {
		switch {
		case m.boot != boot:
			l.c.fail("I13 exactly one answer: read answered by a dead process of machine %d", m.index)
			return
		case m.proc.Dead():
			return
		case over:
			l.c.fail("I13 exactly one answer: machine %d: a read is answered twice, the second time with %d, %v", m.index, index, err)
			return
		}
		over = true
		m.reads--
		l.answered(m, role, floor, index, err)
		then(err)
	})
}

// answered judges a read index: floor had been acknowledged when it was asked for.
func (l *clients) answered(m *machine, role graft.NodeRole, floor, index int64, err error) {
	switch {
	case err != nil:
		l.c.Count.FailedReads++
		switch code := graft.ErrorCode(err); code {
		case graft.ErrNotLeader, graft.ErrUnreachable, graft.ErrOverloaded, graft.ErrNoSpace:
		default:
			if !overFor(m, code) {
				l.c.fail("I14 honest failure: machine %d refuses a read for no reason that there is: %v", m.index, err)
			}
		}
		return
	case role == graft.RoleLeader:
		l.c.Count.LeaderReads++
	default:
		l.c.Count.FollowerReads++
	}
	if index < floor {
		l.c.fail("I12 read index: machine %d answers %d, %d had been seen before", m.index, index, floor)
	}
	applied := graft.SimStateOf(m.node).Applied
	l.acked = max(l.acked, min(applied, int64(len(l.c.check.committed)))) // whoever reads sees all that is applied here
	if applied < index || index > int64(len(l.c.check.committed)) {
		l.c.fail("I12 read index: machine %d answers %d, has applied %d, committed is %d", m.index, index, applied, len(l.c.check.committed))
	}
}
