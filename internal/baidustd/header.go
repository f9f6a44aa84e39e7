// Package baidustd is brpc's baidu_std framing as pure functions: the header, and
// the RpcMeta in front of each message.
//
// A frame is "PRPC", the body size and the meta size (big endian), then the body:
// meta, message, attachment. The body size leaves the header out. What is written
// here is byte for byte what brpc writes.
package baidustd

import (
	"encoding/binary"
	"errors"
)

// Protocol constants.
const (
	HeaderSize = 12
	magic      = "PRPC"

	// MaxMeta bounds RpcMeta. brpc sets no bound of its own; its metas are some 60
	// bytes, and an error text is the only part that can be long.
	MaxMeta = 64 << 10

	// DefaultMaxBody is brpc's -max_body_size plus room for the meta, so that a
	// sender that counts 64 MiB of payload is still understood.
	DefaultMaxBody = 64<<20 + MaxMeta
)

// What ParseHeader and ParseMeta find wrong. A connection on which one of these
// occurs cannot be read any further.
var (
	ErrMagic    = errors.New("not a baidu_std frame")
	ErrTooLarge = errors.New("frame exceeds the size limit")
	ErrMetaSize = errors.New("meta size exceeds the body or the limit")
	ErrMeta     = errors.New("malformed RpcMeta")
)

// CheckMagic reports whether b, which may be shorter than a header, can be the
// beginning of a frame. It allows to drop other protocols at their first byte.
func CheckMagic(b []byte) bool {
	n := min(len(b), len(magic))
	return string(b[:n]) == magic[:n]
}

// ParseHeader returns the sizes that the header at the front of b announces: the
// whole body, and the meta at its front. b holds at least HeaderSize bytes.
func ParseHeader(b []byte, maxBody int) (body, meta int, err error) {
	if !CheckMagic(b) {
		return 0, 0, ErrMagic
	}
	// Compared as uint32, so that neither size can turn negative where int has 32 bits.
	bodySize, metaSize := binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
	if uint64(bodySize) > uint64(max(maxBody, 0)) {
		return 0, 0, ErrTooLarge
	}
	if metaSize > bodySize || metaSize > MaxMeta {
		return 0, 0, ErrMetaSize
	}
	return int(bodySize), int(metaSize), nil
}
