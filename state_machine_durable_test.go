package graft

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// durableDisk is what a durable state machine keeps: it outlives its process.
type durableDisk struct {
	mu      sync.Mutex
	index   int64
	entries []string
	lazy    bool // the state machine makes nothing durable by itself
	err     error
	asked   int
}

// durableMachine is a recorder that keeps what it has applied on its disk.
type durableMachine struct {
	*recorder
	disk    *durableDisk
	index   int64
	applies []int64 // the indexes it was given in this life
}

func newDurableMachine(r *recorder, d *durableDisk) *durableMachine {
	d.mu.Lock()
	defer d.mu.Unlock()
	r.entries = slices.Clone(d.entries)
	return &durableMachine{recorder: r, disk: d, index: d.index}
}

func (m *durableMachine) OnApply(it *Iterator) {
	for it.Next() {
		m.mu.Lock()
		m.entries = append(m.entries, string(it.Data()))
		m.applies = append(m.applies, it.Index())
		m.index = it.Index()
		m.mu.Unlock()
		if !m.disk.isLazy() {
			m.flush()
		}
		it.Return(nil)
	}
}

func (d *durableDisk) isLazy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lazy
}

// flush makes all that is applied durable.
func (m *durableMachine) flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.index, m.disk.entries = m.index, slices.Clone(m.entries)
}

func (m *durableMachine) OnSnapshotLoad(s *SnapshotReader) error {
	if err := m.recorder.OnSnapshotLoad(s); err != nil {
		return err
	}
	m.mu.Lock()
	m.index = s.Index()
	m.mu.Unlock()
	if !m.disk.isLazy() {
		m.flush()
	}
	return nil
}

func (m *durableMachine) DurableIndex() (int64, error) {
	m.disk.mu.Lock()
	defer m.disk.mu.Unlock()
	m.disk.asked++
	return m.disk.index, m.disk.err
}

// given returns the indexes that were applied in this life.
func (m *durableMachine) given() []int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.applies)
}

// durableGroup is a group of durable state machines.
type durableGroup struct {
	*cluster
	stores   []*durableDisk
	machines []*durableMachine
}

func newDurableGroup(t testing.TB, members, hosts int, opts NodeOptions) *durableGroup {
	g := &durableGroup{cluster: snapshotGroup(t, members, hosts, opts), machines: make([]*durableMachine, hosts)}
	for range hosts {
		g.stores = append(g.stores, &durableDisk{})
	}
	g.machine = func(i int, r *recorder) StateMachine {
		g.machines[i] = newDurableMachine(r, g.stores[i])
		return g.machines[i]
	}
	return g
}

// again starts a stopped host's node, which may fail.
func (g *durableGroup) again(i int) error {
	o := g.nodes[i].o
	o.StateMachine = newDurableMachine(&recorder{name: g.name, snapshots: true}, g.stores[i])
	n, err := g.hosts[i].StartNode("g", o)
	if err == nil {
		g.machines[i] = o.StateMachine.(*durableMachine)
		g.nodes[i], g.fsms[i] = n, g.machines[i].recorder
	}
	return err
}

func (g *durableGroup) stopNode(i int) {
	g.t.Helper()
	require.NoError(g.t, g.hosts[i].StopNode(context.Background(), "g"))
}

// cutLog has a host's log cut as if it was time.
func (g *durableGroup) cutLog(i int) {
	s := g.nodes[i].snap
	s.a.Post(s.relieve)
}

// C1, C3: what a durable state machine holds is not applied again, be it that it holds all, less than the log, or nothing; nor is
// anything left out. The commit index is not behind it (C12), and the configuration is told.
func TestADurableStateMachineGoesOnFromWhatItHolds(t *testing.T) {
	g := newDurableGroup(t, 1, 1, NodeOptions{})
	g.startLed()
	g.proposeMany("a", 5)
	want := g.sameData(0)
	all := g.machines[0].given()
	for held := 0; held <= len(all); held++ {
		g.stop(0)
		d := g.stores[0]
		d.index, d.entries, d.lazy = 0, slices.Clone(want[:held]), true
		if held > 0 {
			d.index = all[held-1]
		}
		g.start(0)
		if s := g.nodes[0].Status(); assert.GreaterOrEqual(t, s.CommitIndex, s.AppliedIndex) {
			assert.GreaterOrEqual(t, s.AppliedIndex, d.index)
		}
		g.ready()
		assert.Equal(t, want, g.sameData(0), "%d held", held)
		assert.ElementsMatch(t, all[held:], g.machines[0].given(), "exactly what it does not hold")
		assert.Equal(t, "0", g.name(g.fsms[0].committedConfs()[0]))
		assert.Empty(t, g.fsms[0].loaded())
	}
}

