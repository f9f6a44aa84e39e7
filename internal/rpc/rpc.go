package rpc

import (
	"errors"
	"sync/atomic"
	"time"
)

// Why a call was not answered. They are wrapped in Reply.Err.
var (
	ErrUnreachable = errors.New("peer is unreachable")
	ErrTimeout     = errors.New("no answer in time")
	ErrClosed      = errors.New("transport is closed")
	ErrBacklog     = errors.New("too many calls are waiting for this peer")
	ErrTooLarge    = errors.New("message exceeds the size limit")
	ErrBadReply    = errors.New("answer cannot be understood")
)

// Transport carries calls between processes.
type Transport interface {
	// Start binds and serves. It is called once, before everything else.
	Start(StartOptions) error
	// Call sends a request to the process at address. It never blocks, and connects
	// on demand. Calls of one goroutine to one address are sent in order.
	Call(address string, c Call)
	// Watch keeps a connection to address, and has Down called as soon as there is
	// evidence that the process there died. Each true is undone by one false.
	Watch(address string, on bool)
	// Retry says that the next attempt to reach address should be made at once: whatever keeps from it
	// because earlier ones have failed is forgotten.
	Retry(address string)
	// Close refuses new calls, fails those that are pending, closes everything and
	// waits for all goroutines, thus for callbacks. It must not be called from one.
	Close() error
}

// Call is a request to be sent.
//
// Ownership: the pieces are immutable from here on; large ones are not copied.
type Call struct {
	Service, Method string
	Message         [][]byte      // pieces of the encoded request
	Attachment      [][]byte      // pieces of the attachment
	Timeout         time.Duration // 0: none. Coarse: it may take some 10 ms longer
	// Bulk sends the call over a connection that only such calls share, so that large answers do
	// not hold up heartbeats. The memory of its answer can be used again, see Reply.Recycle.
	Bulk bool
	// Done is called exactly once. It must not block. It runs on the caller's stack
	// only where the call fails at once.
	Done func(Reply)
}

// Reply is the outcome of a call.
//
// Ownership: Message and Attachment are views into memory that is not used again, unless
// Recycle says so.
type Reply struct {
	Err                 error  // there is no answer: not sent, connection lost, timed out
	Code                int32  // the peer's error, 0 for success
	Text                string // of that error
	Message, Attachment []byte

	buf *frameBuffer // what they are views into, if that can be used again
}

// Recycle lets the transport use the memory of Message and Attachment again: nobody looks at
// them any more. It is called once or, by who cannot tell, not at all.
func (r *Reply) Recycle() {
	if r.buf != nil {
		r.buf.recycle()
	}
	r.buf, r.Message, r.Attachment = nil, nil, nil
}

// StartOptions say how a process serves and is known.
type StartOptions struct {
	Listen      string // where to bind
	Address     string // what others call this process
	Incarnation uint64 // drawn anew at each start of the process
	// Serve handles a request. It is called in the order of arrival on the
	// connection's reader and must not block.
	Serve func(*Request)
	// Down is called once per incident when there is evidence that the process at a
	// watched address died. It must not block.
	Down func(address string)
	// Logf takes what an operator may want to know. nil: nobody is told.
	Logf func(format string, args ...any)
}

// Request is a request that arrived. It is answered once, from any goroutine; later
// answers are ignored.
//
// Ownership: Message and Attachment are views into memory that is never reused.
type Request struct {
	Service, Method     string
	Message, Attachment []byte
	Remote              string // who asks: the connection's address

	conn     *serverConn // of a TCP transport, else reply is set
	id       int64
	reply    func(code int32, text string, message []byte, attachment [][]byte)
	answered atomic.Bool
}

// NewRequest makes a request that did not come from a TCP transport. reply is called at
// most once, with a code other than 0 for an error.
func NewRequest(service, method string, message, attachment []byte, remote string,
	reply func(code int32, text string, message []byte, attachment [][]byte)) *Request {
	return &Request{
		Service: service, Method: method, Message: message, Attachment: attachment,
		Remote: remote, reply: reply,
	}
}

// LetGo lets go of what was asked, which is not needed any more and counts no more among what the connection's requests may take,
// though the answer may be long in coming. The caller must be the only one who has the request.
func (r *Request) LetGo() {
	size := len(r.Message) + len(r.Attachment)
	r.Message, r.Attachment = nil, nil
	if r.conn != nil && size > 0 {
		r.conn.letGo(size)
	}
}

// Reply answers with message, which is immutable from here on.
func (r *Request) Reply(message []byte) { r.ReplyAttachment(message, nil) }

// ReplyAttachment answers with message and an attachment, both immutable from here on.
func (r *Request) ReplyAttachment(message []byte, attachment [][]byte) {
	r.answer(0, "", message, attachment, nil)
}

// ReplyLent is ReplyAttachment with an attachment that is one piece and only lent: written is
// called, on any goroutine, once it is needed no more. It is not called if the attachment is
// small, the connection breaks, or the transport does not say.
func (r *Request) ReplyLent(message, attachment []byte, written func()) {
	r.answer(0, "", message, [][]byte{attachment}, written)
}

// Fail answers with an error. Over TCP the text gets the prefix that brpc gives it.
func (r *Request) Fail(code int32, text string) {
	if code == 0 || code == -1 { // brpc does the same with -1
		code = codeInternal
	}
	r.answer(code, text, nil, nil, nil)
}

func (r *Request) answer(code int32, text string, message []byte, attachment [][]byte, written func()) {
	if !r.answered.CompareAndSwap(false, true) {
		return
	}
	if r.conn == nil {
		r.reply(code, text, message, attachment)
		return
	}
	r.conn.answer(r, code, text, message, attachment, written)
}
