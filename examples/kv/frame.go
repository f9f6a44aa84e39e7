package main

import (
	"bytes"
	"fmt"

	"github.com/tidwall/redcon"
)

// Bounds on what a client may send. Past them its connection is closed, as Redis does.
const (
	maxRequest     = 24 << 20 // one command with all its arguments
	maxInline      = 64 << 10 // a command typed without framing
	maxArgs        = 1 << 20
	maxLengthDigit = 20
)

// protocolError closes the connection, after its text was sent.
type protocolError string

func (e protocolError) Error() string { return "ERR Protocol error: " + string(e) }

// framer finds where a command ends, across any number of reads, and refuses what is out of bounds, so that
// only whole and valid commands reach redcon's parser.
//
// Ownership: the connection's reader.
type framer struct {
	pos  int // looked at so far, from the command's first byte
	left int // bulk strings to come; meaningful once pos > 0
}

// next returns the first command in b, and what it takes of b: 0 if it is not whole yet. A command without
// arguments is an empty line. The arguments point into b; args is used again.
func (f *framer) next(b []byte, args [][]byte) (cmd [][]byte, size int, err error) {
	if len(b) == 0 {
		return nil, 0, nil
	}
	if b[0] == '*' {
		size, err = f.bulks(b)
	} else {
		size, err = f.inline(b)
	}
	switch {
	case err != nil:
		return nil, 0, err
	case size == 0 && len(b) > maxRequest:
		return nil, 0, protocolError(fmt.Sprintf("request exceeds %d bytes", maxRequest))
	case size == 0:
		return nil, 0, nil
	}
	*f = framer{}
	if b[0] == '*' && b[1] == '-' { // Redis skips a negative number of arguments
		return nil, size, nil
	}
	complete, cmd, _, _, err := redcon.ReadNextCommand(b[:size:size], args[:0])
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("ERR %w", err)
	case !complete:
		return nil, 0, protocolError("invalid request")
	}
	return cmd, size, nil
}

// inline finds the end of a line.
func (f *framer) inline(b []byte) (size int, err error) {
	if b[0] == '$' {
		return 0, protocolError("expected '*', got '$'")
	}
	if i := bytes.IndexByte(b[f.pos:], '\n'); i >= 0 && f.pos+i <= maxInline {
		return f.pos + i + 1, nil
	} else if i >= 0 || len(b) > maxInline {
		return 0, protocolError("too big inline request")
	}
	f.pos = len(b)
	return 0, nil
}

// bulks finds the end of an array of bulk strings.
func (f *framer) bulks(b []byte) (size int, err error) {
	if f.pos == 0 {
		n, end, err := length(b, 0, "multibulk")
		if end == 0 {
			return 0, err
		}
		if n > maxArgs {
			return 0, protocolError("invalid multibulk length")
		}
		f.left, f.pos = max(n, 0), end
	}
	for ; f.left > 0; f.left-- {
		if f.pos >= len(b) {
			return 0, nil
		}
		if b[f.pos] != '$' {
			return 0, protocolError(fmt.Sprintf("expected '$', got %q", b[f.pos]))
		}
		n, end, err := length(b, f.pos, "bulk")
		if end == 0 {
			return 0, err
		}
		if n < 0 || n > maxRequest-end {
			return 0, protocolError("invalid bulk length")
		}
		if len(b) < end+n+2 {
			return 0, nil // found again quickly: pos stands before the length
		}
		if b[end+n] != '\r' || b[end+n+1] != '\n' {
			return 0, protocolError("invalid bulk length")
		}
		f.pos = end + n + 2
	}
	return f.pos, nil
}

// length reads the number that stands behind a type byte at pos. end is 0 if the line is not whole.
func length(b []byte, pos int, what string) (n, end int, err error) {
	line := b[pos+1:]
	i := bytes.IndexByte(line[:min(len(line), maxLengthDigit+2)], '\n')
	if i < 0 {
		if len(line) > maxLengthDigit {
			return 0, 0, protocolError("too big " + what + " count string")
		}
		return 0, 0, nil
	}
	if i < 1 || line[i-1] != '\r' {
		return 0, 0, protocolError("invalid " + what + " length")
	}
	v, ok := parseInt(line[:i-1])
	if !ok || v != int64(int(v)) {
		return 0, 0, protocolError("invalid " + what + " length")
	}
	return int(v), pos + 1 + i + 1, nil
}
