package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/graft-raft/graft/internal/entry"
)

// recordType is what a record does.
type recordType uint8

const (
	recEntries recordType = 1
	recState   recordType = 2
	recSuffix  recordType = 3
	recPrefix  recordType = 4
	recRemove  recordType = 5
	recStart   recordType = 6
	recRelease recordType = 7
)

// HardState is what a node must remember before it says anything in a term.
type HardState struct {
	Term    int64
	Vote    string
	GroupID uint64
	Waiting bool // started with nothing on disk, and not yet brought up by a leader

	// WasMember says that a configuration had the replica as a member once. It is set when the log
	// is about to forget the last such configuration.
	WasMember bool

	Override Override
}

// Override is a configuration that an operator has put in force by hand. It is part of the
// hard state because it comes with a term of its own, and both count or neither.
type Override struct {
	Term int64  // in which it was made; 0: there is none
	Last int64  // where the log ended
	Conf string // the peers, separated by commas
}

// maxOverride bounds the peers of an override.
const maxOverride = 64 << 10

// overrideHeadSize is what stands before the peers of an override.
const overrideHeadSize = 24

// record is one record, on its way to the disk or from it.
//
// Invariants: of one to be written, crc and size fit fixed and the parts behind it; err
// is nil, or the record is not written and err is what done gets.
//
// Ownership: the submitter's until it is queued, then the store's.
type record struct {
	typ    recordType
	urgent bool // may use the segment that is kept for such
	jump   bool // a prefix truncation that starts the log anew
	crc    uint32
	size   int

	g    *Group // nil for the store's own
	seq  uint64 // order of submission
	err  error
	done func(error)

	batch               entry.Batch
	firstTerm, lastTerm int64
	index               int64 // last of a suffix, first of a prefix truncation, floor of a release
	prevTerm            int64
	commit              int64
	extra               *extra

	nfixed int
	fixed  [entriesHeadSize]byte // the beginning of the record, or all of it
	tail   []byte                // what follows it, of records without entries
}

// extra is what few records have.
type extra struct {
	runs  []entry.TermRun
	confs []entry.ConfMark

	hard        HardState
	name        string
	bounds      bool // first, last, prevTerm are there
	first, last int64

	prevEnd   uint64 // of a start record
	nextGroup uint64
}

// seal fills in the header of a record whose body stands in fixed and tail, or in
// the batch, and sums it.
func (r *record) seal(group uint64, flags uint8) {
	le := binary.LittleEndian
	r.size = r.nfixed + len(r.tail) + r.batch.Size()
	le.PutUint32(r.fixed[4:], uint32(r.size))
	le.PutUint64(r.fixed[8:], group)
	r.fixed[16], r.fixed[17] = uint8(r.typ), flags
	crc := crcOf(r.fixed[4:r.nfixed])
	crc = crcMore(crc, r.tail)
	crc = crcMore(crc, r.batch.Metas)
	r.crc = crcMore(crc, r.batch.Data)
	le.PutUint32(r.fixed[0:], r.crc)
}

func encodeEntries(r *record, group uint64, b entry.Batch, sum entry.Summary, commit int64) {
	le := binary.LittleEndian
	r.typ, r.batch, r.commit = recEntries, b, commit
	r.firstTerm, r.lastTerm = sum.FirstTerm, sum.LastTerm
	if sum.Runs != nil || sum.Confs != nil {
		r.extra = &extra{runs: sum.Runs, confs: sum.Confs}
	}
	le.PutUint64(r.fixed[24:], uint64(b.First))
	le.PutUint64(r.fixed[32:], uint64(commit))
	le.PutUint32(r.fixed[40:], uint32(b.Count))
	le.PutUint32(r.fixed[44:], uint32(len(b.Metas)))
	r.nfixed = entriesHeadSize
	r.seal(group, 0)
}

func encodeState(r *record, group uint64, commit, prevTerm int64, x *extra) {
	le := binary.LittleEndian
	r.typ, r.urgent, r.commit, r.prevTerm, r.extra = recState, true, commit, prevTerm, x
	le.PutUint64(r.fixed[24:], uint64(x.hard.Term))
	le.PutUint64(r.fixed[32:], x.hard.GroupID)
	le.PutUint64(r.fixed[40:], uint64(commit))
	r.nfixed = entriesHeadSize
	t := make([]byte, 28, 28+len(x.hard.Vote)+len(x.name))
	flags := uint8(0)
	if x.bounds {
		flags |= stateBounds
		le.PutUint64(t[0:], uint64(x.first))
		le.PutUint64(t[8:], uint64(x.last))
		le.PutUint64(t[16:], uint64(prevTerm))
	}
	if x.hard.Waiting {
		flags |= stateWaiting
	}
	if x.hard.WasMember {
		flags |= stateWasMember
	}
	le.PutUint16(t[24:], uint16(len(x.hard.Vote)))
	le.PutUint16(t[26:], uint16(len(x.name)))
	r.tail = append(append(t, x.hard.Vote...), x.name...)
	if o := x.hard.Override; o.Term != 0 {
		flags |= stateOverride
		r.tail = le.AppendUint64(r.tail, uint64(o.Term))
		r.tail = le.AppendUint64(r.tail, uint64(o.Last))
		r.tail = le.AppendUint64(r.tail, uint64(len(o.Conf)))
		r.tail = append(r.tail, o.Conf...)
	}
	r.seal(group, flags)
}

