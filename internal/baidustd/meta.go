package baidustd

import (
	"google.golang.org/protobuf/encoding/protowire"
)

// Meta is what braft traffic uses of RpcMeta; other fields are skipped.
//
// Ownership: the byte slices are views into the parsed bytes.
type Meta struct {
	IsRequest  bool // has a request part
	IsResponse bool // has a response part

	Service []byte // of a request: full name
	Method  []byte // of a request

	ErrorCode int32  // of a response: 0 is success
	ErrorText []byte // of a response

	CompressType   int32
	CorrelationID  int64
	AttachmentSize int32 // as announced; see Split
	AuthLen        int   // bytes of authentication data, which are ignored
}

// Field numbers of RpcMeta, RpcRequestMeta and RpcResponseMeta.
const (
	fieldRequest        = 1
	fieldResponse       = 2
	fieldCompressType   = 3
	fieldCorrelationID  = 4
	fieldAttachmentSize = 5
	fieldAuth           = 7

	fieldService = 1
	fieldMethod  = 2

	fieldErrorCode = 1
	fieldErrorText = 2
)

// Which of the required fields of RpcRequestMeta were seen.
const (
	seenService = 1 << iota
	seenMethod
	seenBoth = seenService | seenMethod
)

// ParseMeta parses an RpcMeta. It is as strict as a proto2 parser: wrong wire
// types are unknown fields, and a request without its names is malformed. A meta
// must be a request or a response, and not both.
func ParseMeta(b []byte) (Meta, error) {
	var m Meta
	seen := 0
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return Meta{}, ErrMeta
		}
		b = b[n:]
		switch {
		case num <= fieldResponse && typ == protowire.BytesType, num == fieldAuth && typ == protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 || !m.setPart(num, v, &seen) {
				return Meta{}, ErrMeta
			}
			b = b[n:]
		case num >= fieldCompressType && num <= fieldAttachmentSize && typ == protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return Meta{}, ErrMeta
			}
			b = b[n:]
			m.setNumber(num, v)
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return Meta{}, ErrMeta
			}
			b = b[n:]
		}
	}
	if m.IsRequest == m.IsResponse || m.IsRequest && seen != seenBoth {
		return Meta{}, ErrMeta
	}
	return m, nil
}

// setPart takes a length-delimited field. A message that occurs again is merged
// into the first, as protobuf demands.
func (m *Meta) setPart(num protowire.Number, v []byte, seen *int) bool {
	switch num {
	case fieldRequest:
		m.IsRequest = true
		return m.parseRequest(v, seen)
	case fieldResponse:
		m.IsResponse = true
		return m.parseResponse(v)
	default:
		m.AuthLen = len(v)
		return true
	}
}

// setNumber takes a varint. int32 fields keep the low 32 bits, as in protobuf.
func (m *Meta) setNumber(num protowire.Number, v uint64) {
	switch num {
	case fieldCompressType:
		m.CompressType = int32(v)
	case fieldCorrelationID:
		m.CorrelationID = int64(v)
	default:
		m.AttachmentSize = int32(v)
	}
}

func (m *Meta) parseRequest(b []byte, seen *int) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if typ != protowire.BytesType || num > fieldMethod {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return false
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		if num == fieldService {
			m.Service, *seen = v, *seen|seenService
		} else {
			m.Method, *seen = v, *seen|seenMethod
		}
	}
	return true
}

func (m *Meta) parseResponse(b []byte) bool {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return false
		}
		b = b[n:]
		switch {
		case num == fieldErrorCode && typ == protowire.VarintType:
			v, k := protowire.ConsumeVarint(b)
			m.ErrorCode, n = int32(v), k
		case num == fieldErrorText && typ == protowire.BytesType:
			m.ErrorText, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return false
		}
		b = b[n:]
	}
	return true
}

// Split cuts what follows the meta into message and attachment. It returns false
// if the announced attachment is not within it. The parts have no spare capacity,
// so that appending to one cannot overwrite the other.
func (m *Meta) Split(payload []byte) (message, attachment []byte, ok bool) {
	if m.AttachmentSize < 0 || int64(m.AttachmentSize) > int64(len(payload)) {
		return nil, nil, false
	}
	cut := len(payload) - int(m.AttachmentSize)
	return payload[:cut:cut], payload[cut:len(payload):len(payload)], true
}
