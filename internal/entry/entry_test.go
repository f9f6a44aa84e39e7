package entry_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/raftpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// record frames an EntryMeta as field 7 of AppendEntriesRequest.
func record(t testing.TB, m *raftpb.EntryMeta) []byte {
	t.Helper()
	msg, err := proto.MarshalOptions{Deterministic: true, AllowPartial: true}.Marshal(m)
	require.NoError(t, err)
	return protowire.AppendBytes(protowire.AppendTag(nil, 7, protowire.BytesType), msg)
}

// raw frames any bytes as a record.
func raw(msg ...byte) []byte {
	return protowire.AppendBytes([]byte{0x3a}, msg)
}

func pb(typ raftpb.EntryType, term int64, dataLen int64, peers, old []string) *raftpb.EntryMeta {
	return &raftpb.EntryMeta{Term: proto.Int64(term), Type: typ.Enum(), DataLen: proto.Int64(dataLen), Peers: peers, OldPeers: old}
}

// sample is a batch built twice: by the Builder, and as messages.
type sample struct {
	batch entry.Batch
	metas []*raftpb.EntryMeta
	data  [][]byte
}

var peerNames = []string{"127.0.0.1:28100:0:0", "127.0.0.1:28101:0:1", "10.1.2.3:65535:17:0"}

// randomSample draws a batch of n entries whose numbers take one byte or many.
func randomSample(rng *rand.Rand, n int) sample {
	var s sample
	var b entry.Builder
	b.Reset(1 + rng.Int64N(1<<40))
	term := 1 + rng.Int64N(1<<rng.IntN(50))
	for range n {
		if rng.IntN(8) == 0 {
			term += 1 + rng.Int64N(200)
		}
		if rng.IntN(10) == 0 {
			peers := peerNames[:1+rng.IntN(3)]
			old := peerNames[:rng.IntN(3)]
			b.AppendConf(term, peers, old)
			s.metas = append(s.metas, pb(raftpb.EntryType_CONFIGURATION, term, 0, peers, old))
			s.data = append(s.data, nil)
			continue
		}
		payload := make([]byte, rng.IntN(1+1<<rng.IntN(10)))
		for i := range payload {
			payload[i] = byte(rng.Uint32())
		}
		b.AppendData(term, payload)
		s.metas = append(s.metas, pb(raftpb.EntryType_DATA, term, int64(len(payload)), nil, nil))
		s.data = append(s.data, payload)
	}
	s.batch = b.Build()
	return s
}

func TestBuilderWritesWhatGeneratedCodeWrites(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		s := randomSample(rng, rng.IntN(40))
		var metas, data []byte
		for i, m := range s.metas {
			metas = append(metas, record(t, m)...)
			data = append(data, s.data[i]...)
		}
		require.Equal(t, len(s.metas), s.batch.Count)
		require.True(t, bytes.Equal(metas, s.batch.Metas), "records: got %x, want %x", s.batch.Metas, metas)
		require.True(t, bytes.Equal(data, s.batch.Data), "payloads differ")
		require.Equal(t, len(metas)+len(data), s.batch.Size())
		checkIter(t, s)
		checkSummary(t, s)
		count, err := entry.CountMetas(s.batch.Metas)
		require.NoError(t, err)
		require.Equal(t, s.batch.Count, count)
	}
}

func checkIter(t *testing.T, s sample) {
	t.Helper()
	it := s.batch.Iter()
	for i, want := range s.metas {
		got, ok := it.Next()
		require.True(t, ok, "entry %d of %d", i, len(s.metas))
		require.Equal(t, s.batch.First+int64(i), got.Index)
		require.Equal(t, want.GetTerm(), got.Term)
		require.Equal(t, int32(want.GetType()), int32(got.Type))
		require.True(t, bytes.Equal(s.data[i], got.Data))
		require.Equal(t, len(got.Data), cap(got.Data), "an append would overwrite the next payload")
		var m raftpb.EntryMeta
		require.NoError(t, proto.Unmarshal(got.Meta, &m))
		require.True(t, proto.Equal(want, &m))
		_, peers, old, err := entry.ConfPeers(got.Meta)
		if got.Type != entry.Configuration {
			require.ErrorIs(t, err, entry.ErrMalformed)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, m.Peers, peers)
		require.Equal(t, m.OldPeers, old)
	}
	_, ok := it.Next()
	require.False(t, ok)
}

