package sim

import (
	"math/rand/v2"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

// audit asks a machine's disk, not its process, what a power cut at this moment
// would leave, and compares that with what the process has claimed.
func (k *checker) audit(m *machine) {
	k.c.Count.Audits++
	disk, store, err := m.afterCut()
	if err != nil {
		if !m.full {
			k.c.fail("I10 durability: machine %d: a power cut would leave a log that cannot be opened: %v", m.index, err)
		}
		return
	}
	g, err := store.Group(groupName)
	if err != nil {
		k.c.fail("I10 durability: machine %d: a power cut would leave no group: %v", m.index, err)
		return
	}
	r := g.Recovered()
	snapshot := int64(0)
	if r.First > 1 || m.marked > 0 && termIn(r, m.marked) != m.log[m.marked-1].term || k.strays(r, m.st.Snapshot) {
		snapshot = newest(disk) // it may be ahead of the log
	}
	if n := m.marked; n > snapshot && k.strays(r, snapshot) {
		k.c.fail("I10 durability: machine %d calls entry %d durable; a power cut would leave a snapshot of %d, and a log that does not go on from there",
			m.index, n, snapshot)
	}
	if r.First-1 > max(snapshot, m.kept.index) {
		k.c.fail("I10 durability: machine %d: a power cut would leave a log that begins at %d, and a snapshot of %d", m.index, r.First, snapshot)
	}
	if n := m.marked; n > snapshot && n >= r.First-1 {
		have := termIn(r, n)
		if n == r.First-1 { // cut off, since a durable state machine has it
			have = r.PrevTerm
		}
		if have != m.log[n-1].term {
			k.c.fail("I10 durability: machine %d calls entry %d of term %d durable; a power cut would leave one of term %d (0: none)",
				m.index, n, m.log[n-1].term, have)
		}
	}
	if n := min(r.Commit, r.Last); n > int64(len(k.committed)) || n >= r.First && termIn(r, n) != k.committed[n-1].term {
		k.c.fail("I6 state machine safety: machine %d: a power cut would leave entry %d of term %d as committed; committed are %d entries",
			m.index, n, termIn(r, n), len(k.committed))
	}
	if r.Hard.Term < m.said.term {
		k.c.fail("I10 durability: machine %d has spoken of term %d; a power cut would leave term %d", m.index, m.said.term, r.Hard.Term)
	}
	if r.Hard.Term == m.said.voteTerm && m.said.vote != "" && r.Hard.Vote != m.said.vote+":0:0" {
		k.c.fail("I10 durability: machine %d has voted for %s in term %d; a power cut would leave vote %q",
			m.index, m.said.vote, m.said.voteTerm, r.Hard.Vote)
	}
}

// strays reports whether a recovered log has something else where a snapshot ends: it will begin anew there.
func (k *checker) strays(r wal.Recovered, snapshot int64) bool {
	return snapshot >= r.First && snapshot <= r.Last && termIn(r, snapshot) != k.committed[snapshot-1].term
}

// afterCut is the disk as a power cut at this moment would leave it, if nothing that is not synced survives, and the log on it.
func (m *machine) afterCut() (*vfs.Mem, *wal.Store, error) {
	s := actor.NewSim(1)
	dice := rand.New(rand.NewPCG(1, 1))
	m.quiet = true
	disk := m.fs.CrashClone(nil)
	m.quiet = false
	store, err := wal.Open(wal.Options{
		FS: disk, Dir: logDir, Exec: s.NewProcess(1), Identity: m.address, Rand: dice.Uint64, SegmentSize: m.c.o.SegmentSize,
	})
	return disk, store, err
}

// termIn is the term of an entry in a recovered log, 0 if it is not there.
func termIn(r wal.Recovered, index int64) (term int64) {
	if index < r.First || index > r.Last {
		return 0
	}
	for _, run := range r.Runs {
		if run.First <= index {
			term = run.Term
		}
	}
	return term
}

// suspicious reports whether to audit a machine that has just called more durable: at
// times, and always while it may still complete writes of entries that it has cut off.
func (k *checker) suspicious(m *machine) bool {
	return m.unsure || k.c.sim.Now().Sub(m.cutAt) < 2*time.Second && !m.cutAt.IsZero() || m.rng.IntN(500) == 0
}
