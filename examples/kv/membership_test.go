package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

// newGroupWithJoiners is a running group and replicas, running too, that wait to be added to it.
func newGroupWithJoiners(t *testing.T, members, joiners int) *testGroup {
	t.Helper()
	g := newTestGroup(t, members, members)
	more := newTestGroup(t, joiners, 0)
	for _, cfg := range more.cfgs {
		cfg.peers = graft.Configuration{}
		g.cfgs, g.replicas = append(g.cfgs, cfg), append(g.replicas, nil)
		g.start(len(g.cfgs) - 1)
	}
	return g
}

// raft says RAFT … to the leader.
func (g *testGroup) raft(command string) (answer string) { return g.do("RAFT " + command) }

// leader returns the replica that leads, -1 if there is none.
func (g *testGroup) leader() int {
	return slices.IndexFunc(g.replicas, func(r *replica) bool { return r != nil && r.node.IsLeader() })
}

// list is the raft addresses of some replicas.
func (g *testGroup) list(which ...int) string {
	var addrs []string
	for _, i := range which {
		addrs = append(addrs, g.cfgs[i].raft)
	}
	return strings.Join(addrs, ",")
}

// waitMembers waits until every given replica tells clients that just those are the group's.
func (g *testGroup) waitMembers(which ...int) {
	g.t.Helper()
	for _, i := range which {
		c := dialRaw(g.t, g.cfgs[i].redis)
		waitFor(g.t, fmt.Sprintf("replica %d tells the members", i), func() bool {
			slots, nodes := c.do("cluster slots"), c.do("cluster nodes")
			for j := range g.cfgs {
				want := slices.Contains(which, j)
				if strings.Contains(slots, fmt.Sprintf(":%d,", portOf(g.cfgs[j].redis))) != want || strings.Contains(nodes, g.cfgs[j].redis+"@") != want {
					return false
				}
			}
			return strings.Contains(c.do("cluster info"), fmt.Sprintf("cluster_known_nodes:%d\r\n", len(which)))
		})
	}
}

func TestAJoinerWaitsIsAddedAndRemoved(t *testing.T) {
	g := newGroupWithJoiners(t, 3, 1)
	leader, joiner := g.leaderOfFounders(), dialRaw(t, g.cfgs[3].redis)
	for _, cmd := range []string{"set a 1", "get a", "cluster slots", "cluster shards", "raft remove " + g.cfgs[0].raft} {
		answer := joiner.do(cmd)
		assert.Regexp(t, "^-CLUSTERDOWN this replica is no member of the group: it waits to be added; say RAFT ADD "+g.cfgs[3].raft, answer, cmd)
	}
	assert.Equal(t, "+OK", joiner.do("readonly"))
	assert.Regexp(t, "^-CLUSTERDOWN this replica is no member", joiner.do("get a"))
	assert.Contains(t, joiner.do("info raft"), "raft_membership:waiting\r\n")
	assert.Contains(t, joiner.do("cluster info"), "cluster_state:fail")

	l := dialRaw(t, g.cfgs[leader].redis)
	assert.Equal(t, "+OK", l.retry("set a 1"))
	f := dialRaw(t, g.cfgs[(leader+1)%3].redis)
	assert.Equal(t, "-MOVED 0 "+g.cfgs[leader].redis, f.retry("raft add "+g.cfgs[3].raft))
	assert.Equal(t, "+OK", g.raft("add "+g.cfgs[3].raft))
	g.waitMembers(0, 1, 2, 3)
	assert.Contains(t, joiner.do("info raft"), "raft_membership:voter\r\n")
	assert.Equal(t, "$1", joiner.retry("get a"))
	assert.Equal(t, "+OK", joiner.do("readwrite"))
	assert.Regexp(t, "^-MOVED 15495 ", joiner.retry("set a 2"))

	assert.Equal(t, "+OK", joiner.do("readonly"))
	assert.Equal(t, "+OK", g.raft("remove "+g.cfgs[3].raft))
	g.waitMembers(0, 1, 2)
	waitFor(t, "the removed one knows", func() bool { return strings.Contains(joiner.do("info raft"), "raft_membership:removed\r\n") })
	assert.Regexp(t, "^-MOVED 15495 ", joiner.do("set a 2"))
	assert.Regexp(t, "^-MOVED 15495 ", joiner.do("get a"), "also after READONLY: it may miss what was written since")
	assert.Regexp(t, "^-CLUSTERDOWN this replica was removed", joiner.do("cluster slots"))

	// Started again on what it has it keeps silent; when it is added again it is what it was.
	g.stop(3)
	g.start(3)
	joiner = dialRaw(t, g.cfgs[3].redis)
	waitFor(t, "it remembers", func() bool { return strings.Contains(joiner.do("info raft"), "raft_membership:removed\r\n") })
	assert.Regexp(t, "^-MOVED 15495 ", joiner.do("set a 2"))
	assert.Equal(t, "+OK", g.raft("add "+g.cfgs[3].raft))
	g.waitMembers(0, 1, 2, 3)
	g.stop(3)
	g.start(3) // as a joiner again, but it has a configuration on its disk
	joiner = dialRaw(t, g.cfgs[3].redis)
	waitFor(t, "it is a member", func() bool { return strings.Contains(joiner.do("info raft"), "raft_membership:voter\r\n") })
}

