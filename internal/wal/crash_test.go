package wal

import (
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
)

var (
	wantStates = flag.Int("wal.states", 0, "how many different crash states to check; 0: a small share")
	oneScript  = flag.String("wal.script", "", "run only the script with this name")
	oneSeed    = flag.Uint64("wal.seed", 0, "run only this seed of each script")
)

// The crash tests look at the disk before each operation that a script's store does on it: they
// take the images that a power cut could leave there, recover each, and compare with the script's own
// idea of the log. What was acknowledged is there, what is there was submitted, and all of it is
// what some prefix of the script made. The recoveries are crashed in their turn.

// enumerator goes through the crash states of one script's runs.
type enumerator struct {
	t       testing.TB
	w       *world
	seed    uint64
	most    int            // images per point of the script
	enough  int            // states after which nothing more is looked at
	seen    map[uint64]int // digest of an image to its outcome
	outcome []string
	number  map[string]int // of outcome
	all     map[uint64]struct{}
	found   map[observation]string // in this opening of the script, and how it came about
	disk    *sampler
	tally
}

// observation says that an image recovered to an outcome while so many operations of the script
// had been acknowledged and submitted.
type observation struct{ acked, submitted, outcome int }

// tally is what was looked at.
type tally struct {
	images      int // that were taken
	states      int // different ones among them
	recoveries  int // that were carried out
	inside      int // images of a crash inside a recovery
	insideTwice int // those inside the recovery of such an image
	after       int // images of a crash after a recovery had answered
	full        int // recoveries that found the disk full at first
	kills       int // images of a killed process
	cuts        int // recoveries that dropped batches which were there
	runs        int // of scripts
	ran         counts
}

func (a *tally) add(b tally) {
	a.images += b.images
	a.states += b.states
	a.recoveries += b.recoveries
	a.inside += b.inside
	a.insideTwice += b.insideTwice
	a.after += b.after
	a.kills += b.kills
	a.full += b.full
	a.cuts += b.cuts
	a.runs += b.runs
	a.ran.add(b.ran)
}

func newEnumerator(t testing.TB) *enumerator {
	return &enumerator{t: t, all: map[uint64]struct{}{}, most: 64}
}

// run goes through one run of a script.
func (e *enumerator) run(sc script, seed uint64) {
	e.w = newWorld(e.t, seed<<32|uint64(crc32.ChecksumIEEE([]byte(sc.name)))) // no script repeats another's beginnings
	e.seen, e.outcome, e.number = map[uint64]int{}, nil, map[string]int{}
	e.found = map[observation]string{}
	e.disk = nil
	e.w.point, e.w.rebase = e.point, e.rebase
	e.w.open()
	sc.run(e.w)
	e.w.point(vfs.Op{})
	e.judge()
	e.runs++
	e.ran.add(e.w.counts)
}

// subsets asks visit about all subsets of n units if they are few, else about some of all kinds.
func subsets(rng *rand.Rand, n, most int, visit func(keep func(i int) bool)) {
	if n < 16 && 1<<n <= most {
		for set := range 1 << n {
			visit(func(i int) bool { return set>>i&1 == 1 })
		}
		return
	}
	visit(func(int) bool { return false })
	visit(func(int) bool { return true })
	for k := range most - 2 {
		at, p := rng.IntN(n), rng.Float64()
		visit(func(i int) bool {
			switch k % 8 {
			case 0:
				return i < at
			case 1:
				return i == at
			case 2:
				return i != at
			case 3:
				return i >= at
			}
			return rng.Float64() < p
		})
	}
}

// sampler takes images of a disk while that is used, no image twice.
//
// An image is known by the units in it, those included that have become durable: whether they were
// synced or survive by chance makes no difference. That is not true any more once a sync has failed.
//
// A write that alone changes nothing, such as zeros upon zeros, is left out: where it is the last one kept
// of its block or sector, the image is also that of a set without any write there.
type sampler struct {
	fs      *vfs.Mem
	pending []uint64
	choice  []int           // which of them matter
	idle    map[uint64]bool // those that do not
	durable uint64          // all units that were pending and are not any more
	known   map[uint64]int  // the outcome of an image
	here    []int           // the outcomes of the images of this moment
	fresh   bool            // nothing was looked at yet
	thrifty bool            // it pays to find out what does not matter
}

