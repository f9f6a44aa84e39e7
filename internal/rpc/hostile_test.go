package rpc

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/baidustd"
)

// header returns a frame's header.
func header(body, meta uint32) string {
	b := []byte("PRPC")
	for _, v := range []uint32{body, meta} {
		b = append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return string(b)
}

// TestRubbishEndsTheConnection: each kind closes it, counted under its reason, and
// nothing else suffers.
func TestRubbishEndsTheConnection(t *testing.T) {
	good := string(request(1, "m", ""))
	for _, test := range []struct{ name, bytes, reason string }{
		{"http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", ReasonMagic},
		{"tls", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ReasonMagic},
		{"first byte", "X", ReasonMagic},
		{"behind a good frame", good + "rubbish", ReasonMagic},
		{"2 GiB", header(1<<31, 10), ReasonTooLarge},
		{"4 GiB", header(1<<32-1, 10), ReasonTooLarge},
		{"just over the limit", header(baidustd.DefaultMaxBody+1, 10), ReasonTooLarge},
		{"meta longer than body", header(10, 11), ReasonMetaSize},
		{"huge meta", header(1<<20, 1<<20), ReasonMetaSize},
		{"empty meta", header(0, 0), ReasonMeta},
		{"malformed meta", header(4, 4) + "\x0a\xff\xff\xff", ReasonMeta},
		{"deeply nested meta", header(5000, 5000) + strings.Repeat("\xa3\x06", 2500), ReasonMeta},
		{"an answer", string(EncodeReply(1, 0, "", nil, nil)), ReasonDirection},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemNet()
				var logged int
				server := start(t, n.options(), StartOptions{Listen: "server", Logf: func(string, ...any) { logged++ }})
				for range 3 {
					c := n.connect(t, "server")
					go func() { _, _ = c.Write([]byte(test.bytes)) }() // it may be closed within
					_, err := io.Copy(io.Discard, c)
					require.NoError(t, err)
				}
				synctest.Wait()
				require.Equal(t, map[string]uint64{test.reason: 3}, server.Stats().Ended)
				require.Equal(t, 1, logged, "what repeats itself within a second is not logged again")
				good := n.connect(t, "server")
				_, err := good.Write(request(7, "hello", ""))
				require.NoError(t, err)
				require.Equal(t, "hello", string(readFrame(t, good).Message))
			})
		})
	}
}

// TestBadFramesAreAnswered: where the frame's end is known the connection goes on.
func TestBadFramesAreAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		server := start(t, n.options(), StartOptions{Listen: "server", Address: "server"})
		c := n.connect(t, "server")
		send := func(meta, payload string) Frame {
			_, err := c.Write([]byte(header(uint32(len(meta)+len(payload)), uint32(len(meta))) + meta + payload))
			require.NoError(t, err)
			return readFrame(t, c)
		}
		names := "\x0a\x06\x0a\x01S\x12\x01M\x20\x07"
		for name, f := range map[string]Frame{
			"compressed":           send(names+"\x18\x02", "message"),
			"attachment too large": send(names+"\x28\x08", "message"),
			"negative attachment":  send(names+"\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "message"),
		} {
			require.Equal(t, int32(1003), f.Code, name)
			require.True(t, strings.HasPrefix(f.Text, "[server][E1003]"), f.Text)
			require.Equal(t, int64(7), f.ID)
		}
		require.Equal(t, "message", string(send(names, "message").Message))
		require.EqualValues(t, 3, server.Stats().BadFrames)
	})
}