// A durable state machine's log is cut up to what is durable there, without any snapshot, and the replica starts on that: with
// its configuration, and with what lies behind the cut applied once.
func TestTheLogIsCutUpToWhatIsDurable(t *testing.T) {
	g := newDurableGroup(t, 3, 3, NodeOptions{SnapshotEntries: 10})
	for _, d := range g.stores {
		d.lazy = true
	}
	g.startLed()
	g.proposeMany("a", 25)
	want := g.sameData(0, 1, 2)
	g.eventually(func() bool { return g.stores[0].asks() > 1 }, "it is not asked")
	assert.EqualValues(t, 1, g.nodes[0].Status().FirstIndex, "nothing is durable")
	for i, m := range g.machines {
		m.flush()
		g.cutLog(i)
		g.status(i, func(s Status) bool { return s.FirstIndex == g.stores[i].held()+1 }, "the log is not cut")
		assert.Zero(t, g.nodes[i].Status().Snapshot.Index)
		assert.Zero(t, g.fsms[i].saves)
	}
	g.propose("b")
	want = append(want, "b")
	assert.Equal(t, want, g.sameData(0, 1, 2))
	for range 2 {
		for i := range 3 {
			g.stop(i)
		}
		g.startAll()
		g.ready()
		assert.Equal(t, want, g.sameData(0, 1, 2))
		for i := range 3 {
			assert.Equal(t, "0,1,2", g.name(g.nodes[i].Status().Conf))
			assert.Len(t, g.machines[i].given(), 1, "what was not durable")
			assert.Empty(t, g.fsms[i].loaded())
		}
	}
	g.changeTo(g.voters(0, 1))
}

func (d *durableDisk) asks() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

func (d *durableDisk) held() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.index
}

// A snapshot is made when a replica needs one, and not before; it is loaded once. If the state machine has not made it
// durable when it ends, it is loaded again, and not if it has.
func TestASnapshotIsMadeToShip(t *testing.T) {
	g := newDurableGroup(t, 1, 2, NodeOptions{})
	g.startLed()
	g.proposeMany("a", 10)
	want := g.sameData(0)
	g.cutLog(0)
	g.status(0, func(s Status) bool { return s.FirstIndex > 10 }, "the log is not cut")
	assert.Zero(t, g.fsms[0].saves)
	g.stores[1].lazy = true
	require.NoError(t, g.add(0, 1).wait())
	assert.Equal(t, want, g.sameData(0, 1))
	assert.Equal(t, 1, g.fsms[0].saves)
	index := g.nodes[0].Status().Snapshot.Index
	assert.Equal(t, []int64{index}, g.fsms[1].loaded())

	for _, flushed := range []bool{false, true} {
		if flushed {
			g.machines[1].flush()
		}
		g.stop(1)
		g.start(1)
		g.propose("b")
		want = append(want, "b")
		assert.Equal(t, want, g.sameData(0, 1))
		if flushed {
			assert.Empty(t, g.fsms[1].loaded())
		} else {
			assert.Equal(t, []int64{index}, g.fsms[1].loaded())
		}
	}
	g.stop(0) // which has a snapshot that is behind what it holds
	g.start(0)
	g.hurry(0)
	g.ready()
	assert.Equal(t, want, g.sameData(0, 1))
	assert.Empty(t, g.fsms[0].loaded())
	require.NoError(t, g.save(0), "one that is asked for is made")
	assert.Equal(t, g.nodes[0].Status().AppliedIndex, g.nodes[0].Status().Snapshot.Index)
	g.handTo(1)
	g.propose("c")
	assert.Equal(t, append(want, "c"), g.sameData(0, 1))
}

