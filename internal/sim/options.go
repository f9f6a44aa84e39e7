package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Options is everything that a run depends on. Draw makes them from a seed.
type Options struct {
	Seed      uint64
	Nodes     int
	Faulty    time.Duration // the safety phase
	Net       NetOptions
	Faults    Faults
	Disk      DiskOptions
	Load      LoadOptions
	Election  time.Duration
	Heartbeat int // heartbeats per election timeout

	SegmentSize  int64
	InFlight     int
	OverlapBytes int
	IdleMark     time.Duration
	MaxBatch     int

	MaxAppendBytes, MaxInflightRequests, MaxInflightBytes, CacheBytes int
	MaxPendingEntries, MaxPendingReads                                int
	FirstStart                                                        bool
}

// Faults says which faults happen: the mean time between two of a kind, 0 for never.
type Faults struct {
	Partition, SplitOff, Cut, Reset time.Duration
	PowerCut, Kill, CutAtOp         time.Duration
	All                             time.Duration // all machines at once
	Vanish, Wipe                    time.Duration
	Freeze, SlowDisk, Rate          time.Duration
	DiskError, DiskFull             time.Duration
	Outage                          time.Duration // how long things stay broken, in the mean
	RecoveryCut                     float64       // a restart is cut off again
	App                             float64       // a state machine fails at an entry
	Keep                            float64       // unsynced units that survive; negative: drawn at each power cut
}

// DiskOptions is how long a write takes to be synced.
type DiskOptions struct {
	Sync, Jitter time.Duration
	Slow         time.Duration // while the disk is slow
	Sectors      bool
	OrderedDirs  bool
}

// LoadOptions is what clients do.
type LoadOptions struct {
	Writes, Reads float64 // per second
	Bursts        float64 // per second
	BurstSize     int
	MaxSize       int     // of a payload
	Large         float64 // part of payloads that are large
	Elsewhere     float64 // part of calls that do not go to a leader
	Chain         float64 // part of writes whose Done proposes another
	Detach        float64
	EarlyReturn   float64 // OnApply calls that leave entries
	SlowApp       float64 // part of the state machine's steps that come late
	AppDelay      time.Duration
	WrongTerm     float64
}

// draw makes drawing options short.
type draw struct{ *rand.Rand }

func (d draw) chance(p float64) bool { return d.Float64() < p }

// between draws on a logarithmic scale.
func (d draw) between(low, high time.Duration) time.Duration {
	l, h := math.Log(float64(low)), math.Log(float64(high))
	return time.Duration(math.Exp(l + d.Float64()*(h-l)))
}

func (d draw) betweenF(low, high float64) float64 {
	return math.Exp(math.Log(low) + d.Float64()*(math.Log(high)-math.Log(low)))
}

// maybe is a time between faults of one kind, or never.
func (d draw) maybe(p float64, low, high time.Duration) time.Duration {
	if !d.chance(p) {
		return 0
	}
	return d.between(low, high)
}

func pick[T any](d draw, values ...T) T { return values[d.IntN(len(values))] }

// Draw returns the options of a seed. Whole classes of faults are missing in most
// runs, so that each gets its turn undisturbed by the others.
func Draw(seed uint64) Options {
	d := draw{rand.New(rand.NewPCG(seed, 0xd6a1))}
	o := Options{
		Seed: seed, Nodes: pick(d, 3, 3, 3, 3, 3, 5, 5, 1, 2, 4, 7), Faulty: d.between(2*time.Minute, 12*time.Minute),
		Election: pick(d, time.Second, time.Second, 500*time.Millisecond, 2*time.Second), Heartbeat: pick(d, 10, 10, 5, 3),
		SegmentSize: pick(d, int64(64<<10), 64<<10, 128<<10, 256<<10), InFlight: pick(d, 1, 2, 3, 3, 4),
		OverlapBytes: pick(d, 0, -1, -1, 4<<10), IdleMark: pick(d, 50*time.Millisecond, 10*time.Millisecond, time.Second),
		MaxBatch: pick(d, 1<<20, 1<<20, 8<<10), MaxAppendBytes: pick(d, 512<<10, 512<<10, 8<<10, 1<<10),
		MaxInflightRequests: pick(d, 128, 128, 8, 2, 1), MaxInflightBytes: pick(d, 16<<20, 16<<20, 64<<10),
		CacheBytes: pick(d, 8<<20, 64<<10, 4<<10), MaxPendingEntries: pick(d, 1<<17, 1<<17, 64),
		MaxPendingReads: pick(d, 1<<17, 16), FirstStart: d.chance(0.2),
	}
	o.Net = d.net()
	o.Faults = d.faults()
	o.Disk = DiskOptions{
		Sync: d.between(50*time.Microsecond, 5*time.Millisecond), Jitter: d.between(50*time.Microsecond, 5*time.Millisecond),
		Slow: d.between(50*time.Millisecond, 5*time.Second), Sectors: d.chance(0.5), OrderedDirs: d.chance(0.5),
	}
	o.Load = d.load()
	if o.Nodes > 3 {
		o.Faulty /= 2
	}
	return o
}