func checkSummary(t *testing.T, s sample) {
	t.Helper()
	var want entry.Summary
	var runs []entry.TermRun
	for i, m := range s.metas {
		index := s.batch.First + int64(i)
		if i == 0 {
			want.FirstTerm = m.GetTerm()
		}
		if m.GetTerm() != want.LastTerm {
			runs = append(runs, entry.TermRun{First: index, Term: m.GetTerm()})
		}
		want.LastTerm = m.GetTerm()
		if m.GetType() == raftpb.EntryType_CONFIGURATION {
			want.Confs = append(want.Confs, entry.ConfMark{Index: index, Meta: record(t, m)[2:]})
		}
	}
	if len(runs) > 1 {
		want.Runs = runs
	}
	got, err := entry.Check(s.batch)
	require.NoError(t, err)
	require.Equal(t, len(want.Confs), len(got.Confs))
	for i := range want.Confs {
		require.Equal(t, want.Confs[i].Index, got.Confs[i].Index)
		_, _, _, err := entry.ConfPeers(got.Confs[i].Meta)
		require.NoError(t, err)
	}
	got.Confs, want.Confs = nil, nil
	require.Equal(t, want, got)
}

func TestFromAndUpto(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for range 50 {
		s := randomSample(rng, rng.IntN(12))
		b := s.batch
		for index := b.First - 2; index <= b.Last()+3; index++ {
			cut := int(min(max(index-b.First, 0), int64(b.Count)))
			tail := sample{b.From(index), s.metas[cut:], s.data[cut:]}
			require.Equal(t, b.First+int64(cut), tail.batch.First)
			require.Equal(t, b.Last(), tail.batch.Last())
			checkIter(t, tail)
			checkSummary(t, tail)

			cut = int(min(max(index-b.First+1, 0), int64(b.Count)))
			head := sample{b.Upto(index), s.metas[:cut], s.data[:cut]}
			require.Equal(t, b.First, head.batch.First)
			require.Equal(t, cut, head.batch.Count)
			checkIter(t, head)
			checkSummary(t, head)
		}
	}
}

// TestCloneIsAlone: a clone is equal, and outlives what its original was a view into.
func TestCloneIsAlone(t *testing.T) {
	var b entry.Builder
	b.Reset(7)
	b.AppendData(1, []byte("one"))
	b.AppendData(2, []byte("two"))
	original := b.Build()
	clone := original.Clone()
	require.Equal(t, original, clone)
	require.Equal(t, len(clone.Metas), cap(clone.Metas), "an append must not reach the payloads")
	clear(original.Metas)
	clear(original.Data)
	sum, err := entry.Check(clone)
	require.NoError(t, err)
	require.EqualValues(t, 2, sum.LastTerm)
	require.Equal(t, "onetwo", string(clone.Data))
}

