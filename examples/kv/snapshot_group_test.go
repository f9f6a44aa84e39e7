package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

// newSnapshotGroup is newTestGroup with snapshots on demand only, and a log that is cut right behind them.
func newSnapshotGroup(t *testing.T, n, running int) *testGroup {
	g := newTestGroup(t, n, 0)
	for i := range g.cfgs {
		g.cfgs[i].snapshots = snapshotConfig{interval: -1, entries: -1, bytes: -1, margin: -1}
	}
	for i := range running {
		g.start(i)
	}
	return g
}

// bgsave saves a snapshot of a replica, and waits until its log begins behind that.
func (g *testGroup) bgsave(i int) graft.SnapshotStatus {
	g.t.Helper()
	c, status := dialRaw(g.t, g.cfgs[i].redis), g.replicas[i].node.Status
	waitFor(g.t, "what is applied is on its own disk", func() bool { // what is not is not cut
		st := status()
		return st.DurableIndex >= st.AppliedIndex
	})
	was := status().Snapshot.Index
	require.Equal(g.t, "+Background saving started", c.do("bgsave"))
	waitFor(g.t, "a snapshot", func() bool {
		st := status()
		return st.Snapshot.Index > was && st.Snapshot.State == graft.SnapshotIdle && st.FirstIndex > st.Snapshot.Index
	})
	return status().Snapshot
}

// bgsaveAll saves a snapshot of every running replica, so that there is one whoever leads next, and returns their indexes.
func (g *testGroup) bgsaveAll() (indexes []int64) {
	g.t.Helper()
	g.sameDigest()
	for i, r := range g.replicas {
		if r != nil {
			indexes = append(indexes, g.bgsave(i).Index)
		}
	}
	return indexes
}

// sameDigest waits until the running replicas have applied what the leader has, and demands equal digests.
func (g *testGroup) sameDigest() {
	g.t.Helper()
	_ = g.waitLeader()
	waitFor(g.t, "equal digests", func() bool {
		var first string
		for _, r := range g.replicas {
			if r == nil {
				continue
			}
			index, digest, size := r.machine.digest()
			if at := fmt.Sprint(index, digest, size); first == "" {
				first = at
			} else if at != first {
				return false
			}
		}
		return true
	})
	for _, r := range g.replicas {
		if r != nil {
			r.machine.mu.RLock()
			requireSound(g.t, &r.machine.keys)
			r.machine.mu.RUnlock()
		}
	}
}

// fill writes keys to the leader.
func (g *testGroup) fill(prefix string, n int) {
	g.t.Helper()
	g.waitLeader()
	for from := 0; from < n; from += 100 {
		line := "mset"
		for i := from; i < min(from+100, n); i++ {
			line += fmt.Sprintf(" %s%d %d", prefix, i, i)
		}
		require.Equal(g.t, "+OK", g.do(line))
	}
}

// A replica that is started again begins with its snapshot, and has what it had, whatever kind of write it came from.
func TestARestartBeginsWithTheSnapshot(t *testing.T) {
	g := newSnapshotGroup(t, 1, 1)
	g.fill("k", 1000)
	c := dialRaw(t, g.cfgs[0].redis)
	for _, cmd := range []string{"set a 1", "incrby a 5", "append b x", "append b y", "cas b xy z", "del k0 k1", "set c 1 nx get"} {
		assert.False(t, strings.HasPrefix(c.do(cmd), "-"), cmd)
	}
	st := g.bgsave(0)
	g.fill("more", 10)
	index, digest, size := g.replicas[0].machine.digest()
	for range 2 {
		g.stop(0)
		g.start(0)
		g.waitLeader()
		waitFor(t, "all applied", func() bool { i, _, _ := g.replicas[0].machine.digest(); return i >= index })
		_, d, s := g.replicas[0].machine.digest()
		assert.Equal(t, digest, d)
		assert.Equal(t, size, s)
		assert.Greater(t, g.replicas[0].node.Status().FirstIndex, st.Index)
		c := dialRaw(t, g.cfgs[0].redis)
		assert.Equal(t, "$6", c.do("get a"))
		assert.Equal(t, "$z", c.do("get b"))
		assert.Equal(t, "$null", c.do("get k1"))
		assert.Equal(t, "+OK", c.do("set after restart"))
		_, digest, size = g.replicas[0].machine.digest()
		index, _, _ = g.replicas[0].machine.digest()
	}
}

