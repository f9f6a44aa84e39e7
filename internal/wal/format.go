package wal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
)

// The format; FORMAT.md has the tables.
const (
	formatVersion = 1
	block         = 4096
	maxSegment    = 1 << 32
	maxString     = 1<<16 - 1

	segmentPrefix    = "wal-"
	segmentMagic     = "GRAFTSEG"
	segmentHeadSize  = 64
	flagWritten      = 1
	batchMagic       = 0x54414247
	batchHeadSize    = 64
	recordHeadSize   = 24
	entriesHeadSize  = recordHeadSize + 24
	stateHeadSize    = recordHeadSize + 52
	stateWaiting     = 1
	stateBounds      = 2
	stateOverride    = 4
	stateWasMember   = 8
	firstBatchOffset = block
)

// castagnoli returns the table; crc32.MakeTable hands out one that is made once.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func le32(b []byte) uint32                   { return binary.LittleEndian.Uint32(b) }
func crcOf(b []byte) uint32                  { return crc32.Checksum(b, castagnoli()) }
func crcMore(crc uint32, b []byte) uint32    { return crc32.Update(crc, castagnoli(), b) }
func align(n int64) int64                    { return (n + block - 1) &^ (block - 1) }
func position(seq uint64, off int64) uint64  { return seq<<32 | uint64(off) }
func splitPosition(p uint64) (uint64, int64) { return p >> 32, int64(p & (maxSegment - 1)) }

func segmentName(seq uint64) string { return fmt.Sprintf("%s%016x", segmentPrefix, seq) }

func parseSegmentName(name string) (seq uint64, ok bool) {
	hex, found := strings.CutPrefix(name, segmentPrefix)
	if !found || len(hex) != 16 {
		return 0, false
	}
	seq, err := strconv.ParseUint(hex, 16, 31)
	return seq, err == nil && seq > 0 && segmentName(seq) == name
}

// segmentHead is block 0 of a segment.
type segmentHead struct {
	store   uint64 // the store's incarnation
	seq     uint64
	inc     uint64
	written bool
}

func (h segmentHead) encode() []byte {
	b := make([]byte, block)
	copy(b, segmentMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], formatVersion)
	le.PutUint64(b[16:], h.store)
	le.PutUint64(b[24:], h.seq)
	le.PutUint64(b[32:], h.inc)
	if h.written {
		b[40] = flagWritten
	}
	le.PutUint32(b[12:], crcOf(b[:segmentHeadSize]))
	return b
}

// parseSegmentHead reads a header. A newer version is ErrVersion.
func parseSegmentHead(b []byte) (h segmentHead, err error) {
	if len(b) < segmentHeadSize || string(b[:8]) != segmentMagic {
		return h, fmt.Errorf("no segment header")
	}
	le := binary.LittleEndian
	var c [segmentHeadSize]byte
	copy(c[:], b)
	clear(c[12:16])
	if crcOf(c[:]) != le.Uint32(b[12:]) {
		return h, fmt.Errorf("segment header with a wrong CRC")
	}
	if v := le.Uint32(b[8:]); v != formatVersion {
		return h, fmt.Errorf("%w: segment has %d, this program knows %d", ErrVersion, v, formatVersion)
	}
	return segmentHead{
		store: le.Uint64(b[16:]), seq: le.Uint64(b[24:]), inc: le.Uint64(b[32:]),
		written: b[40]&flagWritten != 0,
	}, nil
}

// batchKind says what a batch is for.
type batchKind uint8

const (
	kindPlain batchKind = 1
	kindFirst batchKind = 2
	kindMark  batchKind = 3
	kindEnd   batchKind = 4
)

// batchHead is the header of a batch.
type batchHead struct {
	crc     uint32 // set by encode
	length  uint32
	records uint32
	inc     uint64
	opening uint64
	pos     uint64
	mark    uint64
	prevCRC uint32
	sumCRC  uint32 // of the records' CRCs
	kind    batchKind
}

// encode writes the header to b and sets crc.
func (h *batchHead) encode(b []byte) {
	le := binary.LittleEndian
	le.PutUint32(b[0:], batchMagic)
	le.PutUint32(b[8:], h.length)
	le.PutUint32(b[12:], h.records)
	le.PutUint64(b[16:], h.inc)
	le.PutUint64(b[24:], h.opening)
	le.PutUint64(b[32:], h.pos)
	le.PutUint64(b[40:], h.mark)
	le.PutUint32(b[48:], h.prevCRC)
	le.PutUint32(b[52:], h.sumCRC)
	le.PutUint64(b[56:], uint64(h.kind))
	h.crc = crcOf(b[8:batchHeadSize])
	le.PutUint32(b[4:], h.crc)
}

// parseBatchHead reads a header; ok says that it is one and whole.
func parseBatchHead(b []byte) (h batchHead, ok bool) {
	le := binary.LittleEndian
	if len(b) < batchHeadSize || le.Uint32(b) != batchMagic {
		return h, false
	}
	h = batchHead{
		crc: le.Uint32(b[4:]), length: le.Uint32(b[8:]), records: le.Uint32(b[12:]),
		inc: le.Uint64(b[16:]), opening: le.Uint64(b[24:]), pos: le.Uint64(b[32:]), mark: le.Uint64(b[40:]),
		prevCRC: le.Uint32(b[48:]), sumCRC: le.Uint32(b[52:]), kind: batchKind(b[56]),
	}
	return h, crcOf(b[8:batchHeadSize]) == h.crc && h.length >= batchHeadSize
}

// identity is the directory's identity file.
type identity struct {
	store   uint64
	opening uint64
	segment uint64 // that the opening began; 0 before the first was complete
	address string
	end     uint64 // a position up to which the log was durable
}

const (
	identityName  = "identity"
	identityTemp  = "identity.tmp"
	lockName      = "lock"
	identityMagic = "GRAFTWAL"
	identityHead  = 44
	identityTail  = 8
)

func (id identity) encode() []byte {
	b := make([]byte, identityHead, identityHead+len(id.address)+identityTail)
	copy(b, identityMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], formatVersion)
	le.PutUint64(b[16:], id.store)
	le.PutUint64(b[24:], id.opening)
	le.PutUint64(b[32:], id.segment)
	le.PutUint32(b[40:], uint32(len(id.address)))
	b = append(b, id.address...)
	b = le.AppendUint64(b, id.end)
	le.PutUint32(b[12:], crcOf(b))
	return b
}

// parseIdentity reads an identity. It looks at the version first: what else a
// newer one holds is not for this program to judge.
func parseIdentity(b []byte) (id identity, err error) {
	le := binary.LittleEndian
	if len(b) < identityHead || string(b[:8]) != identityMagic {
		return id, fmt.Errorf("it is no identity")
	}
	if v := le.Uint32(b[8:]); v > formatVersion {
		return id, fmt.Errorf("%w: directory has %d, this program knows %d", ErrVersion, v, formatVersion)
	}
	c := bytes.Clone(b)
	clear(c[12:16])
	size, rest := uint64(le.Uint32(b[40:])), uint64(len(b)-identityHead) // size of the address
	if crcOf(c) != le.Uint32(b[12:]) || rest != size+identityTail && rest != size {
		return id, fmt.Errorf("its CRC is wrong")
	}
	id = identity{
		store: le.Uint64(b[16:]), opening: le.Uint64(b[24:]), segment: le.Uint64(b[32:]),
		address: string(b[identityHead : identityHead+size]),
	}
	if rest > size { // the first programs of this version did not write it
		id.end = le.Uint64(b[identityHead+size:])
	}
	return id, nil
}