func newSampler(fs *vfs.Mem) *sampler {
	return &sampler{fs: fs, known: map[uint64]int{}, idle: map[uint64]bool{}, fresh: true}
}

// update looks at what is pending now and reports whether it is anything else than before.
func (s *sampler) update() (changed bool) {
	now := s.fs.UnitIDs()
	if slices.Equal(now, s.pending) && !s.fresh {
		return false
	}
	s.fresh = false
	for _, id := range s.pending {
		if !slices.Contains(now, id) {
			s.durable ^= id
		}
	}
	s.pending, s.choice = now, s.choice[:0]
	if s.thrifty {
		s.judge(s.fs.Units())
	}
	for i, id := range now {
		if !s.idle[id] {
			s.choice = append(s.choice, i)
		}
	}
	return true
}

// judge finds out which of the new units change nothing: those of one write together, which do not
// overlap, and if that changes something, each half of them.
func (s *sampler) judge(units []vfs.Unit) {
	bare, tries := uint64(0), 32
	var split func(from, to int)
	split = func(from, to int) {
		if tries--; tries < 0 {
			return
		}
		if bare == 0 {
			bare = s.fs.CrashClone(nil).Digest()
		}
		img := s.fs.CrashClone(func(u vfs.Unit) bool { return from <= u.Index && u.Index < to })
		switch {
		case img.Digest() == bare:
			for _, id := range s.pending[from:to] {
				s.idle[id] = true
			}
		case to-from > 1:
			split(from, (from+to)/2)
			split((from+to)/2, to)
		}
	}
	isNew := func(i int) bool {
		_, ok := s.idle[s.pending[i]]
		return !ok && units[i].Kind == vfs.UnitWrite
	}
	for i := 0; i < len(units); i++ {
		from := i
		for isNew(from) && i+1 < len(units) && isNew(i+1) && units[i].Name == units[i+1].Name && units[i].Off+units[i].Len == units[i+1].Off {
			i++
		}
		if isNew(from) && len(units) > 2 {
			split(from, i+1)
		}
	}
	for _, id := range s.pending {
		if !s.idle[id] {
			s.idle[id] = false // not to be tried again
		}
	}
}

// sample takes images of this moment, up to most, and asks outcome about those not known, or
// about all.
func (s *sampler) sample(rng *rand.Rand, most int, always bool, outcome func(img *vfs.Mem) int) {
	s.here = s.here[:0]
	kept := make([]bool, len(s.pending))
	subsets(rng, len(s.choice), most, func(keep func(i int) bool) {
		key := s.durable
		for n, i := range s.choice {
			if kept[i] = keep(n); kept[i] {
				key ^= s.pending[i]
			}
		}
		out, ok := s.known[key]
		if !ok || always {
			out = outcome(s.fs.CrashClone(func(u vfs.Unit) bool { return kept[u.Index] }))
			s.known[key] = out
		}
		if !slices.Contains(s.here, out) {
			s.here = append(s.here, out)
		}
	})
}

// point looks at the script's disk.
func (e *enumerator) point(op vfs.Op) {
	w := e.w
	if e.states >= e.enough {
		return
	}
	what := func() string {
		return fmt.Sprintf("crash before operation %d, %s %s", op.N, op.Kind, op.Name)
	}
	if e.disk == nil || e.disk.fs != w.fs {
		e.disk = newSampler(w.fs)
		e.disk.thrifty = true
	}
	if e.disk.update() {
		e.disk.sample(w.rng, e.most, w.failed || w.damaged, func(img *vfs.Mem) int { return e.recover(img, e.depth(), false, what) })
	}
	for _, out := range e.disk.here {
		e.observe(out, what)
	}
	// Known to be unsafe: killed after the name of a new directory could not be synced, before that is removed again.
	unsafe := op.Kind == vfs.KindRemove && w.s == nil
	if w.rng.IntN(16) == 0 && !unsafe {
		e.kills++
		e.observe(e.killed(w.fs.KillClone(), what), what)
	}
}

// depth is how many crashes inside recoveries are to be looked at on top of each other.
func (e *enumerator) depth() int {
	switch k := e.w.rng.IntN(64); {
	case k == 0:
		return 2
	case k < 8:
		return 1
	}
	return 0
}

func (e *enumerator) observe(outcome int, what func() string) {
	o := observation{e.w.done, len(e.w.ops), outcome}
	if _, ok := e.found[o]; !ok {
		e.found[o] = what()
	}
}

