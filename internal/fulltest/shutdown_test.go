package fulltest

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/vfs"
)

// scene is a state in which replicas are ended.
type scene struct {
	name    string
	seeds   int
	members int
	spares  int
	opts    graft.NodeOptions
	// enter brings about the state and returns the host that it is about.
	enter func(w *world) (subject int)
	// The end comes within window after that.
	window time.Duration
	// slow is how long a replica may take to end, if what it waits for takes longer than usual.
	slow time.Duration
	// held says that replicas cannot end before finish lets them.
	held bool
	// is tells whether the subject is in that state still, which not every seed brings about.
	is func(s graft.Status) bool
}

// TestShutdown ends replicas in every state that they can be in, at random moments and in every way. Every
// callback must run once, nothing may be left, and nothing that was acknowledged may be lost.
func TestShutdown(t *testing.T) {
	for _, s := range slices.Concat(electionScenes, leaderScenes, changeScenes, troubleScenes, snapshotScenes) {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			met, played := 0, 0
			seeds(t, s.seeds, func(t *testing.T, seed uint64) {
				played++
				if s.play(t, seed) {
					met++
				}
			})
			t.Logf("%s: met by %d of %d seeds", s.name, met, played)
			if met == 0 && played >= 20 {
				t.Errorf("none of %d seeds has hit the state", played)
			}
		})
	}
}

// play plays the scene, and reports whether the state was met.
func (s scene) play(t *testing.T, seed uint64) (met bool) {
	w := newWorld(t, seed, s.members, s.spares, s.opts)
	subject := s.enter(w)
	w.pass(s.window)
	met = s.is(w.node(subject).Status())
	victims := w.victims(subject)
	var ends []*call
	way := ways[w.rng.IntN(len(ways))]
	for _, i := range victims {
		ends = append(ends, way.strike(w, i)...)
		w.propose(i) // these meet the end on its way
		w.read(i)
	}
	if !s.held {
		most := 100 * time.Millisecond
		if s.slow > 0 {
			most = s.slow
		}
		w.await(most, ends...) // no timeout has to pass
		w.refusesAll(victims)
	}
	w.pass(50 * time.Millisecond)
	w.quiet()
	w.pass(2 * electionTimeout)
	if w.rng.IntN(2) == 0 {
		w.healAll()
		w.pass(electionTimeout)
	}
	w.finish()
	for _, c := range ends {
		if way.clean && c.outcome() != nil && !w.badDisk {
			t.Errorf("%s: %v", c.what, c.outcome())
		}
	}
	return met
}

// victims draws who is ended: most often the one that the scene is about.
func (w *world) victims(subject int) []int {
	draw := w.rng.IntN(5)
	switch {
	case w.forked: // the others are gone
	case draw == 0:
		return []int{w.rng.IntN(w.members)}
	case draw == 1:
		return w.first()
	}
	return []int{subject}
}

// refusesAll holds that a replica that has ended says so at once.
func (w *world) refusesAll(hosts []int) {
	w.t.Helper()
	for _, i := range hosts {
		n := w.node(i)
		calls := []*call{
			w.propose(i), w.read(i), w.change(i, i), w.transfer(i, (i+1)%w.members), w.cancel(i), w.save(i),
			w.blocking("reset after the end", ofReset, func() error { return n.ResetPeers(w.conf(i)) }),
		}
		w.await(0, calls...)
		for _, c := range calls {
			require.ErrorIs(w.t, c.outcome(), graft.ErrShutdown, c.what)
		}
		require.Equal(w.t, graft.RoleShutdown, n.Status().Role)
		n.Join()
	}
}

// way is how a replica may be ended.
type way struct {
	name   string
	strike func(w *world, i int) []*call
	clean  bool // it succeeds while the disk is sound
}

var ways = []way{
	{"Host.Close", func(w *world, i int) []*call { return []*call{w.close(i)} }, true},
	{"Node.Shutdown", (*world).shutdown, true},
	{"Node.Shutdown, then Host.Close", func(w *world, i int) []*call { return append(w.shutdown(i), w.close(i)) }, true},
	{"Host.StopNode", (*world).stopNode, true},
	{"power cut", (*world).powerCut, false},
}

// shutdown shuts a replica down, again, and waits for its end.
func (w *world) shutdown(i int) []*call {
	n := w.node(i)
	c, again := w.ledger.begin("shutdown"), w.ledger.begin("shutdown again")
	n.Shutdown(c.done)
	n.Shutdown(again.done)
	n.Shutdown(nil)
	return []*call{c, again, w.blocking("join", nil, func() error { n.Join(); return nil })}
}

// powerCut closes a host whose disk has stopped before; what was not synced by then may be lost.
func (w *world) powerCut(i int) []*call {
	h := w.hosts[i]
	h.disk.fs.Kill()
	h.left = h.disk.fs.CrashClone(func(vfs.Unit) bool { return w.rng.IntN(2) == 0 })
	return []*call{w.close(i)}
}
