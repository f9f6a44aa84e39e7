package progress

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

var start = time.Unix(1000, 0)

// look is one look at a follower, so many milliseconds after the watch began.
type look struct {
	at            int
	state         State
	match, last   int64
	applied       int64
	silent, unfit bool // it has not answered; it could not do a voter's work
	want          Verdict
}

func TestCatchup(t *testing.T) {
	const r = Replicate
	for _, test := range []struct {
		name  string
		looks []look // with a margin of 10 and a timeout of 100 ms
	}{
		{"near enough at once", []look{{at: 0, state: r, match: 90, last: 100, want: CaughtUp}}},
		{"one entry too far", []look{{at: 0, state: r, match: 89, last: 100, want: Lagging}}},
		{"an empty log", []look{{at: 0, state: r, match: 0, last: 0, want: CaughtUp}}},
		{"near, but the logs have not met", []look{{at: 0, state: Probe, match: 95, last: 100, want: Lagging}, {at: 100, state: Probe, match: 95, last: 100, want: Stalled}}},
		{"near, but of an earlier life", []look{ // M22: it may be dead by now
			{at: 0, state: r, match: 100, last: 100, silent: true, want: Lagging},
			{at: 99, state: r, match: 100, last: 100, silent: true, want: Lagging},
			{at: 100, state: r, match: 100, last: 100, silent: true, want: Stalled},
		}},
		{"near, but not fit to vote", []look{{at: 0, state: r, match: 100, last: 100, unfit: true, want: Lagging}, {at: 90, state: r, match: 100, last: 100, want: CaughtUp}}},
		{"it gets on slowly", []look{ // H-07: each step is in time, the whole takes long
			{at: 0, state: r, match: 0, last: 100, want: Lagging},
			{at: 90, state: r, match: 1, last: 100, want: Lagging},
			{at: 180, state: r, match: 2, last: 100, want: Lagging},
			{at: 270, state: r, match: 3, last: 100, want: Lagging},
			{at: 369, state: r, match: 3, last: 100, want: Lagging},
			{at: 370, state: r, match: 3, last: 100, want: Stalled},
		}},
		{"its state machine gets on", []look{
			{at: 0, state: r, match: 100, last: 100, unfit: true, want: Lagging},
			{at: 90, state: r, match: 100, last: 100, applied: 1, unfit: true, want: Lagging},
			{at: 180, state: r, match: 100, last: 100, applied: 2, unfit: true, want: Lagging},
			{at: 280, state: r, match: 100, last: 100, applied: 2, unfit: true, want: Stalled},
		}},
		{"progress in the last moment counts", []look{
			{at: 0, state: r, match: 5, last: 100, want: Lagging},
			{at: 150, state: r, match: 6, last: 100, want: Lagging},
			{at: 249, state: r, match: 6, last: 100, want: Lagging},
			{at: 250, state: r, match: 6, last: 100, want: Stalled},
		}},
		{"the log runs away", []look{
			{at: 0, state: r, match: 0, last: 100, want: Lagging},
			{at: 90, state: r, match: 100, last: 200, want: Lagging},
			{at: 180, state: r, match: 200, last: 210, want: CaughtUp},
		}},
		{"that the logs meet is progress", []look{
			{at: 0, state: Probe, last: 100, want: Lagging},
			{at: 90, state: r, last: 100, want: Lagging},
			{at: 189, state: r, last: 100, want: Lagging},
			{at: 190, state: r, last: 100, want: Stalled},
		}},
		{"to lose entries and store them again is none", []look{
			{at: 0, state: r, match: 50, last: 100, want: Lagging},
			{at: 50, state: r, match: 10, last: 100, want: Lagging},
			{at: 99, state: r, match: 50, last: 100, want: Lagging},
			{at: 100, state: r, match: 50, last: 100, want: Stalled},
		}},
		{"never reached", []look{{at: 99, last: 1, silent: true, want: Lagging}, {at: 5000, last: 1, silent: true, want: Stalled}}},
	} {
		c := NewCatchup(10, 100*time.Millisecond, start)
		for i, l := range test.looks {
			p := Progress{State: l.state, Match: l.match, Next: l.match + 1}
			now := start.Add(time.Duration(l.at) * time.Millisecond)
			got := c.Judge(now, &p, l.last, l.applied, !l.silent, !l.unfit)
			assert.Equal(t, l.want, got, "%s, look %d", test.name, i)
			if got == Lagging {
				assert.True(t, c.Deadline().After(now), "%s, look %d: a deadline in the past would wake its owner for nothing", test.name, i)
			}
		}
	}
}

