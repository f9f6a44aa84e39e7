package sim

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	hours   = flag.Float64("sim.hours", 0, "virtual cluster-hours to simulate; 0: a small share")
	oneSeed = flag.Uint64("sim.seed", 0, "replay this seed only")
	seeds   = flag.Uint64("sim.seeds", 0, "run so many seeds, however long they are")
	from    = flag.Uint64("sim.from", 0, "the first seed; 0: one that was hardly ever run")
	events  = flag.Bool("sim.events", false, "print all events of -sim.seed")
	shrink  = flag.Duration("sim.shrink", 15*time.Second, "for how long to look for a smaller run that fails like one that failed; 0, and with -sim.first: do not")
	given   = flag.String("sim.options", "", "run these options, as a failure prints them")
	hashes  = flag.Bool("sim.hashes", false, "print all trace hashes, with the race detector too")
	first   = flag.Bool("sim.first", false, "stop at the first violation")
)

// loudEnough is how many virtual hours it mostly takes for everything that is counted to happen. Faults are drawn per
// seed, so a few seeds may lack one: up to tooQuiet times as many hours are run until nothing is lacking.
const (
	loudEnough = 12
	tooQuiet   = 6
)

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
	switch {
	case *given != "":
		var o Options
		if err := json.Unmarshal([]byte(*given), &o); err != nil {
			t.Fatal(err)
		}
		replay(t, o)
		return
	case *oneSeed != 0:
		replay(t, Draw(*oneSeed))
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
	begin := *from
	if begin == 0 {
		begin = 1 + rand.Uint64N(1<<32)
	}
	t.Logf("seeds from %d", begin)
	next.Store(begin - 1)
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // logs are read again at every restart, and soon forgotten
	start, cpu := time.Now(), cpuTime()
	limit := time.Duration(share() * float64(time.Hour))
	enough := func() bool {
		ran := time.Duration(virtual.Load())
		if ran < limit || limit < loudEnough*time.Hour || ran >= tooQuiet*limit {
			return ran >= limit
		}
		mu.Lock()
		defer mu.Unlock()
		return len(sum.Zero()) == 0
	}
	for range runtime.GOMAXPROCS(0) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				seed := next.Add(1)
				if *seeds > 0 && seed >= begin+*seeds || *seeds == 0 && enough() || failed.Load() >= mostFailures() {
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
					report(t, r)
				}
			}
		}()
	}
	wg.Wait()
	took, used := time.Since(start), cpuTime()-cpu
	h := time.Duration(virtual.Load()).Hours()
	t.Logf("%d seeds, %.2f virtual cluster-hours in %v, CPU %v: %.1f per CPU-minute", ran, h, took.Round(time.Millisecond),
		used.Round(time.Millisecond), h/used.Minutes())
	t.Log(sum.String())
	if quiet := sum.Zero(); h >= loudEnough && len(quiet) > 0 {
		t.Errorf("the runs were too quiet: %v never happened", quiet)
	}
}

// report tells of a failure, and of a smaller one like it if that is found soon.
func report(t *testing.T, r Result) {
	t.Errorf("%v\nreplay: go test ./internal/sim -run TestSimulation -sim.seed=%d -v", r.Err, r.Options.Seed)
	if *shrink <= 0 || *first {
		return
	}
	s := Shrink(r, *shrink)
	b, err := json.Marshal(s.Options)
	if err != nil {
		t.Error(err)
	}
	t.Logf("%v\nreplay: go test ./internal/sim -run TestSimulation -v -sim.shrink=0 -sim.options='%s'", s, b)
}

func replay(t *testing.T, o Options) {
	c := New(o)
	if *events {
		c.hist.sink = func(s string) { fmt.Println(s) }
	}
	r := c.play()
	t.Logf("seed %d: %v virtual, %d steps, trace %016x, events %016x\n%v\n%s", o.Seed, r.Virtual, r.Steps, r.Trace, r.Events, o, r.Count.String())
	if r.Err != nil {
		report(t, r)
	}
}

// TestShrink has a check fail that does not hold: that no machine is ever killed. One act is enough for that.
func TestShrink(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("many runs")
	}
	o := stormy(3)
	o.Faulty, o.Members = 25*time.Second, Membership{}
	tries, most := 0, 200 // it takes some 30
	failing := func(o Options) Result {
		if tries++; tries > most {
			return Result{}
		}
		r := Run(o)
		if r.Err == nil && r.Count.Kills > 0 {
			r.Err = errors.New("seed: kills: one happened")
		}
		return r
	}
	r := failing(o)
	if len(r.Acts) < 5 {
		t.Fatalf("%d acts, want more to choose from", len(r.Acts))
	}
	s := shrinkWith(failing, r, time.Hour)
	if len(s.Acts) > 1 {
		t.Errorf("%d of %d acts are left after %d tries, want 1: %v", len(s.Acts), s.Before, s.Tries, s.Acts)
	}
}
