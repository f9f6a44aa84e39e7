package main

import (
	"bufio"
	"bytes"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A client that sends and does not take its answers is not read from any more when they have come to so many bytes;
// when it does take them it gets all.
func TestAConnectionKeepsABoundedNumberOfBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 3 * maxKept / 2 >> 20
		client, conn := net.Pipe()
		s := newSession(nil, conn, 1)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.serve()
		}()
		var sent atomic.Int64
		value := strings.Repeat("x", 1<<20)
		go func() {
			cmd := appendTexts(nil, "ECHO", value)
			for range n {
				if _, err := client.Write(cmd); err != nil {
					return
				}
				sent.Add(1)
			}
		}()
		synctest.Wait()
		assert.InDelta(t, maxKept>>20, sent.Load(), 8)

		c := &rawConn{t, client, bufio.NewReaderSize(client, 1<<20)}
		for range n {
			require.True(t, c.recv() == "$"+value)
		}
		client.Close()
		<-ended
	})
}

func TestOutboxCountsBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		var reserved atomic.Int64
		reserve := func(size int) {
			go func() {
				if _, ok := o.reserve(2, size); ok {
					reserved.Add(1)
				}
			}()
			synctest.Wait()
		}
		reserve(2 * maxKept)
		assert.EqualValues(t, 1, reserved.Load(), "one may always go, whatever its size")
		reserve(1)
		assert.EqualValues(t, 1, reserved.Load())
		o.answer(0, replyOK) // which is smaller than the command
		synctest.Wait()
		assert.EqualValues(t, 2, reserved.Load())

		large := bulkReply(make([]byte, maxKept))
		o.answer(1, large)
		reserve(1)
		assert.EqualValues(t, 2, reserved.Load(), "an answer counts until it is written")
		slots, ok := o.take(nil)
		require.True(t, ok)
		synctest.Wait()
		assert.EqualValues(t, 2, reserved.Load(), "to take it is not enough")
		for _, slot := range slots {
			o.written(slot.size)
		}
		synctest.Wait()
		assert.EqualValues(t, 3, reserved.Load())
		o.answer(2, large)
		reserve(1)
		o.abandon()
		synctest.Wait()
		assert.EqualValues(t, 3, reserved.Load(), "the client is gone")
		assert.Zero(t, o.wanted)
	})
}

// How much a query answers nobody knows before: while the client leaves too much, only the one goes on that it gets next.
func TestQueriesWaitForRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		for range 5 {
			_, ok := o.reserve(2, 1)
			require.True(t, ok)
		}
		var admitted atomic.Int64
		admit := func(number uint64) {
			go func() {
				if o.admit(number) {
					admitted.Add(1)
				}
			}()
			synctest.Wait()
		}
		large := bulkReply(make([]byte, maxKept))
		o.answer(4, large) // of a command that is answered at once
		admit(0)
		assert.EqualValues(t, 1, admitted.Load(), "all others wait for the oldest")
		admit(1)
		assert.EqualValues(t, 1, admitted.Load())
		o.answer(0, large)
		synctest.Wait()
		assert.EqualValues(t, 1, admitted.Load())
		slots, _ := o.take(nil)
		assert.Len(t, slots, 1)
		synctest.Wait()
		assert.EqualValues(t, 2, admitted.Load(), "it is the oldest now")
		o.answer(1, replyOK)
		admit(2) // the writer has not taken what is before it
		assert.EqualValues(t, 2, admitted.Load())
		o.abandon()
		synctest.Wait()
		assert.EqualValues(t, 2, admitted.Load(), "the client is gone")
	})
}

// What one command took does not stay with the connection.
func TestArgumentsAreGivenBack(t *testing.T) {
	args := bytes.Split([]byte("set a 1"), []byte(" "))
	again := emptied(args)
	assert.Empty(t, again)
	assert.Equal(t, cap(args), cap(again))
	assert.Equal(t, make([][]byte, cap(args)), args[:cap(args)], "the buffer may go")
	assert.Nil(t, emptied(make([][]byte, maxKeptArgs+1)))
}
