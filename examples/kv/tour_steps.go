package main

import (
	"errors"
	"fmt"
	"time"
)

// begin starts the group and the writers, and fills the store.
func (t *tour) begin() error {
	start := time.Now()
	all, err := t.g.prepare(t.o.members, true)
	if err != nil {
		return err
	}
	for _, r := range all {
		if err := t.g.start(r); err != nil {
			return err
		}
		t.introduce(r)
	}
	leader, _, err := t.g.rest(t.ctx)
	if err != nil {
		return err
	}
	t.printf("   %s leads, %s after the start\n", leader.name, short(time.Since(start)))
	t.w = startWriters(t.ctx, t.g, t.o.writers)
	start = time.Now()
	if err := t.preload(t.o.preload); err != nil {
		return err
	}
	t.printf("   %s keys of 100 bytes are loaded in %s; the writers have begun\n", thousands(t.o.preload), short(time.Since(start)))
	return nil
}

func (t *tour) introduce(r *tourReplica) {
	t.printf("   %s is process %d, raft %s, redis %s\n", r.name, r.cmd.Process.Pid, r.raft, r.redis)
}

// fresh starts replicas that wait to be added.
func (t *tour) fresh(n int) ([]*tourReplica, error) {
	all, err := t.g.add(n)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		t.introduce(r)
		answers := func() bool { return r.status(t.ctx)["raft_membership"] == string(isWaiting) }
		if err := until(t.ctx, tourRest, r.name+" waits to be added", answers); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// grow adds two replicas at a time.
func (t *tour) grow() error {
	for {
		_, members, err := t.g.rest(t.ctx)
		if err != nil || len(members) >= 5 {
			return err
		}
		added, err := t.fresh(2)
		if err != nil {
			return err
		}
		if err := t.change(append(members, added...)); err != nil {
			return err
		}
	}
}

// replaceLeader has the leader drop itself in favour of a new replica.
func (t *tour) replaceLeader() error {
	leader, members, err := t.g.rest(t.ctx)
	if err != nil {
		return err
	}
	added, err := t.fresh(1)
	if err != nil {
		return err
	}
	if err := t.change(append(without(members, leader), added...)); err != nil {
		return err
	}
	t.printf("   %s is stopped, its data is removed\n", leader.name)
	return t.g.discard(leader)
}

// shrink removes two followers, one by one.
func (t *tour) shrink() error {
	for range 2 {
		leader, members, err := t.g.rest(t.ctx)
		if err != nil {
			return err
		}
		gone := without(members, leader)[0]
		if err := t.change(without(members, gone)); err != nil {
			return err
		}
		if err := t.g.discard(gone); err != nil {
			return err
		}
	}
	return nil
}

// killTries is how often the tour begins a change anew because the last one was over before it could kill the leader.
const killTries = 10

// killMidChange kills the leader as soon as a status says that the configuration is joint.
func (t *tour) killMidChange() error {
	for range killTries {
		leader, members, err := t.g.rest(t.ctx)
		if err != nil {
			return err
		}
		added, err := t.fresh(2)
		if err != nil {
			return err
		}
		wanted := append(added, leader)
		outcome := t.beginChange(leader, members, wanted)
		if !waitJoint(t.ctx, leader.redis) {
			if err := <-outcome; err != nil && !undecided(err) {
				return err
			}
			_, now, err := t.g.rest(t.ctx)
			if err != nil {
				return err
			}
			t.printf("     it was over before it could be seen; once more\n")
			if err := t.g.discard(without(append(without(members, wanted...), wanted...), now...)...); err != nil {
				return err
			}
			continue
		}
		start := time.Now()
		pid := t.g.kill(leader)
		t.printf("     joint: %s leads, kill -9 %d\n", leader.name, pid)
		return t.afterKill(leader, members, wanted, <-outcome, start)
	}
	return errors.New("no change was ever seen in its joint stage")
}

// afterKill waits for the group to come to rest, in the old configuration or in the new one.
func (t *tour) afterKill(killed *tourReplica, old, wanted []*tourReplica, outcome error, start time.Time) error {
	both := append(without(old, wanted...), wanted...)
	if err := t.g.start(killed); err != nil { // with what it had on disk, as after a crash
		return err
	}
	leader, now, err := t.g.rest(t.ctx)
	if err != nil {
		return err
	}
	switch {
	case sameReplicas(now, wanted):
		t.printf("   the new configuration is in force, %s: %s after the kill\n", nameList(now, leader), short(time.Since(start)))
	case sameReplicas(now, old) && outcome != nil:
		t.printf("   the old configuration is in force, %s: %s after the kill\n", nameList(now, leader), short(time.Since(start)))
	default:
		return fmt.Errorf("the configuration is %s, neither the old one nor the new one; the change's outcome is %v", nameList(now, leader), outcome)
	}
	err = until(t.ctx, tourRest, killed.name+" is back", func() bool {
		leader, _ := t.g.leader(t.ctx)
		return leader != nil && killed.status(t.ctx)["raft_leader"] == leader.raft
	})
	if err != nil {
		return err
	}
	t.printf("   %s was started again and follows\n", killed.name)
	return t.g.discard(without(both, now...)...)
}

// transfer hands leadership over to a follower.
func (t *tour) transfer() error {
	leader, members, err := t.g.rest(t.ctx)
	if err != nil {
		return err
	}
	to := without(members, leader)[0]
	t.printf("   RAFT TRANSFER from %s to %s\n", leader.name, to.name)
	start := time.Now()
	leads := func() bool { return to.status(t.ctx)["raft_role"] == "leader" }
	for try := 1; ; try++ { // the old leader takes leadership back if the other does not answer in time
		err := t.g.admin(t.ctx, "RAFT", "TRANSFER", to.raft)
		if err == nil {
			err = until(t.ctx, tourRest/tourTries, to.name+" leads", leads)
		}
		if err == nil || leads() {
			break
		}
		if t.ctx.Err() != nil || try == tourTries {
			return err
		}
	}
	t.printf("   %s leads, %s later\n", to.name, short(time.Since(start)))
	return nil
}
