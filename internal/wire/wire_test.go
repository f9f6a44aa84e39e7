package wire

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/raftpb"
)

// encode writes the pieces of a request as a transport does.
func (r *AppendRequest) encode() []byte {
	return r.AppendTail(append(r.AppendHead(nil), r.Entries.Metas...))
}

// number is of any size up to 63 bits, 0 included.
func number(rng *rand.Rand) int64 { return rng.Int64() >> rng.IntN(64) }

func name(rng *rand.Rand) []byte {
	b := make([]byte, rng.IntN(200))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// randomRequest returns the same request in both forms.
func randomRequest(rng *rand.Rand) (AppendRequest, *raftpb.AppendEntriesRequest) {
	r := AppendRequest{
		GroupID: name(rng), ServerID: name(rng), PeerID: name(rng),
		Term: number(rng), PrevTerm: number(rng), PrevIndex: number(rng) >> 1, Commit: number(rng),
	}
	m := &raftpb.AppendEntriesRequest{
		GroupId: proto.String(string(r.GroupID)), ServerId: proto.String(string(r.ServerID)),
		PeerId: proto.String(string(r.PeerID)), Term: &r.Term, PrevLogTerm: &r.PrevTerm,
		PrevLogIndex: &r.PrevIndex, CommittedIndex: &r.Commit,
	}
	if rng.IntN(2) == 0 {
		r.GraftGroup = rng.Uint64()>>rng.IntN(64) | 1
		m.GraftGroupId = &r.GraftGroup
	}
	var b entry.Builder
	b.Reset(r.PrevIndex + 1)
	for range rng.IntN(5) {
		term := number(rng)
		meta := &raftpb.EntryMeta{Term: &term}
		if rng.IntN(3) == 0 {
			peers, old := []string{string(name(rng)), "a:1:0:0"}, []string{string(name(rng))}[:rng.IntN(2)]
			b.AppendConf(term, peers, old)
			meta.Type, meta.Peers, meta.OldPeers = raftpb.EntryType_CONFIGURATION.Enum(), peers, old
			meta.DataLen = proto.Int64(0)
		} else {
			payload := name(rng)
			b.AppendData(term, payload)
			meta.Type, meta.DataLen = raftpb.EntryType_DATA.Enum(), proto.Int64(int64(len(payload)))
		}
		m.Entries = append(m.Entries, meta)
	}
	r.Entries = b.Build()
	return r, m
}

func TestRequestEqualsGeneratedCode(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		r, m := randomRequest(rng)
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		require.NoError(t, err)
		got := r.encode()
		require.Equal(t, want, got)
		require.Equal(t, len(want), r.Size())

		parsed, err := ParseAppendRequest(want, r.Entries.Data)
		require.NoError(t, err)
		require.Equal(t, r.Entries.First, parsed.Entries.First)
		require.Equal(t, r.Entries.Count, parsed.Entries.Count)
		require.Equal(t, want, parsed.encode())
		again := new(raftpb.AppendEntriesRequest)
		require.NoError(t, proto.Unmarshal(got, again))
		require.True(t, proto.Equal(m, again))
	}
}