func TestCheckRefuses(t *testing.T) {
	data := func(term, n int64) []byte { return record(t, pb(raftpb.EntryType_DATA, term, n, nil, nil)) }
	conf := func(n int64, peers ...string) []byte {
		return record(t, pb(raftpb.EntryType_CONFIGURATION, 5, n, peers, nil))
	}
	for _, test := range []struct {
		name  string
		batch entry.Batch
	}{
		{"negative count", entry.Batch{First: 1, Count: -1}},
		{"index 0", entry.Batch{First: 0, Count: 1, Metas: data(1, 0)}},
		{"last index overflows", entry.Batch{First: math.MaxInt64, Count: 1, Metas: data(1, 0)}},
		{"fewer records than counted", entry.Batch{First: 1, Count: 2, Metas: data(1, 0)}},
		{"more records than counted", entry.Batch{First: 1, Count: 1, Metas: append(data(1, 0), data(1, 0)...)}},
		{"records of an empty batch", entry.Batch{First: 1, Metas: data(1, 0)}},
		{"payload of an empty batch", entry.Batch{First: 1, Data: []byte("x")}},
		{"payload too short", entry.Batch{First: 1, Count: 1, Metas: data(1, 3), Data: []byte("ab")}},
		{"payload too long", entry.Batch{First: 1, Count: 1, Metas: data(1, 3), Data: []byte("abcd")}},
		{"data_len negative", entry.Batch{First: 1, Count: 1, Metas: data(1, -1)}},
		{"data_len huge", entry.Batch{First: 1, Count: 1, Metas: data(1, math.MaxInt64)}},
		{"sum of data_len overflows", entry.Batch{First: 1, Count: 3,
			Metas: bytes.Join([][]byte{data(1, math.MaxInt64), data(1, math.MaxInt64), data(1, 2)}, nil)}},
		{"term 0", entry.Batch{First: 1, Count: 1, Metas: data(0, 0)}},
		{"term 0 after term 0", entry.Batch{First: 1, Count: 2, Metas: append(data(0, 0), data(0, 0)...)}},
		{"term negative", entry.Batch{First: 1, Count: 1, Metas: data(-1, 0)}},
		{"term decreases", entry.Batch{First: 1, Count: 2, Metas: append(data(2, 0), data(1, 0)...)}},
		{"type UNKNOWN", entry.Batch{First: 1, Count: 1, Metas: record(t, pb(raftpb.EntryType_UNKNOWN, 1, 0, nil, nil))}},
		{"type 4", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 4)}},
		{"type 2 + 1<<32", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 0x82, 0x80, 0x80, 0x80, 0x10)}},
		{"no type", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x20, 0)}},
		{"no term", entry.Batch{First: 1, Count: 1, Metas: raw(0x10, 2, 0x20, 0)}},
		{"empty message", entry.Batch{First: 1, Count: 1, Metas: raw()}},
		{"configuration without peers", entry.Batch{First: 1, Count: 1, Metas: conf(0)}},
		{"configuration with payload", entry.Batch{First: 1, Count: 1, Metas: conf(1, "a"), Data: []byte("x")}},
		{"DATA with peers", entry.Batch{First: 1, Count: 1,
			Metas: record(t, pb(raftpb.EntryType_DATA, 1, 0, []string{"a"}, nil))}},
		{"DATA with peers, second of its term", entry.Batch{First: 1, Count: 2,
			Metas: append(data(1, 0), record(t, pb(raftpb.EntryType_DATA, 1, 0, []string{"a"}, nil))...)}},
		{"NO_OP with old peers", entry.Batch{First: 1, Count: 1,
			Metas: record(t, pb(raftpb.EntryType_NO_OP, 1, 0, nil, []string{"a"}))}},
		{"term as a string", entry.Batch{First: 1, Count: 1, Metas: raw(0x0a, 0, 0x08, 1, 0x10, 2)}},
		{"peers as a number", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 3, 0x18, 1)}},
		{"data_len as fixed64", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 2, 0x21, 0, 0, 0, 0, 0, 0, 0, 0)}},
		{"record cut short", entry.Batch{First: 1, Count: 1, Metas: data(1, 0)[:7]}},
		{"record without a length", entry.Batch{First: 1, Count: 1, Metas: []byte{0x3a}}},
		{"record with another tag", entry.Batch{First: 1, Count: 1, Metas: append([]byte{0x42}, data(1, 0)[1:]...)}},
		{"record's length too long", entry.Batch{First: 1, Count: 1,
			Metas: []byte{0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}}},
		{"varint cut short", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 2, 0x20, 0x80)}},
		{"varint of eleven bytes", entry.Batch{First: 1, Count: 1,
			Metas: raw(0x10, 2, 0x08, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01)}},
		{"tag 0", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 2, 0x00, 0)}},
		{"group left open", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 2, 0x33, 0x08, 1)}},
		{"string cut short", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 3, 0x1a, 5, 'a')}},
	} {
		got, err := entry.Check(test.batch)
		require.ErrorIs(t, err, entry.ErrMalformed, test.name)
		require.Equal(t, entry.Summary{}, got, test.name)
	}
}