func (d draw) net() NetOptions {
	o := NetOptions{Delay: d.between(20*time.Microsecond, 2*time.Millisecond), Jitter: d.between(20*time.Microsecond, 10*time.Millisecond)}
	if d.chance(0.5) {
		o.Loss = d.betweenF(0.001, 0.2)
	}
	if d.chance(0.4) {
		o.Dup = d.betweenF(0.001, 0.2)
	}
	if d.chance(0.3) {
		o.Reorder = d.betweenF(0.001, 0.3)
	}
	if d.chance(0.4) {
		o.Spike, o.Long = d.betweenF(0.0005, 0.05), d.between(20*time.Millisecond, 10*time.Second)
	}
	return o
}

func (d draw) faults() Faults {
	low, high := 3*time.Second, 4*time.Minute
	return Faults{
		Partition: d.maybe(0.5, low, high), SplitOff: d.maybe(0.3, low, high), Cut: d.maybe(0.4, low, high), Reset: d.maybe(0.3, time.Second, high),
		PowerCut: d.maybe(0.5, low, high), Kill: d.maybe(0.4, low, high), CutAtOp: d.maybe(0.4, low, high),
		All: d.maybe(0.2, 20*time.Second, high), Vanish: d.maybe(0.3, low, high), Wipe: d.maybe(0.25, 10*time.Second, high),
		Freeze: d.maybe(0.4, low, high), SlowDisk: d.maybe(0.4, low, high), Rate: d.maybe(0.4, 10*time.Second, high),
		DiskError: d.maybe(0.2, 10*time.Second, high), DiskFull: d.maybe(0.2, 10*time.Second, high),
		Outage: d.between(200*time.Millisecond, 20*time.Second), RecoveryCut: pick(d, 0, 0, 0.1, 0.5),
		App: pick(d, 0, 0, 0, 0, 0.001), Keep: pick(d, -1.0, -1, -1, 0, 0.5, 1),
	}
}

func (d draw) load() LoadOptions {
	o := LoadOptions{
		Writes: d.betweenF(0.1, 10), Reads: d.betweenF(0.1, 5), MaxSize: pick(d, 16, 64, 512),
		Elsewhere: d.Float64() * 0.5, Large: pick(d, 0, 0, 0.01), Chain: pick(d, 0, 0.2), Detach: pick(d, 0, 0, 0.1),
		EarlyReturn: pick(d, 0, 0.2), WrongTerm: pick(d, 0, 0.05), BurstSize: pick(d, 20, 200),
	}
	if d.chance(0.3) {
		o.SlowApp, o.AppDelay = d.betweenF(0.01, 0.3), d.between(time.Millisecond, time.Second)
	}
	if d.chance(0.5) {
		o.Bursts = d.betweenF(0.005, 0.05)
	}
	return o
}

// Quiet returns options without any fault: a small group, light load.
func Quiet(seed uint64, nodes int) Options {
	return Options{
		Seed: seed, Nodes: nodes, Faulty: time.Minute, Election: time.Second, Heartbeat: 10, SegmentSize: 256 << 10,
		Net:  NetOptions{Delay: 100 * time.Microsecond, Jitter: 100 * time.Microsecond},
		Disk: DiskOptions{Sync: 200 * time.Microsecond, Jitter: 100 * time.Microsecond, Slow: time.Second},
		Load: LoadOptions{Writes: 2, Reads: 1, MaxSize: 64}, Faults: Faults{Keep: -1, Outage: time.Second},
	}
}

// String is what a failure prints.
func (o Options) String() string {
	type plain Options // without this method
	return fmt.Sprintf("%+v", plain(o))
}
