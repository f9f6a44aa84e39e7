package graft

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// refuseFiles refuses those get_file requests that are not to be answered.
func refuseFiles(refuse func(asked *raftpb.GetFileRequest) bool) rule {
	return func(m *message) fate {
		if m.answer || m.method != methodGetFile {
			return fate{}
		}
		asked := new(raftpb.GetFileRequest)
		if err := proto.Unmarshal(slices.Concat(m.call.Message...), asked); err != nil {
			panic(err)
		}
		return fate{refused: refuse(asked)}
	}
}

// noFiles refuses all get_file requests.
func noFiles() rule {
	return refuseFiles(func(*raftpb.GetFileRequest) bool { return true })
}

// manifestOnly refuses all but the manifest, however often that is asked for.
func manifestOnly() rule {
	return refuseFiles(func(asked *raftpb.GetFileRequest) bool { return asked.GetFilename() != metaFile })
}

// filesUpTo refuses what lies behind an offset of any file, however often and in whatever pieces it is asked for.
func filesUpTo(end int64) rule {
	return refuseFiles(func(asked *raftpb.GetFileRequest) bool { return asked.GetOffset() >= end })
}

// counting counts requests of a method.
func counting(method string, n *atomic.Int32) rule {
	return func(m *message) fate {
		if !m.answer && m.method == method {
			n.Add(1)
		}
		return fate{}
	}
}

// compacted is a group of one, its log cut behind a snapshot, and joiners.
func compacted(t *testing.T, hosts int, filler int, opts NodeOptions) *cluster {
	c := snapshotGroup(t, 1, hosts, opts)
	c.startLed()
	c.fsms[0].filler = filler
	c.proposeMany("a", 10)
	require.NoError(t, c.save(0))
	return c
}

// A joiner that needs what is in the log no more gets a snapshot, counts as catching up meanwhile, and goes on from the leader's
// log. It keeps what it got over a restart.
func TestAJoinerGetsASnapshot(t *testing.T) {
	c := compacted(t, 2, 5<<20, NodeOptions{ElectionTimeout: patient}) // it is not asked twice
	c.proposeMany("b", 3)
	var installs atomic.Int32
	c.net.set(counting(methodInstall, &installs))
	require.NoError(t, c.add(0, 1).wait())
	want := c.sameData(0, 1)
	assert.Len(t, want, 13)
	lead, s := c.nodes[0].Status(), c.nodes[1].Status()
	assert.Equal(t, []int64{lead.Snapshot.Index}, c.fsms[1].loaded(), "once")
	assert.EqualValues(t, 1, installs.Load())
	assert.Equal(t, lead.Snapshot.Index, s.Snapshot.Index)
	assert.Equal(t, lead.Snapshot.Index+1, s.FirstIndex)
	assert.Equal(t, SnapshotIdle, s.Snapshot.State)
	assert.Equal(t, "replicate", lead.Followers[0].State)
	assert.Zero(t, lead.Followers[0].SnapshotIndex)
	c.eventually(func() bool { return c.hosts[0].files.lent() == 0 }, "the snapshot is still lent")
	c.stop(1)
	c.start(1)
	c.propose("c")
	assert.Equal(t, append(want, "c"), c.sameData(0, 1))
	c.handTo(1)
	c.propose("d")
	assert.Equal(t, append(want, "c", "d"), c.sameData(0, 1))
}

// lent is how many snapshots are lent.
func (f *fileService) lent() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.readers)
}

// An idle group brings back a member that was wiped, and one that was removed, wiped and added again, without any new
// write.
func TestAnIdleGroupBringsBackAWipedMember(t *testing.T) {
	c := snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.proposeMany("a", 10)
	for i := range 3 {
		c.eventually(func() bool { return c.nodes[i].Status().AppliedIndex == c.nodes[0].Status().LastIndex }, "not applied")
		c.saveAndCut(i)
	}
	last := c.nodes[0].Status().LastIndex
	term := c.nodes[0].Status().Term
	c.wipe(2)
	c.startWith(2, Configuration{})
	c.status(2, func(s Status) bool { return s.AppliedIndex == last && !s.Waiting }, "it is not brought back")
	assert.Equal(t, c.fsms[0].applied(), c.fsms[2].applied())
	assert.Equal(t, last, c.nodes[0].Status().LastIndex, "nothing was written")
	assert.Equal(t, term, c.nodes[0].Status().Term)

	require.NoError(t, c.remove(0, 2).wait())
	c.eventually(func() bool { return c.nodes[0].snap.keptLogs() == 0 }, "the log is kept for the one that was brought back")
	c.saveAndCut(0)
	c.wipe(2)
	c.startWith(2, Configuration{})
	require.NoError(t, c.add(0, 2).wait())
	assert.Len(t, c.sameData(0, 1, 2), 10)
	assert.NotEmpty(t, c.fsms[2].loaded())
}

