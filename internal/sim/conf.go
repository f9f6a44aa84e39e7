package sim

import (
	"fmt"
	"math/bits"

	"github.com/graft-raft/graft"
)

// set is a set of machines.
type set uint16

func setOf(machines ...*machine) (s set) {
	for _, m := range machines {
		s |= 1 << m.index
	}
	return s
}

func (s set) has(m *machine) bool { return s>>m.index&1 != 0 }

func (s set) len() int { return bits.OnesCount16(uint16(s)) }

// of lists the members of s among all machines.
func (s set) of(all []*machine) (ms []*machine) {
	for _, m := range all {
		if s.has(m) {
			ms = append(ms, m)
		}
	}
	return ms
}

// majority reports whether yes contains more than half of s. Of nobody, nothing is.
func (s set) majority(yes set) bool { return (s & yes).len() > s.len()/2 }

// confInfo is a configuration that logs hold, or that machines start with.
//
// It is worked out by the simulator from the bytes in the log, not taken from the code under test.
type confInfo struct {
	entry  *entryInfo // nil: not from a log
	prev   *confInfo  // in force before it; nil: nothing was
	next   *confInfo  // of a joint one: what its leader completed it by
	owner  *change    // who asked for it; nil: nobody is known, or it restates another
	conf   graft.Configuration
	old    graft.Configuration
	voters set
	olds   set // voters of the old half; empty unless it is joint
	all    set // members of both halves, learners too
}

func (c *confInfo) joint() bool { return !c.old.Empty() }

func (c *confInfo) index() int64 {
	if c.entry == nil {
		return 0
	}
	return c.entry.index
}

// quorum reports whether yes is enough to elect or to commit: a majority, of both halves if joint.
func (c *confInfo) quorum(yes set) bool {
	return c.voters.majority(yes) && (!c.joint() || c.olds.majority(yes))
}

// everyVoter reports whether nobody who counts is missing in yes.
func (c *confInfo) everyVoter(yes set) bool {
	need := c.voters | c.olds
	return need != 0 && need&^yes == 0
}

// same reports whether both say the same.
func (c *confInfo) same(o *confInfo) bool { return c.conf.Equal(o.conf) && c.old.Equal(o.old) }

// String is what the log says.
func (c *confInfo) String() string {
	if c.joint() {
		return fmt.Sprintf("%d: %v from %v", c.index(), c.conf, c.old)
	}
	return fmt.Sprintf("%d: %v", c.index(), c.conf)
}

// confOf works out who counts. Peers that are no machine count too: nobody answers for them.
func (k *checker) confOf(conf, old graft.Configuration) *confInfo {
	c := &confInfo{conf: conf, old: old}
	c.voters, c.olds = k.machinesOf(conf.Voters()), k.machinesOf(old.Voters())
	c.all = c.voters | c.olds | k.machinesOf(conf.Learners()) | k.machinesOf(old.Learners())
	return c
}

// ghost stands for all peers that are no machine.
const ghost = 15

func (k *checker) machinesOf(peers []graft.PeerID) (s set) {
	for _, p := range peers {
		if e := k.c.net.byName[p.Address]; e != nil {
			s |= 1 << e.index
		} else {
			s |= 1 << ghost
		}
	}
	return s
}

// confPair is what decides whether two configurations are safe together.
type confPair struct{ a, aOld, b, bOld set }

// disjoint reports whether a quorum of each can be found that share nobody, by trying all.
func (k *checker) disjoint(a, b *confInfo) bool {
	pair := confPair{a.voters, a.olds, b.voters, b.olds}
	found, known := k.pairs[pair]
	if known {
		return found
	}
	all := a.voters | a.olds
	for yes := all; ; yes = (yes - 1) & all {
		if a.quorum(yes) && b.quorum(^yes) {
			found = true
			break
		}
		if yes == 0 {
			break
		}
	}
	k.pairs[pair] = found
	return found
}
