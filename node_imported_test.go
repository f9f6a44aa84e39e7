package graft

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/raftpb"
)

// chain is a recorder that is told of every index, one after the other: by entries, configurations and snapshots. That holds as long as
// no configuration is joint.
type chain struct {
	*recorder
	mu    sync.Mutex
	first int64 // what it began with
	last  int64
	gaps  []string
}

// tell takes note of an index. A snapshot may be of any that comes later.
func (m *chain) tell(what string, index int64, jump bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.last == 0 {
		m.first = index
	}
	if index != m.last+1 && !(jump && index > m.last) {
		m.gaps = append(m.gaps, fmt.Sprintf("%s %d after %d", what, index, m.last))
	}
	m.last = index
}

func (m *chain) OnApply(it *Iterator) {
	for it.Next() {
		m.tell("entry", it.Index(), false)
		m.recorder.mu.Lock()
		m.entries = append(m.entries, string(it.Data()))
		m.recorder.mu.Unlock()
	}
}

// OnConfigurationCommitted is also told what was in force when a snapshot was saved.
func (m *chain) OnConfigurationCommitted(conf Configuration, index int64) {
	m.mu.Lock()
	known := index <= m.last
	m.mu.Unlock()
	if !known {
		m.tell("configuration", index, false)
	}
	m.recorder.OnConfigurationCommitted(conf, index)
}

func (m *chain) OnSnapshotLoad(s *SnapshotReader) error {
	m.tell("snapshot", s.Index(), true)
	return m.recorder.OnSnapshotLoad(s)
}

// whole returns the index that the machine began with, and holds that it was told of each one from there to last.
func (m *chain) whole(t testing.TB, last int64) (first int64) {
	t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	assert.Empty(t, m.gaps)
	assert.Equal(t, last, m.last)
	return m.first
}

// bequest is a backup of a group that is gone.
type bequest struct {
	fs    *vfs.Mem
	index int64
	term  int64
	words []string
}

// backUp makes one.
func backUp(t *testing.T) bequest {
	c := compacted(t, 1, 300<<10, NodeOptions{})
	store, err := snapdir.Open(c.disks[0], c.snapshotDir(0), snapdir.Options{})
	require.NoError(t, err)
	r, err := store.Latest()
	require.NoError(t, err)
	require.NoError(t, errors.Join(snapdir.Export(r, c.disks[0], "/backup", snapdir.Watch{}), r.Close()))
	b := bequest{fs: c.disks[0], index: r.Index(), term: c.nodes[0].Status().Snapshot.Term, words: c.fsms[0].applied()}
	c.stop(0)
	return b
}

// heirs is a cluster whose first hosts are the voters of a new group that begins with a backup.
type heirs struct {
	*cluster
	bequest
	chains []*chain
}

func newHeirs(t *testing.T, b bequest, members, hosts int, o NodeOptions) *heirs {
	h := &heirs{cluster: snapshotGroup(t, members, hosts, o), bequest: b, chains: make([]*chain, hosts)}
	h.machine = func(i int, r *recorder) StateMachine {
		h.chains[i] = &chain{recorder: r}
		return h.chains[i]
	}
	for i := range members {
		h.inherit(i, b.index+1)
	}
	return h
}

// inherit makes a host's directory, as graftctl snapshot import does. Its log begins at first.
func (h *heirs) inherit(i int, first int64) {
	h.t.Helper()
	const group = 77 // by which the new group is another one than that of the backup
	fs := h.disks[i]
	require.NoError(h.t, vfs.MakeDir(fs, "/data/snapshots"))
	store, err := snapdir.Open(fs, filepath.Join("/data/snapshots", snapdir.DirName("g", 0)), snapdir.Options{})
	require.NoError(h.t, err)
	meta := &raftpb.SnapshotMeta{LastIncludedIndex: &h.index, LastIncludedTerm: &h.term, Peers: h.conf.strings()}
	r, err := store.Import(h.bequest.fs, "/backup", meta, group, snapdir.Watch{})
	require.NoError(h.t, err)
	require.NoError(h.t, r.Close())
	exec := actor.NewGoroutines()
	defer exec.Close()
	log, err := wal.Open(wal.Options{FS: fs, Dir: "/data/log", Exec: exec, Identity: h.addrs[i], SegmentSize: 256 << 10})
	require.NoError(h.t, err)
	g, err := log.Group(wal.ReplicaName("g", 0))
	require.NoError(h.t, err)
	done := make(chan error, 2)
	g.SaveHardState(wal.HardState{Term: h.term, GroupID: group}, 0, func(err error) { done <- err })
	g.TruncatePrefix(first, h.term, func(err error) { done <- err })
	require.NoError(h.t, errors.Join(receive(h.t, done), receive(h.t, done), log.Close()))
}

// begin starts all hosts, of which those that are no members have nothing.
func (h *heirs) begin() {
	for i := range h.hosts {
		h.startWith(i, Configuration{}) // what an imported one is given does not count
	}
	h.hurry(0)
	h.ready()
}

// whole holds that the hosts have what was left to them and then all that was added, without a gap, and returns where they began.
func (h *heirs) whole(added []string, hosts ...int) (first []int64) {
	h.t.Helper()
	want := slices.Concat(h.words, added)
	assert.Equal(h.t, want, h.sameData(hosts...))
	last := h.nodes[h.ready()].Status().LastIndex
	for _, i := range hosts {
		h.status(i, func(s Status) bool { return s.AppliedIndex == last }, "it has not applied all")
		first = append(first, h.chains[i].whole(h.t, last))
	}
	return first
}

