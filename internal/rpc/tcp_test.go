package rpc

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRoundTripOfAllSizes(t *testing.T) {
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		r.ReplyAttachment(r.Message, [][]byte{r.Attachment[:len(r.Attachment)/2], r.Attachment[len(r.Attachment)/2:]})
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	rng := rand.NewChaCha8([32]byte{1})
	sizes := []int{0, 1, 11, 12, 13, 2 << 10, largePiece - 1, largePiece, largePiece + 1, fullSlab - 100, fullSlab, fullSlab + 1,
		growFirst - 60, growFirst, 1 << 20, 5 << 20, 40 << 20}
	for _, message := range sizes {
		for _, attachment := range sizes {
			if message+attachment > 1<<20 && min(message, attachment) > 1 {
				continue
			}
			m, a := make([]byte, message), make([]byte, attachment)
			_, _ = rng.Read(m)
			_, _ = rng.Read(a)
			r := <-ask(client, server.Addr().String(), Call{
				Message: [][]byte{m[:message/3], m[message/3:]}, Attachment: [][]byte{a[:attachment/2], nil, a[attachment/2:]},
			})
			require.NoError(t, r.Err)
			require.True(t, bytes.Equal(m, r.Message), message)
			require.True(t, bytes.Equal(a, r.Attachment), attachment)
		}
	}
}

// TestOrder: requests of one caller arrive in their order, small and large mixed.
func TestOrder(t *testing.T) {
	var got []string
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		got = append(got, string(r.Message))
		r.Reply(r.Message)
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	var all sync.WaitGroup
	var want []string
	for i := range 3000 {
		name := fmt.Sprint(i)
		want = append(want, name)
		all.Add(1)
		client.Call(server.Addr().String(), Call{
			Service: "s.S", Method: "m", Message: [][]byte{[]byte(name)}, Attachment: [][]byte{make([]byte, i%13*2000)},
			Done: func(r Reply) {
				defer all.Done()
				if r.Err != nil || string(r.Message) != name {
					t.Errorf("call %s: %q, %v", name, r.Message, r.Err)
				}
			},
		})
	}
	all.Wait()
	require.Equal(t, want, got)
}

func TestConcurrentCallersAndAnswers(t *testing.T) {
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		go func() { // answers come in any order
			if len(r.Message)%2 == 0 {
				r.Reply(r.Message)
			} else {
				r.Fail(int32(len(r.Message)), "odd")
			}
		}()
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for i := range 500 {
				r := <-ask(client, server.Addr().String(), Call{Message: [][]byte{make([]byte, i)}, Timeout: time.Minute})
				switch {
				case r.Err != nil:
					t.Error(r.Err)
				case i%2 == 0 && (r.Code != 0 || len(r.Message) != i), i%2 == 1 && r.Code != int32(i):
					t.Errorf("call %d: code %d, %d bytes", i, r.Code, len(r.Message))
				}
			}
		})
	}
	callers.Wait()
}

// TestViewsStayValid: what was handed out is not overwritten by what comes later.
func TestViewsStayValid(t *testing.T) {
	var views [][]byte
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		views = append(views, r.Attachment)
		r.Reply(nil)
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	for i := range 2000 {
		r := <-ask(client, server.Addr().String(), Call{Attachment: [][]byte{bytes.Repeat([]byte{byte(i)}, i*7%9000)}})
		require.NoError(t, r.Err)
	}
	for i, v := range views {
		require.Equal(t, bytes.Repeat([]byte{byte(i)}, i*7%9000), v)
		require.Equal(t, len(v), cap(v), "an append must not reach what follows")
	}
}

// TestLentMemory: what is lent for an answer is given back once, after it was written, and an answer to a bulk call is whole
// until it is recycled, however often the same memory is used on both sides.
func TestLentMemory(t *testing.T) {
	var mu sync.Mutex
	var free [][]byte
	var lent, back int
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		mu.Lock()
		defer mu.Unlock()
		b := make([]byte, 2<<20)
		if n := len(free); n > 0 {
			b, free = free[n-1], free[:n-1]
		}
		n := int(r.Message[0])<<16 | int(r.Message[1])<<8 | int(r.Message[2])
		for i := range n {
			b[i] = r.Message[2] + byte(i>>10)
		}
		lent++
		r.ReplyLent(r.Message, b[:n], func() {
			clear(b)
			mu.Lock()
			defer mu.Unlock()
			back++
			free = append(free, b)
		})
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	rng := rand.New(rand.NewPCG(1, 1))
	var all sync.WaitGroup
	for range 8 {
		seed := rng.Uint64()
		all.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 1))
			var kept []Reply
			for i := range 100 {
				n := []int{largePiece + 20, fullSlab - 50, fullSlab, 1 << 20, pooledFrame, 2 << 20}[rng.IntN(6)] - rng.IntN(20)
				r := <-ask(client, server.Addr().String(), Call{Message: [][]byte{{byte(n >> 16), byte(n >> 8), byte(n)}}, Bulk: i%10 > 0})
				if r.Err != nil || len(r.Attachment) != n || cap(r.Attachment) != n {
					t.Errorf("%d bytes of %d: %v", len(r.Attachment), n, r.Err)
					return
				}
				if kept = append(kept, r); len(kept) < 4 {
					continue
				}
				for _, r := range kept {
					for i, b := range r.Attachment {
						if b != byte(len(r.Attachment))+byte(i>>10) {
							t.Errorf("byte %d of %d is %d", i, len(r.Attachment), b)
							return
						}
					}
					r.Recycle()
				}
				kept = nil
			}
		})
	}
	all.Wait()
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return back == lent
	}, 10*time.Second, time.Millisecond)
}

