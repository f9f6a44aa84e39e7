package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/baidustd"
)

// boot starts a process that is stopped by hand, or with the test.
func boot(t *testing.T, n *memNet, address string, incarnation uint64) *TCP {
	return start(t, n.options(), StartOptions{Listen: address, Address: address, Incarnation: incarnation})
}

func TestBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		client := boot(t, n, "client", 1)
		call := func() error { return (<-ask(client, "server", Call{})).Err }
		require.ErrorIs(t, call(), syscall.ECONNREFUSED)
		require.ErrorIs(t, call(), ErrUnreachable)
		require.ErrorIs(t, call(), syscall.ECONNREFUSED, "the reason is told also by calls that are not tried")
		require.Equal(t, 1, n.attempts())
		time.Sleep(10 * time.Millisecond)
		require.Error(t, call())
		require.Equal(t, 2, n.attempts())
		for range 10_000 {
			require.Error(t, call())
			time.Sleep(time.Millisecond)
		}
		want := 6 + 10*time.Second/(backoffMax*3/4)     // 6 until the pauses are as long as they get
		require.InDelta(t, int(want), n.attempts(), 12) // pauses of 10, 20, … 1000, 1000, … ms or somewhat less
		boot(t, n, "server", 2)
		time.Sleep(time.Second)
		require.NoError(t, call())
		require.EqualValues(t, n.attempts()-1, client.Stats().DialFailed)
	})
}

// TestRetryDoesNotWaitForTheBackOff: somebody knows that the next attempt will do better.
func TestRetryDoesNotWaitForTheBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		client := boot(t, n, "client", 1)
		client.Retry("server") // nobody has asked for it yet
		for _, watched := range []bool{false, true} {
			client.Watch("server", watched)
			for range 100 {
				require.Error(t, (<-ask(client, "server", Call{})).Err)
				time.Sleep(10 * time.Millisecond)
			}
			require.Error(t, (<-ask(client, "server", Call{})).Err, "it is backing off")
			server := boot(t, n, "server", 2)
			client.Retry("server")
			require.NoError(t, (<-ask(client, "server", Call{})).Err)
			require.NoError(t, server.Close())
			synctest.Wait()
		}
	})
}

func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		client := boot(t, n, "client", 1)
		for i := range 5 {
			server := boot(t, n, "server", uint64(i))
			require.NoError(t, (<-ask(client, "server", Call{})).Err, "the first attempt is at once")
			require.NoError(t, (<-ask(client, "server", Call{})).Err)
			require.Equal(t, i+1, n.attempts())
			require.NoError(t, server.Close())
			synctest.Wait()
		}
	})
}

// TestConnectionsThatEndAtOnce are not made in a loop.
func TestConnectionsThatEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "server")
		require.NoError(t, err)
		defer l.Close()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		client := boot(t, n, "client", 1)
		client.Watch("server", true)
		time.Sleep(10 * time.Second)
		want := 6 + 10*time.Second/(backoffMax*3/4) // 6 until the pauses are as long as they get
		require.InDelta(t, int(want), n.attempts(), 12)
	})
}

// TestGreetedAndHungUpOn: that a watched process says who it is does not make up for what it does then.
func TestGreetedAndHungUpOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "server")
		require.NoError(t, err)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				in := newFrameReader(c, 1<<20, time.Second)
				f, err := in.next()
				if err == nil {
					_, _ = c.Write(EncodeReply(f.meta.CorrelationID, 0, "", nil, nil)) // the client may be gone
				}
				time.Sleep(time.Millisecond)
				_ = c.Close()
			}
		}()
		client := boot(t, n, "client", 1)
		client.Watch("server", true)
		time.Sleep(10 * time.Second)
		want := 6 + 10*time.Second/(backoffMax*3/4) // 6 until the pauses are as long as they get
		require.InDelta(t, int(want), n.attempts(), 12)
		require.NoError(t, l.Close())
		time.Sleep(time.Second) // whoever has been greeted is hung up on
	})
}

func TestTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		var held []*Request
		start(t, n.options(), StartOptions{Listen: "server", Serve: func(r *Request) { held = append(held, r) }})
		client := boot(t, n, "client", 1)
		began := time.Now()
		var all sync.WaitGroup
		for _, timeout := range []time.Duration{time.Hour, time.Second, time.Millisecond, 500 * time.Millisecond, time.Minute, time.Second} {
			outcome := ask(client, "server", Call{Timeout: timeout})
			all.Go(func() {
				if r := <-outcome; timeout < 2*time.Second {
					require.ErrorIs(t, r.Err, ErrTimeout)
					took := time.Since(began)
					require.GreaterOrEqual(t, took, timeout)
					require.LessOrEqual(t, took, timeout+2*sweepStep)
				} else {
					require.NoError(t, r.Err)
				}
			})
		}
		slow := ask(client, "server", Call{})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		require.Len(t, held, 7)
		for _, r := range held {
			r.Reply(nil)
		}
		require.NoError(t, (<-slow).Err)
		all.Wait()
		synctest.Wait()
		require.EqualValues(t, 4, client.Stats().Timeouts)
		require.EqualValues(t, 4, client.Stats().LateReplies)
	})
}

// TestSilentConnectionIsReplaced: nothing comes any more, and TCP does not say so.
func TestSilentConnectionIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "server")
		require.NoError(t, err)
		hole, accepted := make(chan net.Conn, 1), make(chan struct{})
		go func() {
			defer close(accepted)
			c, err := l.Accept()
			if err != nil {
				return
			}
			hole <- c
			buf := make([]byte, 1000)
			for {
				if _, err := c.Read(buf); err != nil {
					return
				}
			}
		}()
		client := boot(t, n, "client", 1)
		unanswered := ask(client, "server", Call{})
		for range 3 {
			require.ErrorIs(t, (<-ask(client, "server", Call{Timeout: time.Second})).Err, ErrTimeout)
		}
		require.ErrorIs(t, (<-unanswered).Err, ErrUnreachable)
		<-accepted
		require.NoError(t, l.Close())
		require.NoError(t, (<-hole).Close())
		boot(t, n, "server", 2)
		time.Sleep(time.Second)
		require.NoError(t, (<-ask(client, "server", Call{})).Err)
		require.EqualValues(t, 1, client.Stats().Ended[ReasonSilent])
	})
}

func TestPendingCallsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		n.set(nil, true) // a connection is under way
		o := n.options()
		o.MaxPending, o.MaxPendingBytes = 10, 1000
		client := start(t, o, StartOptions{Listen: "client"})
		send := func(size int) <-chan Reply {
			return ask(client, "server", Call{Message: [][]byte{make([]byte, size)}})
		}
		var queued []<-chan Reply
		queued = append(queued, send(5000)) // one is always allowed
		require.ErrorIs(t, (<-send(1)).Err, ErrBacklog)
		require.ErrorIs(t, (<-queued[0]).Err, ErrUnreachable)
		time.Sleep(time.Second)
		queued = queued[:0]
		for range 10 {
			queued = append(queued, send(100))
		}
		require.ErrorIs(t, (<-send(0)).Err, ErrBacklog)
		for _, q := range queued {
			require.ErrorIs(t, (<-q).Err, context.DeadlineExceeded, "connecting takes a second at most")
		}
		require.EqualValues(t, 2, client.Stats().Backlog)
	})
}

// TestTimedOutCallsAreBoundedUntilTheyAreWritten: nobody waits for them any more, but they still have to be sent.
func TestTimedOutCallsAreBoundedUntilTheyAreWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "server")
		require.NoError(t, err)
		defer l.Close()
		o := n.options()
		o.MaxPendingBytes, o.WriteTimeout, o.SilenceTimeout = 1000, time.Hour, time.Hour
		client := start(t, o, StartOptions{Listen: "client"})
		send := func() error {
			return (<-ask(client, "server", Call{Message: [][]byte{make([]byte, 100)}, Timeout: 10 * time.Millisecond})).Err
		}
		first := ask(client, "server", Call{Timeout: 10 * time.Millisecond})
		c, err := l.Accept()
		require.NoError(t, err)
		defer c.Close()
		require.ErrorIs(t, (<-first).Err, ErrTimeout)
		refused := 0
		for range 100 {
			if err := send(); errors.Is(err, ErrBacklog) {
				refused++
			} else {
				require.ErrorIs(t, err, ErrTimeout)
			}
		}
		require.Greater(t, refused, 80)
		p, err := client.peer("server", false)
		require.NoError(t, err)
		p.mu.Lock()
		queued := p.out.queued
		p.mu.Unlock()
		require.Less(t, queued, 2000, "heads come on top")

		go func() { // until the test ends
			in := newFrameReader(c, 1<<20, time.Hour)
			for {
				f, err := in.next()
				if err != nil {
					return
				}
				if _, err = c.Write(EncodeReply(f.meta.CorrelationID, 0, "", nil, nil)); err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Second)
		require.NoError(t, send(), "it is written, and there is room again")
	})
}

