package graft

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/election"
)

// specEntry is an entry of a specServer's log.
type specEntry struct {
	id   int // no two entries share it
	term int64
	conf *confEntry // nil: data
}

// specServer is a server of the model in spec/, decided upon by the code that decides in production:
// confHistory, ConfigurationCtx, ballotBox, ballot and election.Voter. What a Node does around them is
// done by hand, with its names: see node_election.go, node_leader.go and node_follower.go.
type specServer struct {
	peer  PeerID
	term  int64
	vote  PeerID
	log   []specEntry // the entry at index 1 comes first
	confs confHistory
	conf  confEntry // in force
	box   *ballotBox
	ctx   ConfigurationCtx
	lead  bool
	watch int64 // index of the configuration entry of the present stage, until that has heard of its commit

	acked   map[PeerID]int64 // what the box was told, for its oracle
	changed bool             // since the last check
}

// mayCampaign is Node's, of one that has its disk.
func (s *specServer) mayCampaign() bool {
	return s.conf.hasVoter(s.peer) || s.confs.votes(s.peer, s.box.index())
}

// departing reports whether a leader has no vote in what is committed, and is to hand over.
func (s *specServer) departing() bool {
	return s.lead && s.ctx.Stage() == StageNone && !s.conf.conf.ContainsVoter(s.peer)
}

func (s *specServer) last() int64 { return int64(len(s.log)) }

func (s *specServer) tail() election.Position {
	if len(s.log) == 0 {
		return election.Position{}
	}
	return election.Position{Term: s.log[len(s.log)-1].term, Index: s.last()}
}

// stepDown makes the server a follower, in the given term if that is higher.
func (s *specServer) stepDown(term int64) {
	if s.lead {
		s.box.close()
		s.ctx.Abort(ErrNotLeader)
		s.lead, s.watch, s.acked = false, 0, nil
	}
	if term > s.term {
		s.term, s.vote = term, PeerID{}
	}
}

// specGroup is all servers. Each deed compares the production code with the definition of what it
// decides (spec_walk_test.go); a difference ends the test.
type specGroup struct {
	t       *testing.T
	servers []*specServer
	base    confEntry
	truth   []specEntry   // what anybody ever committed
	leaders map[int64]int // by term
	ids     int
	cut     int                     // configurations that were cut off
	at      string                  // where a run is
	late    func(a specAnswer) bool // whether an answer is kept back, to be delivered later; nil: none
}

// specAnswer tells a leader up to where another server has stored its log, or its own disk.
type specAnswer struct {
	to, from    *specServer
	term, index int64
}

func newSpecGroup(t *testing.T, servers int, voters ...int) *specGroup {
	g := &specGroup{t: t, leaders: make(map[int64]int)}
	for i := range servers {
		g.servers = append(g.servers, &specServer{peer: PeerID{Address: fmt.Sprintf("s%d:1", i)}, box: new(ballotBox)})
	}
	g.base = confEntry{conf: g.configuration(voters...)}
	for _, v := range voters { // the others join with an empty configuration
		g.servers[v].confs.base, g.servers[v].conf = g.base, g.base
	}
	return g
}

func (g *specGroup) configuration(members ...int) Configuration {
	var ps []PeerID
	for _, m := range members {
		ps = append(ps, g.servers[m].peer)
	}
	c, err := NewConfiguration(ps...)
	require.NoError(g.t, err)
	return c
}

// campaign has c ask for votes, and become leader with enough of them. It returns who refused.
func (g *specGroup) campaign(c int, term int64, voters []int) (refused []int, won bool) {
	s := g.servers[c]
	s.stepDown(term)
	s.vote = s.peer
	b, granted := newBallot(s.conf), map[PeerID]bool{s.peer: true}
	won = b.grant(s.peer)
	for _, v := range voters {
		switch {
		case v == c:
		case g.vote(g.servers[v], s):
			granted[g.servers[v].peer] = true
			won = b.grant(g.servers[v].peer)
		default:
			refused = append(refused, v)
		}
	}
	require.Equal(g.t, decides(granted, s.conf), won, "%s: %d has the votes of %v under %v", g.at, c, granted, s.conf)
	if won {
		g.becomeLeader(c)
	}
	return refused, won
}