func TestErrorsHaveBraftsPrefix(t *testing.T) {
	server := start(t, TCPOptions{}, StartOptions{Address: "10.0.0.1:80", Serve: func(r *Request) {
		r.Fail(int32(len(r.Message))-1, "Not leader")
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	for size, want := range map[int]Reply{
		17: {Code: 16, Text: "[10.0.0.1:80][E16]Not leader", Message: []byte{}, Attachment: []byte{}},
		1:  {Code: 2001, Text: "[10.0.0.1:80][E2001]Not leader", Message: []byte{}, Attachment: []byte{}}, // 0 is no error
		0:  {Code: 2001, Text: "[10.0.0.1:80][E2001]Not leader", Message: []byte{}, Attachment: []byte{}},
	} {
		require.Equal(t, want, <-ask(client, server.Addr().String(), Call{Message: [][]byte{make([]byte, size)}}))
	}
}

func TestOnlyTheFirstAnswerCounts(t *testing.T) {
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		r.Reply([]byte("first"))
		r.Reply([]byte("second"))
		r.Fail(1, "third")
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	for range 10 {
		r := <-ask(client, server.Addr().String(), Call{})
		require.Equal(t, "first", string(r.Message))
	}
	require.Zero(t, client.Stats().LateReplies)

	var codes []int32
	r := NewRequest("s", "m", nil, nil, "elsewhere", func(code int32, _ string, _ []byte, _ [][]byte) { codes = append(codes, code) })
	r.Fail(5, "")
	r.Reply(nil)
	require.Equal(t, []int32{5}, codes)
}

func TestStartErrors(t *testing.T) {
	a := start(t, TCPOptions{}, StartOptions{})
	b := NewTCP(TCPOptions{})
	require.Equal(t, ErrClosed, (<-ask(b, "127.0.0.1:1", Call{})).Err, "a call before Start")
	err := b.Start(StartOptions{Listen: a.Addr().String(), Serve: echo})
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.Contains(t, err.Error(), "cannot listen on")
	require.Error(t, b.Start(StartOptions{Listen: "127.0.0.1:0"}), "without Serve")
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.Start(StartOptions{Listen: "127.0.0.1:0", Serve: echo}), ErrClosed)
	require.Error(t, a.Start(StartOptions{Listen: "127.0.0.1:0", Serve: echo}), "twice")
}

func TestCloseFailsPendingCalls(t *testing.T) {
	held := make(chan *Request, 10)
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) { held <- r }})
	client := start(t, TCPOptions{}, StartOptions{})
	outcome := ask(client, server.Addr().String(), Call{})
	r := <-held
	require.NoError(t, client.Close())
	require.ErrorIs(t, (<-outcome).Err, ErrClosed)
	require.ErrorIs(t, (<-ask(client, server.Addr().String(), Call{})).Err, ErrClosed)
	client.Watch(server.Addr().String(), true)
	require.NoError(t, server.Close())
	r.Reply(nil) // nobody is there any more
}

func TestServerCloseFailsTheCallersCalls(t *testing.T) {
	held := make(chan *Request, 10)
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) { held <- r }})
	client := start(t, TCPOptions{}, StartOptions{})
	outcome := ask(client, server.Addr().String(), Call{})
	<-held
	require.NoError(t, server.Close())
	require.ErrorIs(t, (<-outcome).Err, ErrUnreachable)
	require.ErrorIs(t, (<-ask(client, server.Addr().String(), Call{})).Err, ErrUnreachable)
}