// judge compares what was observed since the script's store was opened with what its operations made.
func (e *enumerator) judge() {
	states := e.w.states()
	for o, what := range e.found {
		got, allowed := e.outcome[o.outcome], states[o.acked:o.submitted+1]
		if !slices.Contains(allowed, got) {
			e.t.Fatalf("%s: recovered\n%s\nwhich no prefix between the acknowledged %d and the submitted %d operations made:\n%s",
				what, got, o.acked, o.submitted, strings.Join(allowed, "\n"))
		}
	}
	clear(e.found)
}

// rebase judges, and finds what the script's own reopening found.
func (e *enumerator) rebase(found string, acked, submitted int) (at int) {
	e.judge()
	if i := slices.Index(e.w.states()[acked:submitted+1], found); i >= 0 {
		return acked + i
	}
	return -1
}

// note counts an image and returns its outcome if it was there before.
func (e *enumerator) note(img *vfs.Mem) (digest uint64, outcome int, known bool) {
	e.images++
	digest = img.Digest()
	if _, ok := e.all[digest]; !ok {
		e.all[digest] = struct{}{}
		e.states++
	}
	outcome, known = e.seen[digest]
	return digest, outcome, known
}

// recover recovers an image of a power cut, once, and crashes that in its turn: all that is on
// such a disk is durable, so that each further recovery must find the same.
func (e *enumerator) recover(img *vfs.Mem, depth int, inRecovery bool, what func() string) (outcome int) {
	digest, outcome, known := e.note(img)
	if known {
		return outcome
	}
	outcome, inside := e.open(img, depth, what)
	e.seen[digest] = outcome
	for _, again := range inside {
		e.inside++
		if inRecovery {
			e.insideTwice++
		}
		why := func() string { return what() + ", crash in recovery before " + again.before.String() }
		if got := e.recover(again.fs, depth-1, true, why); got != outcome {
			e.t.Fatalf("%s: recovered\n%s\nand without that crash\n%s", why(), e.outcome[got], e.outcome[outcome])
		}
	}
	return outcome
}

// killed is recover for a process that was killed: what is on its disk is not all durable, so
// that a crash in the recovery may lose of it what was not acknowledged.
func (e *enumerator) killed(img *vfs.Mem, what func() string) (outcome int) {
	outcome, inside := e.open(img, 1, what)
	for _, again := range inside {
		e.inside++
		why := func() string { return what() + ", process killed, crash in recovery before " + again.before.String() }
		e.observe(e.recover(again.fs, 0, true, why), why)
	}
	return outcome
}

// inner is an image taken inside a recovery.
type inner struct {
	fs     *vfs.Mem
	before vfs.Kind
}

// open carries a recovery out and takes images on the way.
func (e *enumerator) open(img *vfs.Mem, depth int, what func() string) (outcome int, inside []inner) {
	e.recoveries++
	disk := newSampler(img)
	if depth > 0 {
		disk.known[0] = 0 // the image as it is now
		img.OnOp(func(op vfs.Op) {
			if op.Writes() && disk.update() && e.w.rng.IntN(3) == 0 {
				disk.sample(e.w.rng, 8, false, func(fs *vfs.Mem) int { inside = append(inside, inner{fs, op.Kind}); return 0 })
			}
		})
	}
	o := e.w.o
	cut := false
	o.Log = func(format string, _ ...any) { cut = cut || strings.Contains(format, "are dropped") }
	sim := actor.NewSim(1)
	o.FS, o.Exec = img, sim.NewProcess(1)
	s, err := Open(o)
	if e.w.full && errors.Is(err, ErrNoSpace) { // and it must be as before when there is space again
		e.full++
		img.SetCapacity(-1)
		s, err = Open(o)
	}
	require.NoError(e.t, err, "%s", lazy(what))
	got, err := recovered(s)
	require.NoError(e.t, err, "%s", lazy(what))
	if cut {
		e.cuts++
	}
	outcome = e.numberOf(got)
	img.OnOp(nil)
	if depth > 0 {
		e.answered(disk, outcome, "crash after recovery", what)
		e.goOn(disk, s, sim, what)
	}
	return outcome, inside
}

// lazy is a message that is made only if it is printed.
type lazy func() string

func (l lazy) String() string { return l() }

