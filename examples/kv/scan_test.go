package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// However many keys and however dear a pattern a client asks for, one SCAN ends after some work; the iteration misses
// nothing.
func TestScanEndsEarly(t *testing.T) {
	g := newTestGroup(t, 1, 1)
	c := dialRaw(t, g.cfgs[g.waitLeader()].redis)
	const n = 2000
	var pairs strings.Builder
	for i := range n {
		fmt.Fprintf(&pairs, " %050d x", i)
	}
	require.Equal(t, "+OK", c.do("mset"+pairs.String()))
	pattern := "*[" + strings.Repeat("b", maxPattern-8) + "]*"
	for _, test := range []struct {
		pattern string
		want    int
	}{{pattern, 0}, {strings.Replace(pattern, "bb", "0b", 1), n}} {
		cursor, scans, found := "0", 0, make(map[string]bool)
		for again := true; again; again = cursor != "0" {
			answer := c.do("scan " + cursor + " count 100000 match " + test.pattern)
			next, keys, ok := strings.Cut(strings.TrimPrefix(answer, "*[$"), ",")
			require.True(t, ok, answer)
			for key := range strings.SplitSeq(strings.Trim(keys, "*[]"), ",") {
				if key != "" {
					found[key] = true
				}
			}
			cursor = next
			scans++
		}
		assert.Len(t, found, test.want)
		assert.Greater(t, scans, 4, "work of %d", n*50*len(test.pattern))
	}
}

// Nothing could be applied while a SCAN matched with the machine's lock held.
func TestScanMatchesWithoutTheLock(t *testing.T) {
	m := newMachine(graft.PeerID{}, zap.NewNop(), nil)
	for i := range 100 {
		m.keys.set([]byte(strconv.Itoa(i)), nil)
	}
	matched := 0
	next, keys, ok := scanKeys(m, 0, 1000, 1, func(string) bool {
		if m.mu.TryLock() {
			m.mu.Unlock()
			matched++
		}
		return matched%2 == 0
	})
	assert.True(t, ok)
	assert.Zero(t, next)
	assert.Equal(t, 100, matched)
	assert.Len(t, keys, 50)
}

func TestScanFindsNoMoreThanAnAnswerMayHave(t *testing.T) {
	m := newMachine(graft.PeerID{}, zap.NewNop(), nil)
	key := bytes.Repeat([]byte("k"), maxKey)
	for i := range 3 * maxReply / maxKey / 2 { // half of it in a bucket of its own
		key[0], key[1] = byte(i), byte(i>>8)
		m.keys.insert(max(0, i-maxReply/maxKey+1), key, nil)
	}
	next, keys, ok := scanKeys(m, 0, scanMax, 0, func(string) bool { return true })
	require.True(t, ok)
	assert.EqualValues(t, 1, next)
	assert.Len(t, keys, maxReply/maxKey)
	next, keys, ok = scanKeys(m, next, scanMax, 0, func(string) bool { return true })
	require.True(t, ok)
	assert.EqualValues(t, 1+scanBytes/maxKey, next, "it ended early")
	assert.Len(t, keys, scanBytes/maxKey)
	m.keys.insert(0, []byte("one more"), nil)
	_, _, ok = scanKeys(m, 0, scanMax, 0, func(string) bool { return true })
	assert.False(t, ok)
}
