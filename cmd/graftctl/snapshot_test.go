package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

// words is a state machine with snapshots: what was proposed, in order.
type words struct {
	graft.BaseStateMachine
	mu  sync.Mutex
	all []string
}

func (w *words) OnApply(it *graft.Iterator) {
	for it.Next() {
		w.mu.Lock()
		w.all = append(w.all, string(it.Data()))
		w.mu.Unlock()
	}
}

func (w *words) list() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.all)
}

func (w *words) OnSnapshotSave(s *graft.SnapshotWriter, done graft.Closure) {
	f, err := s.Create("words")
	if err == nil {
		err = errors.Join(json.NewEncoder(f).Encode(w.list()), f.Close())
	}
	done(err)
}

func (w *words) OnSnapshotLoad(s *graft.SnapshotReader) error {
	f, err := s.Open("words")
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = nil
	return errors.Join(json.NewDecoder(f).Decode(&w.all), f.Close())
}

// library is a group called "g" of servers with directories and snapshots.
type library struct {
	*cluster
	dir   string
	words map[string]*words
}

func startLibrary(t *testing.T, n int) *library {
	l := newLibrary(t)
	l.first = addresses(t, n)
	conf := graft.MustParseConfiguration(strings.Join(l.first, ","))
	for _, a := range l.first {
		l.start(a, conf)
	}
	l.ready()
	return l
}

func newLibrary(t *testing.T) *library {
	dir := t.TempDir() // which is deleted after the servers have stopped
	return &library{cluster: newCluster(t), dir: dir, words: make(map[string]*words)}
}

// home is a server's directory.
func (l *library) home(address string) string {
	return filepath.Join(l.dir, strings.ReplaceAll(address, ":", "_"))
}

func (l *library) start(address string, conf graft.Configuration) {
	h, err := graft.NewHost(graft.HostOptions{Address: address, Dir: l.home(address), SegmentSize: 1 << 20})
	require.NoError(l.t, err)
	l.hosts[address], l.words[address] = h, &words{}
	n := l.node
	n.FirstStart = !conf.Empty()
	n.StateMachine, n.InitialConf = l.words[address], conf
	l.nodes[address], err = h.StartNode("g", n)
	require.NoError(l.t, err)
}

func (l *library) propose(words ...string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, w := range words {
		_, err := l.nodes[l.ready()].Propose(ctx, []byte(w))
		for refused(err) && ctx.Err() == nil { // it leads no more
			_, err = l.nodes[l.ready()].Propose(ctx, []byte(w))
		}
		require.NoError(l.t, err)
	}
}

// refused reports whether a proposal was certainly not taken, and may be tried again.
func refused(err error) bool {
	code := graft.ErrorCode(err)
	return code == graft.ErrNotLeader || code == graft.ErrBusy
}

// offline runs the command without servers.
func offline(t *testing.T, args ...string) *execution { return begin(t, console{}, args...) }

