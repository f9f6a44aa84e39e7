package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/baidustd"
	"github.com/graft-raft/graft/raftpb"
)

const (
	helloService = "graft.NodeService"
	helloMethod  = "Hello"
)

// TCPOptions are a TCP transport's limits. Zero means default.
type TCPOptions struct {
	TLS *tls.Config // used as server and as client; nil: plain

	MaxBody         int           // largest frame, default 64 MiB and room for the meta
	MaxPending      int           // calls that wait on a connection, default 65536
	MaxPendingBytes int           // bytes that wait to be sent on a connection, default 64 MiB
	MaxServing      int           // requests of a connection that are handled at once, default 4096
	MaxAccepted     int           // accepted connections, default 4096
	FrameTimeout    time.Duration // how long a frame may make no progress, default 10s
	WriteTimeout    time.Duration // how long a write may take, default 15s
	DialTimeout     time.Duration // default 1s

	Dial   func(ctx context.Context, address string) (net.Conn, error)
	Listen func(address string) (net.Listener, error)
}

func (o TCPOptions) withDefaults() TCPOptions {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.MaxBody, baidustd.DefaultMaxBody)
	def(&o.MaxPending, 1<<16)
	def(&o.MaxPendingBytes, 64<<20)
	def(&o.MaxServing, 4096)
	def(&o.MaxAccepted, 4096)
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{{&o.FrameTimeout, 10 * time.Second}, {&o.WriteTimeout, 15 * time.Second}, {&o.DialTimeout, time.Second}} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) {
			d := net.Dialer{KeepAlive: 5 * time.Second} // a name is resolved anew at each attempt
			return d.DialContext(ctx, "tcp", address)
		}
	}
	if o.Listen == nil {
		o.Listen = func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	}
	return o
}

// TCP is the default transport.
//
// Ownership: its methods may be called from anywhere. mu is a leaf lock.
type TCP struct {
	o     TCPOptions
	start StartOptions
	names names
	stats stats

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // acceptor, readers, writers, dialers

	mu       sync.Mutex
	listener net.Listener
	peers    map[string]*peer
	accepted map[*conn]struct{}
	closed   bool
}