// encodeNumbers makes a record whose body is up to three numbers.
func encodeNumbers(r *record, typ recordType, group uint64, numbers ...uint64) {
	r.typ, r.urgent, r.nfixed = typ, true, recordHeadSize
	for _, n := range numbers {
		binary.LittleEndian.PutUint64(r.fixed[r.nfixed:], n)
		r.nfixed += 8
	}
	r.seal(group, 0)
}

var errRecord = errors.New("malformed record")

// parseRecord reads the record at the start of b, whose parts then share b's memory.
// It verifies the CRC and the shape, not the entries.
func parseRecord(b []byte, r *record) (group uint64, err error) {
	le := binary.LittleEndian
	*r = record{}
	if len(b) < recordHeadSize {
		return 0, fmt.Errorf("%w: cut short", errRecord)
	}
	r.crc, r.size = le.Uint32(b), int(le.Uint32(b[4:]))
	if r.size < recordHeadSize || r.size > len(b) {
		return 0, fmt.Errorf("%w: length %d of %d", errRecord, r.size, len(b))
	}
	b = b[:r.size:r.size]
	if crcOf(b[4:]) != r.crc {
		return 0, fmt.Errorf("%w: wrong CRC", errRecord)
	}
	group, r.typ = le.Uint64(b[8:]), recordType(b[16])
	var ok bool
	switch r.typ {
	case recEntries:
		ok = r.parseEntries(b)
	case recState:
		ok = r.parseState(b)
	case recSuffix, recPrefix, recRemove, recStart, recRelease:
		ok = r.parseNumbers(b)
	default:
		return 0, fmt.Errorf("%w: type %d is reserved or unknown", errRecord, r.typ)
	}
	if !ok || (group == 0) != (r.typ == recStart || r.typ == recRelease) {
		return 0, fmt.Errorf("%w: type %d, length %d, group %d", errRecord, r.typ, r.size, group)
	}
	return group, nil
}

func (r *record) parseEntries(b []byte) bool {
	if len(b) < entriesHeadSize {
		return false
	}
	le := binary.LittleEndian
	metas := int64(le.Uint32(b[44:]))
	if metas > int64(len(b)-entriesHeadSize) {
		return false
	}
	cut := entriesHeadSize + int(metas)
	r.commit = int64(le.Uint64(b[32:]))
	r.batch = entry.Batch{
		First: int64(le.Uint64(b[24:])), Count: int(le.Uint32(b[40:])),
		Metas: b[entriesHeadSize:cut:cut], Data: b[cut:],
	}
	return r.batch.First >= 1 && r.batch.Count >= 1 && r.batch.First <= math.MaxInt64-int64(r.batch.Count)
}

func (r *record) parseState(b []byte) bool {
	if len(b) < stateHeadSize {
		return false
	}
	le := binary.LittleEndian
	vote, name := int(le.Uint16(b[72:])), int(le.Uint16(b[74:]))
	if len(b) < stateHeadSize+vote+name {
		return false
	}
	b, rest := b[:stateHeadSize+vote+name], b[stateHeadSize+vote+name:]
	override, ok := parseOverride(rest, b[17]&stateOverride != 0)
	if !ok {
		return false
	}
	x := &extra{
		hard: HardState{
			Term: int64(le.Uint64(b[24:])), GroupID: le.Uint64(b[32:]),
			Vote: string(b[stateHeadSize : stateHeadSize+vote]), Waiting: b[17]&stateWaiting != 0,
			WasMember: b[17]&stateWasMember != 0, Override: override,
		},
		name: string(b[stateHeadSize+vote:]), bounds: b[17]&stateBounds != 0,
		first: int64(le.Uint64(b[48:])), last: int64(le.Uint64(b[56:])),
	}
	r.commit, r.prevTerm, r.extra = int64(le.Uint64(b[40:])), int64(le.Uint64(b[64:])), x
	return !x.bounds || x.first >= 1 && x.last >= x.first-1
}

func parseOverride(b []byte, there bool) (o Override, ok bool) {
	if !there {
		return o, len(b) == 0
	}
	if len(b) < overrideHeadSize {
		return o, false
	}
	le := binary.LittleEndian
	o.Term, o.Last = int64(le.Uint64(b)), int64(le.Uint64(b[8:]))
	o.Conf = string(b[overrideHeadSize:])
	return o, le.Uint64(b[16:]) == uint64(len(o.Conf)) && o.Term > 0 && o.Last >= 0
}

func (r *record) parseNumbers(b []byte) bool {
	var n [3]uint64
	count := (len(b) - recordHeadSize) / 8
	if len(b) != recordHeadSize+8*count || count > 3 {
		return false
	}
	for i := range count {
		n[i] = binary.LittleEndian.Uint64(b[recordHeadSize+8*i:])
	}
	switch r.typ {
	case recSuffix:
		r.index = int64(n[0])
		return count == 1 && r.index >= 0
	case recPrefix:
		r.index, r.prevTerm = int64(n[0]), int64(n[1])
		return count == 2 && r.index >= 1
	case recRemove:
		return count == 0
	case recStart:
		r.extra = &extra{prevEnd: n[0], nextGroup: n[2]}
		r.index = int64(n[1])
		return count == 3
	case recRelease:
		r.index = int64(n[0])
		return count == 1
	}
	return false
}