// An idle group whose logs are cut brings back a member that lost everything.
func TestAnIdleDurableGroupBringsBackAWipedMember(t *testing.T) {
	g := newDurableGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	g.startLed()
	g.proposeMany("a", 10)
	want := g.sameData(0, 1, 2)
	for i := range 3 {
		g.cutLog(i)
		g.status(i, func(s Status) bool { return s.FirstIndex > 10 }, "the log is not cut")
	}
	last := g.nodes[0].Status().LastIndex
	g.wipe(2)
	*g.stores[2] = durableDisk{}
	g.startWith(2, Configuration{})
	g.status(2, func(s Status) bool { return s.AppliedIndex == last && !s.Waiting }, "it is not brought back")
	assert.Equal(t, want, g.fsms[2].applied())
	assert.Equal(t, last, g.nodes[0].Status().LastIndex, "nothing was written")
}

// S15: a state machine that is behind what the log and the snapshots can bring it to is refused, with the remedy. With a
// snapshot that bridges the gap it is not.
func TestADurableStateMachineThatIsBehindIsRefused(t *testing.T) {
	for _, held := range []int{0, 3} {
		g := newDurableGroup(t, 1, 1, NodeOptions{})
		g.startLed()
		g.proposeMany("a", 10)
		want := g.sameData(0)
		all := g.machines[0].given()
		g.cutLog(0)
		g.status(0, func(s Status) bool { return s.FirstIndex > 10 }, "the log is not cut")
		require.NoError(t, g.save(0))
		g.propose("b")
		g.stopNode(0)
		d := g.stores[0]
		index, entries := d.index, d.entries
		d.index, d.entries = 0, nil
		if held > 0 {
			d.index, d.entries = all[held-1], want[:held]
		}
		dir := g.snapshotDir(0)
		require.NoError(t, g.disks[0].Rename(dir, dir+"-away"))
		err := g.again(0)
		assert.ErrorIs(t, err, ErrCorrupt)
		for _, part := range []string{"the log begins at", "bring back", "add it again", dir} {
			assert.ErrorContains(t, err, part)
		}
		if held > 0 {
			assert.ErrorContains(t, err, "the state machine holds what was applied up to")
		}
		require.NoError(t, g.disks[0].Rename(dir+"-away", dir))
		require.NoError(t, g.again(0), "the snapshot bridges the gap")
		g.ready()
		assert.Equal(t, append(want, "b"), g.sameData(0))
		assert.Len(t, g.fsms[0].loaded(), 1)
		g.stopNode(0)
		d.index, d.entries = index, entries
		require.NoError(t, g.again(0))
		g.ready()
		assert.Equal(t, append(want, "b"), g.sameData(0))
	}
}

// An install that ended before the state machine had loaded the snapshot is made up for at the start, also where the log is
// longer than that: what it holds there is not what was committed. Else the snapshot would be in the way of each further
// install, and the replica out of date until the leader saved another one.
func TestAnInterruptedInstallIsLoadedIntoADurableStateMachine(t *testing.T) {
	g := newDurableGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	g.startLed()
	g.proposeMany("a", 5)
	g.sameData(0, 1, 2)
	g.stop(1)
	g.stop(2)
	for range 40 { // which nobody else will ever have
		g.nodes[0].Apply(Task{Data: []byte("x")})
	}
	g.eventually(func() bool { return g.nodes[0].lm.durableIndex() > 40 }, "they are not in its log")
	g.stopNode(0)
	g.start(1)
	g.start(2)
	g.hurry(1)
	g.eventually(func() bool { return g.leader() > 0 }, "the others have no leader")
	lead := g.leader()
	g.proposeMany("b", 10)
	g.saveAndCut(1)
	g.saveAndCut(2)
	n := g.nodes[lead]
	base := n.fsm.position()
	require.Less(t, base.index, int64(40))
	g.leftSnapshotOf(0, lead, base, n.groupIDNow.Load())
	require.NoError(t, g.again(0))
	assert.Equal(t, []int64{base.index}, g.fsms[0].loaded())
	g.proposeMany("c", 3)
	assert.Len(t, g.sameData(0, 1, 2), 18)
	g.stopNode(0)
	require.NoError(t, g.again(0))
	assert.Empty(t, g.fsms[0].loaded(), "the log goes on from what the state machine holds")
	assert.Len(t, g.sameData(0, 1, 2), 18)
}

