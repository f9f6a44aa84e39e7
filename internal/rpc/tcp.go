package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// TCP is the Transport over TCP or TLS.
//
// Ownership: any goroutine may call any method. mu is a leaf lock.
type TCP struct {
	o      TCPOptions
	tls    *tls.Config // of the accepting side
	tlsErr error       // why there is none
	start  StartOptions
	base   time.Time // of now
	stats  stats

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // every goroutine; hold adds

	sweepAt atomic.Int64  // when sweep looks at timeouts next, a time.Duration like now's
	hurry   chan struct{} // capacity 1: sweepAt is earlier than it was
	frames  sync.Pool     // of *frameBuffer, for answers to bulk calls

	partials partials
	evicted  time.Duration // when one that was idle had to go; the acceptor's

	mu       sync.RWMutex
	started  bool
	closed   bool
	listener net.Listener
	peers    map[string]*peer // by address; of the second connection to one, by bulkKey
	accepted map[*serverConn]struct{}
}

// NewTCP returns a transport that does nothing until Start.
func NewTCP(o TCPOptions) *TCP {
	t := &TCP{
		o: o.withDefaults(), base: time.Now(), hurry: make(chan struct{}, 1),
		peers: make(map[string]*peer), accepted: make(map[*serverConn]struct{}),
	}
	if o.TLS != nil {
		t.tls, t.tlsErr = serverTLS(o.TLS)
	}
	t.partials.max = t.o.MaxPartialBytes
	t.sweepAt.Store(int64(never))
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// Start binds and serves.
func (t *TCP) Start(o StartOptions) error {
	if o.Serve == nil {
		return errors.New("rpc: StartOptions.Serve is missing")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return fmt.Errorf("rpc: start: %w", ErrClosed)
	case t.started:
		return errors.New("rpc: transport was started before")
	case t.tlsErr != nil:
		return fmt.Errorf("rpc: start: %w", t.tlsErr)
	}
	l, err := t.o.ListenFunc("tcp", o.Listen)
	if err != nil {
		return fmt.Errorf("rpc: cannot listen on %q: %w", o.Listen, err)
	}
	t.start, t.listener, t.started = o, l, true
	t.wg.Add(2)
	go t.accept(l)
	go t.sweep()
	return nil
}

// Addr returns the address that is listened on, nil before Start.
func (t *TCP) Addr() net.Addr {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.listener == nil {
		return nil
	}
	return t.listener.Addr()
}

// Call sends a request.
func (t *TCP) Call(address string, c Call) {
	if c.Done == nil {
		c.Done = func(Reply) {}
	}
	p, err := t.peer(address, c.Bulk)
	if err == nil {
		err = p.call(&c)
	}
	if err != nil {
		c.Done(Reply{Err: err})
	}
}

// bulkKey names the connection to an address that bulk calls use. No address begins like that.
func bulkKey(address string) string { return "bulk " + address }

// Watch turns the watch over a peer's process on or off, once.
func (t *TCP) Watch(address string, on bool) {
	if p, err := t.peer(address, false); err == nil {
		p.watch(on)
	}
}

// Retry has the next attempt to connect to address made at once, if earlier ones have failed.
func (t *TCP) Retry(address string) {
	t.mu.RLock()
	p, bulk := t.peers[address], t.peers[bulkKey(address)]
	t.mu.RUnlock()
	if p != nil {
		p.retry()
	}
	if bulk != nil {
		bulk.retry()
	}
}

// Close ends everything and waits for it.
func (t *TCP) Close() error {
	t.mu.Lock()
	first := !t.closed
	t.closed = true
	listener := t.listener
	peers := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		peers = append(peers, p)
	}
	accepted := make([]*serverConn, 0, len(t.accepted))
	for c := range t.accepted {
		accepted = append(accepted, c)
	}
	t.mu.Unlock()
	var err error
	if first {
		t.cancel()
		if listener != nil {
			err = listener.Close()
		}
		for _, c := range accepted {
			c.close(ErrClosed)
		}
		for _, p := range peers {
			p.close()
		}
	}
	t.wg.Wait()
	return err
}

// hold counts a goroutine that is about to start, unless the transport is closed.
func (t *TCP) hold() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	return true
}

