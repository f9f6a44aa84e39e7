package rpc

import (
	"errors"
	"io"
	"net"
	"time"

	"github.com/graft-raft/graft/internal/baidustd"
)

// errStalled says that a frame was begun and not continued in time.
var errStalled = errors.New("frame stalled")

// frameReader cuts frames out of a connection.
//
// Invariant: bytes handed out are never written again.
//
// Ownership: the connection's reader.
type frameReader struct {
	c       net.Conn
	maxBody int
	stall   time.Duration // how long a frame that was begun may make no progress
	buf     []byte        // buf[r:w] was read and not handed out
	r, w    int
	armed   bool // a read deadline is set
}

const (
	slabSize  = 64 << 10
	firstGrow = 256 << 10 // a large frame's buffer begins with this and doubles as bytes arrive
)

// next returns the next frame's meta and what follows it.
func (f *frameReader) next() (meta, payload []byte, err error) {
	if err := f.need(baidustd.HeaderSize); err != nil {
		return nil, nil, err
	}
	body, metaSize, err := baidustd.ParseHeader(f.buf[f.r:f.w], f.maxBody)
	if err != nil {
		return nil, nil, err
	}
	if err := f.need(baidustd.HeaderSize + body); err != nil {
		return nil, nil, err
	}
	frame := f.buf[f.r+baidustd.HeaderSize : f.r+baidustd.HeaderSize+body : f.r+baidustd.HeaderSize+body]
	f.r += baidustd.HeaderSize + body
	return frame[:metaSize:metaSize], frame[metaSize:], nil
}

// need reads until n bytes are there.
func (f *frameReader) need(n int) error {
	for f.w-f.r < n {
		if err := f.room(n); err != nil {
			return err
		}
		if err := f.arm(); err != nil {
			return err
		}
		got, err := f.c.Read(f.buf[f.w:])
		f.w += got
		if got > 0 && f.w-f.r < 4 && !baidustd.CheckMagic(f.buf[f.r:f.w]) {
			return baidustd.ErrMagic
		}
		if err != nil && f.w-f.r < n {
			return f.explain(err)
		}
	}
	return nil
}

// arm limits how long the rest of a frame may take. Between frames there is no limit.
func (f *frameReader) arm() error {
	switch {
	case f.w > f.r:
		f.armed = true
		return f.c.SetReadDeadline(time.Now().Add(f.stall))
	case f.armed:
		f.armed = false
		return f.c.SetReadDeadline(time.Time{})
	}
	return nil
}

func (f *frameReader) explain(err error) error {
	var ne net.Error
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return errStalled
	case errors.Is(err, io.EOF) && f.w > f.r:
		return io.ErrUnexpectedEOF
	}
	return err
}

// room makes place for more of a frame of n bytes. A large frame's place grows with
// what has arrived, so that an announced size alone costs nothing.
func (f *frameReader) room(n int) error {
	have := f.w - f.r
	switch {
	case f.w < len(f.buf) && len(f.buf)-f.r >= min(n, slabSize):
		return nil
	case n <= slabSize:
		f.move(slabSize)
	default:
		f.move(min(n, max(firstGrow, 2*have)))
	}
	return nil
}

func (f *frameReader) move(size int) {
	fresh := make([]byte, size)
	f.w = copy(fresh, f.buf[f.r:f.w])
	f.buf, f.r = fresh, 0
}
