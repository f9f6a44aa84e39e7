package wal

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
)

// The crash tests run a script of operations on a disk in memory, on the seeded
// executor, so that several writes are under way at once. At each operation on the disk
// they take images of what a power cut could leave, recover each, and compare
// with the script's own idea of the log: what was acknowledged is there, what is there was
// submitted, and all of it is what some prefix of the script made.

// world is one run of a script.
type world struct {
	t         testing.TB
	rng       *rand.Rand
	sim       *actor.Sim
	fs        *vfs.Mem
	o         Options
	s         *Store
	groups    map[string]*Group
	model     map[string]*modelGroup
	states    []string // after 0, 1, … operations
	acked     int
	submitted int
	failed    bool // a sync has failed: nothing is acknowledged any more
}

// modelGroup is what a group should be.
type modelGroup struct {
	first, last int64
	prevTerm    int64
	hard        HardState
	entries     map[int64]string
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), sim: actor.NewSim(seed), fs: vfs.NewMem(),
		groups: map[string]*Group{}, model: map[string]*modelGroup{}}
	w.fs.SetCrashModel(vfs.CrashModel{Sectors: w.rng.IntN(2) == 0, OrderedDirs: w.rng.IntN(2) == 0})
	w.o = Options{
		FS: w.fs, Dir: "/d/log", Identity: "a:1", SegmentSize: 4096 * int64(6+w.rng.IntN(10)),
		MaxBatch: 1 << 12, InFlight: 1 + w.rng.IntN(4), OverlapBytes: -1, MaxRecord: 1 << 14,
		Keep: 1 + w.rng.IntN(2), Rand: w.rng.Uint64,
	}
	w.states = []string{w.fingerprint()}
	return w
}

// open opens the store on a process of its own.
func (w *world) open() {
	w.o.Exec = w.sim.NewProcess(1)
	s, err := Open(w.o)
	require.NoError(w.t, err)
	w.s = s
	for _, name := range []string{"a", "b"} {
		g, err := s.Group(name)
		require.NoError(w.t, err)
		w.groups[name] = g
	}
}

func (w *world) fingerprint() string {
	var b strings.Builder
	for _, name := range []string{"a", "b"} {
		if m := w.model[name]; m != nil && !(m.first == 1 && m.last == 0 && m.hard == (HardState{})) {
			fmt.Fprintf(&b, "%s [%d,%d] prev %d %+v", name, m.first, m.last, m.prevTerm, m.hard)
			sum := uint32(0)
			for i := m.first; i <= m.last; i++ {
				sum = crc32.Update(sum, crc32.IEEETable, []byte(m.entries[i]))
			}
			fmt.Fprintf(&b, " %08x;", sum)
		}
	}
	return b.String()
}

// recovered is the fingerprint of what a store holds.
func recovered(s *Store) (string, error) {
	var b strings.Builder
	for _, name := range []string{"a", "b"} {
		g := s.groups[name]
		if g == nil {
			continue
		}
		r := g.Recovered()
		if r.First == 1 && r.Last == 0 && r.Hard == (HardState{}) {
			continue // opened, and nothing else
		}
		fmt.Fprintf(&b, "%s [%d,%d] prev %d %+v", name, r.First, r.Last, r.PrevTerm, r.Hard)
		sum := uint32(0)
		for at := r.First; at <= r.Last; {
			batch, err := g.Read(at, 3000)
			if err != nil {
				return "", err
			}
			for it := batch.Iter(); ; {
				e, ok := it.Next()
				if !ok {
					break
				}
				sum = crc32.Update(sum, crc32.IEEETable, []byte(line(e.Index, e.Term, e.Data)))
			}
			at = batch.Last() + 1
		}
		fmt.Fprintf(&b, " %08x;", sum)
	}
	return b.String(), nil
}

func line(index, term int64, data []byte) string {
	return fmt.Sprintf("%d/%d/%08x;", index, term, crc32.ChecksumIEEE(data))
}

