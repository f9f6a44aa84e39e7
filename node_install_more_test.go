package graft

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// loadingJoiner is a group whose joiner, host 1, loads a snapshot until release is called.
func loadingJoiner(t *testing.T) (c *cluster, add *pending, release func()) {
	c = compacted(t, 2, 0, NodeOptions{})
	held := newHoldup(t)
	c.fsms[1].onLoad = held.load
	add = c.add(0, 1)
	held.reached()
	return c, add, held.release
}

// H-16: who installs a snapshot votes for others, and does not campaign itself: its configuration may be long out of date.
func TestWhoInstallsASnapshotVotes(t *testing.T) {
	b := newInstallBed(t)
	held := newHoldup(t)
	b.fsms[0].onLoad = held.load
	b.serve(braftFiles(t, 100, []string{b.leads.String(), b.cluster.peer(0).String()}, map[string]string{"entries": `["x"]`}, "entries"))
	answer := b.install(3, 100)
	held.reached()
	assert.False(t, func() bool {
		may := make(chan bool)
		b.nodes[0].post(func() { may <- b.nodes[0].mayCampaign() })
		return receive(t, may)
	}())
	vote := encode(t, &raftpb.RequestVoteRequest{
		GroupId: proto.String("g"), ServerId: proto.String("127.0.0.1:1"), PeerId: proto.String(b.cluster.peer(0).String()),
		Term: proto.Int64(4), LastLogTerm: proto.Int64(3), LastLogIndex: proto.Int64(200), GraftGroupId: proto.Uint64(0),
	})
	rep := askHost(t, b.hosts[0], raftService, methodRequestVote, vote)
	require.Zero(t, rep.Code, rep.Text)
	resp := new(raftpb.RequestVoteResponse)
	require.NoError(t, proto.Unmarshal(rep.Message, resp))
	assert.EqualValues(t, 4, resp.GetTerm(), "it answers at once, in the new term")
	held.release()
	assert.EqualValues(t, 4, answered(t, answer).GetTerm(), "the leader hears of the term")
	assert.EqualValues(t, 100, b.nodes[0].Status().AppliedIndex, "what was being loaded is kept")
}

// S4: a leader that steps down while a snapshot is being sent takes it back, and nothing stays behind.
func TestASnapshotIsTakenBackWhenTheLeaderStepsDown(t *testing.T) {
	c, add, release := loadingJoiner(t)
	assert.Equal(t, 1, c.hosts[0].files.lent())
	c.nodes[0].post(func() { c.nodes[0].stepDown(c.nodes[0].term+1, &Error{Code: ErrHigherTerm}) })
	assert.ErrorIs(t, add.wait(), ErrNotLeader)
	c.eventually(func() bool { return c.hosts[0].files.lent() == 0 && c.hosts[0].sends.inUse() == 0 }, "it is still lent")
	release()
	c.timeOut(0)
	c.ready()
	require.NoError(t, c.add(0, 1).wait())
	assert.Len(t, c.sameData(0, 1), 10)
	assert.Len(t, c.fsms[1].loaded(), 1, "what it had loaded was enough")
}

// M16: a change that is called off while a snapshot is being sent takes it back, and so does the end of either side.
func TestASnapshotIsTakenBackWhenNobodyWantsIt(t *testing.T) {
	c, add, release := loadingJoiner(t)
	require.NoError(t, c.nodes[0].CancelChange())
	assert.ErrorIs(t, add.wait(), ErrCanceled)
	c.eventually(func() bool { return c.hosts[0].files.lent() == 0 && c.hosts[0].sends.inUse() == 0 }, "it is still lent")
	release()
	c.status(1, func(s Status) bool { return s.Snapshot.State == SnapshotIdle }, "it is still loading")

	c, _, release = loadingJoiner(t)
	closed := make(chan struct{})
	go func() { c.stop(0); close(closed) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		require.Fail(t, "the sender does not end")
	}
	release()
	c.stop(1)
}

