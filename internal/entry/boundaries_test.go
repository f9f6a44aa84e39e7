package entry_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/raftpb"
)

// Numbers of one byte are written and read on a way of their own. It ends exactly where they begin to take two.
func TestEntriesAroundTheSizesOfNumbers(t *testing.T) {
	for _, term := range []int64{1, 126, 127, 128, 129, 1<<14 - 1, 1 << 14, 1 << 62} {
		for _, size := range []int{0, 1, 126, 127, 128, 129, 130, 255, 256, 1<<14 - 1, 1 << 14, 1<<14 + 1} {
			var b entry.Builder
			b.Reset(7)
			payload := make([]byte, size)
			for i := range payload {
				payload[i] = byte(i + 1)
			}
			b.AppendData(term, payload)
			b.AppendData(term, []byte("behind"))
			s := sample{
				batch: b.Build(),
				metas: []*raftpb.EntryMeta{
					pb(raftpb.EntryType_DATA, term, int64(size), nil, nil), pb(raftpb.EntryType_DATA, term, 6, nil, nil),
				},
				data: [][]byte{payload, []byte("behind")},
			}
			require.Equal(t, append(record(t, s.metas[0]), record(t, s.metas[1])...), s.batch.Metas, "term %d, %d bytes", term, size)
			checkIter(t, s)
			checkSummary(t, s)
			require.Equal(t, s.batch.Metas, append(s.batch.Upto(7).Metas, s.batch.From(8).Metas...))
			require.Equal(t, s.batch.Data, append(s.batch.Upto(7).Data, s.batch.From(8).Data...))
		}
	}
}
