package rpc

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/raftpb"
)

// The method by which processes introduce themselves, see peer.hello.
const (
	helloService = "graft.NodeService"
	helloMethod  = "Hello"
	// maxHello bounds a Hello, and the answer to one, before it is decoded: anybody may send one.
	maxHello = 4 << 10
)

// maxNames bounds the service and method names that a connection remembers.
const maxNames = 64

// serverConn is an accepted connection.
//
// Its reader hands requests over one after the other, and pauses at the bounds on
// requests that are being served and on answers that wait to be written.
//
// Ownership: mu of the outlet guards what is below it; the rest is the reader's.
type serverConn struct {
	t      *TCP
	conn   net.Conn
	remote string
	names  map[string]string
	large  partial
	heard  atomic.Int64 // when something was read last, a time.Duration like TCP.now's

	outlet
	writing     bool // the writer was started
	proven      bool // a whole frame has come
	serving     int  // requests handed over and not answered
	servedBytes int  // of these
	paused      bool
	resume      chan struct{} // capacity 1; only the reader receives
}

func newServerConn(t *TCP, conn net.Conn) *serverConn {
	c := &serverConn{
		t: t, conn: conn, remote: conn.RemoteAddr().String(),
		names: make(map[string]string), outlet: newOutlet(), resume: make(chan struct{}, 1),
	}
	c.large.end = func() { c.close(errPartial) }
	c.heard.Store(int64(t.now()))
	c.attach(conn)
	return c
}

// run is the reader. It ends when the connection is of no more use.
func (c *serverConn) run() {
	defer c.t.wg.Done()
	err := c.handshake()
	if err == nil {
		err = c.read()
	}
	c.close(err)
	c.t.forget(c)
}

// close ends reader and writer, for the first reason it is given.
func (c *serverConn) close(reason error) {
	if !c.stop(reason) {
		return
	}
	c.t.ended("accepted connection", c.remote, reason)
	closeNow(c.conn)
	c.unpause()
}

func (c *serverConn) handshake() error {
	s, ok := c.conn.(*tls.Conn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(c.t.ctx, c.t.o.HandshakeTimeout)
	defer cancel()
	if err := s.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", errHandshake, err)
	}
	return nil
}

func (c *serverConn) read() error {
	in := newFrameReader(c.conn, c.t.o.MaxBody, c.t.o.FrameTimeout)
	in.hold = func(bytes int) bool { return c.t.partials.hold(&c.large, bytes) }
	defer in.hold(0)
	for reads := 0; ; {
		f, err := in.next()
		if err != nil {
			return err
		}
		c.large.proven = true
		if reads != in.reads { // not for each frame of those that came together
			reads = in.reads
			c.heard.Store(int64(c.t.now()))
		}
		if !f.meta.IsRequest {
			return errDirection
		}
		r := &Request{
			Service: c.name(f.meta.Service), Method: c.name(f.meta.Method),
			Message: f.message, Attachment: f.attachment, Remote: c.remote,
			conn: c, id: f.meta.CorrelationID,
		}
		if !c.admit(len(r.Message) + len(r.Attachment)) {
			return ErrClosed
		}
		switch {
		case f.bad != "":
			c.t.stats.bad.Add(1)
			r.Fail(codeBadRequest, f.bad)
		case r.Service == helloService && r.Method == helloMethod:
			c.hello(r)
		default:
			c.t.start.Serve(r)
		}
	}
}

// name makes a string of a name, without an allocation if it came before.
func (c *serverConn) name(b []byte) string {
	if s, ok := c.names[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(c.names) < maxNames && len(s) < 256 {
		c.names[s] = s
	}
	return s
}

// admit counts a request in, after waiting until it is within the bounds. It returns
// false if the connection ended.
func (c *serverConn) admit(size int) bool {
	c.mu.Lock()
	for c.stopped == nil && c.full(size) {
		c.paused = true
		c.mu.Unlock()
		<-c.resume
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	c.proven = true
	c.serving++
	c.servedBytes += size
	return c.stopped == nil
}

// full reports whether a request must wait. One is served whatever its size. mu is held.
func (c *serverConn) full(size int) bool {
	o := &c.t.o
	return c.serving >= o.MaxServing || c.serving > 0 && c.servedBytes+size > o.MaxServingBytes ||
		c.out.queued > o.MaxQueuedBytes
}

// unpause wakes the reader if it waits at a bound.
func (c *serverConn) unpause() {
	c.mu.Lock()
	paused := c.paused
	c.paused = false
	c.mu.Unlock()
	if paused {
		c.resume <- struct{}{} // never blocks: the reader takes one for each paused it sets
	}
}

// letGo counts out the bytes of a request whose answer is still to come.
func (c *serverConn) letGo(size int) {
	c.mu.Lock()
	c.servedBytes -= size
	c.mu.Unlock()
	c.unpause() // the reader looks whether there is room now
}

// answer sends the answer to a request. See ReplyLent for written.
func (c *serverConn) answer(r *Request, code int32, text string, message []byte, attachment [][]byte, written func()) {
	if n := len(message) + total(attachment); n > c.t.o.MaxBody {
		code, text = codeInternal, fmt.Sprintf("answer of %d bytes is too large", n)
	}
	if code != 0 {
		message, attachment, text = nil, nil, ErrorText(c.t.start.Address, code, text)
	}
	c.mu.Lock()
	c.serving--
	c.servedBytes -= len(r.Message) + len(r.Attachment)
	paused, wake, start := c.paused, false, false
	c.paused = false
	if c.stopped == nil {
		c.out.response(r.id, code, text, message, attachment, written)
		wake, start = c.rouse(), !c.writing
		c.writing = true
	}
	c.mu.Unlock()
	if wake {
		c.send()
	}
	if start && c.t.hold() {
		go c.write()
	}
	if paused {
		c.resume <- struct{}{}
	}
}

// write is the writer.
func (c *serverConn) write() {
	defer c.t.wg.Done()
	w := newFrameWriter(c.conn, c.t.o.WriteTimeout)
	for c.take(&w.batch) {
		if err := w.flush(); err != nil {
			c.close(fmt.Errorf("%w: %w", errWrite, err))
			return
		}
		c.unpause() // the reader looks whether there is room now
	}
}

// hello answers a process that introduces itself.
func (c *serverConn) hello(r *Request) {
	var asked raftpb.HelloRequest
	if len(r.Message) > maxHello {
		r.Fail(codeBadRequest, fmt.Sprintf("Hello has %d bytes, at most %d are allowed", len(r.Message), maxHello))
		return
	}
	if err := proto.Unmarshal(r.Message, &asked); err != nil {
		r.Fail(codeBadRequest, "Fail to parse request message: "+strings.ToValidUTF8(err.Error(), "?"))
		return
	}
	b, err := proto.Marshal(&raftpb.HelloResponse{
		Incarnation: &c.t.start.Incarnation, Address: &c.t.start.Address,
	})
	if err != nil {
		r.Fail(codeInternal, err.Error())
		return
	}
	r.Reply(b)
}

// evictable says how good a candidate the connection is when there are too many: the one with the least time goes. ok is false if it must not go.
func (c *serverConn) evictable(now time.Duration) (heard time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.proven {
		return 0, c.stopped == nil
	}
	heard = time.Duration(c.heard.Load())
	return heard, c.stopped == nil && c.serving == 0 && now-heard >= idleTime
}