// A follower that was away comes back to a log that begins behind what it has. Its own entries that nobody committed are in
// nobody's way (S7, S9).
func TestAFollowerWithAnotherTailGetsASnapshot(t *testing.T) {
	c := snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	c.proposeMany("a", 3)
	c.sameData(0, 1, 2)
	// Host 0 is alone with many entries; the others go on without it.
	c.ahead(0, "lost", 50)
	c.cutOff(0)
	c.campaign(1) // those who have voted just now may refuse the others at first
	c.proposeMany("b", 5)
	lead := c.ready()
	for _, i := range []int{1, 2} {
		c.eventually(func() bool { return c.nodes[i].Status().AppliedIndex == c.nodes[lead].Status().LastIndex }, "not applied")
		c.saveAndCut(i)
	}
	index := c.nodes[lead].Status().Snapshot.Index
	require.Less(t, index, c.nodes[0].Status().LastIndex, "the tail lies on both sides of the snapshot")
	c.net.set()
	c.status(0, func(s Status) bool { return s.AppliedIndex >= index }, "it is not brought back")
	c.propose("c")
	assert.Equal(t, []string{"a0", "a1", "a2", "b0", "b1", "b2", "b3", "b4", "c"}, c.sameData(0, 1, 2))
	assert.Equal(t, []int64{index}, c.fsms[0].loaded())
	c.stop(0)
	c.start(0)
	c.propose("d")
	assert.Len(t, c.sameData(0, 1, 2), 10)
	assert.GreaterOrEqual(t, c.nodes[0].Status().FirstIndex, index+1)
}

// A configuration that is joint at the snapshot's index is in force where the snapshot is installed, and after a restart.
func TestASnapshotOfAJointConfiguration(t *testing.T) {
	// One entry a request: else the joint one may be lost with the one behind it.
	c := snapshotGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient, MaxAppendBytes: 1})
	c.startLed()
	c.proposeMany("a", 3)
	// The joint entry is committed, that of the new configuration is not.
	stable := func(e confEntry) bool { return !e.joint() && c.name(e.conf) == "0,3,4" }
	c.net.set(noConf(stable, 1, 2, 3, 4))
	change := c.change(0, c.voters(0, 3, 4))
	joint := c.status(0, func(s Status) bool { return s.Stage == StageStable && s.AppliedIndex == s.LastIndex-1 }, "the joint configuration is not committed").LastIndex - 1
	for i := range 4 { // whoever leads then has nothing else for host 4
		c.status(i, func(s Status) bool { return s.AppliedIndex == joint }, "it is not told")
		c.saveAndCut(i)
		require.Equal(t, joint, c.nodes[i].Status().Snapshot.Index)
	}
	c.wipe(4)
	c.stop(0)
	assert.Error(t, change.wait())
	c.net.set(atOnce(noEntries(4)))
	c.start(0)
	c.hurry(0)
	const want = "0,3,4 of 0,1,2"
	base := c.nodes[0].lm.confAt(joint)
	assert.Equal(t, want, c.name(base.conf)+" of "+c.name(base.old))
	assert.Equal(t, joint, base.index)
	c.startWith(4, Configuration{})
	c.status(4, func(s Status) bool {
		return s.Snapshot.Index == joint && c.name(s.Conf)+" of "+c.name(s.OldConf) == want
	}, "it is not in force")
	assert.Equal(t, []int64{joint}, c.fsms[4].loaded())
	c.net.set()
	c.eventually(func() bool {
		lead := c.leader()
		s := c.nodes[lead].Status()
		return s.Stage == StageNone && c.name(s.Conf) == "0,3,4"
	}, "the change is not finished")
	c.propose("b")
	assert.Equal(t, []string{"a0", "a1", "a2", "b"}, c.sameData(0, 3, 4))
}

