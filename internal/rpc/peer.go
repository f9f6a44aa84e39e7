package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/raftpb"
)

// peer is the way to one address: the connection, or the attempts to get one.
//
// Invariants: at most one dialer runs; calls wait in queue only while it does.
//
// Ownership: any goroutine; mu is a leaf lock.
type peer struct {
	t       *TCP
	address string

	mu          sync.Mutex
	conn        *conn
	dialing     bool
	queue       []Call
	queued      int // bytes
	retryAt     time.Time
	backoff     time.Duration
	lastErr     error
	watchers    int
	retry       *time.Timer
	broke       bool   // an established connection broke, and no attempt has succeeded since
	incarnation uint64 // of the process that answered last; 0: unknown
	ended       bool
}

const (
	firstBackoff = 10 * time.Millisecond
	lastBackoff  = time.Second
)

// call sends a request, or queues it while a connection is being made.
func (p *peer) call(c Call) {
	p.mu.Lock()
	if k := p.conn; k != nil {
		p.mu.Unlock()
		k.call(c)
		return
	}
	n := size(c.Message) + size(c.Attachment)
	var err error
	switch {
	case p.ended:
		err = ErrClosed
	case !p.dialing && time.Now().Before(p.retryAt):
		err = errors.Join(errRefusedCall, p.lastErr)
	case len(p.queue) >= p.t.o.MaxPending || p.queued+n > p.t.o.MaxPendingBytes && p.queued > 0:
		err = ErrBacklog
	}
	if err != nil {
		p.mu.Unlock()
		c.Done(Reply{Err: fmt.Errorf("%s: %w", p.address, err)})
		return
	}
	p.queue = append(p.queue, c)
	p.queued += n
	p.dialLocked()
	p.mu.Unlock()
}

// dialLocked starts a dialer if none runs. The caller holds mu. If the transport is closed, end
// fails the queue.
func (p *peer) dialLocked() {
	if p.dialing || p.ended || p.conn != nil {
		return
	}
	p.dialing = true
	if !p.t.spawn(p.dial) {
		p.dialing = false
	}
}

// dial makes one attempt to connect.
func (p *peer) dial() {
	ctx, cancel := context.WithTimeout(p.t.ctx, p.t.o.DialTimeout)
	defer cancel()
	c, err := p.t.o.Dial(ctx, p.address)
	if err == nil && p.t.o.TLS != nil {
		c, err = p.secure(ctx, c)
	}
	if err != nil {
		p.dialFailed(err)
		return
	}
	k := newConn(p.t, c, p.address)
	k.onClose = func(reason error) { p.lost(k, reason) }
	if !p.t.spawn(func() { k.close(k.read(false)) }) {
		_ = c.Close() // the transport is closing
		p.dialFailed(ErrClosed)
		return
	}
	p.t.wg.Add(1) // the dialer itself is counted, so the wait has not ended
	go k.write()
	p.mu.Lock()
	p.conn, p.dialing, p.backoff, p.retryAt, p.broke = k, false, 0, time.Time{}, false
	queue, ended := p.queue, p.ended
	p.queue, p.queued = nil, 0
	p.mu.Unlock()
	p.introduce(k)
	for _, call := range queue {
		k.call(call)
	}
	if ended {
		k.close(ErrClosed)
		return
	}
	k.mu.Lock()
	closed := k.closed
	k.mu.Unlock()
	if closed != nil { // it broke before anybody knew of it
		p.lost(k, closed)
	}
}

func (p *peer) secure(ctx context.Context, c net.Conn) (net.Conn, error) {
	config := p.t.o.TLS.Clone()
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(p.address)
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
		config.ServerName = host
	}
	s := tls.Client(c, config)
	if err := s.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return s, nil
}

// dialFailed fails what waits and sets the pause before the next attempt.
func (p *peer) dialFailed(err error) {
	refused := errors.Is(err, syscall.ECONNREFUSED)
	p.mu.Lock()
	p.dialing, p.lastErr = false, err
	p.backoff = min(max(2*p.backoff, firstBackoff), lastBackoff)
	pause := jitter(p.backoff)
	p.retryAt = time.Now().Add(pause)
	queue := p.queue
	p.queue, p.queued = nil, 0
	down := refused && p.broke && p.watchers > 0
	if down {
		p.broke = false
	}
	p.retryLaterLocked(pause)
	p.mu.Unlock()
	for _, c := range queue {
		c.Done(Reply{Err: fmt.Errorf("%w: %s: %w", ErrUnreachable, p.address, err)})
	}
	if down {
		p.down()
	}
}

// retryLaterLocked arranges for the next attempt to a watched peer. The caller holds mu.
func (p *peer) retryLaterLocked(pause time.Duration) {
	if p.watchers == 0 || p.ended {
		return
	}
	if p.retry != nil {
		p.retry.Stop()
	}
	p.retry = time.AfterFunc(pause, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.watchers > 0 {
			p.dialLocked()
		}
	})
}

// lost is called when the connection has ended.
func (p *peer) lost(k *conn, reason error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != k {
		return
	}
	p.conn, p.lastErr, p.broke = nil, reason, true
	if p.watchers > 0 {
		p.dialLocked() // at once: a refusal tells that the process is gone
	}
}

// introduce asks the peer's process who it is.
func (p *peer) introduce(k *conn) {
	b, err := proto.Marshal(&raftpb.HelloRequest{Incarnation: &p.t.start.Incarnation, Address: &p.t.start.Address})
	if err != nil {
		return // cannot happen; and nothing depends on it
	}
	k.call(Call{Service: helloService, Method: helloMethod, Message: [][]byte{b}, Timeout: p.t.o.FrameTimeout, Done: func(r Reply) {
		resp := new(raftpb.HelloResponse)
		if r.Err != nil || r.Code != 0 || proto.Unmarshal(r.Message, resp) != nil {
			return // a braft peer does not know the method
		}
		p.mu.Lock()
		other := p.incarnation != 0 && p.incarnation != resp.GetIncarnation() && p.watchers > 0
		p.incarnation = resp.GetIncarnation()
		p.mu.Unlock()
		if other {
			p.down()
		}
	}})
}

func (p *peer) down() {
	if p.t.start.Down != nil && p.t.ctx.Err() == nil {
		p.t.start.Down(p.address)
	}
}

func (p *peer) watch(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !on {
		p.watchers = max(p.watchers-1, 0)
		return
	}
	p.watchers++
	p.dialLocked()
}

// end fails what waits, for good.
func (p *peer) end() {
	p.mu.Lock()
	p.ended = true
	k, queue := p.conn, p.queue
	p.queue, p.queued = nil, 0
	if p.retry != nil {
		p.retry.Stop()
	}
	p.mu.Unlock()
	if k != nil {
		k.close(ErrClosed)
	}
	for _, c := range queue {
		c.Done(Reply{Err: fmt.Errorf("%s: %w", p.address, ErrClosed)})
	}
}
