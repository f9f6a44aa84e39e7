package sim

import (
	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/entry"
)

// This file holds what must be true of configurations. Each rule is worked out anew from logs and
// disks; the code under test is not asked.

// govern notes which configuration is in force at an entry that is seen for the first time,
// and checks a configuration entry against what stands before it.
func (k *checker) govern(m *machine, info *entryInfo, meta []byte) {
	before := k.initial
	if info.prev != nil {
		before = info.prev.conf
	}
	first := info.prev == nil || info.prev.term < info.term
	if info.typ != entry.Configuration {
		info.conf = before
		if first {
			k.c.fail("I8 configuration safety: machine %d: term %d begins with entry %d, which restates no configuration", m.index, info.term, info.index)
		}
		return
	}
	c, err := k.parseConf(meta)
	if err != nil {
		k.c.fail("I8 configuration safety: machine %d: configuration entry %d of term %d: %v", m.index, info.index, info.term, err)
		c = new(confInfo)
	}
	c.entry, c.prev, info.conf = info, before, c
	switch {
	case first:
		if !c.same(before) && !k.overridden {
			k.c.fail("I8 configuration safety: machine %d: term %d begins with configuration %v, in force was %v", m.index, info.term, c, before)
		}
		if c.joint() {
			k.c.Count.JointInherited++
		}
	case before.joint():
		k.completes(m, c)
	default:
		k.changes(m, c)
	}
}

func (k *checker) parseConf(meta []byte) (*confInfo, error) {
	_, peers, old, err := entry.ConfPeers(meta)
	if err != nil {
		return nil, err
	}
	var confs [2]graft.Configuration
	for i, names := range [2][]string{peers, old} {
		var ids []graft.PeerID
		for _, name := range names {
			p, err := graft.ParsePeerID(name)
			if err != nil {
				return nil, err
			}
			ids = append(ids, p)
		}
		if confs[i], err = graft.NewConfiguration(ids...); err != nil {
			return nil, err
		}
	}
	return k.confOf(confs[0], confs[1]), nil
}

// completes checks a configuration behind a joint one: it may only be the new half, and only
// once the joint one of this very term is committed.
func (k *checker) completes(m *machine, c *confInfo) {
	before := c.prev
	if c.joint() || !c.conf.Equal(before.conf) {
		k.c.fail("I8 configuration safety: machine %d: joint configuration %v is followed by %v", m.index, before, c)
	}
	k.confRule(m, c)
	c.owner, before.next = before.owner, c
}

// changes checks a configuration that begins a change.
func (k *checker) changes(m *machine, c *confInfo) {
	before := c.prev
	differ := (c.voters ^ before.voters).len()
	switch {
	case c.voters == 0:
		k.c.fail("I8 configuration safety: machine %d: configuration %v has no voter", m.index, c)
	case c.joint() && (!c.old.Equal(before.conf) || c.conf.Equal(c.old)):
		k.c.fail("I8 configuration safety: machine %d: joint configuration %v behind %v", m.index, c, before)
	case !c.joint() && (differ > 1 || differ > 0 && k.c.o.AlwaysJoint):
		k.c.fail("I8 configuration safety: machine %d: configuration %v behind %v, though %d voters differ", m.index, c, before, differ)
	case !c.joint() && c.conf.Equal(before.conf):
		k.c.fail("I8 configuration safety: machine %d: configuration %v changes nothing", m.index, c)
	}
	if c.joint() {
		k.c.Count.JointEntered++
	}
	k.confRule(m, c)
	k.c.admin.begun(m, c)
}

// confRule demands that a leader appends a configuration only once the one before it, which is of its
// own term, is committed: there is one at most that is not. A leader can
// be asked only as long as it lives.
func (k *checker) confRule(m *machine, c *confInfo) {
	before := c.prev
	if before.entry == nil || before.entry.term != c.entry.term {
		k.c.fail("I8 configuration safety: machine %d: configuration %v in term %d, before the term's own entry", m.index, c, c.entry.term)
		return
	}
	if m.st.Role == graft.RoleLeader && m.st.Term == c.entry.term && m.st.Commit < before.index() {
		k.c.fail("I8 configuration safety: machine %d: configuration %v while %v is not committed, commit is %d", m.index, c, before, m.st.Commit)
	}
}