// do submits one random operation.
func (w *world) do() {
	name := []string{"a", "b"}[w.rng.IntN(2)]
	g, m := w.groups[name], w.model[name]
	if m == nil {
		m = &modelGroup{first: 1, entries: map[int64]string{}}
		w.model[name] = m
	}
	n := w.submitted + 1
	done := func(err error) {
		if w.failed {
			require.ErrorIs(w.t, err, ErrPoisoned)
			return
		}
		require.NoError(w.t, err)
		require.Equal(w.t, w.acked+1, n, "completions come in order")
		w.acked = n
	}
	switch k := w.rng.IntN(10); {
	case w.rng.IntN(25) == 0: // and one of the same name begins anew
		delete(w.model, name)
		g.Remove(done)
		fresh, err := w.s.Group(name)
		require.NoError(w.t, err)
		w.groups[name] = fresh
	case k < 5 || m.last < m.first:
		w.append(g, m, done)
	case k < 7:
		m.hard = HardState{Term: m.hard.Term + 1, Vote: "v", Waiting: w.rng.IntN(2) == 0}
		g.SaveHardState(m.hard, 0, done)
	case k < 8:
		keep := m.first - 1 + w.rng.Int64N(m.last-m.first+2)
		m.last = keep
		g.TruncateSuffix(keep, done)
	default:
		first := m.first + w.rng.Int64N(m.last-m.first+3) // may begin anew behind the end
		m.prevTerm, m.first = w.rng.Int64N(5), first
		m.last = max(m.last, first-1)
		g.TruncatePrefix(first, m.prevTerm, done)
	}
	w.submitted++
	w.states = append(w.states, w.fingerprint())
}

func (w *world) append(g *Group, m *modelGroup, done func(error)) {
	var b entry.Builder
	b.Reset(m.last + 1)
	term := max(m.hard.Term, 1)
	for range 1 + w.rng.IntN(4) {
		data := make([]byte, w.rng.IntN(600)*(1+w.rng.IntN(16)/15*4)) // some of several blocks
		for i := range data {
			data[i] = byte(w.rng.IntN(256))
		}
		b.AppendData(term, data)
		m.last++
		m.entries[m.last] = line(m.last, term, data)
	}
	g.Append(b.Build(), 0, done)
}

// image is a disk as a crash could leave it, and what it must hold.
type image struct {
	fs               *vfs.Mem
	acked, submitted int
	what             string
}

// images takes images of the disk as it is now: all subsets of what is not synced if they
// are few, else some of them.
func images(fs *vfs.Mem, rng *rand.Rand, most int, what string) []image {
	units := fs.Units()
	var all []image
	add := func(keep func(i int) bool) {
		i := -1
		all = append(all, image{what: what, fs: fs.CrashClone(func(vfs.Unit) bool { i++; return keep(i) })})
	}
	if n := len(units); n < 6 && 1<<n <= most {
		for set := range 1 << n {
			add(func(i int) bool { return set>>i&1 == 1 })
		}
		return all
	}
	add(func(int) bool { return false })
	add(func(int) bool { return true })
	for range most - 2 {
		p := rng.Float64()
		add(func(int) bool { return rng.Float64() < p })
	}
	return all
}

// check recovers an image, compares, and crashes the recovery in its turn.
func (w *world) check(img image, depth int) (states int) {
	allowed := w.states[img.acked : img.submitted+1]
	var inside []image
	if depth > 0 {
		img.fs.OnOp(func(op vfs.Op) {
			if op.Writes() && w.rng.IntN(4) == 0 {
				inside = append(inside, images(img.fs, w.rng, 3, img.what+", crash in recovery before "+op.Kind.String())...)
			}
		})
	}
	o, sim := w.o, actor.NewSim(1)
	o.FS, o.Exec = img.fs, sim.NewProcess(1)
	s, err := Open(o)
	require.NoError(w.t, err, img.what)
	got, err := recovered(s)
	require.NoError(w.t, err, img.what)
	if !slices.Contains(allowed, got) {
		w.t.Fatalf("%s: recovered\n%s\nwhich no prefix between the acknowledged %d and the submitted %d operations made:\n%s",
			img.what, got, img.acked, img.submitted, strings.Join(allowed, "\n"))
	}
	states = 1
	img.fs.OnOp(nil)
	for _, again := range inside {
		again.acked, again.submitted = img.acked, img.submitted
		states += w.check(again, 0)
	}
	if depth > 0 { // what was answered once stays, whatever is lost afterwards
		for _, again := range images(img.fs, w.rng, 3, img.what+", crash after recovery") {
			o.FS, o.Exec = again.fs, actor.NewSim(1).NewProcess(1)
			s2, err := Open(o)
			require.NoError(w.t, err, again.what)
			after, err := recovered(s2)
			require.NoError(w.t, err)
			require.Equal(w.t, got, after, again.what)
			states++
		}
		w.goOn(img, s, sim)
	}
	return states
}

