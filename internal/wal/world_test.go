package wal

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
)

// A world is one run of a script of operations on a disk in memory, on the seeded executor, so
// that several writes are under way at once. It keeps its own idea of the log: what every
// prefix of the operations makes of the groups.
type world struct {
	t    testing.TB
	rng  *rand.Rand
	sim  *actor.Sim
	proc *actor.Process
	fs   *vfs.Mem
	o    Options
	s    *Store

	base    model // what the last opening found
	ops     []operation
	done    int  // so many of them were acknowledged or refused, in order
	failed  bool // an operation of the disk has failed: nothing is acknowledged any more
	damaged bool // and so not all that was synced on this disk is durable
	full    bool
	terms   map[string]int64

	point  func(op vfs.Op)                                   // called before each operation that writes
	rebase func(found string, acked, submitted int) (at int) // judges what a reopening found; set with point
	counts counts
}

// counts say what the script came across.
type counts struct {
	refused  int // operations for want of space
	poisoned int // operations that ended in the failure of the disk
	reopened int // times
	released int // times that segments were found gone
}

func (c *counts) add(o counts) {
	c.refused += o.refused
	c.poisoned += o.poisoned
	c.reopened += o.reopened
	c.released += o.released
}

// operation is one that was submitted.
type operation struct {
	apply   func(m model)
	refused bool
}

// model is what all groups should be.
type model map[string]*modelGroup

type modelGroup struct {
	first, last, prevTerm, commit int64
	hard                          HardState
	entries                       map[int64]uint32 // their hashes
}

func (m model) group(name string) *modelGroup {
	if m[name] == nil {
		m[name] = &modelGroup{first: 1, entries: map[int64]uint32{}}
	}
	return m[name]
}

func (m model) clone() model {
	c := model{}
	for name, g := range m {
		copied := *g
		copied.entries = make(map[int64]uint32, len(g.entries))
		for i := g.first; i <= g.last; i++ {
			copied.entries[i] = g.entries[i]
		}
		c[name] = &copied
	}
	return c
}

// fingerprint describes the groups; those that are as if they had just been opened are left out.
func (m model) fingerprint() string {
	var b []byte
	for _, name := range []string{"a", "b", "c"} {
		if g := m[name]; g != nil {
			sum := uint32(0)
			for i := g.first; i <= g.last; i++ {
				sum = sum*31 + g.entries[i]
			}
			b = describe(b, name, Recovered{Hard: g.hard, First: g.first, Last: g.last, Commit: g.commit, PrevTerm: g.prevTerm}, sum)
		}
	}
	return string(b)
}

func describe(b []byte, name string, r Recovered, sum uint32) []byte {
	if r.First == 1 && r.Last == 0 && r.Hard == (HardState{}) {
		return b
	}
	b = append(append(b, name...), " ["...)
	for _, n := range []int64{r.First, r.Last, r.PrevTerm, r.Commit, r.Hard.Term, int64(r.Hard.GroupID), r.Hard.Override.Term, r.Hard.Override.Last} {
		b = append(strconv.AppendInt(b, n, 10), ' ')
	}
	b = append(append(append(b, r.Hard.Vote...), '/'), r.Hard.Override.Conf...)
	b = strconv.AppendBool(append(b, ' '), r.Hard.Waiting)
	return append(strconv.AppendUint(append(b, ' '), uint64(sum), 16), "] "...)
}

func entryHash(e *entry.Entry) uint32 {
	head := [...]byte{byte(e.Index), byte(e.Index >> 8), byte(e.Term), byte(e.Term >> 8), byte(e.Type)}
	sum := crc32.Update(0, castagnoli(), head[:])
	return crc32.Update(crc32.Update(sum, castagnoli(), e.Data), castagnoli(), e.Meta)
}

// recovered is the fingerprint of what a store holds, all of it read from the disk.
func recovered(s *Store) (string, error) {
	names := s.Groups()
	slices.Sort(names)
	var b []byte
	for _, name := range names {
		g := s.groups[name]
		r := g.Recovered()
		sum, err := readBack(g, r)
		if err != nil {
			return "", err
		}
		b = describe(b, name, r, sum)
	}
	return string(b), nil
}

