package sim

import (
	"errors"

	"github.com/graft-raft/graft/internal/baidustd"
	"github.com/graft-raft/graft/internal/rpc"
)

// encodeCall returns a request as it goes over the wire.
func encodeCall(c *rpc.Call, id int64) []byte {
	message, attachment := total(c.Message), total(c.Attachment)
	b := make([]byte, 0, 96+message+attachment)
	b = baidustd.AppendRequest(b, c.Service, c.Method, id, message, attachment)
	return appendAll(appendAll(b, c.Message), c.Attachment)
}

// encodeAnswer returns a response as it goes over the wire.
func encodeAnswer(code int32, text string, id int64, message []byte, attachment [][]byte) []byte {
	n := total(attachment)
	b := make([]byte, 0, 48+len(text)+len(message)+n)
	b = baidustd.AppendResponse(b, code, text, id, len(message), n)
	return appendAll(append(b, message...), attachment)
}

// frame is what a receiver reads.
type frame struct {
	meta                baidustd.Meta
	message, attachment []byte
}

func decodeFrame(b []byte) (f frame, err error) {
	body, meta, err := baidustd.ParseHeader(b, baidustd.DefaultMaxBody)
	if err != nil {
		return f, err
	}
	b = b[baidustd.HeaderSize:]
	if len(b) != body {
		return f, errors.New("frame and header differ in size")
	}
	if f.meta, err = baidustd.ParseMeta(b[:meta]); err != nil {
		return f, err
	}
	var ok bool
	if f.message, f.attachment, ok = f.meta.Split(b[meta:]); !ok {
		return f, errors.New("attachment is larger than the frame")
	}
	return f, nil
}

func total(pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

func appendAll(b []byte, pieces [][]byte) []byte {
	for _, p := range pieces {
		b = append(b, p...)
	}
	return b
}