// A copy that is cut off goes on where it was: after lost connections, after a restart of the receiver, and from another leader.
func TestACopyIsResumed(t *testing.T) {
	const size = 12 << 20
	for _, test := range []struct {
		name string
		do   func(c *cluster)
	}{
		{"the connection is lost", func(c *cluster) {
			c.eventually(func() bool { return c.hosts[2].receives.inUse() == 0 }, "it goes on without files")
		}},
		{"the receiver is restarted", func(c *cluster) {
			c.stop(2)
			c.start(2)
		}},
		{"another leads", func(c *cluster) {
			c.net.set(noFiles())
			c.handTo(1)
		}},
		{"the sender is restarted", func(c *cluster) {
			c.stop(0)
			c.campaign(1)
			c.start(0)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := snapshotGroup(t, 3, 3, NodeOptions{ElectionTimeout: patient, HeartbeatFactor: 50})
			c.startLed()
			c.stop(2)
			for i := range 2 {
				c.fsms[i].filler = size
			}
			c.proposeMany("a", 10)
			c.sameData(0, 1)
			for i := range 2 {
				c.saveAndCut(i)
			}
			c.net.set(filesUpTo(6 << 20))
			c.start(2)
			c.eventually(func() bool { return c.nodes[2].Status().Snapshot.Done >= 4<<20 }, "nothing is copied")
			test.do(c)
			c.net.set()
			c.propose("b")
			assert.Len(t, c.sameData(0, 1, 2), 11)
			s := c.nodes[2].Status().Snapshot
			assert.GreaterOrEqual(t, s.Resumed, int64(3<<20), "bytes that were not copied again")
			assert.Less(t, s.Resumed, s.Total)
		})
	}
}

// inUse is how many places are taken.
func (t *throttle) inUse() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken
}

