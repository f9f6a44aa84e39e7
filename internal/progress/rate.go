package progress

import "time"

// Rate is how fast a number grows, averaged over the last few samples.
type Rate struct {
	value int64
	at    time.Time
	per   float64
}

const (
	rateSample = 100 * time.Millisecond // how far apart samples are at least
	minRate    = 0.1                    // what is less is nothing: an average alone never gets there
)

// Observe takes note of the number at a time and returns its growth per second.
func (r *Rate) Observe(now time.Time, value int64) float64 {
	switch d := now.Sub(r.at); {
	case r.at.IsZero() || value < r.value:
		r.value, r.at, r.per = value, now, 0
	case d >= rateSample:
		latest := float64(value-r.value) / d.Seconds()
		if r.per != 0 && d < 10*rateSample {
			latest = (latest + r.per) / 2
		}
		if latest < minRate {
			latest = 0
		}
		r.value, r.at, r.per = value, now, latest
	}
	return r.per
}