// A group is backed up and a new one begins from the backup: with other members, one of which was imported and one added, or
// both imported. It goes on, and is another group.
func TestBackUpAndBeginAnew(t *testing.T) {
	l := startLibrary(t, 2)
	l.propose("to", "be")
	for _, a := range l.first { // so that both snapshots are of the same index
		eventually(t, func() bool { return len(l.words[a].list()) == 2 }, "not applied")
	}
	text := l.ctl("snapshot", "save").ok()
	for _, a := range l.first {
		assert.Contains(t, text, a+":0:0 has saved a snapshot of ")
	}
	var saved savedResult
	strictly(t, l.ctl("--json", "snapshot", "save", l.first[1]).ok(), &saved)
	require.Len(t, saved.Saved, 1)
	assert.Equal(t, l.nodes[l.first[1]].Status().Snapshot.Index, saved.Saved[0].Index)
	assert.Positive(t, saved.Saved[0].Bytes)
	l.propose("or") // which is not in the backup
	home := l.home(l.first[1])
	assert.Contains(t, offline(t, "snapshot", "list", home).fails(), "in use by a running process")
	oldID, members := saved.Saved[0].Index, ids(l.first...)
	for _, a := range l.first {
		l.stop(a)
	}

	var listed storedResult
	strictly(t, offline(t, "--json", "snapshot", "list", home).ok(), &listed)
	require.Len(t, listed.Snapshots, 1)
	s := listed.Snapshots[0]
	assert.Equal(t, "g", s.Group)
	assert.Equal(t, oldID, s.Index)
	assert.Positive(t, s.Term)
	assert.Equal(t, strings.Split(members, ","), s.Peers)
	assert.Equal(t, saved.Saved[0].Bytes, s.Bytes)
	assert.WithinDuration(t, time.Now(), s.Time, time.Hour)
	assert.Empty(t, s.Damage)
	assert.Contains(t, offline(t, "snapshot", "list", home).ok(), members)
	assert.Contains(t, offline(t, "snapshot", "verify", home).ok(), "verified")

	backup := filepath.Join(l.dir, "backup")
	assert.Contains(t, offline(t, "--group", "g", "snapshot", "export", home, backup).ok(), "and verified it")
	assert.Contains(t, offline(t, "snapshot", "verify", backup).ok(), "verified")
	assert.Contains(t, offline(t, "snapshot", "export", home, backup).fails(), "exists")

	for _, both := range []bool{false, true} {
		n := newLibrary(t)
		n.first = addresses(t, 2)
		first, second := n.first[0], n.first[1]
		conf := first
		if both {
			conf = first + "," + second
		}
		var got importResult
		strictly(t, offline(t, "--json", "--group", "g", "snapshot", "import", backup, n.home(first), "--as", first, "--members", conf).ok(), &got)
		assert.Equal(t, s.Index, got.Index)
		assert.NotZero(t, got.GroupID)
		assert.NotEqual(t, s.GroupID, got.GroupID)
		if both {
			var other importResult
			strictly(t, offline(t, "--json", "--group", "g", "snapshot", "import", backup, n.home(second), "--as", second, "--members", conf).ok(), &other)
			assert.Equal(t, got.GroupID, other.GroupID, "one group")
		}
		n.start(first, graft.Configuration{})
		n.start(second, graft.Configuration{})
		n.ready()
		if !both {
			n.ctl("add", second).ok()
		}
		n.propose("not")
		for _, a := range n.first {
			eventually(t, func() bool { return slices.Equal(n.words[a].list(), []string{"to", "be", "not"}) }, "not what was backed up")
		}
		assert.Equal(t, ids(first, second), n.conf())
		for _, a := range n.first {
			assert.Equal(t, got.Index+1, n.nodes[a].Status().FirstIndex, "the log goes on right behind the snapshot")
		}
		for _, a := range n.first { // and it can be started again
			n.stop(a)
		}
		n.start(first, graft.Configuration{})
		n.start(second, graft.Configuration{})
		n.propose("to be")
	}
}