// peer returns the peer with an address, or the one that stands for the connection for bulk calls to it.
func (t *TCP) peer(address string, bulk bool) (*peer, error) {
	key := address
	if bulk {
		key = bulkKey(address)
	}
	t.mu.RLock()
	p, usable := t.peers[key], t.started && !t.closed
	t.mu.RUnlock()
	if !usable {
		return nil, ErrClosed
	}
	if p != nil {
		return p, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if p = t.peers[key]; p == nil {
		p = newPeer(t, address, bulk)
		t.peers[key] = p
	}
	return p, nil
}

// accept is the acceptor.
func (t *TCP) accept(l net.Listener) {
	defer t.wg.Done()
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		if err == nil {
			pause = 0
			t.admit(conn)
			continue
		}
		if t.ctx.Err() != nil {
			return
		}
		// Out of file descriptors, most likely: that passes.
		t.ended("listener", l.Addr().String(), fmt.Errorf("%w: %w", errAccept, err))
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(pause):
		case <-t.ctx.Done():
			return
		}
	}
}

// admit takes an accepted connection in. At the bound it takes the place of one that
// never sent a frame, or else has long been idle, so that strangers do not keep peers out.
func (t *TCP) admit(conn net.Conn) {
	t.stats.accepted.Add(1)
	if t.tls != nil {
		conn = tls.Server(newPacedConn(conn, t.o.WriteTimeout), t.tls)
	}
	c := newServerConn(t, conn)
	t.mu.Lock()
	var others []*serverConn
	if len(t.accepted) >= t.o.MaxConns {
		for other := range t.accepted {
			others = append(others, other)
		}
	}
	t.mu.Unlock()
	if others != nil && !t.displace(others) {
		c.close(errLimit)
		return
	}
	t.mu.Lock()
	closed := t.closed
	if !closed {
		t.accepted[c] = struct{}{}
		t.wg.Add(1)
	}
	t.mu.Unlock()
	if closed {
		c.close(ErrClosed)
		return
	}
	go c.run()
}

// Of connections at the bound.
const (
	idleTime   = 10 * time.Second       // what has been quiet for so long may have to go
	evictPause = 100 * time.Millisecond // those that have to go come back
)

// displace ends a connection that never sent a frame, if there is one, or the one that has been idle longest.
func (t *TCP) displace(accepted []*serverConn) bool {
	now, oldest := t.now(), never
	var found *serverConn
	for _, c := range accepted {
		if heard, ok := c.evictable(now); ok && heard < oldest {
			found, oldest = c, heard
		}
	}
	if found == nil || oldest > 0 && t.evicted > 0 && now-t.evicted < evictPause {
		return false
	}
	if oldest > 0 {
		t.evicted = now
	}
	found.close(errLimit)
	t.forget(found)
	return true
}

// forget lets an accepted connection go.
func (t *TCP) forget(c *serverConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.accepted, c)
}

// now is the time since the transport was made. It is never 0, which says "no time".
func (t *TCP) now() time.Duration { return time.Since(t.base) + 1 }

// sweepStep is the least time between two looks at the timeouts of calls.
const sweepStep = 10 * time.Millisecond

// sweepBy sees to it that sweep looks at timeouts at or before at.
func (t *TCP) sweepBy(at time.Duration) {
	for {
		planned := t.sweepAt.Load()
		if int64(at) >= planned {
			return
		}
		if t.sweepAt.CompareAndSwap(planned, int64(at)) {
			break
		}
	}
	select {
	case t.hurry <- struct{}{}:
	default:
	}
}

// sweep ends calls that have timed out, those of all peers with one timer.
func (t *TCP) sweep() {
	defer t.wg.Done()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	last := -sweepStep
	for {
		if at := time.Duration(t.sweepAt.Load()); at < never {
			timer.Reset(max(at, last+sweepStep) - t.now())
		} else {
			timer.Stop()
		}
		select {
		case <-t.ctx.Done():
			return
		case <-t.hurry:
			continue
		case <-timer.C:
		}
		last = t.now()
		t.sweepAt.Store(int64(never)) // before the look: who comes during it hurries anew
		t.mu.RLock()
		peers := make([]*peer, 0, len(t.peers))
		for _, p := range t.peers {
			peers = append(peers, p)
		}
		t.mu.RUnlock()
		for _, p := range peers {
			t.sweepBy(p.sweep(last))
		}
	}
}

func (t *TCP) logf(format string, args ...any) {
	if t.start.Logf != nil {
		t.start.Logf(format, args...)
	}
}