// A replica that is added, and one that was away for too long, get the leader's snapshot; then what was written since.
func TestAJoinerGetsASnapshot(t *testing.T) {
	g := newSnapshotGroup(t, 3, 3) // all of them, since the first election waits long for those who do not answer
	g.waitLeader()
	g.stop(2)
	require.NoError(t, os.RemoveAll(g.cfgs[2].dir))
	g.cfgs[2].peers = graft.Configuration{}
	g.waitLeader()
	require.Equal(t, "+OK", g.raft("remove "+g.cfgs[2].raft))
	g.fill("k", 2000)
	saved := g.bgsaveAll()
	g.start(2)
	require.Equal(t, "+OK", g.raft("add "+g.cfgs[2].raft))
	g.sameDigest()
	joined := g.replicas[2].node.Status().Snapshot.Index
	assert.Contains(t, saved, joined, "it has installed the leader's")
	assert.Contains(t, dialRaw(t, g.cfgs[2].redis).do("info raft"), fmt.Sprintf("raft_snapshot_index:%d\r\n", joined))

	g.stop(2)
	g.fill("while away", 500)
	saved = g.bgsaveAll()
	g.start(2)
	g.sameDigest()
	assert.Contains(t, saved, g.replicas[2].node.Status().Snapshot.Index)
	g.stop(2)
	g.start(2)
	g.sameDigest()
}

// INFO says how far the copy of a snapshot is, and how much of that an earlier attempt had left.
func TestInfoOfACopy(t *testing.T) {
	st := graft.SnapshotStatus{State: graft.SnapshotCopying, NextIndex: 7, From: "a:1", Done: 5, Total: 9, Resumed: 4, Rate: 2.5}
	info := parseInfo(snapshotLines(st))
	for name, want := range map[string]string{
		"state": "copying", "next_index": "7", "from": "a:1", "done": "5", "total": "9", "resumed": "4", "rate": "2",
	} {
		assert.Equal(t, want, info["raft_snapshot_"+name], name)
	}
}

// BGSAVE, LASTSAVE and INFO are what Redis's tools expect.
func TestBgsaveAndLastsave(t *testing.T) {
	g := newSnapshotGroup(t, 1, 1)
	g.fill("k", 10)
	r, c := g.replicas[0], dialRaw(t, g.cfgs[0].redis)
	lastsave := func() int64 {
		n, err := strconv.ParseInt(strings.TrimPrefix(c.do("lastsave"), ":"), 10, 64)
		require.NoError(t, err)
		return n
	}
	assert.Equal(t, r.started.Unix(), lastsave(), "as in Redis, without any snapshot")
	info := parseInfo(strings.TrimPrefix(c.do("info raft"), "$"))
	assert.Equal(t, "0", info["raft_snapshot_index"])
	assert.Equal(t, "idle", info["raft_snapshot_state"])
	assert.Equal(t, "1", info["raft_first_index"])

	before := time.Now().Unix()
	st := g.bgsave(0)
	assert.GreaterOrEqual(t, lastsave(), before)
	info = parseInfo(strings.TrimPrefix(c.do("info"), "$"))
	assert.Equal(t, strconv.FormatInt(st.Index, 10), info["raft_snapshot_index"])
	assert.Equal(t, strconv.FormatInt(st.Bytes, 10), info["raft_snapshot_bytes"])
	assert.Equal(t, strconv.FormatInt(st.Index+1, 10), info["raft_first_index"])
	assert.Equal(t, "0", info["rdb_bgsave_in_progress"])
	assert.Equal(t, "ok", info["rdb_last_bgsave_status"])
	assert.Equal(t, strconv.FormatInt(lastsave(), 10), info["rdb_last_save_time"])
	assert.Equal(t, "+Background saving started", c.do("bgsave"), "although there is nothing new")

	f, err := r.machine.freeze() // as if one were being written
	require.NoError(t, err)
	assert.Equal(t, "+OK", c.do("set a 1"))
	assert.Contains(t, c.do("bgsave"), "-ERR no snapshot was saved: ")
	info = parseInfo(strings.TrimPrefix(c.do("info"), "$"))
	assert.Equal(t, "err", info["rdb_last_bgsave_status"])
	assert.Contains(t, info["raft_snapshot_error"], errSaving.Error())
	assert.Equal(t, st.Index, r.node.Status().Snapshot.Index)
	r.machine.thaw(f, 0, false)

	last := lastsave()
	g.stop(0)
	g.start(0)
	g.waitLeader()
	c = dialRaw(t, g.cfgs[0].redis)
	assert.Equal(t, last, lastsave(), "the snapshot says when it was saved")
	assert.Equal(t, "-ERR wrong number of arguments for 'bgsave' command", c.do("bgsave now"))
}

