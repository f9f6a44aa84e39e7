// Package wire encodes and decodes braft's hot messages by hand, so that a batch of
// entries is neither copied nor taken apart on its way. What it writes is byte for
// byte what the generated code writes.
//
// The package is pure: it works on bytes and numbers and touches nothing else.
package wire

import (
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/graft-raft/graft/internal/entry"
)

// ErrMalformed is wrapped by every error of this package: the bytes are not the
// message they should be.
var ErrMalformed = errors.New("malformed message")

// Tags of AppendEntriesRequest. All but the last are one byte.
const (
	tagGroupID   = 1<<3 | byte(protowire.BytesType)
	tagServerID  = 2<<3 | byte(protowire.BytesType)
	tagPeerID    = 3<<3 | byte(protowire.BytesType)
	tagTerm      = 4<<3 | byte(protowire.VarintType)
	tagPrevTerm  = 5<<3 | byte(protowire.VarintType)
	tagPrevIndex = 6<<3 | byte(protowire.VarintType)
	tagEntry     = 7<<3 | byte(protowire.BytesType)
	tagCommit    = 8<<3 | byte(protowire.VarintType)

	fieldEntry      = 7
	fieldCommit     = 8
	fieldGraftGroup = 1000
	graftTagSize    = 2 // of the tags from 1000 on
)

// requiredRequest has a bit for each required field of AppendEntriesRequest.
const requiredRequest = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<fieldCommit

// AppendRequest is an AppendEntriesRequest.
//
// On the wire it is what AppendHead writes, Entries.Metas as they are, and what
// AppendTail writes; the attachment is Entries.Data.
//
// Ownership: of a decoded request all bytes are views into the frame.
type AppendRequest struct {
	GroupID, ServerID, PeerID []byte // ServerID is the leader, PeerID the receiver

	Term, PrevTerm, PrevIndex, Commit int64

	Entries    entry.Batch
	GraftGroup uint64 // 0 if absent
}

// Size returns the size of the encoded message, metas of the entries included.
func (r *AppendRequest) Size() int {
	size := 7 + protowire.SizeBytes(len(r.GroupID)) + protowire.SizeBytes(len(r.ServerID)) +
		protowire.SizeBytes(len(r.PeerID)) + protowire.SizeVarint(uint64(r.Term)) +
		protowire.SizeVarint(uint64(r.PrevTerm)) + protowire.SizeVarint(uint64(r.PrevIndex)) +
		len(r.Entries.Metas) + protowire.SizeVarint(uint64(r.Commit))
	if r.GraftGroup != 0 {
		size += graftTagSize + protowire.SizeVarint(r.GraftGroup)
	}
	return size
}

// AppendHead appends what stands in front of the entries.
func (r *AppendRequest) AppendHead(b []byte) []byte {
	b = protowire.AppendBytes(append(b, tagGroupID), r.GroupID)
	b = protowire.AppendBytes(append(b, tagServerID), r.ServerID)
	b = protowire.AppendBytes(append(b, tagPeerID), r.PeerID)
	b = protowire.AppendVarint(append(b, tagTerm), uint64(r.Term))
	b = protowire.AppendVarint(append(b, tagPrevTerm), uint64(r.PrevTerm))
	return protowire.AppendVarint(append(b, tagPrevIndex), uint64(r.PrevIndex))
}

// AppendTail appends what follows the entries.
func (r *AppendRequest) AppendTail(b []byte) []byte {
	b = protowire.AppendVarint(append(b, tagCommit), uint64(r.Commit))
	if r.GraftGroup != 0 {
		b = appendNumber(b, fieldGraftGroup, r.GraftGroup)
	}
	return b
}

// appendNumber appends one of graft's own fields.
func appendNumber(b []byte, num protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), v)
}

