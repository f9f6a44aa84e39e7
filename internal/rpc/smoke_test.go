package rpc

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().String()
}

func pair(t testing.TB, serve func(*Request)) (*TCP, string) {
	a, b := NewTCP(TCPOptions{}), NewTCP(TCPOptions{})
	addr := freeAddress(t)
	require.NoError(t, b.Start(StartOptions{Listen: addr, Address: addr, Incarnation: 2, Serve: serve}))
	caddr := freeAddress(t)
	require.NoError(t, a.Start(StartOptions{Listen: caddr, Address: caddr, Incarnation: 1, Serve: serve}))
	t.Cleanup(func() { require.NoError(t, a.Close()); require.NoError(t, b.Close()) })
	return a, addr
}

func TestEcho(t *testing.T) {
	a, addr := pair(t, func(r *Request) { r.ReplyAttachment(r.Message, [][]byte{r.Attachment}) })
	for _, n := range []int{0, 1, 100, 7 << 10, 8 << 10, 64 << 10, 1 << 20, 40 << 20} {
		c := make(chan Reply, 1)
		a.Call(addr, Call{Service: "s.S", Method: "m", Message: [][]byte{make([]byte, n)}, Attachment: [][]byte{make([]byte, n/2)}, Done: func(r Reply) { c <- r }})
		r := <-c
		require.NoError(t, r.Err)
		require.Len(t, r.Message, n)
		require.Len(t, r.Attachment, n/2)
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	a, addr := pair(b, func(r *Request) { r.Reply(r.Message) })
	c := make(chan Reply, 1)
	msg := [][]byte{make([]byte, 64)}
	for b.Loop() {
		a.Call(addr, Call{Service: "s.S", Method: "m", Message: msg, Done: func(r Reply) { c <- r }})
		<-c
	}
}

func BenchmarkPipelined(b *testing.B) {
	a, addr := pair(b, func(r *Request) { r.Reply(r.Message) })
	msg := [][]byte{make([]byte, 64)}
	var wg sync.WaitGroup
	var out atomic.Int64
	sem := make(chan struct{}, 1024)
	for b.Loop() {
		sem <- struct{}{}
		wg.Add(1)
		out.Add(1)
		a.Call(addr, Call{Service: "s.S", Method: "m", Message: msg, Done: func(r Reply) { <-sem; wg.Done() }})
	}
	wg.Wait()
}
