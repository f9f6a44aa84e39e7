package wal

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/vfs"
)

// The model test runs random operations on many groups and compares the store with maps: what
// is read at any moment with what was submitted, and what is there at rest, also after
// a reopening, with what was acknowledged.

type oracleEntry struct {
	term int64
	data string
	meta string
	conf bool
}

// oracle is what a group should be.
type oracle struct {
	first, last int64
	prevTerm    int64
	commit      int64
	hard        HardState
	entries     map[int64]oracleEntry
}

func newOracle() *oracle { return &oracle{first: 1, entries: map[int64]oracleEntry{}} }

func (o *oracle) clone() *oracle {
	c := *o
	c.entries = maps.Clone(o.entries)
	return &c
}

func (o *oracle) append(b entry.Batch, commit int64) {
	for it := b.Iter(); ; {
		e, ok := it.Next()
		if !ok {
			break
		}
		o.entries[e.Index] = oracleEntry{e.Term, string(e.Data), string(e.Meta), e.Type == entry.Configuration}
	}
	o.last, o.commit = b.Last(), max(o.commit, commit)
}

func (o *oracle) suffix(last int64) { o.last = last }

func (o *oracle) prefix(first, prevTerm int64) {
	o.first, o.prevTerm, o.last = first, prevTerm, max(o.last, first-1)
}

func (o *oracle) state(h HardState, commit int64) { o.hard, o.commit = h, max(o.commit, commit) }

// recovered is o as the store should describe it.
func (o *oracle) recovered() Recovered {
	r := Recovered{Hard: o.hard, First: o.first, Last: o.last, Commit: o.commit, PrevTerm: o.prevTerm}
	for i := o.first; i <= o.last; i++ {
		e := o.entries[i]
		if n := len(r.Runs); n == 0 || r.Runs[n-1].Term != e.term {
			r.Runs = append(r.Runs, entry.TermRun{First: i, Term: e.term})
		}
		if e.conf {
			r.Confs = append(r.Confs, entry.ConfMark{Index: i, Meta: []byte(e.meta)})
		}
	}
	return r
}

// player runs the operations.
type player struct {
	*bed
	rng     *rand.Rand
	names   []string
	durable map[string]*oracle // by what was acknowledged
	asked   map[string]*oracle // by what was submitted; meaningless once something was refused
	term    map[string]int64
	space   bool // it runs out at times: nothing is known of what was submitted and not acknowledged
	full    bool // the disk, now
	refused bool // something was, since the last rest
	flying  int
}

func newPlayer(t testing.TB, seed uint64) *player {
	p := &player{bed: newBed(t), rng: rand.New(rand.NewPCG(seed, 3)), durable: map[string]*oracle{}, asked: map[string]*oracle{}, term: map[string]int64{}}
	p.o.SegmentSize = block * int64(4+p.rng.IntN(14))
	p.o.MaxBatch = 1 << (10 + p.rng.IntN(5))
	p.o.InFlight = 1 + p.rng.IntN(4)
	p.o.Keep = p.rng.IntN(3)
	p.o.MaxRecord = 1 << 15
	for i := range 1 + p.rng.IntN(12) {
		name := fmt.Sprint("group", i)
		p.names = append(p.names, name)
		p.durable[name], p.asked[name] = newOracle(), newOracle()
	}
	return p
}

// done notes that an operation was acknowledged or refused.
func (p *player) done(apply func()) func(error) {
	p.flying++
	return func(err error) {
		p.flying--
		if err == nil {
			apply()
			return
		}
		require.True(p.t, errors.Is(err, ErrNoSpace) || p.refused && errors.Is(err, ErrOrder), "%v", err)
		p.refused = true
	}
}

func (p *player) op() {
	name := p.names[p.rng.IntN(len(p.names))]
	g := p.group(name)
	p.s.mu.Lock()
	first, last := g.first, g.last
	p.s.mu.Unlock()
	d, a := p.durable[name], p.asked[name]
	switch k := p.rng.IntN(20); {
	case k < 10 || last < first && k < 16:
		p.appendSome(g, d, a, last)
	case k < 12:
		h := HardState{Term: d.hard.Term + 1, Vote: fmt.Sprint("v", p.rng.IntN(9)), GroupID: p.rng.Uint64(), Waiting: p.rng.IntN(2) == 0, WasMember: d.hard.Term%2 == 0}
		if p.rng.IntN(3) == 0 {
			h.Override = Override{Term: d.hard.Term + 1, Last: p.rng.Int64N(9), Conf: strings.Repeat("h:1:0:0,", p.rng.IntN(40))}
		}
		commit := p.rng.Int64N(last + 2)
		a.state(h, commit)
		g.SaveHardState(h, commit, p.done(func() { d.state(h, commit) }))
	case k < 15:
		keep := first - 1 + p.rng.Int64N(last-first+2)
		a.suffix(keep)
		g.TruncateSuffix(keep, p.done(func() { d.suffix(keep) }))
	case k < 19:
		from := first + p.rng.Int64N(last-first+2)
		if p.rng.IntN(8) == 0 {
			from += p.rng.Int64N(50)
		}
		prev := p.rng.Int64N(9)
		a.prefix(from, prev)
		g.TruncatePrefix(from, prev, p.done(func() { d.prefix(from, prev) }))
	case p.rng.IntN(4) == 0 && !p.space:
		*a = *newOracle()
		g.Remove(p.done(func() { *d = *newOracle() }))
	}
}

