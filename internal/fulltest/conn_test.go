package fulltest

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// window is how many bytes may be on the way in one direction before a write waits for the reader.
const window = 64 << 10

// conn is one end of a connection.
//
// Ownership: the network's lock guards both ends.
type conn struct {
	n           *network
	local, peer addr
	in, out     *stream
	closed      bool
	readBy      deadline
	writeBy     deadline
}

// stream is one direction of a connection: what is written arrives after the link's delay, in order, as
// far as the link lets it through.
//
// Invariants: held is what is in flight and in ready together; in flight, due times do not decrease.
//
// Ownership: the network's lock guards it. Who waits does so in cond, which a bubble knows
// to be idle.
type stream struct {
	link   *link
	cond   *sync.Cond
	flight []chunk
	ready  []byte
	held   int
	last   time.Time // when the newest chunk is due
	ended  bool      // everything arrived that ever will
	stuck  bool      // nothing arrives any more, on this connection alone
	broken error     // both ends get it at once
	reader *conn
}

// chunk is a write on its way; without data it is the writer's close.
type chunk struct {
	due  time.Time
	data []byte
}

// deadline is a point of time at which whoever waits looks again.
type deadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *deadline) passed(now time.Time) bool { return !d.at.IsZero() && !now.Before(d.at) }

// set moves the deadline. The network's lock is held.
func (d *deadline) set(at time.Time, wake func()) {
	d.at = at
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	if !at.IsZero() {
		d.timer = time.AfterFunc(time.Until(at), wake)
	}
}

// newConn makes the two ends of a connection. The network's lock is held.
func (n *network) newConn(from, to string) (client, server *conn) {
	n.port++
	there := &stream{link: n.link(from, to), cond: sync.NewCond(&n.mu)}
	back := &stream{link: n.link(to, from), cond: sync.NewCond(&n.mu)}
	client = &conn{n: n, local: addr{from, n.port}, peer: addr{to, 0}, in: back, out: there}
	server = &conn{n: n, local: addr{to, 0}, peer: addr{from, n.port}, in: there, out: back}
	back.reader, there.reader = client, server
	there.link.streams = append(there.link.streams, there)
	back.link.streams = append(back.link.streams, back)
	n.open += 2
	return client, server
}

// Read waits for bytes that have arrived.
func (c *conn) Read(b []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	for s := c.in; ; s.cond.Wait() {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case s.broken != nil:
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: s.broken}
		case c.readBy.passed(time.Now()):
			return 0, &net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}
		case len(s.ready) > 0:
			k := copy(b, s.ready)
			s.ready = s.ready[k:]
			s.held -= k
			c.n.arrived += int64(k)
			s.cond.Broadcast()
			return k, nil
		case s.ended:
			return 0, io.EOF
		}
	}
}

// Write waits for room and sends.
func (c *conn) Write(b []byte) (int, error) {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	sent := 0
	for s := c.out; ; s.cond.Wait() {
		switch {
		case c.closed:
			return sent, net.ErrClosed
		case s.broken != nil:
			return sent, &net.OpError{Op: "write", Net: "tcp", Err: s.broken}
		case c.writeBy.passed(time.Now()):
			return sent, &net.OpError{Op: "write", Net: "tcp", Err: os.ErrDeadlineExceeded}
		}
		if k := min(len(b), window-s.held); k > 0 {
			s.send(append([]byte(nil), b[:k]...))
			b, sent = b[k:], sent+k
		}
		if len(b) == 0 {
			return sent, nil
		}
	}
}

// send puts a chunk on its way. The network's lock is held.
func (s *stream) send(data []byte) {
	n := s.reader.n
	s.held += len(data)
	due := time.Now().Add(s.link.latency(n.rng))
	if due.Before(s.last) {
		due = s.last
	}
	s.last = due
	s.flight = append(s.flight, chunk{due, data})
	time.AfterFunc(time.Until(due), func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		s.arrive()
	})
}

// arrive hands over what is due and let through. The network's lock is held.
func (s *stream) arrive() {
	now := time.Now()
	for len(s.flight) > 0 && s.broken == nil && !s.stuck && !s.flight[0].due.After(now) && s.link.budget != 0 {
		c := &s.flight[0]
		k := len(c.data)
		if s.link.budget > 0 {
			k = min(k, s.link.budget)
			s.link.budget -= k
		}
		switch {
		case s.reader.closed && len(c.data) > 0: // as a host answers that has closed its socket
			s.reader.breakBoth(syscall.ECONNRESET)
			return
		case len(c.data) == 0:
			s.ended = true
		}
		s.ready = append(s.ready, c.data[:k]...)
		if c.data = c.data[k:]; len(c.data) > 0 {
			break
		}
		s.flight = s.flight[1:]
	}
	s.cond.Broadcast()
}

// breakBoth ends both directions at once, for both ends. The network's lock is held.
func (c *conn) breakBoth(err error) {
	for _, s := range []*stream{c.in, c.out} {
		if s.broken == nil {
			s.broken = err
		}
		s.flight, s.ready, s.held = nil, nil, 0
		s.cond.Broadcast()
	}
}

// Close ends this end; the other one reads what is on its way, and then the end.
func (c *conn) Close() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.n.open--
	c.readBy.set(time.Time{}, nil)
	c.writeBy.set(time.Time{}, nil)
	if c.out.broken == nil {
		c.out.send(nil)
	}
	c.in.cond.Broadcast()
	c.out.cond.Broadcast()
	c.n.forget(c)
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.peer }

func (c *conn) SetDeadline(t time.Time) error {
	_ = c.SetReadDeadline(t) // neither can fail where the other does not
	return c.SetWriteDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.readBy, c.in, t) }

func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.writeBy, c.out, t) }

func (c *conn) setDeadline(d *deadline, s *stream, at time.Time) error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	d.set(at, func() {
		c.n.mu.Lock()
		defer c.n.mu.Unlock()
		s.cond.Broadcast()
	})
	s.cond.Broadcast()
	return nil
}