// What stands in the way is said, with what to do, and nothing is changed.
func TestWhatKeepsSnapshotsFromBeingUsed(t *testing.T) {
	l := startLibrary(t, 1)
	a := l.first[0]
	l.propose("to", "be")
	l.ctl("snapshot", "save").ok()
	home, backup := l.home(a), filepath.Join(l.dir, "backup")
	l.stop(a)
	offline(t, "snapshot", "export", home, backup).ok()

	f := offline(t, "--json", "snapshot", "import", backup, home, "--group", "g", "--as", a, "--members", a).failsJSON()
	assert.Contains(t, f.Message, "a server has its data there")
	assert.NotEmpty(t, f.Hint)
	assert.Contains(t, offline(t, "snapshot", "import", backup, l.dir, "--group", "g", "--as", a, "--members", a).fails(), "is not empty: there is")
	assert.Contains(t, offline(t, "snapshot", "import", backup, home, "--as", a, "--members", a).fails(), "--group is missing")
	assert.Contains(t, offline(t, "snapshot", "import", backup, home, "--group", "g", "--as", a, "--members", "10.0.0.1:1").fails(), "is not among --members")
	assert.Contains(t, offline(t, "snapshot", "import", home, l.dir+"/new", "--group", "g", "--as", a, "--members", a).fails(), "is no backup")
	assert.Contains(t, offline(t, "snapshot", "list", l.dir).fails(), "holds no snapshots")
	assert.Contains(t, offline(t, "snapshot", "list", l.dir+"/nowhere").fails(), "no such file")
	assert.Contains(t, offline(t, "--group", "h", "snapshot", "list", home).fails(), "of group h")
	assert.Contains(t, offline(t, "snapshot", "export", home, backup+"2", "--index", "99").fails(), "no such snapshot")
	assert.Contains(t, offline(t, "snapshot", "export", home, backup+"2", "--replica", "3").fails(), "replica 3")

	// A flipped bit is named with its file and offset, here and there.
	for _, dir := range []string{home, backup} {
		file := filepath.Join(dir, "words")
		if dir == home {
			found, err := filepath.Glob(filepath.Join(home, "snapshots", "g", "snapshot_*", "words"))
			require.NoError(t, err)
			require.Len(t, found, 1)
			file = found[0]
		}
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		data[2] ^= 1
		require.NoError(t, os.WriteFile(file, data, 0o644))
		f := offline(t, "--json", "snapshot", "verify", dir).failsJSON()
		assert.Contains(t, f.Message, file+" at offset 0")
		if dir == home {
			assert.Contains(t, offline(t, "snapshot", "export", home, backup+"2").fails(), file+" at offset 0")
			assert.NoDirExists(t, backup+"2")
		} else {
			assert.Contains(t, offline(t, "snapshot", "import", backup, l.dir+"/new", "--group", "g", "--as", a, "--members", a).fails(), file+" at offset 0")
			assert.NoDirExists(t, l.dir+"/new")
			assert.NoDirExists(t, l.dir+"/new.importing")
		}
	}

	// A damaged table of contents is listed as such.
	manifest, err := filepath.Glob(filepath.Join(home, "snapshots", "g", "snapshot_*", "__raft_snapshot_meta"))
	require.NoError(t, err)
	require.NoError(t, os.Truncate(manifest[0], 10))
	assert.Contains(t, offline(t, "snapshot", "list", home).ok(), "is damaged: "+manifest[0])
	assert.Contains(t, offline(t, "snapshot", "verify", home).fails(), manifest[0])
}

// What is made appears under another name first. If that is the name of something else, be it of what is read, nothing is touched.
func TestNothingOfTheOperatorsIsDeleted(t *testing.T) {
	l := startLibrary(t, 1)
	a := l.first[0]
	l.propose("to", "be")
	l.ctl("snapshot", "save").ok()
	l.stop(a)
	data, backup := filepath.Join(l.dir, "kv.tmp"), filepath.Join(l.dir, "kv.importing")
	require.NoError(t, os.Rename(l.home(a), data))
	kv, as := filepath.Join(l.dir, "kv"), []string{"--group", "g", "--as", a, "--members", a}

	f := offline(t, "--json", "snapshot", "export", data, kv).failsJSON()
	assert.Equal(t, data+" exists", f.Message)
	assert.Contains(t, f.Hint, "interrupted")
	offline(t, "snapshot", "verify", data).ok()
	offline(t, "snapshot", "export", data, backup).ok()

	f = offline(t, append([]string{"--json", "snapshot", "import", backup, kv}, as...)...).failsJSON()
	assert.Equal(t, backup+" exists", f.Message)
	assert.Contains(t, f.Hint, "interrupted")
	offline(t, "snapshot", "verify", backup).ok()
	assert.NoDirExists(t, kv)
	offline(t, append([]string{"snapshot", "import", backup, kv + "/new"}, as...)...).ok()
}