// leaderOfFounders waits for a leader while the joiners know none.
func (g *testGroup) leaderOfFounders() (leader int) {
	waitFor(g.t, "a leader", func() bool {
		leader = g.leader()
		return leader >= 0 && dialRaw(g.t, g.cfgs[leader].redis).do("set leads yes") == "+OK"
	})
	return leader
}

func TestALearnerServesReadsAndIsPromoted(t *testing.T) {
	g := newGroupWithJoiners(t, 1, 1)
	g.leaderOfFounders()
	assert.Equal(t, "+OK", g.raft("learner "+g.cfgs[1].raft))
	g.waitMembers(0, 1)
	l, c := dialRaw(t, g.cfgs[0].redis), dialRaw(t, g.cfgs[1].redis)
	assert.Contains(t, c.do("info raft"), "raft_membership:learner\r\n")
	assert.Contains(t, l.do("raft status"), "raft_learners:"+g.cfgs[1].raft+"\r\n")
	assert.Contains(t, l.do("raft status"), "raft_peers:"+g.cfgs[0].raft+"\r\n")
	assert.Equal(t, "-MOVED 15495 "+g.cfgs[0].redis, c.do("get a"))
	assert.Equal(t, "+OK", c.do("readonly"))
	for i := range 200 { // what the leader has acknowledged, the learner's next read sees
		n := strconv.Itoa(i + 1)
		require.Equal(t, ":"+n, l.retry("incr a"))
		require.Equal(t, "$"+n, c.retry("get a"))
	}
	assert.Regexp(t, "^-ERR nothing was changed: .* a learner cannot lead", g.raft("transfer "+g.cfgs[1].raft))
	assert.Equal(t, "+OK", g.raft("add "+g.cfgs[1].raft))
	waitFor(t, "it is a voter", func() bool { return strings.Contains(c.do("info raft"), "raft_membership:voter\r\n") })
	assert.Equal(t, "+OK", g.raft("transfer "+g.cfgs[1].raft))
	waitFor(t, "it leads", func() bool { return g.leader() == 1 })
	assert.Equal(t, "$200", c.retry("get a"))
}

// The leader removes itself: somebody else leads soon, and its clients are sent there.
func TestALeaderRemovesItself(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	old := g.waitLeader()
	c := dialRaw(t, g.cfgs[old].redis)
	assert.Equal(t, "+OK", c.do("set a 1"))
	assert.Equal(t, "+OK", g.raft("remove "+g.cfgs[old].raft))
	var rest []int
	for i := range 3 {
		if i != old {
			rest = append(rest, i)
		}
	}
	g.waitMembers(rest...)
	waitFor(t, "its clients are sent to the others", func() bool { return strings.HasPrefix(c.do("get a"), "-MOVED ") })
	assert.NotContains(t, c.do("get a"), g.cfgs[old].redis)
	assert.Equal(t, "$1", g.do("get a"))
}

