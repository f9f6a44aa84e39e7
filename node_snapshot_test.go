package graft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
)

// snapshotGroup is a group whose state machines have snapshots, which are saved when a test says so, and whose log is cut as
// far as can be.
func snapshotGroup(t testing.TB, members, hosts int, opts NodeOptions) *cluster {
	opts.SnapshotInterval = orDefault(opts.SnapshotInterval, -1)
	opts.SnapshotBytes = orDefault(opts.SnapshotBytes, -1)
	opts.SnapshotMargin = orDefault(opts.SnapshotMargin, -1)
	c := newGroup(t, members, hosts, opts)
	c.prepare = func(_ int, r *recorder) { r.snapshots = true }
	return c
}

// save saves a snapshot on a host.
func (c *cluster) save(i int) error {
	return c.begin(i, "save a snapshot", func(n *Node, done Closure) { n.Snapshot(done) }).wait()
}

// proposeMany proposes what begins with prefix.
func (c *cluster) proposeMany(prefix string, count int) {
	for i := range count {
		c.propose(fmt.Sprint(prefix, i))
	}
}

// snapshotDir is where a host's snapshots are.
func (c *cluster) snapshotDir(i int) string { return c.hosts[i].snapshotDir("g", 0) }

// snapshotFile is a file of a host's newest snapshot.
func (c *cluster) snapshotFile(i int, name string) string {
	return filepath.Join(c.snapshotDir(i), fmt.Sprintf("snapshot_%020d", c.nodes[i].Status().Snapshot.Index), name)
}

// damage flips a bit in a file of a disk.
func damage(t *testing.T, fs vfs.FS, path string) {
	t.Helper()
	f, err := fs.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, 1)
	require.NoError(t, err)
	b[0] ^= 4
	_, err = f.WriteAt(b, 1)
	require.NoError(t, errors.Join(err, f.Close()))
}

// restartErr starts a host's node again, which is to fail.
func (c *cluster) restartErr(i int) error {
	c.t.Helper()
	_, err := c.hosts[i].StartNode("g", c.nodes[i].o)
	require.Error(c.t, err)
	return err
}

// A snapshot takes the place of the entries it includes, and a restart begins with it: nothing of it is applied again,
// nothing is missing. That it can be done again without a new entry is S23.
func TestASnapshotTakesThePlaceOfTheLog(t *testing.T) {
	c := snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.proposeMany("a", 20)
	c.saveAndCut(0)
	s := c.nodes[0].Status()
	assert.Equal(t, s.AppliedIndex, s.Snapshot.Index)
	assert.Equal(t, s.Snapshot.Index+1, s.FirstIndex, "the log is cut")
	assert.Equal(t, s.Term, s.Snapshot.Term)
	assert.Positive(t, s.Snapshot.Bytes)
	require.NoError(t, c.save(0), "nothing new: nothing to do")
	assert.Equal(t, 1, c.fsms[0].saves)
	c.proposeMany("b", 3)
	want := c.sameData(0, 1, 2)
	for round := range 2 { // S22: the second time there is nothing in the log but what the snapshot includes
		for i := range 3 {
			c.stop(i)
		}
		c.start(0)
		if s := c.nodes[0].Status(); round == 1 {
			term, last := c.nodes[0].lm.tail()
			assert.Equal(t, []int64{s.Snapshot.Term, s.Snapshot.Index}, []int64{term, last}, "where the log ends")
			assert.Equal(t, last+1, s.FirstIndex)
		}
		c.start(1)
		c.start(2)
		c.hurry(0)
		c.ready()
		for i := range 3 {
			c.read(i) // all that is committed is applied
		}
		assert.Equal(t, want, c.sameData(0, 1, 2))
		assert.Equal(t, []int64{c.nodes[0].Status().Snapshot.Index}, c.fsms[0].loaded())
		assert.Empty(t, c.fsms[1].loaded(), "it has not saved any")
		assert.Equal(t, "0,1,2", c.name(c.nodes[0].Status().Conf))
		c.ready()
		c.status(0, func(s Status) bool { return s.AppliedIndex == s.LastIndex }, "not all is applied")
		c.saveAndCut(0)
	}
	c.propose("c")
	assert.Equal(t, append(want, "c"), c.sameData(0, 1, 2))
}

