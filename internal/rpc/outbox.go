package rpc

import (
	"net"
	"sync"
)

// outbox gathers the frames that a connection's writer sends next.
//
// Invariant: parts, with the rest of small, are the frames in the order of their adding.
//
// Ownership: any goroutine adds, the writer takes. mu is a leaf lock.
type outbox struct {
	wake chan struct{} // holds a token when there may be something to take

	mu     sync.Mutex
	small  []byte // small pieces, back to back
	cut    int    // where in small the part begins that is not in parts yet
	parts  []part // what to write before that
	spare  []byte // the buffer written last, for reuse
	bytes  int    // waiting, large pieces included
	closed bool
}

// part is a run of small bytes, or a large piece as it is.
type part struct {
	from, to int
	large    []byte
}

const (
	largePiece = 8 << 10 // copied below, written from where it is from here on
	keepSmall  = 1 << 18 // a larger buffer is not kept
)

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// add queues a frame. head makes its header and meta. It reports false if the box is closed or
// more than limit waits.
func (o *outbox) add(limit int, head func(b []byte) []byte, message, attachment [][]byte) bool {
	o.mu.Lock()
	if o.closed || o.bytes > limit {
		o.mu.Unlock()
		return false
	}
	first := o.bytes == 0
	before := len(o.small)
	o.small = head(o.small)
	o.bytes += len(o.small) - before
	for _, pieces := range [2][][]byte{message, attachment} {
		for _, p := range pieces {
			o.piece(p)
		}
	}
	o.mu.Unlock()
	if first {
		o.signal()
	}
	return true
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

func (o *outbox) piece(p []byte) {
	o.bytes += len(p)
	if len(p) < largePiece {
		o.small = append(o.small, p...)
		return
	}
	if o.cut < len(o.small) {
		o.parts = append(o.parts, part{from: o.cut, to: len(o.small)})
		o.cut = len(o.small)
	}
	o.parts = append(o.parts, part{large: p})
}

// take returns what waits, as buffers to write. The small bytes are to be given back.
func (o *outbox) take(bufs net.Buffers) (_ net.Buffers, small []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	bufs = bufs[:0]
	if o.bytes == 0 {
		return bufs, nil
	}
	small = o.small
	for _, p := range o.parts {
		if p.large != nil {
			bufs = append(bufs, p.large)
		} else {
			bufs = append(bufs, small[p.from:p.to])
		}
	}
	if o.cut < len(small) {
		bufs = append(bufs, small[o.cut:])
	}
	clear(o.parts)
	o.small, o.parts, o.cut, o.bytes, o.spare = o.spare[:0], o.parts[:0], 0, 0, nil
	return bufs, small
}

// giveBack returns the buffer that take handed out.
func (o *outbox) giveBack(small []byte) {
	if cap(small) > keepSmall {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.spare == nil {
		o.spare = small[:0]
	}
}

// close drops what waits and ends the writer.
func (o *outbox) close() {
	o.mu.Lock()
	o.closed, o.small, o.parts, o.bytes, o.cut = true, nil, nil, 0, 0
	o.mu.Unlock()
	o.signal()
}

func (o *outbox) isClosed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed
}