// A braft leader's snapshot is copied as braft does it: file by file, from the beginning to the end, one read at a time.
func TestABraftLeadersSnapshotIsInstalled(t *testing.T) {
	b := newInstallBed(t)
	filler := strings.Repeat("0123456789", 60_000)
	var asked []string
	serve := braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["one","two"]`, "a/b": filler, "empty": ""}, "a/b", "empty", "entries")
	var n atomic.Int32
	b.serve(func(req *rpc.Request, m *raftpb.GetFileRequest) {
		asked = append(asked, fmt.Sprintf("%s %d %d %v", m.GetFilename(), m.GetOffset(), m.GetCount(), m.GetReadPartly()))
		assert.EqualValues(t, -77, m.GetReaderId())
		if n.Add(1) == 3 {
			req.Fail(codeAgain, "try again")
			return
		}
		serve(req, m)
	})
	assert.EqualValues(t, 3, installed(t, b.install(3, 100)).GetTerm())
	assert.Equal(t, []string{"one", "two"}, b.fsms[0].applied())
	assert.Equal(t, []string{
		"__raft_snapshot_meta 0 4294967295 true", "a/b 0 131072 true", "a/b 131072 131072 true", "a/b 131072 131072 true", "a/b 262144 131072 true",
		"a/b 393216 131072 true", "a/b 524288 131072 true", "empty 0 131072 true", "entries 0 131072 true",
	}, asked)
	s := b.nodes[0].Status()
	assert.EqualValues(t, 101, s.FirstIndex)
	assert.EqualValues(t, 100, s.CommitIndex)
	got, err := readFile(b.disks[0], b.snapshotFile(0, "a/b"))
	require.NoError(t, err)
	assert.Equal(t, filler, got)
	installed(t, b.install(3, 90)) // what is older is there already
	resp := answered(t, b.install(2, 200))
	assert.False(t, resp.GetSuccess())
	assert.EqualValues(t, 3, resp.GetTerm())
}

func readFile(fs vfs.FS, path string) (string, error) {
	f, err := fs.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	b := make([]byte, size)
	if size > 0 {
		_, err = f.ReadAt(b, 0)
	}
	return string(b), err
}

// Of two requests for the same snapshot the later one gets the outcome; one for a newer takes the place of an older; one for an
// older is refused; a leader of a later term ends what an earlier one began.
func TestInstallRequestsThatMeet(t *testing.T) {
	b := newInstallBed(t)
	held := newHoldup(t)
	slow := func(index int64) func(*rpc.Request, *raftpb.GetFileRequest) {
		serve := braftFiles(t, index, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries")
		return func(req *rpc.Request, m *raftpb.GetFileRequest) {
			if m.GetFilename() != metaFile {
				go func() { held.pass(); serve(req, m) }()
				return
			}
			serve(req, m)
		}
	}
	b.serve(slow(100))
	copying := func(index int64) {
		b.status(0, func(s Status) bool { return s.Snapshot.State == SnapshotCopying && s.Snapshot.NextIndex == index }, "it is not copied")
	}
	first := b.install(3, 100)
	copying(100)
	second := b.install(3, 100)
	rep := receive(t, first)
	assert.EqualValues(t, codeInterrupted, rep.Code, "the later request has joined")
	rep = receive(t, b.install(3, 90))
	assert.EqualValues(t, ErrInvalid, rep.Code, "an older one")
	b.serve(slow(200))
	third := b.install(3, 200)
	rep = receive(t, second)
	assert.EqualValues(t, ErrCanceled, rep.Code, "superseded")
	copying(200)
	fourth := b.install(4, 200)
	resp := answered(t, third)
	assert.False(t, resp.GetSuccess())
	assert.EqualValues(t, 4, resp.GetTerm(), "another leads")
	held.release()
	installed(t, fourth)
	assert.EqualValues(t, 200, b.nodes[0].Status().Snapshot.Index)
}

// S11: a snapshot that contradicts what is committed here is neither installed nor taken for what is here: one of the two logs is another
// group's, and nobody may go on.
func TestAnInstallThatContradictsWhatIsCommittedIsRefused(t *testing.T) {
	b := newInstallBed(t)
	b.serve(braftFiles(t, 10, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries"))
	installed(t, b.install(3, 10))
	installed(t, b.install(3, 10)) // the same again
	rep := receive(t, b.installOf(5, 10, 3, "-77", 0))
	assert.EqualValues(t, ErrInvalid, rep.Code)
	assert.Contains(t, rep.Text, "contradicts")
	s := b.status(0, func(s Status) bool { return s.Role == RoleFailed }, "it goes on")
	assert.ErrorIs(t, s.Err, ErrCorrupt)
}

// Whoever joins an install with another reader, as a leader does that was asked to begin anew, does not have it end because the old
// one is gone: what that one was asked for is asked of the new one.
func TestTheOldReadersEndDoesNotEndAJoinedInstall(t *testing.T) {
	b := newInstallBed(t)
	held := newHoldup(t)
	serve := braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries")
	b.serve(func(req *rpc.Request, m *raftpb.GetFileRequest) {
		switch {
		case m.GetReaderId() != -77:
			serve(req, m)
		case m.GetFilename() == metaFile:
			serve(req, m)
		default:
			go func() {
				held.pass()
				req.Fail(int32(ErrNotFound), "Fail to find reader=-77")
			}()
		}
	})
	first := b.installOf(3, 100, 1, "-77", featurePipeline)
	held.reached()
	second := b.installOf(3, 100, 1, "-78", featurePipeline)
	rep := receive(t, first)
	require.EqualValues(t, codeInterrupted, rep.Code)
	held.release()
	installed(t, second)
}

// A copy that is complete is not thrown away because it cannot be read for the moment.
func TestACopyThatCannotBeReadForAMomentIsKept(t *testing.T) {
	b := newInstallBed(t)
	var reads atomic.Int32
	serve := braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries")
	b.serve(func(req *rpc.Request, m *raftpb.GetFileRequest) {
		reads.Add(1)
		serve(req, m)
	})
	var refused atomic.Int32
	b.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindOpen && strings.Contains(op.Name, "/snapshot_") && refused.Add(1) <= 2 {
			return syscall.EMFILE
		}
		return nil
	})
	installed(t, b.install(3, 100))
	assert.Greater(t, refused.Load(), int32(2), "it was tried again")
	assert.EqualValues(t, 2, reads.Load(), "manifest and file, once each")
}

// If that goes on, it is copied anew: nobody waits for ever.
func TestACopyThatCannotBeReadIsCopiedAnew(t *testing.T) {
	b := newInstallBed(t)
	b.serve(braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries"))
	b.disks[0].SetInjector(func(op vfs.Op) error {
		if op.Kind == vfs.KindOpen && strings.Contains(op.Name, "/snapshot_") {
			return syscall.EMFILE
		}
		return nil
	})
	rep := receive(t, b.install(3, 100))
	assert.NotZero(t, rep.Code)
	b.disks[0].SetInjector(nil)
	installed(t, b.install(3, 100))
}

// Rubbish is refused with braft's codes, and nothing is written where it should not be.
func TestInstallsThatMakeNoSense(t *testing.T) {
	for _, name := range []string{"../../evil", "/etc/evil", "a/../../evil", "..", ""} {
		t.Run("a file named "+name, func(t *testing.T) {
			t.Parallel() // each is asked for again a few times
			b := newInstallBed(t)
			b.serve(braftFiles(t, 100, []string{b.leads.String()}, map[string]string{name: "x"}, name))
			rep := receive(t, b.install(3, 100))
			assert.EqualValues(t, ErrCorrupt, rep.Code, name)
			names, err := b.disks[0].ReadDir("/data")
			require.NoError(t, err)
			assert.ElementsMatch(t, []string{"log", "snapshots"}, names)
		})
	}
	b := newInstallBed(t)
	b.serve(func(req *rpc.Request, _ *raftpb.GetFileRequest) {
		req.Fail(int32(ErrNotFound), "Fail to find reader=-77")
	})
	rep := receive(t, b.install(3, 100))
	assert.EqualValues(t, ErrNotFound, rep.Code, "the sender has given up: no use in asking again")
	b.serve(braftFiles(t, 101, []string{b.leads.String()}, map[string]string{"entries": `[]`}, "entries"))
	rep = receive(t, b.install(3, 100))
	assert.EqualValues(t, ErrInvalid, rep.Code, "another snapshot's files")
	for _, index := range []int64{0, -1, math.MaxInt64, maxBase + 1} { // the log has to go on behind it
		rep = receive(t, b.install(3, index))
		assert.EqualValues(t, codeBadRequest, rep.Code, "%d", index)
	}
	rep = receive(t, b.installOf(3, 100, 4, "-77", 0))
	assert.EqualValues(t, codeBadRequest, rep.Code, "of a later term than its leader's")
	names, err := b.disks[0].ReadDir("/data")
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"log", "snapshots"}, names)
	b.serve(braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["fine"]`}, "entries"))
	installed(t, b.install(3, 100))
}