// TestHalfAFrame: a frame that has begun must go on, one that has not may take for ever.
func TestHalfAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		server := start(t, n.options(), StartOptions{Listen: "server"})
		write := func(c net.Conn, b []byte) {
			_, err := c.Write(b)
			require.NoError(t, err)
		}
		gone := func(c net.Conn) bool {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond)) // fails if it is gone
			_, err := c.Read(make([]byte, 1))
			return err == io.EOF
		}
		frame := request(1, "message", strings.Repeat("x", 100))
		silent, half, drip, patient := n.connect(t, "server"), n.connect(t, "server"), n.connect(t, "server"), n.connect(t, "server")
		write(half, frame[:50])
		for i := range 9 { // a byte a second does not help
			write(drip, frame[i:i+1])
			time.Sleep(time.Second)
		}
		require.False(t, gone(half))
		require.False(t, gone(drip))
		time.Sleep(2 * time.Second)
		require.True(t, gone(half))
		require.True(t, gone(drip))

		for range 3 { // in two parts each, with long pauses between frames
			write(patient, frame[:5])
			time.Sleep(6 * time.Second)
			write(patient, frame[5:])
			require.Equal(t, "message", string(readFrame(t, patient).Message[:7]))
			time.Sleep(time.Hour)
		}
		write(silent, frame)
		require.EqualValues(t, 1, readFrame(t, silent).ID)
		require.Equal(t, map[string]uint64{ReasonStalled: 2}, server.Stats().Ended)
	})
}

// TestLargeFrameMayTakeLong as long as it gets on.
func TestLargeFrameMayTakeLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		start(t, n.options(), StartOptions{Listen: "server"})
		c := n.connect(t, "server")
		frame := request(1, "message", strings.Repeat("x", 1<<20))
		for len(frame) > 0 {
			k := min(len(frame), 64<<10)
			_, err := c.Write(frame[:k])
			require.NoError(t, err)
			frame = frame[k:]
			time.Sleep(9 * time.Second)
		}
		require.EqualValues(t, 1, readFrame(t, c).ID)
	})
}

func TestCutWithinAFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		server := start(t, n.options(), StartOptions{Listen: "server"})
		frame := request(1, "message", "attachment")
		for cut := range len(frame) {
			c := n.connect(t, "server")
			_, err := c.Write(frame[:cut])
			require.NoError(t, err)
			require.NoError(t, c.Close())
		}
		synctest.Wait()
		require.Equal(t, map[string]uint64{ReasonClosed: 1, ReasonTruncated: uint64(len(frame) - 1)}, server.Stats().Ended)
	})
}

// TestPeerThatDoesNotRead is given up, and its requests are not taken for ever.
func TestPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxQueuedBytes = 1 << 20
		served := 0
		server := start(t, o, StartOptions{Listen: "server", Serve: func(r *Request) {
			served++
			r.Reply(make([]byte, 100_000))
		}})
		c := n.connect(t, "server")
		frame := request(1, "", "")
		for {
			if _, err := c.Write(frame); err != nil {
				break
			}
		}
		synctest.Wait()
		require.Less(t, served, 30)
		require.Equal(t, map[string]uint64{ReasonNotReading: 1}, server.Stats().Ended)
	})
}

// TestPeerThatReadsLate gets all its answers: the connection is read from again once they are written.
func TestPeerThatReadsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxQueuedBytes = 1 << 20
		served := 0
		start(t, o, StartOptions{Listen: "server", Serve: func(r *Request) {
			served++
			r.Reply(make([]byte, 100_000))
		}})
		c := n.connect(t, "server")
		const requests = 100
		go func() {
			for i := range requests {
				if _, err := c.Write(request(int64(i), "", "")); err != nil {
					t.Error(err)
				}
			}
		}()
		synctest.Wait()
		require.Less(t, served, 30)
		in := newFrameReader(c, baidustd.DefaultMaxBody, helloTimeout)
		for i := range requests {
			f, err := in.next()
			require.NoError(t, err)
			require.EqualValues(t, i, f.meta.CorrelationID)
			require.Len(t, f.message, 100_000)
		}
	})
}

// TestRequestsServedAtATime are bounded: at the bound the connection is not read from.
func TestRequestsServedAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxServing, o.MaxServingBytes = 10, 1000
		var mu sync.Mutex
		var held []*Request
		start(t, o, StartOptions{Listen: "server", Serve: func(r *Request) {
			mu.Lock()
			defer mu.Unlock()
			held = append(held, r)
		}})
		client := start(t, n.options(), StartOptions{Listen: "client"})
		expect := func(want int) {
			synctest.Wait()
			mu.Lock()
			now := held
			held = nil
			mu.Unlock()
			require.Len(t, now, want)
			for _, r := range now {
				r.Reply(nil)
			}
		}
		var outcomes []<-chan Reply
		for range 25 {
			outcomes = append(outcomes, ask(client, "server", Call{}))
		}
		for _, want := range []int{10, 10, 5, 0} {
			expect(want)
		}
		for _, size := range []int{5000, 400, 400, 400, 300} {
			outcomes = append(outcomes, ask(client, "server", Call{Message: [][]byte{make([]byte, size)}}))
		}
		for _, want := range []int{1, 2, 2, 0} { // one is always served, whatever its size
			expect(want)
		}
		for _, o := range outcomes {
			require.NoError(t, (<-o).Err)
		}
	})
}

