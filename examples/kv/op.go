package main

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// opCode says what an entry of the log does. Codes are stored, so they are never reused.
type opCode byte

const (
	opSet      opCode = 1 // flags, key, value
	opDel      opCode = 2 // keys
	opIncr     opCode = 3 // delta, key
	opAppend   opCode = 4 // key, tail
	opMSet     opCode = 5 // key, value, key, value, …
	opCAS      opCode = 6 // key, old, new
	opFlush    opCode = 7 // nothing
	opAnnounce opCode = 8 // a replica's raft address, its redis address
)

// Flags of opSet.
const (
	setNX  byte = 1 << iota // only if there is no such key
	setXX                   // only if there is
	setGET                  // answer with the old value

	setFlags = setNX | setXX | setGET
)

// op is one write, as it is stored in the log: the code, then for opSet the flags and for opIncr the delta
// (a zigzag varint), then the arguments, each behind its length (a varint).
type op struct {
	code  opCode
	flags byte
	delta int64
	args  [][]byte
}

// opArgs is how many arguments an operation takes: at least min, and a multiple of step.
var opArgs = map[opCode]struct{ min, max, step int }{
	opSet:      {2, 2, 1},
	opDel:      {1, 1 << 20, 1},
	opIncr:     {1, 1, 1},
	opAppend:   {2, 2, 1},
	opMSet:     {2, 1 << 20, 2},
	opCAS:      {3, 3, 1},
	opFlush:    {0, 0, 1},
	opAnnounce: {2, 2, 1},
}

// append appends the operation's encoding.
func (o *op) append(dst []byte) []byte {
	dst = append(dst, byte(o.code))
	switch o.code {
	case opSet:
		dst = append(dst, o.flags)
	case opIncr:
		dst = binary.AppendVarint(dst, o.delta)
	}
	for _, arg := range o.args {
		dst = binary.AppendUvarint(dst, uint64(len(arg)))
		dst = append(dst, arg...)
	}
	return dst
}

var errShortOp = errors.New("operation ends early")

// decode reads what append wrote. The arguments point into b; args is used again.
func (o *op) decode(b []byte) error {
	*o = op{args: o.args[:0]}
	if len(b) == 0 {
		return errShortOp
	}
	o.code, b = opCode(b[0]), b[1:]
	want, known := opArgs[o.code]
	if !known {
		return fmt.Errorf("operation %d is unknown: was the log written by a newer version?", o.code)
	}
	switch o.code {
	case opSet:
		if len(b) == 0 {
			return errShortOp
		}
		o.flags, b = b[0], b[1:]
		if o.flags&^setFlags != 0 {
			return fmt.Errorf("SET has unknown flags %#x", o.flags)
		}
	case opIncr:
		n := 0
		if o.delta, n = binary.Varint(b); n <= 0 {
			return errShortOp
		}
		b = b[n:]
	}
	for len(b) > 0 {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return errShortOp
		}
		end := n + int(size)
		o.args = append(o.args, b[n:end:end])
		b = b[end:]
	}
	if len(o.args) < want.min || len(o.args) > want.max || len(o.args)%want.step != 0 {
		return fmt.Errorf("operation %d has %d arguments", o.code, len(o.args))
	}
	return nil
}