// confsCut notes the configurations that a machine takes back.
func (k *checker) confsCut(m *machine, keep int64) {
	for _, e := range m.log[keep:] {
		if e.typ == entry.Configuration {
			k.c.Count.ConfTruncated++
			k.confNews = true
		}
	}
}

// confCommitted notes a configuration that was committed for the first time.
func (k *checker) confCommitted(c *confInfo) {
	k.confs = append(k.confs, c)
	k.confNews = true
	if c.joint() {
		return
	}
	k.c.Count.ConfCommitted++
	was := c.prev
	for was != nil && was.joint() {
		was = was.prev
	}
	for _, m := range k.c.machines {
		m.membership(c, was)
	}
}

// changed reports whether the group may have another configuration than the one it began with.
func (k *checker) changed() bool {
	for _, m := range k.c.machines {
		if c := m.conf(); c != k.nothing && !c.same(k.initial) {
			return true
		}
	}
	return false
}

// everChanged reports whether any log has ever held another configuration than the one the group began with.
func (k *checker) everChanged() bool {
	for _, c := range k.confs {
		if !c.same(k.initial) {
			return true
		}
	}
	return false
}

// membership keeps count of who comes and goes.
func (m *machine) membership(c, was *confInfo) {
	n := &m.c.Count
	switch {
	case c.all.has(m) && m.dropped:
		n.ReAdded++
		if m.wipedOut {
			n.WipedJoiners++
		}
		m.dropped, m.wipedOut = false, false
	case !c.all.has(m) && was.all.has(m):
		m.dropped = true
	case c.voters.has(m) && was.all.has(m) && !was.voters.has(m):
		n.Promoted++
	case was.voters.has(m) && !c.voters.has(m):
		n.Demoted++
	}
}

// confSafety demands that of all configurations that may be in force at once, on any machine that runs or
// may run again, no two can decide without each other. Those that lack a committed configuration are not in
// question: noComeback shows that they decide nothing.
func (k *checker) confSafety() {
	if k.overridden {
		return
	}
	k.noComeback()
	latest := k.initial
	if n := len(k.confs); n > 0 {
		latest = k.confs[n-1]
	}
	live := append(k.live[:0], latest)
	for _, m := range k.c.machines {
		for _, end := range [2]int64{int64(len(m.log)), m.marked} {
			c := m.confAt(end)
			if latest.entry != nil && !m.holds(latest.entry, end) || c.all == 0 || contains(live, c) {
				continue
			}
			for _, o := range live {
				if k.disjoint(c, o) {
					k.c.fail("I8 configuration safety: %v, on machine %d, and %v can decide without each other", c, m.index, o)
				}
			}
			live = append(live, c)
		}
	}
	k.live = live
}

func contains(confs []*confInfo, c *confInfo) bool {
	for _, o := range confs {
		if o == c {
			return true
		}
	}
	return false
}

// noComeback demands that nobody who lacks what is committed could win an election, as logs are now, or as power
// cuts would leave them.
func (k *checker) noComeback() {
	n := len(k.committed)
	if n == 0 || k.overridden {
		return
	}
	last := k.committed[n-1]
	for _, m := range k.c.machines {
		for _, end := range [2]int64{int64(len(m.log)), m.marked} {
			if m.holds(last, end) {
				continue
			}
			if votes, wins := k.wouldWin(m, end); wins {
				k.c.fail("I8 configuration safety: machine %d with %d entries could win an election by the votes of %b, under %v; committed is %d",
					m.index, end, votes, m.confAt(end), n)
			}
		}
	}
}

// wouldWin reports whether a machine would be elected if it had the first end entries of its log and
// everybody who may vote for it did.
func (k *checker) wouldWin(m *machine, end int64) (votes set, wins bool) {
	c := m.confAt(end)
	if m.muteAt(end) || !m.votesBy(c) {
		return 0, false
	}
	var full, weak set
	for _, v := range k.c.machines {
		switch {
		case !v.forgetful() && (v == m || m.covers(end, v, v.marked)):
			full |= setOf(v)
		case v.forgetful() && (v == m || v.mightVote(m, end)):
			weak |= setOf(v)
		}
	}
	return full | weak, c.quorum(full) || weak != 0 && c.everyVoter(full|weak)
}

// covers reports whether the first end entries of a machine's log are as good as the first ones of another's.
func (m *machine) covers(end int64, o *machine, ends int64) bool {
	p, q := m.positionAt(end), o.positionAt(ends)
	return p.term > q.term || p.term == q.term && p.index >= q.index
}

