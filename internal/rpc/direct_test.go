package rpc

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// loopback returns both ends of a connection.
func loopback(t testing.TB) (a, b net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	a, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = a.Close() })
	b, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close() })
	return a, b
}

// within waits, a bounded time, until a condition about the outlet holds.
func (o *outlet) within(t testing.TB, what string, holds func() bool) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); runtime.Gosched() {
		o.mu.Lock()
		ok := holds()
		o.mu.Unlock()
		if ok {
			return
		}
	}
	require.FailNow(t, "never: "+what)
}

// queue queues a request and reports whether the writer was roused for it.
func (o *outlet) queue(id int64, attachment []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.out.request(&Call{Service: "s.S", Method: "m", Attachment: [][]byte{attachment}}, id, 0, len(attachment))
	return o.rouse()
}

// TestNobodyWritesBesideTheWriter: what the writer has taken is written before what was queued behind it, whatever has
// woken the writer.
func TestNobodyWritesBesideTheWriter(t *testing.T) {
	conn, far := loopback(t)
	if newDirect(conn) == nil {
		t.Skip("nobody writes directly here")
	}
	o := newOutlet()
	o.attach(conn)
	taken, write, ended := make(chan struct{}, 2), make(chan struct{}), make(chan error, 1)
	go func() {
		w := newFrameWriter(conn, time.Minute)
		for o.take(&w.batch) {
			taken <- struct{}{}
			<-write
			if err := w.flush(); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	letGo := sync.OnceFunc(func() { close(write) })
	defer func() {
		letGo()
		o.stop(ErrClosed)
		require.NoError(t, <-ended)
	}()
	o.within(t, "the writer waits", func() bool { return o.idle })
	large, small := bytes.Repeat([]byte{1}, 512<<10), bytes.Repeat([]byte{2}, 100)
	require.True(t, o.queue(1, large))
	o.signal() // for another reason: a retry, or the end of a watch
	<-taken
	require.False(t, o.queue(2, small))
	o.send() // for the large one

	letGo()
	require.NoError(t, far.SetReadDeadline(time.Now().Add(10*time.Second)))
	in := newFrameReader(far, 1<<20, 10*time.Second)
	for i, want := range [][]byte{large, small} {
		f, err := in.next()
		require.NoError(t, err)
		require.EqualValues(t, i+1, f.meta.CorrelationID, "the small frame is written before the large one")
		require.True(t, bytes.Equal(want, f.attachment), "the small frame is written within the large one")
	}
}

// fullSocket takes nothing; something else happens while it is asked to.
type fullSocket struct{ meanwhile func() }

func (s fullSocket) Control(func(uintptr)) error    { s.meanwhile(); return errors.New("full") }
func (s fullSocket) Read(func(uintptr) bool) error  { return nil }
func (s fullSocket) Write(func(uintptr) bool) error { return nil }

// roused returns an outlet whose writer waits, with a request queued that is to be written directly to a full socket.
func roused(t *testing.T, meanwhile func(o *outlet)) *outlet {
	o := newOutlet()
	o.direct = &direct{raw: fullSocket{func() { meanwhile(&o) }}}
	o.idle, o.waits = true, true
	require.True(t, o.queue(1, bytes.Repeat([]byte{1}, 100)))
	return &o
}

// TestWhatIsQueuedBesideADirectWrite follows what that could not write, also if it has large pieces.
func TestWhatIsQueuedBesideADirectWrite(t *testing.T) {
	conn, far := loopback(t)
	if newDirect(conn) == nil {
		t.Skip("nobody writes directly here")
	}
	large := bytes.Repeat([]byte{2}, 512<<10)
	o := roused(t, func(o *outlet) { require.False(t, o.queue(2, large)) })
	o.send()
	w := newFrameWriter(conn, time.Minute)
	require.True(t, o.take(&w.batch))
	written := make(chan error, 1)
	go func() { written <- w.flush() }()
	require.NoError(t, far.SetReadDeadline(time.Now().Add(10*time.Second)))
	in := newFrameReader(far, 1<<20, 10*time.Second)
	for i, want := range [][]byte{bytes.Repeat([]byte{1}, 100), large} {
		f, err := in.next()
		require.NoError(t, err)
		require.EqualValues(t, i+1, f.meta.CorrelationID)
		require.True(t, bytes.Equal(want, f.attachment))
	}
	require.NoError(t, <-written)
}

// TestTheRestOfADirectWriteEndsWithItsConnection: the next connection gets none of it, and whoever writes directly there is not joined
// by the writer.
func TestTheRestOfADirectWriteEndsWithItsConnection(t *testing.T) {
	conn, _ := loopback(t)
	if newDirect(conn) == nil {
		t.Skip("nobody writes directly here")
	}
	o := roused(t, func(o *outlet) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.attach(conn)
		o.directing = o.direct
	})
	o.send()
	require.Zero(t, o.out.queued)
	require.Same(t, o.direct, o.directing)
}