// readBack reads what a group is said to hold, and compares with what is said about it.
func readBack(g *Group, r Recovered) (sum uint32, err error) {
	var runs []entry.TermRun
	var confs []int64
	for at := r.First; at <= r.Last; {
		batch, err := g.Read(at, 1<<20)
		if err != nil {
			return 0, err
		}
		for it := batch.Iter(); ; {
			e, ok := it.Next()
			if !ok {
				break
			}
			if e.Index != at {
				return 0, errors.New("entry " + strconv.FormatInt(e.Index, 10) + " in place of " + strconv.FormatInt(at, 10))
			}
			sum = sum*31 + entryHash(&e)
			if n := len(runs); n == 0 || runs[n-1].Term != e.Term {
				runs = append(runs, entry.TermRun{First: at, Term: e.Term})
			}
			if e.Type == entry.Configuration {
				confs = append(confs, at)
			}
			at++
		}
		if at != batch.Last()+1 {
			return 0, errors.New("a batch holds less than it says")
		}
	}
	if !slices.Equal(runs, r.Runs) {
		return 0, errors.New("terms of " + g.name + " are not those of its entries")
	}
	if !slices.EqualFunc(confs, r.Confs, func(at int64, c entry.ConfMark) bool { return c.Index == at }) {
		return 0, errors.New("configurations of " + g.name + " are not those of its entries")
	}
	return sum, nil
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), sim: actor.NewSim(seed), fs: vfs.NewMem(), base: model{}, terms: map[string]int64{}}
	w.fs.SetCrashModel(vfs.CrashModel{Sectors: w.rng.IntN(2) == 0, OrderedDirs: w.rng.IntN(2) == 0})
	w.o = Options{
		Dir: "/d/log", Identity: "a:1", SegmentSize: 4096 * int64(4+w.rng.IntN(8)),
		MaxBatch: 1 << 12, InFlight: 1 + w.rng.IntN(4), OverlapBytes: -1, MaxRecord: 1 << 15,
		Keep: w.rng.IntN(3), Rand: w.rng.Uint64, IdleMark: 5 * time.Millisecond, Retry: 3 * time.Millisecond,
	}
	return w
}

// states are the fingerprints after 0, 1, … of the operations.
func (w *world) states() []string {
	m := w.base.clone()
	list := []string{m.fingerprint()}
	for i := range w.ops {
		if !w.ops[i].refused {
			w.ops[i].apply(m)
		}
		list = append(list, m.fingerprint())
	}
	return list
}

// try opens the store on a process of its own.
func (w *world) try() error {
	w.fs.OnOp(func(op vfs.Op) {
		if op.Writes() && w.point != nil {
			w.point(op)
		}
	})
	w.proc = w.sim.NewProcess(1)
	w.o.FS, w.o.Exec = w.fs, w.proc
	s, err := Open(w.o)
	if err == nil {
		w.s = s
	}
	return err
}

// open opens the store, sometimes at the second attempt, and takes what it finds for the new
// beginning.
func (w *world) open() {
	if w.rng.IntN(3) == 0 {
		w.failAfter(w.rng.IntN(25))
	}
	err := w.try()
	if err != nil {
		require.True(w.t, w.failed || w.full && errors.Is(err, ErrNoSpace), "%v", err)
		w.fs.SetInjector(nil)
		w.fs = w.fs.KillClone()
		w.space(false)
		require.NoError(w.t, w.try())
	}
	w.fs.SetInjector(nil)
	w.failed = false
	found, err := recovered(w.s)
	require.NoError(w.t, err)
	w.settle(found)
}

// settle makes what a reopening found the base.
func (w *world) settle(found string) {
	at := -1
	if w.rebase != nil {
		at = w.rebase(found, w.done, len(w.ops))
	} else if i := slices.Index(w.states()[w.done:], found); i >= 0 {
		at = w.done + i
	}
	require.GreaterOrEqual(w.t, at, 0, "reopened with what no prefix made: %s", found)
	w.base = w.base.clone()
	for i := range w.ops[:at] {
		if !w.ops[i].refused {
			w.ops[i].apply(w.base)
		}
	}
	w.ops, w.done = nil, 0
}

// submit notes an operation and returns its done function.
func (w *world) submit(apply func(m model)) func(error) {
	n := len(w.ops)
	w.ops = append(w.ops, operation{apply: apply})
	proc := w.proc
	return func(err error) {
		require.Equal(w.t, proc, w.proc, "a dead process acknowledges nothing")
		if w.failed {
			require.ErrorIs(w.t, err, ErrPoisoned)
			w.counts.poisoned++
			return
		}
		require.Equal(w.t, w.done, n, "completions come in order")
		w.done++
		if err != nil {
			require.True(w.t, errors.Is(err, ErrNoSpace) || w.counts.refused > 0 && errors.Is(err, ErrOrder), "%v", err)
			w.counts.refused++
			w.ops[n].refused = true
		}
	}
}

func (w *world) group(name string) *Group {
	g, err := w.s.Group(name)
	require.NoError(w.t, err)
	return g
}

// bounds are those of the log as submitted.
func (w *world) bounds(g *Group) (first, last int64) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	return g.first, g.last
}