// NewTCP returns a transport that is to be started.
func NewTCP(o TCPOptions) *TCP {
	t := &TCP{o: o.withDefaults(), peers: make(map[string]*peer), accepted: make(map[*conn]struct{})}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// Start binds and serves.
func (t *TCP) Start(o StartOptions) error {
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	if t.listener != nil {
		return errors.New("transport was started before")
	}
	l, err := t.o.Listen(o.Listen)
	if err != nil {
		return err
	}
	t.start, t.listener = o, l
	t.wg.Add(1)
	go t.accept(l)
	return nil
}

// accept runs the acceptor.
func (t *TCP) accept(l net.Listener) {
	defer t.wg.Done()
	pause := time.Millisecond
	for {
		c, err := l.Accept()
		if err != nil {
			if t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of file descriptors, say: that passes.
			t.count("accept", l.Addr().String(), err)
			select {
			case <-time.After(pause):
			case <-t.ctx.Done():
				return
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = time.Millisecond
		t.admit(c)
	}
}

// admit starts the goroutines of an accepted connection.
func (t *TCP) admit(c net.Conn) {
	remote := c.RemoteAddr().String()
	if t.o.TLS != nil {
		c = tls.Server(c, t.o.TLS)
	}
	k := newConn(t, c, remote)
	t.mu.Lock()
	if t.closed || len(t.accepted) >= t.o.MaxAccepted {
		t.mu.Unlock()
		t.count("too many connections", remote, nil)
		_ = c.Close() // refused
		return
	}
	t.accepted[k] = struct{}{}
	t.wg.Add(2)
	t.mu.Unlock()
	go t.serveConn(k)
	go k.write()
}

// serveConn runs the reader of an accepted connection.
func (t *TCP) serveConn(k *conn) {
	defer t.wg.Done()
	err := t.handshake(k.c)
	if err == nil {
		err = k.read(true)
	}
	if !errors.Is(err, io.EOF) {
		t.count("accepted connection: "+reason(err), k.remote, err)
	}
	k.close(err)
	t.mu.Lock()
	delete(t.accepted, k)
	t.mu.Unlock()
}

func (t *TCP) handshake(c net.Conn) error {
	s, ok := c.(*tls.Conn)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.o.FrameTimeout)
	defer cancel()
	return s.HandshakeContext(ctx)
}

// reason sorts errors into a few kinds that can be counted.
func reason(err error) string {
	for _, kind := range []error{
		baidustd.ErrMagic, baidustd.ErrTooLarge, baidustd.ErrMetaSize, baidustd.ErrMeta, errStalled, io.ErrUnexpectedEOF,
	} {
		if errors.Is(err, kind) {
			return kind.Error()
		}
	}
	return "broken"
}

// count counts what went wrong and logs it, but not too often.
func (t *TCP) count(what, remote string, err error) {
	if n := t.stats.add(what); n <= 10 || n%1000 == 0 {
		t.start.Logf("rpc: %s: %s: %v (%d times so far)", remote, what, err, n)
	}
}

// Stats returns how often each kind of trouble was seen.
func (t *TCP) Stats() map[string]int64 { return t.stats.all() }

// hello answers another process that introduces itself.
func (t *TCP) hello(r *Request) {
	b, err := proto.Marshal(&raftpb.HelloResponse{Incarnation: &t.start.Incarnation, Address: &t.start.Address})
	if err != nil {
		r.Fail(codeRequest, err.Error())
		return
	}
	r.Reply(b)
}

// Call sends a request.
func (t *TCP) Call(address string, c Call) {
	p, err := t.peer(address)
	if err != nil {
		c.Done(Reply{Err: err})
		return
	}
	p.call(c)
}

// Watch keeps a connection to address open.
func (t *TCP) Watch(address string, on bool) {
	if p, err := t.peer(address); err == nil {
		p.watch(on)
	}
}

func (t *TCP) peer(address string) (*peer, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	p := t.peers[address]
	if p == nil {
		p = &peer{t: t, address: address}
		t.peers[address] = p
	}
	return p, nil
}

// Close ends everything.
func (t *TCP) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		t.wg.Wait()
		return nil
	}
	t.closed = true
	listener := t.listener
	var conns []*conn
	for k := range t.accepted {
		conns = append(conns, k)
	}
	peers := make([]*peer, 0, len(t.peers))
	for _, p := range t.peers {
		peers = append(peers, p)
	}
	t.mu.Unlock()
	t.cancel()
	var err error
	if listener != nil {
		err = listener.Close()
	}
	for _, k := range conns {
		k.close(ErrClosed)
	}
	for _, p := range peers {
		p.end()
	}
	t.wg.Wait()
	return err
}

// spawn runs f unless the transport is closed.
func (t *TCP) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		f()
	}()
	return true
}

// names makes strings of the few names that occur, without an allocation each.
type names struct {
	mu sync.RWMutex
	m  map[string]string
}

func (n *names) of(b []byte) string {
	n.mu.RLock()
	s, ok := n.m[string(b)]
	n.mu.RUnlock()
	if ok {
		return s
	}
	s = string(b)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil {
		n.m = make(map[string]string)
	}
	if len(n.m) < 256 { // strangers may ask for anything
		n.m[s] = s
	}
	return s
}

// stats counts by name.
type stats struct {
	mu sync.Mutex
	m  map[string]int64
}

func (s *stats) add(what string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = make(map[string]int64)
	}
	s.m[what]++
	return s.m[what]
}

func (s *stats) all() map[string]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := make(map[string]int64, len(s.m))
	for k, v := range s.m {
		m[k] = v
	}
	return m
}

// jitter spreads a pause over half to all of it.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

var errRefusedCall = fmt.Errorf("%w: connecting failed a moment ago", ErrUnreachable)
