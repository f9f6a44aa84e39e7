package graft

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

func TestEntriesReachEveryStateMachineInOrder(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startAll()
	lead := c.nodes[c.leader()]
	var wg sync.WaitGroup
	var want []string
	for i := range 2000 {
		want = append(want, fmt.Sprint(i))
		wg.Add(1)
		lead.Apply(Task{Data: []byte(fmt.Sprint(i)), Done: func(result any, err error) {
			defer wg.Done()
			assert.NoError(t, err)
			assert.Equal(t, i+1, result)
		}})
	}
	wg.Wait()
	for i, n := range c.nodes {
		_, err := n.ReadIndex(context.Background())
		require.NoError(t, err)
		assert.Equal(t, want, c.fsms[i].applied())
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startAll()
	for round := range 3 {
		for i := range 50 {
			c.propose(fmt.Sprintf("%d-%d", round, i))
		}
		for i := range c.hosts {
			c.stop(i)
		}
		c.startAll()
	}
	c.propose("last")
	_, err := c.nodes[c.leader()].ReadIndex(context.Background())
	require.NoError(t, err)
	assert.Len(t, c.fsms[c.leader()].applied(), 151)
}

func TestLeaderLossIsSurvivedAndTheOldLogIsRepaired(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{})
	c.startAll()
	for i := range 10 {
		c.propose(fmt.Sprint(i))
		old := c.leader()
		c.stop(old)
		c.propose(fmt.Sprint("without ", old, i))
		c.start(old)
	}
	lead := c.fsms[c.leader()]
	for i := range c.nodes {
		c.eventually(func() bool { // it may not have heard of the leader yet
			_, err := c.nodes[i].ReadIndex(context.Background())
			return err == nil
		}, "no read")
		assert.Equal(t, lead.applied(), c.fsms[i].applied())
	}
}

func TestProposalsElsewhereNameTheLeader(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startAll()
	lead := c.leader()
	for i, n := range c.nodes {
		if i == lead {
			continue
		}
		c.eventually(func() bool { return n.LeaderID().Address == c.addrs[lead] }, "follower does not know the leader")
		_, err := n.Propose(context.Background(), []byte("x"))
		var e *Error
		require.ErrorAs(t, err, &e)
		assert.Equal(t, ErrNotLeader, e.Code)
		assert.Equal(t, c.addrs[lead], e.Peer.Address)
		_, err = n.ListPeers()
		assert.ErrorIs(t, err, ErrNotLeader)
	}
}

func TestRefusalsAreCertain(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{MaxEntrySize: 10, MaxPendingBytes: 25, MaxPendingEntries: 3})
	gate := make(chan struct{})
	c.start(0)
	n := c.nodes[c.leader()]
	c.propose("first")
	_, err := n.Propose(context.Background(), make([]byte, 11))
	assert.ErrorIs(t, err, ErrTooLarge)
	done := make(chan error, 1)
	n.Apply(Task{Data: []byte("x"), ExpectedTerm: 99, Done: func(_ any, err error) { done <- err }})
	assert.ErrorIs(t, receive(t, done), ErrTermMismatch)

	c.fsms[0].onApply = func(string) { <-gate } // set before the entries that see it are proposed
	var wg sync.WaitGroup
	var overloaded, ok int
	var mu sync.Mutex
	for range 10 {
		wg.Add(1)
		n.Apply(Task{Data: make([]byte, 9), Done: func(_ any, err error) {
			defer wg.Done()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ok++
			} else if assert.ErrorIs(t, err, ErrOverloaded) {
				overloaded++
			}
		}})
	}
	close(gate)
	wg.Wait()
	assert.Positive(t, overloaded)
	assert.Positive(t, ok)
	assert.Len(t, c.fsms[0].applied(), ok+1)
	entries, bytes := n.proposals.pending()
	assert.Zero(t, entries, "the budget is given back")
	assert.Zero(t, bytes)
}

func TestPanicStopsTheNodeNotTheProcess(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	n := c.nodes[c.leader()]
	c.propose("fine")
	c.fsms[0].onApply = func(data string) { panic("cannot apply " + data) }
	_, err := n.Propose(context.Background(), []byte("bad"))
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	c.eventually(func() bool { return len(c.fsms[0].errors()) == 1 }, "OnError was not called")
	assert.ErrorIs(t, c.fsms[0].errors()[0], ErrStateMachine)
	assert.Equal(t, RoleFailed, n.Status().Role)
	_, err = n.Propose(context.Background(), []byte("more"))
	assert.ErrorIs(t, err, ErrNodeFailed)
	_, err = n.ReadIndex(context.Background())
	assert.ErrorIs(t, err, ErrNodeFailed)
}

