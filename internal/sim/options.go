package sim

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"time"
)

// Options is everything that a run depends on. Draw makes them from a seed.
type Options struct {
	Seed      uint64
	Nodes     int // that begin the group
	Spares    int // machines that can be added
	Members   Membership
	Faulty    time.Duration // the safety phase
	Storm     time.Duration // how long things happen in it, in the mean
	Lull      time.Duration // how long little happens then; 0: there are no lulls
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
	FirstStart, AlwaysJoint                                           bool
	CatchupMargin                                                     int
	CatchupTimeout                                                    time.Duration
	Snap                                                              SnapOptions

	Shake uint64          // other latencies, with everything else the same
	Acts  map[string]bool // only these acts happen; nil: all do
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
	Stuck, Rot, WrongDir            time.Duration
	WipeLearner, CrashLoop          time.Duration
	Jump, SlowLink                  time.Duration
	Overwrite, Comeback, Rivals     time.Duration
	FalseDeath, LoseAck             time.Duration
	RecoveryCut                     float64 // a restart is cut off again
	App                             float64 // a state machine fails at an entry
	Keep                            float64 // unsynced units that survive; negative: drawn at each power cut
}

// SnapOptions says when snapshots are saved. Without Entries there are none.
type SnapOptions struct {
	Entries      int64 // after so many
	Margin, Keep int
	Delay        time.Duration // how long a state machine writes at most
	Size         int           // of a snapshot, at most
	Ask          time.Duration // the mean time between two that are asked for
	Rate         int64         // bytes per second that are sent and received; 0: any
	Places       int           // copies at a time; 0: the default
	Durable      bool          // state machines keep what they have applied themselves
	Keeps        float64       // after such a part of the entries
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
	draw{rand.New(rand.NewPCG(seed, 0x77aa))}.moreFaults(&o.Faults)
	draw{rand.New(rand.NewPCG(seed, 0xba4d))}.bandwidth(&o.Net)
	draw{rand.New(rand.NewPCG(seed, 0x3e3b))}.membership(&o)
	draw{rand.New(rand.NewPCG(seed, 0x5a95))}.snapshots(&o)
	if d.chance(0.1) {
		d.everything(&o)
	}
	if o.Nodes > 3 {
		o.Faulty /= 2
	}
	if d.chance(0.6) {
		o.Storm, o.Lull = d.between(30*time.Second, 3*time.Minute), d.between(3*time.Minute, 30*time.Minute)
		o.Faulty += time.Duration(float64(o.Faulty) * min(float64(o.Lull)/float64(o.Storm), 12))
	}
	return o
}

// membership draws how the group changes; in a part of the runs it does not.
func (d draw) membership(o *Options) {
	o.AlwaysJoint, o.CatchupMargin = d.chance(0.3), pick(d, 0, 0, 1, 5, 50)
	o.CatchupTimeout = pick(d, 0, 0, 200*time.Millisecond, 3*time.Second)
	o.Members.Transfer = d.maybe(0.5, time.Second, time.Minute)
	if d.chance(0.3) {
		return
	}
	o.Spares = pick(d, 1, 1, 2, 2, 3, 4)
	o.Members = Membership{
		Change: d.between(500*time.Millisecond, 30*time.Second), Transfer: o.Members.Transfer,
		Retire: d.between(500*time.Millisecond, 20*time.Second), Storm: pick(d, 0, 0.1, 0.4), Hit: pick(d, 0, 0.2, 0.7),
		Learners: pick(d, 0, 0.3, 0.6), Cancel: pick(d, 0, 0.2), Elsewhere: d.Float64() * 0.2,
	}
	o.Members.Ends = pick(d, 0, 0.2)
	if o.Nodes+o.Spares > 5 {
		o.Faulty /= 2
	}
}

// snapshots draws whether there are snapshots, and how often.
func (d draw) snapshots(o *Options) {
	if d.chance(0.3) {
		return
	}
	o.Snap = SnapOptions{
		Entries: pick(d, int64(3), 10, 30, 100, 1000), Margin: pick(d, -1, -1, -1, 3, 30, 300), Keep: pick(d, 1, 1, 2, 3),
		Delay: d.between(time.Millisecond, 5*time.Second), Size: pick(d, 0, 1<<10, 40<<10, 300<<10),
		Ask: d.maybe(0.3, 2*time.Second, time.Minute), Rate: pick(d, int64(0), 0, 0, 200<<10), Places: pick(d, 0, 0, 1),
	}
	if d.chance(0.3) {
		o.Snap.Durable, o.Snap.Keeps = true, pick(d, 1, 0.3, 0.02)
	}
}