// A second BGSAVE while one is being written is refused.
func TestOneBgsaveAtATime(t *testing.T) {
	g := newSnapshotGroup(t, 1, 1)
	g.waitLeader()
	c, large := dialRaw(t, g.cfgs[0].redis), strings.Repeat("x", 1<<20)
	for i := range 64 {
		require.Equal(t, "+OK", c.do(fmt.Sprintf("set large%d %s", i, large)))
	}
	for range 20 { // until one is seen
		require.Equal(t, "+OK", c.do("set again x"))
		c.send("bgsave", "bgsave")
		require.Equal(t, "+Background saving started", c.recv())
		if second := c.recv(); second == "-ERR Background save already in progress" {
			return
		}
		waitFor(t, "it is saved", func() bool { return g.replicas[0].node.Status().Snapshot.State == graft.SnapshotIdle })
	}
	t.Error("no second BGSAVE was refused")
}

// Snapshots are saved by the number of entries, unasked, and the log stays short.
func TestSnapshotsAreSavedByThemselves(t *testing.T) {
	g := newTestGroup(t, 1, 0)
	g.cfgs[0].snapshots = snapshotConfig{interval: -1, entries: 20, bytes: -1, margin: 10}
	g.start(0)
	g.waitLeader()
	c := dialRaw(t, g.cfgs[0].redis)
	for i := range 200 {
		require.Equal(t, "+OK", c.retry("set k "+strconv.Itoa(i)))
	}
	waitFor(t, "a short log", func() bool {
		st := g.replicas[0].node.Status()
		return st.Snapshot.Index > 150 && st.LastIndex-st.FirstIndex < 50
	})
}

// A replica whose snapshot is damaged does not start, and says what is damaged.
func TestADamagedSnapshotIsNamed(t *testing.T) {
	g := newSnapshotGroup(t, 1, 1)
	g.fill("k", 100)
	g.bgsave(0)
	g.stop(0)
	files, err := filepath.Glob(filepath.Join(g.cfgs[0].dir, "*", "*", "snapshot_*", shardName(0, 1)))
	require.NoError(t, err)
	require.Len(t, files, 1)
	b, err := os.ReadFile(files[0])
	require.NoError(t, err)
	b[len(b)/2]++
	require.NoError(t, os.WriteFile(files[0], b, 0o644))
	_, err = startReplica(g.cfgs[0])
	assert.ErrorIs(t, err, graft.ErrCorrupt)
	assert.ErrorContains(t, err, shardName(0, 1))
}

// A replica can be closed while it saves, and loses nothing by it.
func TestAReplicaClosesWhileItSaves(t *testing.T) {
	g := newSnapshotGroup(t, 1, 1)
	g.waitLeader()
	c, large := dialRaw(t, g.cfgs[0].redis), strings.Repeat("x", 1<<20)
	for i := range 32 {
		require.Equal(t, "+OK", c.do(fmt.Sprintf("set large%d %s", i, large)))
	}
	require.Equal(t, "+Background saving started", c.do("bgsave"))
	_, digest, _ := g.replicas[0].machine.digest()
	g.stop(0)
	g.start(0)
	g.waitLeader()
	waitFor(t, "all is there", func() bool { _, d, _ := g.replicas[0].machine.digest(); return d == digest })
}
