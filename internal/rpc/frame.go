package rpc

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/graft-raft/graft/internal/baidustd"
)

// brpc's codes for requests that are not carried out.
const (
	codeBadRequest = 1003
	codeInternal   = 2001
)

// maxErrorText bounds the text of an error, so that its meta stays within what a
// receiver takes.
const maxErrorText = 4 << 10

// ErrorText gives text the prefix that brpc gives it: the server's address and the code.
func ErrorText(address string, code int32, text string) string {
	text = "[" + address + "][E" + strconv.Itoa(int(code)) + "]" + text
	return text[:min(len(text), maxErrorText)]
}

// EncodeCall returns the frame of a request, for a transport that carries whole frames.
func EncodeCall(id int64, c *Call) []byte {
	message, attachment := total(c.Message), total(c.Attachment)
	b := make([]byte, 0, 128+message+attachment)
	b = baidustd.AppendRequest(b, c.Service, c.Method, id, message, attachment)
	return appendPieces(appendPieces(b, c.Message), c.Attachment)
}

// EncodeReply returns the frame of an answer, for a transport that carries whole frames.
func EncodeReply(id int64, code int32, text string, message []byte, attachment [][]byte) []byte {
	if code != 0 {
		message, attachment = nil, nil
	}
	n := total(attachment)
	b := make([]byte, 0, 64+len(text)+len(message)+n)
	b = baidustd.AppendResponse(b, code, text, id, len(message), n)
	return appendPieces(append(b, message...), attachment)
}

// Frame is a decoded frame: a request if it has a service, else an answer.
//
// Ownership: Message and Attachment are views into the decoded bytes.
type Frame struct {
	ID                  int64
	Service, Method     string
	Code                int32
	Text                string
	Message, Attachment []byte
}

// DecodeFrame decodes a whole frame.
func DecodeFrame(b []byte) (Frame, error) {
	if len(b) < baidustd.HeaderSize {
		return Frame{}, baidustd.ErrMagic
	}
	body, metaSize, err := baidustd.ParseHeader(b, baidustd.DefaultMaxBody)
	if err != nil {
		return Frame{}, err
	}
	if body != len(b)-baidustd.HeaderSize {
		return Frame{}, fmt.Errorf("frame of %d bytes announces %d: %w", len(b), body, errTruncated)
	}
	f, err := parseBody(b[baidustd.HeaderSize:], metaSize)
	if err == nil && f.bad != "" {
		err = errors.New(f.bad)
	}
	if err != nil {
		return Frame{}, err
	}
	m := &f.meta
	return Frame{
		ID: m.CorrelationID, Service: string(m.Service), Method: string(m.Method),
		Code: m.ErrorCode, Text: string(m.ErrorText), Message: f.message, Attachment: f.attachment,
	}, nil
}

// frame is a frame as a connection's reader sees it.
type frame struct {
	meta                baidustd.Meta
	message, attachment []byte
	bad                 string // what is wrong with it, where the connection can go on
	buf                 *frameBuffer
}

// parseBody takes a frame's body apart. An error means that the connection cannot be
// trusted any further.
func parseBody(body []byte, metaSize int) (f frame, err error) {
	if f.meta, err = baidustd.ParseMeta(body[:metaSize]); err != nil {
		return frame{}, err
	}
	var ok bool
	if f.message, f.attachment, ok = f.meta.Split(body[metaSize:]); !ok {
		f.bad = fmt.Sprintf("attachment_size=%d is larger than the payload of %d bytes", f.meta.AttachmentSize, len(body)-metaSize)
	} else if f.meta.CompressType != 0 {
		f.bad = fmt.Sprintf("Fail to parse request message, CompressType=%d, request_size=%d", f.meta.CompressType, len(f.message))
	}
	return f, nil
}

func total(pieces [][]byte) int {
	n := 0
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

func appendPieces(b []byte, pieces [][]byte) []byte {
	for _, p := range pieces {
		b = append(b, p...)
	}
	return b
}
