// Package wire encodes and decodes the frequent messages by hand, to the same bytes as
// the generated code, without copying entries.
package wire

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/graft-raft/graft/internal/entry"
)

// ErrMalformed is wrapped by every error of this package.
var ErrMalformed = errors.New("malformed message")

const (
	typeVarint = protowire.VarintType
	typeBytes  = protowire.BytesType

	fieldGraftGroup    = 1000 // of requests
	fieldFeatures      = 1000 // of responses
	fieldRespGroup     = 1001
	fieldConflictTerm  = 1002
	fieldConflictIndex = 1003
)

// AppendRequest is an append_entries request.
//
// Ownership: the byte slices of a parsed one are views into the message.
type AppendRequest struct {
	GroupID, ServerID, PeerID []byte
	Term, PrevTerm, PrevIndex int64
	Commit                    int64
	Entries                   entry.Batch
	GraftGroup                uint64 // 0: absent
}

// Size bounds the bytes of head and tail.
func (r *AppendRequest) Size() int {
	return len(r.GroupID) + len(r.ServerID) + len(r.PeerID) + 3*6 + 4*11 + 13
}

// AppendHead appends the fields in front of the entries.
func (r *AppendRequest) AppendHead(b []byte) []byte {
	b = protowire.AppendBytes(append(b, 1<<3|byte(typeBytes)), r.GroupID)
	b = protowire.AppendBytes(append(b, 2<<3|byte(typeBytes)), r.ServerID)
	b = protowire.AppendBytes(append(b, 3<<3|byte(typeBytes)), r.PeerID)
	b = appendInt(b, 4, r.Term)
	b = appendInt(b, 5, r.PrevTerm)
	return appendInt(b, 6, r.PrevIndex)
}

// AppendTail appends the fields behind the entries. What lies between are the Metas of
// batches, as they are.
func (r *AppendRequest) AppendTail(b []byte) []byte {
	b = appendInt(b, 8, r.Commit)
	if r.GraftGroup != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldGraftGroup, typeVarint), r.GraftGroup)
	}
	return b
}

// appendInt appends an int64 field with a number below 16.
func appendInt(b []byte, num byte, v int64) []byte {
	return protowire.AppendVarint(append(b, num<<3|byte(typeVarint)), uint64(v))
}

// ParseAppendRequest parses a request whose payloads are attachment. It checks the
// message's own shape; whether the entries are fit for a log is for entry.Check to say.
func ParseAppendRequest(msg, attachment []byte) (AppendRequest, error) {
	var r AppendRequest
	var seen uint
	metaStart, metaEnd := -1, -1
	var scattered []byte // the records, if they are not back to back
	for at := 0; at < len(msg); {
		num, typ, n := protowire.ConsumeTag(msg[at:])
		if n < 0 {
			return r, bad("tag", n)
		}
		field := at
		at += n
		switch {
		case typ == typeBytes && (num <= 3 || num == 7):
			v, n := protowire.ConsumeBytes(msg[at:])
			if n < 0 {
				return r, bad("field", n)
			}
			at += n
			if num != 7 {
				*[]*[]byte{&r.GroupID, &r.ServerID, &r.PeerID}[num-1] = v
				break
			}
			r.Entries.Count++
			switch {
			case scattered != nil:
				scattered = appendRecord(scattered, v)
			case metaStart < 0:
				metaStart, metaEnd = field, at
			case field == metaEnd:
				metaEnd = at
			default:
				scattered = appendRecord(append([]byte(nil), msg[metaStart:metaEnd]...), v)
			}
		case typ == typeVarint && (num >= 4 && num <= 8 || num == fieldGraftGroup):
			v, n := protowire.ConsumeVarint(msg[at:])
			if n < 0 {
				return r, bad("field", n)
			}
			at += n
			r.setNumber(num, v)
		default:
			n := protowire.ConsumeFieldValue(num, typ, msg[at:])
			if n < 0 {
				return r, bad("field", n)
			}
			at += n
			continue
		}
		if num <= 8 {
			seen |= 1 << num
		}
	}
	const required = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<8
	if seen&required != required {
		return r, fmt.Errorf("%w: a required field is missing", ErrMalformed)
	}
	r.Entries.First = r.PrevIndex + 1
	r.Entries.Data = attachment
	switch {
	case scattered != nil:
		r.Entries.Metas = scattered
	case metaStart >= 0:
		r.Entries.Metas = msg[metaStart:metaEnd:metaEnd]
	}
	return r, nil
}

func (r *AppendRequest) setNumber(num protowire.Number, v uint64) {
	switch num {
	case 4:
		r.Term = int64(v)
	case 5:
		r.PrevTerm = int64(v)
	case 6:
		r.PrevIndex = int64(v)
	case 8:
		r.Commit = int64(v)
	case fieldGraftGroup:
		r.GraftGroup = v
	}
}

func appendRecord(b, v []byte) []byte {
	return protowire.AppendBytes(append(b, 7<<3|byte(typeBytes)), v)
}

func bad(what string, n int) error {
	return fmt.Errorf("%w: %s: %w", ErrMalformed, what, protowire.ParseError(n))
}

// AppendResponse is an append_entries response.
type AppendResponse struct {
	Term         int64
	Success      bool
	LastIndex    int64
	HasLastIndex bool
	Readonly     bool
	HasReadonly  bool

	Features      uint64 // 0: a braft node
	GraftGroup    uint64
	ConflictTerm  int64 // 0: not said
	ConflictIndex int64
}

// Append appends the encoded response.
func (r *AppendResponse) Append(b []byte) []byte {
	b = appendInt(b, 1, r.Term)
	b = append(b, 2<<3|byte(typeVarint), boolByte(r.Success))
	if r.HasLastIndex {
		b = appendInt(b, 3, r.LastIndex)
	}
	if r.HasReadonly {
		b = append(b, 4<<3|byte(typeVarint), boolByte(r.Readonly))
	}
	for _, f := range [...]struct {
		num protowire.Number
		v   uint64
	}{
		{fieldFeatures, r.Features}, {fieldRespGroup, r.GraftGroup},
		{fieldConflictTerm, uint64(r.ConflictTerm)}, {fieldConflictIndex, uint64(r.ConflictIndex)},
	} {
		if f.v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, f.num, typeVarint), f.v)
		}
	}
	return b
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// ParseAppendResponse parses a response.
func ParseAppendResponse(b []byte) (AppendResponse, error) {
	var r AppendResponse
	var seen uint
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return r, bad("tag", n)
		}
		b = b[n:]
		if typ != typeVarint {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return r, bad("field", n)
			}
			b = b[n:]
			continue
		}
		v, n := protowire.ConsumeVarint(b)
		if n < 0 {
			return r, bad("field", n)
		}
		b = b[n:]
		switch num {
		case 1:
			r.Term, seen = int64(v), seen|1
		case 2:
			r.Success, seen = v != 0, seen|2
		case 3:
			r.LastIndex, r.HasLastIndex = int64(v), true
		case 4:
			r.Readonly, r.HasReadonly = v != 0, true
		case fieldFeatures:
			r.Features = v
		case fieldRespGroup:
			r.GraftGroup = v
		case fieldConflictTerm:
			r.ConflictTerm = int64(v)
		case fieldConflictIndex:
			r.ConflictIndex = int64(v)
		}
	}
	if seen != 3 {
		return r, fmt.Errorf("%w: a required field is missing", ErrMalformed)
	}
	return r, nil
}
