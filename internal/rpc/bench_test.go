package rpc

import (
	"fmt"
	"sync/atomic"
	"testing"
)

// BenchmarkCalls pipelines small calls over loopback, with so many under way.
func BenchmarkCalls(b *testing.B) {
	for _, inFlight := range []int{1, 16, 256, 4096} {
		for _, size := range []int{16, 1 << 10, 16 << 10} {
			b.Run(fmt.Sprintf("inflight=%d/size=%d", inFlight, size), func(b *testing.B) {
				benchmarkCalls(b, inFlight, size)
			})
		}
	}
}

func benchmarkCalls(b *testing.B, inFlight, size int) {
	client, address := echoPair(b, TCPOptions{})
	message := [][]byte{make([]byte, 100)}
	attachment := [][]byte{make([]byte, size)}
	var sent, finished atomic.Int64
	done := make(chan struct{})
	total := int64(b.N)
	var send func(Reply)
	call := func() {
		client.Call(address, Call{
			Service: "braft.RaftService", Method: "append_entries",
			Message: message, Attachment: attachment, Done: send,
		})
	}
	send = func(r Reply) {
		if r.Err != nil {
			b.Error(r.Err)
		}
		if finished.Add(1) == total {
			close(done)
		}
		if sent.Add(1) <= total {
			call()
		}
	}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	b.ResetTimer()
	for range min(inFlight, b.N) {
		sent.Add(1)
		call()
	}
	<-done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkRoundTrip is one caller that waits for each answer.
func BenchmarkRoundTrip(b *testing.B) {
	client, address := echoPair(b, TCPOptions{})
	message := [][]byte{make([]byte, 100)}
	answer := make(chan Reply, 1)
	done := func(r Reply) { answer <- r }
	b.ReportAllocs()
	for b.Loop() {
		client.Call(address, Call{Service: "braft.RaftService", Method: "append_entries", Message: message, Done: done})
		if r := <-answer; r.Err != nil {
			b.Fatal(r.Err)
		}
	}
}
