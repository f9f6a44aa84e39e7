package sim

import (
	"time"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/wire"
)

// This file holds what must be true of who leads, who follows whom, and when a leadership may end.

// elected demands that a leader has the votes of a quorum of those who cannot have forgotten anything, or of all voters. Where all
// logs are empty there is nothing to forget.
func (k *checker) elected(m *machine, t *termInfo) {
	votes, weak, conf := t.votes[m.address]|setOf(m), t.weak, k.electedUnder(m)
	if m.st.Waiting {
		weak |= setOf(m)
	}
	if len(m.log) > 0 && m.log[0].term == m.st.Term {
		weak = 0
	}
	if !conf.quorum(votes) || !conf.quorum(votes&^weak) && !conf.everyVoter(votes) {
		k.c.fail("I1 election safety: machine %d leads term %d by votes of machines %b, of which %b may have forgotten something, under configuration %v",
			m.index, m.st.Term, votes, votes&weak, conf)
	}
}

// follows checks whom a replica takes for the leader: a follower the one of its term or nobody, a leader itself, others nobody.
func (k *checker) follows(m *machine, old graft.SimState) {
	st := m.st
	none := st.Leader.IsZero()
	switch {
	case (st.Role == graft.RoleLeader) != st.Leader.Same(m.peer) && st.Role < graft.RoleFailed, st.Role == graft.RoleCandidate && !none:
		k.c.fail("I1 election safety: machine %d, %v in term %d, takes %v for the leader", m.index, st.Role, st.Term, st.Leader)
	case st.Role == graft.RoleFollower && !none:
		if t := k.terms[st.Term]; t == nil || t.leader == nil || !t.leader.peer.Same(st.Leader) {
			k.c.fail("I1 election safety: machine %d follows %v in term %d, which it does not lead", m.index, st.Leader, st.Term)
		}
	}
	if old.Role == graft.RoleCandidate && st.Role == graft.RoleFollower && old.Term == st.Term && !none {
		k.c.Count.SplitVotes++
	}
}

// heardBy notes that an answer to a leader's message has reached it.
func (k *checker) heardBy(m, from *machine, sent time.Time) {
	if m.st.Role == graft.RoleLeader {
		m.heardOf[from.index] = k.c.sim.Now()
		if m.heardFirst[from.index].IsZero() {
			m.heardFirst[from.index] = k.c.sim.Now()
		}
		if sent.After(m.heardSent[from.index]) {
			m.heardSent[from.index] = sent
		}
	}
}

// takenBy notes that an answer to a leader's snapshot has reached it: its sender follows as well.
func (k *checker) takenBy(m, from *machine) {
	if m.st.Role == graft.RoleLeader {
		m.heardOf[from.index] = k.c.sim.Now()
	}
}

// missing notes that a leader is told by a machine that has lost its disk how little it holds, when it asked knowing better.
func (k *checker) missing(m, from *machine, sent time.Time, message []byte) {
	i := from.index
	if m.st.Role != graft.RoleLeader || from.lostDisk == 0 || from.boot < from.lostDisk || m.lost[i].boot >= from.lostDisk ||
		!sent.After(m.heardFirst[i].Add(5*time.Millisecond)) {
		return
	}
	if r, err := wire.ParseAppendResponse(message); err == nil && !r.Success && r.HasLastIndex && r.Term == m.st.Term {
		m.lost[i] = lostDisk{boot: from.boot, at: k.c.sim.Now(), last: r.LastIndex}
	}
}

// counted is who may count for an entry that a leader commits: whose disks have held it, but for those that have lost it since, as the leader
// knows by an answer of what came after.
func (k *checker) counted(m *machine, e *entryInfo) set {
	on := e.on
	for _, o := range k.c.machines {
		l := m.lost[o.index]
		known := o.lostDisk > 0 && l.boot >= o.lostDisk && k.c.sim.Now().Sub(l.at) > 5*time.Millisecond && m.thawedAt.Before(l.at)
		if known && e.index > l.last && !o.holds(e, o.marked) {
			on &^= setOf(o)
		}
	}
	return on
}

// checkQuorum demands that a leader stops that no quorum has answered for two and a half election timeouts. That is late: the oldest
// request that was answered counts, and the clock of a machine is a tenth too slow at most.
func (k *checker) checkQuorum() {
	now := k.c.sim.Now()
	for _, m := range k.c.machines {
		if !m.ready() || m.st.Role != graft.RoleLeader || m.overridden {
			continue
		}
		late := now.Add(-5 * k.c.o.Election / 2)
		heard := setOf(m)
		for _, from := range k.c.machines {
			if m.heardOf[from.index].After(late) {
				heard |= setOf(from)
			}
		}
		if m.ledSince.Before(late) && m.thawedAt.Before(late) && !m.conf().quorum(heard) {
			k.c.fail("V3 check-quorum: machine %d leads term %d though in %v it was answered by machines %b only, under configuration %v",
				m.index, m.st.Term, now.Sub(late), heard&^setOf(m), m.conf())
		}
	}
}

// sticky judges a pre-vote that a machine grants for a request that came at some time: who hears a leader, or leads and is answered by its
// quorum, does not help to depose it. What the machine knew is known here only if it answers at once.
func (k *checker) sticky(m, to *machine, at time.Time) {
	recent := at.Add(-4 * k.c.o.Election / 5) // the clock of a machine is a tenth too fast at most
	if k.c.sim.Now().Sub(at) > time.Millisecond || m.surprised.After(recent) || m.thawedAt.After(recent) {
		return
	}
	st := graft.SimStateOf(m.node)
	if st.Role == graft.RoleLeader {
		if m.st.Role != st.Role || m.st.Term != st.Term {
			return // it has begun to lead in this step, and may have granted before
		}
		answered := setOf(m)
		for _, from := range k.c.machines {
			if m.heardSent[from.index].After(recent) && m.heardOf[from.index].Before(at) {
				answered |= setOf(from)
			}
		}
		if m.ledSince.Before(recent) && !m.overridden && m.conf().quorum(answered) {
			k.c.fail("V1 stickiness: machine %d leads term %d, was answered by machines %b just now, and grants machine %d a pre-vote",
				m.index, st.Term, answered&^setOf(m), to.index)
		}
		return
	}
	a := m.lastAppend
	if a.from == nil || a.from.dead || !a.at.After(recent) || !a.at.Before(at) {
		return
	}
	if r, err := wire.ParseAppendRequest(a.message, a.attachment); err == nil && r.Term == st.Term {
		k.c.fail("V1 stickiness: machine %d has heard machine %d, which leads term %d, %v ago, and grants machine %d a pre-vote",
			m.index, a.from.at.index, st.Term, at.Sub(a.at), to.index)
	}
}