func TestResponseEqualsGeneratedCode(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 2000 {
		r := AppendResponse{Term: number(rng), Success: rng.IntN(2) == 0}
		m := &raftpb.AppendEntriesResponse{Term: &r.Term, Success: &r.Success}
		if rng.IntN(2) == 0 {
			r.LastIndex, r.HasLastIndex = number(rng), true
			m.LastLogIndex = &r.LastIndex
		}
		if rng.IntN(2) == 0 {
			r.Readonly, r.HasReadonly = rng.IntN(2) == 0, true
			m.Readonly = &r.Readonly
		}
		if rng.IntN(2) == 0 {
			r.Features, r.GraftGroup = rng.Uint64()|1, rng.Uint64()|1
			m.GraftFeatures, m.GraftGroupId = &r.Features, &r.GraftGroup
		}
		if rng.IntN(2) == 0 {
			r.ConflictTerm, r.ConflictIndex = number(rng)|1, number(rng)|1
			m.GraftConflictTerm, m.GraftConflictIndex = &r.ConflictTerm, &r.ConflictIndex
			r.AppliedIndex = number(rng) | 1
			r.StoredIndex = number(rng) | 1
			m.GraftAppliedIndex, m.GraftStoredIndex = &r.AppliedIndex, &r.StoredIndex
		}
		if rng.IntN(2) == 0 {
			r.InstallDone, r.InstallTotal, r.InstallLoads = number(rng)|1, number(rng)|1, true
			m.GraftInstallDone, m.GraftInstallTotal, m.GraftInstallLoads = &r.InstallDone, &r.InstallTotal, &r.InstallLoads
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		require.NoError(t, err)
		require.Equal(t, want, r.Append(nil))
		parsed, err := ParseAppendResponse(want)
		require.NoError(t, err)
		require.Equal(t, r, parsed)
	}
}

// unknown is what a later version might send: fields of each wire type.
func unknown() []byte {
	b := protowire.AppendVarint(protowire.AppendTag(nil, 20, protowire.VarintType), 5)
	b = protowire.AppendString(protowire.AppendTag(b, 1500, protowire.BytesType), "new")
	b = protowire.AppendFixed32(protowire.AppendTag(b, 21, protowire.Fixed32Type), 1)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 22, protowire.Fixed64Type), 1)
	b = protowire.AppendTag(b, 23, protowire.StartGroupType)
	b = protowire.AppendVarint(protowire.AppendTag(b, 1, protowire.VarintType), 5)
	b = protowire.AppendTag(b, 23, protowire.EndGroupType)
	// Known numbers with a type they were not declared with.
	b = protowire.AppendFixed32(protowire.AppendTag(b, 1, protowire.Fixed32Type), 5)
	return protowire.AppendVarint(protowire.AppendTag(b, 7, protowire.VarintType), 5)
}

func TestUnknownFieldsAreSkipped(t *testing.T) {
	r, _ := randomRequest(rand.New(rand.NewPCG(5, 6)))
	known := r.encode()
	for _, msg := range [][]byte{append(unknown(), known...), append(known[:len(known):len(known)], unknown()...)} {
		parsed, err := ParseAppendRequest(msg, r.Entries.Data)
		require.NoError(t, err)
		require.Equal(t, known, parsed.encode())
	}
	response := AppendResponse{Term: 3, Success: true}
	parsed, err := ParseAppendResponse(append(unknown(), response.Append(nil)...))
	require.NoError(t, err)
	require.Equal(t, response, parsed)
}

func TestScatteredEntriesAreGathered(t *testing.T) {
	var b entry.Builder
	b.Reset(8)
	for i := range 4 {
		b.AppendData(2, make([]byte, i*100))
	}
	batch := b.Build()
	r := AppendRequest{Term: 2, PrevTerm: 1, PrevIndex: 7}
	msg := r.AppendHead(nil)
	for i := range int64(4) {
		one := batch.From(8 + i).Upto(8 + i)
		switch i {
		case 1:
			msg = protowire.AppendVarint(protowire.AppendTag(msg, 99, protowire.VarintType), 1)
		case 2: // a tag of two bytes where one would do
			msg = append(append(msg, one.Metas[0]|0x80, 0), one.Metas[1:]...)
			continue
		}
		msg = append(msg, one.Metas...)
	}
	msg = r.AppendTail(msg)
	parsed, err := ParseAppendRequest(msg, batch.Data)
	require.NoError(t, err)
	require.Equal(t, batch, parsed.Entries)
	_, err = entry.Check(parsed.Entries)
	require.NoError(t, err)

	// The odd one first.
	msg = r.AppendTail(append(append(append(r.AppendHead(nil), batch.Metas[0]|0x80, 0), batch.Metas[1:]...), unknown()...))
	parsed, err = ParseAppendRequest(msg, batch.Data)
	require.NoError(t, err)
	require.Equal(t, batch, parsed.Entries)
}

