package sim

import (
	"encoding/binary"
	"math/bits"
	"sort"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// checker knows what must never happen. It sees every replica after every step,
// every message when it is sent, and what each disk held after a crash.
//
// Two entries that are the same have the same entryInfo, and so has everything
// before them, so most comparisons of whole logs are one of pointers.
//
// Ownership: the simulation's goroutine.
type checker struct {
	c          *Cluster
	entries    map[entryKey]*entryInfo
	committed  []*entryInfo // [i] has index i+1
	terms      map[int64]*termInfo
	initial    *confInfo   // what the first machines start with
	nothing    *confInfo   // what the others start with
	confs      []*confInfo // committed ones, in order
	pairs      map[confPair]bool
	confNews   bool        // other configurations may be in force than at the last look
	live       []*confInfo // scratch
	overridden bool        // somebody has reset a configuration by hand, so that no two need be safe together

	digests map[int64]uint64 // of state machines, by the last index applied
}

type entryKey struct{ index, term int64 }

// entryInfo is an entry that some log has held. Log matching: index and term
// determine its content and what precedes it.
type entryInfo struct {
	index, term int64
	prev        *entryInfo
	sum         uint64
	typ         entry.Type
	on          set       // machines that had it on their disks
	conf        *confInfo // in force where it stands
	settledIn   int64     // term of the leader that committed it first, 0 while nobody has
}

// termInfo is what is known of a term.
type termInfo struct {
	leader *machine
	boot   int
	votes  map[string]set // by candidate: who granted; for look-up only
	weak   set            // who voted and may have forgotten what it acknowledged
}

// spoken is what a machine has told others, and so must not forget.
type spoken struct {
	term     int64
	voteTerm int64
	vote     string
}

func newChecker(c *Cluster) *checker {
	k := &checker{c: c, entries: make(map[entryKey]*entryInfo), terms: make(map[int64]*termInfo), pairs: make(map[confPair]bool), digests: make(map[int64]uint64)}
	k.initial, k.nothing = k.confOf(c.conf, graft.Configuration{}), new(confInfo)
	return k
}

func (k *checker) term(t int64) *termInfo {
	info := k.terms[t]
	if info == nil {
		info = &termInfo{votes: make(map[string]set)}
		k.terms[t] = info
	}
	return info
}

// look compares a replica with what it was at the last step.
func (k *checker) look(m *machine) {
	st := graft.SimStateOf(m.node)
	if st == m.st {
		return
	}
	old := m.st
	m.st = st
	if st.Term < old.Term || st.Term == old.Term && !old.Vote.IsZero() && st.Vote != old.Vote {
		k.c.fail("I2 vote safety: machine %d: term %d, vote %v became term %d, vote %v", m.index, old.Term, old.Vote, st.Term, st.Vote)
	}
	if st.Last != old.Last || st.LastTerm != old.LastTerm || st.LogEpoch != old.LogEpoch || st.First != old.First {
		k.rebased(m, old)
		k.logChanged(m, old)
	}
	if st.Snapshot > old.Snapshot {
		k.c.Count.Saved++
	}
	k.durable(m)
	if st.Commit != old.Commit {
		k.commit(m, old)
	}
	if st.Last != old.Last || st.Commit != old.Commit || st.LogEpoch != old.LogEpoch {
		k.remembers(m)
	}
	if st.Leader != old.Leader || st.Role != old.Role || st.Term != old.Term {
		k.follows(m, old)
	}
	most := max(st.Commit, st.Installing) // what is loaded is committed here a moment later
	if st.Role >= graft.RoleFailed {      // or not any more
		most = max(most, int64(len(k.committed)))
	}
	if st.Applied < old.Applied || st.Applied > most {

		k.c.fail("I9 ordering: machine %d: applied went from %d to %d, commit is %d", m.index, old.Applied, st.Applied, st.Commit)
	}
	if st.Role != old.Role || st.Term != old.Term {
		k.role(m, old)
	}
	k.heldBack(m, old)
	k.member(m, old)
	if k.confNews {
		k.confNews = false
		k.confSafety()
	}
}

// logChanged takes over what is new in a log.
func (k *checker) logChanged(m *machine, old graft.SimState) {
	keep := min(int64(len(m.log)), m.st.Last)
	for keep >= m.st.First && graft.SimTerm(m.node, keep) != m.log[keep-1].term {
		keep--
	}
	if cut := int64(len(m.log)) - keep; cut > 0 {
		k.c.Count.Truncations++
		k.c.Count.TruncatedEntries += cut
		if m.log[keep].term != m.log[len(m.log)-1].term {
			k.c.Count.TruncatedTerms++
		}
		if old.Durable < old.Submitted && keep < old.Submitted {
			k.c.Count.TruncatedInFlight++
			m.unsure = true
		}
		if old.Durable > keep {
			k.c.Count.TruncatedDurable++
		}
		if keep < old.Commit {
			k.c.fail("I9 ordering: machine %d: cut its log behind %d, had committed %d", m.index, keep, old.Commit)
		}
		if old.Role == graft.RoleLeader && m.st.Role == graft.RoleLeader && old.Term == m.st.Term {
			k.c.fail("I4 leader append-only: machine %d: leads term %d and cut its own log behind %d", m.index, old.Term, keep)
		}
		for _, e := range m.log[keep:] {
			e.on &^= setOf(m)
		}
		// A term has one leader, which never takes an entry back, and who is in the
		// term has heard of no later one.
		if e := m.log[keep]; m.log[len(m.log)-1].term >= m.st.Term {
			k.c.fail("I4 leader append-only: machine %d: in term %d, cut entries %d of term %d to %d of term %d", m.index, m.st.Term,
				e.index, e.term, len(m.log), m.log[len(m.log)-1].term)
		}
		k.confsCut(m, keep)
		m.marked, m.cutAt = min(m.marked, keep), k.c.sim.Now()
		m.log = m.log[:keep]
		k.read(m)
		k.remembersAll(m, keep)
	} else {
		k.read(m)
	}
	k.proposed(m, old, keep)
}

// read appends the entries that are in a replica's log and not in m.log.
func (k *checker) read(m *machine) {
	conf := m.conf()
	m.quiet = true
	err := graft.SimEntries(m.node, int64(len(m.log))+1, func(e entry.Entry) {
		m.log = append(m.log, k.entry(m, e))
	})
	m.quiet = false
	if err != nil {
		k.c.fail("I10 durability: machine %d: log cannot be read behind %d: %v", m.index, len(m.log), err)
	} else if int64(len(m.log)) != m.st.Last {
		k.c.fail("I9 ordering: machine %d: log holds %d entries, says %d", m.index, len(m.log), m.st.Last)
	}
	if m.conf() != conf {
		k.confNews = true
	}
}

// entry checks log matching for an entry that a log has taken.
func (k *checker) entry(m *machine, e entry.Entry) *entryInfo {
	var prev *entryInfo
	if n := len(m.log); n > 0 {
		prev = m.log[n-1]
		if e.Term < prev.term {
			k.c.fail("I3 log matching: machine %d: entry %d has term %d behind term %d", m.index, e.Index, e.Term, prev.term)
		}
	}
	if e.Index != int64(len(m.log))+1 {
		k.c.fail("I9 ordering: machine %d: entry %d follows entry %d", m.index, e.Index, len(m.log))
	}
	if got := graft.SimTerm(m.node, e.Index); got != e.Term {
		k.c.fail("I3 log matching: machine %d, in term %d, takes entry %d for one of term %d; it is of term %d",
			m.index, m.st.Term, e.Index, got, e.Term)
	}
	sum := entrySum(e)
	key := entryKey{e.Index, e.Term}
	info := k.entries[key]
	if info == nil {
		info = &entryInfo{index: e.Index, term: e.Term, prev: prev, sum: sum, typ: e.Type}
		k.entries[key] = info
		k.govern(m, info, e.Meta)
		if e.Type == entry.Data {
			k.c.clients.logged(info, e.Data)
		}
		return info
	}
	if info.sum != sum || info.typ != e.Type || info.prev != prev {
		k.c.fail("I3 log matching: entry %d of term %d on machine %d differs from another's, or what precedes it does", e.Index, e.Term, m.index)
	}
	return info
}

// entrySum stands for what an entry says.
func entrySum(e entry.Entry) uint64 {
	if e.Type != entry.Data {
		return sumOf(e.Meta)
	}
	return sumOf(e.Data)
}

// sumOf tells contents apart, eight bytes at a time: whole logs are read again after every restart.
func sumOf(b []byte) uint64 {
	h := uint64(len(b)) ^ 14695981039346656037
	for ; len(b) >= 8; b = b[8:] {
		h = mix(h, binary.LittleEndian.Uint64(b))
	}
	for _, c := range b {
		h = mix(h, uint64(c))
	}
	return h
}

func mix(h, v uint64) uint64 {
	h = bits.RotateLeft64(h^v, 29) * 0x9e3779b97f4a7c15
	return h ^ h>>32
}

// durable notes which entries a replica calls durable.
func (k *checker) durable(m *machine) {
	n := m.st.Durable
	if n > m.st.Last {
		k.c.fail("I9 ordering: machine %d: durable up to %d, the log ends at %d", m.index, n, m.st.Last)
		return
	}
	for i := m.marked; i < n; i++ {
		m.log[i].on |= setOf(m)
	}
	more := n > m.marked
	m.marked = n
	if more && k.suspicious(m) {
		k.audit(m)
	}
	m.unsure = m.unsure && n < m.st.Last
}

// commit checks a commit index that has moved.
func (k *checker) commit(m *machine, old graft.SimState) {
	n := m.st.Commit
	if n < old.Commit || n > m.st.Last {
		k.c.fail("I9 ordering: machine %d: commit went from %d to %d, the log ends at %d", m.index, old.Commit, n, m.st.Last)
		return
	}
	if n <= int64(len(k.committed)) {
		if n > 0 && k.committed[n-1] != m.log[n-1] {
			k.c.fail("I6 state machine safety: machine %d commits another entry %d, or other ones before, than was committed", m.index, n)
		}
		return
	}
	last := m.log[n-1]
	if len(k.committed) > 0 && m.log[len(k.committed)-1] != k.committed[len(k.committed)-1] {
		k.c.fail("I6 state machine safety: machine %d commits %d behind other entries than were committed", m.index, n)
	}
	if m.st.Role != graft.RoleLeader || last.term != m.st.Term {
		k.c.fail("I7 commit rule: machine %d, %v in term %d, is the first to commit %d of term %d", m.index, m.st.Role, m.st.Term, n, last.term)
	}
	if on := k.counted(m, last); !last.conf.quorum(on) {
		k.c.fail("I7 commit rule: machine %d commits %d, which is durable on machines %b only, under configuration %v", m.index, n, on, last.conf)
	}
	before := len(k.committed)
	k.committed = append(k.committed, m.log[before:n]...)
	k.c.Count.Commits++
	for _, e := range k.committed[before:] {
		e.settledIn = m.st.Term
		if e.typ == entry.Configuration {
			k.confCommitted(e.conf)
		}
	}
	k.noComeback()
}

// role checks election safety and leader completeness.
func (k *checker) role(m *machine, old graft.SimState) {
	st := m.st
	switch {
	case st.Role == graft.RoleFailed && old.Role != graft.RoleFailed:
		k.failed(m)
	case st.Role == graft.RoleCandidate && (old.Role != graft.RoleCandidate || old.Term != st.Term):
		k.c.Count.Campaigns++
		k.mayCampaign(m)
	}
	if st.Role != graft.RoleLeader || old.Role == graft.RoleLeader && old.Term == st.Term {
		return
	}
	k.c.Count.Leaderships++
	k.c.hist.note(m.index, "leads term %d", st.Term)
	m.ledSince, m.heardOf, m.heardSent = k.c.sim.Now(), [16]time.Time{}, [16]time.Time{}
	m.lost, m.heardFirst = [16]lostDisk{}, [16]time.Time{}
	t := k.term(st.Term)
	if t.leader != nil && (t.leader != m || t.boot != m.boot) {
		k.c.fail("I1 election safety: machines %d and %d lead term %d", t.leader.index, m.index, st.Term)
	}
	t.leader, t.boot = m, m.boot
	k.c.clients.duel()
	k.c.awake(m)
	k.elected(m, t)
	if n := k.settledBefore(st.Term); n > 0 && (st.Last < n || m.log[n-1] != k.committed[n-1]) {
		k.c.fail("I5 leader completeness: machine %d leads term %d without what was committed up to %d", m.index, st.Term, n)
	}
}

// settledBefore is the last index that leaders of earlier terms committed, which is what the leader of a term must
// have: votes that come late may elect one when a later term has committed more already.
func (k *checker) settledBefore(term int64) int64 {
	return int64(sort.Search(len(k.committed), func(i int) bool { return k.committed[i].settledIn >= term }))
}

// failed judges a node's failure.
func (k *checker) failed(m *machine) {
	k.c.Count.NodeFailures++
	if !m.injected {
		k.c.fail("I14 honest failure: machine %d failed without reason: %v", m.index, m.node.Status().Err)
		return
	}
	if k.c.healed { // its store had failed before, and it has only now got something to write
		k.c.later(time.Millisecond, m, func() {
			m.end(true, false)
			m.turnOn()
		})
		return
	}
	k.c.later(k.c.rng.between(1e7, 5e9), m, func() {
		switch m.rng.IntN(3) {
		case 0:
			m.crash(true, false)
		case 1:
			m.crash(false, false)
		default: // it owes everybody an answer all the same
			k.c.Count.FailedStops++
			m.stop()
		}
	})
}

// recovered checks what a new process found on its disk.
func (k *checker) recovered(m *machine) {
	was, before := m.log, int64(len(m.log))
	m.st = graft.SimStateOf(m.node)
	m.log, m.marked = nil, 0
	k.rebased(m, graft.SimState{})
	k.read(m)
	if c := m.claim; c != nil && !k.replaced(m, was, c) {
		if m.st.Last < c.index || m.log[c.index-1] != c {
			k.c.fail("I10 durability: machine %d called entry %d of term %d durable and came back with %d entries", m.index, c.index, c.term, m.st.Last)
			return
		}
		k.c.Count.Recovered += min(before, m.st.Last) - c.index
	}
	k.durable(m)
	k.commit(m, graft.SimState{})
	k.sameConf(m)
	k.confNews = true
	if m.st.Commit == 0 {
		k.c.hist.note(m.index, "recovered %d entries", m.st.Last)
	}
	said := m.said
	if m.st.Term < said.term {
		k.c.fail("I2 vote safety: machine %d spoke of term %d and came back in term %d", m.index, said.term, m.st.Term)
	}
	if m.st.Term == said.voteTerm && said.vote != "" && m.st.Vote.Address != said.vote {
		k.c.fail("I2 vote safety: machine %d voted for %s in term %d and came back with vote %v", m.index, said.vote, said.voteTerm, m.st.Vote)
	}
}

// called sees a request when it is sent.
func (k *checker) called(m *machine, c *rpc.Call) {
	if c.Method == "pre_vote" || c.Method == "request_vote" {
		k.asks(m)
	}
	if c.Method != "request_vote" {
		return
	}
	var req raftpb.RequestVoteRequest
	if err := proto.Unmarshal(appendAll(nil, c.Message), &req); err != nil {
		k.c.fail("messages: machine %d sends a malformed vote request: %v", m.index, err)
		return
	}
	k.says(m, req.GetTerm())
	k.votes(m, req.GetTerm(), m.address)
}

// answered sees an answer when it is given.
func (k *checker) answered(m, to *machine, req *rpc.Request, at time.Time, code int32, message []byte) {
	if code != 0 {
		return
	}
	switch req.Method {
	case "request_vote", "pre_vote":
		var resp raftpb.RequestVoteResponse
		if err := proto.Unmarshal(message, &resp); err != nil {
			k.c.fail("messages: machine %d gives a malformed vote: %v", m.index, err)
			return
		}
		k.says(m, resp.GetTerm())
		if resp.GetGranted() && req.Method == "pre_vote" {
			k.sticky(m, to, at)
		}
		if resp.GetGranted() && req.Method == "request_vote" {
			k.c.Count.VotesGranted++
			k.votes(m, resp.GetTerm(), to.address)
		}
	case "append_entries":
		resp, err := wire.ParseAppendResponse(message)
		if err != nil {
			k.c.fail("messages: machine %d gives a malformed answer: %v", m.index, err)
			return
		}
		k.says(m, resp.Term)
		k.heard(m, req, resp.Term)
		if resp.Success {
			k.stored(m, req)
		}
	case "install_snapshot":
		k.installed(m, req, message)
	}
}

// heard notes that a replica took a message for one of its leader's, as far as steady cares.
func (k *checker) heard(m *machine, req *rpc.Request, term int64) {
	if k.c.steadySince.IsZero() {
		return
	}
	if r, err := wire.ParseAppendRequest(req.Message, req.Attachment); err == nil && r.Term == term {
		m.contact, m.tellable = k.c.sim.Now(), time.Time{}
	}
}

// stored checks that what a replica acknowledges is durable, and is what its log holds.
func (k *checker) stored(m *machine, req *rpc.Request) {
	r, err := wire.ParseAppendRequest(req.Message, req.Attachment)
	if err != nil || r.Entries.Count == 0 {
		return
	}
	st, last := graft.SimStateOf(m.node), r.Entries.Last()
	if st.Durable < last {
		k.c.fail("I17 disk honesty: machine %d acknowledges %d, durable is %d", m.index, last, st.Durable)
		return
	}
	got, want := int64(0), lastTerm(r.Entries)
	switch {
	case last >= st.First-1:
		got = graft.SimTerm(m.node, last)
	case last <= int64(len(k.committed)): // cut off, and so committed
		got = k.committed[last-1].term
	}
	if got != want {
		k.c.fail("I17 disk honesty: machine %d acknowledges %d of term %d, which is of term %d in its log", m.index, last, want, got)
	}
}

// lastTerm is the term of the last of some entries.
func lastTerm(b entry.Batch) int64 {
	it := b.From(b.Last()).Iter()
	e, _ := it.Next()
	return e.Term
}

// says notes that a machine has told another a term: it must be durable.
func (k *checker) says(m *machine, term int64) {
	if term <= m.said.term {
		return
	}
	m.said.term = term
	if saved := graft.SimStateOf(m.node).SavedTerm; saved < term {
		k.c.fail("I17 disk honesty: machine %d speaks of term %d, durable is %d", m.index, term, saved)
	}
}

// votes notes a vote that somebody was told of.
func (k *checker) votes(m *machine, term int64, candidate string) {
	if term < m.said.voteTerm || term == m.said.voteTerm && m.said.vote != candidate {
		k.c.fail("I2 vote safety: machine %d votes for %s in term %d after %s in term %d", m.index, candidate, term, m.said.vote, m.said.voteTerm)
	}
	news := term != m.said.voteTerm
	m.said.voteTerm, m.said.vote = term, candidate
	t := k.term(term)
	t.votes[candidate] |= setOf(m)
	st := graft.SimStateOf(m.node)
	if st.Waiting {
		t.weak |= setOf(m)
	}
	if often := news && !st.Saved; m.rng.IntN(50) == 0 || often { // something is on its way to the disk: the vote?
		k.audit(m)
	}
}
