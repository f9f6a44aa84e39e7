package main

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

func TestLeader(t *testing.T) {
	c := startCluster(t, 3)
	leader := c.ready()
	for _, asked := range append(c.first, strings.Join(c.first, ",")) {
		assert.Equal(t, ids(leader)+"\n", ctl(t, asked, "leader").ok(), "asked %s", asked)
	}
	var got struct{ Group, Leader string }
	strictly(t, c.ctl("leader", "--json").ok(), &got)
	assert.Equal(t, "g", got.Group)
	assert.Equal(t, ids(leader), got.Leader)
}

func TestPeers(t *testing.T) {
	c := startCluster(t, 3)
	learner := c.spare()
	c.ctl("learner", "add", learner).ok()
	text := c.ctl("peers").ok()
	assert.Equal(t, 4, strings.Count(text, "\n"))
	for _, a := range c.first {
		assert.Regexp(t, ids(a)+" +voter", text)
	}
	assert.Regexp(t, learner+":0:2 +learner\n", text)
	assert.Regexp(t, ids(c.ready())+" +voter +leader\n", text)

	var got struct {
		Group, Leader string
		Peers         []string
	}
	strictly(t, c.ctl("peers", "--json").ok(), &got)
	assert.Equal(t, list(append(c.first, learner+":0:2")...), got.Peers)
	assert.Equal(t, ids(c.ready()), got.Leader)
}

func TestStatus(t *testing.T) {
	c := startCluster(t, 3)
	leader, down := c.ready(), c.follower()
	c.stop(down)
	asked := leader
	text := ctl(t, asked, "status").ok()
	assert.Contains(t, text, "group   g\nleader  "+ids(leader)+"\nterm    ")
	assert.Contains(t, text, "PEER ")
	for _, a := range c.first { // the others are found through the one that was asked
		assert.Regexp(t, ids(a)+" +voter", text)
	}
	assert.Regexp(t, ids(leader)+` +voter +leader +\d+ +\d+ +\d+ +\d+ +\d+ +- `, text)
	assert.Regexp(t, ids(down)+` +voter +- .* connection refused\n`, text)

	var got statusResult
	strictly(t, ctl(t, asked, "status", "--json").ok(), &got)
	assert.Equal(t, ids(leader), got.Leader)
	assert.Equal(t, "none", got.Stage)
	assert.Equal(t, list(c.first...), got.Peers)
	require.Len(t, got.Replicas, 3)
	for _, r := range got.Replicas {
		assert.Equal(t, "voter", r.Kind)
		if r.Peer == ids(down) {
			assert.Equal(t, "connection refused", r.Problem)
			continue
		}
		assert.Empty(t, r.Problem)
		assert.Positive(t, r.LastIndex)
		assert.Equal(t, got.Term, r.Term)
	}
}

func TestStatusWithoutLeader(t *testing.T) {
	c := newCluster(t)
	c.node.ElectionTimeout = time.Second // after which a leader that is alone steps down
	c.startVoters(3)
	for range 2 {
		c.stop(c.leaderOrAny())
	}
	var rest string
	for a := range c.nodes {
		rest = a
	}
	var text string
	eventually(t, func() bool { // it may know none for a moment, and then hear of the one that the first stop brought up
		text = ctl(t, rest, "status").ok()
		return strings.Contains(text, "leader  none\n")
	}, "the last one still knows a leader")
	assert.Equal(t, 2, strings.Count(text, "connection refused"))
	assert.Contains(t, text, ids(rest))

	var e *execution
	eventually(t, func() bool {
		e = ctl(t, rest, "leader", "--timeout", "5s")
		return e.wait() != 0
	}, "the last one has heard of a leader, and does not forget it")
	said := e.fails()
	assert.Contains(t, said, "group g has no leader that can be reached")
	assert.Contains(t, said, rest+": Unknown leader")
	assert.Contains(t, said, "A majority of its voters must run")
	f := ctl(t, rest, "add", rest, "--json", "--timeout", "5s").failsJSON()
	assert.Equal(t, int32(codeAgain), f.Code)
	assert.Equal(t, outcomeNone, f.Outcome)
}