// While a snapshot is installed heartbeats are answered, entries are not taken, and nobody is asked for votes.
func TestEntriesWaitForAnInstall(t *testing.T) {
	c := compacted(t, 2, 0, NodeOptions{ElectionTimeout: patient, HeartbeatFactor: 50})
	held := newHoldup(t)
	c.fsms[1].onLoad = held.load
	add := c.add(0, 1)
	held.reached()
	c.proposeMany("b", 5)
	f := c.status(0, func(s Status) bool { return s.Followers[0].SnapshotIndex != 0 && s.Followers[0].State == "snapshot" }, "not in the snapshot state")
	assert.True(t, f.Followers[0].CatchingUp)
	assert.Equal(t, SnapshotLoading, c.nodes[1].Status().Snapshot.State)
	for range 10 {
		began := time.Now()
		c.eventually(func() bool {
			past := time.Since(began)
			return c.nodes[0].Status().Followers[0].Silent < past
		}, "it is silent")
		c.never(100*time.Millisecond, func() bool { return c.nodes[1].Status().Leader.IsZero() }, "it hears no leader")
	}
	assert.True(t, add.open())
	held.release()
	require.NoError(t, add.wait())
	assert.Len(t, c.sameData(0, 1), 15)
}

// S5, S6: a state machine that takes longer to load than several snapshots take to be saved still joins, by one install: the log behind
// its snapshot is kept for it. So does one that takes longer than CatchupTimeout, as long as it answers.
func TestAStateMachineThatLoadsSlowlyStillJoins(t *testing.T) {
	t.Parallel()
	attempts := 1
	for !joinsThoughItLoadsSlowly(t) { // no answer came for a CatchupTimeout, which may be the machine's fault
		require.Less(t, attempts, 8, "given up while it loads")
		attempts++
	}
}

