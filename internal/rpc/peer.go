package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/raftpb"
)

// peer is the process at an address, as far as calls to it are concerned: the
// connection, the calls that wait, and what is known about its life.
//
// Frames are encoded when they are called for. While a connection is being made they
// gather in the outlet; when one fails, or breaks, all calls fail and the outlet is
// emptied.
//
// Invariant: while run does not run, there is no call and no connection.
//
// Ownership: mu of the outlet guards the fields below it.
type peer struct {
	t          *TCP
	address    string
	bulk       bool // it stands for the connection for bulk calls
	backlogErr error

	outlet
	calls   callTable
	running bool
	closed  bool
	conn    net.Conn // nil while there is none

	failures int           // attempts that led to nothing, in a row
	retryAt  time.Duration // no attempt before; 0 if one may be made, or is under way
	retryErr error         // why; calls fail with it until then

	answers   uint64        // to calls on this connection, other than Hello
	pace      *pace         // of conn
	silent    time.Duration // when the first call since the last sign of life was made, or that; 0 if no call waits
	seen      look          // since then
	connected time.Duration // since when

	watchers    int
	greeted     bool   // Hello was sent on this connection
	hello       int64  // its id
	suspect     bool   // an established connection broke, and no other was made since
	incarnation uint64 // of the process that was seen last; 0 if unknown
}

func newPeer(t *TCP, address string, bulk bool) *peer {
	return &peer{
		t: t, address: address, bulk: bulk, backlogErr: fmt.Errorf("%w: %s", ErrBacklog, address),
		outlet: newOutlet(), calls: callTable{earliest: never},
	}
}

// call sends a request, or returns why it cannot be sent.
func (p *peer) call(c *Call) error {
	message, attachment := total(c.Message), total(c.Attachment)
	if size := message + attachment; size > p.t.o.MaxBody {
		return fmt.Errorf("%w: %d bytes for %s", ErrTooLarge, size, p.address)
	}
	deadline := never
	if c.Timeout > 0 {
		deadline = p.t.now() + c.Timeout
	}
	p.mu.Lock()
	if err := p.refusal(message + attachment); err != nil {
		p.mu.Unlock()
		if errors.Is(err, ErrBacklog) {
			p.t.stats.backlog.Add(1)
		}
		return err
	}
	sweep := deadline < p.calls.earliest
	p.add(c, deadline, message, attachment)
	start, wake := p.rouseOrStart()
	p.mu.Unlock()
	if sweep {
		p.t.sweepBy(deadline)
	}
	p.act(start, wake)
	return nil
}

// refusal returns why a call of that size is not accepted now. mu is held.
func (p *peer) refusal(size int) error {
	o := &p.t.o
	switch {
	case p.closed:
		return ErrClosed
	case p.retryAt > 0 && p.t.now() < p.retryAt:
		return p.retryErr
	case p.calls.count >= o.MaxPending:
		return p.backlogErr
	}
	if held := p.calls.bytes + p.abandonedBytes(); (held > 0 || p.calls.count > 0) && held+size > o.MaxPendingBytes {
		return p.backlogErr
	}
	return nil
}

// add queues a call. mu is held.
func (p *peer) add(c *Call, deadline time.Duration, message, attachment int) (id int64) {
	id = p.calls.add(c.Done, deadline, message+attachment)
	p.out.request(c, id, message, attachment)
	if p.silent == 0 {
		p.silent, p.seen = p.t.now(), look{}
	}
	return id
}

// rouseOrStart says what must be done for what was queued to be sent. mu is held; act
// follows once it is not.
func (p *peer) rouseOrStart() (start, wake bool) {
	if !p.running {
		p.running = true
		return true, false
	}
	return false, p.rouse()
}

func (p *peer) act(start, wake bool) {
	if wake {
		p.send()
	}
	if !start {
		return
	}
	if p.t.hold() {
		go p.run()
		return
	}
	p.mu.Lock()
	p.running, p.closed = false, true
	ended := p.drop()
	p.mu.Unlock()
	failAll(ended, ErrClosed)
}

// drop ends all calls and forgets what was to be sent. mu is held.
func (p *peer) drop() []func(Reply) {
	p.out.reset()
	p.silent, p.abandoned = 0, 0
	return p.calls.clear()
}

// run connects, and then is the connection's writer, for as long as there are calls or
// watchers.
func (p *peer) run() {
	defer p.t.wg.Done()
	for p.wanted() {
		conn, err := p.connect()
		if err != nil {
			p.missed(err)
		} else {
			p.use(conn)
		}
		p.pause()
	}
}

