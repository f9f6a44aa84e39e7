package wal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
)

// The sweep damages one thing at a time, everywhere: each sector and each block of each file, and each
// file as a whole. A store that was closed cleanly, or idle when its process was killed, either holds all it
// held, or is refused with the name of what is wrong, and is left as it was. Of one that was killed amid
// writes nothing below the durable mark may be missing without a word.

// ground is an undamaged disk, and what it was before.
type ground struct {
	t       testing.TB
	rng     *rand.Rand
	o       Options
	fs      *vfs.Mem
	files   map[string][]byte
	older   []map[string][]byte
	states  []string // after each operation since the last opening
	errors  int
	allowed []string // which of them may be found; the last is all of it
}

// end is how a store's process ended.
type end string

const (
	closed end = "closed"
	idle   end = "killed while idle" // its mark covers everything
	amid   end = "killed amid writes"
	young  end = "closed in its first segment" // which the identity names
	begun  end = "killed in its first segment"
)

// newGround runs a store for a while, through several openings, and ends it.
func newGround(t testing.TB, seed uint64, how end) *ground {
	w := newWorld(t, seed)
	w.o.SegmentSize, w.o.Keep, w.o.InFlight = 8*block, 1, 3
	g := &ground{t: t, rng: w.rng}
	require.NoError(t, w.try())
	w.settle("")
	for round := range 3 {
		if how == young || how == begun {
			w.append("a", 3, 500)
			w.vote("b")
			w.rest()
			break
		}
		w.fill("a", 40_000)
		for range 8 {
			w.any()
			w.pause()
		}
		if round < 2 {
			w.somePrefix("a")
		}
		w.rest()
		g.older = append(g.older, contents(t, w.fs, w.o.Dir))
		if round < 2 {
			w.close()
		}
	}
	keep := true
	switch how {
	case closed, young:
		keep = false // what is not synced by now does not count
		done := false
		w.s.Shutdown(func(error) { done = true })
		w.sim.RunFor(time.Second)
		require.True(t, done)
	case amid:
		for i := 0; writes(w.fs) < 3; i++ {
			require.Less(t, i, 1000)
			w.append("b", 1, 3000)
			w.sim.RunFor(time.Duration(w.rng.IntN(20)) * time.Microsecond)
		}
	}
	g.o, g.fs = w.o, w.fs.CrashClone(func(vfs.Unit) bool { return keep })
	g.files = contents(t, g.fs, w.o.Dir)
	all, err := g.open(g.fs.CrashClone(nil))
	require.NoError(t, err)
	g.states, g.allowed = w.states(), []string{all}
	if how == amid {
		below := g.belowMark()
		if below == nil {
			return newGround(t, seed+1000, how)
		}
		least, err := g.open(below)
		require.NoError(t, err)
		require.Contains(t, g.states, all)
		require.Contains(t, g.states, least)
		g.allowed = g.states[slices.Index(g.states, least) : slices.Index(g.states, all)+1]
		if len(g.allowed) == 1 { // what is not synced are no batches
			return newGround(t, seed+1000, how)
		}
	}
	return g
}

// writes counts the writes that are not synced.
func writes(fs *vfs.Mem) (n int) {
	name, off := "", int64(-1)
	for _, u := range fs.Units() {
		if u.Kind == vfs.UnitWrite && strings.Contains(u.Name, segmentPrefix) && (u.Name != name || u.Off != off) {
			n++
			name, off = u.Name, u.Off+u.Len
		}
	}
	return n
}

// contents are the files of a directory.
func contents(t testing.TB, fs *vfs.Mem, dir string) map[string][]byte {
	names, err := fs.ReadDir(dir)
	require.NoError(t, err)
	all := map[string][]byte{}
	for _, n := range names {
		b, err := readAllOf(fs, filepath.Join(dir, n))
		require.NoError(t, err)
		all[n] = b
	}
	return all
}

func readAllOf(fs *vfs.Mem, name string) ([]byte, error) {
	f, err := fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	n, _ := f.ReadAt(b, 0)
	return b[:n], f.Close()
}

