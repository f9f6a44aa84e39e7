package graft

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// namesOf names peers as peersOf and learnersOf make them: "a,b", with an l behind a learner.
func namesOf(peers []PeerID) string {
	names := make([]string, len(peers))
	for i, p := range peers {
		names[i] = strings.TrimSuffix(p.Address, ":1")
		if p.Role == Learner {
			names[i] += "l"
		}
	}
	return strings.Join(names, ",")
}

// confFrom is the opposite of namesOf.
func confFrom(names string) Configuration {
	if names == "" {
		return Configuration{}
	}
	var ps []PeerID
	for name := range strings.SplitSeq(names, ",") {
		p := PeerID{Address: strings.TrimSuffix(name, "l") + ":1"}
		if strings.HasSuffix(name, "l") {
			p.Role = Learner
		}
		ps = append(ps, p)
	}
	c, err := NewConfiguration(ps...)
	if err != nil {
		panic(err)
	}
	return c
}

// String is an action in one line.
func (a confAction) String() string {
	var parts []string
	if a.catchUp != nil {
		parts = append(parts, "catch up "+namesOf(a.catchUp))
	}
	if e := a.propose; e != nil {
		text := "propose " + namesOf(e.conf.peers)
		if e.joint() {
			text += " from " + namesOf(e.old.peers)
		}
		parts = append(parts, text)
	}
	if a.over {
		text := "over"
		if a.err != nil {
			text += " (" + ErrorCode(a.err).Error() + ")"
		}
		parts = append(parts, text)
	}
	if a.drop != nil {
		parts = append(parts, "drop "+namesOf(a.drop))
	}
	return strings.Join(parts, "; ")
}

// Every event in every stage against a list that was written from the description of the protocol: what is not in
// the list cannot happen.
func TestEveryEventInEveryStage(t *testing.T) {
	want := map[string]string{
		"none start":            "catching-up",
		"none lead":             "stable",
		"none lead-joint":       "joint",
		"none abort":            "none",
		"catching-up ready":     "joint",
		"catching-up ready-one": "stable",
		"catching-up abort":     "none",
		"joint committed":       "stable",
		"joint abort":           "none",
		"stable committed":      "none",
		"stable abort":          "none",
	}
	for stage := range numStages {
		for ev := range numConfEvents {
			on := fmt.Sprint(stage, " ", ev)
			to, ok := want[on]
			if !ok {
				assert.Panics(t, func() { stage.next(ev) }, on)
				continue
			}
			assert.Equal(t, to, stage.next(ev).String(), on)
			delete(want, on)
		}
	}
	assert.Empty(t, want, "not looked at")
	assert.Equal(t, "Stage(4)", numStages.String())
}

// ctxIn returns a context that has come to a stage, by the shortest way.
func ctxIn(stage Stage) *ConfigurationCtx {
	c := new(ConfigurationCtx)
	switch stage {
	case StageCatchingUp:
		c.Start(confFrom("a,b,c"), confFrom("a,d,e"))
	case StageJoint:
		c.Lead(confFrom("a,d,e"), confFrom("a,b,c"))
	case StageStable:
		c.Lead(confFrom("a,d,e"), Configuration{})
	}
	return c
}