// wanted reports whether there is a reason to connect. If not, run is over.
func (p *peer) wanted() bool {
	p.mu.Lock()
	if !p.closed && (p.watchers > 0 || p.calls.count > 0) {
		p.retryAt = 0
		p.mu.Unlock()
		return true
	}
	p.running = false
	ended := p.drop() // there are some only if closed
	p.mu.Unlock()
	failAll(ended, ErrClosed)
	return false
}

// connect makes one attempt. A host name is looked up each time.
func (p *peer) connect() (net.Conn, error) {
	ctx, cancel := context.WithTimeout(p.t.ctx, p.t.o.ConnectTimeout)
	defer cancel()
	conn, err := p.t.o.Dial(ctx, "tcp", p.address)
	if err != nil || p.t.o.TLS == nil {
		return conn, err
	}
	s := tls.Client(newPacedConn(conn, p.t.o.WriteTimeout), clientTLS(p.t.o.TLS, p.address))
	ctx, cancel = context.WithTimeout(p.t.ctx, p.t.o.HandshakeTimeout)
	defer cancel()
	if err := s.HandshakeContext(ctx); err != nil {
		closeNow(conn)
		return nil, fmt.Errorf("%w: %w", errHandshake, err)
	}
	return s, nil
}

// missed takes note of an attempt that failed.
func (p *peer) missed(err error) {
	p.t.stats.dialFailed.Add(1)
	if errors.Is(err, errHandshake) {
		p.t.ended("connection to", p.address, err)
	}
	err = fmt.Errorf("%w: %w", ErrUnreachable, err)
	p.mu.Lock()
	p.backOff(err)
	died := p.suspect && p.watchers > 0 && isRefused(err)
	if died {
		// What answers there one day is another process: no second report.
		p.suspect, p.incarnation = false, 0
	}
	ended, first := p.drop(), p.failures == 1
	p.mu.Unlock()
	if first && p.t.ctx.Err() == nil {
		p.t.logf("rpc: cannot connect to %s: %v", p.address, err)
	}
	failAll(ended, err)
	if died {
		p.down()
	}
}

// backOff sets the time of the next attempt. mu is held.
func (p *peer) backOff(err error) {
	d := min(backoffMin<<min(p.failures, 10), backoffMax)
	p.failures++
	p.retryAt = p.t.now() + d/2 + rand.N(d/2+1)
	p.retryErr = err
}

// retry has the next attempt made at once: there is reason to think that it will do better.
func (p *peer) retry() {
	p.mu.Lock()
	p.failures = 0
	p.retryAt = min(p.retryAt, p.t.now())
	p.mu.Unlock()
	p.signal()
}

// pause waits until the next attempt may be made, if there are watchers; otherwise the
// next call starts run anew.
func (p *peer) pause() {
	p.mu.Lock()
	for {
		left := p.retryAt - p.t.now()
		if left <= 0 || p.closed || p.watchers == 0 {
			break
		}
		p.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-p.wake: // closed, or watched no more, or of a time past
		}
		timer.Stop()
		p.mu.Lock()
	}
	p.mu.Unlock()
}

// use runs a connection until it breaks.
func (p *peer) use(conn net.Conn) {
	p.t.stats.dialed.Add(1)
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		closeNow(conn)
		return
	}
	w := newFrameWriter(conn, p.t.o.WriteTimeout)
	p.conn, p.pace, p.stopped, p.answers, p.connected = conn, w.pace, nil, 0, p.t.now()
	p.suspect, p.greeted = false, false
	p.attach(conn)
	if p.silent > 0 {
		p.silent, p.seen = p.connected, look{}
	}
	p.mu.Unlock()
	p.greet()
	done := make(chan struct{})
	go p.read(conn, done)
	for p.take(&w.batch) {
		if err := w.flush(); err != nil {
			p.stop(fmt.Errorf("%w: %w", errWrite, err))
		}
	}
	closeNow(conn) // this ends the reader
	<-done
	p.lost()
}

// lost takes note of a connection's end.
func (p *peer) lost() {
	p.mu.Lock()
	reason := p.stopped
	err := fmt.Errorf("%w: connection to %s: %w", ErrUnreachable, p.address, reason)
	if p.closed {
		err = ErrClosed
	}
	p.conn = nil
	p.suspect = p.watchers > 0
	if p.answers == 0 && p.t.now()-p.connected < backoffMax {
		p.backOff(err) // it was accepted only to be closed, perhaps with a greeting: do not try that in a loop
	} else {
		p.failures = 0
	}
	ended := p.drop()
	p.mu.Unlock()
	p.t.ended("connection to", p.address, reason)
	failAll(ended, err)
}

