package rpc

import (
	"net"
	"syscall"
)

// direct writes to a socket from the goroutine that has something to send, if the socket takes
// it at once. That spares waking the writer, which on a quiet connection is most of
// what sending costs.
type direct struct{ raw syscall.RawConn }

// directMost is the most that is sent this way. What is larger, or has large pieces, is for the
// writer.
const directMost = 16 << 10

// newDirect returns nil where there is no such way: under TLS, in memory, on other systems.
func newDirect(conn net.Conn) *direct {
	tcp, ok := conn.(*net.TCPConn)
	if !ok || !canWriteDirect {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return &direct{raw: raw}
}

// attach makes conn the connection that is written to.
func (o *outlet) attach(conn net.Conn) { o.direct, o.directing = newDirect(conn), nil }

// send makes sure that what is queued is written: directly, if the writer waits, or by the writer. The caller
// has roused it, and holds no lock.
func (o *outlet) send() {
	o.mu.Lock()
	d := o.direct
	if d == nil || !o.waits || o.directing != nil || o.stopped != nil || o.out.queued == 0 || len(o.out.large) > 0 || len(o.out.small) > directMost {
		o.mu.Unlock()
		o.signal()
		return
	}
	// While directing is set the writer keeps waiting, and whoever queues more leaves it to this call.
	o.directing = d
	b := o.out.small
	o.out.small, o.out.queued, o.spare = o.spare[:0], 0, nil
	o.mu.Unlock()
	n := d.write(b)
	o.mu.Lock()
	if o.directing != d { // another connection by now, for which this was not meant
		o.mu.Unlock()
		return
	}
	o.directing = nil
	if rest := b[n:]; len(rest) > 0 && o.stopped == nil {
		o.out.pushFront(rest)
	} else if cap(b) <= keepAlways {
		o.spare = b[:0]
	}
	if o.out.queued == 0 && o.stopped == nil {
		o.idle = true // the writer still waits
		o.mu.Unlock()
		return
	}
	o.mu.Unlock()
	o.signal()
}

// pushFront puts bytes in front of everything.
func (o *outbox) pushFront(b []byte) {
	o.small = append(append(make([]byte, 0, len(b)+len(o.small)), b...), o.small...)
	for i := range o.large {
		o.large[i].at += len(b)
	}
	o.queued += len(b)
}
