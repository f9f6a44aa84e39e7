package rpc

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/baidustd"
)

// chunks is a connection on which data arrives in pieces of the given sizes.
type chunks struct {
	net.Conn
	data  []byte
	sizes []byte
	at    int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := min(len(c.data), len(p))
	if len(c.sizes) > 0 {
		size := int(c.sizes[c.at%len(c.sizes)])
		c.at++
		n = min(n, size*size+1)
	}
	copy(p, c.data[:n])
	c.data = c.data[n:]
	return n, nil
}

func (c *chunks) SetReadDeadline(time.Time) error { return nil }

// framesOf is the oracle: it has all bytes at once.
func framesOf(data []byte, maxBody int) (frames []frame) {
	for len(data) >= baidustd.HeaderSize {
		body, meta, err := baidustd.ParseHeader(data, maxBody)
		if err != nil || len(data) < baidustd.HeaderSize+body {
			break
		}
		f, err := parseBody(data[baidustd.HeaderSize:][:body], meta)
		if err != nil {
			break
		}
		frames = append(frames, f)
		data = data[baidustd.HeaderSize+body:]
	}
	return frames
}

func FuzzReader(f *testing.F) {
	var several []byte
	for i := range 5 {
		several = append(several, request(int64(i), "message", string(make([]byte, i*i*100)))...)
	}
	f.Add(several, []byte{1, 20, 255})
	f.Add(several, []byte{})
	f.Add(append(EncodeReply(1, 5, "text", nil, nil), EncodeReply(1, 0, "", []byte("m"), nil)...), []byte{0})
	f.Add([]byte(header(1<<31, 5)), []byte{3})
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte{1})
	f.Fuzz(func(t *testing.T, data, sizes []byte) {
		const maxBody = 1 << 20
		in := newFrameReader(&chunks{data: data, sizes: sizes}, maxBody, time.Second)
		var got []frame
		for {
			fr, err := in.next()
			if err != nil {
				break
			}
			got = append(got, fr)
		}
		require.Equal(t, framesOf(data, maxBody), got) // after all was read: views must still hold
		require.LessOrEqual(t, len(in.buf), max(fullSlab, growFirst, 4*len(data)))
	})
}

// TestLargeBufferGrowsWithItsBytes: a header makes the reader allocate only so much.
func TestLargeBufferGrowsWithItsBytes(t *testing.T) {
	frame := request(1, "message", string(make([]byte, 20<<20)))
	c := &chunks{sizes: []byte{255}}
	in := newFrameReader(c, baidustd.DefaultMaxBody, time.Second)
	for have := 0; have < len(frame); {
		n := min(have+1, len(frame)-have)
		c.data = frame[have : have+n]
		have += n
		f, err := in.next()
		if have < len(frame) {
			require.Equal(t, errTruncated, err)
			require.LessOrEqual(t, len(in.buf), max(4*have, growFirst))
			continue
		}
		require.NoError(t, err)
		require.Len(t, f.attachment, 20<<20)
		require.True(t, bytes.HasSuffix(frame, f.attachment))
	}
}

// TestByteByByte: what comes in the smallest pieces is not copied more than a few times.
func TestByteByByte(t *testing.T) {
	for _, size := range []int{100, 2000, fullSlab - 100, fullSlab - 70, fullSlab + 1} {
		frame := request(1, "", string(make([]byte, size)))
		allocated := testing.AllocsPerRun(1, func() {
			in := newFrameReader(&chunks{data: frame, sizes: []byte{0}}, baidustd.DefaultMaxBody, time.Second)
			_, err := in.next()
			require.NoError(t, err)
		})
		require.LessOrEqual(t, allocated, 10.0, size)
	}
}
