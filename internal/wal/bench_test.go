package wal

import (
	"fmt"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
)

// BenchmarkAppend keeps a number of appends of one entry under way, each submitted when one
// before it is durable.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{128, 4096} {
		for _, depth := range []int{1, 16, 256} {
			b.Run(fmt.Sprintf("%dB/depth=%d", size, depth), func(b *testing.B) { benchAppend(b, size, depth) })
		}
	}
}

func benchAppend(b *testing.B, size, depth int) {
	exec := actor.NewGoroutines()
	defer exec.Close()
	s, err := Open(Options{Dir: b.TempDir(), Exec: exec, Identity: "a:1"})
	require.NoError(b, err)
	g, err := s.Group("g")
	require.NoError(b, err)
	slots := make(chan error, depth)
	for range depth {
		slots <- nil
	}
	done := func(err error) { slots <- err }
	last := int64(0)
	before := s.Stats()
	b.ReportAllocs()
	for b.Loop() {
		if err := <-slots; err != nil {
			b.Fatal(err)
		}
		last++
		g.Append(batchAt(last, 1, 1, size), 0, done)
	}
	for range depth {
		require.NoError(b, <-slots)
	}
	after := s.Stats()
	b.ReportMetric(float64(after.Bytes-before.Bytes)/float64(last), "disk-B/op")
	b.ReportMetric(float64(after.Syncs-before.Syncs)/float64(last), "fsync/op")
	require.NoError(b, s.Close())
}

// fillLog writes a log of n entries of the given size and closes it.
func fillLog(tb testing.TB, o Options, n, perBatch, size int) {
	s, err := Open(o)
	require.NoError(tb, err)
	g, err := s.Group("g")
	require.NoError(tb, err)
	var left sync.WaitGroup
	for at := 1; at <= n; at += perBatch {
		left.Add(1)
		g.Append(batchAt(int64(at), perBatch, 1, size), 0, func(err error) {
			if err != nil {
				tb.Error(err)
			}
			left.Done()
		})
	}
	left.Wait()
	require.NoError(tb, s.Close())
}

// BenchmarkOpen is a restart over a million entries of 128 bytes.
func BenchmarkOpen(b *testing.B) {
	exec := actor.NewGoroutines()
	defer exec.Close()
	o := Options{Dir: filepath.Join(b.TempDir(), "log"), Exec: exec, Identity: "a:1"}
	fillLog(b, o, 1_000_000, 100, 128)
	var mem runtime.MemStats
	for b.Loop() {
		start := time.Now()
		s, err := Open(o)
		require.NoError(b, err)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/open")
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&mem)
		b.ReportMetric(float64(mem.HeapAlloc)/1e6, "MB")
		require.NoError(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkRead is a follower's catch-up from disk.
func BenchmarkRead(b *testing.B) {
	exec := actor.NewGoroutines()
	defer exec.Close()
	o := Options{Dir: filepath.Join(b.TempDir(), "log"), Exec: exec, Identity: "a:1"}
	fillLog(b, o, 300_000, 10, 128)
	s, err := Open(o)
	require.NoError(b, err)
	g, err := s.Group("g")
	require.NoError(b, err)
	r := g.Recovered()
	var e entry.Batch
	bytes := int64(0)
	at := r.First
	b.ReportAllocs()
	for b.Loop() {
		if at > r.Last {
			at = r.First
		}
		e, err = g.Read(at, 1<<20)
		require.NoError(b, err)
		at = e.Last() + 1
		bytes += int64(e.Size())
	}
	b.SetBytes(bytes / int64(b.N))
	require.NoError(b, s.Close())
}