// everything switches on what was not drawn, so that all faults meet.
func (d draw) everything(o *Options) {
	f := reflect.ValueOf(&o.Faults).Elem()
	for i := range f.NumField() {
		if t, ok := f.Field(i).Addr().Interface().(*time.Duration); ok && *t == 0 {
			*t = d.between(10*time.Second, 2*time.Minute)
		}
	}
	o.Faults.RecoveryCut, o.Faults.App, o.Faults.Keep = max(o.Faults.RecoveryCut, 0.1), max(o.Faults.App, 0.0005), -1
	o.Net.Loss, o.Net.Dup, o.Net.Reorder = max(o.Net.Loss, 0.005), max(o.Net.Dup, 0.005), max(o.Net.Reorder, 0.005)
	o.Net.Spike, o.Net.Long = max(o.Net.Spike, 0.002), max(o.Net.Long, time.Second)
	o.Load.Detach, o.Load.Chain, o.Load.EarlyReturn, o.Load.WrongTerm = 0.05, 0.1, 0.1, 0.05
	o.Load.Bursts, o.Load.Large = max(o.Load.Bursts, 0.02), max(o.Load.Large, 0.003)
	o.Load.SlowApp, o.Load.AppDelay = max(o.Load.SlowApp, 0.02), max(o.Load.AppDelay, 100*time.Millisecond)
	o.Spares = max(o.Spares, 2)
	if m := &o.Members; m.Change == 0 {
		*m = Membership{Change: 5 * time.Second, Retire: 8 * time.Second}
	}
	m := &o.Members
	m.Transfer = max(m.Transfer, 10*time.Second)
	m.Ends = max(m.Ends, 0.1)
	m.Storm, m.Hit, m.Learners, m.Cancel, m.Elsewhere = max(m.Storm, 0.1), max(m.Hit, 0.2), max(m.Learners, 0.3), max(m.Cancel, 0.1), max(m.Elsewhere, 0.1)
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

func (d draw) bandwidth(o *NetOptions) {
	if d.chance(0.15) {
		o.Bandwidth = int64(d.betweenF(32<<10, 4<<20))
	}
}

func (d draw) faults() Faults {
	low, high := 3*time.Second, 4*time.Minute
	return Faults{
		Partition: d.maybe(0.5, low, high), SplitOff: d.maybe(0.3, low, high), Cut: d.maybe(0.4, low, high), Reset: d.maybe(0.3, time.Second, high),
		PowerCut: d.maybe(0.5, low, high), Kill: d.maybe(0.4, low, high), CutAtOp: d.maybe(0.4, low, high),
		All: d.maybe(0.2, 20*time.Second, high), Vanish: d.maybe(0.3, low, high), Wipe: d.maybe(0.25, 10*time.Second, high),
		Freeze: d.maybe(0.4, low, high), SlowDisk: d.maybe(0.4, low, high), Rate: d.maybe(0.4, 10*time.Second, high),
		DiskError: d.maybe(0.35, 5*time.Second, high), DiskFull: d.maybe(0.2, 10*time.Second, high),
		Outage: d.between(200*time.Millisecond, 20*time.Second), RecoveryCut: pick(d, 0, 0, 0.1, 0.5),
		App: pick(d, 0, 0, 0, 0, 0.005), Keep: pick(d, -1.0, -1, -1, 0, 0.5, 1),
	}
}

func (d draw) moreFaults(f *Faults) {
	low, high := 3*time.Second, 4*time.Minute
	f.Stuck, f.Rot, f.WrongDir = d.maybe(0.25, 5*time.Second, high), d.maybe(0.3, low, high), d.maybe(0.2, low, high)
	f.WipeLearner, f.CrashLoop = d.maybe(0.3, low, high), d.maybe(0.25, 5*time.Second, high)
	f.Jump, f.SlowLink = d.maybe(0.3, low, high), d.maybe(0.3, low, high)
	f.Overwrite, f.Comeback, f.Rivals = d.maybe(0.3, 5*time.Second, high), d.maybe(0.3, 5*time.Second, high), d.maybe(0.3, low, high)
	f.FalseDeath, f.LoseAck = d.maybe(0.3, low, high), d.maybe(0.8, 5*time.Second, time.Minute)
}

func (d draw) load() LoadOptions {
	o := LoadOptions{
		Writes: d.betweenF(0.1, 10), Reads: d.betweenF(0.1, 5), MaxSize: pick(d, 16, 64, 512),
		Elsewhere: d.Float64() * 0.5, Large: pick(d, 0, 0, 0.01), Chain: pick(d, 0, 0.2), Detach: pick(d, 0, 0, 0.1),
		EarlyReturn: pick(d, 0, 0.2), WrongTerm: pick(d, 0, 0.05), BurstSize: pick(d, 20, 200),
	}
	if d.chance(0.3) {
		o.SlowApp, o.AppDelay = d.betweenF(0.01, 0.3), d.between(time.Millisecond, 5*time.Second)
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

// inflight is how many requests with entries may be under way to one follower.
func (o Options) inflight() int {
	if o.MaxInflightRequests == 0 {
		return 128 // the library's default
	}
	return o.MaxInflightRequests
}

// String is what a failure prints.
func (o Options) String() string {
	type plain Options // without this method
	o.Acts = nil       // they are listed beside it
	return fmt.Sprintf("%+v", plain(o))
}
