package main

import (
	"math"
	"strings"
)

// keyWrites are the commands that change the keyspace: each becomes an entry of the log.
var keyWrites = []*command{
	{name: "set", arity: -3, first: 1, last: 1, step: 1, group: "string", summary: "Sets the value of a key.", write: writeSet},
	{name: "mset", arity: -3, first: 1, last: -1, step: 2, group: "string", summary: "Sets several keys at once, atomically.", write: writeMSet},
	{name: "append", arity: 3, first: 1, last: 1, step: 1, group: "string", summary: "Appends to the value of a key.", write: writeAppend},
	{name: "incr", arity: 2, first: 1, last: 1, step: 1, group: "string", summary: "Adds 1 to an integer.", write: writeIncr},
	{name: "decr", arity: 2, first: 1, last: 1, step: 1, group: "string", summary: "Subtracts 1 from an integer.", write: writeIncr},
	{name: "incrby", arity: 3, first: 1, last: 1, step: 1, group: "string", summary: "Adds to an integer.", write: writeIncr},
	{name: "decrby", arity: 3, first: 1, last: 1, step: 1, group: "string", summary: "Subtracts from an integer.", write: writeIncr},
	{name: "cas", arity: 4, first: 1, last: 1, step: 1, group: "string", summary: "Sets the value of a key if it is the old one: 1, else 0.", write: writeCAS},
	{name: "del", arity: -2, first: 1, last: -1, step: 1, group: "generic", summary: "Removes keys.", write: writeDel},
	{name: "flushall", arity: -1, group: "server", summary: "Removes all keys.", write: writeFlush},
	{name: "flushdb", arity: -1, group: "server", summary: "Removes all keys.", write: writeFlush},
	{name: "graft", arity: 4, group: "server", summary: "ANNOUNCE raft-address redis-address: said by replicas to their leader.", write: writeAnnounce},
}

// writeSet is SET key value [NX | XX] [GET].
func writeSet(_ *session, o *op, args [][]byte) *reply {
	o.code = opSet
	for _, arg := range args[3:] {
		switch option := strings.ToUpper(string(arg)); option {
		case "NX":
			o.flags |= setNX
		case "XX":
			o.flags |= setXX
		case "GET":
			o.flags |= setGET
		case "EX", "PX", "EXAT", "PXAT", "KEEPTTL":
			return errorReply("ERR syntax error: keys do not expire here, " + option + " is not supported")
		default:
			return replySyntax
		}
	}
	if o.flags&setNX != 0 && o.flags&setXX != 0 {
		return replySyntax
	}
	o.args = append(o.args, args[1], args[2])
	return checkValues(args[2])
}

// writeMSet is MSET key value [key value …].
func writeMSet(_ *session, o *op, args [][]byte) *reply {
	if len(args)%2 == 0 {
		return errorReply("ERR wrong number of arguments for 'mset' command")
	}
	o.code, o.args = opMSet, append(o.args, args[1:]...)
	for i := 2; i < len(args); i += 2 {
		if refused := checkValues(args[i]); refused != nil {
			return refused
		}
	}
	return nil
}

// writeAppend is APPEND key tail.
func writeAppend(_ *session, o *op, args [][]byte) *reply {
	o.code, o.args = opAppend, append(o.args, args[1:]...)
	return checkValues(args[2])
}

// writeIncr is INCR and DECR key, INCRBY and DECRBY key delta.
func writeIncr(_ *session, o *op, args [][]byte) *reply {
	o.code, o.args, o.delta = opIncr, append(o.args, args[1]), 1
	if len(args) == 3 {
		var ok bool
		if o.delta, ok = parseInt(args[2]); !ok {
			return replyNotInt
		}
	}
	if args[0][0]|0x20 == 'd' {
		if o.delta == math.MinInt64 {
			return errorReply("ERR decrement would overflow")
		}
		o.delta = -o.delta
	}
	return nil
}

// writeCAS is CAS key old new.
func writeCAS(_ *session, o *op, args [][]byte) *reply {
	o.code, o.args = opCAS, append(o.args, args[1:]...)
	return checkValues(args[2], args[3])
}

// writeDel is DEL key [key …].
func writeDel(_ *session, o *op, args [][]byte) *reply {
	o.code, o.args = opDel, append(o.args, args[1:]...)
	return nil
}

// writeFlush is FLUSHALL [ASYNC | SYNC].
func writeFlush(_ *session, o *op, args [][]byte) *reply {
	o.code = opFlush
	if len(args) == 1 || len(args) == 2 && (strings.EqualFold(string(args[1]), "async") || strings.EqualFold(string(args[1]), "sync")) {
		return nil
	}
	return replySyntax
}

func checkValues(values ...[]byte) *reply {
	for _, v := range values {
		if len(v) > maxValue {
			return replyTooLong
		}
	}
	return nil
}
