package sim

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// This file is what makes a schedule of faults: acts, each of which can be left out of a run while
// the others stay as they are. So what led to a failure can be found by leaving out more and more.

// act is something that was done to the cluster.
type act struct {
	at   time.Duration
	name string // the kind and its number, as in "kill#3"
}

func (a act) String() string { return fmt.Sprintf("%.3fs %s", a.at.Seconds(), a.name) }

// recurring has an act of one kind happen at random times, every d in the mean. The times depend on nothing but
// the seed.
func (c *Cluster) recurring(kind string, d time.Duration, f func()) {
	if d <= 0 {
		return
	}
	when := draw{rand.New(rand.NewPCG(c.o.Seed, nameSum(kind)))}
	var next func()
	n := 0
	next = func() {
		c.sim.After(time.Duration(when.ExpFloat64()*float64(d)), func() {
			if c.healed {
				return
			}
			n++
			if rare := when.chance(rareInLull); !c.lull || rare {
				c.act(fmt.Sprintf("%s#%d", kind, n), f)
			}
			next()
		})
	}
	next()
}

// act does something unless it is left out. What it draws, then and in what follows from it, it draws for itself.
func (c *Cluster) act(name string, f func()) {
	if c.o.Acts != nil && !c.o.Acts[name] {
		return
	}
	c.acts = append(c.acts, act{at: c.sim.Now().Sub(c.hist.start), name: name})
	c.with(draw{rand.New(rand.NewPCG(c.o.Seed, nameSum(name)))}, f)
}

// with runs f with its own dice.
func (c *Cluster) with(dice draw, f func()) {
	old, admins := c.rng, c.admin.rng
	c.rng, c.admin.rng = dice, dice
	f()
	c.rng, c.admin.rng = old, admins
}

// after calls f once d has passed, with the dice of whoever asks for it.
func (c *Cluster) after(d time.Duration, f func()) {
	dice := c.rng
	c.sim.After(d, func() { c.with(dice, f) })
}

// harm is after for what does harm: once everything heals it does not happen any more.
func (c *Cluster) harm(d time.Duration, f func()) {
	c.after(d, func() {
		if !c.healed {
			f()
		}
	})
}

func nameSum(name string) uint64 { return sumOf([]byte(name)) }

const (
	rareInLull = 0.02 // part of the acts that happen in a lull
	callInLull = 0.1  // part of the calls of clients
)

// weather has storms, in which everything happens, and lulls, in which hardly anything does, take turns.
func (c *Cluster) weather() {
	if c.o.Lull <= 0 {
		return
	}
	when := draw{rand.New(rand.NewPCG(c.o.Seed, nameSum("weather")))}
	var turn func()
	turn = func() {
		length := c.o.Storm
		if c.lull {
			length = c.o.Lull
			c.Count.Lulls++
		}
		c.sim.After(time.Duration((0.5+when.Float64())*float64(length)), func() {
			c.lull = !c.lull && !c.healed
			c.hist.note(-1, "lull: %v", c.lull)
			turn()
		})
	}
	turn()
}