// answered crashes a store that has answered: what it has said stays, whatever is lost.
func (e *enumerator) answered(disk *sampler, outcome int, when string, what func() string) {
	disk.update()
	disk.sample(e.w.rng, 4, false, func(again *vfs.Mem) int {
		e.after++
		why := func() string { return what() + ", " + when }
		if got := e.recover(again, 0, true, why); got != outcome {
			e.t.Fatalf("%s: recovered\n%s\nafter it had answered with\n%s", why(), e.outcome[got], e.outcome[outcome])
		}
		return outcome
	})
}

// goOn writes something into a recovered store. Once acknowledged it is there, and so is what was there
// before, whatever is lost.
func (e *enumerator) goOn(disk *sampler, s *Store, sim *actor.Sim, what func() string) {
	disk.fs.SetCapacity(-1)
	g, err := s.Group("b")
	require.NoError(e.t, err)
	acked := 0
	done := func(err error) {
		if err == nil {
			acked++
		}
	}
	g.Append(batchAt(g.Recovered().Last+1, 2, 1000, 300+e.w.rng.IntN(5000)), 0, done)
	g.SaveHardState(HardState{Term: 1000, Vote: "x"}, 0, done)
	disk.fs.OnOp(func(vfs.Op) { disk.update() })
	require.True(e.t, sim.RunUntil(time.Second, func() bool { return acked == 2 }), "%s", lazy(what))
	disk.fs.OnOp(nil)
	got, err := recovered(s)
	require.NoError(e.t, err)
	e.answered(disk, e.numberOf(got), "crash after more was written", what)
}

// numberOf numbers the outcomes.
func (e *enumerator) numberOf(got string) int {
	n, ok := e.number[got]
	if !ok {
		n = len(e.outcome)
		e.outcome, e.number[got] = append(e.outcome, got), n
	}
	return n
}

// Every crash state of every script is recovered to what was acknowledged, and to nothing that
// was not submitted. -wal.states says how many different ones it must be.
func TestCrashStates(t *testing.T) {
	want := *wantStates
	if want == 0 {
		want = 40_000
		if testing.Short() || raceEnabled {
			want = 3_000
		}
	}
	list := scripts()
	share := (want + len(list) - 1) / len(list)
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // images are short-lived
	start := time.Now()
	var mu sync.Mutex
	var stop atomic.Bool // one failure is enough
	var total tally
	all := map[uint64]struct{}{}
	t.Run("scripts", func(t *testing.T) {
		for _, sc := range list {
			if *oneScript != "" && sc.name != *oneScript {
				continue
			}
			t.Run(sc.name, func(t *testing.T) {
				t.Parallel()
				e := newEnumerator(t)
				e.enough = share
				defer func() {
					if t.Failed() {
						stop.Store(true)
						t.Logf("replay: -wal.script=%q -wal.seed=%d", sc.name, e.seed)
					}
				}()
				for seed := uint64(1); e.states < share && !stop.Load(); seed++ {
					if *oneSeed != 0 {
						seed = *oneSeed
					}
					e.seed = seed
					e.run(sc, seed)
					if *oneSeed != 0 {
						break
					}
				}
				t.Logf("%d runs, %d images, %d different, %d recoveries", e.runs, e.images, e.states, e.recoveries)
				mu.Lock()
				defer mu.Unlock()
				total.add(e.tally)
				for d := range e.all {
					all[d] = struct{}{}
				}
			})
		}
	})
	if t.Failed() || *oneScript != "" || *oneSeed != 0 {
		return
	}
	t.Logf("%d different crash states (%d images) of %d runs, %d recoveries, in %.0f s: %+v",
		len(all), total.images, total.runs, total.recoveries, time.Since(start).Seconds(), total)
	require.GreaterOrEqual(t, len(all), want, "fewer different states than asked for")
	for name, n := range map[string]int{
		"crashes inside recoveries": total.inside, "crashes inside those": total.insideTwice, "crashes after recoveries": total.after,
		"killed processes": total.kills, "dropped batches": total.cuts, "full disks": total.full,
		"refusals for want of space": total.ran.refused, "failures of the disk": total.ran.poisoned,
		"reopenings": total.ran.reopened, "released segments": total.ran.released,
	} {
		require.NotZero(t, n, "no %s: the scripts prove less than they should", name)
	}
}