// What is proposed while a snapshot is being written is applied at once, and is not in it.
func TestApplyGoesOnWhileASnapshotIsSaved(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	held := newHoldup(t)
	c.startLed()
	c.fsms[0].onSave = func(write func() error) error {
		held.pass()
		return write()
	}
	c.propose("before")
	saved := c.begin(0, "save", func(n *Node, done Closure) { n.Snapshot(done) })
	held.reached()
	c.propose("meanwhile")
	assert.Equal(t, SnapshotSaving, c.nodes[0].Status().Snapshot.State)
	assert.ErrorIs(t, c.save(0), ErrBusy, "one at a time")
	assert.True(t, saved.open())
	held.release()
	require.NoError(t, saved.wait())
	s := c.nodes[0].Status()
	assert.Equal(t, s.AppliedIndex-1, s.Snapshot.Index, "as of the moment it was asked for")
	assert.Equal(t, SnapshotIdle, s.Snapshot.State)
	c.stop(0)
	c.start(0)
	c.ready()
	assert.Equal(t, []string{"before", "meanwhile"}, c.sameData(0))
}

// Whatever goes wrong, there is no snapshot, the log is whole, and the node works on.
func TestASnapshotThatCannotBeSavedChangesNothing(t *testing.T) {
	for _, test := range []struct {
		name   string
		break_ func(c *cluster)
		want   Code
	}{
		{"the state machine fails", func(c *cluster) {
			c.fsms[0].onSave = func(func() error) error { return errors.New("no paper") }
		}, ErrStateMachine},
		{"the state machine has none", func(c *cluster) { c.fsms[0].snapshots = false }, ErrNotSupported},
		{"no space for the manifest", func(c *cluster) { // S2, braft 461
			c.disks[0].SetInjector(func(op vfs.Op) error {
				if strings.HasSuffix(op.Name, metaFile+".tmp") {
					return syscall.ENOSPC
				}
				return nil
			})
		}, ErrNoSpace},
		{"the manifest cannot be synced", func(c *cluster) {
			c.disks[0].SetInjector(func(op vfs.Op) error {
				if strings.HasSuffix(op.Name, metaFile+".tmp") && op.Kind == vfs.KindSync {
					return syscall.EIO
				}
				return nil
			})
		}, ErrIO},
		{"it reads other than it was written", func(c *cluster) {
			c.disks[0].SetInjector(func(op vfs.Op) error {
				if strings.Contains(op.Name, "snapshot_") && op.Kind == vfs.KindRead {
					return syscall.EIO
				}
				return nil
			})
		}, ErrIO},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := snapshotGroup(t, 1, 1, NodeOptions{})
			c.startLed()
			c.proposeMany("a", 5)
			test.break_(c)
			err := c.save(0)
			require.Error(t, err)
			assert.ErrorIs(t, err, test.want)
			s := c.nodes[0].Status()
			assert.EqualValues(t, 1, s.FirstIndex, "the log is as it was")
			assert.Zero(t, s.Snapshot.Index)
			assert.Equal(t, SnapshotIdle, s.Snapshot.State)
			assert.ErrorIs(t, s.Snapshot.Err, test.want)
			c.propose("still there")
			c.disks[0].SetInjector(nil)
			c.fsms[0].onSave, c.fsms[0].snapshots, c.fsms[0].filler = nil, true, 0
			require.NoError(t, c.save(0), "it can be done once what was wrong is not")
			assert.NoError(t, c.nodes[0].Status().Snapshot.Err)
			want := c.sameData(0)
			c.stop(0)
			c.start(0)
			c.ready()
			assert.Equal(t, want, c.sameData(0))
		})
	}
}

// A state machine that panics in OnSnapshotSave stops its node, and whoever asked hears of it.
func TestAPanicInOnSnapshotSaveStopsTheNode(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.propose("a")
	fsm := &panicking{recorder: c.fsms[0]}
	c.nodes[0].fsm.postFree(func() { c.nodes[0].fsm.fsm = fsm })
	assert.ErrorIs(t, c.save(0), ErrStateMachine)
	c.status(0, func(s Status) bool { return s.Role == RoleFailed }, "it works on")
	assert.ErrorIs(t, c.save(0), ErrNodeFailed)
}

type panicking struct{ *recorder }

func (panicking) OnSnapshotSave(*SnapshotWriter, Closure) { panic("no snapshot today") }