// Every call in every stage: what it asks for, or that it must not be made.
func TestEveryCallInEveryStage(t *testing.T) {
	cause := &Error{Code: ErrNotLeader}
	d := PeerID{Address: "d:1"}
	calls := map[string]func(c *ConfigurationCtx) confAction{
		"start":       func(c *ConfigurationCtx) confAction { return c.Start(confFrom("a,b,c"), confFrom("a,b,d")) },
		"caught up":   func(c *ConfigurationCtx) confAction { return c.CaughtUp(c.version, d, nil) },
		"not caught":  func(c *ConfigurationCtx) confAction { return c.CaughtUp(c.version, d, cause) },
		"late report": func(c *ConfigurationCtx) confAction { return c.CaughtUp(c.version-1, d, cause) },
		"stranger":    func(c *ConfigurationCtx) confAction { return c.CaughtUp(c.version, PeerID{Address: "x:1"}, cause) },
		"a member":    func(c *ConfigurationCtx) confAction { return c.CaughtUp(c.version, PeerID{Address: "a:1"}, cause) },
		"proceed":     func(c *ConfigurationCtx) confAction { return c.Proceed(false) },
		"lead":        func(c *ConfigurationCtx) confAction { return c.Lead(confFrom("a,b"), Configuration{}) },
		"lead, joint": func(c *ConfigurationCtx) confAction { return c.Lead(confFrom("a,b"), confFrom("a")) },
		"committed":   func(c *ConfigurationCtx) confAction { return c.Committed() },
		"fail":        func(c *ConfigurationCtx) confAction { return c.Fail(&Error{Code: ErrCanceled}) },
		"abort":       func(c *ConfigurationCtx) confAction { return c.Abort(cause) },
	}
	const panics = "panics"
	want := map[Stage]map[string]string{
		StageNone: {
			"start": "catch up d > catching-up", "lead": "propose a,b > stable", "lead, joint": "propose a,b from a > joint",
			"proceed": panics, "committed": panics, "fail": "over (canceled) > none", "abort": " > none",
		},
		StageCatchingUp: {
			"start": panics, "lead": panics, "lead, joint": panics, "committed": panics,
			"caught up": " > catching-up", "not caught": "over (not leader); drop d,e > none",
			"proceed": "propose a,d,e from a,b,c > joint",
			"fail":    "over (canceled); drop d,e > none", "abort": "over (not leader) > none",
		},
		StageJoint: {
			"start": panics, "lead": panics, "lead, joint": panics, "proceed": panics,
			"committed": "propose a,d,e > stable",
			"abort":     "over (outcome unknown: it may yet be committed) > none",
		},
		StageStable: {
			"start": panics, "lead": panics, "lead, joint": panics, "proceed": panics,
			"committed": "over > none",
			"abort":     "over (outcome unknown: it may yet be committed) > none",
		},
	}
	for stage := range numStages {
		for name, call := range calls {
			if stage >= StageJoint && name == "fail" {
				continue // the node does not: nothing could be taken back
			}
			c, what := ctxIn(stage), fmt.Sprint(name, " in ", stage)
			require.Equal(t, stage, c.Stage(), what)
			wanted, ok := want[stage][name]
			switch {
			case wanted == panics:
				assert.Panics(t, func() { call(c) }, what)
				continue
			case !ok: // it is void
				wanted = " > " + stage.String()
			}
			version := c.version
			a := call(c)
			assert.Equal(t, wanted, a.String()+" > "+c.Stage().String(), what)
			if a.over {
				assert.Greater(t, c.version, version, "%s: what was asked for an ended change is void", what)
			}
		}
	}
}

// confStep is one call of a walk, and what it asks for.
type confStep struct {
	call func(c *ConfigurationCtx) confAction
	name string
	want string
	then Stage
}

func begin(old, conf string) func(c *ConfigurationCtx) confAction {
	return func(c *ConfigurationCtx) confAction { return c.Start(confFrom(old), confFrom(conf)) }
}

func caughtUp(name string) func(c *ConfigurationCtx) confAction {
	return func(c *ConfigurationCtx) confAction { return c.CaughtUp(c.version, PeerID{Address: name + ":1"}, nil) }
}

func proceed(c *ConfigurationCtx) confAction   { return c.Proceed(false) }
func committed(c *ConfigurationCtx) confAction { return c.Committed() }

// namedWalk is what becomes of a change, step by step.
type namedWalk struct {
	name  string
	steps []confStep
}

func playWalks(t *testing.T, walks []namedWalk) {
	for _, walk := range walks {
		var c ConfigurationCtx
		for i, step := range walk.steps {
			got := step.call(&c).String()
			assert.Equal(t, step.want, got, "%s, step %d: %s", walk.name, i, step.name)
			assert.Equal(t, step.then, c.Stage(), "%s, step %d: %s", walk.name, i, step.name)
		}
	}
}

func alwaysJoint(c *ConfigurationCtx) confAction { return c.Proceed(true) }

