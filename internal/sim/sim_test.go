package sim

import (
	"flag"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	hours   = flag.Float64("sim.hours", 0, "virtual cluster-hours to simulate; 0: a small share")
	oneSeed = flag.Uint64("sim.seed", 0, "replay this seed only")
	seeds   = flag.Uint64("sim.seeds", 0, "run so many seeds, however long they are")
	from    = flag.Uint64("sim.from", 1, "the first seed")
	events  = flag.Bool("sim.events", false, "print all events of -sim.seed")
	first   = flag.Bool("sim.first", false, "stop at the first violation")
)

// loudEnough is how many virtual hours it takes for everything that is counted to happen.
const loudEnough = 6

// share is how many virtual hours a plain go test runs.
func share() float64 {
	switch {
	case *hours > 0:
		return *hours
	case raceEnabled:
		return 0.1
	case testing.Short():
		return 0.5
	}
	return loudEnough
}

func mostFailures() int64 {
	if *first {
		return 1
	}
	return 5
}

// TestSimulation runs seeds until enough virtual time has passed, or -sim.seed alone.
func TestSimulation(t *testing.T) {
	if *oneSeed != 0 {
		replay(t, *oneSeed)
		return
	}
	var (
		next    atomic.Uint64
		virtual atomic.Int64
		failed  atomic.Int64
		mu      sync.Mutex
		sum     Counters
		ran     int
		wg      sync.WaitGroup
	)
	next.Store(*from - 1)
	start := time.Now()
	limit := time.Duration(share() * float64(time.Hour))
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				seed := next.Add(1)
				if *seeds > 0 && seed >= *from+*seeds || *seeds == 0 && time.Duration(virtual.Load()) >= limit || failed.Load() >= mostFailures() {
					return
				}
				r := Run(Draw(seed))
				virtual.Add(int64(r.Virtual))
				mu.Lock()
				ran++
				sum.Add(&r.Count)
				mu.Unlock()
				if r.Err != nil {
					failed.Add(1)
					t.Errorf("%v\nreplay: go test ./internal/sim -run TestSimulation -sim.seed=%d -v", r.Err, seed)
				}
			}
		}()
	}
	wg.Wait()
	took := time.Since(start)
	h := time.Duration(virtual.Load()).Hours()
	t.Logf("%d seeds, %.2f virtual cluster-hours in %v, %.1f per CPU-minute", ran, h, took.Round(time.Millisecond),
		h/took.Minutes()/float64(runtime.GOMAXPROCS(0)))
	t.Log(sum.String())
	if quiet := sum.Zero(); h >= loudEnough && len(quiet) > 0 {
		t.Errorf("the runs were too quiet: %v never happened", quiet)
	}
}

func replay(t *testing.T, seed uint64) {
	o := Draw(seed)
	c := New(o)
	if *events {
		c.hist.sink = func(s string) { fmt.Println(s) }
	}
	r := c.play()
	t.Logf("seed %d: %v virtual, %d steps, trace %016x, events %016x\n%v\n%s", seed, r.Virtual, r.Steps, r.Trace, r.Events, o, r.Count.String())
	if r.Err != nil {
		t.Error(r.Err)
	}
}