// A client that knows only the first members finds the last ones, after all have been replaced, one by one.
func TestClusterClientFollowsTheMembers(t *testing.T) {
	g := newGroupWithJoiners(t, 3, 3)
	g.leaderOfFounders()
	c, ctx := g.clusterClient(3), context.Background()
	set := func(i int) {
		waitFor(t, "a write", func() bool {
			err := c.Set(ctx, "k"+strconv.Itoa(i), i, 0).Err()
			if err != nil {
				c.ReloadState(ctx) // of itself go-redis looks every ten seconds only, when the master does not answer
			}
			return err == nil
		})
	}
	set(0)
	for i := range 3 {
		assert.Equal(t, "+OK", g.raft("change "+g.list(i+1, i+2, i+3)))
		set(i + 1)
		g.waitMembers(i+1, i+2, i+3)
		waitFor(t, "the next one leads", func() bool { return g.leader() > i })
		g.stop(i)
		set(i + 1)
	}
	for i := range 4 {
		assert.Equal(t, strconv.Itoa(i), c.Get(ctx, "k"+strconv.Itoa(i)).Val())
	}
}

// Each line is a command for the leader of a group of one, and what its answer begins with.
func TestRaftCommandsAreRefused(t *testing.T) {
	g := newTestGroup(t, 1, 0)
	g.cfgs[0].electionTimeout = time.Second // so long it waits for whom it cannot reach; alone it keeps its office through any stall
	g.start(0)
	joiner := newTestGroup(t, 1, 0)
	joiner.cfgs[0].peers = graft.Configuration{}
	joiner.start(0)
	g.cfgs = append(g.cfgs, joiner.cfgs[0])
	g.leaderOfFounders()
	c := dialRaw(t, g.cfgs[0].redis)
	nobody := freeAddresses(t, 1)[0]
	for _, test := range [][2]string{
		{"raft", "-ERR wrong number of arguments for 'raft' command"},
		{"raft foo", "-ERR unknown subcommand or wrong number of arguments for 'foo'. Try RAFT STATUS"},
		{"raft add", "-ERR unknown subcommand or wrong number of arguments for 'add'. Try RAFT STATUS"},
		{"raft add nonsense", "-ERR graft: peer \"nonsense\": no port"},
		{"raft change a:1,a:1", "-ERR graft: configuration names peer a:1:0:0 twice"},
		{"raft change a:1 foo bar", "-ERR unknown option 'FOO'"},
		{"raft change a:1 timeout", "-ERR option 'timeout' lacks its value"},
		{"raft change a:1 timeout 0", "-ERR TIMEOUT must be a number of milliseconds"},
		{"raft change a:1 expected nonsense", "-ERR graft: peer \"nonsense\": no port"},
		{"raft change " + g.list(0, 1) + " expected " + g.list(1), "-ERR nothing was changed: graft: change"},
		{"raft cancel", "-ERR nothing was changed: "},
		{"raft transfer " + nobody, "-ERR nothing was changed: "},
		{"raft remove " + g.cfgs[0].raft, "-ERR nothing was changed: "}, // the last one
		{"raft remove " + nobody, "+OK"},
		{"raft add " + g.cfgs[0].raft, "+OK"},
		{"raft add " + nobody, "-ERR nothing was changed: "}, // it does not answer
		{"get a", "$null"},
	} {
		answer := c.do(test[0])
		if !strings.HasPrefix(answer, test[1]) {
			t.Errorf("%s: %s, want %s…", test[0], answer, test[1])
		}
	}
}

// A change that cannot come to its end for now is seen in the status, and called off.
func TestAChangeIsWatchedAndCanceled(t *testing.T) {
	g := newTestGroup(t, 1, 0)
	g.cfgs[0].electionTimeout = 30 * time.Second // so long it waits for whom it cannot reach
	g.start(0)
	g.leaderOfFounders()
	nobody := freeAddresses(t, 1)[0]
	c, w := dialRaw(t, g.cfgs[0].redis), dialRaw(t, g.cfgs[0].redis)
	start := time.Now()
	c.send("raft change "+g.cfgs[0].raft+","+nobody+" timeout 60000", "ping")
	waitFor(t, "it is under way", func() bool { return strings.Contains(w.do("raft status"), "raft_stage:catching-up\r\n") })
	status := w.do("raft status")
	assert.Contains(t, status, "raft_change_to:")
	assert.Contains(t, status, "catching_up=1")
	assert.Regexp(t, "^-BUSY ", w.do("raft remove "+nobody+":0:1"))
	assert.Equal(t, "+OK", w.do("raft cancel"))
	assert.Regexp(t, "^-ERR nothing was changed: .*canceled", c.recv())
	assert.Equal(t, "+PONG", c.recv(), "what follows on a connection waits for the change")
	assert.Less(t, time.Since(start), 50*time.Second, "not by its timeout")
	assert.Contains(t, w.do("raft status"), "raft_stage:none\r\n")
}
