package graft

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The definitions, on plain logs and without regard to cost. The production code must agree.

// decides reports whether a set of servers is a majority of a configuration, of both halves if it is joint.
func decides(set map[PeerID]bool, e confEntry) bool {
	for _, c := range []Configuration{e.conf, e.old} {
		voters, yes := 0, 0
		for _, p := range c.peers {
			if p.Role != Learner {
				voters++
				if set[p.ID()] {
					yes++
				}
			}
		}
		if 2*yes <= voters && (c.Len() > 0 || e.conf.Empty()) {
			return false
		}
	}
	return true
}

// mayVote reports whether s, which has the candidate's term or a later one, votes for it.
func mayVote(s, candidate *specServer) bool {
	if s.term != candidate.term {
		return false
	}
	if !s.vote.IsZero() {
		return s.vote.Same(candidate.peer)
	}
	return covers(candidate, s)
}

// covers reports whether a's log is at least as up to date as b's.
func covers(a, b *specServer) bool {
	switch {
	case len(b.log) == 0:
		return true
	case len(a.log) == 0:
		return false
	}
	ta, tb := a.log[len(a.log)-1].term, b.log[len(b.log)-1].term
	return ta > tb || ta == tb && len(a.log) >= len(b.log)
}

// governing returns the configuration in force at an index: the last one in the log up to there.
func governing(s *specServer, index int64) confEntry {
	for i := index; i > 0; i-- {
		if e := s.log[i-1].conf; e != nil {
			return *e
		}
	}
	return s.confs.base
}

// countedBy returns the last index that a leader may commit: of its own term, and stored by who decides there.
func countedBy(s *specServer) int64 {
	if !s.lead {
		return 0
	}
	for k := s.last(); k > 0 && s.log[k-1].term == s.term; k-- {
		stored := make(map[PeerID]bool)
		for p, acked := range s.acked {
			stored[p] = acked >= k
		}
		if decides(stored, governing(s, k)) {
			return k
		}
	}
	return 0
}

// settled reports whether a leader may begin a change: its configuration is not joint, and an entry of its own
// term that states it is committed, as it has heard.
func settled(s *specServer) bool {
	e := governing(s, s.last())
	return s.lead && e.term == s.term && e.old.Empty() && s.box.index() >= e.index && s.watch == 0
}

// mayBeInForce lists the configurations that may be in force again as far as s knows: that which governs what it
// knows to be committed, and all after it.
func mayBeInForce(s *specServer) []confEntry {
	all := []confEntry{governing(s, s.box.index())}
	for _, e := range s.log[s.box.index():] {
		if e.conf != nil {
			all = append(all, *e.conf)
		}
	}
	return all
}

// oneStep reports whether a change leads from a to b without anything between, or they are the same.
func oneStep(a, b confEntry) bool {
	switch {
	case a.joint() && b.joint():
		return a.conf.Equal(b.conf) && a.old.Equal(b.old)
	case a.joint():
		return b.conf.Equal(a.conf)
	case b.joint():
		return b.old.Equal(a.conf)
	}
	differ := 0
	for _, p := range append(a.conf.Voters(), b.conf.Voters()...) {
		if !a.conf.ContainsVoter(p) || !b.conf.ContainsVoter(p) {
			differ++
		}
	}
	return differ <= 1
}

// sound checks that a leader may append a configuration.
func (g *specGroup) sound(s *specServer, e confEntry) {
	was := governing(s, s.last())
	if was.index == 0 || was.term < s.term {
		require.True(g.t, e.conf.Equal(was.conf) && e.old.Equal(was.old), "%s: %v begins to lead with %+v behind %+v", g.at, s.peer, e, was)
	} else {
		require.LessOrEqual(g.t, was.index, s.box.index(), "%s: %v builds on what is not committed", g.at, s.peer)
		require.True(g.t, oneStep(was, e) && !(was.joint() && e.joint()), "%s: %+v behind %+v", g.at, e, was)
	}
	for term := range g.leaders {
		if term > s.term {
			return
		}
	}
	committed := g.base
	for _, t := range g.truth {
		if t.conf != nil {
			committed = *t.conf
		}
	}
	require.True(g.t, oneStep(committed, e), "%s: %+v while %+v is committed", g.at, e, committed)
}

// check checks what must hold at all times, of servers that have changed.
func (g *specGroup) check() {
	for i, s := range g.servers {
		if s.changed {
			g.checkConfs(s)
			g.checkLog(s, i)
			s.changed = false
		}
	}
	g.checkElectable()
}

