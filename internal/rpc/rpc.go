// Package rpc calls and serves methods over baidu_std frames. One connection per
// remote process carries everything that is sent to it; requests never travel on
// accepted connections.
package rpc

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// What keeps a call from being answered. They arrive wrapped in Reply.Err.
var (
	ErrUnreachable = errors.New("peer is unreachable")
	ErrTimeout     = errors.New("no answer in time")
	ErrBacklog     = errors.New("too much is waiting to be sent")
	ErrClosed      = errors.New("transport is closed")
)

// Call is a request to be sent.
//
// Ownership: the transport's from the moment it is handed over; the bytes must not change any more.
type Call struct {
	Service, Method string
	Message         [][]byte      // pieces of the encoded request
	Attachment      [][]byte      // pieces of the attachment
	Timeout         time.Duration // 0: none. It is coarse: a tenth of a second late is in time
	// Done runs exactly once. It must not block. It may run before Call returns if
	// the call fails at once.
	Done func(Reply)
}

// Reply is the outcome of a call.
type Reply struct {
	Err                 error  // there is no answer
	Code                int32  // of an answer: 0 is success
	Text                string // of an answer with a code
	Message, Attachment []byte // views into memory that is never used again
}

// Request is a request that arrived.
//
// Invariant: it is answered once; later answers are ignored.
//
// Ownership: whoever handles it, on any goroutine.
type Request struct {
	Service, Method     string
	Message, Attachment []byte // views into memory that is never used again
	Remote              string // where it came from

	answered atomic.Bool
	address  string // of this process, for error texts
	reply    func(code int32, text string, message []byte, attachment [][]byte)
}

// NewRequest makes a request for another transport, which gets the answer through reply.
func NewRequest(service, method string, message, attachment []byte, remote string,
	reply func(code int32, text string, message []byte, attachment [][]byte)) *Request {
	return &Request{Service: service, Method: method, Message: message, Attachment: attachment, Remote: remote, reply: reply}
}

// Reply answers with a message.
func (r *Request) Reply(message []byte) { r.ReplyAttachment(message, nil) }

// ReplyAttachment answers with a message and an attachment.
func (r *Request) ReplyAttachment(message []byte, attachment [][]byte) {
	if !r.answered.Swap(true) {
		r.reply(0, "", message, attachment)
	}
}

// Fail answers with an error. The text gets the prefix that brpc gives it.
func (r *Request) Fail(code int32, text string) {
	if !r.answered.Swap(true) {
		r.reply(code, fmt.Sprintf("[%s][E%d]%s", r.address, code, text), nil, nil)
	}
}

// StartOptions says how a transport serves.
type StartOptions struct {
	Listen      string // where to bind
	Address     string // what peers call this process
	Incarnation uint64 // drawn anew at each start of the process
	// Serve gets the requests of each connection in the order of their arrival, on
	// its reader. It must not block.
	Serve func(*Request)
	// Down is told that the process at a watched address is evidently gone: its
	// connection broke and the next attempt was refused, or another process answers there.
	Down func(address string)
	Logf func(format string, args ...any)
}

// Transport carries calls between processes.
type Transport interface {
	// Start begins to serve.
	Start(StartOptions) error
	// Call sends a request. It never blocks, and connects on demand.
	Call(address string, c Call)
	// Watch keeps a connection to address open and has its process's death reported. Calls with true
	// and false are counted against each other.
	Watch(address string, on bool)
	// Close fails what is pending, closes everything and waits for all goroutines.
	Close() error
}

// size adds up pieces.
func size(pieces [][]byte) (n int) {
	for _, p := range pieces {
		n += len(p)
	}
	return n
}