// Where saving fails the exit status says so, and it is said who has saved one all the same.
func TestSaveThatFailsSomewhere(t *testing.T) {
	l := startLibrary(t, 1)
	l.propose("a")
	gone := addresses(t, 1)[0]
	text := l.ctl("snapshot", "save", l.first[0], gone).fails()
	assert.Contains(t, text, gone+":0:0: ")
	assert.Contains(t, text, "One was saved on "+l.first[0]+":0:0.")
	c := startCluster(t, 1) // without snapshots
	f := c.ctl("--json", "snapshot", "save").failsJSON()
	assert.Contains(t, f.Message, "Not supported")
	busy := startFake(t, handlers{"braft.CliService/snapshot": refuses(int32(graft.ErrBusy), "Is saving another snapshot")})
	assert.Contains(t, ctl(t, busy.address, "snapshot", "save", busy.address).fails(), "Try again")
}

// A peer that installs a snapshot is shown by its bytes, in the progress of a change and in the status.
func TestProgressOfAnInstall(t *testing.T) {
	var out output
	p := (&app{console: console{err: &out, canRedraw: true}}).newProgress("add b:2:0:0")
	f := follower("b:2:0:0", 0, 1000, 0)
	f.SnapshotIndex, f.SnapshotDoneBytes, f.SnapshotTotalBytes = proto.Int64(77), proto.Int64(1<<30), proto.Int64(4<<30)
	show := func(elapsed int64) string {
		m := catching("catching-up", f)
		m.Change.ElapsedMs = proto.Int64(elapsed)
		p.show(m)
		return strings.Join(screen(t, out.String()), "\n")
	}
	assert.Contains(t, show(1000), "  25% snapshot, 1.0 GiB of 4.0 GiB\n")
	f.SnapshotDoneBytes = proto.Int64(2 << 30)
	assert.Contains(t, show(3000), "  50% snapshot, 2.0 GiB of 4.0 GiB, 512.0 MiB/s\n")
	f.SnapshotDoneBytes = proto.Int64(4 << 30)
	assert.Contains(t, show(7000), "100% loads the snapshot\n")
	f.SnapshotDoneBytes, f.SnapshotTotalBytes = proto.Int64(0), proto.Int64(0)
	assert.Contains(t, show(8000), "begins to copy a snapshot\n")
	f.SnapshotIndex = nil
	assert.Contains(t, show(9000), "1000 behind\n")

	copying := &raftpb.SnapshotStatus{
		State: proto.String("copying"), NextIndex: proto.Int64(77), From: proto.String("a:1"),
		DoneBytes: proto.Int64(1 << 20), TotalBytes: proto.Int64(3 << 20), ResumedBytes: proto.Int64(0), Rate: proto.Float64(2 << 20),
	}
	serve := func() *fake {
		return startFake(t, handlers{"graft.AdminService/Status": says(&raftpb.GroupStatusResponse{
			PeerId: proto.String("127.0.0.1:1:0:0"), Role: proto.String("follower"), Term: proto.Int64(1), Snapshot: copying,
		})})
	}
	s := serve()
	assert.Contains(t, ctl(t, s.address, "status").ok(), "copying snapshot 77 from a:1: 1.0 MiB of 3.0 MiB, 2.0 MiB/s\n")
	text := ctl(t, s.address, "--json", "status").ok()
	assert.Contains(t, text, `"bytes_per_second":2097152`)
	assert.NotContains(t, text, "resumed_bytes", "it is the first attempt")
	copying.ResumedBytes = proto.Int64(512 << 10)
	s = serve()
	assert.Contains(t, ctl(t, s.address, "status").ok(), "1.0 MiB of 3.0 MiB, 2.0 MiB/s, of which an earlier attempt had left 512.0 KiB\n")
	assert.Contains(t, ctl(t, s.address, "--json", "status").ok(), `"resumed_bytes":524288`)
}
