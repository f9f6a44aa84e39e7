package graft

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// answerTo has a host serve a recorded request, and returns the frame of its answer.
func answerTo(t *testing.T, h *Host, f rpc.Frame) []byte {
	got := make(chan []byte, 1)
	h.serve(rpc.NewRequest(f.Service, f.Method, f.Message, f.Attachment, "test", func(code int32, text string, message []byte, attachment [][]byte) {
		if code != 0 {
			text = rpc.ErrorText(h.Address(), code, text)
		}
		got <- rpc.EncodeReply(f.ID, code, text, message, attachment)
	}))
	return receive(t, got)
}

// reply encodes a recorded answer.
func reply(f rpc.Frame) []byte {
	var attachment [][]byte
	if len(f.Attachment) > 0 {
		attachment = [][]byte{f.Attachment}
	}
	return rpc.EncodeReply(f.ID, f.Code, f.Text, f.Message, attachment)
}

// TestFilesAreServedAsBraftDoes puts the snapshot that a braft leader served on a disk, and asks for it as braft's follower
// did: the answers are the same, byte for byte, the manifest's too.
func TestFilesAreServedAsBraftDoes(t *testing.T) {
	frames := framesOf(t, fileServiceName)
	manifest := frames["get_file __raft_snapshot_meta"][1].Attachment[12:]
	data := slices.Concat(frames["get_file data first piece (count forced to 4)"][1].Attachment[12:], frames["get_file data last piece, eof"][1].Attachment[12:])
	m := new(raftpb.LocalSnapshotPbMeta)
	require.NoError(t, proto.Unmarshal(manifest, m))

	h := newLan(t).host("127.0.0.1:28101", false)
	dir := filepath.Join(h.snapshotDir("Counter", 0), fmt.Sprintf("snapshot_%020d", m.GetMeta().GetLastIncludedIndex()))
	require.NoError(t, vfs.MakeDir(h.fs, dir))
	for name, content := range map[string][]byte{
		metaFile: slices.Concat(binary.BigEndian.AppendUint32(nil, uint32(len(manifest))), manifest), "data": data,
	} {
		f, err := h.fs.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY, 0o644)
		require.NoError(t, err)
		_, err = f.WriteAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	n, err := h.StartNode("Counter", NodeOptions{StateMachine: &recorder{snapshots: true, skipLoad: true}})
	require.NoError(t, err)
	to := new(replicator)
	for _, id := range []int64{-34169774720612, -34169774720611} {
		lent, err := n.snap.lend(to)
		require.NoError(t, err)
		h.files.mu.Lock()
		delete(h.files.readers, lent.id)
		lent.id = id
		h.files.readers[id] = lent
		h.files.mu.Unlock()
	}
	tried := 0
	for name, pair := range frames {
		if pair[0].Service == "" || name == "get_file answered EAGAIN by a fake leader (braft retries after 1 s)" {
			continue
		}
		tried++
		assert.Equal(t, hex.EncodeToString(reply(pair[1])), hex.EncodeToString(answerTo(t, h, pair[0])), name)
	}
	assert.Equal(t, 6, tried)
}

// TestInstallIsAnsweredAsBraftDoes replays what was recorded of install_snapshot but a whole install.
func TestInstallIsAnsweredAsBraftDoes(t *testing.T) {
	frames := framesOf(t, raftService)
	for _, test := range []struct {
		name, address string
		term          int64
		base          logBase
	}{
		{"install_snapshot stale term", "127.0.0.1:28100", 3, logBase{}},
		{"install_snapshot bad uri -> EINVAL", "127.0.0.1:28106", 6, logBase{}},
		{"install_snapshot not newer than local snapshot: success at once", "127.0.0.1:28106", 6, logBase{index: 100, term: 6}},
	} {
		pair, ok := frames[test.name]
		require.True(t, ok, test.name)
		h := newLan(t).host(test.address, false)
		n, err := h.StartNode("Counter", NodeOptions{StateMachine: &recorder{snapshots: true}})
		require.NoError(t, err)
		n.post(func() {
			n.stepDown(test.term, &Error{Code: ErrHigherTerm})
			if test.base.index > 0 {
				n.lm.startAfter(test.base, func() {})
				n.fsm.applied.Store(test.base.index)
				n.box.follow(test.base.index)
			}
		})
		assert.Equal(t, hex.EncodeToString(reply(pair[1])), hex.EncodeToString(answerTo(t, h, pair[0])), test.name)
	}
}