// A node that ends while its state machine writes does not wait for it, answers, and leaves nothing.
func TestShutdownEndsASnapshotBeingSaved(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.propose("a")
	held, ended := newHoldup(t), make(chan error, 1)
	c.fsms[0].onSave = func(write func() error) error {
		held.pass()
		err := write()
		ended <- err
		return err
	}
	saved := c.begin(0, "save", func(n *Node, done Closure) { n.Snapshot(done) })
	held.reached()
	dir := c.snapshotDir(0)
	c.stop(0)
	assert.ErrorIs(t, saved.wait(), ErrShutdown)
	held.release()
	assert.Error(t, receive(t, ended), "there is nothing to write to any more")
	names, err := c.disks[0].ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, names)
	c.start(0)
	c.ready()
	assert.Equal(t, []string{"a"}, c.sameData(0))
}

// fileSaver saves a big file that it has written itself.
type fileSaver struct {
	*recorder
	fs   vfs.FS
	size int64
}

func (f *fileSaver) OnSnapshotSave(w *SnapshotWriter, done Closure) {
	write := func() error {
		big, err := f.fs.OpenFile(filepath.Join(w.Path(), "big"), os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return errors.Join(big.Truncate(f.size), big.Close(), w.AddFile("big", nil))
	}
	done(write())
}

// A node that ends does not wait until a file that the state machine has written itself is hashed.
func TestShutdownEndsTheHashingOfAFile(t *testing.T) {
	const size = 20 << 20
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.machine = func(i int, r *recorder) StateMachine { return &fileSaver{r, c.disks[i], size} }
	c.startLed()
	c.propose("a")
	held := newHoldup(t)
	var reads atomic.Int32
	c.disks[0].SetInjector(func(op vfs.Op) error {
		if strings.Contains(op.Name, "/temp_") && strings.HasSuffix(op.Name, "/big") && op.Kind == vfs.KindRead {
			reads.Add(1)
			held.pass()
		}
		return nil
	})
	saved := c.begin(0, "save", func(n *Node, done Closure) { n.Snapshot(done) })
	held.reached()
	n, dir, closed := c.nodes[0], c.snapshotDir(0), make(chan struct{})
	go func() {
		c.stop(0)
		close(closed)
	}()
	c.eventually(n.snap.stopping.Load, "it does not end")
	held.release()
	receive(t, closed)
	assert.ErrorIs(t, saved.wait(), ErrShutdown)
	assert.EqualValues(t, 1, reads.Load(), "pieces of it that were read")
	names, err := c.disks[0].ReadDir(dir)
	require.NoError(t, err)
	assert.Empty(t, names)
}

// Snapshots are saved by the number of entries, by their size, and by time; one at a time, and none without need.
func TestSnapshotsAreSavedUnasked(t *testing.T) {
	for _, test := range []struct {
		name string
		o    NodeOptions
	}{
		{"by entries", NodeOptions{SnapshotEntries: 10}},
		{"by bytes", NodeOptions{SnapshotBytes: 1000}},
		{"by time", NodeOptions{SnapshotInterval: 100 * time.Millisecond}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := snapshotGroup(t, 1, 1, test.o)
			c.startLed()
			for round := range 3 {
				before := c.nodes[0].Status().Snapshot.Index
				for i := range 12 {
					c.propose(fmt.Sprintf("%d %d %0100d", round, i, 0))
				}
				c.status(0, func(s Status) bool { return s.Snapshot.Index > before }, "no snapshot")
			}
			if test.o.SnapshotInterval > 0 {
				last := c.status(0, func(s Status) bool { return s.Snapshot.Index == s.AppliedIndex }, "not all is in a snapshot")
				saves := c.fsms[0].saves
				c.never(300*time.Millisecond, func() bool { return c.nodes[0].Status().Snapshot.Index != last.Snapshot.Index }, "another one for nothing")
				assert.Equal(t, saves, c.fsms[0].saves)
			}
			c.stop(0)
			c.start(0)
			c.ready()
			assert.Len(t, c.sameData(0), 36)
		})
	}
}

// A state machine without snapshots is asked once.
func TestWithoutSnapshotsNobodyIsAskedAgain(t *testing.T) {
	c := newGroup(t, 1, 1, NodeOptions{SnapshotEntries: 2})
	c.startLed()
	c.proposeMany("a", 10)
	c.eventually(c.nodes[0].snap.off.Load, "it is not known to have none")
	assert.EqualValues(t, 1, c.nodes[0].Status().FirstIndex)
}