func (p *player) appendSome(g *Group, d, a *oracle, last int64) {
	var b entry.Builder
	b.Reset(last + 1)
	term := max(a.hard.Term, p.term[g.name], 1) // terms do not decrease
	for range 1 + p.rng.IntN(6) {
		term += int64(p.rng.IntN(8) / 7)
		if p.rng.IntN(12) == 0 {
			b.AppendConf(term, []string{fmt.Sprint("p", p.rng.IntN(100))}, nil)
			continue
		}
		size := p.rng.IntN(300)
		if p.rng.IntN(20) == 0 {
			size = p.rng.IntN(5000)
		}
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(p.rng.IntN(256))
		}
		b.AppendData(term, data)
	}
	p.term[g.name] = term
	batch, commit := b.Build(), p.rng.Int64N(last+2)
	a.append(batch, commit)
	g.Append(batch, commit, p.done(func() { d.append(batch, commit) }))
}

// read reads from a random place on and compares.
func (p *player) read() {
	name := p.names[p.rng.IntN(len(p.names))]
	a, g := p.asked[name], p.group(name)
	if p.space {
		return
	}
	if a.last < a.first {
		_, err := g.Read(a.first, 100)
		require.ErrorIs(p.t, err, ErrOrder)
		return
	}
	at := a.first + p.rng.Int64N(a.last-a.first+1)
	p.compare(g, a, at, 1<<p.rng.IntN(16))
	_, err := g.Read(a.first-1, 1)
	require.ErrorIs(p.t, err, ErrCompacted)
}

// compare reads one piece from at on and returns where the next begins.
func (p *player) compare(g *Group, o *oracle, at int64, maxBytes int) (next int64) {
	b, err := g.Read(at, maxBytes)
	require.NoError(p.t, err)
	_, err = entry.Check(b)
	require.NoError(p.t, err)
	require.Equal(p.t, at, b.First)
	require.GreaterOrEqual(p.t, b.Count, 1)
	require.LessOrEqual(p.t, b.Last(), o.last)
	for it := b.Iter(); ; {
		e, ok := it.Next()
		if !ok {
			return b.Last() + 1
		}
		want := o.entries[e.Index]
		require.Equal(p.t, want, oracleEntry{e.Term, string(e.Data), string(e.Meta), e.Type == entry.Configuration}, "entry %d", e.Index)
	}
}

// rest lets everything finish and compares all.
func (p *player) rest() {
	p.run(time.Second)
	require.Zero(p.t, p.flying)
	for _, name := range p.names {
		d, g := p.durable[name], p.group(name)
		got := g.Recovered()
		got.Existed = false
		want := d.recovered()
		if len(got.Runs) == 0 {
			got.Runs = nil
		}
		if len(got.Confs) == 0 {
			got.Confs = nil
		}
		require.Equal(p.t, want, got, name)
		for at := d.first; at <= d.last; {
			at = p.compare(g, d, at, 1<<p.rng.IntN(16))
		}
		p.asked[name] = d.clone()
	}
	p.refused = false
}

// reopen closes the store, or cuts the power, and opens it again.
func (p *player) reopen() {
	before := p.s.Groups()
	switch p.rng.IntN(3) {
	case 0:
		p.close()
	case 1:
		p.fs = p.fs.CrashClone(func(u vfs.Unit) bool { return p.rng.IntN(2) == 0 })
	default:
		p.fs = p.fs.KillClone()
	}
	require.NoError(p.t, p.open())
	for _, name := range p.s.Groups() {
		require.True(p.t, slices.Contains(before, name))
	}
}

func play(t testing.TB, seed uint64, ops int, space bool) {
	p := newPlayer(t, seed)
	p.space = space
	require.NoError(t, p.open())
	for range ops {
		p.op()
		if p.rng.IntN(3) == 0 {
			p.read()
		}
		if p.rng.IntN(2) == 0 {
			p.run(time.Duration(p.rng.IntN(400)) * time.Microsecond)
		}
		if space && p.rng.IntN(40) == 0 {
			p.full = !p.full
			p.fs.SetCapacity(-1)
			if p.full {
				p.fs.SetCapacity(p.fs.Used() + int64(p.rng.IntN(100000)))
			}
		}
		if p.rng.IntN(25) == 0 {
			p.rest()
			if p.rng.IntN(3) == 0 {
				p.fs.SetCapacity(-1)
				p.full = false
				p.reopen()
				p.rest()
			}
		}
	}
	p.fs.SetCapacity(-1)
	p.rest()
	require.NoError(t, p.s.Err())
	require.NoError(t, p.s.Space())
	p.reopen()
	p.rest()
	p.close()
}

func TestRandomOperationsAgreeWithTheModel(t *testing.T) {
	seeds := 60
	if testing.Short() || raceEnabled {
		seeds = 8
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { play(t, seed, 400, seed%2 == 1) })
	}
}