func TestWalksOfAChange(t *testing.T) {
	fails := func(name string) func(c *ConfigurationCtx) confAction {
		return func(c *ConfigurationCtx) confAction {
			return c.CaughtUp(c.version, PeerID{Address: name + ":1"}, &Error{Code: ErrCatchup})
		}
	}
	playWalks(t, []namedWalk{
		{"two are replaced", []confStep{
			{begin("a,b,c", "a,d,e"), "start", "catch up d,e", StageCatchingUp},
			{caughtUp("e"), "e", "", StageCatchingUp},
			{caughtUp("e"), "e again", "", StageCatchingUp},
			{caughtUp("d"), "d", "", StageCatchingUp},
			{proceed, "proceed", "propose a,d,e from a,b,c", StageJoint},
			{committed, "committed", "propose a,d,e", StageStable},
			{committed, "committed", "over", StageNone},
		}},
		{"one is added", []confStep{
			{begin("a,b,c", "a,b,c,d"), "start", "catch up d", StageCatchingUp},
			{caughtUp("d"), "d", "", StageCatchingUp},
			{proceed, "proceed", "propose a,b,c,d", StageStable},
			{committed, "committed", "over", StageNone},
		}},
		{"one is added, and always joint", []confStep{
			{begin("a,b,c", "a,b,c,d"), "start", "catch up d", StageCatchingUp},
			{caughtUp("d"), "d", "", StageCatchingUp},
			{alwaysJoint, "proceed", "propose a,b,c,d from a,b,c", StageJoint},
			{committed, "committed", "propose a,b,c,d", StageStable},
			{committed, "committed", "over", StageNone},
		}},
		{"one is removed", []confStep{
			{begin("a,b,c", "a,b"), "start", "", StageCatchingUp},
			{proceed, "proceed", "propose a,b", StageStable},
			{committed, "committed", "over", StageNone},
		}},
		{"one fails to catch up", []confStep{
			{begin("a", "a,b,c"), "start", "catch up b,c", StageCatchingUp},
			{caughtUp("b"), "b", "", StageCatchingUp},
			{fails("c"), "c fails", "over (peer failed to catch up); drop b,c", StageNone},
			{begin("a", "a,b"), "the next one", "catch up b", StageCatchingUp},
		}},
		{"a new leader restates", []confStep{
			{func(c *ConfigurationCtx) confAction { return c.Lead(confFrom("a,b"), Configuration{}) }, "lead", "propose a,b", StageStable},
			{committed, "committed", "over", StageNone},
		}},
		{"a new leader finishes a joint change", []confStep{ // H-67, M23: C<new> only after the joint one is committed anew
			{func(c *ConfigurationCtx) confAction { return c.Lead(confFrom("a,d"), confFrom("a,b")) }, "lead", "propose a,d from a,b", StageJoint},
			{committed, "committed", "propose a,d", StageStable},
			{committed, "committed", "over", StageNone},
		}},
	})
}

func TestWalksOfRoles(t *testing.T) {
	playWalks(t, []namedWalk{
		{"learners are never joint", []confStep{
			{begin("a,bl,cl", "a,dl,el"), "start", "catch up dl,el", StageCatchingUp},
			{caughtUp("d"), "d", "", StageCatchingUp},
			{caughtUp("e"), "e", "", StageCatchingUp},
			{alwaysJoint, "proceed", "propose a,dl,el", StageStable},
			{committed, "committed", "over", StageNone},
		}},
		{"a learner is promoted", []confStep{
			{begin("a,bl", "a,b"), "start", "catch up b", StageCatchingUp},
			{caughtUp("b"), "b", "", StageCatchingUp},
			{proceed, "proceed", "propose a,b", StageStable},
		}},
		{"two are demoted", []confStep{
			{begin("a,b,c", "a,bl,cl"), "start", "", StageCatchingUp},
			{proceed, "proceed", "propose a,bl,cl from a,b,c", StageJoint},
		}},
	})
}

// Reports about a change that is over do not touch the next one, although the same peer is in it.
func TestLateReportsAreVoid(t *testing.T) {
	var c ConfigurationCtx
	b := PeerID{Address: "b:1"}
	c.Start(confFrom("a"), confFrom("a,b"))
	first := c.version
	c.Fail(&Error{Code: ErrCanceled})
	c.Start(confFrom("a"), confFrom("a,b"))
	assert.Empty(t, c.CaughtUp(first, b, errors.New("late")).String())
	assert.Empty(t, c.CaughtUp(first, b, nil).String())
	assert.False(t, c.Ready())
	assert.Equal(t, StageCatchingUp, c.Stage())
	c.CaughtUp(c.version, b, nil)
	assert.True(t, c.Ready())
}