// mightVote reports whether a machine that may have forgotten something might vote, now or after a power cut, for
// one with so many entries.
func (m *machine) mightVote(candidate *machine, end int64) bool {
	for _, own := range [2]int64{int64(len(m.log)), m.marked} {
		if !m.muteAt(own) && candidate.covers(end, m, own) {
			return true
		}
	}
	return false
}

// confAt is the configuration in force at the end of the first end entries.
func (m *machine) confAt(end int64) *confInfo {
	if end == 0 {
		return m.base
	}
	return m.log[end-1].conf
}

// conf is the configuration in force.
func (m *machine) conf() *confInfo { return m.confAt(int64(len(m.log))) }

func (m *machine) holds(e *entryInfo, end int64) bool { return e.index <= end && m.log[e.index-1] == e }

// positionAt is where the first end entries of a machine's log end.
func (m *machine) positionAt(end int64) entryKey {
	if end == 0 {
		return entryKey{}
	}
	return entryKey{index: end, term: m.log[end-1].term}
}

// forgetful reports whether a machine may have lost what it acknowledged, so that its vote counts little.
func (m *machine) forgetful() bool { return m.st.Waiting || m.blank }

// muteAt reports whether a machine with the first end entries of its log does not vote at all: it may have lost what
// it acknowledged, and not even the votes of all whom it knows of would prove anything.
func (m *machine) muteAt(end int64) bool {
	return m.forgetful() && (m.initial.Empty() || !m.confAt(end).same(m.c.check.initial))
}

// electedUnder is the configuration by which a machine's latest votes are counted: the one in force before
// its leadership's own entries.
func (k *checker) electedUnder(m *machine) *confInfo {
	if m.overridden {
		return m.conf() // it restates what was put in force by hand
	}
	end := len(m.log)
	for end > 0 && m.log[end-1].term == m.st.Term {
		end--
	}
	return m.confAt(int64(end))
}

// votesBy reports whether a machine is a voter by c, or by one before it that it does not know to be replaced for good.
func (m *machine) votesBy(c *confInfo) bool {
	for ; c != nil; c = c.prev {
		if (c.voters | c.olds).has(m) {
			return true
		}
		if c.index() <= m.st.Commit {
			break
		}
	}
	return false
}

// mayCampaign demands that a candidate is a voter by the latest configuration in its log, or by one that may
// still turn out to be in force.
func (k *checker) mayCampaign(m *machine) {
	c := m.conf()
	switch {
	case (c.voters | c.olds).has(m) || m.overridden:
	case m.votesBy(c):
		k.c.Count.OutsiderCampaigns++
	default:
		k.c.fail("I8 configuration safety: machine %d campaigns in term %d, and is no voter of %v", m.index, m.st.Term, c)
	}
}

// asks sees a machine ask for a vote.
func (k *checker) asks(m *machine) {
	if now := k.c.sim.Now(); now != m.asked {
		m.asked = now
		k.c.nagging(m)
	}
	if graft.SimRemoved(m.node) {
		k.c.fail("I8 configuration safety: machine %d knows that it was removed, and asks for votes", m.index)
	}
}

// member checks the part of a replica that membership is made of.
func (k *checker) member(m *machine, old graft.SimState) {
	st := m.st
	if st.ConfIndex != old.ConfIndex || st.ConfTerm != old.ConfTerm || st.Last != old.Last || st.LastTerm != old.LastTerm {
		k.sameConf(m)
	}
	led := old.Role == graft.RoleLeader && (st.Role != graft.RoleLeader || st.Term != old.Term)
	if led {
		k.leaderLost(m, old)
	}
	if st.Stage != old.Stage && st.Stage != graft.StageNone {
		k.c.admin.entered(m, st.Stage)
	}
	if st.Told && !old.Told {
		k.told(m)
	}
	if old.Transferring && !st.Transferring && !led {
		k.c.Count.TransfersFailed++
	}
	m.blank = m.blank && (st.Waiting || !st.Saved)
	m.lame = st.Role == graft.RoleLeader && !m.conf().joint() && m.conf().index() <= st.Commit && !m.conf().voters.has(m) && !m.overridden
}