// leaderOrAny is a server that runs, the leader if there is one.
func (c *cluster) leaderOrAny() (any string) {
	for a, n := range c.nodes {
		if any = a; n.IsLeader() {
			return a
		}
	}
	return any
}

func TestAddAndRemove(t *testing.T) {
	c := startCluster(t, 1)
	first, second := c.first[0], c.spare()
	assert.Equal(t, "before: "+ids(first)+"\nnow:    "+ids(first, second)+"\n", c.ctl("add", second).ok())
	assert.Equal(t, ids(first, second), c.conf())
	assert.Equal(t, "nothing to do: "+ids(second)+" is a member already\n", c.ctl("add", second).ok())

	var got struct {
		Group, Leader string
		Changed       bool
		Old           []string `json:"old_peers"`
		New           []string `json:"new_peers"`
	}
	strictly(t, c.ctl("add", second, "--json").ok(), &got)
	assert.False(t, got.Changed)
	assert.Equal(t, got.Old, got.New)

	strictly(t, c.ctl("remove", "--json", second).ok(), &got)
	assert.True(t, got.Changed)
	assert.Contains(t, list(first, second), got.Leader) // on a busy machine it may have changed, and the leader may remove itself
	assert.Equal(t, list(first, second), got.Old)
	assert.Equal(t, list(first), got.New)
	assert.Equal(t, ids(first), c.conf())
	assert.Equal(t, "nothing to do: "+ids(second)+" is no member\n", c.ctl("remove", second).ok())
}

func TestRemoveTheLeader(t *testing.T) {
	c := startCluster(t, 3)
	old := c.ready()
	ctl(t, c.follower(), "remove", old).ok()
	c.stop(old)
	assert.NotContains(t, c.conf(), old)
	assert.NotEqual(t, old, c.ready())
}