// A mark whose sync has failed is there as long as power is, and no later sync makes it last: before the log is cut there it is
// written again. Else a power cut would leave a log that begins nowhere.
func TestAMarkWhoseSyncHasFailedIsWrittenAgain(t *testing.T) {
	g := newDurableGroup(t, 1, 1, NodeOptions{})
	g.startLed()
	g.proposeMany("a", 10)
	g.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSyncDir && filepath.Base(op.Name) == "mark" {
			return syscall.EIO
		}
		return nil
	})
	g.cutLog(0)
	s := g.status(0, func(s Status) bool { return s.Snapshot.Err != nil }, "the mark could be written")
	assert.EqualValues(t, 1, s.FirstIndex)
	g.disks[0].SetInjector(nil)
	g.stopNode(0)
	require.NoError(t, g.again(0))
	g.ready()
	g.status(0, func(s Status) bool { return s.FirstIndex > 10 }, "the log is not cut at the start")
	g.stop(0)
	g.disks[0] = g.disks[0].CrashClone(nil)
	g.start(0)
	g.ready()
	g.propose("b")
	assert.Len(t, g.sameData(0), 11)
}

// A state machine that has applied what the log lacks is refused: the log was lost, or is from a backup. Else what
// comes to stand there would be taken for applied.
func TestADurableStateMachineAheadOfTheLogIsRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		lose func(g *durableGroup, old *vfs.Mem)
	}{
		{"from a backup", func(g *durableGroup, old *vfs.Mem) { g.disks[0] = old }},
		{"lost", func(g *durableGroup, _ *vfs.Mem) { g.disks[0] = vfs.NewMem() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newDurableGroup(t, 1, 1, NodeOptions{})
			g.startLed()
			g.proposeMany("a", 5)
			g.stop(0)
			old := g.disks[0].KillClone()
			g.start(0)
			g.ready()
			g.proposeMany("b", 5)
			held := g.stores[0].held()
			g.stop(0)
			test.lose(g, old)
			g.stores[0].index = 0
			entries := g.stores[0].entries
			g.stores[0].entries = nil
			g.start(0) // as if it were a new state machine
			g.stopNode(0)
			g.stores[0].index, g.stores[0].entries = held, entries
			err := g.again(0)
			assert.ErrorIs(t, err, ErrCorrupt)
			assert.ErrorContains(t, err, "the log ends at")
			assert.ErrorContains(t, err, "the state machine's")
		})
	}
}

// What the state machine says of itself must make sense.
func TestWhatDurableIndexMaySay(t *testing.T) {
	g := newDurableGroup(t, 1, 1, NodeOptions{})
	g.startLed()
	g.propose("a")
	g.stopNode(0)
	held := g.stores[0].index
	g.stores[0].err = errors.New("no idea")
	err := g.again(0)
	assert.ErrorIs(t, err, ErrStateMachine)
	assert.ErrorContains(t, err, "no idea")
	g.stores[0].err, g.stores[0].index = nil, -1
	assert.ErrorIs(t, g.again(0), ErrStateMachine)
	g.stores[0].index = held
	require.NoError(t, g.again(0))
	g.ready()
	g.stores[0].mu.Lock()
	g.stores[0].index = 1000
	g.stores[0].mu.Unlock()
	g.cutLog(0)
	s := g.status(0, func(s Status) bool { return s.Role == RoleFailed }, "it works on")
	assert.ErrorIs(t, s.Err, ErrStateMachine)
	assert.ErrorContains(t, s.Err, "is applied")
}