func (w *world) append(name string, n, size int) {
	g := w.group(name)
	_, last := w.bounds(g)
	var b entry.Builder
	b.Reset(last + 1)
	w.terms[name] = max(w.terms[name]+int64(w.rng.IntN(6)/5), 1)
	for range n {
		if w.rng.IntN(10) == 0 {
			b.AppendConf(w.terms[name], []string{"a:1:0:0", strconv.Itoa(w.rng.IntN(100))}, nil)
			continue
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(w.rng.Uint32())
		}
		b.AppendData(w.terms[name], data)
	}
	batch, commit := b.Build(), w.rng.Int64N(last+2)
	var hashes []uint32
	for it := batch.Iter(); ; {
		e, ok := it.Next()
		if !ok {
			break
		}
		hashes = append(hashes, entryHash(&e))
	}
	g.Append(batch, commit, w.submit(func(m model) {
		to := m.group(name)
		for i, h := range hashes {
			to.entries[batch.First+int64(i)] = h
		}
		to.last, to.commit = batch.Last(), max(to.commit, commit)
	}))
}

func (w *world) suffix(name string, keep int64) {
	w.group(name).TruncateSuffix(keep, w.submit(func(m model) { m.group(name).last = keep }))
}

func (w *world) prefix(name string, first int64) {
	prev := w.rng.Int64N(5)
	w.group(name).TruncatePrefix(first, prev, w.submit(func(m model) {
		g := m.group(name)
		g.first, g.prevTerm, g.last = first, prev, max(g.last, first-1)
	}))
}

// someSuffix and somePrefix cut at a random place; a prefix may begin anew behind the end.
func (w *world) someSuffix(name string) {
	if first, last := w.bounds(w.group(name)); last >= first {
		w.suffix(name, first-1+w.rng.Int64N(last-first+2))
	}
}

func (w *world) somePrefix(name string) {
	first, last := w.bounds(w.group(name))
	w.prefix(name, first+w.rng.Int64N(last-first+3))
}

func (w *world) vote(name string) {
	w.terms[name] += 1 + w.rng.Int64N(2)
	h := HardState{Term: w.terms[name], Vote: "v" + strconv.Itoa(w.rng.IntN(3)), GroupID: 7, Waiting: w.rng.IntN(4) == 0, WasMember: w.terms[name]%3 == 0}
	if w.rng.IntN(3) == 0 {
		_, last := w.bounds(w.group(name))
		h.Override = Override{Term: h.Term, Last: last, Conf: "a:1:0:0,b:2:0:0"}
	}
	commit := w.rng.Int64N(3)
	w.group(name).SaveHardState(h, commit, w.submit(func(m model) {
		g := m.group(name)
		g.hard, g.commit = h, max(g.commit, commit)
	}))
}

// remove ends a group; its name is free at once.
func (w *world) remove(name string) {
	w.group(name).Remove(w.submit(func(m model) { delete(m, name) }))
	w.terms[name] = 0
}

// pause lets a little time pass, or none.
func (w *world) pause() {
	if w.rng.IntN(3) > 0 {
		w.sim.RunFor(time.Duration(w.rng.IntN(300)) * time.Microsecond)
	}
}

// rest lets all that was submitted finish, and the mark of an idle store be written.
func (w *world) rest() {
	floor := w.s.floor
	w.sim.RunFor(50 * time.Millisecond)
	if w.s.floor > floor {
		w.counts.released++
	}
	if !w.failed && !w.full {
		require.Equal(w.t, len(w.ops), w.done)
	}
}

// space fills the disk up to a little, or makes it as large as can be.
func (w *world) space(full bool) {
	w.full = full
	w.fs.SetCapacity(-1)
	if full {
		w.fs.SetCapacity(w.fs.Used() + int64(w.rng.IntN(6*block)))
	}
}

// failAfter lets one operation of the disk fail, after so many others that write.
func (w *world) failAfter(n int) {
	w.fs.SetInjector(func(op vfs.Op) error {
		if !op.Writes() || op.Kind == vfs.KindOpen || op.Kind == vfs.KindLock || w.failed {
			return nil
		}
		if n--; n >= 0 {
			return nil
		}
		w.failed, w.damaged = true, true
		if op.Kind == vfs.KindWrite && w.rng.IntN(2) == 0 {
			return vfs.ShortWrite{N: int(op.Len / 2), Err: syscall.EIO}
		}
		return syscall.EIO
	})
}

// close closes the store cleanly and opens it again.
func (w *world) close() {
	w.space(false)
	closed := false
	w.s.Shutdown(func(error) { closed = true })
	require.True(w.t, w.sim.RunUntil(time.Second, func() bool { return closed }))
	require.True(w.t, w.failed || w.done == len(w.ops))
	w.again(w.fs)
}

// kill ends the process and starts another.
func (w *world) kill() { w.again(w.fs.KillClone()) }

// cut cuts the power and starts another process.
func (w *world) cut() {
	w.again(w.fs.CrashClone(func(vfs.Unit) bool { return w.rng.IntN(2) == 0 }))
}

