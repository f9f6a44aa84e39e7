package entry

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed is wrapped by every error of this package: the bytes are not
// entries that may be in a log.
var ErrMalformed = errors.New("malformed log entry")

// Tags of EntryMeta's fields, and of the record around it. All are one byte, and
// writers use no longer form.
const (
	tagRecord   = 7<<3 | byte(protowire.BytesType)
	tagTerm     = 1<<3 | byte(protowire.VarintType)
	tagType     = 2<<3 | byte(protowire.VarintType)
	tagPeers    = 3<<3 | byte(protowire.BytesType)
	tagDataLen  = 4<<3 | byte(protowire.VarintType)
	tagOldPeers = 5<<3 | byte(protowire.BytesType)
)

// The shortest canonical DATA record, `3a 06 08 term 10 02 20 len`, as a little
// endian word: shortMask keeps the bits that shortBits fixes.
const (
	shortMask = 0x80ffffff80ffffff
	shortBits = 0x002002100008063a
	shortSize = 8
)

// meta is what an EntryMeta says, without the names of peers.
type meta struct {
	term     int64
	dataLen  uint64 // at most math.MaxInt64
	typ      Type
	size     int  // of the message
	peers    bool // has peers
	oldPeers bool // has old_peers
}

// scan reads the record at offset at of metas and returns the offset behind it.
// It returns false at the end and for bytes that are not a record.
func scan(metas []byte, at int) (m meta, end int, ok bool) {
	rest := metas[at:]
	if len(rest) >= shortSize {
		if w := binary.LittleEndian.Uint64(rest); w&shortMask == shortBits {
			return meta{term: int64(rest[3]), dataLen: uint64(rest[7]), typ: Data, size: shortSize - 2}, at + shortSize, true
		}
	}
	msg, n := cutRecord(rest)
	if n == 0 {
		return meta{}, at, false
	}
	if m, ok = parseCanonical(msg); ok {
		return m, at + n, true
	}
	m, err := parse(msg)
	return m, at + n, err == nil
}

// cutRecord returns the message of the first record in b, and the record's size,
// which is 0 if b does not begin with a whole record.
func cutRecord(b []byte) (msg []byte, size int) {
	if len(b) < 2 || b[0] != tagRecord {
		return nil, 0
	}
	length, n := uint64(b[1]), 1
	if length >= 0x80 {
		if length, n = protowire.ConsumeVarint(b[1:]); n < 0 {
			return nil, 0
		}
	}
	if length > uint64(len(b)-1-n) {
		return nil, 0
	}
	size = 1 + n + int(length)
	return b[1+n : size], size
}

// parseCanonical reads a DATA entry as graft and braft write it: term, type and
// data_len, in this order and nothing else. It returns false for anything else.
func parseCanonical(msg []byte) (m meta, ok bool) {
	if len(msg) < 6 || msg[0] != tagTerm {
		return meta{}, false
	}
	at := 2
	term := uint64(msg[1])
	if term >= 0x80 {
		var n int
		if term, n = protowire.ConsumeVarint(msg[1:]); n < 0 {
			return meta{}, false
		}
		at = 1 + n
	}
	if len(msg) < at+4 || msg[at] != tagType || msg[at+1] != byte(Data) || msg[at+2] != tagDataLen {
		return meta{}, false
	}
	length, n := protowire.ConsumeVarint(msg[at+3:])
	if n < 0 || at+3+n != len(msg) || length > math.MaxInt64 {
		return meta{}, false
	}
	return meta{term: int64(term), dataLen: length, typ: Data, size: len(msg)}, true
}

// parse reads any EntryMeta. Like every protobuf parser it takes the last of
// several values of a field and skips fields it does not know, which a newer
// peer may have written.
func parse(msg []byte) (meta, error) {
	m := meta{size: len(msg)}
	var hasTerm, hasType bool
	for rest := msg; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return meta{}, malformed("a tag", n)
		}
		rest = rest[n:]
		if num > 5 {
			if n = protowire.ConsumeFieldValue(num, typ, rest); n < 0 {
				return meta{}, malformed("an unknown field", n)
			}
			rest = rest[n:]
			continue
		}
		v, n, err := knownField(num, typ, rest)
		if err != nil {
			return meta{}, err
		}
		rest = rest[n:]
		switch num {
		case 1:
			m.term, hasTerm = int64(v), true
		case 2:
			// proto2 takes an unknown value of an enum for an unknown field.
			if v <= uint64(Configuration) {
				m.typ, hasType = Type(v), true
			}
		case 3:
			m.peers = true
		case 4:
			if v > math.MaxInt64 {
				return meta{}, fmt.Errorf("%w: data_len %d", ErrMalformed, int64(v))
			}
			m.dataLen = v
		case 5:
			m.oldPeers = true
		}
	}
	if !hasTerm || !hasType {
		return meta{}, fmt.Errorf("%w: term or a known type is missing", ErrMalformed)
	}
	return m, nil
}

// knownField reads the value of one of EntryMeta's five fields, which must have
// the wire type that the field is declared with. v is 0 for a string.
func knownField(num protowire.Number, typ protowire.Type, b []byte) (v uint64, n int, err error) {
	isString := num == 3 || num == 5
	switch {
	case isString && typ == protowire.BytesType:
		_, n = protowire.ConsumeBytes(b)
	case !isString && typ == protowire.VarintType:
		v, n = protowire.ConsumeVarint(b)
	default:
		return 0, 0, fmt.Errorf("%w: field %d has wire type %d", ErrMalformed, num, typ)
	}
	if n < 0 {
		return 0, 0, malformed(fmt.Sprintf("field %d", num), n)
	}
	return v, n, nil
}

// malformed describes a negative length that protowire returned.
func malformed(what string, n int) error {
	return fmt.Errorf("%w: %s: %w", ErrMalformed, what, protowire.ParseError(n))
}

// ConfPeers returns the term, the peers, and the old peers if the entry is joint, of a
// configuration entry's raw EntryMeta.
func ConfPeers(meta []byte) (term int64, peers, old []string, err error) {
	m, err := parse(meta)
	if err != nil {
		return 0, nil, nil, err
	}
	if m.typ != Configuration || !m.peers {
		return 0, nil, nil, fmt.Errorf("%w: %v entry is not a configuration with peers", ErrMalformed, m.typ)
	}
	for rest := meta; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		rest = rest[n:] // parse has accepted these bytes: no length below can be negative
		size := protowire.ConsumeFieldValue(num, typ, rest)
		if num == 3 || num == 5 {
			v, _ := protowire.ConsumeString(rest)
			if num == 3 {
				peers = append(peers, v)
			} else {
				old = append(old, v)
			}
		}
		rest = rest[size:]
	}
	return m.term, peers, old, nil
}

// CountMetas returns the number of records in metas. It looks at the framing
// only.
func CountMetas(metas []byte) (int, error) {
	count := 0
	for len(metas) > 0 {
		_, n := cutRecord(metas)
		if n == 0 {
			return count, fmt.Errorf("%w: record %d is cut short or has another tag", ErrMalformed, count)
		}
		metas = metas[n:]
		count++
	}
	return count, nil
}
