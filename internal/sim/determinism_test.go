package sim

import (
	"runtime"
	"testing"
	"time"
)

// stormy is a group of three with loss, delay, duplication and crashes.
func stormy(seed uint64) Options {
	o := Quiet(seed, 3)
	o.Faulty = 40 * time.Second
	o.Net.Loss, o.Net.Dup, o.Net.Reorder, o.Net.Spike, o.Net.Long = 0.05, 0.05, 0.05, 0.01, 2*time.Second
	o.Faults = Faults{
		PowerCut: 4 * time.Second, Kill: 7 * time.Second, CutAtOp: 8 * time.Second, Partition: 10 * time.Second,
		Freeze: 10 * time.Second, SlowDisk: 10 * time.Second, Rate: 10 * time.Second, DiskError: 15 * time.Second,
		Outage: 2 * time.Second, RecoveryCut: 0.2, Keep: -1,
	}
	o.Load.Writes, o.Load.Bursts, o.Load.BurstSize = 20, 0.2, 50
	return o
}

// TestDeterminism runs seeds twice, with one processor and with all, and compares everything
// that happened.
func TestDeterminism(t *testing.T) {
	most := uint64(8)
	if testing.Short() || raceEnabled {
		most = 2
	}
	for seed := uint64(1); seed <= most; seed++ {
		o := stormy(seed)
		if seed%2 == 0 {
			o = Draw(seed)
			o.Faulty = min(o.Faulty, 2*time.Minute)
		}
		first := Run(o)
		if first.Err != nil {
			t.Fatal(first.Err)
		}
		before := runtime.GOMAXPROCS(1)
		second := Run(o)
		runtime.GOMAXPROCS(before)
		for _, r := range []Result{second, Run(o)} {
			if r.Trace != first.Trace || r.Events != first.Events || r.Steps != first.Steps || r.Count != first.Count {
				t.Errorf("seed %d: runs differ: trace %016x and %016x, events %016x and %016x, %d and %d steps",
					seed, first.Trace, r.Trace, first.Events, r.Events, first.Steps, r.Steps)
			}
		}
		c := first.Count
		if o.Faults.PowerCut > 0 && o.Net.Loss > 0 && o.Net.Dup > 0 && (c.Lost == 0 || c.Duplicated == 0 || c.PowerCuts == 0 || c.Leaderships < 2) {
			t.Errorf("seed %d was too quiet: %v", seed, &c)
		}
	}
	if a, b := Run(stormy(1)), Run(stormy(2)); a.Trace == b.Trace {
		t.Errorf("two seeds have one trace, %016x", a.Trace)
	}
}
