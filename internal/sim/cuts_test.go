package sim

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var cuts = flag.Int("sim.cuts", 0, "how many power cuts to try in each story of TestPowerCutAtEachPoint; 0: a few; -1: all")

// A cutStory leads a group to where a machine is about to do something to its disk that takes many operations. It is told
// again and again, always the same, and each time the machine's power fails at another operation. Then the machine
// starts on what was left, which may be cut off as well; the group must converge, with equal data, and without losing
// what it has acknowledged, while the checker watches.
type cutStory struct {
	name    string
	options func(o *Options)
	begin   func(t *telling) // up to where power may fail, of t.victim
	through func(t *telling) // what is cut
}

// telling is a story that is being told.
type telling struct {
	*Scenario
	victim   int
	before   int64 // power cuts at an operation
	first    int64 // where the victim's log began
	installs int64 // how many were answered
}

// cutOff reports whether power has failed.
func (t *telling) cutOff() bool { return t.Count().CutsAtOp > t.before }

// step waits for something, or until power fails.
func (t *telling) step(what string, cond func() bool) {
	if _, ok := t.Until(20*time.Second, func() bool { return t.cutOff() || cond() }); !ok {
		t.Fail("waited for: %s", what)
	}
}

// writes has a machine that leads get so many values.
func (t *telling) writes(at, n int) {
	for range n {
		t.Write(at)
	}
}

// grow has the others write, and save, until their logs lack what the victim needs next.
func (t *telling) grow() {
	others := t.Others(t.victim)
	lead := t.LeaderAmong(10*time.Second, others...)
	last := t.State(t.victim).Last
	lack := func(i int) bool { return t.State(i).First > last+1 }
	for range 20 {
		t.writes(lead, 20)
		t.Run(200 * time.Millisecond)
		if !slices.ContainsFunc(others, func(i int) bool { return !lack(i) }) {
			return
		}
	}
	t.Fail("machine %d has entries up to %d, and the others still have what follows", t.victim, last)
}

// aFollower picks the machine that is cut.
func (t *telling) aFollower() { t.victim = t.Others(t.Leader())[0] }

// installed reports whether the victim goes on behind a snapshot of another's, and has caught up.
func (t *telling) installed() bool {
	st, l := t.State(t.victim), t.Leader()
	return l >= 0 && st.Installing == 0 && st.First > t.first && t.Count().InstallsAnswered > t.installs && st.Durable >= t.State(l).Commit
}

// isolated cuts the victim off, has the others go on without it, and brings it back.
func (t *telling) isolated() {
	t.Isolate(t.victim)
	t.grow()
	t.first, t.installs = t.State(t.victim).First, t.Count().InstallsAnswered
	t.Mend()
}

func cutStories() []cutStory {
	save := func(o *Options) { o.Snap.Size = 100 << 10 }
	slow := func(o *Options) { o.Snap.Size, o.Snap.Rate = 900<<10, 300<<10 }
	return []cutStory{
		{"a snapshot is saved and the log cut", save, beginSave, throughSave},
		{"a snapshot is installed", save, func(t *telling) { t.aFollower(); t.isolated() }, throughInstall},
		{"a copy is resumed", slow, beginResume, throughResume},
		{"the log begins anew on a full disk", func(o *Options) { o.Snap.Size = 0 }, beginFull, throughFull},
	}
}

// beginSave leads to where the second snapshot is due, so that there is a first one to be deleted.
func beginSave(t *telling) {
	t.aFollower()
	if t.c.o.Seed%2 == 1 {
		t.victim = t.Leader()
	}
	t.writes(t.Leader(), 40)
	t.step("a first cut", func() bool { return t.State(t.victim).First > 1 })
	t.Run(time.Second)
	t.first = t.State(t.victim).First
}

func throughSave(t *telling) {
	if l := t.Leader(); l >= 0 {
		t.writes(l, 40)
	}
	t.step("the log is cut", func() bool { return t.State(t.victim).First > t.first })
	t.Until(500*time.Millisecond, t.cutOff) // what is left of the old one goes
}

func throughInstall(t *telling) {
	t.step("it is installed", t.installed)
	t.Until(500*time.Millisecond, t.cutOff)
}

// beginResume leads to where a part of a snapshot is copied, and its receiver off.
func beginResume(t *telling) {
	t.aFollower()
	t.isolated()
	t.step("a part is copied", func() bool {
		done, total := t.Copied(t.victim)
		return t.State(t.victim).Installing > 0 && done > 0 && done >= min(total/2, 150<<10)
	})
	t.Kill(t.victim)
}

func throughResume(t *telling) {
	t.Restart(t.victim)
	throughInstall(t)
	if !t.cutOff() && t.Count().CopiesResumed == 0 {
		t.Fail("nothing was resumed")
	}
}