// confWalk is a random walk with an account of what it has seen.
type confWalk struct {
	t         *testing.T
	rng       *rand.Rand
	c         ConfigurationCtx
	from, to  Configuration
	jointAsks int // of joint entries, in this change
	asks      int
	versions  []uint64
}

// check looks at an action of a change that goes from w.from to w.to.
func (w *confWalk) check(a confAction, joint bool) {
	if e := a.propose; e != nil {
		w.asks++
		require.Equal(w.t, w.to, e.conf)
		if e.joint() {
			w.jointAsks++
			require.Equal(w.t, w.from, e.old)
			require.Equal(w.t, 1, w.asks, "nothing comes before the joint entry")
		} else {
			require.Equal(w.t, joint, w.jointAsks == 1, "C<new> alone only if the change is not joint")
		}
	}
	if a.over {
		require.Equal(w.t, StageNone, w.c.Stage())
	}
	require.LessOrEqual(w.t, w.asks, 2)
	require.LessOrEqual(w.t, w.jointAsks, 1)
}

// change walks through one change, at most to its end.
func (w *confWalk) change() {
	names := []string{"a", "b", "c", "d", "e", "bl", "dl"}
	draw := func() Configuration {
		for {
			var picked []string
			for _, name := range names {
				if w.rng.IntN(2) == 0 && !strings.Contains(strings.Join(picked, ","), name[:1]) {
					picked = append(picked, name)
				}
			}
			if c := confFrom(strings.Join(picked, ",")); len(c.Voters()) > 0 {
				return c
			}
		}
	}
	w.from, w.to, w.asks, w.jointAsks = draw(), draw(), 0, 0
	always := w.rng.IntN(2) == 0
	differ := w.from.votersDiffering(w.to)
	joint := differ > 1 || always && differ > 0
	a := w.c.Start(w.from, w.to)
	w.check(a, joint)
	waiting := a.catchUp
	for w.c.Stage() != StageNone {
		if w.rng.IntN(20) == 0 {
			w.check(w.c.Abort(&Error{Code: ErrNotLeader}), joint)
			break
		}
		if len(w.versions) > 0 && w.rng.IntN(3) == 0 { // a late report
			before := w.c.Stage()
			old := w.versions[w.rng.IntN(len(w.versions))]
			require.Empty(w.t, w.c.CaughtUp(old, w.to.peers[w.rng.IntN(w.to.Len())], errors.New("late")).String())
			require.Equal(w.t, before, w.c.Stage())
		}
		switch {
		case w.c.Stage() != StageCatchingUp:
			w.check(w.c.Committed(), joint)
		case len(waiting) > 0 && w.rng.IntN(10) == 0:
			a := w.c.CaughtUp(w.c.version, waiting[0], &Error{Code: ErrCatchup})
			w.check(a, joint)
			require.True(w.t, a.over)
			require.Equal(w.t, namesOf(w.to.minus(w.from)), namesOf(a.drop))
		case len(waiting) > 0:
			require.False(w.t, w.c.Ready())
			w.check(w.c.CaughtUp(w.c.version, waiting[0], nil), joint)
			waiting = waiting[1:]
		default:
			require.True(w.t, w.c.Ready())
			w.check(w.c.Proceed(always), joint)
		}
	}
	w.versions = append(w.versions[max(0, len(w.versions)-5):], w.c.version-1)
}

func TestRandomWalksKeepTheRules(t *testing.T) {
	w := confWalk{t: t, rng: rand.New(rand.NewPCG(3, 4))}
	for range 5000 {
		w.change()
	}
	// The other order of roles: what has to catch up is exactly what is new or gets a vote.
	for _, test := range []struct{ old, conf, want string }{
		{"a,b", "a,b", ""}, {"a,b", "a", ""}, {"a,bl", "a,b", "b"}, {"a,b", "a,bl", ""}, {"a", "a,bl", "bl"},
		{"a,bl,c", "a,b,cl,d", "b,d"}, {"a", "b,cl", "b,cl"},
	} {
		var c ConfigurationCtx
		assert.Equal(t, test.want, namesOf(c.Start(confFrom(test.old), confFrom(test.conf)).catchUp), "%s to %s", test.old, test.conf)
	}
}