// leftSnapshot puts a snapshot of what a host has applied where a stopped node finds it, as one that died between making it and
// cutting its log has left it.
func (c *cluster) leftSnapshot(i int, base logBase, group uint64) {
	c.t.Helper()
	c.leftSnapshotOf(i, i, base, group)
}

// leftSnapshotOf does the same with what another host has applied, as an install leaves it that was not loaded any more.
func (c *cluster) leftSnapshotOf(i, of int, base logBase, group uint64) {
	c.t.Helper()
	store, err := snapdir.Open(c.disks[i], c.snapshotDir(i), snapdir.Options{})
	require.NoError(c.t, err)
	w, err := store.NewWriter()
	require.NoError(c.t, err)
	f, err := w.Create("entries")
	require.NoError(c.t, err)
	require.NoError(c.t, errors.Join(json.NewEncoder(f).Encode(c.fsms[of].applied()), f.Close()))
	r, err := w.Commit(base.message(), group)
	require.NoError(c.t, err)
	require.NoError(c.t, r.Close())
}

// A node that died when its snapshot was saved, and its log not cut yet, cuts it when it is back.
func TestTheLogIsCutAtStart(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.proposeMany("a", 10)
	n := c.nodes[0]
	base, group := n.fsm.position(), n.groupIDNow.Load()
	require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
	c.leftSnapshot(0, base, group)
	c.stop(0)
	c.start(0)
	c.ready()
	s := c.nodes[0].Status()
	assert.Equal(t, base.index+1, s.FirstIndex)
	assert.Equal(t, []int64{base.index}, c.fsms[0].loaded())
	c.propose("b")
	c.stop(0)
	c.start(0)
	c.ready()
	assert.Equal(t, base.index+1, c.nodes[0].Status().FirstIndex, "durably")
	assert.Len(t, c.sameData(0), 11)
}

// So does one with a durable state machine that died when it had noted how far that goes.
func TestADurableStateMachinesLogIsCutAtStart(t *testing.T) {
	for _, saved := range []bool{false, true} {
		g := newDurableGroup(t, 1, 1, NodeOptions{})
		g.startLed()
		g.proposeMany("a", 10)
		marked := g.nodes[0].fsm.position()
		g.proposeMany("b", 5)
		n := g.nodes[0]
		base, group := n.fsm.position(), n.groupIDNow.Load()
		g.stopNode(0)
		if saved { // it goes on from a snapshot, and knows no less how far its log may be cut
			g.leftSnapshot(0, base, group)
		}
		store, err := snapdir.Open(g.disks[0], g.snapshotDir(0), snapdir.Options{})
		require.NoError(t, err)
		require.NoError(t, store.SetMark(marked.message(), group))
		g.stop(0)
		g.start(0)
		g.ready()
		assert.Equal(t, marked.index+1, g.nodes[0].Status().FirstIndex, "saved: %v", saved)
		assert.Len(t, g.sameData(0), 15)
	}
}

// A restart says how long it took to apply what the log held, once.
func TestARestartSaysHowLongTheLogTakes(t *testing.T) {
	c := compacted(t, 1, 0, NodeOptions{})
	index := c.nodes[0].Status().Snapshot.Index
	c.proposeMany("b", 5)
	c.stop(0)
	c.start(0)
	c.ready()
	c.sameData(0)
	p := &c.nodes[0].snap.replay
	c.eventually(func() bool { return p.upto.Load() == 0 }, "it is not over")
	assert.Equal(t, index, p.behind)

	core, logs := observer.New(zap.InfoLevel)
	n := &Node{log: zap.New(core), host: c.hosts[0]}
	var q replay
	q.begin(20, 20, time.Now())
	q.onApplied(20, n)
	assert.Zero(t, logs.Len(), "the log held nothing")
	q.begin(10, 20, time.Now())
	q.onApplied(19, n)
	assert.Zero(t, logs.Len())
	q.onApplied(25, n)
	q.onApplied(26, n)
	if assert.Equal(t, 1, logs.Len()) {
		said := logs.All()[0].ContextMap()
		assert.EqualValues(t, 10, said["entries"])
		assert.Contains(t, said, "took")
	}
}

