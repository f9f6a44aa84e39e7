package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// How often a change's status is looked at, and how often progress within a stage is told. When new replicas lack few
// entries the status is looked at all the time, so that no stage is missed.
const (
	watchPause   = 2 * time.Millisecond
	tellPause    = 150 * time.Millisecond
	watchClosely = 5000
)

// tourTries is how often the tour asks for one thing, if the machine is busy with others.
const tourTries = 5

// undecided reports whether an error leaves open what the members are, or whether it makes sense to ask for a change again: leadership
// was lost meanwhile, or a new member made no progress for a moment.
func undecided(err error) bool {
	var e answerError
	return !errors.As(err, &e) || e.is("UNKNOWN") || strings.HasPrefix(string(e), "ERR nothing was changed: ")
}

// change makes wanted the members, tells how far that has come, and checks the outcome.
func (t *tour) change(wanted []*tourReplica) error {
	for try := 1; ; try++ {
		leader, members, err := t.g.rest(t.ctx)
		if err != nil {
			return err
		}
		start := time.Now()
		failed := t.changeOnce(leader, members, wanted, start)
		if failed != nil && (!undecided(failed) || try == tourTries) {
			return failed
		}
		leader, now, err := t.g.rest(t.ctx)
		if err != nil {
			return errors.Join(failed, err)
		}
		switch {
		case sameReplicas(now, wanted):
			t.printf("     %+7s  done\n", short(time.Since(start)))
			t.printf("   members are %s (* leads)\n", nameList(now, leader))
			return nil
		case failed == nil || !sameReplicas(now, members):
			return errors.Join(failed, fmt.Errorf("the configuration is %s, not %s", nameList(now, leader), nameList(wanted, nil)))
		}
		t.printf("     %+7s  it was not made, once more: %v\n", short(time.Since(start)), failed)
	}
}

// changeOnce asks for a change, and tells how far it has come until its outcome is there.
func (t *tour) changeOnce(leader *tourReplica, members, wanted []*tourReplica, start time.Time) error {
	outcome := t.beginChange(leader, members, wanted)
	ctx, cancel := context.WithCancel(t.ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		t.watch(ctx, leader, start)
	}()
	err := <-outcome
	cancel()
	<-watched
	return err
}

// beginChange has the members replaced by others. The channel gets the outcome.
func (t *tour) beginChange(leader *tourReplica, members, wanted []*tourReplica) <-chan error {
	t.printf("   RAFT CHANGE from %s to %s\n", nameList(members, leader), nameList(wanted, leader))
	outcome := make(chan error, 1)
	go func() {
		outcome <- t.g.admin(t.ctx, "RAFT", "CHANGE", raftList(wanted), "EXPECTED", raftList(members))
	}()
	return outcome
}

// watch tells the stages of a change as the leader reports them, until ctx ends or the leader answers no more.
func (t *tour) watch(ctx context.Context, leader *tourReplica, start time.Time) {
	c, err := dialClient(leader.redis, tourAnswer)
	if err != nil {
		return
	}
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	tick := time.NewTicker(watchPause)
	defer tick.Stop()
	stage, told := "none", time.Time{}
	for {
		v, err := c.do(tourAnswer, "RAFT", "STATUS")
		text, _ := v.(string)
		if err != nil || ctx.Err() != nil {
			return
		}
		st, now := parseInfo(text), time.Now()
		all := t.lagging(st)
		if st["raft_stage"] != stage || stage == "catching-up" && now.Sub(told) >= tellPause {
			if stage, told = st["raft_stage"], now; stage != "none" {
				t.printf("     %+7s  %s\n", short(now.Sub(start)), stage+describe(all))
			}
		}
		if stage != "none" && !slices.ContainsFunc(all, func(f lagging) bool { return f.lag > watchClosely }) {
			continue // what follows is over soon
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// waitJoint polls a leader's status as fast as it can until the configuration is joint; false if the change is over, or the
// leader does not answer.
func waitJoint(ctx context.Context, redis string) bool {
	c, err := dialClient(redis, tourAnswer)
	if err != nil {
		return false
	}
	defer c.close()
	defer context.AfterFunc(ctx, c.close)()
	for begun, start := false, time.Now(); time.Since(start) < tourRest; {
		v, err := c.do(tourAnswer, "RAFT", "STATUS")
		text, _ := v.(string)
		if err != nil {
			return false
		}
		switch stage := parseInfo(text)["raft_stage"]; stage {
		case "joint":
			return true
		case "catching-up":
			begun = true
		case "stable":
			return false
		case "none":
			if begun || time.Since(start) > time.Second { // it was over before it was seen
				return false
			}
		}
	}
	return false
}

// lagging is a replica that is being added, and what it lacks.
type lagging struct {
	name        string
	lag         int
	rate        int    // entries per second
	remainingMS string // until it has caught up, at that rate; "0" if that is unknown
}

// lagging returns the replicas that are being added, according to the leader's status.
func (t *tour) lagging(st map[string]string) (all []lagging) {
	for i := 0; ; i++ {
		line, ok := st["raft_follower"+strconv.Itoa(i)]
		if !ok {
			return all
		}
		f := make(map[string]string)
		for pair := range strings.SplitSeq(line, ",") {
			k, v, _ := strings.Cut(pair, "=")
			f[k] = v
		}
		if f["catching_up"] != "1" {
			continue
		}
		lag, _ := strconv.Atoi(f["lag"])
		rate, _ := strconv.Atoi(f["rate"])
		all = append(all, lagging{nameList(t.g.find(f["peer"]), nil), lag, rate, f["remaining_ms"]})
	}
}

// describe is what a stage's line says of the replicas that are being added.
func describe(all []lagging) string {
	var parts []string
	for _, f := range all {
		text := f.name + " lacks " + thousands(f.lag) + " entries"
		if f.rate > 0 {
			text += ", takes " + thousands(f.rate) + "/s"
		}
		if f.remainingMS != "0" {
			text += ", " + f.remainingMS + " ms to go"
		}
		parts = append(parts, text)
	}
	if len(parts) == 0 {
		return ""
	}
	return ": " + strings.Join(parts, "; ")
}