// vote asks a server for its vote.
func (g *specGroup) vote(s, candidate *specServer) bool {
	r := election.Request{Term: candidate.term, Last: candidate.tail()}
	if r.Term > s.term {
		s.stepDown(r.Term)
	}
	v := election.Voter{Term: s.term, Voted: !s.vote.IsZero(), For: s.vote.Same(candidate.peer), Last: s.tail()}
	granted := v.Vote(r)
	require.Equal(g.t, mayVote(s, candidate), granted, "%s: %+v asks %+v", g.at, r, v)
	if granted {
		s.vote = candidate.peer
	}
	return granted
}

func (g *specGroup) becomeLeader(c int) {
	s := g.servers[c]
	_, led := g.leaders[s.term]
	require.False(g.t, led, "%s: two leaders in term %d", g.at, s.term)
	g.leaders[s.term] = c
	g.complete(s)
	s.lead, s.acked = true, make(map[PeerID]int64)
	require.NoError(g.t, s.box.open(s.term, s.last()+1))
	g.doConf(s, s.ctx.Lead(s.conf.conf, s.conf.old))
}

func (g *specGroup) doConf(s *specServer, a confAction) {
	if a.propose == nil {
		return
	}
	e := *a.propose
	e.index, e.term = s.last()+1, s.term
	g.sound(s, e)
	s.conf, s.watch = e, e.index
	s.confs.append(e)
	g.appendOwn(s, &e)
}

// appendOwn appends an entry to the log of a leader, data if conf is nil.
func (g *specGroup) appendOwn(s *specServer, conf *confEntry) {
	g.ids++
	index := s.last() + 1
	s.box.propose(index, index, s.conf)
	s.log = append(s.log, specEntry{id: g.ids, term: s.term, conf: conf})
	s.changed = true
	g.answer(specAnswer{to: s, from: s, term: s.term, index: index})
}

// replicate has a leader send entries, count at most, which the follower stores. It says up to where
// their logs agree then.
func (g *specGroup) replicate(l, f *specServer, count int) {
	f.stepDown(l.term)
	same := 0
	for same < min(len(l.log), len(f.log)) && l.log[same].term == f.log[same].term {
		same++
	}
	fresh := l.log[same:min(len(l.log), same+count)]
	if len(fresh) > 0 {
		require.LessOrEqual(g.t, f.box.index(), int64(same), "%s: cuts off what is committed", g.at)
		for _, e := range f.log[same:] {
			if e.conf != nil {
				g.cut++
			}
		}
		f.log = slices.Clone(f.log[:same])
		f.confs.truncateSuffix(int64(same))
		for _, e := range fresh {
			f.log = append(f.log, e)
			if e.conf != nil {
				f.confs.append(*e.conf)
			}
		}
		f.conf = f.confs.last()
	}
	matched := int64(same + len(fresh))
	f.box.follow(min(l.box.index(), matched))
	f.changed = true
	g.answer(specAnswer{to: l, from: f, term: l.term, index: matched})
}

// answer delivers an answer, now or later.
func (g *specGroup) answer(a specAnswer) {
	if g.late == nil || !g.late(a) {
		g.ack(a)
	}
}

// ack has a leader, or who was one in that term, count an answer, and reports whether that commits anything.
func (g *specGroup) ack(a specAnswer) bool {
	l := a.to
	if l.lead && l.term == a.term {
		l.acked[a.from.peer] = max(l.acked[a.from.peer], a.index)
	}
	before := l.box.index()
	committed, moved := l.box.ack(a.term, a.from.peer, 0, a.index)
	require.Equal(g.t, max(before, countedBy(l)), committed, "%s: commit index of %v in term %d, knowing of %v", g.at, l.peer, l.term, l.acked)
	require.Equal(g.t, committed > before, moved, g.at)
	if moved {
		l.changed = true
		g.commit(l, committed)
	}
	return moved
}

