package sim

import (
	"math/rand/v2"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/wal"
)

// audit asks a machine's disk, not its process, what a power cut at this moment
// would leave, and compares that with what the process has claimed.
func (k *checker) audit(m *machine) {
	k.c.Count.Audits++
	s := actor.NewSim(1)
	dice := rand.New(rand.NewPCG(1, 1))
	m.quiet = true
	disk := m.fs.CrashClone(nil)
	m.quiet = false
	store, err := wal.Open(wal.Options{
		FS: disk, Dir: "/data/log", Exec: s.NewProcess(1), Identity: m.address, Rand: dice.Uint64,
		SegmentSize: k.c.o.SegmentSize,
	})
	if err != nil {
		if !m.full {
			k.c.fail("machine %d: a power cut would leave a log that cannot be opened: %v", m.index, err)
		}
		return
	}
	g, err := store.Group(groupName)
	if err != nil {
		k.c.fail("machine %d: a power cut would leave no group: %v", m.index, err)
		return
	}
	r := g.Recovered()
	if n := m.marked; n > 0 {
		if have := termIn(r, n); have != m.log[n-1].term {
			k.c.fail("durability: machine %d calls entry %d of term %d durable; a power cut would leave one of term %d (0: none)",
				m.index, n, m.log[n-1].term, have)
		}
	}
	if r.Hard.Term < m.said.term {
		k.c.fail("durability: machine %d has spoken of term %d; a power cut would leave term %d", m.index, m.said.term, r.Hard.Term)
	}
	if r.Hard.Term == m.said.voteTerm && m.said.vote != "" && r.Hard.Vote != m.said.vote+":0:0" {
		k.c.fail("durability: machine %d has voted for %s in term %d; a power cut would leave vote %q",
			m.index, m.said.vote, m.said.voteTerm, r.Hard.Vote)
	}
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
	return k.c.sim.Now().Sub(m.cutAt) < 2*time.Second && !m.cutAt.IsZero() || m.rng.IntN(500) == 0
}