// checkConfs compares the history of configurations with the log.
func (g *specGroup) checkConfs(s *specServer) {
	same := func(want, got confEntry) {
		if want.index != got.index || want.term != got.term || !want.conf.Equal(got.conf) || !want.old.Equal(got.old) {
			g.t.Fatalf("%s: %v has %+v in force, not %+v", g.at, s.peer, got, want)
		}
	}
	latest := governing(s, s.last())
	same(latest, s.conf)
	same(latest, s.confs.last())
	same(governing(s, s.box.index()), s.confs.at(s.box.index()))
	may := mayBeInForce(s)
	for _, o := range g.servers {
		voter := slices.ContainsFunc(may, func(e confEntry) bool { return e.conf.ContainsVoter(o.peer) || e.old.ContainsVoter(o.peer) })
		if s.confs.votes(o.peer, s.box.index()) != voter {
			g.t.Fatalf("%s: %v is a voter of one of %+v: %t; %v says otherwise", g.at, o.peer, may, voter, s.peer)
		}
		member := slices.ContainsFunc(may, func(e confEntry) bool { return e.conf.Contains(o.peer) || e.old.Contains(o.peer) })
		if member && s.confs.removed(o.peer, s.box.index()) {
			g.t.Fatalf("%s: %v is in one of %+v; %v takes it for removed", g.at, o.peer, may, s.peer)
		}
	}
}

// checkLog compares a log with all others, and with what is committed.
func (g *specGroup) checkLog(s *specServer, at int) {
	require.LessOrEqual(g.t, s.box.index(), int64(len(g.truth)), "%s: %v", g.at, s.peer)
	for i, e := range s.log[:s.box.index()] {
		if g.truth[i].id != e.id {
			g.t.Fatalf("%s: %v has committed another entry at %d", g.at, s.peer, i+1)
		}
	}
	for j, o := range g.servers {
		if j == at {
			continue
		}
		shared := false
		for i := min(len(s.log), len(o.log)) - 1; i >= 0; i-- {
			shared = shared || s.log[i].term == o.log[i].term
			if shared && s.log[i].id != o.log[i].id {
				g.t.Fatalf("%s: %v and %v share a later entry, not %d", g.at, s.peer, o.peer, i+1)
			}
		}
	}
}

// checkElectable checks that somebody may campaign who would win with all servers up: whatever happens, the
// group can go on.
func (g *specGroup) checkElectable() {
	for _, s := range g.servers {
		granted := make(map[PeerID]bool)
		for _, o := range g.servers {
			granted[o.peer] = covers(s, o)
		}
		if decides(granted, s.conf) && s.mayCampaign() {
			return
		}
	}
	for _, s := range g.servers {
		g.t.Logf("%+v", *s)
	}
	g.t.Fatalf("%s: nobody can be elected", g.at)
}

// specWalk is a run of random steps. The bounds are those of the model lifted: several entries at once, late,
// lost and repeated answers, elections that fail, restarts, learners, and who knows what is committed.
type specWalk struct {
	*specGroup
	rng     *rand.Rand
	answers []specAnswer // on their way
	counts  map[string]int
}

func newSpecWalk(t *testing.T, rng *rand.Rand, counts map[string]int) *specWalk {
	w := &specWalk{specGroup: newSpecGroup(t, 5, rng.Perm(5)[:1+rng.IntN(5)]...), rng: rng, counts: counts}
	w.late = func(a specAnswer) bool {
		keep := rng.IntN(3) == 0
		if keep {
			w.answers = append(w.answers, a)
		}
		return keep
	}
	return w
}

func (w *specWalk) any() *specServer { return w.servers[w.rng.IntN(len(w.servers))] }