func TestCheckAllows(t *testing.T) {
	for _, test := range []struct {
		name  string
		batch entry.Batch
	}{
		{"nothing", entry.Batch{}},
		{"no data_len, as for a witness", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 2)}},
		{"configuration without data_len", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 3, 0x1a, 1, 'a')}},
		{"NO_OP", entry.Batch{First: 1, Count: 1, Metas: raw(0x08, 1, 0x10, 1, 0x20, 0)}},
		{"unknown fields", entry.Batch{First: 1, Count: 1, Data: []byte("x"),
			Metas: raw(0x08, 1, 0x30, 9, 0x10, 2, 0x20, 1, 0x3a, 1, 'z', 0x43, 0x08, 1, 0x44)}},
		{"fields out of order", entry.Batch{First: 1, Count: 1, Data: []byte("x"), Metas: raw(0x20, 1, 0x10, 2, 0x08, 1)}},
		{"the last value counts", entry.Batch{First: 1, Count: 1, Data: []byte("x"),
			Metas: raw(0x08, 0, 0x10, 0, 0x20, 9, 0x10, 2, 0x20, 1, 0x08, 1)}},
		{"numbers longer than need be", entry.Batch{First: 1, Count: 1, Data: []byte("x"),
			Metas: []byte{0x3a, 0x88, 0x00, 0x08, 0x81, 0x00, 0x10, 2, 0x20, 0x81, 0x00}}},
	} {
		got, err := entry.Check(test.batch)
		require.NoError(t, err, test.name)
		it := test.batch.Iter()
		n := 0
		for e, ok := it.Next(); ok; e, ok = it.Next() {
			require.Equal(t, got.LastTerm, e.Term, test.name)
			require.Equal(t, len(test.batch.Data), len(e.Data), test.name)
			n++
		}
		require.Equal(t, test.batch.Count, n, test.name)
	}
}

func TestBuilderIsReusable(t *testing.T) {
	var b entry.Builder
	b.Reset(7)
	b.Grow(2, 10)
	b.AppendData(1, []byte("first"))
	first := b.Build()
	require.Equal(t, 0, b.Count())
	b.AppendData(1, []byte("second"))
	require.Equal(t, 1, b.Count())
	require.Equal(t, 8+6, b.Size())
	second := b.Build()
	require.Equal(t, int64(8), second.First)
	require.Equal(t, "first", string(first.Data), "Build hands the memory over")
	b.AppendData(1, []byte("dropped"))
	b.Reset(3)
	require.Equal(t, entry.Batch{First: 3}.Last(), b.Build().Last())
}

func TestCommonPathsDoNotAllocate(t *testing.T) {
	batch := uniform(64, 3, 200)
	var sum int
	require.Zero(t, testing.AllocsPerRun(20, func() {
		it := batch.Iter()
		for e, ok := it.Next(); ok; e, ok = it.Next() {
			sum += len(e.Data)
		}
		s, err := entry.Check(batch)
		if err != nil || s.Runs != nil || s.Confs != nil {
			sum = 0
		}
		sum += batch.From(batch.First+10).Count + batch.Upto(batch.First+10).Count
	}))
	require.NotZero(t, sum)
}

// uniform builds n entries of one term and size.
func uniform(n int, term int64, size int) entry.Batch {
	var b entry.Builder
	b.Reset(1)
	for range n {
		b.AppendData(term, make([]byte, size))
	}
	return b.Build()
}
