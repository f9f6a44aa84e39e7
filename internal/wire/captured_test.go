package wire

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/baidustd"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/raftpb"
)

// captured is one line of baidustd's testdata/frames.jsonl: a frame seen on the wire.
type captured struct {
	Name      string `json:"name"`
	Direction string `json:"direction"`
	WrittenBy string `json:"written_by"`
	Service   string `json:"service"`
	Method    string `json:"method"`
	Hex       string `json:"hex"`

	raw                 []byte
	meta                baidustd.Meta
	message, attachment []byte
}

// readFrames returns the captured frames that hold a message.
func readFrames(t testing.TB) []captured {
	file, err := os.Open("../baidustd/testdata/frames.jsonl")
	require.NoError(t, err)
	defer file.Close()
	var all []captured
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c captured
		require.NoError(t, json.Unmarshal(lines.Bytes(), &c))
		c.raw, err = hex.DecodeString(c.Hex)
		require.NoError(t, err)
		body, metaSize, err := baidustd.ParseHeader(c.raw, baidustd.DefaultMaxBody)
		require.NoError(t, err)
		require.Len(t, c.raw, baidustd.HeaderSize+body)
		c.meta, err = baidustd.ParseMeta(c.raw[baidustd.HeaderSize:][:metaSize])
		require.NoError(t, err)
		var ok bool
		if c.message, c.attachment, ok = c.meta.Split(c.raw[baidustd.HeaderSize+metaSize:]); ok {
			all = append(all, c)
		}
	}
	require.NoError(t, lines.Err())
	return all
}

// frame writes a frame around a message.
func (c *captured) frame(message []byte) []byte {
	m := &c.meta
	var b []byte
	if m.IsRequest {
		b = baidustd.AppendRequest(nil, string(m.Service), string(m.Method), m.CorrelationID, len(message), len(c.attachment))
	} else {
		b = baidustd.AppendResponse(nil, m.ErrorCode, string(m.ErrorText), m.CorrelationID, len(message), len(c.attachment))
	}
	return append(append(b, message...), c.attachment...)
}

// messages are the generated types of RaftService and FileService.
var messages = map[string]map[string]proto.Message{
	"request": {
		"pre_vote": &raftpb.RequestVoteRequest{}, "request_vote": &raftpb.RequestVoteRequest{},
		"append_entries": &raftpb.AppendEntriesRequest{}, "install_snapshot": &raftpb.InstallSnapshotRequest{},
		"timeout_now": &raftpb.TimeoutNowRequest{}, "get_file": &raftpb.GetFileRequest{},
	},
	"response": {
		"pre_vote": &raftpb.RequestVoteResponse{}, "request_vote": &raftpb.RequestVoteResponse{},
		"append_entries": &raftpb.AppendEntriesResponse{}, "install_snapshot": &raftpb.InstallSnapshotResponse{},
		"timeout_now": &raftpb.TimeoutNowResponse{}, "get_file": &raftpb.GetFileResponse{},
	},
}

func TestBraftFramesEncodeToTheSameBytes(t *testing.T) {
	frames := 0
	for _, c := range readFrames(t) {
		if c.WrittenBy != "braft" || messages[c.Direction][c.Method] == nil {
			continue
		}
		frames++
		if c.meta.ErrorCode != 0 {
			require.Equal(t, c.raw, c.frame(nil), c.Name)
			continue
		}
		m := messages[c.Direction][c.Method]
		require.NotNil(t, m, "%s %s", c.Direction, c.Method)
		m = m.ProtoReflect().New().Interface()
		require.NoError(t, proto.Unmarshal(c.message, m), c.Name)
		require.Empty(t, m.ProtoReflect().GetUnknown(), c.Name)
		again, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, c.raw, c.frame(again), c.Name)
	}
	require.GreaterOrEqual(t, frames, 60)
}