// sameConf demands that a replica goes by the latest configuration in its log.
func (k *checker) sameConf(m *machine) {
	c := m.conf()
	if m.overridden || m.st.Role >= graft.RoleFailed {
		return
	}
	if got, want := graft.SimVoter(m.node), m.votesBy(c); got != want {
		k.c.fail("I8 configuration safety: machine %d may campaign, as it sees it: %v; by the configurations of its log from commit %d to %v: %v",
			m.index, got, m.st.Commit, c, want)
	}
	if conf, old := graft.SimConf(m.node); !conf.Equal(c.conf) || !old.Equal(c.old) || m.st.ConfIndex != c.index() {
		k.c.fail("I8 configuration safety: machine %d goes by configuration %d: %v from %v; its log says %v", m.index, m.st.ConfIndex, conf, old, c)
	}
}

// remembers demands that a replica remembers of the configurations in its log what the log says: which governs the end of it, and the
// commit index.
func (k *checker) remembers(m *machine) {
	if m.st.Role >= graft.RoleFailed {
		return
	}
	for _, at := range [2]int64{m.st.Last, m.st.Commit} {
		if got, want := graft.SimConfIndexAt(m.node, at), m.confAt(at); got != want.index() {
			k.c.fail("I8 configuration safety: machine %d, in term %d, takes configuration %d to govern index %d; its log says %v",
				m.index, m.st.Term, got, at, want)
		}
	}
}

// remembersAll is remembers for all that may have to do with a truncation behind keep: the latest configurations, and the
// terms of the latest entries.
func (k *checker) remembersAll(m *machine, keep int64) {
	for i := max(keep-3, 1, m.st.First-1); i <= min(keep+20, m.st.Last); i++ {
		if got, want := graft.SimTerm(m.node, i), m.log[i-1].term; got != want {
			k.c.fail("I3 log matching: machine %d, in term %d, cut its log behind %d and takes entry %d for one of term %d; it is of term %d",
				m.index, m.st.Term, keep, i, got, want)
		}
	}
	for c, n := m.conf(), 0; c != nil && c.entry != nil && n < 4; c, n = c.prev, n+1 {
		if c.index() <= m.st.Commit && n > 0 && m.confAt(m.st.Commit) != c {
			break // nobody needs to know any more
		}
		if conf, old := graft.SimConfAt(m.node, c.index()); !conf.Equal(c.conf) || !old.Equal(c.old) {
			k.c.fail("I8 configuration safety: machine %d, in term %d, cut its log behind %d and takes %v from %v to govern index %d; its log says %v",
				m.index, m.st.Term, keep, conf, old, c.index(), c)
		}
	}
}

// proposed demands that a leader that hands over takes no proposals.
func (k *checker) proposed(m *machine, old graft.SimState, from int64) {
	if m.st.Role != graft.RoleLeader || old.Role != graft.RoleLeader || m.st.Term != old.Term {
		return
	}
	if !m.lame && !(old.Transferring && m.st.Transferring) {
		return
	}
	for _, e := range m.log[from:] {
		if e.typ == entry.Data {
			k.c.fail("I8 configuration safety: machine %d takes proposal %d while it hands over (transfer: %v, no voter: %v)", m.index, e.index, old.Transferring, m.lame)
		}
	}
}

// leaderLost counts in which stage of a change a leadership ended.
func (k *checker) leaderLost(m *machine, old graft.SimState) {
	n := &k.c.Count
	if old.Changing && m.conf().index() <= old.Commit && (old.Stage == graft.StageJoint || old.Stage == graft.StageStable) {
		n.LeadersLostAtCommit++
	}
	for _, ch := range m.changes {
		ch.ended, ch.endedAt = true, old.Commit
	}
	switch {
	case !old.Changing && !m.conf().joint():
	case old.Stage == graft.StageCatchingUp:
		n.LeadersLostCatchingUp++
	case old.Stage == graft.StageJoint:
		n.LeadersLostJoint++
	case old.Stage == graft.StageStable:
		n.LeadersLostStable++
	}
}

// told checks that who is told to be removed has no vote by a configuration that is committed, and later than
// whatever it holds itself.
func (k *checker) told(m *machine) {
	k.c.Count.Told++
	for i := len(k.confs) - 1; i >= 0; i-- {
		if c := k.confs[i]; !c.joint() && !c.voters.has(m) {
			own := m.conf()
			if own.index() >= c.index() && own.entry.term >= c.entry.term && (own.voters | own.olds).has(m) {
				break
			}
			return
		}
	}
	k.c.fail("I8 configuration safety: machine %d was told that it is removed; its own configuration is %v, committed are %v", m.index, m.conf(), k.confs)
}