// ParseAppendRequest decodes a message and its attachment. Like the generated code
// it takes the last of several values of a field, skips what it does not know and
// demands the required fields. The entries are counted and not looked into: that
// is for entry.Check. A PrevIndex after which the entries could not be numbered is
// refused, so that nobody behind needs to mind an overflow.
func ParseAppendRequest(msg, attachment []byte) (AppendRequest, error) {
	var r AppendRequest
	seen := 0
	metas := metas{msg: msg}
	for at := 0; at < len(msg); {
		if msg[at] == tagEntry {
			end, ok := metas.run(at)
			if !ok {
				return AppendRequest{}, malformed("entry", protowire.ConsumeFieldValue(fieldEntry, protowire.BytesType, msg[end+1:]))
			}
			at = end
			continue
		}
		num, typ, n := protowire.ConsumeTag(msg[at:])
		if n < 0 {
			return AppendRequest{}, malformed("a tag", n)
		}
		value := msg[at+n:]
		size := 0
		switch {
		case num == fieldEntry && typ == protowire.BytesType: // behind a tag that is longer than need be
			var v []byte
			if v, size = protowire.ConsumeBytes(value); size >= 0 {
				metas.copied(v)
			}
		case num <= fieldEntry && typ == protowire.BytesType:
			size = r.setBytes(num, value, &seen)
		case typ == protowire.VarintType:
			size = r.setNumber(num, value, &seen)
		default:
			size = protowire.ConsumeFieldValue(num, typ, value)
		}
		if size < 0 {
			return AppendRequest{}, malformed(fmt.Sprintf("field %d", num), size)
		}
		at += n + size
	}
	if seen&requiredRequest != requiredRequest {
		return AppendRequest{}, fmt.Errorf("%w: a required field is missing", ErrMalformed)
	}
	if r.PrevIndex < 0 || r.PrevIndex > math.MaxInt64-1-int64(metas.count) {
		return AppendRequest{}, fmt.Errorf("%w: prev_log_index %d", ErrMalformed, r.PrevIndex)
	}
	r.Entries = entry.Batch{First: r.PrevIndex + 1, Count: metas.count, Metas: metas.bytes(), Data: attachment}
	return r, nil
}

// setBytes takes a length-delimited field and returns its size.
func (r *AppendRequest) setBytes(num protowire.Number, b []byte, seen *int) int {
	v, n := protowire.ConsumeBytes(b)
	if n < 0 {
		return n
	}
	v = v[:len(v):len(v)]
	switch num {
	case 1:
		r.GroupID = v
	case 2:
		r.ServerID = v
	case 3:
		r.PeerID = v
	default:
		return n // another type than declared: an unknown field
	}
	*seen |= 1 << num
	return n
}

// setNumber takes a varint field and returns its size.
func (r *AppendRequest) setNumber(num protowire.Number, b []byte, seen *int) int {
	v, n := protowire.ConsumeVarint(b)
	if n < 0 {
		return n
	}
	switch num {
	case 4:
		r.Term = int64(v)
	case 5:
		r.PrevTerm = int64(v)
	case 6:
		r.PrevIndex = int64(v)
	case fieldCommit:
		r.Commit = int64(v)
	case fieldGraftGroup:
		r.GraftGroup = v
		return n
	default:
		return n
	}
	*seen |= 1 << num
	return n
}

// metas gathers the records of field 7. They are one piece of the message, as all
// writers write them, or else are copied together.
type metas struct {
	msg        []byte
	start, end int    // the piece
	gathered   []byte // if there is more than one
	count      int
}

// run takes the records from offset at on that follow each other, and returns the
// offset behind them.
func (m *metas) run(at int) (end int, ok bool) {
	end = at
	for end < len(m.msg) && m.msg[end] == tagEntry {
		next := end + 1
		if next == len(m.msg) {
			return end, false
		}
		length := uint64(m.msg[next])
		next++
		if length >= 0x80 {
			var n int
			if length, n = protowire.ConsumeVarint(m.msg[next-1:]); n < 0 {
				return end, false
			}
			next += n - 1
		}
		if length > uint64(len(m.msg)-next) {
			return end, false
		}
		end = next + int(length)
		m.count++
	}
	switch {
	case m.end == 0:
		m.start, m.end = at, end
	case m.gathered == nil:
		m.gathered = append(m.gathered, m.msg[m.start:m.end]...)
		fallthrough
	default:
		m.gathered = append(m.gathered, m.msg[at:end]...)
	}
	return end, true
}

// copied takes a record that cannot be used as it is.
func (m *metas) copied(v []byte) {
	if m.gathered == nil {
		m.gathered = append(make([]byte, 0, len(v)+16), m.msg[m.start:m.end]...)
		m.end = max(m.end, 1) // there is a first piece, if an empty one
	}
	m.gathered = protowire.AppendBytes(append(m.gathered, tagEntry), v)
	m.count++
}

func (m *metas) bytes() []byte {
	if m.gathered != nil {
		return m.gathered
	}
	return m.msg[m.start:m.end:m.end]
}

// malformed describes a negative length that protowire returned.
func malformed(what string, n int) error {
	return fmt.Errorf("%w: %s: %w", ErrMalformed, what, protowire.ParseError(n))
}