// commit notes what is committed, which nothing may contradict.
func (g *specGroup) commit(l *specServer, committed int64) {
	for i, e := range l.log[:committed] {
		if i == len(g.truth) {
			g.truth = append(g.truth, e)
		}
		if g.truth[i].id != e.id {
			g.t.Fatalf("%s: %v commits another entry at index %d", g.at, l.peer, i+1)
		}
	}
	for _, s := range g.servers {
		if s.lead && s.term > l.term {
			g.complete(s)
		}
	}
}

// complete checks that a leader has all that was ever committed.
func (g *specGroup) complete(s *specServer) {
	require.GreaterOrEqual(g.t, len(s.log), len(g.truth), "%s: %v leads without what is committed", g.at, s.peer)
	for i, e := range g.truth {
		if s.log[i].id != e.id {
			g.t.Fatalf("%s: %v leads without what is committed at %d", g.at, s.peer, i+1)
		}
	}
}

// confCommitted is what Node.onOwnCommit does: it goes on when the entry of the stage is committed.
func (g *specGroup) confCommitted(s *specServer) bool {
	if s.watch == 0 || s.box.index() < s.watch {
		return false
	}
	s.watch = 0
	g.doConf(s, s.ctx.Committed())
	return true
}

// change begins a change, new peers of which have caught up, and reports whether that is possible.
func (g *specGroup) change(s *specServer, to Configuration, alwaysJoint bool) bool {
	possible := s.ctx.Stage() == StageNone
	require.Equal(g.t, settled(s), possible, "%s: stage is %v", g.at, s.ctx.Stage())
	if !possible {
		busy := s.ctx
		require.Panics(g.t, func() { busy.Start(s.conf.conf, to) }, g.at)
		return false
	}
	for _, p := range s.ctx.Start(s.conf.conf, to).catchUp {
		require.False(g.t, s.ctx.Ready(), g.at)
		s.ctx.CaughtUp(s.ctx.version, p, nil)
	}
	require.True(g.t, s.ctx.Ready(), g.at)
	g.doConf(s, s.ctx.Proceed(alwaysJoint))
	return true
}

// specRefusal is a step of a trace that the production code does not take.
type specRefusal struct {
	by   string // who refuses
	line int
	step string
}

// specTrace replays what the model printed: lines that say what is done, each followed by what comes of it.
type specTrace struct {
	g      *specGroup
	lines  []string
	n      int  // of the line that is next
	mutant bool // what is not committed there may be here: that refuses nothing
}

func (r *specTrace) refuse(by string) *specRefusal {
	return &specRefusal{by: by, line: r.n, step: r.lines[r.n-1]}
}

// number parses a number of a trace.
func (r *specTrace) number(s string) int {
	n, err := strconv.Atoi(s)
	require.NoError(r.g.t, err, r.g.at)
	return n
}

// specMembers parses a set of servers, a digit each.
func specMembers(s string) (ms []int) {
	for _, digit := range s {
		ms = append(ms, int(digit-'0'))
	}
	return ms
}

// next takes a line if it begins like that.
func (r *specTrace) next(words ...string) (fields []string, ok bool) {
	if r.n == len(r.lines) {
		return nil, false
	}
	fields = strings.Fields(r.lines[r.n])
	if len(fields) < len(words) || !slices.Equal(fields[:len(words)], words) {
		return nil, false
	}
	r.n++
	return fields, true
}