// S20: a group that begins with an imported snapshot goes on right behind it. So do those who join it later, and all after restarts,
// whatever the log holds by then.
func TestAGroupGoesOnBehindAnImportedSnapshot(t *testing.T) {
	b := backUp(t)
	for founders := 1; founders <= 3; founders++ {
		t.Run(fmt.Sprint(founders), func(t *testing.T) {
			h := newHeirs(t, b, founders, 3, NodeOptions{ElectionTimeout: patient})
			h.begin()
			s := h.nodes[h.ready()].Status()
			assert.Equal(t, b.index+1, s.FirstIndex)
			assert.Equal(t, b.index, s.Snapshot.Index)
			assert.Greater(t, s.Term, b.term, "no term of the group that is gone is used again")
			h.propose("one")
			for i := founders; i < 3; i++ {
				h.handTo(0)
				require.NoError(t, h.add(0, i).wait())
				assert.Equal(t, []int64{b.index}, h.fsms[i].loaded())
				assert.Equal(t, b.index+1, h.nodes[i].Status().FirstIndex)
			}
			assert.Equal(t, []int64{b.index, b.index, b.index}, h.whole([]string{"one"}, 0, 1, 2))
			for range 2 { // the second time nothing has been proposed
				for i := range 3 {
					h.stop(i)
				}
				h.begin()
				assert.Equal(t, []int64{b.index, b.index, b.index}, h.whole([]string{"one"}, 0, 1, 2))
			}
			h.handTo(0)
			h.propose("two")
			h.saveAndCut(0)
			h.propose("three")
			require.NoError(t, h.remove(0, 2).wait())
			h.wipe(2)
			h.startWith(2, Configuration{})
			require.NoError(t, h.add(0, 2).wait())
			first := h.whole([]string{"one", "two", "three"}, 0, 1, 2)
			assert.Greater(t, first[2], b.index, "it gets a later one")
		})
	}
}

// S20: a replica that is stopped before there is anything behind its snapshot begins with that again, alone and as one of several.
func TestAnImportedReplicaThatIsStoppedAtOnce(t *testing.T) {
	b := backUp(t)
	h := newHeirs(t, b, 3, 3, NodeOptions{})
	for range 3 {
		h.startWith(0, Configuration{}) // it leads nobody
		s := h.status(0, func(s Status) bool { return s.AppliedIndex == b.index }, "the snapshot is not there")
		assert.Equal(t, []int64{b.index + 1, b.index, b.index}, []int64{s.FirstIndex, s.LastIndex, s.CommitIndex})
		assert.GreaterOrEqual(t, s.Term, b.term)
		assert.False(t, s.Waiting, "it has not lost a disk")
		h.stop(0)
	}
	h.begin()
	h.propose("one")
	h.whole([]string{"one"}, 0, 1, 2)
}

// S20: whenever a power cut hits a replica that begins with an imported snapshot, it goes on right behind that, with all that was
// acknowledged.
func TestPowerCutsBehindAnImportedSnapshot(t *testing.T) {
	b := backUp(t)
	for cut := int64(1); cut < 40; cut += 3 {
		h := newHeirs(t, b, 1, 1, NodeOptions{ElectionTimeout: 100 * ms})
		h.startWith(0, Configuration{})
		disk := h.disks[0]
		end := disk.Ops() + cut
		disk.OnOp(func(op vfs.Op) {
			if op.N >= end {
				disk.Kill()
			}
		})
		want := slices.Clone(b.words)
		h.eventually(func() bool {
			data := fmt.Sprint("n", len(want))
			_, err := h.nodes[0].Propose(t.Context(), []byte(data))
			if err == nil {
				want = append(want, data)
			}
			return err != nil && ErrorCode(err) != ErrNotLeader // which it may not be yet
		}, "the power is not cut")
		h.stop(0)
		h.disks[0] = disk.CrashClone(nil)
		h.startWith(0, Configuration{})
		h.propose("more")
		got := h.sameData(0)
		require.Greater(t, len(got), len(want), "cut %d", cut)
		assert.Equal(t, want, got[:len(want)], "cut %d", cut)
		h.chains[0].whole(t, h.nodes[0].Status().LastIndex)
		h.stop(0)
	}
}

// S20: a log that does not begin right behind the snapshot lacks something. It is not begun with, however little that is.
func TestAnImportedSnapshotWithAGapIsRefused(t *testing.T) {
	b := backUp(t)
	for _, missing := range []int64{1, 5} {
		h := newHeirs(t, b, 0, 1, NodeOptions{})
		h.conf = h.voters(0)
		h.inherit(0, b.index+1+missing)
		exec := actor.NewGoroutines()
		host, err := NewHost(HostOptions{
			Address: h.addrs[0], Dir: "/data", SegmentSize: 256 << 10, Env: &env.Env{Exec: exec, FS: h.disks[0], Rand: env.Default().Rand, Close: exec.Close},
		})
		require.NoError(t, err)
		_, err = host.StartNode("g", NodeOptions{StateMachine: &recorder{snapshots: true}})
		assert.ErrorIs(t, err, ErrCorrupt, "%d missing", missing)
		assert.ErrorContains(t, err, fmt.Sprintf("the log begins at %d", b.index+1+missing))
		assert.NoError(t, host.Close())
	}
}