// A request that begins before the log finds what it names in the snapshot: it is no conflict (R2), and an entry before the log has no
// term to compare (R9).
func TestARequestThatBeginsBeforeTheLog(t *testing.T) {
	b := newInstallBed(t)
	b.serve(braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"entries": `["x"]`}, "entries"))
	installed(t, b.install(3, 100))
	n := b.nodes[0]
	send := func(prev, prevTerm int64, count int) wire.AppendResponse {
		t.Helper()
		r := wire.AppendRequest{
			GroupID: []byte("g"), ServerID: []byte(b.leads.String()), PeerID: []byte(n.name), Term: 3, PrevIndex: prev, PrevTerm: prevTerm, Commit: 100,
		}
		message := r.AppendHead(nil)
		var data []byte
		if count > 0 {
			var e entry.Builder
			e.Reset(prev + 1)
			for range count {
				e.AppendData(1, []byte("x"))
			}
			batch := e.Build()
			message, data = append(message, batch.Metas...), batch.Data
		}
		message = r.AppendTail(message)
		c := make(chan rpc.Reply, 1)
		b.hosts[0].serve(rpc.NewRequest(raftService, methodAppendEntries, message, data, "test", func(code int32, text string, message []byte, _ [][]byte) {
			c <- rpc.Reply{Code: code, Text: text, Message: message}
		}))
		rep := receive(t, c)
		require.Zero(t, rep.Code, rep.Text)
		resp, err := wire.ParseAppendResponse(rep.Message)
		require.NoError(t, err)
		return resp
	}
	assert.True(t, send(40, 1, 0).Success, "a probe before the log")
	assert.True(t, send(40, 1, 10).Success, "entries that the snapshot includes")
	assert.Equal(t, int64(100), n.Status().LastIndex)
	assert.True(t, send(95, 1, 10).Success, "some that it includes, and some that follow")
	assert.Equal(t, int64(105), n.Status().LastIndex)
	assert.Equal(t, int64(101), n.Status().FirstIndex)
	assert.False(t, send(100, 2, 0).Success, "the last entry of the snapshot has another term")
	assert.True(t, send(100, 1, 0).Success)
	assert.False(t, send(200, 1, 0).Success)
}

// X8: the log's files do not grow and grow.
func TestSnapshotsFreeTheSpaceOfTheLog(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	for i := range 400 {
		c.propose(fmt.Sprint(i, strings.Repeat("x", 10<<10)))
		if i%20 == 0 {
			c.fsms[0].mu.Lock()
			c.fsms[0].entries = nil // the state is small
			c.fsms[0].mu.Unlock()
			require.NoError(t, c.save(0))
		}
	}
	assert.Greater(t, c.nodes[0].Status().FirstIndex, int64(300))
	c.eventually(func() bool {
		names, err := c.disks[0].ReadDir("/data/log")
		require.NoError(t, err)
		return len(names) < 10
	}, "segments of 256 KiB for 4 MiB of entries are still there")
}

// What an interrupted install has left is kept as long as it may be resumed, and no longer.
func TestWhatAnInstallLeftIsDeletedWhenItIsOfNoUse(t *testing.T) {
	b := newInstallBed(t)
	content := map[string]string{"a": strings.Repeat("x", 300<<10), "entries": `["x"]`}
	serve := braftFiles(t, 100, []string{b.leads.String()}, content, "a", "entries")
	gone := false
	b.serve(func(req *rpc.Request, m *raftpb.GetFileRequest) {
		if gone = gone || m.GetFilename() == "entries"; gone {
			req.Fail(int32(ErrNotFound), "Fail to find reader=-77")
			return
		}
		serve(req, m)
	})
	rep := receive(t, b.install(3, 100))
	assert.EqualValues(t, ErrNotFound, rep.Code)
	dir := b.snapshotDir(0)
	names, err := b.disks[0].ReadDir(dir)
	require.NoError(t, err)
	assert.Contains(t, names, "copy")
	b.serve(braftFiles(t, 200, []string{b.leads.String()}, map[string]string{"entries": `["y"]`}, "entries"))
	installed(t, b.install(3, 200))
	names, err = b.disks[0].ReadDir(dir)
	require.NoError(t, err)
	assert.Equal(t, []string{fmt.Sprintf("snapshot_%020d", 200)}, names)

	c := compacted(t, 1, 0, NodeOptions{})
	require.NoError(t, c.disks[0].MkdirAll(c.snapshotDir(0)+"/copy/a", 0o755))
	c.propose("more")
	require.NoError(t, c.save(0))
	names, err = c.disks[0].ReadDir(c.snapshotDir(0))
	require.NoError(t, err)
	assert.Len(t, names, 1)
}

// X9: whoever asks for a snapshot to be installed does not make the host decode whatever it sends.
func TestAnInstallRequestHasABound(t *testing.T) {
	b := newInstallBed(t)
	m := &raftpb.InstallSnapshotRequest{
		GroupId: proto.String("nobody's"), ServerId: proto.String(b.leads.String()), PeerId: proto.String(b.cluster.peer(0).String()), Term: proto.Int64(1),
		Meta: &raftpb.SnapshotMeta{LastIncludedIndex: proto.Int64(1), LastIncludedTerm: proto.Int64(1), Peers: make([]string, maxRequest)},
		Uri:  proto.String("remote://nowhere"),
	}
	payload, err := proto.Marshal(m)
	require.NoError(t, err)
	got := make(chan rpc.Reply, 1)
	b.peer.Call(b.addrs[0], rpc.Call{Service: raftService, Method: methodInstall, Message: [][]byte{payload}, Done: func(r rpc.Reply) { got <- r }})
	r := receive(t, got)
	require.NoError(t, r.Err)
	assert.Equal(t, int32(codeBadRequest), r.Code, r.Text)
}
