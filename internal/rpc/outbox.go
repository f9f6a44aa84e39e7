package rpc

import (
	"crypto/tls"
	"net"
	"sync"
	"time"

	"github.com/graft-raft/graft/internal/baidustd"
)

// Tuning constants of writing.
const (
	largePiece = 8 << 10 // from here on a piece is written from where it is
	keepAlways = 64 << 10
	keepInUse  = 8 << 20
)

// outbox is a run of frames to be written: small pieces copied together, large ones
// referred to.
type outbox struct {
	small  []byte
	large  []largeRef
	queued int // bytes, large pieces included
}

// largeRef is a large piece and how many bytes of small stand in front of it.
type largeRef struct {
	at      int
	piece   []byte
	written func() // nil: nobody wants to know when the piece is needed no more
}

func (o *outbox) request(c *Call, id int64, message, attachment int) {
	before := len(o.small)
	o.small = baidustd.AppendRequest(o.small, c.Service, c.Method, id, message, attachment)
	o.queued += len(o.small) - before
	for _, p := range c.Message {
		o.put(p, nil)
	}
	for _, p := range c.Attachment {
		o.put(p, nil)
	}
}

func (o *outbox) response(id int64, code int32, text string, message []byte, attachment [][]byte, written func()) {
	before := len(o.small)
	o.small = baidustd.AppendResponse(o.small, code, text, id, len(message), total(attachment))
	o.queued += len(o.small) - before
	o.put(message, nil)
	for _, p := range attachment {
		o.put(p, written)
	}
}

func (o *outbox) put(piece []byte, written func()) {
	o.queued += len(piece)
	if len(piece) < largePiece {
		o.small = append(o.small, piece...)
		return
	}
	o.large = append(o.large, largeRef{at: len(o.small), piece: piece, written: written})
}

// buffers appends what writev takes to v.
func (o *outbox) buffers(v net.Buffers) net.Buffers {
	at := 0
	for _, l := range o.large {
		if l.at > at {
			v = append(v, o.small[at:l.at])
			at = l.at
		}
		v = append(v, l.piece)
	}
	if at < len(o.small) {
		v = append(v, o.small[at:])
	}
	return v
}

// giveBack tells whose the large pieces are that they are needed no more. No lock is held.
func (o *outbox) giveBack() {
	for i := range o.large {
		if l := &o.large[i]; l.written != nil {
			l.written()
		}
	}
}

// reset empties the outbox for reuse, and lets go of large pieces. A large buffer is
// kept only while it is made use of.
func (o *outbox) reset() {
	if n := cap(o.small); n > keepInUse || n > keepAlways && len(o.small) < n/8 {
		o.small = nil
	}
	clear(o.large)
	o.small, o.large, o.queued = o.small[:0], o.large[:0], 0
}

// outlet is the meeting point of those who have frames to send on a connection and its
// writer. The writer takes all there is at a time, so that what gathers while it writes
// goes out in one piece.
//
// Ownership: mu guards the fields, and those of the struct it is embedded in. It is a
// leaf lock.
type outlet struct {
	mu        sync.Mutex
	out       outbox
	idle      bool          // the writer waits, and nobody has roused it
	waits     bool          // the writer has taken nothing that it has not written
	writing   int           // bytes that it took last
	abandoned int           // bytes of these and of what is queued, or more, for which nobody waits any more
	stopped   error         // why the connection is not to be written to any more
	wake      chan struct{} // capacity 1; only the writer receives

	direct    *direct // nil if there is no way around the writer
	directing *direct // somebody writes directly; the writer waits
	spare     []byte  // for the next direct write
}

func newOutlet() outlet { return outlet{wake: make(chan struct{}, 1)} }

// rouse reports whether the writer must be woken. mu is held; signal follows once it is not.
func (o *outlet) rouse() bool {
	idle := o.idle
	o.idle = false
	return idle
}

func (o *outlet) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// take waits for frames and swaps them with batch, which is empty. It returns false
// when there is nothing more to write on this connection.
func (o *outlet) take(batch *outbox) bool {
	o.mu.Lock()
	o.writing = 0
	for o.stopped == nil && (o.out.queued == 0 || o.directing != nil) {
		o.waits, o.idle = true, o.directing == nil
		o.mu.Unlock()
		<-o.wake
		o.mu.Lock()
	}
	// More than what is queued can wake the writer, so that whoever has roused it cannot tell from that whether it is awake.
	o.waits, o.idle = false, false
	defer o.mu.Unlock()
	if o.stopped != nil {
		return false
	}
	o.out, *batch = *batch, o.out
	o.writing = batch.queued
	o.abandoned = o.abandonedBytes()
	return true
}

// abandonedBytes is how much of what is still to be written nobody waits for, at most. mu is held.
func (o *outlet) abandonedBytes() int { return min(o.abandoned, o.out.queued+o.writing) }

// stop ends the writer. The first reason stays; stop returns whether this one is it.
func (o *outlet) stop(reason error) bool {
	o.mu.Lock()
	first := o.stopHeld(reason)
	o.mu.Unlock()
	o.signal()
	return first
}

// stopHeld is stop where mu is held. signal follows once it is not.
func (o *outlet) stopHeld(reason error) bool {
	first := o.stopped == nil
	if first {
		o.stopped = reason
	}
	return first
}

// closeNow closes a connection without TLS's farewell, for which a peer that does not
// read could make the caller wait. Frames know their length and need none.
func closeNow(conn net.Conn) {
	if s, ok := conn.(*tls.Conn); ok {
		conn = s.NetConn()
	}
	_ = conn.Close() // whatever it says, the connection is of no more use
}

// frameWriter writes batches to a connection.
//
// Ownership: the writer goroutine of the connection.
type frameWriter struct {
	conn  net.Conn
	pace  *pace
	batch outbox
	vec   net.Buffers // kept for its capacity
	rest  net.Buffers // what has not been written; a field, because it escapes
}

// newFrameWriter returns a writer that gives up when the peer does not take a batch, or 64 KiB of it, in time.
func newFrameWriter(conn net.Conn, timeout time.Duration) frameWriter {
	return frameWriter{conn: conn, pace: paceOf(conn, timeout)}
}

// flush writes the batch and empties it.
func (w *frameWriter) flush() (err error) {
	plain := w.conn == w.pace.conn // else what is below has its pace
	switch {
	case len(w.batch.large) > 0:
		err = w.flushPieces(plain)
	case plain:
		_, err = w.pace.write(w.batch.small)
	default:
		_, err = w.conn.Write(w.batch.small)
	}
	w.batch.reset()
	return err
}

// flushPieces writes the batch without copying its large pieces.
func (w *frameWriter) flushPieces(plain bool) (err error) {
	w.vec = w.batch.buffers(w.vec[:0])
	w.rest = w.vec
	if plain {
		err = w.pace.writeAll(&w.rest, w.batch.queued)
	} else {
		_, err = w.rest.WriteTo(w.conn)
	}
	clear(w.vec)
	w.batch.giveBack()
	return err
}
