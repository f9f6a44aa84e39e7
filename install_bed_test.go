package graft

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// installBed is a follower whose leader is the test.
type installBed struct {
	*cluster
	peer  *rpc.TCP
	leads PeerID
	mu    sync.Mutex
	files func(req *rpc.Request, m *raftpb.GetFileRequest)
}

func newInstallBed(t *testing.T) *installBed {
	b := &installBed{cluster: snapshotGroup(t, 1, 1, NodeOptions{ElectionTimeout: time.Minute})}
	b.leads = PeerID{Address: freeAddrs(t, 1)[0]}
	b.peer = rpc.NewTCP(rpc.TCPOptions{ // nothing is lost to a busy machine
		ConnectTimeout: time.Minute, FrameTimeout: time.Minute, WriteTimeout: time.Minute, SilenceTimeout: time.Minute,
	})
	require.NoError(t, b.peer.Start(rpc.StartOptions{Listen: b.leads.Address, Address: b.leads.Address, Incarnation: 1, Serve: func(req *rpc.Request) {
		m := new(raftpb.GetFileRequest)
		if req.Method != methodGetFile || proto.Unmarshal(req.Message, m) != nil {
			req.Fail(codeNoMethod, "Fail to find method")
			return
		}
		b.mu.Lock()
		files := b.files
		b.mu.Unlock()
		files(req, m)
	}}))
	t.Cleanup(func() { assert.NoError(t, b.peer.Close()) })
	b.startWith(0, Configuration{})
	return b
}

// install sends install_snapshot.
func (b *installBed) install(term, index int64) chan rpc.Reply {
	return b.installOf(term, index, 1, "-77", 0)
}

// installOf sends install_snapshot of an entry's term, that a reader has.
func (b *installBed) installOf(term, index, entryTerm int64, reader string, features uint64) chan rpc.Reply {
	m := &raftpb.InstallSnapshotRequest{
		GroupId: proto.String("g"), ServerId: proto.String(b.leads.String()), PeerId: proto.String(b.cluster.peer(0).String()), Term: &term,
		Meta: &raftpb.SnapshotMeta{LastIncludedIndex: &index, LastIncludedTerm: &entryTerm, Peers: []string{b.leads.String()}},
		Uri:  proto.String("remote://" + b.leads.Address + "/" + reader),
	}
	if features != 0 {
		m.GraftFeatures = &features
	}
	payload, err := proto.Marshal(m)
	require.NoError(b.t, err)
	got := make(chan rpc.Reply, 1)
	b.peer.Call(b.addrs[0], rpc.Call{Service: raftService, Method: methodInstall, Message: [][]byte{payload}, Done: func(r rpc.Reply) { got <- r }})
	return got
}

// answered waits until a request to install a snapshot has been answered without an error.
func answered(t *testing.T, from chan rpc.Reply) *raftpb.InstallSnapshotResponse {
	t.Helper()
	rep := receive(t, from)
	require.NoError(t, rep.Err)
	require.Zero(t, rep.Code, rep.Text)
	resp := new(raftpb.InstallSnapshotResponse)
	require.NoError(t, proto.Unmarshal(rep.Message, resp))
	return resp
}

// installed waits until a snapshot has been installed.
func installed(t *testing.T, from chan rpc.Reply) *raftpb.InstallSnapshotResponse {
	t.Helper()
	resp := answered(t, from)
	require.True(t, resp.GetSuccess())
	return resp
}

func (b *installBed) serve(files func(req *rpc.Request, m *raftpb.GetFileRequest)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.files = files
}

// braftFiles serves a snapshot as braft does: a manifest without hashes, files strictly from beginning to end, one read
// at a time.
func braftFiles(t *testing.T, index int64, peers []string, content map[string]string, order ...string) func(*rpc.Request, *raftpb.GetFileRequest) {
	var mu sync.Mutex
	at, file, reading := int64(0), "", false
	manifest := &raftpb.LocalSnapshotPbMeta{Meta: &raftpb.SnapshotMeta{LastIncludedIndex: &index, LastIncludedTerm: proto.Int64(1), Peers: peers}}
	for _, name := range order {
		manifest.Files = append(manifest.Files, &raftpb.LocalSnapshotPbMeta_File{Name: proto.String(name), Meta: &raftpb.LocalFileMeta{}})
	}
	bare, err := proto.Marshal(manifest)
	require.NoError(t, err)
	return func(req *rpc.Request, m *raftpb.GetFileRequest) {
		mu.Lock()
		defer mu.Unlock()
		if reading {
			req.Fail(codeAgain, "busy")
			return
		}
		reply := func(off int64, data []byte, eof bool) { // another read may come before it is there
			reading = true
			time.AfterFunc(time.Millisecond, func() {
				mu.Lock()
				reading = false
				mu.Unlock()
				replyFile(req, off, data, eof)
			})
		}
		if m.GetFilename() == metaFile {
			reply(0, bare, true)
			return
		}
		data, ok := content[m.GetFilename()]
		if file != "" && file != m.GetFilename() || m.GetOffset() != at || !ok {
			req.Fail(int32(ErrInvalid), fmt.Sprintf("read of %s at %d, while %q is read at %d", m.GetFilename(), m.GetOffset(), file, at))
			return
		}
		end := min(at+m.GetCount(), int64(len(data)))
		piece, eof := data[at:end], at+m.GetCount() >= int64(len(data))
		file, at = m.GetFilename(), end
		if eof {
			file, at = "", 0
		}
		reply(m.GetOffset(), []byte(piece), eof)
	}
}

func replyFile(req *rpc.Request, off int64, data []byte, eof bool) {
	b, _ := proto.Marshal(&raftpb.GetFileResponse{Eof: &eof, ReadSize: proto.Int64(int64(len(data)))})
	if len(data) == 0 {
		req.Reply(b)
		return
	}
	head := make([]byte, 12, 12+len(data))
	for i := range 8 {
		head[i] = byte(off >> (56 - 8*i))
	}
	for i := range 4 {
		head[8+i] = byte(len(data) >> (24 - 8*i))
	}
	req.ReplyAttachment(b, [][]byte{append(head, data...)})
}
