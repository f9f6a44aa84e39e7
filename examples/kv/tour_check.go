package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// checkBatch is how many keys are written or read with one command or packet.
const checkBatch = 500

// preload fills the store, so that new replicas have something to catch up with.
func (t *tour) preload(n int) error {
	filler := fmt.Sprintf("%0100d", 0)
	for from := 0; from < n && t.ctx.Err() == nil; from += checkBatch {
		var commands [][]string
		batch := make(map[string]string)
		for i := from; i < min(from+checkBatch, n); i++ {
			key := fmt.Sprintf("load-%d", i)
			batch[key] = fmt.Sprintf("%s%d", filler, i)
			commands = append(commands, []string{"SET", key, batch[key]})
		}
		err := t.load(commands)
		for start := time.Now(); err != nil && time.Since(start) < tourRest && t.ctx.Err() == nil; {
			err = t.load(commands) // it does no harm to write the same twice
		}
		if err != nil {
			return err
		}
		t.w.acknowledged(batch)
	}
	return t.ctx.Err()
}

// load carries out writes on the leader, all at once. An error says that some may not have been carried out.
func (t *tour) load(commands [][]string) error {
	leader, _, err := t.g.rest(t.ctx)
	if err != nil {
		return err
	}
	c, err := dialClient(leader.redis, tourAnswer)
	if err != nil {
		return err
	}
	defer c.close()
	defer context.AfterFunc(t.ctx, c.close)()
	answers, err := c.doMany(tourRest, commands...)
	if err != nil {
		return err
	}
	for _, a := range answers {
		if a != "OK" {
			return fmt.Errorf("loading: %v", a)
		}
	}
	return nil
}

// readBack reads every acknowledged write from one member and returns how many are not there, and how many of those
// with an unknown outcome are.
func (t *tour) readBack(r *tourReplica) (lost, found int, err error) {
	c, err := dialClient(r.redis, tourRest)
	if err != nil {
		return 0, 0, err
	}
	defer c.close()
	defer context.AfterFunc(t.ctx, c.close)()
	if _, err := c.do(tourRest, "READONLY"); err != nil {
		return 0, 0, err
	}
	count := func(want map[string]string) (same int, err error) {
		for keys := range slices.Chunk(slices.Collect(maps.Keys(want)), checkBatch) {
			var v any
			again := until(t.ctx, tourRest, r.name+" can tell", func() bool { // it may have lost its leader for a moment
				v, err = c.do(tourRest, append([]string{"MGET"}, keys...)...)
				return !nothingDone(err)
			})
			err = errors.Join(again, err)
			values, ok := v.([]any)
			if err != nil || !ok || len(values) != len(keys) {
				return 0, fmt.Errorf("reading from %s: %v %w", r.name, v, err)
			}
			for i, key := range keys {
				if values[i] == want[key] {
					same++
				}
			}
		}
		return same, nil
	}
	there, err := count(t.w.acked)
	if err != nil {
		return 0, 0, err
	}
	found, err = count(t.w.unknown)
	return len(t.w.acked) - there, found, err
}

// sameDigests waits until the members have applied the same index, and reports whether they hold the same there.
func (t *tour) sameDigests(members []*tourReplica) (bool, error) {
	var digests map[string]bool
	err := until(t.ctx, tourRest, "all members at one index", func() bool {
		indexes := make(map[string]bool)
		digests = make(map[string]bool)
		for _, r := range members {
			st := r.status(t.ctx)
			indexes[st["raft_applied_index"]] = true
			digests[st["raft_state_digest"]] = true
		}
		return len(indexes) == 1 && !indexes[""]
	})
	return len(digests) == 1, err
}
