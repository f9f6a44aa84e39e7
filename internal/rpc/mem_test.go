package rpc

import (
	"context"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/baidustd"
)

// memNet is a network of pipes, for bubbles with a fake clock.
type memNet struct {
	mu        sync.Mutex
	listeners map[string]*memListener
	dials     []string // every attempt
	dialErr   error    // instead of a connection, while set
	hang      bool     // attempts end with their context only
}

type memListener struct {
	n       *memNet
	address memAddr
	conns   chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

type memAddr string

func (a memAddr) Network() string { return "tcp" }
func (a memAddr) String() string  { return string(a) }

func newMemNet() *memNet { return &memNet{listeners: make(map[string]*memListener)} }

func (n *memNet) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, address)
	l, err, hang := n.listeners[address], n.dialErr, n.hang
	n.mu.Unlock()
	if hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	refused := &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	if l == nil {
		return nil, refused
	}
	client, server := net.Pipe()
	select {
	case l.conns <- server:
		return client, nil
	case <-l.closed:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *memNet) Listen(_, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, syscall.EADDRINUSE
	}
	l := &memListener{n: n, address: memAddr(address), conns: make(chan net.Conn), closed: make(chan struct{})}
	n.listeners[address] = l
	return l, nil
}

// set changes how attempts end.
func (n *memNet) set(err error, hang bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dialErr, n.hang = err, hang
}

// attempts returns how often anybody tried to connect so far.
func (n *memNet) attempts() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.dials)
}

func (l *memListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *memListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		delete(l.n.listeners, string(l.address))
	})
	return nil
}

func (l *memListener) Addr() net.Addr { return l.address }

// options returns options that use the network.
func (n *memNet) options() TCPOptions { return TCPOptions{Dial: n.Dial, ListenFunc: n.Listen} }

// connect returns a raw connection to address.
func (n *memNet) connect(t testing.TB, address string) net.Conn {
	c, err := n.Dial(t.Context(), "tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask makes a call and returns where its outcome arrives.
func ask(t *TCP, address string, c Call) <-chan Reply {
	out := make(chan Reply, 1)
	c.Done = func(r Reply) { out <- r }
	if c.Service == "" {
		c.Service, c.Method = "braft.RaftService", "append_entries"
	}
	t.Call(address, c)
	return out
}

// request returns the frame of a request.
func request(id int64, message, attachment string) []byte {
	return EncodeCall(id, &Call{
		Service: "braft.RaftService", Method: "append_entries",
		Message: [][]byte{[]byte(message)}, Attachment: [][]byte{[]byte(attachment)},
	})
}

// readFrame reads one frame from a raw connection.
func readFrame(t testing.TB, c net.Conn) Frame {
	in := newFrameReader(c, baidustd.DefaultMaxBody, helloTimeout)
	f, err := in.next()
	require.NoError(t, err)
	return Frame{
		ID: f.meta.CorrelationID, Service: string(f.meta.Service), Method: string(f.meta.Method),
		Code: f.meta.ErrorCode, Text: string(f.meta.ErrorText), Message: f.message, Attachment: f.attachment,
	}
}