// What the state machine is given while a snapshot is being saved, and calls for the next one, is not forgotten when that is
// done, though nothing more comes.
func TestASnapshotThatIsDueWhileAnotherIsSaved(t *testing.T) {
	for _, o := range []NodeOptions{{SnapshotEntries: 10}, {SnapshotBytes: 1000}} {
		c := snapshotGroup(t, 1, 1, o)
		c.startLed()
		held := newHoldup(t)
		c.fsms[0].onSave = func(write func() error) error {
			held.pass()
			return write()
		}
		long := fmt.Sprintf("%0100d ", 0)
		c.proposeMany("a"+long, 10)
		held.reached()
		c.proposeMany("b"+long, 12)
		held.release()
		last := c.nodes[0].Status().AppliedIndex
		c.status(0, func(s Status) bool { return s.Snapshot.Index == last && s.Snapshot.State == SnapshotIdle }, "the next one is missed")
		c.never(50*time.Millisecond, func() bool { return c.nodes[0].Status().Snapshot.State != SnapshotIdle }, "another one for nothing")
	}
}

// A damaged snapshot is never loaded. An older one is, if the log reaches back to it; else the node does not start, says why
// and what helps, and the host lives.
func TestADamagedSnapshotIsNotLoaded(t *testing.T) {
	for _, file := range []string{"entries", metaFile} {
		t.Run(file, func(t *testing.T) {
			for _, keep := range []int{1, 2} {
				c := snapshotGroup(t, 1, 1, NodeOptions{SnapshotKeep: keep})
				c.startLed()
				c.proposeMany("a", 5)
				require.NoError(t, c.save(0))
				first := c.nodes[0].Status().Snapshot.Index
				c.proposeMany("b", 5)
				require.NoError(t, c.save(0))
				c.proposeMany("c", 5)
				want := c.sameData(0)
				damaged := c.snapshotFile(0, file)
				if keep == 2 {
					assert.Equal(t, first+1, c.nodes[0].Status().FirstIndex, "the log goes back to the oldest that is kept")
					c.stop(0)
					damage(t, c.disks[0], damaged)
					c.start(0)
					c.ready()
					assert.Equal(t, want, c.sameData(0))
					assert.Equal(t, []int64{first}, c.fsms[0].loaded())
					s := c.nodes[0].Status()
					assert.ErrorIs(t, s.Snapshot.Err, ErrCorrupt)
					assert.ErrorContains(t, s.Snapshot.Err, file)
					c.propose("d")
					require.NoError(t, c.save(0))
					assert.NoError(t, c.nodes[0].Status().Snapshot.Err)
					continue
				}
				require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
				damage(t, c.disks[0], damaged)
				err := c.restartErr(0)
				assert.ErrorIs(t, err, ErrCorrupt)
				for _, part := range []string{file, "damaged", "bring back", "add it again", c.snapshotDir(0)} {
					assert.ErrorContains(t, err, part)
				}
				damage(t, c.disks[0], damaged) // which brings the bit back
				n, err := c.hosts[0].StartNode("g", c.nodes[0].o)
				require.NoError(t, err, "nothing was harmed")
				c.nodes[0] = n
			}
		})
	}
}

// D11, S19: a log that begins behind the only snapshot, or without any, is a gap.
func TestALogThatNoSnapshotReachesIsRefused(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.proposeMany("a", 5)
	require.NoError(t, c.save(0))
	dir := c.snapshotDir(0)
	require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
	require.NoError(t, c.disks[0].Rename(dir, dir+"-away"))
	err := c.restartErr(0)
	assert.ErrorIs(t, err, ErrCorrupt)
	assert.ErrorContains(t, err, "there is none")
	require.NoError(t, c.disks[0].Rename(dir+"-away", dir))
	n, err := c.hosts[0].StartNode("g", c.nodes[0].o)
	require.NoError(t, err)
	c.nodes[0] = n
	c.ready()
}