// TestStrangeAnswers: an answer that nobody waits for is dropped, a frame that cannot be
// an answer ends the connection.
func TestStrangeAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "server")
		require.NoError(t, err)
		defer l.Close()
		client := boot(t, n, "client", 1)
		outcome := ask(client, "server", Call{})
		c, err := l.Accept()
		require.NoError(t, err)
		id := readFrame(t, c).ID
		meta := string(baidustd.AppendResponseMeta(nil, 0, "", id, 0))
		for _, b := range []string{
			string(EncodeReply(0, 0, "", nil, nil)), string(EncodeReply(-1, 0, "", nil, nil)),
			string(EncodeReply(id+1, 0, "", nil, nil)), string(EncodeReply(id+1<<32, 0, "", nil, nil)),
			header(uint32(len(meta))+2, uint32(len(meta))+2) + meta + "\x18\x02", // compressed: the last of two counts
			string(EncodeReply(id, 0, "", nil, nil)),
		} {
			_, err := c.Write([]byte(b))
			require.NoError(t, err)
		}
		synctest.Wait()
		require.ErrorIs(t, (<-outcome).Err, ErrBadReply)
		require.EqualValues(t, 5, client.Stats().LateReplies)

		outcome = ask(client, "server", Call{})
		readFrame(t, c)
		_, err = c.Write(request(1, "", ""))
		require.NoError(t, err)
		require.ErrorIs(t, (<-outcome).Err, ErrUnreachable)
		require.EqualValues(t, 1, client.Stats().Ended[ReasonDirection])
	})
}

// TestDown says what is evidence that a process died, and what is not.
func TestDown(t *testing.T) {
	const server = "server"
	type world struct {
		n      *memNet
		client *TCP
		server *TCP
	}
	kill := func(t *testing.T, w *world) { require.NoError(t, w.server.Close()) }
	for _, test := range []struct {
		name string
		do   func(t *testing.T, w *world)
		want int
	}{
		{"broken and refused", func(t *testing.T, w *world) { kill(t, w) }, 1},
		{"back as another process, once", func(t *testing.T, w *world) {
			kill(t, w)
			time.Sleep(time.Minute)
			w.server = boot(t, w.n, server, 3)
		}, 1},
		{"died twice", func(t *testing.T, w *world) {
			for i := range uint64(2) {
				kill(t, w)
				time.Sleep(time.Minute)
				w.server = boot(t, w.n, server, 3+i)
				time.Sleep(time.Minute)
			}
		}, 2},
		{"another incarnation at once", func(t *testing.T, w *world) {
			w.n.set(nil, true) // no refusal is seen
			kill(t, w)
			w.server = boot(t, w.n, server, 3)
			time.Sleep(10 * time.Millisecond)
			w.n.set(nil, false)
		}, 1},
		{"broken, then the same incarnation", func(t *testing.T, w *world) {
			w.n.set(nil, true)
			kill(t, w)
			w.server = boot(t, w.n, server, 2)
			w.n.set(nil, false)
		}, 0},
		{"broken and timed out", func(t *testing.T, w *world) {
			w.n.set(nil, true)
			kill(t, w)
			time.Sleep(time.Minute)
			w.server = boot(t, w.n, server, 2)
			w.n.set(nil, false)
		}, 0},
		{"broken and unreachable", func(t *testing.T, w *world) {
			w.n.set(syscall.EHOSTUNREACH, false)
			kill(t, w)
			time.Sleep(time.Minute)
			w.server = boot(t, w.n, server, 2)
			w.n.set(nil, false)
		}, 0},
		{"unreachable first, refused later", func(t *testing.T, w *world) {
			w.n.set(syscall.EHOSTUNREACH, false)
			kill(t, w)
			time.Sleep(time.Minute)
			w.n.set(nil, false)
		}, 1},
		{"refused before anybody watched", func(t *testing.T, w *world) {
			w.client.Watch(server, false)
			kill(t, w)
			time.Sleep(time.Minute)
			w.client.Watch(server, true)
			time.Sleep(time.Minute)
			w.server = boot(t, w.n, server, 3)
		}, 0},
		{"watched twice, ended once", func(t *testing.T, w *world) {
			w.client.Watch(server, true)
			w.client.Watch(server, false)
			kill(t, w)
		}, 1},
		{"watched no more", func(t *testing.T, w *world) {
			w.client.Watch(server, false)
			kill(t, w)
		}, 0},
		{"our own end", func(t *testing.T, w *world) { require.NoError(t, w.client.Close()) }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{n: newMemNet()}
				var downs []string
				w.client = start(t, w.n.options(), StartOptions{
					Listen: "client", Incarnation: 1, Down: func(address string) { downs = append(downs, address) },
				})
				w.server = boot(t, w.n, server, 2)
				w.client.Watch(server, true)
				time.Sleep(time.Second)
				test.do(t, w)
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Len(t, downs, test.want, "%v", downs)
			})
		})
	}
}

