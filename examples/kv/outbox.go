package main

import "sync"

// Bounds on what one connection has under way. While they are reached its commands are not read.
const (
	maxUnanswered = 1 << 12  // commands that wait for their answer
	maxUnsent     = 1 << 18  // commands whose answer the client has not taken, the unanswered included
	maxKept       = 64 << 20 // bytes of both; a single one may have more
)

// outbox puts the answers of one connection into the order of its commands, however they come in.
//
// Invariants: slots[head:] are the commands that were reserved and not taken, oldest first; each is answered once. What
// is taken is always the oldest and answered. kept is the sum of their sizes, and of those that were taken and are not
// written yet.
//
// Ownership: the connection's reader reserves, its querier is admitted, its writer takes, anybody answers. mu is a leaf
// lock.
type outbox struct {
	mu         sync.Mutex
	answered   sync.Cond // the writer waits: the oldest command is answered, or there is nothing more to come
	room       sync.Cond // the reader waits: there is room for another command
	turn       sync.Cond // the querier waits: there is room for an answer, or it is the oldest
	slots      []outSlot
	head       int
	first      uint64 // the number of slots[head]
	unanswered int
	kept       int
	wanted     int    // what the reader waits to reserve; 0: it does not wait
	held       uint64 // what the querier waits to answer, if holds
	holds      bool
	finished   bool // nothing more will be reserved
	broken     bool // the client is gone
}

type outSlot struct {
	reply *reply // nil until it is answered
	size  int    // bytes that the command keeps, once it is answered its answer
	proto uint8  // in which version of the protocol
}

func newOutbox() *outbox {
	o := &outbox{}
	o.answered.L, o.room.L, o.turn.L = &o.mu, &o.mu, &o.mu
	return o
}

// reserve makes a place for the answer of the next command, which keeps size bytes until then. It waits for room; ok is
// false if the client is gone.
func (o *outbox) reserve(proto, size int) (number uint64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.broken && !o.hasRoom(size) {
		o.wanted = size
		o.room.Wait()
	}
	o.wanted = 0
	if o.broken {
		return 0, false
	}
	if o.head > len(o.slots)/2 { // costs nothing per command, on average
		n := copy(o.slots, o.slots[o.head:])
		clear(o.slots[n:])
		o.slots, o.head = o.slots[:n], 0
	}
	number = o.first + uint64(len(o.slots)-o.head)
	o.slots = append(o.slots, outSlot{size: size, proto: uint8(proto)})
	o.unanswered++
	o.kept += size
	return number, true
}

// hasRoom reports whether there is room for a command. If nothing is under way, there is for any.
func (o *outbox) hasRoom(size int) bool {
	return o.unanswered < maxUnanswered && len(o.slots)-o.head < maxUnsent && (o.kept == 0 || o.kept+size <= maxKept)
}

// admit waits until there is room for an answer whose size nobody knows before. There always is for the oldest
// command's, which all others wait for. ok is false if the client is gone.
func (o *outbox) admit(number uint64) (ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for !o.broken && !o.mayAnswer(number) {
		o.held, o.holds = number, true
		o.turn.Wait()
	}
	o.holds = false
	return !o.broken
}

func (o *outbox) mayAnswer(number uint64) bool { return o.kept <= maxKept || number == o.first }

// answer gives a command its answer.
func (o *outbox) answer(number uint64, r *reply) {
	size := r.size()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.broken {
		return
	}
	slot := &o.slots[o.head+int(number-o.first)]
	o.kept += size - slot.size
	slot.reply, slot.size = r, size
	if number == o.first {
		o.answered.Signal()
	}
	o.unanswered--
	o.wake()
}

// wake lets those go on that have waited for what there is now.
func (o *outbox) wake() {
	if o.wanted > 0 && o.hasRoom(o.wanted) {
		o.room.Signal()
	}
	if o.holds && o.mayAnswer(o.held) {
		o.turn.Signal()
	}
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
			for o.head < len(o.slots) && o.slots[o.head].reply != nil {
				dst = append(dst, o.slots[o.head])
				o.slots[o.head] = outSlot{}
				o.head++
				o.first++
			}
			o.wake()
			return dst, true
		}
		o.answered.Wait()
	}
}

// written says that so many bytes of what was taken are kept no longer.
func (o *outbox) written(size int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept -= size
	o.wake()
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
	o.turn.Signal()
}