// A durable state machine is given only what its own disk holds: not before the sync has returned, though a majority has
// it; and what has to come behind it waits as well.
func TestADurableStateMachineIsGivenWhatTheDiskHolds(t *testing.T) {
	g := newDurableGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	g.startLed()
	g.propose("a")
	g.sameData(0, 1, 2)
	gate, opened := make(chan struct{}), sync.Once{}
	open := func() { opened.Do(func() { close(gate) }) }
	defer open()
	g.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			<-gate
		}
		return nil
	})
	done := make(chan error, 1)
	g.nodes[0].Apply(Task{Data: []byte("b"), Done: func(_ any, err error) { done <- err }})
	g.eventually(func() bool { return len(g.fsms[1].applied()) == 2 && len(g.fsms[2].applied()) == 2 }, "the others have not applied it")
	s := g.nodes[0].Status()
	assert.Equal(t, s.LastIndex, s.CommitIndex, "it is committed")
	assert.Len(t, g.fsms[0].applied(), 1)
	behind := make(chan struct{})
	g.nodes[0].fsm.post(func() { close(behind) })
	g.never(20*ms, func() bool { return len(g.fsms[0].applied()) > 1 || len(behind) > 0 }, "it is applied although its disk does not hold it")
	open()
	require.NoError(t, receive(t, done))
	select {
	case <-behind:
	case <-time.After(10 * time.Second):
		t.Fatal("what was to come behind it does not")
	}
	assert.Equal(t, []string{"a", "b"}, g.sameData(0, 1, 2))
}

// A node that ends, or whose disk fails, does not wait for what the disk will never hold.
func TestADurableStateMachineDoesNotWaitForADeadDisk(t *testing.T) {
	g := newDurableGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	g.startLed()
	g.propose("a")
	g.sameData(0, 1, 2)
	g.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			return errors.New("simulated")
		}
		return nil
	})
	done := make(chan error, 1)
	g.nodes[0].Apply(Task{Data: []byte("b"), Done: func(_ any, err error) { done <- err }})
	g.nodes[0].fsm.post(func() {})
	require.Error(t, receive(t, done))
	g.eventually(func() bool { return len(g.fsms[0].errors()) == 1 }, "OnError is not called")
	g.stopNode(0)
	assert.True(t, g.fsms[0].shut)
	assert.Len(t, g.fsms[0].applied(), 1)
}

// A node that is shut down hands out what its disk is about to hold: a change that has succeeded was reported to the state
// machine before.
func TestShutdownOfADurableStateMachineWaitsForTheDisk(t *testing.T) {
	g := newDurableGroup(t, 4, 4, NodeOptions{ElectionTimeout: patient})
	g.startLed()
	g.propose("a")
	g.sameData(0, 1, 2, 3)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	g.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			<-gate
		}
		return nil
	})
	g.fsms[0].forget()
	var seen []string
	removed := g.begin(0, "remove", func(n *Node, done Closure) {
		n.RemovePeer(g.peer(3), func(err error) { seen = g.fsms[0].seen(); done(err) })
	})
	g.status(0, func(s Status) bool { return s.CommitIndex == s.LastIndex && s.LastIndex > s.DurableIndex }, "the change is not committed")
	stopped := make(chan error, 1)
	g.nodes[0].Shutdown(func(err error) { stopped <- err })
	g.status(0, func(s Status) bool { return s.Role == RoleShutdown }, "it does not end")
	assert.True(t, removed.open())
	open()
	require.NoError(t, removed.wait())
	require.NoError(t, receive(t, stopped))
	assert.Contains(t, seen, "conf 0,1,2")
	assert.True(t, g.fsms[0].shut)
}

// newDurableLeader starts a node on a stage that leads, with a durable state machine.
func newDurableLeader(t *testing.T) (*stage, *durableMachine) {
	m := newDurableMachine(&recorder{}, &durableDisk{})
	s := newStage(t, len(stagePeers), NodeOptions{StateMachine: m})
	s.fsm, s.loyal = m.recorder, true
	s.until(func() bool { return slices.Contains(s.fsm.seen(), "lead") }, "the node does not lead")
	return s, m
}

// changeUntilFull changes the configuration until the leader's own disk has no space for that either, and returns the last
// change: the others have it, so it is committed, and the state machine is not told.
func (s *stage) changeUntilFull() *owed {
	s.t.Helper()
	s.fs.SetCapacity(s.fs.Used())
	is := s.node.Status().Conf
	confs := []Configuration{is, MustParseConfiguration(is.String() + ",10.0.0.4:1:0:2")}
	for i := 1; ; i++ {
		require.Less(s.t, i, 10_000, "there is always space")
		a := s.call("change")
		a.then = func() { s.toldBefore(a, confs[i%2]) }
		s.node.ChangePeers(confs[i%2], a.closed)
		s.until(func() bool { return a.times > 0 || s.node.lm.durableIndex() < s.node.box.index() && s.refusals() > 0 }, "the change does not end")
		if a.times == 0 {
			return a
		}
		require.NoError(s.t, a.err)
	}
}

