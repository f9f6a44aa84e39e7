package snapdir

import (
	"encoding/binary"
	"fmt"
)

// SegmentHead is what stands before the bytes of a segment: offset, 8 bytes, and length, 4, big endian.
const SegmentHead = 12

const (
	segmentHead = SegmentHead
	holeUnit    = 4 << 10 // what AppendSparse looks at for zeros
)

// PutSegmentHead makes one segment of b, whose first SegmentHead bytes are overwritten, so that what follows them need
// not be copied.
func PutSegmentHead(b []byte, off int64) {
	binary.BigEndian.PutUint64(b, uint64(off))
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-segmentHead))
}

// AppendSegment adds bytes of a file to the attachment of a get_file answer. Of
// nothing it makes nothing: braft sends no attachment for an empty read.
func AppendSegment(dst []byte, off int64, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	dst = binary.BigEndian.AppendUint64(dst, uint64(off))
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(data)))
	return append(dst, data...)
}

// AppendSparse is AppendSegment without the blocks of 4 KiB that are all zeros.
func AppendSparse(dst []byte, off int64, data []byte) []byte {
	from := 0
	for at := 0; at < len(data); {
		end := min(at+holeUnit-int((off+int64(at))%holeUnit), len(data))
		if zero(data[at:end]) {
			dst = AppendSegment(dst, off+int64(from), data[from:at])
			from = end
		}
		at = end
	}
	return AppendSegment(dst, off+int64(from), data[from:])
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// Segments goes through the attachment of a get_file answer to a read at off that
// covered n bytes. What visit gets lies in that range, in rising order, and aliases
// the attachment; what it does not get is zero. Anything else is ErrSegments, found
// before the first visit.
func Segments(attachment []byte, off, n int64, visit func(off int64, data []byte) error) error {
	if off < 0 || n < 0 || off+n < off {
		return fmt.Errorf("%w: %d bytes at %d", ErrSegments, n, off)
	}
	check := func(int64, []byte) error { return nil }
	if err := segments(attachment, off, off+n, check); err != nil {
		return err
	}
	return segments(attachment, off, off+n, visit)
}

func segments(rest []byte, from, end int64, visit func(off int64, data []byte) error) error {
	for len(rest) > 0 {
		if len(rest) < segmentHead {
			return fmt.Errorf("%w: %d bytes are left over", ErrSegments, len(rest))
		}
		off, n := int64(binary.BigEndian.Uint64(rest)), int64(binary.BigEndian.Uint32(rest[8:]))
		rest = rest[segmentHead:]
		switch {
		case n > int64(len(rest)):
			return fmt.Errorf("%w: one of %d bytes has %d", ErrSegments, n, len(rest))
		case off < from || off > end || n > end-off:
			return fmt.Errorf("%w: %d bytes at %d, where [%d, %d) is left", ErrSegments, n, off, from, end)
		}
		if err := visit(off, rest[:n]); err != nil {
			return err
		}
		from, rest = off+n, rest[n:]
	}
	return nil
}
