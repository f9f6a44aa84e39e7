package sim

import (
	"slices"

	"github.com/graft-raft/graft"
)

// admin changes who belongs to the group, and keeps the ledger: every change gets one answer, and the
// answer is true.
//
// Ownership: the simulation's goroutine.
type admin struct {
	c       *Cluster
	rng     draw
	orphan  []*change // of processes that died before they answered, which nothing in a log is known of
	fresh   []*change // answered in this step
	hits    []hit
	strikes int
}

// changeKind is by which method a change was asked for.
type changeKind uint8

const (
	addPeer changeKind = iota
	removePeer
	addLearner
	removeLearner
	changePeers
)

func (k changeKind) String() string {
	return [...]string{"AddPeer", "RemovePeer", "AddLearner", "RemoveLearner", "Change"}[k]
}

// change is a change that was asked for.
type change struct {
	kind    changeKind
	peer    graft.PeerID        // whom it is about
	conf    graft.Configuration // what it is to lead to, for Change
	o       graft.ChangeOptions
	machine *machine
	boot    int
	state   outcome
	first   *confInfo // what was appended for it
	from    int64     // index of the configuration that was committed, as far as the machine knew, when it was asked
	cancel  bool      // somebody tried to call it off
	then    func(error)

	ended   bool  // the leadership that it was asked of has ended before it was answered
	endedAt int64 // what that leader knew to be committed then

	over   bool // it was answered
	err    error
	confAt int64 // what OnConfigurationCommitted had reported then
}

// ask asks a machine for a change. then is told how it ended.
func (a *admin) ask(m *machine, ch *change, then func(error)) {
	if !m.ready() {
		return
	}
	ch.machine, ch.boot, ch.then, ch.from = m, m.boot, then, m.confAt(m.st.Commit).index()
	m.changes = append(m.changes, ch)
	a.c.hist.note(m.index, "asked for %v %v%v", ch.kind, ch.peer, ch.conf)
	done := func(err error) { a.answered(ch, err) }
	switch ch.kind {
	case addPeer:
		m.node.AddPeer(ch.peer, done)
	case removePeer:
		m.node.RemovePeer(ch.peer, done)
	case addLearner:
		m.node.AddLearner(ch.peer, done)
	case removeLearner:
		m.node.RemoveLearner(ch.peer, done)
	default:
		m.node.Change(ch.conf, ch.o, done)
	}
}

// fits reports whether a change leads from one configuration to another, and may.
func (ch *change) fits(from, to graft.Configuration) bool {
	return ch.leads(from, to) && (ch.o.Expected.Empty() || ch.o.Expected.Equal(from))
}

// leads reports whether a change leads from one configuration to another.
func (ch *change) leads(from, to graft.Configuration) bool {
	if ch.kind == changePeers {
		return to.Equal(ch.conf)
	}
	peers := slices.DeleteFunc(from.Peers(), ch.peer.Same)
	switch ch.kind {
	case addPeer:
		peers = append(peers, ch.peer)
	case addLearner:
		peers = append(peers, learner(ch.peer))
	case removeLearner:
		if from.ContainsVoter(ch.peer) {
			return false
		}
	}
	want, err := graft.NewConfiguration(peers...)
	return err == nil && to.Equal(want)
}

func learner(p graft.PeerID) graft.PeerID {
	p.Role = graft.Learner
	return p
}

// begun finds out for whom a leader has appended a configuration.
func (a *admin) begun(m *machine, c *confInfo) {
	t := a.c.check.terms[c.entry.term]
	if t == nil || t.leader == nil {
		a.c.fail("I8 configuration safety: machine %d: configuration %v of a term without a leader", m.index, c)
		return
	}
	asked := a.orphan
	if t.leader.up && t.leader.boot == t.boot {
		asked = t.leader.changes
	}
	if ch := unclaimed(asked, t.leader, t.boot, c); ch != nil {
		ch.first, c.owner = c, ch
		return
	}
	for _, ch := range asked {
		if ch.machine == t.leader && ch.boot == t.boot && ch.first == nil && ch.leads(c.prev.conf, c.conf) {
			a.c.fail("I14 honest failure: machine %d appends %v behind %v for a change that expected %v", t.leader.index, c, c.prev, ch.o.Expected)
			return
		}
	}
	a.c.fail("I8 configuration safety: machine %d: nobody asked machine %d to change the configuration to %v", m.index, t.leader.index, c)
}

// unclaimed finds a change of a process that c may have been appended for.
func unclaimed(asked []*change, m *machine, boot int, c *confInfo) *change {
	for _, ch := range asked {
		if ch.machine == m && ch.boot == boot && ch.first == nil && ch.fits(c.prev.conf, c.conf) {
			return ch
		}
	}
	return nil
}

