package graft

import "time"

// budget is how many bytes may be on the way to a peer. Whatever is sent has to wait behind them, heartbeats too, and those of
// all other groups on the same connection: if they were all that MaxInflightBytes allows for, a leader would be deposed over
// a way that carries less than that in an ElectionTimeout, though everybody gets data as fast as can be.
//
// It begins small, and as long as answers come about as quickly as they ever did, and it is used, it doubles with each round trip, or
// grows by one request once it was too much. If answers are late it is halved. How late is what a request took beyond the
// quickest one: a long way and a slow disk take their time from that one too, so that they cost nothing unless they take more
// than some quarter of an ElectionTimeout for a request. From where they take 3/8 of it the budget stays as it begins.
//
// Invariants: least <= bytes <= most; quickest <= timeout/longest.
//
// Ownership: its replicator's actor.
type budget struct {
	least, most int
	piece       int           // what a request carries
	timeout     time.Duration // the ElectionTimeout

	bytes    int
	doubles  int           // up to here
	quickest time.Duration // answer to a request with entries
	judgedAt time.Time     // when an answer was late: those to what was sent before say no more than that
	lostAt   time.Time     // when a request was lost: nor do others that were sent before
}

const (
	// budgetBegin is how many requests a budget begins with: one is on the way while another is written.
	budgetBegin = 2
	// budgetLeast is what it begins with at least, where requests are small: any way carries that in time.
	budgetLeast = 64 << 10
	// Answers that are late by less than a quickDelay-th of an ElectionTimeout allow for more, by more than a lateDelay-th for less.
	// A delay may double until it shows, and that must be far from an ElectionTimeout.
	quickDelay, lateDelay = 8, 4
	// longest is the part of an ElectionTimeout that a way is taken to be long at most: all else may be what others send over it, and
	// what is late beyond that must be far from an ElectionTimeout, too. lengthens is the part of a delay that is taken for a
	// longer way at a time.
	longest   = 4
	lengthens = 8
)

func newBudget(o *NodeOptions) budget {
	least := min(max(budgetBegin*o.MaxAppendBytes, budgetLeast), o.MaxInflightBytes)
	return budget{
		least: least, most: o.MaxInflightBytes, piece: o.MaxAppendBytes, timeout: o.ElectionTimeout,
		bytes: least, doubles: o.MaxInflightBytes, quickest: o.ElectionTimeout / longest,
	}
}

// answered takes into account that a request with size bytes of entries was answered with success. onTheWay were when it had been
// sent, these included: it says nothing about a budget of which little was used.
func (b *budget) answered(now, sentAt time.Time, size, onTheWay int) {
	took := now.Sub(sentAt)
	b.quickest = min(b.quickest, took)
	late := took - b.quickest
	switch {
	case late < b.timeout/quickDelay:
		if onTheWay >= b.bytes/2 {
			b.grow(size)
		}
	case !sentAt.After(b.judgedAt):
	case b.bytes == b.least:
		b.lengthen(late)
		b.doubles, b.judgedAt = b.least, now
	case late > b.timeout/lateDelay:
		b.bytes = max(b.bytes/2, b.least)
		b.doubles, b.judgedAt = b.bytes, now
	}
}

func (b *budget) grow(size int) {
	if b.bytes >= b.doubles {
		size = int(int64(min(size, b.bytes)) * int64(b.piece) / int64(b.bytes))
	}
	b.bytes = min(b.bytes+size, b.most)
}

// lengthen takes some of a delay that does not go away for the way's having become longer.
func (b *budget) lengthen(late time.Duration) {
	b.quickest = min(b.quickest+late/lengthens, b.timeout/longest)
}

// lost takes into account that a request with entries was not answered. All that are lost with a connection say that once, and to be late
// before they were lost has said some of it.
func (b *budget) lost(now, sentAt time.Time) {
	switch {
	case sentAt.After(b.judgedAt):
		b.doubles = max(min(b.doubles, b.bytes/2), b.least)
	case !sentAt.After(b.lostAt):
		return
	}
	b.bytes, b.judgedAt, b.lostAt = b.least, now, now
}
