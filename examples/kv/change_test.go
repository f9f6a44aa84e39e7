package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	changesByDefault = 10
	changePool       = 8                // processes, of which 3, 5 or 7 are members
	changeClients    = 4                // there are up to 8 busy processes besides
	changeLoad       = 10_000           // keys that a new member has to catch up with, 100 bytes each
	changeDeadline   = 20 * time.Second // that the group is given for a change
	changeGrace      = 10 * time.Second // for the answer to arrive
	changeLimit      = time.Minute      // after which it must have ended, and the group be at rest as long after that
	changeTries      = 5                // for a change that must be made, whatever the machine is busy with
)

// fromEnv is a number that the environment may set.
func fromEnv(t testing.TB, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, name)
	return n
}

// change has the leader make wanted the configuration, whoever leads. What was certainly not done is tried again.
func change(procs []*process, now, wanted []*process) error {
	return changeWithin(changeDeadline, procs, now, wanted)
}

// changeWithin is change with another deadline.
func changeWithin(deadline time.Duration, procs []*process, now, wanted []*process) error {
	addr, err := procs[0].redis, error(nil)
	for start, i := time.Now(), 1; time.Since(start) < deadline; i++ {
		var c *client
		if c, err = dialClient(addr, 200*time.Millisecond); err == nil {
			_, err = c.do(deadline+changeGrace, "RAFT", "CHANGE", raftsOf(wanted), "EXPECTED", raftsOf(now), "TIMEOUT", strconv.FormatInt(deadline.Milliseconds(), 10))
			c.close()
		}
		if !nothingDone(err) {
			return err
		}
		if addr = movedTo(err); addr == "" {
			addr = procs[i%len(procs)].redis
		}
		<-time.After(5 * time.Millisecond)
	}
	return err
}

func raftsOf(procs []*process) string {
	var addrs []string
	for _, p := range procs {
		addrs = append(addrs, p.raft)
	}
	return strings.Join(addrs, ",")
}

// changeIsUnknown reports whether a change's outcome leaves open whether it was made.
func changeIsUnknown(err error) bool {
	var e answerError
	return err != nil && (!errors.As(err, &e) || e.is("UNKNOWN"))
}

// mustChange is change until it is made. On a busy machine leadership may be lost meanwhile, or a new member make no progress for a while.
func mustChange(t testing.TB, procs, now, wanted []*process) {
	t.Helper()
	var err error
	unknown := false // whether the last attempts have left open if it was made
	for range changeTries {
		err = change(procs, now, wanted)
		var e answerError
		refused := errors.As(err, &e) && strings.HasPrefix(string(e), "ERR nothing was changed: ")
		require.True(t, err == nil || refused || changeIsUnknown(err) || nothingDone(err), "%v", err)
		_, members := atRest(t, procs, changeLimit)
		unknown = unknown || changeIsUnknown(err)
		switch isNew := sameMembers(members, wanted); {
		case isNew && (err == nil || unknown):
			return
		case isNew || err == nil || !sameMembers(members, now):
			t.Fatalf("the change from %s to %s ended with %v, but the members are %s", raftsOf(now), raftsOf(wanted), err, raftsOf(members))
		}
		t.Logf("the change from %s to %s is tried again: %v", raftsOf(now), raftsOf(wanted), err)
	}
	require.NoError(t, err)
}

// atRest waits until a leader that still leads has no change under way, and returns it and the members.
func atRest(t testing.TB, procs []*process, within time.Duration) (leader *process, members []*process) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	err := until(ctx, within, "a leader without a change", func() bool {
		leader, members = nil, nil
		latest, info := -1, map[string]string(nil)
		for _, p := range procs {
			if p.cmd == nil {
				continue
			}
			i := p.info()
			if term, err := strconv.Atoi(i["raft_term"]); err == nil && i["raft_role"] == "leader" && term > latest {
				leader, info, latest = p, i, term
			}
		}
		if leader == nil || info["raft_stage"] != "none" {
			return false
		}
		for _, p := range procs {
			if slices.Contains(strings.Split(info["raft_peers"], ","), p.raft) {
				members = append(members, p)
			}
		}
		// Its first entry is committed. If it still leads after that, what it said of the configuration was the last word.
		err := leader.client.Get(ctx, "nothing").Err()
		return errors.Is(err, redis.Nil) && leader.info()["raft_conf_index"] == info["raft_conf_index"] && slices.Contains(members, leader)
	})
	require.NoError(t, err)
	return leader, members
}

// startEmpty starts processes that have nothing, and waits until they answer. One that was removed a moment ago may
// be told so by the leader, as if it were the old one.
func startEmpty(t testing.TB, procs []*process) {
	t.Helper()
	for _, p := range procs {
		p.start()
	}
	for _, p := range procs {
		waitFor(t, p.raft+" answers", func() bool { return p.info() != nil })
	}
}

// exceptFor returns those of procs that are not in some.
func exceptFor(procs, some []*process) []*process {
	return slices.DeleteFunc(slices.Clone(procs), func(p *process) bool { return slices.Contains(some, p) })
}

// sameMembers reports whether both have the same processes, in any order.
func sameMembers(a, b []*process) bool { return len(a) == len(b) && len(exceptFor(a, b)) == 0 }

