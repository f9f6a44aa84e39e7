package sim

import (
	"fmt"
	"strings"
	"time"
)

// Shrunk is a smaller run that fails in the same way.
type Shrunk struct {
	Result
	Before int // acts of the run that it was made of
	Tries  int // runs it took
}

// shrinker leaves out acts and switches off options as long as the run still fails (delta debugging).
//
// Whatever is left out, latencies fall differently in all that follows, so a bug that needs its moment may hide: each try is made
// with several shakes.
type shrinker struct {
	run   func(Options) Result
	kind  string // the check that fails
	best  Result
	end   time.Time
	tries int
}

// shakes is in how many ways a smaller schedule is tried.
const shakes = 3

// Shrink looks for a smaller run with the failure of r, for about so long.
func Shrink(r Result, budget time.Duration) Shrunk { return shrinkWith(Run, r, budget) }

func shrinkWith(run func(Options) Result, r Result, budget time.Duration) Shrunk {
	s := &shrinker{run: run, kind: kindOf(r.Err), best: r, end: time.Now().Add(budget)}
	before := len(r.Acts)
	o := r.Options
	o.Acts = make(map[string]bool)
	for _, a := range r.Acts {
		o.Acts[a] = true
	}
	if r.Virtual < o.Faulty {
		o.Faulty = r.Virtual + time.Second // what comes later does not matter
	}
	if s.try(o) {
		s.acts()
		s.options()
		s.acts()
	}
	return Shrunk{Result: s.best, Before: before, Tries: s.tries}
}

// kindOf is the name of the check that failed.
func kindOf(err error) string {
	if err == nil {
		return ""
	}
	_, text, _ := strings.Cut(err.Error(), ": ") // behind the seed
	name, _, _ := strings.Cut(text, ":")
	return name
}

// try runs o in some ways and reports whether one fails as it should.
func (s *shrinker) try(o Options) bool {
	for range shakes {
		if time.Now().After(s.end) {
			return false
		}
		s.tries++
		if r := s.run(o); r.Err != nil && kindOf(r.Err) == s.kind {
			if r.Virtual < o.Faulty {
				r.Options.Faulty = min(r.Options.Faulty, r.Virtual+time.Second)
			}
			s.best = r
			return true
		}
		o.Shake++
	}
	return false
}

// acts leaves out acts: halves first, single ones last.
func (s *shrinker) acts() {
	for size := (len(s.best.Acts) + 1) / 2; size > 0; size /= 2 {
		for from := 0; from < len(s.best.Acts); {
			o := s.best.Options
			o.Acts = make(map[string]bool)
			for i, a := range s.best.Acts {
				if i < from || i >= from+size {
					o.Acts[a] = true
				}
			}
			if !s.try(o) {
				from += size
			}
			if time.Now().After(s.end) {
				return
			}
		}
	}
}

// options switches off what is no act.
func (s *shrinker) options() {
	for _, simpler := range []func(o *Options){
		func(o *Options) { o.Net.Loss, o.Net.Dup, o.Net.Reorder, o.Net.Spike = 0, 0, 0, 0 },
		func(o *Options) { o.Net.Loss = 0 },
		func(o *Options) { o.Net.Dup = 0 },
		func(o *Options) { o.Net.Reorder = 0 },
		func(o *Options) { o.Net.Spike = 0 },
		func(o *Options) { o.Faults.RecoveryCut = 0 },
		func(o *Options) { o.Faults.App = 0 },
		func(o *Options) { o.Members.Cancel, o.Members.Storm, o.Members.Hit = 0, 0, 0 },
		func(o *Options) { o.Load.Bursts, o.Load.Chain, o.Load.Large = 0, 0, 0 },
		func(o *Options) { o.Load.SlowApp, o.Load.Detach, o.Load.EarlyReturn, o.Load.WrongTerm = 0, 0, 0, 0 },
		func(o *Options) { o.Load.Reads = 0 },
		func(o *Options) { o.Load.Writes = min(o.Load.Writes, 0.5) },
	} {
		o := s.best.Options
		simpler(&o)
		if o.String() != s.best.Options.String() {
			s.try(o)
		}
	}
}

// String tells what is left.
func (s Shrunk) String() string {
	return fmt.Sprintf("shrunk from %d acts to %d in %d tries:\n%v", s.Before, len(s.Acts), s.Tries, s.Err)
}