func (w *world) again(fs *vfs.Mem) {
	w.proc.Kill()
	w.damaged = w.damaged && fs.Units() != nil
	w.fs = fs
	w.counts.reopened++
	w.open()
}

// script is a way to use a store. Its runs differ by seed in sizes, timing and details.
type script struct {
	name string
	run  func(w *world)
}

// scripts are what the crash tests go through.
func scripts() []script {
	return []script{
		{"first boot", func(w *world) { w.append("a", 1, 100); w.vote("b"); w.rest() }},
		{"several groups append", func(w *world) {
			for range 12 {
				w.append(w.some(), 1+w.rng.IntN(4), w.rng.IntN(600))
				w.pause()
			}
			w.rest()
		}},
		{"records of several blocks", func(w *world) {
			for range 6 {
				w.append(w.some(), 1+w.rng.IntN(3), 3000+w.rng.IntN(7000))
				w.pause()
			}
			w.rest()
		}},
		{"votes", func(w *world) {
			for range 12 {
				w.vote(w.some())
				w.pause()
			}
			w.rest()
		}},
		{"a suffix of several segments is cut and written anew", func(w *world) {
			w.fill("a", 4*int(w.o.SegmentSize))
			w.suffix("a", w.rng.Int64N(3))
			w.append("a", 2, 700)
			w.pause()
			w.someSuffix("a")
			w.append("a", 1, 5000)
			w.someSuffix("a")
			w.rest()
		}},
		{"prefixes are cut and segments used again", func(w *world) {
			for range 3 {
				w.fill("a", 2*int(w.o.SegmentSize))
				w.append("b", 1, 50)
				_, last := w.bounds(w.group("a"))
				w.prefix("a", last-w.rng.Int64N(2))
				w.pause()
				w.somePrefix("b")
				w.rest()
			}
		}},
		{"a snapshot replaces the log", func(w *world) {
			w.fill("a", int(w.o.SegmentSize))
			_, last := w.bounds(w.group("a"))
			w.prefix("a", last+5)
			w.append("a", 2, 900)
			w.pause()
			w.prefix("b", 10)
			w.append("b", 1, 900)
			w.rest()
		}},
		{"groups are removed and made anew", func(w *world) {
			for range 5 {
				name := w.some()
				w.append(name, 2, w.rng.IntN(2000))
				w.vote(name)
				w.pause()
				w.remove(name)
				if w.rng.IntN(2) == 0 {
					w.vote(name)
				}
				w.pause()
			}
			w.rest()
		}},
		{"closed and opened", func(w *world) {
			for range 4 {
				w.any()
				w.any()
				w.pause()
				w.close()
			}
		}},
		{"killed and opened", func(w *world) {
			for range 4 {
				for range 3 {
					w.any()
					w.pause()
				}
				w.kill()
			}
		}},
		{"power cuts in a row", func(w *world) {
			for range 4 {
				for range 3 {
					w.any()
					w.pause()
				}
				w.cut()
			}
		}},
		{"idle at times", func(w *world) {
			for range 5 {
				w.any()
				w.rest()
				w.any()
				w.pause()
			}
		}},
		{"the disk is full at times", func(w *world) {
			for range 4 {
				w.space(true)
				w.fill("a", 2*int(w.o.SegmentSize))
				for range 4 {
					w.anyButRemove()
					w.pause()
				}
				w.rest()
				w.space(false)
				w.rest()
			}
		}},
		{"an operation of the disk fails", func(w *world) {
			w.failAfter(5 + w.rng.IntN(30))
			for range 10 {
				w.any()
				w.pause()
			}
			w.rest()
			w.kill()
			w.any()
			w.rest()
		}},
		{"anything", func(w *world) {
			for range 30 {
				w.any()
				w.pause()
			}
			w.rest()
		}},
	}
}

func (w *world) some() string { return []string{"a", "b", "c"}[w.rng.IntN(3)] }

// fill appends about so many bytes.
func (w *world) fill(name string, size int) {
	for size > 0 {
		n := 500 + w.rng.IntN(7000)
		w.append(name, 1, n)
		size -= n
		w.sim.RunFor(time.Duration(w.rng.IntN(200)) * time.Microsecond)
	}
}

// any does one random operation.
func (w *world) any() {
	if w.rng.IntN(25) == 0 {
		w.remove(w.some())
		return
	}
	w.anyButRemove()
}

func (w *world) anyButRemove() {
	name := w.some()
	first, last := w.bounds(w.group(name))
	switch k := w.rng.IntN(10); {
	case k < 5 || last < first:
		w.append(name, 1+w.rng.IntN(4), w.rng.IntN(600)*(1+w.rng.IntN(16)/15*4)) // some of several blocks
	case k < 7:
		w.vote(name)
	case k < 8:
		w.someSuffix(name)
	default:
		w.somePrefix(name)
	}
}