func TestRequestRefuses(t *testing.T) {
	good := AppendRequest{GroupID: []byte("g"), Term: 1, PrevTerm: 1, PrevIndex: 1, Commit: 1}
	for name, msg := range map[string][]byte{
		"empty":               nil,
		"no commit":           good.AppendHead(nil),
		"no head":             good.AppendTail(nil),
		"cut tag":             append(good.encode(), 0x80),
		"cut entry tag":       append(good.encode(), tagEntry),
		"entry past the end":  append(good.encode(), tagEntry, 2, 1),
		"cut second entry":    append(good.encode(), tagEntry, 0, tagEntry, 5, 8),
		"huge entry":          append(good.encode(), tagEntry, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f),
		"entry size overflow": append(good.encode(), tagEntry, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f),
		"long group id":       append(good.encode(), tagGroupID, 0xff, 0xff, 0xff, 0xff, 0x0f),
		"cut varint":          append(good.encode(), tagTerm, 0x80),
		"open group":          append(good.encode(), 0xbb, 0x01),
		"field 0":             append(good.encode(), 0),
		"negative prev":       (&AppendRequest{PrevIndex: -1}).encode(),
		"prev at the end":     (&AppendRequest{PrevIndex: math.MaxInt64}).encode(),
		"entries past the end": (&AppendRequest{
			PrevIndex: math.MaxInt64 - 1, Entries: entry.Batch{Metas: []byte{tagEntry, 0}},
		}).encode(),
	} {
		_, err := ParseAppendRequest(msg, nil)
		require.ErrorIs(t, err, ErrMalformed, name)
		require.NotContains(t, err.Error(), "%!", name)
	}
	_, err := ParseAppendRequest(good.encode(), nil)
	require.NoError(t, err)
	for _, msg := range []string{"", "\x08\x01", "\x10\x01", "\x08\x01\x10", "\x08\x01\x10\x80", "\x08\x01\x10\x01\x1a\x05"} {
		_, err := ParseAppendResponse([]byte(msg))
		require.ErrorIs(t, err, ErrMalformed, "%q", msg)
	}
}

// TestPayloadsNeedNotFit: what the metas say about the payloads is for entry.Check.
func TestPayloadsNeedNotFit(t *testing.T) {
	var b entry.Builder
	b.Reset(1)
	b.AppendData(1, make([]byte, 10))
	r := AppendRequest{Entries: b.Build()}
	for _, attachment := range [][]byte{nil, make([]byte, 1<<16)} {
		parsed, err := ParseAppendRequest(r.encode(), attachment)
		require.NoError(t, err)
		require.Equal(t, attachment, parsed.Entries.Data)
		_, err = entry.Check(parsed.Entries)
		require.Error(t, err)
	}
}

func TestParsingDoesNotAllocate(t *testing.T) {
	r, _ := randomRequest(rand.New(rand.NewPCG(1, 1)))
	msg, response := r.encode(), (&AppendResponse{Term: 5, Success: true}).Append(nil)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := ParseAppendRequest(msg, r.Entries.Data); err != nil {
			t.Fatal(err)
		}
		if _, err := ParseAppendResponse(response); err != nil {
			t.Fatal(err)
		}
	}))
}

func BenchmarkParseAppendRequest(b *testing.B) {
	var build entry.Builder
	build.Reset(1)
	for range 256 {
		build.AppendData(1, make([]byte, 16))
	}
	r := AppendRequest{GroupID: []byte("group"), ServerID: []byte("127.0.0.1:8000:0:0"), PeerID: []byte("127.0.0.1:8001:0:0"), Entries: build.Build()}
	msg := r.encode()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseAppendRequest(msg, r.Entries.Data); err != nil {
			b.Fatal(err)
		}
	}
}