// A group of three, five or seven changes into a random other one, again and again, while clients write and
// random replicas are killed. Each change ends, one way or the other; the configuration is always one that it may be; no
// acknowledged write is lost; what the clients saw is linearizable; in the end all members hold the same.
func TestRandomChangesUnderKillsLoseNothing(t *testing.T) {
	total := fromEnv(t, "GRAFT_CHANGES", changesByDefault)
	procs := newProcessesAndJoiners(t, killTimeout, 3, changePool-3)
	for _, p := range procs[:3] {
		p.start()
	}
	c := &changer{t: t, procs: procs}
	_, c.members = atRest(t, procs, changeLimit)
	l := startLoad(t, procs, changeClients)
	l.preload(changeLoad)
	steps := 0
	for enough := total / 3; steps < total || c.made+c.unknownMade <= enough && steps < 3*total; steps++ {
		l.more(25, 5)
		c.step(steps)
	}
	took := l.newWrite()
	assert.Less(t, took, newWriteLimit("GRAFT_CHANGES"), "a new write at the end")
	l.stop()
	t.Logf("%d changes: %d made, %d refused, %d with an unknown outcome of which %d were made; %d replicas killed, %d of them leaders; time to rest: %s",
		steps, c.made, c.refused, c.unknown, c.unknownMade, c.kills, c.killedLeaders, durations(c.took))
	assert.Greater(t, c.made+c.unknownMade, total/3, "changes that were made: too few to mean anything")
	l.verify(25*total, 5*total)
	_, members := atRest(t, procs, changeLimit)
	assert.True(t, sameMembers(members, c.members), "members %s, want %s", raftsOf(members), raftsOf(c.members))
	waitCaughtUp(t, members)
	sameEverywhere(t, members)
}

// changer makes one change after another.
type changer struct {
	t       *testing.T
	procs   []*process
	members []*process // of the configuration in force

	made, refused, unknown, unknownMade int
	kills, killedLeaders                int
	took                                []time.Duration
}

// step makes a random change, with kills, and checks what has become of it.
func (c *changer) step(i int) {
	t := c.t
	wanted := c.pick()
	added := exceptFor(wanted, c.members)
	startEmpty(t, added)
	start := time.Now()
	outcome := make(chan error, 1)
	go func() { outcome <- change(c.procs, c.members, wanted) }()
	c.disturb(slices.Concat(c.members, added))
	var err error
	select {
	case err = <-outcome:
	case <-time.After(changeLimit - time.Since(start)):
		t.Fatalf("change %d from %s to %s has not ended after %v", i, raftsOf(c.members), raftsOf(wanted), changeLimit)
	}
	_, now := atRest(t, c.procs, changeLimit)
	c.took = append(c.took, time.Since(start))
	isOld, isNew := sameMembers(now, c.members), sameMembers(now, wanted)
	switch {
	case err == nil && isNew:
		c.made++
	case changeIsUnknown(err) && (isOld || isNew):
		c.unknown++
		if isNew {
			c.unknownMade++
		}
	case err != nil && !changeIsUnknown(err) && isOld:
		c.refused++
	default:
		t.Fatalf("change %d from %s to %s ended with %v, but the members are %s", i, raftsOf(c.members), raftsOf(wanted), err, raftsOf(now))
	}
	t.Logf("%d: %d to %d members, %d of them new: %v; %d members, %v", i, len(c.members), len(wanted), len(added), err, len(now), time.Since(start).Round(time.Millisecond))
	c.members = now
	for _, p := range exceptFor(c.procs, now) {
		p.wipe()
	}
}

// pick returns random members, other ones than there are.
func (c *changer) pick() (wanted []*process) {
	for wanted == nil || sameMembers(wanted, c.members) {
		n := []int{3, 5, 7}[rand.IntN(3)]
		wanted = nil
		for _, i := range rand.Perm(len(c.procs))[:n] {
			wanted = append(wanted, c.procs[i])
		}
	}
	return wanted
}

// disturb kills none, one or two of the replicas with kill -9 while the change is under way, and starts them again.
func (c *changer) disturb(procs []*process) {
	for n := range rand.IntN(3) {
		victim := procs[rand.IntN(len(procs))]
		leader := leaderOf(procs)
		switch {
		case rand.IntN(3) > 0:
			<-time.After(time.Duration(rand.IntN(100*(n+1))) * time.Millisecond)
		case leader != nil && waitJoint(context.Background(), leader.redis): // whatever comes next, it comes without the leader
			victim = leader
		}
		if victim == leader {
			c.killedLeaders++
		}
		victim.kill()
		c.kills++
		<-time.After(time.Duration(rand.IntN(300)) * time.Millisecond)
		victim.start()
	}
}

// percentile is the p-th part of sorted durations, as 0.99.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(p*float64(len(sorted))), len(sorted)-1)]
}

// summary is a latency histogram on one line.
func summary(d []time.Duration) string {
	s := slices.Sorted(slices.Values(d))
	return fmt.Sprintf("%d writes, p50 %s, p90 %s, p99 %s, p99.9 %s, max %s", len(s), short(percentile(s, .5)), short(percentile(s, .9)),
		short(percentile(s, .99)), short(percentile(s, .999)), short(percentile(s, 1)))
}
