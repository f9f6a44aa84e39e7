package main

import "sync"

// Bounds on what one connection has under way. While they are reached its commands are not read.
const (
	maxUnanswered = 1 << 12 // commands that wait for their answer
	maxUnsent     = 1 << 18 // commands whose answer the client has not taken, the unanswered included
)

// outbox puts the answers of one connection into the order of its commands, however they come in.
//
// Invariants: slots[head:] are the commands that were reserved and not taken, oldest first; each is answered
// once. What is taken is always the oldest and answered.
//
// Ownership: the connection's reader reserves, its writer takes, anybody answers. mu is a leaf lock.
type outbox struct {
	mu         sync.Mutex
	answered   sync.Cond // the writer waits: the oldest command is answered, or there is nothing more to come
	room       sync.Cond // the reader waits: there is room for another command
	slots      []outSlot
	head       int
	first      uint64 // the number of slots[head]
	unanswered int
	finished   bool // nothing more will be reserved
	broken     bool // the client is gone
}

type outSlot struct {
	reply *reply // nil until it is answered
	proto uint8  // in which version of the protocol
}

func newOutbox() *outbox {
	o := &outbox{}
	o.answered.L, o.room.L = &o.mu, &o.mu
	return o
}

// reserve makes a place for the next command's answer. It waits for room; ok is false if the client is gone.
func (o *outbox) reserve(proto int) (number uint64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.broken && (o.unanswered >= maxUnanswered || len(o.slots)-o.head >= maxUnsent) {
		o.room.Wait()
	}
	if o.broken {
		return 0, false
	}
	if o.head > len(o.slots)/2 { // costs nothing per command, on average
		n := copy(o.slots, o.slots[o.head:])
		clear(o.slots[n:])
		o.slots, o.head = o.slots[:n], 0
	}
	number = o.first + uint64(len(o.slots)-o.head)
	o.slots = append(o.slots, outSlot{proto: uint8(proto)})
	o.unanswered++
	return number, true
}

// answer gives a command its answer.
func (o *outbox) answer(number uint64, r *reply) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken {
		return
	}
	o.slots[o.head+int(number-o.first)].reply = r
	if number == o.first {
		o.answered.Signal()
	}
	if o.unanswered == maxUnanswered {
		o.room.Signal()
	}
	o.unanswered--
}

// take waits for answers and returns those whose turn it is. ok is false when no more will come.
func (o *outbox) take(dst []outSlot) (slots []outSlot, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		switch {
		case o.broken:
			return nil, false
		case o.head == len(o.slots):
			if o.finished {
				return nil, false
			}
		case o.slots[o.head].reply != nil:
			full := len(o.slots)-o.head >= maxUnsent
			for o.head < len(o.slots) && o.slots[o.head].reply != nil {
				dst = append(dst, o.slots[o.head])
				o.slots[o.head] = outSlot{}
				o.head++
				o.first++
			}
			if full {
				o.room.Signal()
			}
			return dst, true
		}
		o.answered.Wait()
	}
}

// finish says that no command follows: the writer ends when all are answered.
func (o *outbox) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.finished = true
	o.answered.Signal()
}

// abandon says that the client is gone: nobody waits any more, and answers are dropped.
func (o *outbox) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.broken = true
	o.slots = nil
	o.answered.Signal()
	o.room.Signal()
}
