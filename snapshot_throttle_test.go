package graft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// Over any time not more is granted than the rate says and one cycle's worth, and not much less; what is given back is
// granted again. A new rate holds at once.
func TestThrottle(t *testing.T) {
	now := time.Unix(1000, 0)
	var th throttle
	granted, again := th.take(now, 1<<30)
	assert.EqualValues(t, 1<<30, granted, "without a rate there is no bound")
	assert.True(t, again.IsZero())
	for _, rate := range []int64{1 << 20, 100 << 20, 50_000} {
		th.set(rate, 1)
		now = now.Add(time.Second)
		var sum int64
		for began := now; now.Sub(began) < 10*time.Second; {
			n, again := th.take(now, 128<<10)
			sum += n
			switch {
			case n == 128<<10:
				assert.True(t, again.IsZero())
				now = now.Add(time.Millisecond)
			default:
				assert.True(t, again.After(now), "whoever gets less knows when to ask again")
				now = again
			}
		}
		assert.LessOrEqual(t, sum, rate*10+rate/10+1, "rate %d", rate)
		assert.GreaterOrEqual(t, sum, min(rate*8, 10_000*128<<10*8/10), "rate %d", rate)
	}
	th.set(1000, 1)
	now = now.Add(time.Second)
	n, _ := th.take(now, 1000)
	assert.EqualValues(t, 100, n)
	th.give(40)
	n, _ = th.take(now, 1000)
	assert.EqualValues(t, 40, n)
}

func TestThrottleHasPlaces(t *testing.T) {
	var th throttle
	th.set(0, 2)
	assert.True(t, th.enter())
	assert.True(t, th.enter())
	assert.False(t, th.enter())
	th.leave()
	assert.True(t, th.enter())
	th.set(0, 1)
	th.leave()
	assert.False(t, th.enter(), "one too many goes on, and no other begins")
	th.leave()
	assert.True(t, th.enter())
}
