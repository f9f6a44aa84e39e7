package main

import (
	"github.com/tidwall/redcon"
)

// replyKind says which of a reply's fields counts.
type replyKind uint8

const (
	kindStatus replyKind = iota // text: +OK
	kindError                   // text: -ERR …
	kindInt                     // n
	kindNull
	kindBulk  // bytes
	kindBulks // list; nil stands for null
	kindRaw   // bytes, which are encoded already
)

// reply is the answer to one command. It is made where the answer is known, and encoded where it is
// written, since only the connection knows which version of the protocol it speaks.
//
// It never changes once it is made, so common ones are shared.
type reply struct {
	kind  replyKind
	text  string
	n     int64
	bytes []byte
	list  [][]byte
}

// Shared replies, with Redis's own texts.
var (
	replyOK        = &reply{kind: kindStatus, text: "OK"}
	replyPong      = &reply{kind: kindStatus, text: "PONG"}
	replyNull      = &reply{kind: kindNull}
	replyZero      = &reply{kind: kindInt}
	replyOne       = &reply{kind: kindInt, n: 1}
	replyNotInt    = errorReply("ERR value is not an integer or out of range")
	replyOverflow  = errorReply("ERR increment or decrement would overflow")
	replyTooLong   = errorReply("ERR string exceeds maximum allowed size (16 MiB)")
	replyTooMuch   = errorReply("ERR the values together exceed 64 MiB; ask for fewer keys at a time")
	replyManyKeys  = errorReply("ERR the keys of one cursor exceed 64 MiB; a narrower MATCH finds fewer")
	replyPattern   = errorReply("ERR pattern exceeds 1024 bytes")
	replyKeyLong   = errorReply("ERR key exceeds maximum allowed size (64 KiB)")
	replySyntax    = errorReply("ERR syntax error")
	replyBadCursor = errorReply("ERR invalid cursor")
)

func errorReply(text string) *reply   { return &reply{kind: kindError, text: text} }
func bulkReply(b []byte) *reply       { return &reply{kind: kindBulk, bytes: b} }
func textReply(s string) *reply       { return &reply{kind: kindBulk, bytes: []byte(s)} }
func rawReply(b []byte) *reply        { return &reply{kind: kindRaw, bytes: b} }
func bulksReply(list [][]byte) *reply { return &reply{kind: kindBulks, list: list} }

func intReply(n int64) *reply {
	switch n {
	case 0:
		return replyZero
	case 1:
		return replyOne
	}
	return &reply{kind: kindInt, n: n}
}

func boolReply(b bool) *reply {
	if b {
		return replyOne
	}
	return replyZero
}

// size is how many bytes the reply keeps in memory, or more.
func (r *reply) size() int {
	n := perItem + len(r.text) + len(r.bytes) + perItem*len(r.list)
	for _, b := range r.list {
		n += len(b)
	}
	return n
}

// encode appends the reply in version 2 or 3 of the protocol.
func (r *reply) encode(dst []byte, proto int) []byte {
	switch r.kind {
	case kindStatus:
		return redcon.AppendString(dst, r.text)
	case kindError:
		return redcon.AppendError(dst, r.text)
	case kindInt:
		return redcon.AppendInt(dst, r.n)
	case kindNull:
		return appendNull(dst, proto)
	case kindBulk:
		return redcon.AppendBulk(dst, r.bytes)
	case kindBulks:
		dst = redcon.AppendArray(dst, len(r.list))
		for _, b := range r.list {
			if b == nil {
				dst = appendNull(dst, proto)
			} else {
				dst = redcon.AppendBulk(dst, b)
			}
		}
		return dst
	case kindRaw:
		return append(dst, r.bytes...)
	}
	panic("kv: reply of an unknown kind")
}

func appendNull(dst []byte, proto int) []byte {
	if proto == 3 {
		return append(dst, "_\r\n"...)
	}
	return redcon.AppendNull(dst)
}

// appendMap begins a map of n pairs, which version 2 knows as a flat array.
func appendMap(dst []byte, proto, n int) []byte {
	if proto != 3 {
		return redcon.AppendArray(dst, 2*n)
	}
	start := len(dst)
	dst = redcon.AppendArray(dst, n)
	dst[start] = '%'
	return dst
}

// appendTexts appends an array of strings.
func appendTexts(dst []byte, texts ...string) []byte {
	dst = redcon.AppendArray(dst, len(texts))
	for _, s := range texts {
		dst = redcon.AppendBulkString(dst, s)
	}
	return dst
}
