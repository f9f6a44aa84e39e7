package graft

import (
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
)

// keepBusy has hosts count as busy, or as idle, whatever they write.
func (c *cluster) keepBusy(busy ...bool) rule {
	hosts := slices.Clone(c.hosts[:len(busy)]) // those that run now: the rule is followed until all are closed
	return func(*message) fate {
		for i, b := range busy {
			hosts[i].appearBusy(b)
		}
		return fate{}
	}
}

// A block that is damaged at the leader is not asked for again and again because the rest of it is good: on a busy host it comes in
// several pieces. The follower gives up, and the leader saves another snapshot.
func TestADamagedSnapshotOfABusyLeaderIsReplaced(t *testing.T) {
	c := compacted(t, 2, 3<<20, NodeOptions{})
	c.net.set(c.keepBusy(true, true))
	damage(t, c.disks[0], c.snapshotFile(0, "more/filler"))
	require.NoError(t, c.add(0, 1).wait())
	assert.Len(t, c.sameData(0, 1), 10)
}

// Failures count also while the copy waits for its share of the bytes that the host may receive.
func TestAThrottledCopyThatFailsIsGivenUp(t *testing.T) {
	c := snapshotGroup(t, 1, 2, NodeOptions{CatchupTimeout: 20 * time.Second})
	c.throttle = SnapshotThrottle{ReceiveRate: 1 << 20}
	c.startLed()
	c.fsms[0].filler = 3 << 20
	c.propose("a")
	require.NoError(t, c.save(0))
	c.net.set(manifestOnly())
	add := c.add(0, 1)
	s := c.status(1, func(s Status) bool { return s.Snapshot.Err != nil }, "it is not given up")
	assert.ErrorIs(t, s.Snapshot.Err, ErrUnreachable)
	c.net.set()
	require.NoError(t, add.wait())
	assert.Equal(t, []string{"a"}, c.sameData(0, 1))
}

// Bytes that were to be received and have not come are free for others.
func TestWhatDoesNotComeCountsForNoThrottle(t *testing.T) {
	b := newInstallBed(t)
	h, s := b.hosts[0], b.nodes[0].snap
	require.NoError(t, h.SetSnapshotThrottle(SnapshotThrottle{ReceiveRate: 1 << 20}))
	done := make(chan struct{})
	s.a.Post(func() {
		defer close(done)
		in := &install{}
		s.inst = in
		granted, _ := h.receives.take(s.now, 1000)
		assert.EqualValues(t, 1000, granted)
		left := h.receives.tokens
		in.out = 2
		s.onPiece(in, snapdir.Range{Len: 600}, false, rpc.Reply{Err: rpc.ErrUnreachable})
		assert.EqualValues(t, left+600, h.receives.tokens)
		s.onPiece(in, snapdir.Range{Len: 400}, false, rpc.Reply{Code: codeAgain})
		assert.EqualValues(t, left+1000, h.receives.tokens)
		s.inst = nil
	})
	receive(t, done)
}

// An install request of a term that has ended is answered also by a node that ends meanwhile.
func TestAnOldInstallRequestIsAnsweredAtTheEnd(t *testing.T) {
	b := newInstallBed(t)
	n := b.nodes[0]
	s, held, done := n.snap, make(chan struct{}), make(chan struct{})
	answered := make(chan int32, 1)
	n.termNow.Store(5)
	s.a.Post(func() {
		defer close(done)
		<-held
		s.requested(&install{term: 4, req: rpc.NewRequest(raftService, methodInstall, nil, nil, "test",
			func(code int32, _ string, _ []byte, _ [][]byte) { answered <- code })})
	})
	n.Shutdown(nil)
	close(held)
	receive(t, done)
	assert.Equal(t, int32(ErrInvalid), receive(t, answered))
}

// What was copied of a snapshot for which the disk has no space does not keep the disk full: the logs of all groups need it. The copy
// begins anew when there may be space, not at once.
func TestACopyDoesNotKeepTheDiskFull(t *testing.T) {
	c := compacted(t, 2, 12<<20, NodeOptions{ElectionTimeout: patient, CatchupTimeout: 20 * time.Second})
	disk := c.disks[1]
	before := disk.Used()
	disk.SetCapacity(before + 5<<20)
	add := c.add(0, 1)
	s := c.status(1, func(s Status) bool { return s.Snapshot.Err != nil }, "there is space for it")
	assert.ErrorIs(t, s.Snapshot.Err, ErrNoSpace)
	assert.Equal(t, SnapshotIdle, s.Snapshot.State)
	c.eventually(func() bool { return disk.Used() < before+1<<20 }, "the copy holds the space") // the next one may have begun already
	var reads atomic.Int32
	c.net.set(counting(methodGetFile, &reads))
	c.eventually(func() bool { return reads.Load() > 0 }, "it is not tried again")
	disk.SetCapacity(-1)
	require.NoError(t, add.wait())
	assert.Len(t, c.sameData(0, 1), 10)
}

// The leader is told why nothing is copied while that would be for nothing.
func TestNoCopyBeginsOnADiskThatWasFullJustNow(t *testing.T) {
	b := newInstallBed(t)
	s := b.nodes[0].snap
	full := func(d time.Duration) {
		done := make(chan struct{})
		s.a.Post(func() { s.fullTill = s.n.host.env.Exec.Now().Add(d); close(done) })
		receive(t, done)
	}
	full(time.Hour)
	rep := receive(t, b.install(3, 100))
	assert.Equal(t, int32(ErrNoSpace), rep.Code)
	assert.Contains(t, rep.Text, "disk was full")
	full(-time.Second)
	b.serve(braftFiles(t, 100, []string{b.leads.String(), b.cluster.peer(0).String()}, map[string]string{"entries": `["x"]`}, "entries"))
	installed(t, b.install(3, 100))
}
