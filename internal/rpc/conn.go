package rpc

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/graft-raft/graft/internal/baidustd"
)

// conn is one connection: outgoing, with the calls that wait for answers on it, or
// accepted, with the requests that are being handled.
//
// Invariant: close ends it once; then each pending call is failed once.
//
// Ownership: the reader and the writer goroutine run it; mu is a leaf lock.
type conn struct {
	t      *TCP
	c      net.Conn
	remote string
	out    *outbox

	mu      sync.Mutex // guards the fields below
	cond    *sync.Cond // a request was answered, or the connection is closed
	next    int64
	pending map[int64]pending
	sweep   *time.Timer // runs while calls with a timeout wait
	serving int
	closed  error
	onClose func(error)
}

type pending struct {
	done  func(Reply)
	until time.Time // zero: no timeout
}

func newConn(t *TCP, c net.Conn, remote string) *conn {
	k := &conn{t: t, c: c, remote: remote, out: newOutbox(), pending: make(map[int64]pending)}
	k.cond = sync.NewCond(&k.mu)
	return k
}

// close ends the connection with a reason.
func (k *conn) close(reason error) {
	k.mu.Lock()
	if k.closed != nil {
		k.mu.Unlock()
		return
	}
	k.closed = reason
	waiting := make([]func(Reply), 0, len(k.pending))
	for _, p := range k.pending {
		waiting = append(waiting, p.done)
	}
	k.pending = nil
	if k.sweep != nil {
		k.sweep.Stop()
	}
	onClose := k.onClose
	k.cond.Broadcast()
	k.mu.Unlock()
	k.out.close()
	_ = k.c.Close() // it is given up; there is nobody to tell
	for _, done := range waiting {
		done(Reply{Err: fmt.Errorf("%w: %s: %w", ErrUnreachable, k.remote, reason)})
	}
	if onClose != nil {
		onClose(reason)
	}
}

// write runs the connection's writer.
func (k *conn) write() {
	defer k.t.wg.Done()
	var bufs net.Buffers
	var limit time.Time
	for range k.out.wake {
		for {
			var small []byte
			bufs, small = k.out.take(bufs)
			if len(bufs) == 0 {
				break
			}
			if now := time.Now(); limit.Sub(now) < k.t.o.WriteTimeout/2 {
				limit = now.Add(k.t.o.WriteTimeout)
				if err := k.c.SetWriteDeadline(limit); err != nil {
					k.close(err)
					return
				}
			}
			rest := bufs // WriteTo consumes it
			if _, err := rest.WriteTo(k.c); err != nil {
				k.t.count("write", k.remote, err)
				k.close(err)
				return
			}
			clear(bufs)
			k.out.giveBack(small)
		}
		if k.out.isClosed() {
			return
		}
	}
}

// read runs the connection's reader until it ends, and returns why.
func (k *conn) read(serve bool) error {
	f := &frameReader{c: k.c, maxBody: k.t.o.MaxBody, stall: k.t.o.FrameTimeout}
	for {
		meta, payload, err := f.next()
		if err != nil {
			return err
		}
		m, err := baidustd.ParseMeta(meta)
		if err != nil {
			return err
		}
		if m.IsRequest != serve {
			return errors.New("frame in the wrong direction")
		}
		if serve {
			err = k.serve(&m, payload)
		} else {
			k.answer(&m, payload)
		}
		if err != nil {
			return err
		}
	}
}

// call sends a request.
func (k *conn) call(c Call) {
	k.mu.Lock()
	if k.closed != nil {
		err := k.closed
		k.mu.Unlock()
		c.Done(Reply{Err: fmt.Errorf("%w: %s: %w", ErrUnreachable, k.remote, err)})
		return
	}
	if len(k.pending) >= k.t.o.MaxPending {
		k.mu.Unlock()
		c.Done(Reply{Err: fmt.Errorf("%w: %d calls to %s", ErrBacklog, k.t.o.MaxPending, k.remote)})
		return
	}
	k.next++
	id := k.next
	p := pending{done: c.Done}
	if c.Timeout > 0 {
		p.until = time.Now().Add(c.Timeout)
		if k.sweep == nil {
			k.sweep = time.AfterFunc(sweepEvery, k.expire)
		}
	}
	k.pending[id] = p
	k.mu.Unlock()
	message, attachment := size(c.Message), size(c.Attachment)
	ok := k.out.add(k.t.o.MaxPendingBytes, func(b []byte) []byte {
		return baidustd.AppendRequest(b, c.Service, c.Method, id, message, attachment)
	}, c.Message, c.Attachment)
	if ok {
		return
	}
	if done := k.takePending(id); done != nil {
		done(Reply{Err: fmt.Errorf("%w: to %s", ErrBacklog, k.remote)})
	}
}

