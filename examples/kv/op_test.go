package main

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func bytesOf(texts ...string) [][]byte {
	list := make([][]byte, 0, len(texts))
	for _, s := range texts {
		list = append(list, []byte(s))
	}
	return list
}

func TestOpsSurviveTheLog(t *testing.T) {
	for _, want := range []op{
		{code: opSet, flags: setNX | setGET, args: bytesOf("key", "value")},
		{code: opSet, args: bytesOf("", "")},
		{code: opDel, args: bytesOf("a", "b", "c")},
		{code: opIncr, delta: math.MinInt64, args: bytesOf("n")},
		{code: opAppend, args: bytesOf("a", string(make([]byte, 1000)))},
		{code: opMSet, args: bytesOf("a", "1", "b", "2")},
		{code: opCAS, args: bytesOf("a", "1", "2")},
		{code: opFlush},
		{code: opAnnounce, args: bytesOf("h:1", "h:2")},
	} {
		b := want.append(nil)
		var got op
		require.NoError(t, got.decode(b))
		assert.Equal(t, want.code, got.code)
		assert.Equal(t, want.flags, got.flags)
		assert.Equal(t, want.delta, got.delta)
		assert.Equal(t, len(want.args), len(got.args))
		for i := range want.args {
			assert.Equal(t, string(want.args[i]), string(got.args[i]))
		}
		for n := range b { // no prefix is the same operation
			var cut op
			if cut.decode(b[:n]) == nil {
				assert.NotEqual(t, b, cut.append(nil))
			}
		}
	}
}

func TestOpsThatMakeNoSenseAreRefused(t *testing.T) {
	for _, b := range [][]byte{
		{}, {0}, {99}, {byte(opSet)}, {byte(opSet), 0xf0, 1, 'a', 1, 'b'}, {byte(opSet), 0, 1, 'a'}, {byte(opDel)},
		{byte(opIncr), 0xff}, {byte(opMSet), 1, 'a', 1, 'b', 1, 'c'}, {byte(opDel), 5, 'a'},
		{byte(opDel), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01}, {byte(opFlush), 0},
	} {
		var o op
		assert.Error(t, o.decode(b), "%v", b)
	}
}

func FuzzOpDecode(f *testing.F) {
	f.Add([]byte{byte(opSet), 0, 1, 'a', 1, 'b'})
	f.Add([]byte{byte(opIncr), 2, 1, 'a'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var o op
		if o.decode(b) != nil {
			return
		}
		var again op
		require.NoError(t, again.decode(o.append(nil)))
		require.Equal(t, o.code, again.code)
		require.Equal(t, len(o.args), len(again.args))
	})
}