// with returns the disk with one file replaced, or removed if b is nil.
func (g *ground) with(name string, b []byte) *vfs.Mem {
	fs, path := g.fs.CrashClone(nil), filepath.Join(g.o.Dir, name)
	if b == nil {
		require.NoError(g.t, fs.Remove(path))
		return fs.KillClone()
	}
	f, err := fs.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(g.t, err)
	require.NoError(g.t, f.Truncate(int64(len(b))))
	for off := 0; off < len(b); off += block {
		part := b[off:min(off+block, len(b))]
		if was := g.files[name]; off+len(part) <= len(was) && bytes.Equal(part, was[off:off+len(part)]) {
			continue
		}
		_, err = f.WriteAt(part, int64(off))
		require.NoError(g.t, err)
	}
	require.NoError(g.t, f.Close())
	return fs.CrashClone(func(vfs.Unit) bool { return true })
}

// belowMark is the disk without what is not below the greatest durable mark on it.
func (g *ground) belowMark() *vfs.Mem {
	mark, path := uint64(0), ""
	for name, b := range g.files {
		seq, ok := parseSegmentName(name)
		head, err := parseSegmentHead(b)
		for off := int64(firstBatchOffset); ok && err == nil && off < int64(len(b)); off += block {
			if h, valid := parseBatchHead(b[off:]); valid && h.inc == head.inc && h.pos == position(seq, off) && h.mark > mark {
				mark, path = h.mark, name
			}
		}
	}
	seq, off := splitPosition(mark)
	if segmentName(seq) != path {
		return nil // a segment has just begun
	}
	b := bytes.Clone(g.files[path])
	clear(b[off:])
	return g.with(path, b)
}

func (g *ground) open(fs *vfs.Mem) (string, error) {
	o := g.o
	o.FS, o.Exec = fs, actor.NewSim(1).NewProcess(1)
	s, err := Open(o)
	if err != nil {
		return "", err
	}
	return recovered(s)
}

// newest is the file in which the log ends.
func (g *ground) newest() (name string) {
	for n, b := range g.files {
		if _, ok := parseSegmentName(n); ok && n > name && len(b) > firstBatchOffset {
			if h, valid := parseBatchHead(b[firstBatchOffset:]); valid && h.kind == kindFirst {
				if head, err := parseSegmentHead(b); err == nil && segmentName(head.seq) == n && h.inc == head.inc {
					name = n
				}
			}
		}
	}
	return name
}

// faults are the ways in which size bytes at off of a file can be wrong.
func (g *ground) faults(name string, off, size int) map[string][]byte {
	file := g.files[name]
	was := file[off : off+size]
	list := map[string][]byte{}
	set := func(what string, now []byte) {
		if len(now) == size && !bytes.Equal(now, was) {
			list[what] = now
		}
	}
	flip := func(at int) []byte {
		b := bytes.Clone(was)
		b[at] ^= 1 << g.rng.IntN(8)
		return b
	}
	for i, at := range []int{0, g.rng.IntN(min(64, size)), g.rng.IntN(size), size - 1} {
		set(fmt.Sprint("flip ", i), flip(at))
	}
	set("zero", make([]byte, size))
	set("ones", bytes.Repeat([]byte{0xff}, size))
	set("shift by a byte", append([]byte{0}, was[:size-1]...))
	set("shift by half", append(bytes.Clone(was[size/2:]), was[:size/2]...))
	part := func(b []byte, at int) []byte {
		if at < 0 || at+size > len(b) {
			return nil
		}
		return b[at : at+size]
	}
	set("misplaced from before", part(file, off-size))
	set("misplaced from behind", part(file, off+size))
	set("misplaced from a block before", part(file, off-block))
	set("misplaced from a block behind", part(file, off+block))
	for _, other := range slices.Sorted(maps.Keys(g.files)) {
		if size == block || g.rng.IntN(8) == 0 {
			set("misplaced from "+other, part(g.files[other], off))
		}
	}
	for i, older := range g.older {
		set(fmt.Sprint("stale ", i), part(older[name], off))
	}
	return list
}

// whole are the ways in which a file as a whole can be wrong; nil means that it is missing.
func (g *ground) whole(name string) map[string][]byte {
	file := g.files[name]
	list := map[string][]byte{"deleted": nil, "emptied": {}}
	for cut := 0; cut < len(file); cut += block {
		list[fmt.Sprint("cut at ", cut)] = file[:cut]
		list[fmt.Sprint("cut at ", cut+77)] = file[:min(cut+77, len(file)-1)]
	}
	list["longer by zeros"] = append(bytes.Clone(file), make([]byte, block)...)
	list["longer by rubbish"] = append(bytes.Clone(file), bytes.Repeat([]byte("GBAT"), block/4)...)
	for other, b := range g.files {
		if other != name {
			list["a copy of "+other] = b
		}
	}
	for i, older := range g.older {
		if b := older[name]; b != nil {
			list[fmt.Sprint("as in round ", i)] = b
		}
	}
	return list
}