// S11, S15: a snapshot that contradicts what is committed in the log, or is another group's, is not this replica's.
func TestASnapshotThatContradictsTheLogIsRefused(t *testing.T) {
	for _, test := range []struct {
		name string
		term int64 // added to that of the entry
		id   uint64
		want Code
	}{
		{"another term", 5, 0, ErrCorrupt},
		{"another group", 0, 77, ErrGroupMismatch},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := snapshotGroup(t, 1, 1, NodeOptions{SnapshotMargin: 1000})
			c.startLed()
			c.proposeMany("a", 5)
			c.handTo(0)
			base := logBase{index: 4, term: c.nodes[0].lm.term(4) + test.term, conf: c.nodes[0].lm.conf()}
			id := c.nodes[0].groupIDNow.Load() + test.id
			c.stop(0)
			c.start(0) // which stores the commit index with its first entry
			c.propose("b")
			c.propose("c")
			require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
			c.leftSnapshot(0, base, id)
			assert.ErrorIs(t, c.restartErr(0), test.want)
		})
	}
}

// startSlowly has a host start a node that loads its snapshot until release is called. What comes of it comes through started.
func startSlowly(t *testing.T) (c *cluster, fsm *recorder, release func(), started chan error) {
	c = snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.propose("a")
	require.NoError(t, c.save(0))
	require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
	held := newHoldup(t)
	fsm = &recorder{snapshots: true, onLoad: held.load}
	o := c.nodes[0].o
	o.StateMachine = fsm
	started = make(chan error, 1)
	go func() {
		_, err := c.hosts[0].StartNode("g", o)
		started <- err
	}()
	held.reached()
	return c, fsm, held.release, started
}

// The host answers for its other groups while a snapshot is loaded, and the same replica is not started twice.
func TestLoadingASnapshotHoldsNobodyUp(t *testing.T) {
	c, _, release, started := startSlowly(t)
	assert.ErrorIs(t, c.restartErr(0), ErrBusy)
	o := c.opts
	o.StateMachine, o.InitialConf = &recorder{}, c.conf
	other, err := c.hosts[0].StartNode("another", o)
	require.NoError(t, err)
	assert.Same(t, other, c.hosts[0].Node("another"))
	assert.Nil(t, c.hosts[0].Node("g"), "not before it is whole")
	release()
	require.NoError(t, receive(t, started))
	c.nodes[0] = c.hosts[0].Node("g")
	c.ready()
}

// A host that is closed while a snapshot is loaded waits for that, and ends the replica in good order.
func TestCloseWhileASnapshotIsLoaded(t *testing.T) {
	c, fsm, release, started := startSlowly(t)
	var closed atomic.Bool
	done := make(chan struct{})
	go func() {
		c.stop(0)
		closed.Store(true)
		close(done)
	}()
	c.never(50*time.Millisecond, closed.Load, "closed while it is loaded")
	release()
	require.NoError(t, receive(t, started))
	receive(t, done)
	assert.True(t, fsm.shut, "OnShutdown is the last call, as ever")
}

// A state machine that cannot load its snapshot does not start, whether it says so or panics.
func TestAStateMachineThatCannotLoadDoesNotStart(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.propose("a")
	require.NoError(t, c.save(0))
	require.NoError(t, c.hosts[0].StopNode(context.Background(), "g"))
	c.fsms[0].onLoad = func(*SnapshotReader) error { return errors.New("not my kind") }
	err := c.restartErr(0)
	assert.ErrorIs(t, err, ErrStateMachine)
	assert.ErrorContains(t, err, "not my kind")
	c.fsms[0].onLoad = func(*SnapshotReader) error { panic("at the sight of it") }
	err = c.restartErr(0)
	assert.ErrorIs(t, err, ErrStateMachine)
	assert.ErrorContains(t, err, "at the sight of it")
	c.fsms[0].onLoad = nil
	n, err := c.hosts[0].StartNode("g", c.nodes[0].o)
	require.NoError(t, err)
	c.nodes[0] = n
	c.ready()
}

// Groups whose names look alike to a file system, or are long, have directories of their own.
func TestEachReplicaHasItsOwnDirectory(t *testing.T) {
	h := &Host{snapshots: "/s"}
	seen := make(map[string]string)
	long := strings.Repeat("x", 1000)
	for _, group := range []string{"g", "G", "g/1", "g.1", "..", ".", "%47", "\x00", "ü", long, long + "y", strings.Repeat("/", 1000)} {
		for index := range 2 {
			dir := h.snapshotDir(group, index)
			key := fmt.Sprint(group, " ", index)
			assert.Equal(t, "/s", filepath.Dir(dir))
			assert.LessOrEqual(t, len(filepath.Base(dir)), 200)
			assert.Empty(t, seen[strings.ToLower(dir)], key)
			seen[strings.ToLower(dir)] = key
		}
	}
}