// beginFull leads to where a machine's log has no room for anything, not even for what some is kept for, but a snapshot has, and the machine
// needs one. With odd seeds it has led, and holds what was never committed.
func beginFull(t *telling) {
	lead := t.Leader()
	t.aFollower()
	if t.c.o.Seed%2 == 1 {
		t.victim = lead
		t.Isolate(lead)
	}
	t.Fill(t.victim, 0)
	refused, full := t.Refusals(t.victim), t.Count().NoSpace
	for range 100 {
		t.Bulky(lead)
		t.Run(3 * time.Millisecond)
		if t.Refusals(t.victim) > refused || t.Count().NoSpace > full {
			break
		}
	}
	t.isolated()
	for range 200 { // it has to note each term
		t.Fill(t.victim, 0)
		if !t.State(t.victim).Saved {
			break
		}
		t.anotherLeads()
	}
	if t.State(t.victim).Saved {
		t.Fail("there is always room")
	}
	t.Fill(t.victim, 48<<10)
}

// anotherLeads has the leader hand over to another machine, but not to the victim.
func (t *telling) anotherLeads() {
	others := t.Others(t.victim)
	lead := t.LeaderAmong(10*time.Second, others...)
	to := others[(slices.Index(others, lead)+1)%len(others)]
	t.Transfer(lead, to)
	t.Until(200*time.Millisecond, func() bool { return t.Leads(to) && t.Term(t.victim) == t.Term(to) })
	t.Run(50 * time.Millisecond)
}

func throughFull(t *telling) {
	t.step("it is loaded", func() bool {
		st := t.State(t.victim)
		return st.Snapshot >= st.First-1 && st.First > t.first
	})
	refused := t.Refusals(t.victim)
	t.Until(time.Second, t.cutOff)
	if t.cutOff() {
		return
	}
	st := t.State(t.victim)
	if first, last := t.OnDisk(t.victim); t.Refusals(t.victim) == refused || first >= st.First || st.Durable >= st.First && last < st.Durable {
		t.Fail("there was room: the log begins at %d and is durable up to %d, on disk it is [%d, %d]", st.First, st.Durable, first, last)
	}
	t.Empty(t.victim)
	throughInstall(t)
}

// tell tells a story. ops is how many operations of the disk it takes if power does not fail. Once it has, starts are cut off as often as again says.
func (c cutStory) tell(o Options, cut int64, again float64) (ops int64, err error) {
	t := &telling{Scenario: Begin(o)}
	t.c.guard(func() {
		if t.Err() != nil {
			return
		}
		c.begin(t)
		before := t.Ops(t.victim)
		t.before = t.Count().CutsAtOp
		t.CutAtOp(t.victim, cut)
		c.through(t)
		ops = t.Ops(t.victim) - before
		if cut > 0 && !t.cutOff() {
			t.Fail("told anew, the story has less than %d operations", cut)
		}
		t.c.o.Faults.RecoveryCut = again
		t.Run(2 * time.Second) // it comes back, on a full disk or not
		t.Empty(t.victim)
	})
	return ops, t.End()
}

// cutOptions are those of one telling.
func cutOptions(c cutStory, seed uint64, durable bool) Options {
	o := Quiet(seed, 3)
	o.Election, o.Heartbeat, o.SegmentSize = 500*time.Millisecond, 5, 64<<10
	o.Load.Writes, o.Load.Reads = 1, 1
	o.Snap = SnapOptions{Entries: 30, Margin: -1, Keep: 1, Delay: 50 * time.Millisecond, Durable: durable, Keeps: 0.5}
	o.Disk.Sectors, o.Disk.OrderedDirs = seed%4 < 2, seed%3 == 0
	o.Faults.Outage = 200 * time.Millisecond
	c.options(&o)
	return o
}

// Wherever power fails while a node saves a snapshot and cuts its log, or is sent one, or is sent it in two pieces, or has to
// begin its log anew and has no room for that: nothing is lost, and the group goes on.
func TestPowerCutAtEachPoint(t *testing.T) {
	most := *cuts
	switch {
	case most != 0:
	case raceEnabled, testing.Short():
		most = 3
	default:
		most = 12
	}
	for _, c := range cutStories() {
		for _, durable := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, durable %v", c.name, durable), func(t *testing.T) {
				t.Parallel()
				c.everywhere(t, durable, most)
			})
		}
	}
}

// everywhere tells a story with power cuts, about as many as most says.
func (c cutStory) everywhere(t *testing.T, durable bool, most int) {
	type point struct {
		o     Options
		cut   int64
		again float64
	}
	var points []point
	for seed := *from; seed < *from+4; seed++ {
		o := cutOptions(c, seed, durable)
		n, err := c.tell(o, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		for cut := range n {
			for i, keep := range []float64{0, 1, 0.5} {
				o.Faults.Keep = keep
				points = append(points, point{o, cut + 1, float64((cut+int64(i))%3) * 0.3})
			}
		}
	}
	all := len(points)
	if most >= 0 && most < all {
		rand.Shuffle(all, func(i, j int) { points[i], points[j] = points[j], points[i] })
		points = points[:most]
	}
	for _, p := range points {
		if _, err := c.tell(p.o, p.cut, p.again); err != nil {
			t.Fatalf("power cut at operation %d of seed %d, of what is not synced %v survives, %v of the starts after it are cut off: %v",
				p.cut, p.o.Seed, p.o.Faults.Keep, p.again, err)
		}
	}
	t.Logf("%d power cuts of %d", len(points), all)
}