// toldBefore holds that whoever hears of a change's success does so after the state machine was told.
func (s *stage) toldBefore(a *owed, conf Configuration) {
	told := s.fsm.committedConfs()
	if is := len(told) > 0 && told[len(told)-1].Equal(conf); a.err == nil && !is {
		s.t.Errorf("%v is called done, told is %v", conf, told)
	}
}

// A14: a change is done when the state machine was told of it. One that the others have committed at a node that ends, or
// whose disk fails, before that holds it has an unknown outcome here.
func TestAChangeThatTheDiskNeverHeldIsNotCalledDone(t *testing.T) {
	for name, end := range map[string]func(s *stage){
		"shut down": func(s *stage) { s.node.Shutdown(s.call("shutdown").closed) },
		"disk fails": func(s *stage) {
			s.fs.SetInjector(func(vfs.Op) error { return errors.New("simulated") })
			s.fs.SetCapacity(-1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := newDurableLeader(t)
			change := s.changeUntilFull()
			s.pass(2 * time.Second)
			require.Zero(t, change.times, "the disk does not hold it")
			told := len(s.fsm.committedConfs())
			again := s.call("the same again") // is so already
			s.node.ChangePeers(s.node.Status().Conf, again.closed)
			s.pass(100 * time.Millisecond)
			end(s)
			s.end()
			assert.Len(t, s.fsm.committedConfs(), told, "the state machine was told of what the disk does not hold")
			for _, a := range []*owed{change, again} {
				assert.ErrorIs(t, a.err, ErrUnknownOutcome)
				assert.ErrorContains(t, a.err, "change peers")
			}
		})
	}
}

// A14: it is done once there is space again.
func TestAChangeThatTheDiskHoldsLateIsDone(t *testing.T) {
	s, _ := newDurableLeader(t)
	change := s.changeUntilFull()
	s.pass(2 * time.Second)
	s.fs.SetCapacity(-1)
	s.end()
	assert.NoError(t, change.err)
}

// A4: a leader with a durable state machine whose disk hangs has handed over. Proposals that come to it are refused, although what it has
// committed is not applied, nor the end of its leadership told.
func TestProposalsAtAHungDiskAreRefused(t *testing.T) {
	s, _ := newDurableLeader(t)
	s.pass(2 * time.Second)
	s.hangDisk(time.Hour)
	committed := s.apply("committed by the others")
	s.until(func() bool { return !s.node.IsLeader() }, "it does not hand over")
	s.pass(time.Second)
	assert.Zero(t, committed.times, "the disk does not hold it")
	refused := s.apply("refused")
	s.pass(time.Second)
	assert.Equal(t, 1, refused.times)
	assert.ErrorIs(t, refused.err, ErrNotLeader)
	assert.NotContains(t, s.fsm.seen(), "stop: timed out")
	s.hangDisk(0)
	s.pass(2 * time.Hour)
	assert.NoError(t, committed.err)
	assert.Contains(t, s.fsm.seen(), "stop: timed out")
	s.end()
}

// D10: what waits for space on a full disk does not keep the log from being cut, which makes space.
func TestAFullDisksLogIsCut(t *testing.T) {
	s, m := newDurableLeader(t)
	entry := s.apply("entry")
	s.until(func() bool { return entry.times > 0 }, "it is not applied")
	change := s.changeUntilFull()
	s.pass(2 * time.Second)
	require.Zero(t, change.times)
	first, _ := s.node.lm.bounds()
	require.LessOrEqual(t, first, m.index)
	s.node.o.SnapshotMargin = 0
	s.fs.SetCapacity(s.fs.Used() + 4<<10) // enough for the mark
	snap := s.node.snap
	snap.a.Post(snap.relieve)
	s.pass(100 * time.Millisecond)
	require.Zero(t, change.times)
	cut, _ := s.node.lm.bounds()
	assert.Greater(t, cut, first)
	s.fs.SetCapacity(-1)
	s.end()
	assert.NoError(t, change.err)
}