// joinsThoughItLoadsSlowly reports whether the joiner was not given up.
func joinsThoughItLoadsSlowly(t *testing.T) bool {
	const timeout = 1000 * ms
	c := compacted(t, 2, 0, NodeOptions{ElectionTimeout: patient, HeartbeatFactor: 100, CatchupTimeout: timeout})
	defer c.stop(0)
	defer c.stop(1)
	held := newHoldup(t)
	defer held.release()
	c.fsms[1].onLoad = held.load
	first := c.nodes[0].Status().Snapshot.Index
	add := c.add(0, 1)
	held.reached()
	for round := range 5 {
		c.proposeMany(fmt.Sprint("r", round, " "), 5)
		require.NoError(t, c.save(0))
	}
	s := c.nodes[0].Status()
	assert.Greater(t, s.Snapshot.Index, first+20)
	assert.Equal(t, first+1, s.FirstIndex, "kept for the joiner")
	if within(5*timeout/2, 5*time.Millisecond, func() bool { return !add.open() }) {
		require.ErrorIs(t, add.wait(), ErrCatchup)
		return false
	}
	held.release()
	if err := add.wait(); err != nil {
		require.ErrorIs(t, err, ErrCatchup)
		return false
	}
	assert.Equal(t, []int64{first}, c.fsms[1].loaded())
	assert.Len(t, c.sameData(0, 1), 35)
	require.NoError(t, c.save(0))
	c.propose("more")
	require.NoError(t, c.save(0))
	s = c.nodes[0].Status()
	assert.Equal(t, s.Snapshot.Index+1, s.FirstIndex, "and no longer than that")
	return true
}

// A joiner to which nothing comes through fails the change, as one that takes no entries does.
func TestAnInstallWithoutProgressFailsTheChange(t *testing.T) {
	c := compacted(t, 2, 3<<20, NodeOptions{CatchupTimeout: time.Second})
	c.net.set(manifestOnly())
	err := c.add(0, 1).wait()
	assert.ErrorIs(t, err, ErrCatchup)
	c.net.set()
	c.joins(0, 1)
	assert.Len(t, c.sameData(0, 1), 10)
}

// So does one that cannot install what is offered to it, whatever it answers, and however soon.
func TestAJoinerThatCannotWriteSnapshotsFailsTheChange(t *testing.T) {
	t.Parallel()
	for _, cause := range []error{syscall.EACCES, syscall.ENOSPC} { // of which the latter is offered the same snapshot again
		t.Run(cause.Error(), func(t *testing.T) {
			t.Parallel()
			c := compacted(t, 2, 0, NodeOptions{CatchupTimeout: 1500 * time.Millisecond})
			var tried atomic.Int32
			c.disks[1].SetInjector(func(op vfs.Op) error {
				if strings.Contains(op.Name, "/snapshots/") && (op.Kind == vfs.KindMkdir || op.Kind == vfs.KindCreate) {
					tried.Add(1)
					return cause
				}
				return nil
			})
			assert.ErrorIs(t, c.add(0, 1).wait(), ErrCatchup)
			assert.NotZero(t, tried.Load())
			c.disks[1].SetInjector(nil)
			c.joins(0, 1)
			assert.Len(t, c.sameData(0, 1), 10)
		})
	}
}

// A leader whose snapshot is damaged finds out when a follower cannot use it, and saves another. Nobody else is harmed
// (S-07 of braft: the leader fails).
func TestADamagedSnapshotOfTheLeaderIsReplaced(t *testing.T) {
	c := compacted(t, 2, 3<<20, NodeOptions{})
	damage(t, c.disks[0], c.snapshotFile(0, "more/filler"))
	require.NoError(t, c.add(0, 1).wait())
	assert.Len(t, c.sameData(0, 1), 10)
	assert.NotEqual(t, RoleFailed, c.nodes[0].Status().Role)
}

// A block that is damaged on its way is found and fetched again, it alone.
func TestADamagedBlockIsFetchedAgain(t *testing.T) {
	const size = 5 << 20
	c := compacted(t, 2, size, NodeOptions{ElectionTimeout: patient}) // the install is not asked for twice
	var once atomic.Bool
	var got atomic.Int64
	c.net.corrupt = func(m *message, r *rpc.Reply) {
		if m.method != methodGetFile {
			return
		}
		got.Add(int64(len(r.Attachment)))
		if len(r.Attachment) > politePiece/2 && !once.Swap(true) {
			r.Attachment = slices.Clone(r.Attachment)
			r.Attachment[1000] ^= 1
		}
	}
	var installs atomic.Int32
	c.net.set(counting(methodInstall, &installs))
	require.NoError(t, c.add(0, 1).wait())
	assert.Len(t, c.sameData(0, 1), 10)
	assert.True(t, once.Load())
	assert.EqualValues(t, 1, installs.Load(), "the install goes on")
	assert.Less(t, got.Load(), int64(size+2<<20), "not all of it is fetched again")
}

