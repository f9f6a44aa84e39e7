package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/graft-raft/graft"
)

// The first word of an answer tells a client what to do.
func TestErrorsBecomeAnswers(t *testing.T) {
	g := newTestGroup(t, 1, 1)
	r := g.replicas[g.waitLeader()]
	for _, test := range []struct {
		err  error
		want string
	}{
		{&graft.Error{Code: graft.ErrUnknownOutcome, Err: context.Canceled}, "UNKNOWN "},
		{&graft.Error{Code: graft.ErrUnknownOutcome, Err: &graft.Error{Code: graft.ErrNotLeader}}, "UNKNOWN "},
		{&graft.Error{Code: graft.ErrOverloaded}, "BUSY "},
		{&graft.Error{Code: graft.ErrBusy}, "BUSY "},
		{&graft.Error{Code: graft.ErrTransferring}, "BUSY "},
		{&graft.Error{Code: graft.ErrTooLarge}, "ERR nothing was done: "},
		{&graft.Error{Code: graft.ErrNoSpace}, "ERR nothing was done: "},
		{&graft.Error{Code: graft.ErrNotLeader}, "CLUSTERDOWN "},
		{&graft.Error{Code: graft.ErrNotLeader, Peer: r.self}, "CLUSTERDOWN "},
		{&graft.Error{Code: graft.ErrNotLeader, Peer: graft.MustParsePeerID("127.0.0.1:1")}, "CLUSTERDOWN "},
		{&graft.Error{Code: graft.ErrShutdown}, "CLUSTERDOWN nothing was done: "},
		{&graft.Error{Code: graft.ErrNodeFailed, Err: errors.New("disk\ngone")}, "CLUSTERDOWN nothing was done: "},
		{&graft.Error{Code: graft.ErrQuorumLost}, "CLUSTERDOWN nothing was done: "},
	} {
		got := r.refusal(test.err, 7)
		if got.kind != kindError || !strings.HasPrefix(got.text, test.want) {
			t.Errorf("%v: %q, want %q", test.err, got.text, test.want)
		}
		if b := got.encode(nil, 2); strings.Count(string(b), "\n") != 1 {
			t.Errorf("%v: answer has several lines: %q", test.err, b)
		}
	}
	r.machine.mu.Lock()
	r.machine.redis["127.0.0.1:1"] = "127.0.0.1:2"
	r.machine.mu.Unlock()
	err := &graft.Error{Code: graft.ErrNotLeader, Peer: graft.MustParsePeerID("127.0.0.1:1")}
	assert.Equal(t, "MOVED 7 127.0.0.1:2", r.refusal(err, 7).text)
}

// A leader that loses its majority cannot know what becomes of what it was given.
func TestAWriteWithoutAMajorityHasAnUnknownOutcome(t *testing.T) {
	const timeout = slowness * 2 * time.Second // after which the leader steps down
	g := newTestGroup(t, 3, 0)
	for i := range g.cfgs {
		g.cfgs[i].electionTimeout = timeout
		g.start(i)
	}
	for range 10 { // until it still leads, with nobody to follow it, when it is given the write
		leader := g.waitLeader()
		c := dialRaw(t, g.cfgs[leader].redis)
		if c.do("set a 1") != "+OK" {
			continue
		}
		for i := range 3 {
			if i != leader {
				g.stop(i)
			}
		}
		c.send("set a 2", "get a")
		answer, next := c.recv(), c.recv()
		again := busy(answer) || strings.HasPrefix(answer, "-MOVED ") // it had stepped down before
		if !again {
			assert.Regexp(t, "^-UNKNOWN ", answer)
			assert.Regexp(t, "^-CLUSTERDOWN ", next)
			waitFor(t, "the leader steps down", func() bool { return strings.HasPrefix(c.do("set a 3"), "-CLUSTERDOWN ") })
		}
		for i := range 3 {
			if i != leader {
				g.start(i)
			}
		}
		g.waitLeader()
		if again {
			continue
		}
		assert.Contains(t, []string{"$1", "$2"}, g.do("get a"))
		waitFor(t, "a write", func() bool { return g.do("set a 4") == "+OK" })
		return
	}
	t.Error("each time the leader had stepped down before it was given the write")
}