// TestRequestsThatWereLetGo have no bytes that count, and are answered all the same.
func TestRequestsThatWereLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxServingBytes = 1000
		requests := make(chan *Request, 10)
		start(t, o, StartOptions{Listen: "server", Serve: func(r *Request) { requests <- r }})
		client := start(t, n.options(), StartOptions{Listen: "client"})
		var outcomes []<-chan Reply
		for range 4 {
			outcomes = append(outcomes, ask(client, "server", Call{Message: [][]byte{make([]byte, 600)}}))
		}
		var kept []*Request
		for range 3 {
			synctest.Wait()
			require.Len(t, requests, 1)
			r := <-requests
			r.LetGo()
			r.LetGo() // changes nothing
			kept = append(kept, r)
		}
		synctest.Wait()
		require.Len(t, requests, 1)
		for _, r := range append(kept, <-requests) {
			r.Reply(nil)
		}
		for range 2 { // the account is as it was
			outcomes = append(outcomes, ask(client, "server", Call{Message: [][]byte{make([]byte, 600)}}))
		}
		for range 2 {
			synctest.Wait()
			require.Len(t, requests, 1)
			(<-requests).Reply(nil)
		}
		for _, o := range outcomes {
			require.NoError(t, (<-o).Err)
		}
	})
}

func TestAcceptedConnectionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxConns = 4
		server := start(t, o, StartOptions{Listen: "server"})
		var good []net.Conn
		for range 2 {
			good = append(good, n.connect(t, "server"))
			_, err := good[len(good)-1].Write(request(1, "", ""))
			require.NoError(t, err)
			readFrame(t, good[len(good)-1])
		}
		for range 100 { // strangers only drive each other out
			n.connect(t, "server")
		}
		for range 2 {
			good = append(good, n.connect(t, "server"))
			_, err := good[len(good)-1].Write(request(1, "", ""))
			require.NoError(t, err)
			readFrame(t, good[len(good)-1])
		}
		late := n.connect(t, "server")
		_, err := late.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
		for _, c := range good {
			_, err := c.Write(request(2, "", ""))
			require.NoError(t, err)
			require.EqualValues(t, 2, readFrame(t, c).ID)
		}
		require.EqualValues(t, 101, server.Stats().Ended[ReasonLimit])
	})
}

// TestIdleConnectionsMakeRoom: strangers that have sent a frame, and say nothing more, do not keep peers out.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxConns = 4
		held := make(chan *Request, 1)
		server := start(t, o, StartOptions{Listen: "server", Serve: func(r *Request) {
			if string(r.Message) == "wait" {
				held <- r
				return
			}
			r.Reply(r.Message)
		}})
		use := func(c net.Conn) {
			_, err := c.Write(request(1, "", ""))
			require.NoError(t, err)
			readFrame(t, c)
		}
		patient, busy := n.connect(t, "server"), n.connect(t, "server")
		_, err := patient.Write(request(7, "wait", ""))
		require.NoError(t, err)
		use(busy)
		for range 2 {
			use(n.connect(t, "server")) // they are idle from now on
		}
		for range 11 {
			time.Sleep(time.Second)
			use(busy)
		}
		for range 2 {
			use(n.connect(t, "server"))
			time.Sleep(time.Second)
		}
		require.EqualValues(t, 2, server.Stats().Ended[ReasonLimit])
		late := n.connect(t, "server")
		_, err = late.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err, "all others are in use")
		use(busy)
		(<-held).Reply(nil)
		require.EqualValues(t, 7, readFrame(t, patient).ID)
	})
}

