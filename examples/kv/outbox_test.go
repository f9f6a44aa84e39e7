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
			number, _ := o.reserve(2)
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
				if _, ok := o.reserve(2); !ok {
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
		require.True(t, s.beginWrite())
		require.True(t, s.beginWrite())
		read := false
		s.beginRead()
		s.confirm(func() { read = true; s.endRead() })
		assert.False(t, read, "before the writes are settled")
		s.endWrite()
		assert.False(t, read, "before both are")
		s.endWrite()
		assert.True(t, read)

		s.beginRead()
		wrote := false
		go func() { wrote = s.beginWrite() }()
		synctest.Wait()
		assert.False(t, wrote, "before the read is carried out")
		s.confirm(s.endRead)
		synctest.Wait()
		assert.True(t, wrote)

		s.endWrite()
		s.beginRead()
		go func() { wrote = s.beginWrite() }()
		synctest.Wait()
		s.close()
		synctest.Wait()
		assert.False(t, wrote, "the client is gone")
	})
}