func (k *conn) takePending(id int64) func(Reply) {
	k.mu.Lock()
	defer k.mu.Unlock()
	p, ok := k.pending[id]
	if !ok {
		return nil
	}
	delete(k.pending, id)
	return p.done
}

// sweepEvery is how coarse timeouts are.
const sweepEvery = 50 * time.Millisecond

// expire fails the calls whose time is over.
func (k *conn) expire() {
	now := time.Now()
	var late []func(Reply)
	k.mu.Lock()
	timed := false
	for id, p := range k.pending {
		switch {
		case p.until.IsZero():
		case now.After(p.until):
			late = append(late, p.done)
			delete(k.pending, id)
		default:
			timed = true
		}
	}
	k.sweep = nil
	if timed && k.closed == nil {
		k.sweep = time.AfterFunc(sweepEvery, k.expire)
	}
	k.mu.Unlock()
	for _, done := range late {
		done(Reply{Err: fmt.Errorf("%w: %s", ErrTimeout, k.remote)})
	}
}

// answer hands a response to its call.
func (k *conn) answer(m *baidustd.Meta, payload []byte) {
	done := k.takePending(m.CorrelationID)
	if done == nil {
		k.t.stats.add("late answer")
		return
	}
	r := Reply{Code: m.ErrorCode, Text: string(m.ErrorText)}
	if m.ErrorCode == 0 {
		var ok bool
		if r.Message, r.Attachment, ok = m.Split(payload); !ok {
			r = Reply{Code: codeResponse, Text: "attachment is larger than the response"}
		}
	}
	done(r)
}

// brpc's codes.
const (
	codeRequest  = 1003
	codeResponse = 2002
)

// serve hands a request on. It waits while too many are being handled.
func (k *conn) serve(m *baidustd.Meta, payload []byte) error {
	k.mu.Lock()
	for k.serving >= k.t.o.MaxServing && k.closed == nil {
		k.cond.Wait()
	}
	if k.closed != nil {
		k.mu.Unlock()
		return k.closed
	}
	k.serving++
	k.mu.Unlock()
	id := m.CorrelationID
	r := &Request{
		Service: k.t.names.of(m.Service), Method: k.t.names.of(m.Method), Remote: k.remote, address: k.t.start.Address,
		reply: func(code int32, text string, message []byte, attachment [][]byte) {
			k.reply(id, code, text, message, attachment)
		},
	}
	var ok bool
	if r.Message, r.Attachment, ok = m.Split(payload); !ok || m.CompressType != 0 {
		r.Fail(codeRequest, "bad attachment size or unknown compression")
		return nil
	}
	if r.Service == helloService && r.Method == helloMethod {
		k.t.hello(r)
		return nil
	}
	k.t.start.Serve(r)
	return nil
}

// reply sends an answer.
func (k *conn) reply(id int64, code int32, text string, message []byte, attachment [][]byte) {
	k.mu.Lock()
	wake := k.serving >= k.t.o.MaxServing
	k.serving--
	k.mu.Unlock()
	if wake {
		k.cond.Signal()
	}
	msg := [][]byte{message}
	if message == nil {
		msg = nil
	}
	n, a := len(message), size(attachment)
	ok := k.out.add(k.t.o.MaxPendingBytes, func(b []byte) []byte {
		return baidustd.AppendResponse(b, code, text, id, n, a)
	}, msg, attachment)
	if !ok {
		k.close(fmt.Errorf("%w: answers", ErrBacklog)) // its peer does not read
	}
}
