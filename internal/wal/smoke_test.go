package wal

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
)

func batchAt(first int64, n int, term int64, size int) entry.Batch {
	var b entry.Builder
	b.Reset(first)
	for i := range n {
		p := make([]byte, size)
		copy(p, fmt.Sprint(first+int64(i)))
		b.AppendData(term, p)
	}
	return b.Build()
}

func TestSmoke(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Exec: actor.NewGoroutines(), Identity: "a:1", SegmentSize: 1 << 20, Log: t.Logf}
	var last int64
	for round := range 4 {
		s, err := Open(o)
		require.NoError(t, err)
		g, err := s.Group("g")
		require.NoError(t, err)
		r := g.Recovered()
		require.Equal(t, last, r.Last)
		done := make(chan error, 1000)
		for range 200 {
			n := 50
			g.Append(batchAt(last+1, n, int64(round+1), 100), 0, func(err error) { done <- err })
			last += int64(n)
		}
		g.SaveHardState(HardState{Term: int64(round + 1), Vote: "x"}, 0, func(err error) { done <- err })
		for range 201 {
			require.NoError(t, <-done)
		}
		for at := r.First; at <= last; {
			b, err := g.Read(at, 100<<10)
			require.NoError(t, err, "at %d", at)
			require.Equal(t, at, b.First)
			_, err = entry.Check(b)
			require.NoError(t, err)
			at = b.Last() + 1
		}
		if round == 2 {
			g.TruncatePrefix(last-100, int64(round+1), func(err error) { done <- err })
			require.NoError(t, <-done)
			g.TruncateSuffix(last-10, func(err error) { done <- err })
			require.NoError(t, <-done)
			last -= 10
		}
		t.Logf("%+v", s.Stats())
		require.NoError(t, s.Close())
	}
}