// run takes the steps until one is refused, or the model has seen what it looked for.
func (r *specTrace) run() *specRefusal {
	for r.n < len(r.lines) {
		r.g.at = r.lines[r.n]
		fields := strings.Fields(r.lines[r.n])
		r.n++
		var refusal *specRefusal
		switch fields[0] {
		case "elect":
			refusal = r.elect(r.number(fields[1]), int64(r.number(fields[3])), specMembers(fields[5]))
		case "append":
			refusal = r.append(r.number(fields[1]), r.number(fields[3]), int64(r.number(fields[5])))
		case "change":
			refusal = r.change(r.number(fields[1]), specMembers(fields[3]))
		case "leave":
			refusal = r.leave(r.number(fields[1]))
		case "entry": // data: it has no line of its own before
			s := r.g.servers[r.number(fields[1])]
			require.Equal(r.g.t, "data", fields[6], r.g.at)
			require.True(r.g.t, s.lead, r.g.at)
			before := s.box.index()
			r.g.appendOwn(s, nil)
			refusal = r.committed(s, before)
		case "violated", "reached":
			return nil
		default:
			r.g.t.Fatalf("%s: unknown", r.g.at)
		}
		if refusal != nil {
			return refusal
		}
		r.g.check()
	}
	return nil
}

func (r *specTrace) elect(c int, term int64, voters []int) *specRefusal {
	s := r.g.servers[c]
	if !s.conf.hasVoter(s.peer) && !s.confs.votes(s.peer, 0) { // it may have begun anew, and not know what is committed
		return r.refuse("confHistory.votes")
	}
	before, first := s.box.index(), s.last()+1
	refused, won := r.g.campaign(c, term, voters)
	switch {
	case len(refused) > 0:
		return r.refuse("election.Voter")
	case !won:
		return r.refuse("ballot")
	}
	if _, end := r.next("violated"); end { // its log was full
		return nil
	}
	return r.proposed("ConfigurationCtx.Lead", s, first, before)
}

func (r *specTrace) append(l, f int, index int64) *specRefusal {
	leader, follower := r.g.servers[l], r.g.servers[f]
	require.True(r.g.t, leader.lead && leader.term >= follower.term, r.g.at)
	before := leader.box.index()
	r.g.replicate(leader, follower, 1)
	require.Equal(r.g.t, index, leader.acked[follower.peer], r.g.at)
	return r.committed(leader, before)
}

func (r *specTrace) change(l int, to []int) *specRefusal {
	s := r.g.servers[l]
	require.True(r.g.t, s.lead, r.g.at)
	before, first := s.box.index(), s.last()+1
	if !r.g.change(s, r.g.configuration(to...), false) {
		return r.refuse("ConfigurationCtx.Stage")
	}
	return r.proposed("ConfigurationCtx.Proceed", s, first, before)
}

func (r *specTrace) leave(l int) *specRefusal {
	s := r.g.servers[l]
	require.True(r.g.t, s.lead, r.g.at)
	before, first := s.box.index(), s.last()+1
	if s.ctx.Stage() != StageJoint || !r.g.confCommitted(s) {
		return r.refuse("ConfigurationCtx.Committed")
	}
	return r.proposed("ConfigurationCtx.Committed", s, first, before)
}

// proposed compares the configuration that was appended at an index with the trace.
func (r *specTrace) proposed(by string, s *specServer, index, before int64) *specRefusal {
	fields, ok := r.next("entry")
	require.True(r.g.t, ok, r.g.at)
	require.Equal(r.g.t, []string{strconv.FormatInt(index, 10), strconv.FormatInt(s.term, 10)}, []string{fields[3], fields[5]}, r.g.at)
	e := s.log[index-1].conf
	conf, old := r.g.configuration(specMembers(fields[7])...), Configuration{}
	if len(fields) > 8 {
		old = r.g.configuration(specMembers(fields[9])...)
	}
	if !e.conf.Equal(conf) || !e.old.Equal(old) {
		return r.refuse(by)
	}
	return r.committed(s, before)
}

// committed compares what a leader has come to know as committed with the trace.
func (r *specTrace) committed(s *specServer, before int64) *specRefusal {
	want := before
	if fields, ok := r.next("commit"); ok {
		want = int64(r.number(fields[3]))
	}
	if committed := s.box.index(); committed < want || committed > want && !r.mutant {
		return r.refuse("ballotBox")
	}
	if s.ctx.Stage() == StageStable {
		r.g.confCommitted(s)
	}
	return nil
}