// TestCloseAtAnyMoment closes both sides while everything else is going on.
func TestCloseAtAnyMoment(t *testing.T) {
	for i := range 20 {
		server := NewTCP(TCPOptions{})
		require.NoError(t, server.Start(StartOptions{Listen: "127.0.0.1:0", Serve: echo}))
		client := NewTCP(TCPOptions{})
		require.NoError(t, client.Start(StartOptions{Listen: "127.0.0.1:0", Serve: echo}))
		var made, ended atomic.Int64
		var callers sync.WaitGroup
		for range 4 {
			callers.Go(func() {
				client.Watch(server.Addr().String(), true)
				for {
					made.Add(1)
					outcome := make(chan error, 1)
					client.Call(server.Addr().String(), Call{
						Service: "s.S", Method: "m", Timeout: time.Second, Attachment: [][]byte{make([]byte, 10_000)},
						Done: func(r Reply) { ended.Add(1); outcome <- r.Err },
					})
					if err := <-outcome; errors.Is(err, ErrClosed) {
						return
					}
				}
			})
		}
		for made.Load() < int64(i*10) {
		}
		if i%2 == 0 {
			require.NoError(t, server.Close())
		}
		require.NoError(t, client.Close())
		callers.Wait()
		require.NoError(t, server.Close())
		require.Equal(t, made.Load(), ended.Load())
	}
}

func TestCloseDuringConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		n.set(nil, true)
		client := start(t, n.options(), StartOptions{Listen: "client"})
		outcome := ask(client, "server", Call{})
		synctest.Wait()
		require.NoError(t, client.Close())
		require.Error(t, (<-outcome).Err)
	})
}

func TestMessageOverTheLimit(t *testing.T) {
	server := start(t, TCPOptions{MaxBody: 1 << 20}, StartOptions{Serve: func(r *Request) { r.Reply(make([]byte, 1<<20+1)) }})
	client := start(t, TCPOptions{MaxBody: 1 << 20}, StartOptions{})
	r := <-ask(client, server.Addr().String(), Call{Message: [][]byte{make([]byte, 1<<20+1)}})
	require.ErrorIs(t, r.Err, ErrTooLarge)
	r = <-ask(client, server.Addr().String(), Call{})
	require.Equal(t, int32(codeInternal), r.Code, "an answer that is too large becomes an error")
}

func TestFramesOfOtherTransports(t *testing.T) {
	f, err := DecodeFrame(request(7, "message", "attachment"))
	require.NoError(t, err)
	require.Equal(t, Frame{ID: 7, Service: "braft.RaftService", Method: "append_entries", Message: []byte("message"), Attachment: []byte("attachment")}, f)
	f, err = DecodeFrame(EncodeReply(8, 0, "", []byte("message"), [][]byte{[]byte("attach"), []byte("ment")}))
	require.NoError(t, err)
	require.Equal(t, Frame{ID: 8, Message: []byte("message"), Attachment: []byte("attachment")}, f)
	f, err = DecodeFrame(EncodeReply(9, 2, "text", []byte("dropped"), nil))
	require.NoError(t, err)
	require.Equal(t, Frame{ID: 9, Code: 2, Text: "text", Message: []byte{}, Attachment: []byte{}}, f)
	for _, b := range [][]byte{nil, []byte("PRPC"), request(1, "", "")[:20], append(request(1, "", ""), 0), []byte("GET / HTTP/1.1\r\n")} {
		_, err := DecodeFrame(b)
		require.Error(t, err)
	}
}

// TestHostNames: a name is given to whoever dials at each attempt, not looked up once.
func TestHostNames(t *testing.T) {
	server := start(t, TCPOptions{}, StartOptions{})
	_, port, err := net.SplitHostPort(server.Addr().String())
	require.NoError(t, err)
	client := start(t, TCPOptions{}, StartOptions{})
	require.NoError(t, (<-ask(client, net.JoinHostPort("localhost", port), Call{})).Err)
	require.ErrorIs(t, (<-ask(client, "not an address", Call{})).Err, ErrUnreachable)

	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		client := start(t, n.options(), StartOptions{Listen: "client"})
		for range 3 {
			require.Error(t, (<-ask(client, "node-1.example:80", Call{})).Err)
			time.Sleep(time.Second)
		}
		require.Equal(t, []string{"node-1.example:80", "node-1.example:80", "node-1.example:80"}, n.dials)
	})
}

// TestBulkHasItsOwnConnection: an answer that takes long to arrive holds up nothing but other bulk calls.
func TestBulkHasItsOwnConnection(t *testing.T) {
	remote := make(map[string]string)
	var mu sync.Mutex
	server := start(t, TCPOptions{}, StartOptions{Serve: func(r *Request) {
		mu.Lock()
		defer mu.Unlock()
		remote[string(r.Message)] = r.Remote
		r.Reply(r.Message)
	}})
	client := start(t, TCPOptions{}, StartOptions{})
	for _, c := range []struct {
		name string
		bulk bool
	}{{"heartbeat", false}, {"file", true}, {"entries", false}, {"more of it", true}} {
		require.NoError(t, (<-ask(client, server.Addr().String(), Call{Message: [][]byte{[]byte(c.name)}, Bulk: c.bulk})).Err)
	}
	require.Equal(t, remote["heartbeat"], remote["entries"])
	require.Equal(t, remote["file"], remote["more of it"])
	require.NotEqual(t, remote["heartbeat"], remote["file"])
}