// answered takes the answer to a change. It is judged after the step, when the log has been looked at.
func (a *admin) answered(ch *change, err error) {
	m, c := ch.machine, a.c
	switch {
	case m.boot != ch.boot:
		c.fail("I13 exactly one answer: %v: answered by a dead process of machine %d", ch.kind, m.index)
		return
	case m.proc.Dead():
		return
	case ch.over:
		c.fail("I13 exactly one answer: %v on machine %d: answered twice, the second time with %v", ch.kind, m.index, err)
		return
	}
	ch.over, ch.err, ch.confAt = true, err, m.app.confAt
	a.fresh = append(a.fresh, ch)
	c.hist.note(m.index, "%v %v%v: %v", ch.kind, ch.peer, ch.conf, err)
}

// judge demands that an answer is true.
func (a *admin) judge(ch *change) {
	m, code := ch.machine, graft.ErrorCode(ch.err)
	m.changes = slices.DeleteFunc(m.changes, func(o *change) bool { return o == ch })
	switch {
	case ch.err == nil:
		ch.state = acked
		a.succeeded(ch)
	case code == graft.ErrUnknownOutcome:
		ch.state = unknown
		if ch.first == nil && !a.takeOver(ch) && !a.untold(ch, a.inForce(ch)) {
			a.c.fail("I14 honest failure: %v on machine %d: outcome unknown (%v), though nothing was appended", ch.kind, m.index, ch.err)
		}
		a.unknown(ch)
	default:
		ch.state = refused
		a.refused(ch, code, ch.err)
	}
	a.tally(ch)
	if ch.then != nil {
		ch.then(ch.err)
	}
}

// unknown demands that an outcome is not called unknown that was known when the leadership ended. It is not known, for who
// asked, if the state machine could not be told of it.
func (a *admin) unknown(ch *change) {
	end := ch.first
	if end == nil {
		return
	}
	if end.joint() {
		end = end.next
	}
	switch {
	case !ch.ended:
		if ch.o.Deadline == 0 && !a.untold(ch, end) {
			a.c.fail("I14 honest failure: %v on machine %d: outcome unknown (%v), though it leads on and nothing was due", ch.kind, ch.machine.index, ch.err)
		}
	case end != nil && end.index() <= ch.endedAt && !a.untold(ch, end):
		a.c.fail("I14 honest failure: %v on machine %d: outcome unknown (%v), though it had committed %d when it stopped leading term %d, and so %v",
			ch.kind, ch.machine.index, ch.err, ch.endedAt, end.entry.term, end)
	}
}

// untold reports whether the state machine was not told of a configuration that a change led to when that was answered, and
// would never be: it has failed, or is a durable one on a node that has ended and whose disk does not hold that.
func (a *admin) untold(ch *change, end *confInfo) bool {
	m := ch.machine
	if end == nil || ch.confAt >= end.index() {
		return false
	}
	ended := m.stopping || m.st.Role >= graft.RoleFailed
	if !m.injected && !(a.c.o.Snap.Durable && ended && m.st.Durable < end.index()) {
		return false
	}
	a.c.Count.Untold++
	return true
}

// succeeded demands that what a change led to is committed, and was reported before.
func (a *admin) succeeded(ch *change) {
	c, m := a.c, ch.machine
	if ch.first != nil && !a.done(ch) && a.already(ch) { // what was appended is another's, who asked for the same later
		a.passOn(ch)
	}
	switch {
	case ch.first == nil:
		c.Count.NoChanges++
		if !a.already(ch) {
			c.fail("I14 honest failure: %v %v%v on machine %d succeeded, but is not so in any committed configuration from %d on", ch.kind, ch.peer, ch.conf, m.index, ch.from)
		}
	case !a.done(ch):
		c.fail("I14 honest failure: %v on machine %d succeeded, but what it led to, %v, is not committed, or was not reported yet", ch.kind, m.index, ch.first)
	}
}

// already reports whether a change asks for what a committed configuration is like, the one in force when it was asked for or
// a later one.
func (a *admin) already(ch *change) bool { return a.inForce(ch) != nil }

// inForce is the latest committed configuration that is like what a change asks for, nil if there is none. One that had been
// replaced when the change was asked for does not count: a leader judges by its latest.
func (a *admin) inForce(ch *change) *confInfo {
	for _, c := range slices.Backward(a.c.check.confs) {
		if c.index() < ch.from {
			break
		}
		if !c.joint() && ch.fits(c.conf, c.conf) {
			return c
		}
	}
	return nil
}

// done reports whether what was appended for a change led to a configuration that is committed, and that
// OnConfigurationCommitted has reported.
func (a *admin) done(ch *change) bool {
	k, end := a.c.check, ch.first
	if end.joint() {
		end = end.next
	}
	return end != nil && end.index() <= int64(len(k.committed)) && k.committed[end.index()-1] == end.entry && ch.confAt >= end.index()
}