// TestPartialFramesAreBounded over all connections, however slowly they come. Peers that have proven to be some are spared, and
// so is what gets on.
func TestPartialFramesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, most = 8 << 20, 30 << 20
		n := newMemNet()
		o := n.options()
		o.MaxPartialBytes = most
		server := start(t, o, StartOptions{Listen: "server"})
		before := heap()
		frame := request(1, "", string(make([]byte, size)))
		part := func(c net.Conn) {
			_, err := c.Write(frame[:len(frame)-1])
			require.NoError(t, err)
		}
		peer := n.connect(t, "server")
		_, err := peer.Write(request(1, "", ""))
		require.NoError(t, err)
		readFrame(t, peer)
		part(peer)
		for range 20 {
			part(n.connect(t, "server"))
		}
		synctest.Wait()
		require.Less(t, heap()-before-int64(len(frame)), int64(most+size))
		require.EqualValues(t, 18, server.Stats().Ended[ReasonPartial])
		_, err = peer.Write(frame[len(frame)-1:])
		require.NoError(t, err)
		readFrame(t, peer)
		late := n.connect(t, "server")
		_, err = late.Write(frame)
		require.NoError(t, err)
		readFrame(t, late)
		require.EqualValues(t, 18, server.Stats().Ended[ReasonPartial], "there is room again")
	})
}

// TestLargestPartialFrame: one is taken whatever its size, and what they hold is given back with each connection.
func TestLargestPartialFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		o := n.options()
		o.MaxPartialBytes = 1 << 20
		server := start(t, o, StartOptions{Listen: "server"})
		frame := request(1, "", string(make([]byte, 8<<20)))
		for range 3 {
			c, err := n.Dial(t.Context(), "tcp", "server")
			require.NoError(t, err)
			_, err = c.Write(frame[:4<<20])
			require.NoError(t, err)
			require.NoError(t, c.Close())
			synctest.Wait()
			c = n.connect(t, "server")
			_, err = c.Write(frame)
			require.NoError(t, err)
			readFrame(t, c)
		}
		require.Zero(t, server.Stats().Ended[ReasonPartial])
		require.Zero(t, server.partials.held)
	})
}

// TestMemoryStaysFlat: headers that announce much, and connections that say nothing, do
// not make the receiver hold much.
func TestMemoryStaysFlat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		start(t, n.options(), StartOptions{Listen: "server"})
		before := heap()
		for range 100 {
			c := n.connect(t, "server")
			_, err := c.Write([]byte(header(64<<20, 50) + "something"))
			require.NoError(t, err)
			n.connect(t, "server")
		}
		synctest.Wait()
		require.Less(t, heap()-before, int64(100*(growFirst+64<<10)))
	})
}

// TestMemoryIsFreedAfterRubbish: many bad connections leave nothing behind.
func TestMemoryIsFreedAfterRubbish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		start(t, n.options(), StartOptions{Listen: "server"})
		before := heap()
		for range 2000 {
			c, err := n.Dial(t.Context(), "tcp", "server")
			require.NoError(t, err)
			_, err = c.Write(request(1, "m", "")[:40])
			require.NoError(t, err)
			require.NoError(t, c.Close())
		}
		synctest.Wait()
		require.Less(t, heap()-before, int64(1<<20))
	})
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestCapturedFrames: requests seen on the wire between braft processes, and those that
// were made to provoke errors, are all taken and answered.
func TestCapturedFrames(t *testing.T) {
	file, err := os.Open("../baidustd/testdata/frames.jsonl")
	require.NoError(t, err)
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	server := start(t, TCPOptions{}, StartOptions{})
	c, err := net.Dial("tcp", server.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	requests := 0
	for lines.Scan() {
		var captured struct{ Direction, Hex string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &captured))
		if captured.Direction != "request" {
			continue
		}
		requests++
		raw, err := hex.DecodeString(captured.Hex)
		require.NoError(t, err)
		_, err = c.Write(raw)
		require.NoError(t, err)
		_, meta, err := baidustd.ParseHeader(raw, baidustd.DefaultMaxBody)
		require.NoError(t, err)
		m, err := baidustd.ParseMeta(raw[baidustd.HeaderSize:][:meta])
		require.NoError(t, err)
		require.Equal(t, m.CorrelationID, readFrame(t, c).ID)
	}
	require.NoError(t, lines.Err())
	require.Greater(t, requests, 50)
}
