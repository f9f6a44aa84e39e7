package graft

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/progress"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
)

// on runs f on the replicator's actor and waits for it.
func (r *replicator) on(t testing.TB, f func()) {
	t.Helper()
	done := make(chan struct{})
	r.a.Post(func() { f(); close(done) })
	receive(t, done)
}

// keptLogs is for how many followers the log is kept.
func (s *snapshotter) keptLogs() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.holds)
}

// replicatorTo returns the leader's replicator of a host.
func (c *cluster) replicatorTo(lead, to int) *replicator {
	got := make(chan *replicator, 1)
	c.nodes[lead].post(func() { got <- c.nodes[lead].replicators[c.peer(to)] })
	return receive(c.t, got)
}

// saveAndCut has a host save a snapshot, and waits until its log begins behind that.
func (c *cluster) saveAndCut(i int) {
	c.t.Helper()
	// Others' disks may be ahead of its own, and what is not on that is not cut.
	c.status(i, func(s Status) bool { return s.DurableIndex >= s.AppliedIndex }, "what is applied is not on its disk")
	require.NoError(c.t, c.save(i))
	c.status(i, func(s Status) bool { return s.FirstIndex > s.Snapshot.Index }, "the log is not cut")
}

// laggard is a group of three led by host 0, whose host 2 loads a snapshot until release is called.
func laggard(t *testing.T) (c *cluster, release func()) {
	c = snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.stop(2)
	c.net.set(atOnce(noEntries(2))) // else they may wait for its coming back, and it needs no snapshot
	c.proposeMany("a", 10)
	c.saveAndCut(0)
	c.net.set()
	held := newHoldup(t)
	c.prepare = func(_ int, r *recorder) {
		r.snapshots = true
		r.onLoad = held.load
	}
	c.start(2)
	held.reached()
	return c, held.release
}

// copying is a group of three led by host 0, whose host 2 copies a snapshot and gets no more of it than the manifest.
func copying(t *testing.T, timeout time.Duration) *cluster {
	c := snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: timeout})
	c.startLed()
	c.stop(2)
	c.fsms[0].filler = 3 << 20
	c.net.set(atOnce(noEntries(2)))
	c.proposeMany("a", 10)
	c.saveAndCut(0)
	c.net.set(manifestOnly())
	c.start(2)
	c.status(2, func(s Status) bool { return s.Snapshot.State == SnapshotCopying && s.Snapshot.Total > 0 }, "it does not begin")
	c.eventually(func() bool { return c.hosts[0].sends.inUse() == 1 }, "it has no place")
	return c
}

// A snapshot may be on its way for long, while the leader has nothing to write. That says nothing about its disk: it leads on.
func TestALentSnapshotIsNoStuckDisk(t *testing.T) {
	c := copying(t, patient)
	assert.NotZero(t, c.hosts[0].files.lent())
	n, leads := c.nodes[0], make(chan bool, 1)
	for range 5 { // something may still have been answered
		n.post(func() {
			n.disk.since = n.now.Add(-diskPatience * n.o.ElectionTimeout)
			n.checkQuorum()
			leads <- n.role == RoleLeader
		})
		require.True(t, receive(t, leads), "it gives up leadership")
	}
	c.net.set()
	c.sameData(0, 1, 2)
}

// S5: a peer that falls silent in the middle of an install gives its place among the sends back, and so that nothing is kept
// for it for ever when it has come back.
func TestAPeerThatFallsSilentDuringAnInstall(t *testing.T) {
	c := copying(t, 3*time.Second) // the install is given up after twice as long
	r := c.replicatorTo(0, 2)
	require.Equal(t, 1, c.nodes[0].snap.keptLogs())
	c.net.set(isolate(2))
	ago := func() { r.lastAnswer.Store(-int64(time.Hour)) }
	for range 3 { // an answer may still have been on its way
		r.on(t, ago)
	}
	c.eventually(func() bool {
		r.on(t, ago)
		return c.hosts[0].sends.inUse() == 0 && c.hosts[0].files.lent() == 0 && c.nodes[0].snap.keptLogs() == 0
	}, "what is held ready for a silent peer")
	c.net.set()
	c.sameData(0, 1, 2)
	c.propose("b")
	c.eventually(func() bool { return c.nodes[0].snap.keptLogs() == 0 }, "the log is still kept")
	assert.Zero(t, c.hosts[0].sends.inUse())
}

// A peer that has all of a snapshot, and only loads it, takes nobody's place, at either end. What is needed for it stays.
func TestWhoLoadsASnapshotTakesNobodysPlace(t *testing.T) {
	c := snapshotGroup(t, 5, 5, NodeOptions{ElectionTimeout: patient}) // the leader stays
	c.throttle = SnapshotThrottle{Sends: 1, Receives: 1}
	c.startLed()
	c.stop(3)
	c.stop(4)
	c.proposeMany("a", 10)
	c.saveAndCut(0)
	held := newHoldup(t)
	c.prepare = func(i int, r *recorder) {
		r.snapshots = true
		if i == 3 {
			r.onLoad = held.load
		}
	}
	c.start(3)
	held.reached()
	assert.Zero(t, c.hosts[3].receives.inUse())
	c.start(4)
	c.propose("b")
	c.sameData(0, 1, 2, 4)
	assert.NotEmpty(t, c.fsms[4].loaded())
	assert.Equal(t, SnapshotLoading, c.nodes[3].Status().Snapshot.State)
	c.eventually(func() bool { return c.hosts[0].files.lent() == 1 && c.nodes[0].snap.keptLogs() == 1 }, "not what the one that loads needs")
	assert.Zero(t, c.hosts[0].sends.inUse())
	held.release()
	c.sameData(0, 1, 2, 3, 4)
	c.eventually(func() bool { return c.hosts[0].files.lent() == 0 && c.nodes[0].snap.keptLogs() == 0 }, "it is kept for ever")
	assert.Zero(t, c.hosts[0].sends.inUse())
	assert.Zero(t, c.hosts[3].receives.inUse())
}

