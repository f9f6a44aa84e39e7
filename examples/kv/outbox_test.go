package main

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Answers come in any order, from several goroutines, and leave in the order of their commands.
func TestOutboxKeepsTheOrder(t *testing.T) {
	const n = 20_000
	o := newOutbox()
	work := make(chan uint64, 512)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var held []uint64
			for number := range work {
				held = append(held, number)
				if len(held) < 16 {
					continue
				}
				rand.Shuffle(len(held), func(i, j int) { held[i], held[j] = held[j], held[i] })
				for _, h := range held {
					o.answer(h, &reply{n: int64(h)})
				}
				held = held[:0]
			}
			for _, h := range held {
				o.answer(h, &reply{n: int64(h)})
			}
		})
	}
	go func() {
		for range n {
			number, _ := o.reserve(2, 1)
			work <- number
		}
		close(work)
		o.finish()
	}()
	next := int64(0)
	for {
		slots, ok := o.take(nil)
		if !ok {
			break
		}
		for _, s := range slots {
			require.Equal(t, next, s.reply.n)
			next++
		}
	}
	wg.Wait()
	assert.EqualValues(t, n, next)
}

func TestOutboxStopsReadingWhenTooMuchIsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		var reserved atomic.Int64
		go func() {
			for range maxUnanswered + 5 {
				if _, ok := o.reserve(2, 1); !ok {
					return
				}
				reserved.Add(1)
			}
		}()
		synctest.Wait()
		assert.EqualValues(t, maxUnanswered, reserved.Load())
		o.answer(0, replyOK)
		synctest.Wait()
		assert.EqualValues(t, maxUnanswered+1, reserved.Load())
		o.abandon()
		synctest.Wait()
		o.answer(1, replyOK) // too late, and harmless
		_, ok := o.take(nil)
		assert.False(t, ok)
	})
}

func TestReadsWaitForEarlierWritesAndHoldUpLaterOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSequencer()
		var mu sync.Mutex
		var carriedOut []uint64
		done, goOn := make(chan struct{}), make(chan struct{})
		go func() { // the querier
			defer close(done)
			for reads, ok := s.next(nil); ok; reads, ok = s.next(nil) {
				<-goOn
				mu.Lock()
				for _, r := range reads {
					carriedOut = append(carriedOut, r.number)
				}
				mu.Unlock()
			}
		}()
		were := func(want ...uint64) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			assert.Equal(t, want, carriedOut)
		}
		var wrote atomic.Int64
		write := func() {
			go func() {
				if s.beginWrite() {
					wrote.Add(1)
				}
			}()
			synctest.Wait()
		}
		require.True(t, s.beginWrite())
		require.True(t, s.beginWrite())
		reads := []*read{{number: 1}, {number: 2}, {number: 3}}
		for _, r := range reads {
			s.beginRead(r)
		}
		s.confirm(reads[1], nil)
		s.confirm(reads[0], nil)
		close(goOn)
		were()
		s.endWrite()
		were() // not before both writes are settled
		s.endWrite()
		were(1, 2)
		write()
		assert.Zero(t, wrote.Load(), "before all reads are carried out")
		goOn = make(chan struct{})
		s.confirm(reads[2], nil)
		synctest.Wait()
		assert.Zero(t, wrote.Load(), "while the last read is carried out")
		close(goOn)
		were(1, 2, 3)
		assert.EqualValues(t, 1, wrote.Load())

		s.endWrite()
		s.beginRead(&read{number: 4})
		write()
		s.close()
		<-done
		synctest.Wait()
		assert.EqualValues(t, 1, wrote.Load(), "the client is gone")
		s.confirm(&read{number: 5}, nil) // too late, and harmless
	})
}
