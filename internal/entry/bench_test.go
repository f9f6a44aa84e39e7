package entry_test

import (
	"fmt"
	"testing"

	"github.com/graft-raft/graft/internal/entry"
)

// shapes are terms and payload sizes whose numbers take one byte, and more.
var shapes = []struct {
	term int64
	size int
}{{3, 16}, {3, 256}, {3, 1024}, {70000, 1024}}

func perEntry(b *testing.B, entries int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*entries), "ns/entry")
}

func BenchmarkIter(b *testing.B) {
	for _, shape := range shapes {
		b.Run(fmt.Sprintf("term=%d,size=%d", shape.term, shape.size), func(b *testing.B) {
			batch := uniform(512, shape.term, shape.size)
			total := 0
			for b.Loop() {
				it := batch.Iter()
				for e, ok := it.Next(); ok; e, ok = it.Next() {
					total += len(e.Data)
				}
			}
			perEntry(b, 512)
		})
	}
}

func BenchmarkCheck(b *testing.B) {
	for _, shape := range shapes {
		b.Run(fmt.Sprintf("term=%d,size=%d", shape.term, shape.size), func(b *testing.B) {
			batch := uniform(512, shape.term, shape.size)
			for b.Loop() {
				if _, err := entry.Check(batch); err != nil {
					b.Fatal(err)
				}
			}
			perEntry(b, 512)
		})
	}
}

func BenchmarkFrom(b *testing.B) {
	batch := uniform(512, 3, 16)
	for b.Loop() {
		batch = batch.From(1)
		_ = batch.From(500)
	}
	perEntry(b, 499)
}

func BenchmarkAppendData(b *testing.B) {
	for _, shape := range shapes {
		for _, grow := range []bool{false, true} {
			b.Run(fmt.Sprintf("term=%d,size=%d,grow=%v", shape.term, shape.size, grow), func(b *testing.B) {
				payload := make([]byte, shape.size)
				var builder entry.Builder
				for b.Loop() {
					builder.Reset(1)
					if grow {
						builder.Grow(512, 512*shape.size)
					}
					for range 512 {
						builder.AppendData(shape.term, payload)
					}
					_ = builder.Build()
				}
				perEntry(b, 512)
			})
		}
	}
	b.Run("memory reused,size=16", func(b *testing.B) {
		payload := make([]byte, 16)
		var builder entry.Builder
		for b.Loop() {
			builder.Reset(1)
			for range 512 {
				builder.AppendData(3, payload)
			}
		}
		perEntry(b, 512)
	})
}