// goOn writes something into a recovered store. Once acknowledged it is there, and so is what
// was there before, whatever is lost.
func (w *world) goOn(img image, s *Store, sim *actor.Sim) {
	g, err := s.Group("b")
	require.NoError(w.t, err)
	acked := false
	g.Append(batchAt(g.Recovered().Last+1, 2, 1000, 5000), 0, func(err error) { acked = err == nil })
	require.True(w.t, sim.RunUntil(time.Second, func() bool { return acked }), img.what)
	want, err := recovered(s)
	require.NoError(w.t, err)
	for _, again := range images(img.fs, w.rng, 2, img.what+", crash after more was written") {
		o := w.o
		o.FS, o.Exec = again.fs, actor.NewSim(1).NewProcess(1)
		s, err := Open(o)
		require.NoError(w.t, err, again.what)
		got, err := recovered(s)
		require.NoError(w.t, err)
		require.Equal(w.t, want, got, again.what)
	}
}

// run carries a script out and returns the images taken on the way.
func (w *world) run(ops, perOp int) (all []image) {
	w.fs.OnOp(func(op vfs.Op) {
		if !op.Writes() {
			return
		}
		what := fmt.Sprintf("crash before operation %d, %s %s", op.N, op.Kind, op.Name)
		taken := images(w.fs, w.rng, perOp, what)
		if w.rng.IntN(4) == 0 {
			taken = append(taken, image{fs: w.fs.KillClone(), what: what + " (process killed)"})
		}
		for i := range taken {
			taken[i].acked, taken[i].submitted = w.acked, w.submitted
		}
		all = append(all, taken...)
	})
	w.open()
	for range ops {
		w.do()
		if w.rng.IntN(3) > 0 {
			w.sim.RunFor(time.Duration(w.rng.IntN(300)) * time.Microsecond)
		}
	}
	w.sim.RunFor(time.Second)
	w.fs.OnOp(nil)
	return all
}

func TestCrashAtEveryPoint(t *testing.T) {
	seeds, states := 20, 0
	if testing.Short() || raceEnabled {
		seeds = 3
	}
	for seed := range uint64(seeds) {
		w := newWorld(t, seed)
		for i, img := range w.run(40, 8) {
			states += w.check(img, i%2)
		}
		require.Equal(t, w.submitted, w.acked)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	t.Logf("%d crash states", states)
}

// A sync fails, or a write in the middle: what it should have written looks clean in the cache and is not on the disk. The store
// acknowledges nothing more; the next process finds it all in the cache, answers
// with it, and then the power is cut.
func TestCrashAfterFailedWriteOrSync(t *testing.T) {
	seeds, states, failures := 24, 0, 0
	if testing.Short() || raceEnabled {
		seeds = 4
	}
	for seed := range uint64(seeds) {
		w := newWorld(t, 1000+seed)
		after := 12 + w.rng.IntN(30)
		kind := []vfs.Kind{vfs.KindSync, vfs.KindSync, vfs.KindWrite}[w.rng.IntN(3)]
		w.fs.SetInjector(func(op vfs.Op) error {
			if op.Kind != kind {
				return nil
			}
			if after--; after != 0 {
				return nil
			}
			w.failed = true
			if kind == vfs.KindWrite {
				return vfs.ShortWrite{N: int(op.Len / 2), Err: syscall.EIO}
			}
			return syscall.EIO
		})
		imgs := w.run(40, 3)
		imgs = append(imgs, image{fs: w.fs.KillClone(), acked: w.acked, submitted: w.submitted, what: "process ended"})
		for i, img := range imgs {
			states += w.check(img, (i+1)%4/3|(i+1)/len(imgs))
		}
		if w.failed {
			failures++
			require.Error(t, w.s.Err())
		}
	}
	require.Greater(t, failures, seeds/2)
	t.Logf("%d crash states, %d failures", states, failures)
}
