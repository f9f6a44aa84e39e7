package progress

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// R15: each of the two bounds of a window holds by itself, to the request and to the byte.
func TestEachBoundOfTheWindowHoldsByItself(t *testing.T) {
	for _, test := range []struct {
		name   string
		window Window
		sizes  []int // of requests, after which there is room for no more
	}{
		{"one request", Window{Requests: 1, Bytes: 1 << 30}, []int{0}},
		{"three requests", Window{Requests: 3, Bytes: 1 << 30}, []int{10, 0, 10}},
		{"bytes", Window{Requests: 1 << 30, Bytes: 100}, []int{50, 49, 1}},
		{"one request that is larger than all", Window{Requests: 1 << 30, Bytes: 100}, []int{1000}},
	} {
		p := New(0)
		p.Matched(0)
		for i, size := range test.sizes {
			require.True(t, p.Room(test.window), "%s: request %d", test.name, i)
			p.Sent(p.Next, size)
		}
		assert.False(t, p.Room(test.window), test.name)
		p.Stored(1)
		assert.True(t, p.Room(test.window) || len(test.sizes) > 1, "%s: the first one is answered", test.name)
		p.Stored(p.Next - 1)
		assert.True(t, p.Room(test.window), "%s: all are answered", test.name)
	}
}

// R14: nothing is sent again that is known to be stored: not behind a probe of an earlier place either, when the follower has said
// in between what it stores.
func TestAProbeOfAnEarlierPlaceGoesOnBehindMatch(t *testing.T) {
	p := New(100)
	p.Sent(100, 0)
	p.Refused(100, 41)
	p.Sent(40, 0) // a probe of 40
	p.StoredUpTo(70)
	p.Matched(40)
	assert.EqualValues(t, 70, p.Match)
	assert.EqualValues(t, 71, p.Next)
}

// R8, D14: how far logs were found to be the same is forgotten with a refusal, and with the follower's disk. What is stored there
// afterwards does not bring it back: after a lost request it goes on behind that.
func TestWhatWasFoundEqualDoesNotOutliveARefusal(t *testing.T) {
	for name, forget := range map[string]func(p *Progress){
		"refused":       func(p *Progress) { p.Refused(500, 301) },
		"lost its disk": func(p *Progress) { p.Regressed(300) },
	} {
		p := New(500)
		p.Sent(500, 0)
		p.Matched(500)
		forget(&p)
		assert.EqualValues(t, 301, p.Next, name)
		p.Stored(310) // of what was sent earlier, or now
		p.Sent(320, 10)
		p.Failed()
		assert.EqualValues(t, 311, p.Next, name)
	}
}