// TestDownOverLoopback: the operating system's refusal is recognised, and fast.
func TestDownOverLoopback(t *testing.T) {
	down := make(chan string, 1)
	client := start(t, TCPOptions{}, StartOptions{Down: func(address string) { down <- address }})
	server := start(t, TCPOptions{}, StartOptions{})
	address := server.Addr().String()
	client.Watch(address, true)
	require.NoError(t, (<-ask(client, address, Call{})).Err)
	began := time.Now()
	require.NoError(t, server.Close())
	require.Equal(t, address, <-down)
	require.Less(t, time.Since(began), 10*time.Second)
}

// TestHelloToBraft: a peer that does not know the method is a peer like any other.
func TestHelloToBraft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "braft")
		require.NoError(t, err)
		defer l.Close()
		downs := 0
		client := start(t, n.options(), StartOptions{Listen: "client", Down: func(string) { downs++ }})
		client.Watch("braft", true)
		for i := range 2 {
			c, err := l.Accept()
			require.NoError(t, err)
			f := readFrame(t, c)
			require.Equal(t, "graft.NodeService/Hello", f.Service+"/"+f.Method)
			text := fmt.Sprintf("[braft][E1002]Fail to find method=%s/%s", f.Service, f.Method)
			_, err = c.Write(EncodeReply(f.ID, 1002, text, nil, nil))
			require.NoError(t, err)
			synctest.Wait()
			if i == 0 {
				require.NoError(t, c.Close())
				continue
			}
			defer c.Close()
		}
		require.Zero(t, downs)
		require.Empty(t, client.Stats().Ended[ReasonMagic])
	})
}

// TestHelloIsSmall: what anybody may send is not decoded if it is more than it can be.
func TestHelloIsSmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		client := boot(t, n, "client", 1)
		boot(t, n, "server", 2)
		for _, size := range []int{100, maxHello, maxHello + 1, 1 << 20} {
			r := <-ask(client, "server", Call{Service: helloService, Method: helloMethod, Message: [][]byte{make([]byte, size)}})
			require.NoError(t, r.Err)
			require.EqualValues(t, 1003, r.Code, "it is none in any case")
			require.Equal(t, size > maxHello, strings.Contains(r.Text, "at most"), r.Text)
		}
	})
}

// TestUnwatchedPeerIsLeftAlone: without calls and watchers nobody tries to connect.
func TestUnwatchedPeerIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		client := boot(t, n, "client", 1)
		client.Watch("server", true)
		time.Sleep(time.Minute)
		client.Watch("server", false)
		client.Watch("server", false) // one too many is ignored
		synctest.Wait()
		before := n.attempts()
		time.Sleep(time.Minute)
		require.Equal(t, before, n.attempts())
	})
}
