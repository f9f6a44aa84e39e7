package rpc

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// paceStep is how long a write that waits is left alone before it is looked how far it has come.
const paceStep = 500 * time.Millisecond

// pace gives writes to a connection their time. Like the reader of a large frame it expects each stride to get
// through after timeout, so that a slow way is told from one on which nothing moves.
//
// Ownership: one goroutine at a time writes. The counters may be read by any.
type pace struct {
	conn     net.Conn        // not TLS
	raw      syscall.RawConn // nil if conn is not a socket
	timeout  time.Duration
	deadline time.Time // that conn has
	by       time.Time // when the stride that is being written must be through
	moved    int       // of that

	offered atomic.Int64 // bytes that conn was given
	gone    atomic.Int64 // of these, what it is known to have taken
	pushed  atomic.Int64 // of these, what it took after it had been full, which is when the peer has taken others
}

func newPace(conn net.Conn, timeout time.Duration) *pace {
	p := &pace{conn: conn, timeout: timeout}
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			p.raw = raw
		}
	}
	return p
}

// write writes b.
func (p *pace) write(b []byte) (written int, err error) {
	p.offered.Add(int64(len(b)))
	err = p.begin()
	for full := false; err == nil; full = true {
		var n int
		n, err = p.conn.Write(b[written:])
		written += n
		if !p.again(n, full, err) {
			break
		}
		err = p.arm(time.Now())
	}
	return written, err
}

// writeAll writes b, of so many bytes, and consumes it.
func (p *pace) writeAll(b *net.Buffers, size int) error {
	p.offered.Add(int64(size))
	err := p.begin()
	for full := false; err == nil; full = true {
		var n int64
		n, err = b.WriteTo(p.conn)
		if !p.again(int(n), full, err) {
			break
		}
		err = p.arm(time.Now())
	}
	return err
}

func (p *pace) begin() error {
	now := time.Now()
	p.by, p.moved = now.Add(p.timeout), 0
	return p.arm(now)
}

// arm sets the write deadline. One that is at least half away is left alone: moving it is not free.
func (p *pace) arm(now time.Time) error {
	step := min(p.timeout, paceStep)
	if p.deadline.Sub(now) >= step/2 {
		return nil
	}
	p.deadline = now.Add(step)
	return p.conn.SetWriteDeadline(p.deadline)
}

// again takes note of what was written, and reports whether the rest is still to be.
func (p *pace) again(n int, full bool, err error) bool {
	p.gone.Add(int64(n))
	if full {
		p.pushed.Add(int64(n))
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	now := time.Now()
	if p.moved += n; p.moved >= stride {
		p.by, p.moved = now.Add(p.timeout), 0
	}
	return now.Before(p.by)
}

// progress is how far what was written to a connection has come.
type progress struct {
	pushed      int64 // see pace
	least, most int64 // so much has arrived
	kept        int   // by the system, as not arrived yet
}

// progress looks how far it is. Where the system does not say what it keeps, that counts as arrived.
func (p *pace) progress() (v progress) {
	v.least, v.pushed = p.gone.Load(), p.pushed.Load()
	v.kept = unacknowledged(p.raw)
	v.least -= int64(v.kept)
	v.most = p.offered.Load() - int64(v.kept)
	return v
}

// pacedConn is what TLS writes to: a write of TLS that has failed cannot be taken up again.
type pacedConn struct {
	net.Conn
	pace *pace
}

func newPacedConn(conn net.Conn, timeout time.Duration) net.Conn {
	return &pacedConn{Conn: conn, pace: newPace(conn, timeout)}
}

func (c *pacedConn) Write(b []byte) (int, error) { return c.pace.write(b) }

// paceOf returns the pace of a connection, which under TLS has it already.
func paceOf(conn net.Conn, timeout time.Duration) *pace {
	if s, ok := conn.(*tls.Conn); ok {
		if c, ok := s.NetConn().(*pacedConn); ok {
			return c.pace
		}
	}
	return newPace(conn, timeout)
}