// specTraces reads a file of traces: the lines of each, by its title.
func specTraces(t *testing.T, file string) (titles []string, traces [][]string) {
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if title, ok := strings.CutPrefix(in.Text(), "# "); ok {
			titles, traces = append(titles, title), append(traces, nil)
			continue
		}
		traces[len(traces)-1] = append(traces[len(traces)-1], in.Text())
	}
	require.NotEmpty(t, traces, file)
	return titles, traces
}

// replaySpec replays a trace, and returns the step that the production code refused, if any.
func replaySpec(t *testing.T, lines []string, mutant bool) *specRefusal {
	base, ok := strings.CutPrefix(lines[0], "base ")
	require.True(t, ok, lines[0])
	g := newSpecGroup(t, 4, specMembers(base)...)
	g.at = lines[0]
	for _, s := range g.servers { // right after an election that all know of
		s.term, s.vote = 1, g.servers[0].peer
	}
	g.becomeLeader(0)
	r := &specTrace{g: g, lines: lines, n: 1, mutant: mutant}
	if refusal := r.proposed("ConfigurationCtx.Lead", g.servers[0], 1, 0); refusal != nil {
		return refusal
	}
	return r.run()
}

// Each mutant of the model takes a step, on its way to a violation, that the code does not take.
func TestTheRulesRefuseWhatMutantsOfTheModelDo(t *testing.T) {
	for mutant, want := range map[string]struct{ by, step string }{
		"NEW_HALF":     {"ballotBox", "commit 0 index 2"},
		"UNION":        {"ballot", "elect 1 term 2 votes 12"},
		"NO_OWN_ENTRY": {"ConfigurationCtx.Stage", "change 3 to 013"},
		"EARLY_NEW":    {"ConfigurationCtx.Committed", "leave 0"},
		"LEAD_NEW":     {"ConfigurationCtx.Lead", "entry 0 index 3 term 2 conf 0"},
		"SKIP_JOINT":   {"ConfigurationCtx.Proceed", "entry 0 index 2 term 1 conf 0"},
		"TWO_CHANGES":  {"ConfigurationCtx.Stage", "change 0 to 0"},
		"ON_COMMIT":    {"ballot", "elect 1 term 2 votes 12"}, // confHistory says under which configuration
		"STALE_CONF":   {"ballot", "elect 0 term 3 votes 03"}, // likewise
		"OLD_TERM":     {"ballotBox", "commit 0 index 1"},
		"SELF":         {"ballot", "elect 1 term 2 votes 12"},
		"SECOND_VOTE":  {"election.Voter", "elect 0 term 2 votes 01"},
		"SHORT_LOG":    {"election.Voter", "elect 2 term 2 votes 02"},
	} {
		t.Run(mutant, func(t *testing.T) {
			_, traces := specTraces(t, "spec/traces/mutant-"+mutant+".txt")
			refusal := replaySpec(t, traces[0], true)
			require.NotNil(t, refusal, "every step was taken")
			assert.Equal(t, want.step, refusal.step, "step %d", refusal.line)
			assert.Equal(t, want.by, refusal.by)
		})
	}
	files, err := filepath.Glob("spec/traces/mutant-*.txt")
	require.NoError(t, err)
	assert.Len(t, files, 13, "traces of mutants, all of which are above")
}

// What the model does by its rules, the code does as well, and the same comes of it.
func TestTheRulesTakeTheStepsOfTheModel(t *testing.T) {
	files, err := filepath.Glob("spec/traces/reach-*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range append(files, "spec/traces/walks.txt") {
		titles, traces := specTraces(t, file)
		for i, lines := range traces {
			t.Run(titles[i], func(t *testing.T) {
				if refusal := replaySpec(t, lines, false); refusal != nil {
					t.Errorf("%s refuses step %d: %s", refusal.by, refusal.line, refusal.step)
				}
			})
		}
	}
}