func TestBraftAppendEntriesByHand(t *testing.T) {
	requests, responses := 0, 0
	for _, c := range readFrames(t) {
		if c.WrittenBy != "braft" || c.Method != "append_entries" || c.meta.ErrorCode != 0 {
			continue
		}
		if c.Direction == "request" {
			requests++
			r, err := ParseAppendRequest(c.message, c.attachment)
			require.NoError(t, err, c.Name)
			require.Equal(t, c.raw, c.frame(r.encode()), c.Name)
			require.Equal(t, len(c.message), r.Size(), c.Name)
			_, err = entry.Check(r.Entries)
			require.NoError(t, err, c.Name)
			continue
		}
		responses++
		r, err := ParseAppendResponse(c.message)
		require.NoError(t, err, c.Name)
		require.Equal(t, c.raw, c.frame(r.Append(nil)), c.Name)
	}
	require.GreaterOrEqual(t, requests, 12)
	require.GreaterOrEqual(t, responses, 15)
}

func FuzzParseAppendRequest(f *testing.F) {
	for _, c := range readFrames(f) {
		if c.Method == "append_entries" && c.Direction == "request" {
			f.Add(c.message, c.attachment)
		}
	}
	f.Fuzz(func(t *testing.T, msg, attachment []byte) {
		r, err := ParseAppendRequest(msg, attachment)
		m := new(raftpb.AppendEntriesRequest)
		generated := proto.Unmarshal(msg, m)
		if err != nil {
			if r.PrevIndex = m.GetPrevLogIndex(); generated == nil && r.PrevIndex >= 0 && r.PrevIndex < 1<<62 {
				t.Fatalf("refused what the generated code takes: %v", err)
			}
			return
		}
		_, checked := entry.Check(r.Entries)
		if n, err := entry.CountMetas(r.Entries.Metas); err != nil || n != r.Entries.Count {
			t.Fatalf("%d entries counted, %d records are there: %v", r.Entries.Count, n, err)
		}
		if generated != nil {
			if checked == nil {
				t.Fatalf("taken, but the generated code says %v", generated)
			}
			return
		}
		require.Equal(t, len(m.GetEntries()), r.Entries.Count)
		require.Equal(t, m.GetGroupId(), string(r.GroupID))
		require.Equal(t, m.GetServerId(), string(r.ServerID))
		require.Equal(t, m.GetPeerId(), string(r.PeerID))
		require.Equal(t, []int64{m.GetTerm(), m.GetPrevLogTerm(), m.GetPrevLogIndex(), m.GetCommittedIndex()},
			[]int64{r.Term, r.PrevTerm, r.PrevIndex, r.Commit})
		require.Equal(t, m.GetGraftGroupId(), r.GraftGroup)
		again, err := ParseAppendRequest(r.encode(), attachment)
		require.NoError(t, err)
		require.Equal(t, r.encode(), again.encode())
	})
}

func FuzzParseAppendResponse(f *testing.F) {
	for _, c := range readFrames(f) {
		if c.Method == "append_entries" && c.Direction == "response" {
			f.Add(c.message)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		r, err := ParseAppendResponse(msg)
		m := new(raftpb.AppendEntriesResponse)
		require.Equal(t, proto.Unmarshal(msg, m) == nil, err == nil)
		if err != nil {
			return
		}
		require.Equal(t, AppendResponse{
			Term: m.GetTerm(), Success: m.GetSuccess(), LastIndex: m.GetLastLogIndex(), HasLastIndex: m.LastLogIndex != nil,
			Readonly: m.GetReadonly(), HasReadonly: m.Readonly != nil, Features: m.GetGraftFeatures(),
			GraftGroup: m.GetGraftGroupId(), ConflictTerm: m.GetGraftConflictTerm(), ConflictIndex: m.GetGraftConflictIndex(),
			AppliedIndex: m.GetGraftAppliedIndex(), StoredIndex: m.GetGraftStoredIndex(),
			InstallDone: m.GetGraftInstallDone(), InstallTotal: m.GetGraftInstallTotal(), InstallLoads: m.GetGraftInstallLoads(),
		}, r)
	})
}