// passOn gives what was taken for a change's to another that asks for the same, and reports whether there is one.
func (a *admin) passOn(ch *change) bool {
	c, m := ch.first, ch.machine
	other := unclaimed(m.changes, m, ch.boot, c)
	if other == nil {
		return false
	}
	ch.first = nil
	other.first, c.owner = c, other
	return true
}

// takeOver is passOn the other way round: another that waits for its answer was taken for the one whom
// something was appended for.
func (a *admin) takeOver(ch *change) bool {
	for _, o := range ch.machine.changes {
		if c := o.first; c != nil && ch.fits(c.prev.conf, c.conf) && a.already(o) {
			o.first = nil
			ch.first, c.owner = c, ch
			return true
		}
	}
	return false
}

// refused demands that nothing was appended for a change that certainly did not happen.
func (a *admin) refused(ch *change, code graft.Code, err error) {
	m, n := ch.machine, &a.c.Count
	if ch.first != nil && !a.passOn(ch) {
		a.c.fail("I14 honest failure: %v on machine %d: refused with %v, and yet it was appended: %v", ch.kind, m.index, err, ch.first)
		return
	}
	switch code {
	case graft.ErrNotLeader, graft.ErrShutdown, graft.ErrNodeFailed, graft.ErrNoSpace, graft.ErrNotSupported:
	case graft.ErrCatchup:
		n.CatchupsFailed++
	case graft.ErrUnreachable:
		n.Unreachable++
	case graft.ErrBusy:
		n.ChangesBusy++
	case graft.ErrInvalid:
		n.ChangesInvalid++
	case graft.ErrConfMismatch:
		n.ConfMismatch++
	case graft.ErrTimeout:
		n.ChangesLate++
		if ch.o.Deadline == 0 {
			a.c.fail("I14 honest failure: %v on machine %d has no deadline, and yet: %v", ch.kind, m.index, err)
		}
	case graft.ErrCanceled:
		n.Canceled++
		if !ch.cancel {
			a.c.fail("I14 honest failure: %v on machine %d was called off by nobody: %v", ch.kind, m.index, err)
		}
	default:
		a.c.fail("I14 honest failure: %v on machine %d ends with an error that says nothing: %v", ch.kind, m.index, err)
	}
}

// tally counts how a change ended.
func (a *admin) tally(ch *change) {
	n := &a.c.Count
	counts := [...][3]*int64{
		addPeer:       {&n.AddsOK, &n.AddsUnknown, &n.AddsFailed},
		removePeer:    {&n.RemovesOK, &n.RemovesUnknown, &n.RemovesFailed},
		addLearner:    {&n.LearnersOK, &n.LearnersUnknown, &n.LearnersFailed},
		removeLearner: {&n.LearnersRemoved, &n.RemovesUnknown, &n.LearnersNotRemoved},
		changePeers:   {&n.ChangesOK, &n.ChangesUnknown, &n.ChangesFailed},
	}
	*counts[ch.kind][ch.state-acked]++
}

// cancel tries to call off the change under way on a machine.
func (a *admin) cancel(m *machine) {
	if !m.ready() {
		return
	}
	boot := m.boot
	m.calls++
	asked := slices.Clone(m.changes)
	for _, ch := range asked {
		ch.cancel = true
	}
	graft.SimCancelChange(m.node, func(err error) {
		if m.boot != boot || m.proc.Dead() {
			return
		}
		m.calls--
		if err != nil {
			a.c.Count.CancelsRefused++
			return
		}
		if !slices.ContainsFunc(asked, func(ch *change) bool { return ch.state == pendingYet || ch.state == refused }) {
			a.c.fail("I14 honest failure: machine %d called off a change, but none was under way", m.index)
		}
	})
}

// transfer asks a machine to hand leadership over.
func (a *admin) transfer(m *machine, to graft.PeerID, then func(error)) {
	if !m.ready() {
		return
	}
	boot, over := m.boot, false
	m.calls++
	a.c.hist.note(m.index, "asked to hand over to %v", to)
	graft.SimTransfer(m.node, to, func(err error) {
		switch {
		case m.boot != boot:
			a.c.fail("I13 exactly one answer: transfer answered by a dead process of machine %d", m.index)
			return
		case m.proc.Dead():
			return
		case over:
			a.c.fail("I13 exactly one answer: machine %d: a transfer is answered twice, the second time with %v", m.index, err)
			return
		}
		over = true
		m.calls--
		if err != nil {
			a.c.Count.TransfersRefused++
		}
		then(err)
	})
}

// died takes over what a process that is gone has not answered: nobody will know.
func (a *admin) died(m *machine) {
	for _, ch := range m.changes {
		if ch.over {
			continue // it is judged yet
		}
		ch.state = unknown
		a.c.Count.LostWithProcess++
		if ch.first == nil {
			a.orphan = append(a.orphan, ch)
		}
	}
	m.changes, m.calls = slices.DeleteFunc(m.changes, func(ch *change) bool { return !ch.over }), 0
}