func TestRollbackIsNotTakenForSuccess(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	n := c.nodes[c.leader()]
	c.propose("fine")
	broken := errors.New("broken")
	c.fsms[0].rollback = func(data string) error { return broken }
	_, err := n.Propose(context.Background(), []byte("bad"))
	require.ErrorIs(t, err, ErrUnknownOutcome)
	c.eventually(func() bool { return len(c.fsms[0].errors()) == 1 }, "OnError was not called")
	assert.ErrorIs(t, c.fsms[0].errors()[0], broken)
	assert.Equal(t, n.Status().AppliedIndex, n.Status().CommitIndex-1)
}

// After a failed sync nothing that store says counts any more; the process and the other nodes go on.
func TestFailedSyncFailsTheNodeAndSparesTheGroup(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient})
	c.startAll()
	c.propose("before")
	bad := c.leader()
	c.disks[bad].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			return syscall.EIO
		}
		return nil
	})
	_, err := c.nodes[bad].Propose(context.Background(), []byte("maybe"))
	if err != nil { // the others may commit it
		assert.ErrorIs(t, err, ErrUnknownOutcome)
	}
	c.eventually(func() bool { return c.nodes[bad].Status().Role == RoleFailed }, "the node does not report the failed sync")
	c.eventually(func() bool { return len(c.fsms[bad].errors()) == 1 }, "OnError was not called")
	assert.ErrorIs(t, c.fsms[bad].errors()[0], ErrIO)
	c.disks[bad].SetInjector(nil)
	durable := c.nodes[bad].Status().DurableIndex
	c.missed(bad)
	c.hurry((bad + 1) % 3)
	c.propose("after")
	assert.Equal(t, durable, c.nodes[bad].Status().DurableIndex, "it acknowledges nothing any more")
	require.NoError(t, c.hosts[bad].StopNode(context.Background(), "g"))
	_, err = c.hosts[bad].StartNode("g", NodeOptions{StateMachine: &recorder{}})
	assert.ErrorIs(t, err, ErrIO, "what it wrote last may not be on disk")
}

// oneAtATime takes one entry in a call.
type oneAtATime struct{ BaseStateMachine }

func (oneAtATime) OnApply(it *Iterator) { it.Next() }

// The Done of an entry behind which OnApply does not ask for more is guarded, too.
func TestPanicInDoneOfTheLastEntry(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	n, err := c.hosts[0].StartNode("other", NodeOptions{StateMachine: oneAtATime{}, InitialConf: c.conf, ElectionTimeout: patient})
	require.NoError(t, err)
	c.eventually(n.IsLeader, "no leader")
	n.Apply(Task{Data: []byte("entry"), Done: func(any, error) { panic("in a callback") }})
	c.eventually(func() bool { return n.Status().Role == RoleFailed }, "the node works on")
	assert.ErrorIs(t, n.Status().Err, ErrStateMachine)
}

// disordered calls all that is appended out of order.
type disordered struct{ LogStorage }

func (d disordered) Append(_ entry.Batch, _ int64, done func(error)) {
	done(fmt.Errorf("append: %w", wal.ErrOrder))
}

// Storage that disagrees with the node about what is stored is not asked again for ever, in silence.
func TestDisorderThatLastsFailsTheNode(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	c.propose("before")
	n := c.nodes[0]
	failed := make(chan error, 1)
	n.post(func() {
		n.lm.store = disordered{n.lm.store}
		n.Apply(Task{Data: []byte("refused"), Done: func(_ any, err error) { failed <- err }})
	})
	assert.ErrorIs(t, receive(t, failed), ErrUnknownOutcome)
	assert.ErrorIs(t, n.Status().Err, ErrIO)
	assert.ErrorIs(t, n.Status().Err, wal.ErrOrder)
}

func TestFullDiskRefusesAndResumes(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	n := c.nodes[c.leader()]
	c.propose("before")
	c.disks[0].SetCapacity(c.disks[0].Used())
	// What was prepared takes a while to fill. Proposals that were taken just before the
	// disk proved full wait for space; from then on they are refused.
	var refused error
	var taken, open atomic.Int64
	for i := 0; i < 300 && refused == nil; i++ {
		outcome := make(chan error, 1)
		open.Add(1)
		n.Apply(Task{Data: make([]byte, 10<<10), Done: func(_ any, err error) {
			if err == nil {
				taken.Add(1)
			} else {
				assert.ErrorIs(t, err, ErrNoSpace)
			}
			outcome <- err
			open.Add(-1)
		}})
		select {
		case refused = <-outcome:
		case <-time.After(100 * time.Millisecond): // it waits
		}
	}
	require.ErrorIs(t, refused, ErrNoSpace)
	assert.ErrorIs(t, n.Status().Err, syscall.ENOSPC)
	assert.Equal(t, RoleLeader, n.Status().Role, "a full disk is no failure")
	c.disks[0].SetCapacity(-1)
	c.eventually(func() bool { return n.Status().Err == nil }, "space returned unnoticed")
	c.eventually(func() bool { return open.Load() == 0 }, "what waited has no outcome")
	c.propose("after")
	assert.Len(t, c.fsms[0].applied(), 2+int(taken.Load()), "nothing that was taken is lost")
}