// read is the connection's reader.
func (p *peer) read(conn net.Conn, done chan<- struct{}) {
	defer close(done)
	in := newFrameReader(conn, p.t.o.MaxBody, p.t.o.FrameTimeout)
	if p.bulk {
		in.pool = &p.t.frames
	}
	for {
		f, err := in.next()
		if err == nil && !f.meta.IsResponse {
			err = errDirection
		}
		if err != nil {
			p.stop(err)
			closeNow(conn) // the writer may be within it
			return
		}
		p.answered(&f)
	}
}

// answered hands an answer to the call it is for.
func (p *peer) answered(f *frame) {
	p.mu.Lock()
	p.silent = 0
	id := f.meta.CorrelationID
	done := p.calls.remove(id)
	if done != nil && id != p.hello {
		p.answers++
	}
	p.mu.Unlock()
	if done == nil {
		p.t.stats.late.Add(1)
		return
	}
	r := Reply{Code: f.meta.ErrorCode, Message: f.message, Attachment: f.attachment, buf: f.buf}
	switch {
	case f.bad != "":
		p.t.stats.bad.Add(1)
		r = Reply{Err: fmt.Errorf("%w: %s: %s", ErrBadReply, p.address, f.bad)}
	case r.Code != 0:
		r.Text = string(f.meta.ErrorText)
	}
	done(r)
}

// sweep ends calls that have timed out, and returns when to look again.
func (p *peer) sweep(now time.Duration) (next time.Duration) {
	p.mu.Lock()
	before := p.calls.bytes
	ended := p.calls.expire(now, nil)
	next = p.calls.earliest
	p.abandoned = p.abandonedBytes() + before - p.calls.bytes
	conn, pace := p.conn, p.pace
	suspicious := len(ended) > 0 && p.silent > 0 && conn != nil
	p.mu.Unlock()
	if suspicious && p.mute(now, pace) {
		p.signal()
		closeNow(conn)
	}
	if len(ended) > 0 {
		p.t.stats.timeouts.Add(uint64(len(ended)))
		failAll(ended, fmt.Errorf("%w from %s", ErrTimeout, p.address))
	}
	return next
}

// close ends everything for good.
func (p *peer) close() {
	p.mu.Lock()
	p.closed = true
	conn := p.conn
	p.mu.Unlock()
	p.stop(ErrClosed)
	if conn != nil {
		closeNow(conn)
	}
}

// watch turns a watch on or off.
func (p *peer) watch(on bool) {
	p.mu.Lock()
	if !on {
		p.watchers = max(p.watchers-1, 0)
		p.mu.Unlock()
		p.signal() // pause may be waiting
		return
	}
	p.watchers++
	if p.watchers == 1 { // what happened before is not evidence of a death now
		p.suspect, p.incarnation, p.greeted = false, 0, false
	}
	var start bool
	if !p.closed && p.conn == nil {
		start, _ = p.rouseOrStart()
	}
	p.mu.Unlock()
	p.act(start, false)
	p.greet()
}

// greet asks a watched process who it is, once per connection. A braft peer does not
// know the method.
func (p *peer) greet() {
	hello, err := proto.Marshal(&raftpb.HelloRequest{
		Incarnation: &p.t.start.Incarnation, Address: &p.t.start.Address,
	})
	if err != nil {
		return // cannot be: there is nothing in it that could fail
	}
	p.mu.Lock()
	if p.closed || p.conn == nil || p.watchers == 0 || p.greeted {
		p.mu.Unlock()
		return
	}
	p.greeted = true
	deadline := p.t.now() + helloTimeout
	p.hello = p.add(&Call{
		Service: helloService, Method: helloMethod, Message: [][]byte{hello}, Done: p.introduced,
	}, deadline, len(hello), 0)
	wake := p.rouse()
	p.mu.Unlock()
	p.t.sweepBy(deadline)
	p.act(false, wake)
}

// introduced takes the answer to a Hello.
func (p *peer) introduced(r Reply) {
	var hello raftpb.HelloResponse
	if r.Err != nil || r.Code != 0 || len(r.Message) > maxHello || proto.Unmarshal(r.Message, &hello) != nil {
		return // not a graft process, or not any more: nothing is learned
	}
	p.mu.Lock()
	died := p.watchers > 0 && p.incarnation != 0 && p.incarnation != hello.GetIncarnation()
	p.incarnation = hello.GetIncarnation()
	p.mu.Unlock()
	if died {
		p.down()
	}
}

// down reports that the process is dead.
func (p *peer) down() {
	if p.t.start.Down != nil && p.t.ctx.Err() == nil {
		p.t.start.Down(p.address)
	}
}

// isRefused reports whether a host said that nobody listens.
func isRefused(err error) bool {
	const wsaConnRefused = syscall.Errno(10061) // what it is called on Windows
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, wsaConnRefused)
}
