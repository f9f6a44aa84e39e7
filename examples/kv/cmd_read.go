package main

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/tidwall/redcon"
)

// keyReads are the commands that look at the keyspace. They are linearizable, on a follower too.
var keyReads = []*command{
	{name: "get", arity: 2, first: 1, last: 1, step: 1, group: "string", summary: "Returns the value of a key.", read: readGet},
	{name: "mget", arity: -2, first: 1, last: -1, step: 1, group: "string", summary: "Returns the values of several keys at one moment.", read: readMGet},
	{name: "strlen", arity: 2, first: 1, last: 1, step: 1, group: "string", summary: "Returns the length of a value.", read: readStrlen},
	{name: "exists", arity: -2, first: 1, last: -1, step: 1, group: "generic", summary: "Counts those of the given keys that exist.", read: readExists},
	{name: "scan", arity: -2, group: "generic", summary: "Iterates over the keys.", read: readScan},
	{name: "dbsize", arity: 1, group: "server", summary: "Returns the number of keys.", read: readDBSize},
}

// query answers from the keys. It may take its time.
type query = func(*machine) *reply

// atOnce is a query that sees the keys as they are at one moment.
func atOnce(f func(*keyspace) *reply) query {
	return func(m *machine) *reply { return m.read(f) }
}

// readGet is GET key.
func readGet(args [][]byte) (query, *reply) {
	key := bytes.Clone(args[1])
	return atOnce(func(k *keyspace) *reply {
		if value, ok := k.get(key); ok {
			return bulkReply(value)
		}
		return replyNull
	}), nil
}

// maxReply is how many bytes of values one answer may have: it is made in one piece.
const maxReply = 64 << 20

// readMGet is MGET key [key …].
func readMGet(args [][]byte) (query, *reply) {
	keys := cloneAll(args[1:])
	return atOnce(func(k *keyspace) *reply {
		values, size := make([][]byte, len(keys)), 0
		for i, key := range keys {
			if value, ok := k.get(key); ok {
				if size += len(value); size > maxReply {
					return replyTooMuch
				}
				values[i] = value[:len(value):len(value)]
				if value == nil {
					values[i] = []byte{}
				}
			}
		}
		return bulksReply(values)
	}), nil
}

// readStrlen is STRLEN key.
func readStrlen(args [][]byte) (query, *reply) {
	key := bytes.Clone(args[1])
	return atOnce(func(k *keyspace) *reply {
		value, _ := k.get(key)
		return intReply(int64(len(value)))
	}), nil
}

// readExists is EXISTS key [key …]; a key that is named twice counts twice.
func readExists(args [][]byte) (query, *reply) {
	keys := cloneAll(args[1:])
	return atOnce(func(k *keyspace) *reply {
		var n int64
		for _, key := range keys {
			if _, ok := k.get(key); ok {
				n++
			}
		}
		return intReply(n)
	}), nil
}

// readDBSize is DBSIZE.
func readDBSize([][]byte) (query, *reply) {
	return atOnce(func(k *keyspace) *reply { return intReply(int64(k.size)) }), nil
}

// Bounds of SCAN's COUNT: what a client gets unless it says something, and what it gets at most.
const (
	scanDefault = 10
	scanMax     = 100_000
	// maxPattern bounds MATCH: a set that is long is looked through for each byte of each key.
	maxPattern = 1024
	// A SCAN ends early when it has matched for so long, bytes of keys times bytes of the pattern, or found keys of so
	// many bytes.
	scanWork  = 16 << 20
	scanBytes = 4 << 20
)

// readScan is SCAN cursor [MATCH pattern] [COUNT n] [TYPE name].
func readScan(args [][]byte) (query, *reply) {
	cursor, err := strconv.ParseUint(string(args[1]), 10, 64)
	if err != nil {
		return nil, replyBadCursor
	}
	if len(args)%2 != 0 {
		return nil, replySyntax
	}
	pattern, count, none := "", int64(scanDefault), false
	for i := 2; i < len(args); i += 2 {
		value := string(args[i+1])
		switch strings.ToUpper(string(args[i])) {
		case "MATCH":
			if pattern = value; len(pattern) > maxPattern {
				return nil, replyPattern
			}
		case "COUNT":
			var ok bool
			if count, ok = parseInt(args[i+1]); !ok {
				return nil, replyNotInt
			} else if count < 1 {
				return nil, replySyntax
			}
		case "TYPE":
			none = !strings.EqualFold(value, "string")
		default:
			return nil, replySyntax
		}
	}
	return func(m *machine) *reply {
		match := func(key string) bool { return !none && (pattern == "" || glob(pattern, key)) }
		next, keys, ok := scanKeys(m, cursor, int(min(count, scanMax)), len(pattern), match)
		if !ok {
			return replyManyKeys
		}
		b := redcon.AppendArray(nil, 2)
		b = redcon.AppendBulkString(b, strconv.FormatUint(next, 10))
		return rawReply(appendTexts(b, keys...))
	}, nil
}

// scanKeys looks at the keys from cursor on, each of which costs its length times cost, and returns those that match
// and where to go on. ok is false if a single cursor's are more than an answer may have.
//
// It takes one bucket after the other and matches without the machine's lock, under which nothing could be applied.
// Each bucket is seen as it is at some moment after the read was confirmed: SCAN promises no more.
func scanKeys(m *machine, cursor uint64, count, cost int, match func(key string) bool) (next uint64, keys []string, ok bool) {
	var bucket []string
	for work, size := 0, 0; count > 0 && work < scanWork && size < scanBytes; {
		bucket, cursor = m.scan(cursor, bucket[:0])
		count -= len(bucket)
		for _, key := range bucket {
			work += len(key) * cost
			if !match(key) {
				continue
			}
			if size += len(key); size > maxReply {
				return 0, nil, false
			}
			keys = append(keys, key)
		}
		if cursor == 0 {
			break
		}
	}
	return cursor, keys, true
}

// cloneAll copies what lies in the connection's buffer.
func cloneAll(args [][]byte) [][]byte {
	all := make([][]byte, len(args))
	for i, arg := range args {
		all[i] = bytes.Clone(arg)
	}
	return all
}
