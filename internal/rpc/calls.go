package rpc

import (
	"math"
	"time"
)

// callTable holds the calls of a peer that wait for an answer. A correlation id names a
// slot and how often the slot was used, as in brpc, so that an answer is found without a
// map and a late one is told from a current one.
//
// Invariants: count is the number of slots with done set; earliest is not after any of
// their deadlines.
//
// Ownership: guarded by the peer's lock.
type callTable struct {
	slots    []callSlot
	free     []uint32
	count    int
	bytes    int           // of the requests
	earliest time.Duration // no call times out before; never if none does
}

type callSlot struct {
	done     func(Reply)
	deadline time.Duration // never if there is none
	bytes    int
	use      uint32
}

// never is a deadline that does not come.
const never time.Duration = math.MaxInt64

// add takes a call in and returns its id.
func (c *callTable) add(done func(Reply), deadline time.Duration, bytes int) (id int64) {
	var at uint32
	if n := len(c.free); n > 0 {
		at, c.free = c.free[n-1], c.free[:n-1]
	} else {
		at = uint32(len(c.slots))
		c.slots = append(c.slots, callSlot{use: 1})
	}
	s := &c.slots[at]
	s.done, s.deadline, s.bytes = done, deadline, bytes
	c.count++
	c.bytes += bytes
	c.earliest = min(c.earliest, deadline)
	return int64(s.use)<<32 | int64(at)
}

// remove ends the call with an id. It returns nil if there is none any more.
func (c *callTable) remove(id int64) func(Reply) {
	at, use := uint32(id), uint32(id>>32)
	if int64(at) >= int64(len(c.slots)) || c.slots[at].use != use || c.slots[at].done == nil {
		return nil
	}
	return c.release(at)
}

func (c *callTable) release(at uint32) func(Reply) {
	s := &c.slots[at]
	done := s.done
	s.done = nil
	if s.use++; s.use > math.MaxInt32 { // ids stay positive
		s.use = 1
	}
	c.count--
	c.bytes -= s.bytes
	c.free = append(c.free, at)
	return done
}

// expire ends the calls whose deadline has passed and appends them to ended.
func (c *callTable) expire(now time.Duration, ended []func(Reply)) []func(Reply) {
	if now < c.earliest {
		return ended
	}
	c.earliest = never
	for at := range c.slots {
		s := &c.slots[at]
		if s.done == nil {
			continue
		}
		if s.deadline <= now {
			ended = append(ended, c.release(uint32(at)))
		} else {
			c.earliest = min(c.earliest, s.deadline)
		}
	}
	return ended
}

// clear ends all calls.
func (c *callTable) clear() (ended []func(Reply)) {
	if c.count > 0 {
		for at := range c.slots {
			if c.slots[at].done != nil {
				ended = append(ended, c.release(uint32(at)))
			}
		}
	}
	c.earliest = never
	return ended
}

func failAll(ended []func(Reply), err error) {
	for _, done := range ended {
		done(Reply{Err: err})
	}
}