// errorf reports, and ends the test when it has reported enough.
func (g *ground) errorf(format string, args ...any) {
	g.t.Errorf(format, args...)
	if g.errors++; g.errors >= 10 {
		g.t.FailNow()
	}
}

// sweep counts what became of each fault.
type sweep map[string]int

// judge opens the disk with one file changed.
func (g *ground) judge(count sweep, name, what string, b []byte) {
	if b != nil && bytes.Equal(b, g.files[name]) {
		return
	}
	fs := g.with(name, b)
	before := fs.Digest()
	got, err := g.open(fs)
	var c *CorruptError
	switch {
	case err == nil && got == g.allowed[len(g.allowed)-1]:
		count["nothing lost"]++
		return
	case err == nil && slices.Contains(g.allowed, got):
		count["not acknowledged, dropped"]++
		return
	case err == nil && g.unseen(name, b) && slices.Contains(g.states, got):
		count["lost with the newest segment"]++
		return
	case err == nil:
		g.errorf("%s, %s: opened with\n%s\nin place of\n%s", name, what, got, strings.Join(g.allowed, "\n"))
		return
	case errors.As(err, &c):
		count["refused as corrupt"]++
		if !strings.HasPrefix(c.File, g.o.Dir) || c.Offset < 0 {
			g.errorf("%s, %s: no file and offset in %v", name, what, err)
		}
	case errors.Is(err, ErrIdentity):
		count["refused by identity"]++
	case errors.Is(err, ErrVersion):
		count["refused by version"]++
	default:
		g.errorf("%s, %s: %v", name, what, err)
	}
	if !strings.Contains(err.Error(), g.o.Dir) {
		g.errorf("%s, %s: the error does not say where: %v", name, what, err)
	}
	if fs.Digest() != before && name != lockName {
		g.errorf("%s, %s: refused with %v, and the files are not what they were", name, what, err)
	}
	if _, again := g.open(fs.KillClone()); again == nil || again.Error() != err.Error() {
		g.errorf("%s, %s: refused with %v and then with %v", name, what, err, again)
	}
}

// unseen says that the segment in which the log ends is gone, is shorter, or bears the header of another life. Of one
// that was begun since the identity was written last, what it held then looks as if it had not been written
// yet: the one thing that a store does not notice, and only if it was not closed.
func (g *ground) unseen(name string, b []byte) bool {
	if name != g.newest() {
		return false
	}
	id, err := parseIdentity(g.files[identityName])
	require.NoError(g.t, err)
	if name == segmentName(id.segment) && len(b) <= firstBatchOffset {
		return false
	}
	head, err := parseSegmentHead(b)
	return len(b) < len(g.files[name]) || err == nil && segmentName(head.seq) != name
}

func (g *ground) run() sweep {
	count := sweep{}
	for _, name := range slices.Sorted(maps.Keys(g.files)) {
		file := g.files[name]
		sizes := []int{block, 512}
		if testing.Short() || raceEnabled {
			sizes = sizes[:1]
		}
		for _, size := range sizes {
			for off := 0; off < len(file); off += size {
				n := min(size, len(file)-off)
				faults := g.faults(name, off, n)
				for _, what := range slices.Sorted(maps.Keys(faults)) {
					b := bytes.Clone(file)
					copy(b[off:], faults[what])
					g.judge(count, name, fmt.Sprintf("%d bytes at %d: %s", n, off, what), b)
				}
			}
		}
		faults := g.whole(name)
		for _, what := range slices.Sorted(maps.Keys(faults)) {
			g.judge(count, name, what, faults[what])
		}
	}
	return count
}

func TestSingleFaults(t *testing.T) {
	seeds := 1
	if *wantStates > 0 {
		seeds = 3
	}
	for _, how := range []end{closed, idle, amid, young, begun} {
		for seed := range uint64(seeds) {
			t.Run(fmt.Sprint(how, " ", seed), func(t *testing.T) {
				t.Parallel()
				count := newGround(t, 100+seed, how).run()
				t.Logf("%v", count)
				require.Greater(t, count["nothing lost"], 50)
				require.Greater(t, count["refused as corrupt"], 20)
				require.NotZero(t, count["refused by identity"])
				if how == closed || how == young {
					require.Zero(t, count["lost with the newest segment"])
				}
				if how == amid {
					require.NotZero(t, count["not acknowledged, dropped"])
				}
			})
		}
	}
}
