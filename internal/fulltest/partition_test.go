package fulltest

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

// A group that has a majority on one side of a cut has a leader there soon, and one leader when it is healed, which
// nobody else deposes then.
func TestLeaderAfterPartition(t *testing.T) {
	seeds(t, 10, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 5, 0, graft.NodeOptions{})
		lead := w.settle()
		w.load(1, 100*time.Millisecond)
		for range 3 {
			away := append([]int{lead}, w.others(lead)[0])
			w.part(away)
			began := time.Now()
			most := w.elected(away)
			// The silence may last twice an election timeout; then a vote may be split.
			require.Less(t, time.Since(began), 4*electionTimeout, "until %d led", most)
			c := w.propose(most)
			w.await(electionTimeout, c)
			require.NoError(t, c.outcome())
			w.pass(3 * electionTimeout)
			term := w.node(most).Status().Term

			w.healAll()
			began = time.Now()
			lead = w.agreed()
			require.Less(t, time.Since(began), 2*electionTimeout, "until all followed again")
			require.Equal(t, term, w.node(lead).Status().Term, "whoever was cut off does not disturb the others")
			require.Equal(t, most, lead)
		}
		w.finish()
	})
}

// part cuts some hosts off all others.
func (w *world) part(away []int) {
	for _, i := range away {
		for j := range w.hosts {
			if j != away[0] && j != away[1] {
				w.net.cut(w.hosts[i].addr, w.hosts[j].addr)
			}
		}
	}
}

// elected waits for a leader that is not among some hosts.
func (w *world) elected(away []int) (lead int) {
	w.t.Helper()
	until(w.t, 5*time.Millisecond, 20*electionTimeout, "a leader on the side of the majority", func() bool {
		lead = w.leader()
		return lead >= 0 && lead != away[0] && lead != away[1]
	})
	return lead
}

// agreed waits until all members follow one leader, loaded or not.
func (w *world) agreed() (lead int) {
	w.t.Helper()
	until(w.t, 5*time.Millisecond, 20*electionTimeout, "one leader", func() bool {
		lead = w.leader()
		return lead >= 0 && w.who(func(_ *graft.Node, s graft.Status) bool { return !s.Leader.Same(w.peer(lead)) }) < 0
	})
	return lead
}

// A leader that can speak and not hear gives up, and does not come back to depose its successor.
func TestLeaderThatHearsNobody(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		old := w.settle()
		for _, i := range w.others(old) {
			w.net.cutOneWay(w.hosts[i].addr, w.hosts[old].addr)
		}
		c := w.propose(old)
		lead := -1
		until(t, 5*time.Millisecond, 5*electionTimeout, "another leader", func() bool {
			lead = w.leader()
			return lead >= 0 && lead != old
		})
		term := w.node(lead).Status().Term
		w.await(time.Second, c)
		require.ErrorIs(t, c.outcome(), graft.ErrUnknownOutcome)
		time.Sleep(10 * electionTimeout)
		synctest.Wait()
		require.Equal(t, term, w.node(lead).Status().Term)
		w.healAll()
		require.Equal(t, lead, w.agree(w.first()...))
		w.finish()
	})
}

// The death of a leader's process is seen by its connections, long before its silence tells.
func TestProcessDeathIsNoticed(t *testing.T) {
	seeds(t, 8, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		old := w.settle()
		h := w.hosts[old]
		h.disk.fs.Kill()
		h.left = h.disk.fs.CrashClone(nil)
		w.links(old, w.net.cut)
		w.await(time.Minute, w.close(old))
		w.badDisk = true
		h.host, h.closing = nil, nil
		w.links(old, w.net.renew) // nothing of what it said at its end was heard
		began := time.Now()
		w.elected([]int{old, old})
		require.Less(t, time.Since(began), electionTimeout/5)
		w.finish()
	})
}

// A connection on which a frame does not go on is given up for another.
func TestStalledConnectionIsReplaced(t *testing.T) {
	for _, dialer := range []string{"leader", "follower"} {
		t.Run(dialer, func(t *testing.T) {
			seeds(t, 4, func(t *testing.T, seed uint64) {
				w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
				lead := w.settle()
				follower := w.others(lead)[0]
				a, b := w.hosts[lead].addr, w.hosts[follower].addr
				if dialer == "follower" {
					a, b = b, a
				}
				w.read(follower) // so that there is a connection
				time.Sleep(electionTimeout)
				w.proposeBytes(lead, 100_000) // more than the connection holds
				w.read(follower)
				w.pass(300 * time.Microsecond)
				w.net.stick(a, b)
				began := time.Now()
				for ok := 0; ok < 2; ok++ { // calls have to time out before a connection is given up
					require.Less(t, time.Since(began), 20*time.Second)
					lead = w.agreed()
					calls := []*call{w.propose(lead), w.read(follower), w.read(lead)}
					w.await(5*electionTimeout, calls...)
					if slices.ContainsFunc(calls, func(c *call) bool { return c.outcome() != nil }) {
						ok = -1
					}
				}
				w.finish()
			})
		})
	}
}

// A read that waits for entries which a lost leader had promised ends with that leader.
func TestReadsEndWithTheirLeader(t *testing.T) {
	seeds(t, 4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		follower := w.others(lead)[0]
		a, b := w.hosts[lead].addr, w.hosts[follower].addr
		c := w.read(follower) // makes the connection on which the answers come
		w.await(electionTimeout, c)
		w.net.stick(a, b)
		w.net.dialing(a, b, dialHangs)
		w.await(electionTimeout, w.propose(lead))
		c = w.read(follower)
		time.Sleep(10 * time.Millisecond)
		synctest.Wait()
		require.False(t, c.over(), "the entry cannot be here")
		w.isolate(follower)
		w.await(3*electionTimeout, c)
		require.ErrorIs(t, c.outcome(), graft.ErrNotLeader)
		w.finish()
	})
}

// Whatever of the unsynced a power cut takes from all disks at once, what was acknowledged is there.
func TestPowerCut(t *testing.T) {
	seeds(t, 12, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		w.settle()
		w.badDisk = true
		for range 3 {
			w.load(3, time.Millisecond)
			w.pass(20 * time.Millisecond)
			var calls []*call
			for _, i := range w.others(-1) {
				calls = append(calls, w.powerCut(i)...)
			}
			w.await(time.Minute, calls...)
			w.quiet()
			w.closeAll()
			for i, h := range w.hosts {
				h.disk.use(h.left)
				h.left = nil
				w.start(i)
			}
			w.agree(w.first()...)
		}
		w.finish()
	})
}
