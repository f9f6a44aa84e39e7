package sim

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
)

// stormy is a group of three with loss, delay, duplication and crashes, whose members change.
func stormy(seed uint64) Options {
	o := Quiet(seed, 3)
	o.Spares, o.Members = 2, Membership{Change: 3 * time.Second, Transfer: 7 * time.Second, Retire: 5 * time.Second, Storm: 0.2, Hit: 0.3, Learners: 0.3}
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

// hashed are the runs that must be the same everywhere.
func hashed() (runs []Options) {
	for seed := uint64(1); seed <= 20; seed++ {
		o := stormy(seed)
		if seed%2 == 0 {
			o = Draw(seed)
		}
		o.Faulty = min(o.Faulty, 12*time.Second)
		runs = append(runs, o)
	}
	return runs
}

// hash stands for everything that happened in a run.
func (r Result) hash() string {
	return fmt.Sprintf("seed %d: trace %016x, events %016x, %d steps, counters %016x", r.Options.Seed, r.Trace, r.Events, r.Steps, nameSum(r.Count.String()))
}

// TestTraceHashes runs 20 seeds, and again in other processes, with one processor and with two: everything that
// happens is the same. It prints the hashes, so that those of other builds and machines can be compared:
//
//	go test ./internal/sim -run TestTraceHashes -v | grep trace > plain
//	go test -race ./internal/sim -run TestTraceHashes -sim.hashes -v | grep trace > race
//	diff plain race
func TestTraceHashes(t *testing.T) {
	runs := hashed()
	if !*hashes && (testing.Short() || raceEnabled) {
		runs = runs[:3]
	}
	var here []string
	for _, o := range runs {
		r := Run(o)
		if r.Err != nil {
			t.Fatal(r.Err)
		}
		here = append(here, r.hash())
	}
	t.Log("\n" + strings.Join(here, "\n"))
	const child = "GRAFT_SIM_CHILD"
	if os.Getenv(child) != "" || testing.Short() || raceEnabled {
		return
	}
	for processors := 1; processors <= 2; processors++ {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(self, "-test.run=^TestTraceHashes$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1", fmt.Sprint("GOMAXPROCS=", processors))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		there := regexp.MustCompile("seed .*: trace .*").FindAllString(string(out), -1)
		for i, h := range here {
			if i >= len(there) || there[i] != h {
				t.Errorf("with GOMAXPROCS=%d another process has %q, this one %q", processors, there[i:min(i+1, len(there))], h)
			}
		}
	}
}

// TestDeterminism runs seeds twice in one process, with one processor and with all, and compares everything
// that happened.
func TestDeterminism(t *testing.T) {
	most := 8
	if testing.Short() || raceEnabled {
		most = 2
	}
	for _, o := range hashed()[:most] {
		first := Run(o)
		if first.Err != nil {
			t.Fatal(first.Err)
		}
		before := runtime.GOMAXPROCS(1)
		second := Run(o)
		runtime.GOMAXPROCS(before)
		if second.hash() != first.hash() {
			t.Errorf("runs differ: %s and %s", first.hash(), second.hash())
		}
		c := first.Count
		if o.Faults.PowerCut > 0 && o.Net.Loss > 0 && o.Net.Dup > 0 && (c.Lost == 0 || c.Duplicated == 0 || c.PowerCuts == 0 || c.Leaderships < 2) {
			t.Errorf("seed %d was too quiet: %v", o.Seed, &c)
		}
	}
	if a, b := Run(stormy(1)), Run(stormy(2)); a.Trace == b.Trace {
		t.Errorf("two seeds have one trace, %016x", a.Trace)
	}
}