// Bytes per second and places are bounded, per host and direction, and the bounds can be changed meanwhile.
func TestInstallsAreThrottled(t *testing.T) {
	for _, direction := range []string{"sending", "receiving"} {
		t.Run(direction, func(t *testing.T) {
			c := snapshotGroup(t, 1, 2, NodeOptions{})
			slow := SnapshotThrottle{SendRate: 1 << 20}
			at := 0
			if direction == "receiving" {
				slow, at = SnapshotThrottle{ReceiveRate: 1 << 20}, 1
			}
			c.throttle = slow
			c.startLed()
			c.fsms[0].filler = 10 << 20
			c.propose("a")
			require.NoError(t, c.save(0))
			add := c.add(0, 1)
			c.status(1, func(s Status) bool { return s.Snapshot.Done > 100<<10 }, "nothing comes")
			began, done := time.Now(), c.nodes[1].Status().Snapshot.Done
			c.never(500*time.Millisecond, func() bool {
				got := float64(c.nodes[1].Status().Snapshot.Done - done)
				return got > float64(1<<20)*(time.Since(began).Seconds()+0.3)+1<<20
			}, "faster than allowed")
			assert.True(t, add.open())
			assert.ErrorIs(t, c.hosts[at].SetSnapshotThrottle(SnapshotThrottle{SendRate: -1}), ErrInvalid)
			require.NoError(t, c.hosts[at].SetSnapshotThrottle(SnapshotThrottle{}))
			require.NoError(t, add.wait())
			assert.Equal(t, []string{"a"}, c.sameData(0, 1))
		})
	}
}

// The files of a snapshot cannot be read by names that climb out of it, nor without its number; absurd reads are refused.
func TestFileServiceRefusesWhatIsNotItsOwn(t *testing.T) {
	c := compacted(t, 1, 0, NodeOptions{})
	lent, err := c.nodes[0].snap.lend(new(replicator))
	require.NoError(t, err)
	get := func(reader int64, name string, off, count int64) (code int32, text string, n int) {
		done := make(chan struct{})
		b, err := proto.Marshal(&raftpb.GetFileRequest{ReaderId: &reader, Filename: &name, Offset: &off, Count: &count, ReadPartly: proto.Bool(true)})
		require.NoError(t, err)
		c.hosts[0].serve(rpc.NewRequest(fileServiceName, methodGetFile, b, nil, "somebody", func(c int32, s string, _ []byte, a [][]byte) {
			code, text = c, s
			for _, p := range a {
				n += len(p)
			}
			close(done)
		}))
		receive(t, done)
		return code, text, n
	}
	code, _, n := get(lent.id, "entries", 0, 1<<40)
	assert.Zero(t, code)
	assert.Greater(t, n, 12)
	for _, name := range []string{"../snapshot_00000000000000000001/entries", "/etc/passwd", "..", "", "entries/", filepath.Join(c.snapshotDir(0), "entries"), metaFile + ".tmp"} {
		code, text, _ := get(lent.id, name, 0, 10)
		assert.EqualValues(t, 1, code, name)
		assert.Contains(t, text, "Operation not permitted")
	}
	code, text, _ := get(42, "entries", 0, 10)
	assert.EqualValues(t, 2, code)
	assert.Equal(t, "Fail to find reader=42", text)
	code, text, _ = get(lent.id, "entries", -1, 10)
	assert.EqualValues(t, 1003, code)
	assert.Equal(t, fmt.Sprintf(`Invalid request=reader_id: %d filename: "entries" count: 10 offset: -1 read_partly: true`, lent.id), text)
	code, _, n = get(lent.id, "entries", 1<<50, 10)
	assert.Zero(t, code, "past the end there is nothing")
	assert.Zero(t, n)
	index := lent.base.index
	c.propose("more")
	require.NoError(t, c.save(0))
	code, _, _ = get(lent.id, "entries", 0, 10)
	assert.Zero(t, code, "as long as it is lent it is not deleted")
	assert.Contains(t, lent.r.Path(), fmt.Sprint(index))
	lent.giveBack()
	lent.giveBack()
	code, _, _ = get(lent.id, "entries", 0, 10)
	assert.EqualValues(t, 2, code)
	c.eventually(func() bool {
		_, err := c.disks[0].Stat(lent.r.Path())
		return err != nil
	}, "it is not deleted when nobody reads it any more")
}
