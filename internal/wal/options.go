package wal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
)

// Options says where and how a store keeps its log. Zero means default.
//
// Ownership: a value; Open takes a copy.
type Options struct {
	FS       vfs.FS         // default: the operating system's
	Dir      string         // the store's own directory; it is made if missing
	Exec     actor.Executor // runs the lanes and the keeper; required
	Identity string         // the address of the host that owns the directory

	SegmentSize int64 // default 64 MiB; a multiple of 4 KiB
	MaxRecord   int64 // largest record, default 64 MiB
	MaxBatch    int   // records gathered into one write, in bytes, default 1 MiB
	InFlight    int   // durable writes under way at once, default 3
	Spare       int   // segments kept prepared, one of them for hard states and configurations; default 2
	Keep        int   // released segments kept for reuse beyond Spare, default 2

	// OverlapBytes is how much must have gathered before a further write is begun
	// beside those under way; default 32 KiB, negative means anything at all.
	OverlapBytes int
	// IdleMark is how long the store is idle before it writes its durable mark
	// once more, default 50 ms.
	IdleMark time.Duration
	// Retry is the pause between attempts to make a segment on a full disk, or to open a file when there are no descriptors,
	// default 500 ms.
	Retry time.Duration

	Rand func() uint64                    // incarnations; default math/rand/v2
	Log  func(format string, args ...any) // may be nil
}

// A segment is at least SegmentSizeMin bytes large, below SegmentSizeLimit, and a multiple of SegmentSizeUnit.
const (
	SegmentSizeMin   = 4 * block
	SegmentSizeLimit = maxSegment
	SegmentSizeUnit  = block
)

const (
	// zeroPiece is how much of a new segment the keeper zeroes and syncs at a time.
	zeroPiece = 256 << 10
	// eagerSize is how large the first segments are that an opening prepares, so that
	// it soon has some that were written once.
	eagerSize = 8 << 20
	// smallest is how much a segment must hold next to the state of all groups, to be made smaller than it should be on a disk that is full.
	smallest = 1 << 20
	// zeroPause is how long it then leaves the disk to the log, unless the segment is needed.
	zeroPause = 4 * time.Millisecond
	// removeAtOnce is how many segments the keeper has open at a time, to remove them.
	removeAtOnce = 8
)

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	o.SegmentSize = orDefault(o.SegmentSize, 64<<20)
	o.MaxRecord = orDefault(o.MaxRecord, 64<<20)
	o.MaxBatch = orDefault(o.MaxBatch, 1<<20)
	o.InFlight = orDefault(o.InFlight, 3)
	o.Spare = orDefault(o.Spare, 2)
	o.Keep = orDefault(o.Keep, 2)
	o.OverlapBytes = orDefault(o.OverlapBytes, 32<<10)
	o.IdleMark = orDefault(o.IdleMark, 50*time.Millisecond)
	o.Retry = orDefault(o.Retry, 500*time.Millisecond)
	return o
}

// Validate reports everything that is wrong with o.
func (o Options) Validate() error {
	o = o.withDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("wal: Options."+format, args...))
		}
	}
	check(o.Dir != "", "Dir is empty")
	check(o.Exec != nil, "Exec is missing")
	check(o.Identity != "" && len(o.Identity) <= maxString, "Identity has %d bytes, must be 1 to %d", len(o.Identity), maxString)
	check(o.SegmentSize >= SegmentSizeMin && o.SegmentSize < SegmentSizeLimit && o.SegmentSize%SegmentSizeUnit == 0,
		"SegmentSize is %d, must be a multiple of %d, at least %d and below %d", o.SegmentSize, SegmentSizeUnit, SegmentSizeMin, int64(SegmentSizeLimit))
	check(o.MaxRecord >= block && o.MaxRecord < maxSegment/2, "MaxRecord is %d, must be %d to %d", o.MaxRecord, block, int64(maxSegment/2))
	check(o.MaxBatch > 0, "MaxBatch is %d, must be positive", o.MaxBatch)
	check(o.InFlight > 0 && o.InFlight <= 64, "InFlight is %d, must be 1 to 64", o.InFlight)
	check(o.Spare > 1, "Spare is %d, must be at least 2", o.Spare)
	check(o.IdleMark > 0, "IdleMark is %v, must be positive", o.IdleMark)
	check(o.Retry > 0, "Retry is %v, must be positive", o.Retry)
	check(o.Keep >= 0, "Keep is %d, must not be negative", o.Keep)
	return errors.Join(errs...)
}