// leader is any of those who take themselves for one.
func (w *specWalk) leader() *specServer {
	var all []*specServer
	for _, s := range w.servers {
		if s.lead {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

func (w *specWalk) step() {
	dice := w.rng.IntN(100)
	l := w.leader()
	switch {
	case l == nil || dice < 4:
		w.election()
	case dice < 50:
		w.replication(l)
	case dice < 62:
		w.deliver()
	case dice < 72:
		if !l.departing() {
			w.appendOwn(l, nil)
		}
	case dice < 84:
		w.confChange(l)
	case dice < 98:
		w.progress(l)
	default:
		w.restart(w.any())
	}
}

func (w *specWalk) election() {
	c := w.rng.IntN(len(w.servers))
	s := w.servers[c]
	if !s.mayCampaign() {
		w.counts["may not campaign"]++
		return
	}
	var voters []int
	for _, v := range w.rng.Perm(len(w.servers)) {
		if w.rng.IntN(4) > 0 {
			voters = append(voters, v)
		}
	}
	joint, voter := s.conf.joint(), s.conf.hasVoter(s.peer)
	refused, won := w.campaign(c, s.term+1+w.rng.Int64N(2), voters)
	w.counts["votes refused"] += len(refused)
	switch {
	case !won:
		w.counts["elections lost"]++
	case joint:
		w.counts["elections won, joint"]++
	case !voter:
		w.counts["elections won by who is removed"]++
	default:
		w.counts["elections won"]++
	}
}

func (w *specWalk) replication(l *specServer) {
	f := w.any()
	switch {
	case f == l:
		return
	case f.term > l.term:
		l.stepDown(f.term)
		return
	}
	cut := w.cut
	w.replicate(l, f, 1+w.rng.IntN(4))
	w.counts["configurations cut off"] += w.cut - cut
}

// deliver hands over an answer that was late, or loses it. It may come again.
func (w *specWalk) deliver() {
	if len(w.answers) == 0 {
		return
	}
	i := w.rng.IntN(len(w.answers))
	a := w.answers[i]
	if w.rng.IntN(4) > 0 {
		w.answers = slices.Delete(w.answers, i, i+1)
	}
	switch {
	case w.rng.IntN(5) == 0:
	case !a.to.lead || a.term != a.to.term:
		w.counts["answers too late"]++
		require.False(w.t, w.ack(a), w.at)
	case w.ack(a):
		w.counts["commits by late answers"]++
	}
}

func (w *specWalk) confChange(l *specServer) {
	to := w.target(l.conf.conf)
	if l.departing() || to.Equal(l.conf.conf) || len(to.Voters()) == 0 {
		return
	}
	if settled(l) && w.rng.IntN(8) == 0 {
		w.callOff(l, to)
	}
	if !w.change(l, to, w.rng.IntN(8) == 0) {
		w.counts["changes refused"]++
		return
	}
	if l.conf.joint() {
		w.counts["changes, joint"]++
	} else {
		w.counts["changes, single"]++
	}
}

// callOff has a change fail before it has appended anything.
func (w *specWalk) callOff(l *specServer, to Configuration) {
	before, cause := l.last(), errors.New("called off")
	a := l.ctx.Start(l.conf.conf, to)
	if len(a.catchUp) > 0 {
		require.Equal(w.t, confAction{}, l.ctx.CaughtUp(l.ctx.version-1, a.catchUp[0], cause), w.at)
		a = l.ctx.CaughtUp(l.ctx.version, a.catchUp[0], cause)
	} else {
		a = l.ctx.Fail(cause)
	}
	w.doConf(l, a)
	require.True(w.t, a.over && errors.Is(a.err, cause) && l.last() == before && settled(l), w.at)
	w.counts["changes called off"]++
}

// target is another configuration: one peer differs, or any number.
func (w *specWalk) target(from Configuration) Configuration {
	var peers []PeerID
	one := w.rng.IntN(2) == 0
	differs := w.rng.IntN(len(w.servers))
	for i, s := range w.servers {
		p, member := from.Find(s.peer)
		if one && i == differs || !one && w.rng.IntN(2) == 0 {
			member = !member
			p = s.peer
			p.Role = []Role{Voter, Voter, Witness, Learner}[w.rng.IntN(4)]
		}
		if member {
			peers = append(peers, p)
		}
	}
	c, err := NewConfiguration(peers...)
	require.NoError(w.t, err)
	return c
}

// progress lets a leader hear of what is committed.
func (w *specWalk) progress(l *specServer) {
	stage, led := l.ctx.Stage(), l.conf
	if !w.confCommitted(l) {
		return
	}
	w.counts[fmt.Sprintf("stages ended, %v", stage)]++
	if !led.hasVoter(l.peer) {
		w.counts["stages ended by who is removed"]++
	}
	if stage == StageJoint && governing(l, led.index-1).joint() {
		w.counts["joint changes ended by another leader"]++
	}
}

// restart has a server forget what is not stored: it knows a part of what is committed at most.
func (w *specWalk) restart(s *specServer) {
	s.stepDown(s.term)
	known := w.rng.Int64N(s.box.index() + 1)
	s.box, s.ctx, s.confs.entries = new(ballotBox), ConfigurationCtx{}, nil
	s.box.follow(known)
	for _, e := range s.log {
		if e.conf != nil {
			s.confs.append(*e.conf)
		}
	}
	s.conf, s.changed = s.confs.last(), true
}

var specSeed = flag.Uint64("spec.seed", 0, "seed of the random walks; 0: any")

// The production code and the definitions agree on who votes, what is committed, which configuration is in force
// and which comes next, and nothing goes wrong by them.
func TestTheRulesHoldOnRandomWalks(t *testing.T) {
	const walks, steps = 600 / slowness, 200
	seed := *specSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("%d walks of %d steps: -spec.seed=%d", walks, steps, seed)
	counts := make(map[string]int)
	for i := range walks {
		rng := rand.New(rand.NewPCG(seed, uint64(i)))
		w := newSpecWalk(t, rng, counts)
		for n := range steps {
			w.at = fmt.Sprintf("seed %d, walk %d, step %d", seed, i, n)
			w.step()
			w.check()
		}
	}
	for _, what := range []string{
		"may not campaign", "votes refused", "elections lost", "elections won", "elections won, joint", "elections won by who is removed",
		"configurations cut off", "answers too late", "commits by late answers",
		"changes refused", "changes called off", "changes, joint", "changes, single",
		"stages ended, joint", "stages ended, stable", "stages ended by who is removed", "joint changes ended by another leader",
	} {
		t.Logf("%7d %s", counts[what], what)
		require.NotZero(t, counts[what], what)
	}
}