func TestChange(t *testing.T) {
	c := startCluster(t, 3)
	a, b := c.spare(), c.spare()
	leader := c.ready()
	before := ids(c.first...)
	text := c.ctl("change", leader+","+a+" ,", b).fails() // an empty peer
	assert.Contains(t, text, `peer ""`)
	text = c.ctl("change", leader+","+a, b+":0:2").ok()
	assert.Equal(t, "before: "+before+"\nnow:    "+ids(leader, a, b+":0:2")+"\n", text)
	assert.Equal(t, "nothing to do: that is the configuration already\n", ctl(t, leader, "change", leader, a, b+":0:2").ok())

	said := ctl(t, leader, "change", leader, "--expect", before).fails()
	assert.Contains(t, said, "configuration is not the expected one")
	assert.Contains(t, said, "Somebody else has changed it")
	f := ctl(t, leader, "change", leader, "--expect", before, "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrConfMismatch), f.Code)
	assert.Equal(t, outcomeNone, f.Outcome)
	ctl(t, leader, "change", leader, "--expect", ids(leader, a, b+":0:2"), "--deadline", "20s").ok()
	assert.Equal(t, ids(leader), c.conf())
}

func TestLearner(t *testing.T) {
	c := startCluster(t, 1)
	voter, p := c.first[0], c.spare()
	assert.Equal(t, "before: "+ids(voter)+"\nnow:    "+ids(voter, p+":0:2")+"\n", c.ctl("learner", "add", p).ok())
	assert.Equal(t, "nothing to do: "+p+":0:2 is a learner already\n", c.ctl("learner", "add", p+":0:2").ok())
	var got changeResult
	strictly(t, c.ctl("learner", "promote", p, "--json").ok(), &got)
	assert.True(t, got.Changed)
	assert.Equal(t, list(voter, p), got.New)
	assert.Equal(t, "nothing to do: "+ids(p)+" is a voter already\n", c.ctl("learner", "promote", p).ok())

	said := c.ctl("learner", "add", p).fails()
	assert.Contains(t, said, ids(p)+" is a voter")
	assert.Contains(t, said, "graftctl change, with role 2")
	said = c.ctl("learner", "remove", p).fails()
	assert.Contains(t, said, "graftctl remove")
	assert.Equal(t, ids(voter, p), c.conf())

	c.ctl("change", voter, p+":0:2").ok()
	c.ctl("learner", "remove", p).ok()
	assert.Equal(t, ids(voter), c.conf())
	assert.Equal(t, "nothing to do: "+ids(p)+" is no member\n", c.ctl("learner", "remove", p).ok())
	said = c.ctl("learner", "promote", p).fails()
	assert.Contains(t, said, "is no member of the group")
	assert.Contains(t, said, "graftctl add")
	assert.Equal(t, outcomeNone, c.ctl("learner", "promote", p, "--json").failsJSON().Outcome)

	said = c.ctl("add", p+":0:2").fails()
	assert.Contains(t, said, "graftctl learner add")
	c.ctl("learner", "add", p).ok()
	c.ctl("add", p).ok() // promotes, too
	assert.Equal(t, ids(voter, p), c.conf())
}

func TestTransfer(t *testing.T) {
	c := startCluster(t, 3)
	old, to := c.ready(), c.follower()
	assert.Equal(t, fmt.Sprintf("%s leads now, in place of %s\n", ids(to), ids(old)), ctl(t, old, "transfer", to).ok())
	assert.Equal(t, to, c.ready())
	assert.Equal(t, ids(to)+" leads already\n", c.ctl("transfer", to).ok())

	var got struct {
		Group, Leader string
		Old           string `json:"old_leader"`
	}
	strictly(t, c.ctl("transfer", "--json").ok(), &got)
	assert.Equal(t, ids(to), got.Old)
	assert.NotEqual(t, ids(to), got.Leader)
	assert.Equal(t, ids(c.ready()), got.Leader)

	f := c.ctl("transfer", addresses(t, 1)[0], "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrInvalid), f.Code)
	assert.Contains(t, f.Message, "not a member of the group")
}

// TestAChangeThatWaits adds a peer that is not there, to a group that is in no hurry.
func TestAChangeThatWaits(t *testing.T) {
	c := newCluster(t)
	c.node.CatchupTimeout = time.Hour
	c.startVoters(1)
	leader, absent := c.nodes[c.first[0]], addresses(t, 1)[0]
	waiting := func() {
		eventually(t, func() bool { return leader.Status().Change != nil }, "the change does not begin")
	}
	over := func() { eventually(t, func() bool { return leader.Status().Change == nil }, "the change does not end") }

	said := c.ctl("cancel").fails()
	assert.Contains(t, said, "no change is under way")
	assert.Equal(t, int32(graft.ErrNotFound), c.ctl("cancel", "--json").failsJSON().Code)

	// Called off by another operator.
	add := c.ctl("add", absent)
	waiting()
	eventually(t, func() bool { return strings.Contains(add.err.String(), "catching-up: "+ids(absent)+" is ") }, "no progress is shown")
	f := c.ctl("change", c.first[0]+","+addresses(t, 1)[0], "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrBusy), f.Code)
	assert.Contains(t, f.Message, "Doing another configuration change")
	assert.Contains(t, f.Hint, "graftctl --peers "+c.first[0]+" --group g cancel")
	text := c.ctl("status").ok()
	assert.Contains(t, text, "stage   catching-up\nchange  from "+ids(c.first[0])+"\n        to   "+ids(c.first[0], absent))
	assert.Regexp(t, ids(absent)+` .*catching up`, text)
	var s statusResult
	strictly(t, c.ctl("status", "--json").ok(), &s)
	require.NotNil(t, s.Change)
	assert.Equal(t, list(c.first[0], absent), s.Change.To)
	assert.Equal(t, "the leader, "+ids(c.first[0])+", has called the change off\n", c.ctl("cancel").ok())
	assert.Contains(t, add.fails(), "canceled")

	// Interrupted.
	add = c.ctl("add", absent)
	waiting()
	add.cancel()
	said = add.fails()
	assert.Contains(t, said, "interrupted; the change goes on at the leader, "+ids(c.first[0]))
	assert.Contains(t, said, "graftctl --peers "+c.first[0]+" --group g cancel")
	require.NotNil(t, leader.Status().Change)
	c.ctl("cancel").ok()
	over()

	// Out of time, of the two kinds.
	f = c.ctl("add", absent, "--timeout", "5s", "--json").failsJSON()
	assert.Equal(t, outcomeRunning, f.Outcome)
	assert.Contains(t, f.Message, "not done within --timeout")
	c.ctl("cancel").ok()
	over()
	f = c.ctl("change", c.first[0], absent, "--deadline", "100ms", "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrTimeout), f.Code)
	assert.Equal(t, outcomeNone, f.Outcome)
	assert.Contains(t, f.Hint, "--deadline")
	over()
}

func TestAPeerThatIsNotThere(t *testing.T) {
	c := newCluster(t)
	c.node.ElectionTimeout = time.Second // so long it is waited for
	c.startVoters(1)
	absent := addresses(t, 1)[0]
	said := c.ctl("add", absent).fails()
	assert.Contains(t, said, "Peer "+ids(absent)+" failed to catch up")
	assert.Contains(t, said, "Check that its process runs")
	f := c.ctl("add", absent, "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrCatchup), f.Code)
	assert.Equal(t, outcomeNone, f.Outcome)
	assert.Equal(t, ids(c.first[0]), c.conf())
}

func TestReset(t *testing.T) {
	c := newCluster(t)
	c.node.ElectionTimeout = 3 * time.Second // after which a leader that is alone steps down
	c.startVoters(3)
	keep := c.follower()
	peers := strings.Join(c.first, ",")
	said := ctl(t, peers, "reset", keep, "--peer", keep).fails()
	assert.Contains(t, said, "--"+assent)
	assert.Equal(t, outcomeNone, ctl(t, peers, "reset", keep, "--peer", keep, "--json").failsJSON().Outcome)

	// While the group is alive, the operator hears of it, and may still say no.
	args := []string{"--peers", peers, "--group", "g", "reset", keep, "--peer", keep}
	e := begin(t, console{in: strings.NewReader("no\n"), canAsk: true}, args...)
	said = e.fails()
	assert.Contains(t, said, "DANGER")
	assert.Contains(t, said, "The group is alive: "+ids(c.ready())+" leads it")
	assert.Contains(t, said, "nothing was changed")
	assert.Equal(t, ids(c.first...), c.conf())

	lead := c.ready()
	for _, a := range c.first {
		if a != keep && a != lead {
			c.stop(a) // first, or it could still elect the one that is left
		}
	}
	if lead != keep {
		c.stop(lead)
	}
	eventually(t, func() bool { return c.nodes[keep].LeaderID().IsZero() }, "it still knows a leader")
	e = begin(t, console{in: strings.NewReader("g\n"), canAsk: true}, args...)
	text := e.ok()
	assert.Contains(t, text, ids(keep)+" follows "+ids(keep)+" now\n")
	assert.NotContains(t, e.err.String(), "alive")
	assert.Equal(t, keep, c.ready())
	assert.Equal(t, ids(keep), c.conf())

	var got struct {
		Group, Peer string
		Peers       []string
	}
	e = ctl(t, keep, "reset", keep, "--peer", keep, "--"+assent, "--json")
	strictly(t, e.ok(), &got)
	assert.Equal(t, list(keep), got.Peers)
	assert.Contains(t, e.err.String(), "warning: The group is alive")
	text = begin(t, console{}, "--group", "g", "reset", strings.Join(c.first, ","), "--peer", keep, "--"+assent).ok()
	for _, a := range c.first {
		if a != keep {
			assert.Contains(t, text, ids(a)+" must be reset to the same configuration as well")
		}
	}
}

func TestResetInterrupted(t *testing.T) {
	c := startCluster(t, 1)
	in, answer := io.Pipe()
	defer answer.Close()
	e := begin(t, console{in: in, canAsk: true}, "--group", "g", "reset", c.first[0], "--peer", c.first[0])
	eventually(t, func() bool { return strings.Contains(e.err.String(), "type the name of the group: ") }, "it does not ask")
	e.cancel()
	assert.Contains(t, e.fails(), "interrupted; nothing was changed")

	f := begin(t, console{}, "--group", "nope", "reset", c.first[0], "--peer", c.first[0], "--"+assent, "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrNotFound), f.Code)
	f = begin(t, console{}, "--group", "g", "reset", c.first[0], "--peer", addresses(t, 1)[0], "--"+assent, "--json").failsJSON()
	assert.Equal(t, outcomeNone, f.Outcome)
	assert.Contains(t, f.Message, "connection refused")
}