// A follower that has lost what it had gets on again as it stores that anew.
func TestCatchupStartsAgainAfterALoss(t *testing.T) {
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	c := NewCatchup(10, 100*time.Millisecond, start)
	judge := func(ms int, match int64) Verdict {
		p := Progress{State: Replicate, Match: match, Next: match + 1}
		return c.Judge(at(ms), &p, 1000, 0, true, true)
	}
	assert.Equal(t, Lagging, judge(0, 500))
	c.Regressed()
	assert.Equal(t, Lagging, judge(90, 1))
	assert.Equal(t, Lagging, judge(180, 2))
	assert.Equal(t, Lagging, judge(279, 2))
	assert.Equal(t, Stalled, judge(280, 2))
}

// While a snapshot is copied its bytes are what counts, and while it is loaded, that the follower answers.
func TestCatchupBySnapshot(t *testing.T) {
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	c := NewCatchup(10, 100*time.Millisecond, start)
	judge := func(ms int) Verdict {
		p := Progress{State: Snapshot, Next: 1}
		return c.Judge(at(ms), &p, 1000, 0, true, true)
	}
	for ms := 90; ms <= 360; ms += 90 {
		c.Received(at(ms), int64(ms))
		assert.Equal(t, Lagging, judge(ms))
	}
	c.Received(at(400), 360)
	assert.Equal(t, Lagging, judge(459))
	assert.Equal(t, Stalled, judge(460), "no byte since 360")
	c.Works(at(460))
	assert.Equal(t, Lagging, judge(559))
	c.Received(at(559), 10)
	assert.Equal(t, Stalled, judge(560), "another copy has to get further than the one before")
	c.Regressed()
	c.Received(at(560), 10)
	assert.Equal(t, Lagging, judge(659), "a follower that has lost all starts from nothing")
}

func TestRate(t *testing.T) {
	type sample struct {
		at    int // milliseconds
		value int64
		want  float64
	}
	for _, test := range []struct {
		name    string
		samples []sample
	}{
		{"nothing is known at first", []sample{{0, 1000, 0}}},
		{"too soon to say", []sample{{0, 0, 0}, {99, 50, 0}, {100, 50, 500}}},
		{"steady", []sample{{0, 0, 0}, {100, 10, 100}, {200, 20, 100}, {300, 30, 100}}},
		{"averaged with what was before", []sample{{0, 0, 0}, {100, 10, 100}, {200, 40, 200}, {300, 40, 100}}},
		{"it fades when nothing comes", []sample{{0, 0, 0}, {100, 64, 640}, {200, 64, 320}, {300, 64, 160}, {400, 64, 80}}},
		{"a pause makes what was before worthless", []sample{{0, 0, 0}, {100, 100, 1000}, {1100, 101, 1}}},
		{"in between it stays", []sample{{0, 0, 0}, {100, 10, 100}, {150, 1000, 100}}},
		{"it starts over when the number falls", []sample{{0, 500, 0}, {100, 600, 1000}, {150, 10, 0}, {250, 20, 100}}},
	} {
		var r Rate
		for i, s := range test.samples {
			got := r.Observe(start.Add(time.Duration(s.at)*time.Millisecond), s.value)
			assert.InDelta(t, s.want, got, 1e-9, "%s, sample %d", test.name, i)
		}
	}
}

func TestStoredUpToLeavesAloneWhatIsOnTheWay(t *testing.T) {
	p := New(10)
	p.Matched(10)
	p.Sent(12, 30)
	p.StoredUpTo(8)
	assert.EqualValues(t, 8, p.Match)
	assert.EqualValues(t, 13, p.Next)
	requests, bytes := p.Inflight()
	assert.Equal(t, 1, requests)
	assert.Equal(t, 30, bytes)
	p.StoredUpTo(3)
	assert.EqualValues(t, 8, p.Match, "old news")
	p.StoredUpTo(20)
	assert.EqualValues(t, 21, p.Next)
}