// Close at any moment: no goroutine is left, which TestMain checks, and everybody gets an answer.
func TestCloseAtAnyMoment(t *testing.T) {
	for i := range 30 {
		c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 20 * ms})
		c.startAll()
		deadline := time.Now().Add(time.Duration(i) * 3 * time.Millisecond)
		var open atomic.Int64
		for time.Now().Before(deadline) {
			for _, n := range c.nodes {
				open.Add(2)
				n.Apply(Task{Data: []byte("x"), Done: func(any, error) { open.Add(-1) }})
				n.ReadIndexAsync(func(int64, error) { open.Add(-1) })
			}
		}
		c.close()
		c.eventually(func() bool { return open.Load() == 0 }, "somebody has no answer")
		for j := range c.nodes {
			require.True(t, c.fsms[j].shut)
		}
		_, err := c.nodes[0].Propose(context.Background(), nil)
		require.ErrorIs(t, err, ErrShutdown)
		_, err = c.nodes[0].ReadIndex(context.Background())
		require.ErrorIs(t, err, ErrShutdown)
	}
}

func TestDirectoryOfAnotherNodeIsRefused(t *testing.T) {
	dir := t.TempDir()
	a := freeAddrs(t, 2)
	h, err := NewHost(HostOptions{Address: a[0], Dir: dir})
	require.NoError(t, err)
	_, err = NewHost(HostOptions{Address: a[1], Dir: dir})
	require.ErrorIs(t, err, ErrIdentity, "in use")
	require.NoError(t, h.Close())
	_, err = NewHost(HostOptions{Address: a[1], Dir: dir})
	require.ErrorIs(t, err, ErrIdentity, "another address")
	assert.ErrorContains(t, err, a[0])
}

func TestBadOptionsNameTheField(t *testing.T) {
	_, err := NewHost(HostOptions{Address: "nowhere"})
	require.ErrorIs(t, err, ErrInvalid)
	assert.ErrorContains(t, err, "HostOptions.Address")
	for _, size := range []int64{-4096, 4096, 12288, 16385, 1 << 32} {
		_, err = NewHost(HostOptions{Address: "127.0.0.1:1", SegmentSize: size, TLS: &tls.Config{}})
		require.ErrorIs(t, err, ErrInvalid, "%d", size)
		assert.ErrorContains(t, err, "HostOptions.SegmentSize")
		assert.ErrorContains(t, err, "HostOptions.TLS")
	}
	for _, size := range []int64{0, 16384, 1<<32 - 4096} {
		assert.NoError(t, HostOptions{Address: "127.0.0.1:1", SegmentSize: size}.Validate(), "%d", size)
	}
	_, err = NewHost(HostOptions{Address: "127.0.0.1:1", Listen: "192.0.2.1:1"})
	require.ErrorIs(t, err, ErrInvalid, "nobody here has that address")
	assert.NotContains(t, err.Error(), "storage")
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	_, err = c.hosts[0].StartNode("other", NodeOptions{ElectionTimeout: 1, HeartbeatFactor: 1})
	require.ErrorIs(t, err, ErrInvalid)
	for _, field := range []string{"StateMachine", "ElectionTimeout", "HeartbeatFactor"} {
		assert.ErrorContains(t, err, "NodeOptions."+field)
	}
	_, err = c.hosts[0].StartNode("g", NodeOptions{StateMachine: &recorder{}})
	assert.ErrorIs(t, err, ErrBusy)
}

// Two replicas never have one log: a name that could be taken for that of another group's replica is refused. Nobody has a use for other control characters.
func TestNamesOfGroupsThatCouldBeConfusedAreRefused(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{})
	c.start(0)
	start := func(group string, index int) error {
		_, err := c.hosts[0].StartNode(group, NodeOptions{StateMachine: &recorder{}, Index: index})
		return err
	}
	require.NoError(t, start("a", 1))
	for _, group := range []string{"", "a\x001", "\x00", "a\nb", "a\x7f", "\u0085", strings.Repeat("x", maxGroupName+1)} {
		err := start(group, 0)
		require.ErrorIs(t, err, ErrInvalid, "%q", group)
		assert.ErrorContains(t, err, "group name")
	}
	for _, group := range []string{"a b", "Größe/größer:1", "a1", strings.Repeat("x", maxGroupName)} {
		require.NoError(t, start(group, 0), "%q", group)
	}
	assert.Nil(t, c.hosts[0].find([]byte("a\x001"), []byte(c.addrs[0]+":0")), "no request reaches a replica by another's name")
}

func TestAwaitAndProposeEndWithTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := Await(ctx, func(Closure) {})
	assert.ErrorIs(t, err, ErrUnknownOutcome)
	assert.True(t, errors.Is(err, context.Canceled))
}