// A peer that does not say how far it is, braft's, gives its place back when it has read as much as there is; one that has begun
// anew takes one again, if there is one.
func TestThePlaceOfWhoReadsAgain(t *testing.T) {
	c := copying(t, patient)
	r, sends := c.replicatorTo(0, 2), &c.hosts[0].sends
	var places []int
	look := func() {
		r.checkPlace()
		places = append(places, sends.inUse())
	}
	turns := func() {
		o := &r.offer
		r.graft = false
		o.before = o.lent.served.Load() // an earlier attempt's
		look()
		o.lent.served.Add(o.lent.bytes - 1)
		look()
		o.lent.served.Add(1)
		look()
		r.graft = true
		r.copied.store(wire.AppendResponse{InstallDone: 1, InstallTotal: 10})
		look()
		r.copied.store(wire.AppendResponse{InstallDone: 10, InstallTotal: 10})
		look()
		r.copied.store(wire.AppendResponse{InstallDone: 10, InstallTotal: 10, InstallLoads: true})
		look()
		_ = c.hosts[0].SetSnapshotThrottle(SnapshotThrottle{Sends: 1})
		sends.enter() // another group's
		r.copied.store(wire.AppendResponse{InstallDone: 1, InstallTotal: 10})
		look()
		sends.leave()
	}
	c.eventually(func() (copies bool) { // between two attempts it has no place
		r.on(t, func() {
			if copies = r.p.State == progress.Snapshot && r.offer.lent != nil && r.offer.placed; copies {
				turns()
			}
		})
		return copies
	}, "it does not copy")
	assert.Equal(t, []int{1, 1, 0, 1, 0, 0, 1}, places)
	c.net.set()
	c.sameData(0, 1, 2)
	c.eventually(func() bool { return sends.inUse() == 0 }, "a place is lost")
}

// S5: a peer that answers an install late, when the log was not kept for it any more, has it kept until it has caught up,
// and no longer.
func TestTheLogIsKeptUntilALateInstallHasCaughtUp(t *testing.T) {
	c, release := laggard(t)
	r := c.replicatorTo(0, 2)
	r.on(t, func() {
		r.offer.holding = false
		r.n.snap.release(r)
	})
	release()
	c.sameData(0, 1, 2)
	c.propose("b")
	c.eventually(func() bool {
		var replicates bool
		r.on(t, func() { replicates = r.p.State == progress.Replicate })
		return replicates && c.nodes[0].snap.keptLogs() == 0
	}, "the log is kept for ever")
}

// S5: a snapshot that is offered again has the log kept again.
func TestAnOfferThatIsRepeatedKeepsTheLog(t *testing.T) {
	c, release := laggard(t)
	r := c.replicatorTo(0, 2)
	var held int
	r.on(t, func() {
		r.offer.holding = false
		r.n.snap.release(r)
		r.attemptOver()
		r.install()
		held = r.n.snap.keptLogs()
	})
	assert.Equal(t, 1, held)
	release()
	c.sameData(0, 1, 2)
	c.eventually(func() bool { return c.nodes[0].snap.keptLogs() == 0 }, "the log is kept for ever")
}

// A follower that was too slow for one snapshot gets the log behind the next one kept again.
func TestAnotherSnapshotKeepsTheLogAnew(t *testing.T) {
	c := compacted(t, 1, 0, NodeOptions{})
	n := c.nodes[0]
	s := n.snap
	to := &replicator{n: n}
	lent, err := s.lend(to)
	require.NoError(t, err)
	lent.giveBack()
	s.total.Add(holdBytes)
	c.proposeMany("b", 10)
	require.NoError(t, c.save(0))
	assert.Equal(t, s.last.Load(), s.keepFrom(), "too slow")
	second, err := s.lend(to)
	require.NoError(t, err)
	second.giveBack()
	c.proposeMany("c", 10)
	require.NoError(t, c.save(0))
	assert.Equal(t, second.base.index, s.keepFrom())
	s.release(to)
	assert.Equal(t, s.last.Load(), s.keepFrom())
}

// An install whose leader's term ended between the request and its begin is given up.
func TestAnInstallOfATermThatHasEndedIsGivenUp(t *testing.T) {
	b := newInstallBed(t)
	s := b.nodes[0].snap
	s.n.termNow.Store(5)
	var installing bool
	done := make(chan struct{})
	answered := make(chan rpc.Reply, 1)
	s.a.Post(func() {
		req := rpc.NewRequest(raftService, methodInstall, nil, nil, "test", func(code int32, text string, _ []byte, _ [][]byte) {
			answered <- rpc.Reply{Code: code, Text: text}
		})
		s.begin(&install{req: req, term: 4, base: logBase{index: 10, term: 1}, uri: "remote://127.0.0.1:1/1"})
		installing = s.inst != nil
		close(done)
	})
	receive(t, done)
	assert.False(t, installing)
	assert.Zero(t, s.incoming.Load())
	assert.Zero(t, b.hosts[0].receives.inUse())
}

// Who waits for something to be durable at a node that has failed is told.
func TestNobodyWaitsAtANodeThatHasFailed(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.startLed()
	n := c.nodes[0]
	dropped := make(chan bool, 1)
	n.post(func() {
		n.hard.wanted++
		n.fail(errors.New("broken"))
		n.afterSaveOr(func() { dropped <- false }, func() { dropped <- true })
		select {
		case dropped <- false: // neither
		default:
		}
	})
	assert.True(t, receive(t, dropped))
	require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
}
