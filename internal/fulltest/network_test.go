package fulltest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/graft-raft/graft/internal/rpc"
)

// network connects the machines of a bubble. It stands in for sockets, on which a goroutine that waits is not
// idle in the eyes of a bubble.
//
// Ownership: any goroutine may use it. mu is a leaf lock, and what waits waits in a condition.
type network struct {
	mu        sync.Mutex
	rng       *rand.Rand
	names     map[string]string // what a host name resolves to; others are addresses
	listeners map[string]*listener
	links     map[[2]string]*link
	dials     map[[2]string]int // attempts so far
	port      int
	open      int   // ends that are not closed
	arrived   int64 // bytes read
}

// dialMode is how attempts to connect over a link end.
type dialMode int

const (
	dialWorks dialMode = iota
	dialHangs
	dialRefused
)

// link is one direction between two machines.
//
// Ownership: the network's lock guards it.
type link struct {
	delay   time.Duration // and up to as much again, at random
	budget  int           // bytes that it still lets through; negative: all
	dial    dialMode
	streams []*stream
}

func (l *link) latency(rng *rand.Rand) time.Duration {
	if l.delay == 0 {
		return 0
	}
	return l.delay + time.Duration(rng.Int64N(int64(l.delay)))
}

// addr is where an end of a connection is.
type addr struct {
	machine string
	port    int
}

func (a addr) Network() string { return "tcp" }

func (a addr) String() string {
	if a.port == 0 {
		return a.machine
	}
	return fmt.Sprintf("%s#%d", a.machine, a.port)
}

func newNetwork(seed uint64) *network {
	return &network{
		rng: rand.New(rand.NewPCG(seed, 0x4e7)), names: make(map[string]string), listeners: make(map[string]*listener),
		links: make(map[[2]string]*link), dials: make(map[[2]string]int),
	}
}

// link returns the link between two machines. The lock is held.
func (n *network) link(from, to string) *link {
	key := [2]string{from, to}
	l := n.links[key]
	if l == nil {
		l = &link{delay: 50 * time.Microsecond, budget: -1}
		n.links[key] = l
	}
	return l
}

// options returns what the transport of a machine needs to use the network.
func (n *network) options(machine string) rpc.TCPOptions {
	return rpc.TCPOptions{
		ListenFunc: n.listen,
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			c, err := n.connect(ctx, machine, address)
			if err != nil {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
			}
			return c, nil
		},
	}
}

// connect makes one attempt to connect.
func (n *network) connect(ctx context.Context, from, address string) (*conn, error) {
	n.mu.Lock()
	to := address
	if name, ok := n.names[address]; ok {
		to = name
	}
	n.dials[[2]string{from, to}]++
	l, back := n.link(from, to), n.link(to, from)
	mode, trip := l.dial, l.latency(n.rng)+back.latency(n.rng)
	if l.budget >= 0 || back.budget >= 0 {
		mode = dialHangs // as if the packets that open a connection were lost
	}
	n.mu.Unlock()
	if mode == dialHangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	select {
	case <-time.After(trip):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	refused := os.NewSyscallError("connect", syscall.ECONNREFUSED)
	n.mu.Lock()
	defer n.mu.Unlock()
	server := n.listeners[to]
	if mode == dialRefused || server == nil {
		return nil, refused
	}
	c, s := n.newConn(from, to)
	server.queue = append(server.queue, s)
	server.cond.Broadcast()
	return c, nil
}

// listener accepts the connections to an address.
//
// Ownership: the network's lock guards it.
type listener struct {
	n      *network
	at     string
	cond   *sync.Cond
	queue  []*conn
	closed bool
}

func (n *network) listen(_, address string) (net.Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.listeners[address] != nil {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &listener{n: n, at: address, cond: sync.NewCond(&n.mu)}
	n.listeners[address] = l
	return l, nil
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	l.n.mu.Lock()
	defer l.n.mu.Unlock()
	for len(l.queue) == 0 && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		return nil, net.ErrClosed
	}
	c := l.queue[0]
	l.queue = l.queue[1:]
	return c, nil
}

// Close ends the listener, and what it has not accepted.
func (l *listener) Close() error {
	l.n.mu.Lock()
	queue := l.queue
	l.queue = nil
	if l.closed {
		l.n.mu.Unlock()
		return net.ErrClosed
	}
	l.closed = true
	delete(l.n.listeners, l.at)
	l.cond.Broadcast()
	l.n.mu.Unlock()
	for _, c := range queue {
		_ = c.Close() // nobody has it
	}
	return nil
}

func (l *listener) Addr() net.Addr { return addr{machine: l.at} }

// forget takes an end that is closed out of its link, once the other one is closed too. The lock is held.
func (n *network) forget(c *conn) {
	if !c.out.reader.closed {
		return
	}
	for _, s := range []*stream{c.in, c.out} {
		s.link.streams = slices.DeleteFunc(s.link.streams, func(o *stream) bool { return o == s })
	}
}

// each changes the links from one machine to another and back.
func (n *network) each(a, b string, change func(l *link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, key := range [][2]string{{a, b}, {b, a}} {
		change(n.link(key[0], key[1]))
	}
}

// cut lets nothing through between two machines any more; nobody is told.
func (n *network) cut(a, b string) { n.each(a, b, func(l *link) { l.budget = 0 }) }

// cutOneWay lets nothing through from one machine to another. No new connection comes about
// between them either.
func (n *network) cutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).budget = 0
}

// stallAfter cuts a direction after so many more bytes, which may be in the middle of a frame.
func (n *network) stallAfter(from, to string, bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).budget = bytes
}

// stick holds up what a machine says on the connections that it has made to another; new ones work.
func (n *network) stick(dialer, acceptor string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, s := range n.link(dialer, acceptor).streams {
		s.stuck = s.stuck || s.reader.peer.port != 0
	}
}

// heal makes a pair of machines talk again: what was held up arrives.
func (n *network) heal(a, b string) {
	n.healOneWay(a, b)
	n.healOneWay(b, a)
}

// healOneWay makes a direction sound again.
func (n *network) healOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.link(from, to)
	l.budget, l.dial = -1, dialWorks
	for _, s := range slices.Clone(l.streams) {
		s.arrive()
	}
}

// reset breaks all connections between two machines, as a firewall does.
func (n *network) reset(a, b string) {
	n.each(a, b, func(l *link) {
		for _, s := range slices.Clone(l.streams) {
			s.reader.breakBoth(syscall.ECONNRESET)
		}
	})
}

// renew makes a pair of machines talk again, over new connections: what was held up is lost.
func (n *network) renew(a, b string) {
	n.each(a, b, func(l *link) {
		l.budget, l.dial = -1, dialWorks
		for _, s := range slices.Clone(l.streams) {
			s.reader.breakBoth(syscall.ECONNRESET)
		}
	})
}

// dialing says how further attempts to connect end.
func (n *network) dialing(from, to string, mode dialMode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).dial = mode
}

// slow sets what a message takes at least from one machine to another; it takes up to twice as long.
func (n *network) slow(from, to string, delay time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link(from, to).delay = delay
}

// resolve has a host name lead to another address from the next attempt on.
func (n *network) resolve(name, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names[name] = address
}

// attempts is how often a machine tried to connect to another so far.
func (n *network) attempts(from, to string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dials[[2]string{from, to}]
}

// ends is how many ends of connections are open.
func (n *network) ends() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open
}

// traffic is how many bytes were read so far.
func (n *network) traffic() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.arrived
}
