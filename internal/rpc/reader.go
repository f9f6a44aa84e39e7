package rpc

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/graft-raft/graft/internal/baidustd"
)

// Tuning constants of reading.
const (
	firstSlab = 2 << 10  // of a connection, which may never say much
	fullSlab  = 64 << 10 // frames larger than this get a buffer of their own
	growFirst = 256 << 10
	growTrust = 4 << 20 // the most that a header alone makes a reader allocate
	stride    = 64 << 10

	pooledFrame = 1<<20 + 4<<10 // frames larger than this are in no pool
)

// Pinned returns how much memory a view into a message keeps in use that has the given size with its attachment.
func Pinned(size int) int { return max(size, fullSlab) }

var (
	errTruncated = errors.New("connection ended within a frame")
	errStalled   = errors.New("frame does not arrive")
)

// frameBuffer is memory for a large frame, of a pool.
type frameBuffer struct {
	pool  *sync.Pool
	bytes []byte
}

func (b *frameBuffer) recycle() { b.pool.Put(b) }

// frameReader cuts frames out of a connection's bytes.
//
// Small frames share slabs, a large one has its own buffer. Neither is ever used again
// once a view into it was handed out, so that views stay valid without a copy. With a
// pool, a large frame's buffer is one of it, and who has the frame may give it back.
//
// Invariants: buf[r:w] is what was read and not yet handed out; it begins with a frame.
// buf is pooled's if that is set.
//
// Ownership: the reader goroutine of the connection.
type frameReader struct {
	conn    net.Conn
	maxBody int
	timeout time.Duration // for a frame, or 64 KiB of it, from its first byte

	pool   *sync.Pool // of *frameBuffer; nil: there is none
	pooled *frameBuffer

	// hold asks whether the memory of a large frame may be so much, and with 0 gives it up. nil: nobody counts.
	hold func(bytes int) bool

	buf   []byte
	r, w  int
	reads int // how often something came
	slab  int // size of the next slab
	grow  int // size of the first buffer of a large frame: no more than came before

	partial time.Time // when the frame at r must have got on; zero between frames
	mark    int       // size of the frame at r at which partial was set
	armed   bool      // conn has a read deadline, which may be of a frame before
}

func newFrameReader(conn net.Conn, maxBody int, timeout time.Duration) frameReader {
	return frameReader{conn: conn, maxBody: maxBody, timeout: timeout, slab: firstSlab, grow: growFirst}
}

// next returns the next frame. After an error the connection is of no more use.
func (f *frameReader) next() (frame, error) {
	for {
		need := baidustd.HeaderSize
		b := f.buf[f.r:f.w]
		if !baidustd.CheckMagic(b) {
			return frame{}, fmt.Errorf("%w: % x", baidustd.ErrMagic, b[:min(len(b), 16)])
		}
		if len(b) >= need {
			body, meta, err := baidustd.ParseHeader(b, f.maxBody)
			if err != nil {
				return frame{}, fmt.Errorf("%w: % x", err, b[:baidustd.HeaderSize])
			}
			if need += body; len(b) >= need {
				f.r += need
				f.partial = time.Time{}
				f.grow = min(max(f.grow, need), growTrust)
				if f.hold != nil && need > fullSlab {
					f.hold(0)
				}
				fr, err := parseBody(b[baidustd.HeaderSize:need:need], meta)
				fr.buf = f.handOver()
				return fr, err
			}
		}
		if err := f.fill(need); err != nil {
			return frame{}, err
		}
	}
}

// fill reads at least one more byte of the frame at r, which has the given size.
func (f *frameReader) fill(size int) error {
	if err := f.room(size); err != nil {
		return err
	}
	for {
		f.setDeadline()
		n, err := f.conn.Read(f.buf[f.w:])
		f.w += n
		switch {
		case n > 0:
			f.reads++
			return nil
		case err == nil: // allowed, if strange
		case errors.Is(err, os.ErrDeadlineExceeded):
			if err := f.passed(size); err != nil {
				return err
			}
		case err == io.EOF && f.r < f.w:
			return errTruncated
		default:
			return err
		}
	}
}

// setDeadline sees to it that a frame that has begun goes on. A deadline is left where
// it is when its frame is complete: most frames come in one piece with others, and
// to move the deadline each time would cost as much as to read them. That a deadline
// cannot be set is no news: the connection is closed, as Read says next.
func (f *frameReader) setDeadline() {
	size := f.w - f.r
	if size == 0 {
		return
	}
	if f.partial.IsZero() || size >= f.mark+stride {
		f.partial, f.mark = time.Now().Add(f.timeout), size
	}
	if !f.armed {
		f.armed = true
		_ = f.conn.SetReadDeadline(f.partial) // see above
	}
}

// passed is called when the read deadline has passed. It may be one of a frame that has
// arrived since.
func (f *frameReader) passed(size int) error {
	f.armed = false
	if f.r == f.w {
		_ = f.conn.SetReadDeadline(time.Time{}) // as above
		return nil
	}
	if time.Now().Before(f.partial) {
		return nil // setDeadline sets the right one
	}
	return fmt.Errorf("%w: %d of %d bytes", errStalled, f.w-f.r, size)
}

// room makes room to read more of the frame at r, which has the given size.
func (f *frameReader) room(size int) error {
	have, free := f.w-f.r, len(f.buf)-f.w
	switch {
	case size > fullSlab:
		return f.roomLarge(size, have, free)
	case f.r+size > len(f.buf) || have == 0 && free < len(f.buf)/16:
		// What is left is too little for the frame, or for a read that is worth a call.
		// A frame for which there is room stays: it might come byte by byte.
		n := max(f.slab, size)
		f.slab = min(f.slab*4, fullSlab)
		f.move(make([]byte, n))
	}
	return nil
}

// roomLarge makes room in a buffer that holds nothing but one large frame.
func (f *frameReader) roomLarge(size, have, free int) error {
	if f.r == 0 && free > 0 && len(f.buf) <= size && len(f.buf) > fullSlab {
		return nil
	}
	if f.pool != nil && size <= pooledFrame {
		b, ok := f.pool.Get().(*frameBuffer)
		if !ok {
			b = &frameBuffer{pool: f.pool, bytes: make([]byte, pooledFrame)}
		}
		f.move(b.bytes[:size])
		f.pooled = b
		return nil
	}
	n := min(size, f.grow)
	if have >= n {
		n = min(size, have*4)
	}
	if f.hold != nil && !f.hold(n) {
		return errPartial
	}
	f.move(make([]byte, n))
	return nil
}

// handOver returns the buffer of the frame that is complete if it is a pool's, and keeps no view into it.
func (f *frameReader) handOver() *frameBuffer {
	b := f.pooled
	if b != nil {
		f.pooled, f.buf, f.r, f.w = nil, nil, 0, 0
		f.slab = firstSlab // what is read with the next head has to be moved
	}
	return b
}

// move continues in another buffer.
func (f *frameReader) move(to []byte) {
	f.w = copy(to, f.buf[f.r:f.w])
	f.r, f.buf = 0, to
}
