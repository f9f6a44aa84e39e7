package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	killTimeout    = time.Second // the replicas' election timeout
	killClients    = 8
	killPace       = 2 * time.Millisecond // between two operations of a client
	killKeys       = 12                   // that are in use at one time
	killEpoch      = 2 * time.Second      // after which others take their place, so that histories stay short
	killsByDefault = 10
)

// Real processes are killed with kill -9 under load, again and again, one at a time and all at once. Meanwhile and
// afterwards no acknowledged write may be missing, what the clients saw must be linearizable, new writes must be
// accepted soon, and in the end all replicas must hold the same.
func TestKilledReplicasLoseNothing(t *testing.T) {
	procs := newProcesses(t, killTimeout)
	for _, p := range procs {
		p.start()
	}
	waitFor(t, "a leader", func() bool { return leaderOf(procs) != nil })
	l := startLoad(t, procs, killClients)
	var after, afterLeader, afterAll []time.Duration
	total := fromEnv(t, "GRAFT_KILLS", killsByDefault)
	for i := range total {
		l.more(100, 25)
		<-time.After(time.Duration(rand.IntN(300)) * time.Millisecond) // the load goes on for a while
		victim := procs[rand.IntN(len(procs))]
		leader := leaderOf(procs)
		if i%4 < 3 {
			waitFor(t, "a leader to kill", func() bool { leader = leaderOf(procs); return leader != nil })
			victim = leader
		}
		victim.kill()
		took := l.newWrite()
		if victim == leader {
			afterLeader = append(afterLeader, took)
		} else {
			after = append(after, took)
		}
		<-time.After(time.Duration(rand.IntN(200)) * time.Millisecond) // and without the victim
		victim.start()
		waitCaughtUp(t, procs)
		if i == total/2 || i == total-1 {
			afterAll = append(afterAll, killAll(t, procs, l))
		}
	}
	l.stop()
	t.Logf("new writes after the leader was killed: %s", durations(afterLeader))
	t.Logf("after a follower was killed: %s", durations(after))
	t.Logf("after all were killed and started again: %s", durations(afterAll))
	for _, took := range slices.Concat(after, afterLeader, afterAll) {
		assert.LessOrEqual(t, took, newWriteLimit("GRAFT_KILLS"), "new writes after a kill")
	}
	if os.Getenv("GRAFT_KILLS") != "" {
		assert.Less(t, median(afterLeader), 300*time.Millisecond, "new writes after the leader was killed: its broken connection tells")
	}
	assert.GreaterOrEqual(t, len(afterLeader), total/2, "killed leaders")
	l.verify(100*total, 25*total)
	waitCaughtUp(t, procs)
	sameEverywhere(t, procs)
}

// newWriteLimit is how long a new write may take after kills. Without the variable that asks for a long run other tests run at the
// same time, and processes get the processor when they can.
func newWriteLimit(variable string) time.Duration {
	if os.Getenv(variable) == "" {
		return 60 * killTimeout
	}
	return 3 * killTimeout
}

// killAll kills all replicas at once, starts them again, and returns how long it takes until they accept writes.
func killAll(t *testing.T, procs []*process, l *load) time.Duration {
	for _, p := range procs {
		p.cmd.Process.Kill()
	}
	for _, p := range procs {
		p.kill()
	}
	for _, p := range procs {
		p.start()
	}
	took := l.newWrite()
	waitCaughtUp(t, procs)
	return took
}

// waitCaughtUp waits until every replica has what the leader had committed when it was asked.
func waitCaughtUp(t testing.TB, procs []*process) {
	t.Helper()
	var want int64
	waitFor(t, "a leader", func() bool {
		leader := leaderOf(procs)
		if leader != nil {
			want, _ = strconv.ParseInt(leader.info()["raft_commit_index"], 10, 64)
		}
		return want > 0
	})
	for _, p := range procs {
		waitFor(t, p.raft+" has caught up", func() bool {
			n, err := strconv.ParseInt(p.info()["raft_applied_index"], 10, 64)
			return err == nil && n >= want
		})
	}
}

// sameEverywhere waits until all replicas have applied the same index, and compares their digests.
func sameEverywhere(t testing.TB, procs []*process) {
	t.Helper()
	var infos []map[string]string
	waitFor(t, "all replicas at one index", func() bool {
		infos = nil
		for _, p := range procs {
			infos = append(infos, p.info())
		}
		return infos[0] != nil && !slices.ContainsFunc(infos, func(info map[string]string) bool {
			return info["raft_applied_index"] != infos[0]["raft_applied_index"]
		})
	})
	for _, info := range infos {
		assert.Len(t, info["raft_state_digest"], 16)
		assert.Equal(t, infos[0]["raft_state_digest"], info["raft_state_digest"], "digest of %s at %s", info["raft_self"], info["raft_applied_index"])
	}
	t.Logf("digest %s at index %s on all replicas", infos[0]["raft_state_digest"], infos[0]["raft_applied_index"])
}

func durations(d []time.Duration) string {
	if len(d) == 0 {
		return "none"
	}
	return fmt.Sprintf("%d times, p50 %v, max %v", len(d), median(d).Round(time.Millisecond), slices.Max(d).Round(time.Millisecond))
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(d))[len(d)/2]
}

// load is concurrent clients that write down what they see.
type load struct {
	t     *testing.T
	procs []*process
	h     *history
	done  chan struct{}
	once  sync.Once // of closing done
	wg    sync.WaitGroup
	moved atomic.Int64
	probe int

	seed     uint64        // of what the clients do
	patience time.Duration // how long a client waits for an answer
	readers  bool          // every other client reads from a random replica, which need not lead
	diskFull bool          // an answer may be that there is no space

	mu    sync.Mutex
	audit map[string]string // writes of keys that are written once, and were acknowledged
}

func newLoad(t *testing.T, procs []*process) *load {
	return &load{
		t: t, procs: procs, h: &history{start: time.Now()}, done: make(chan struct{}), audit: make(map[string]string),
		seed: rand.Uint64(), patience: 5 * time.Second,
	}
}

func startLoad(t *testing.T, procs []*process, clients int) *load {
	l := newLoad(t, procs)
	l.begin(clients)
	return l
}

func (l *load) begin(clients int) {
	l.t.Cleanup(l.stop) // if the test ends early
	for id := range clients {
		l.wg.Go(func() { l.client(id) })
	}
}

func (l *load) stop() {
	l.once.Do(func() { close(l.done) })
	l.wg.Wait()
}

// client does one operation after another, until the load is stopped.
func (l *load) client(id int) {
	rng := rand.New(rand.NewPCG(l.seed, uint64(id)))
	at := l.procs[id%len(l.procs)]
	seen := make(map[string]string) // the last value read of a key
	for n := 0; ; n++ {
		select {
		case <-l.done:
			return
		case <-time.After(killPace):
		}
		value := fmt.Sprintf("%d.%d;", id, n)
		if n%4 == 0 {
			at = l.writeOnce(at, "audit-"+value, value)
			continue
		}
		key := fmt.Sprintf("k%d-%d", time.Since(l.h.start)/killEpoch, rng.IntN(killKeys))
		op := storeOp{kind: "get", key: key}
		switch r := rng.IntN(10); {
		case r < 3:
			op = storeOp{kind: "set", key: key, value: value}
		case r < 5:
			op = storeOp{kind: "append", key: key, value: value}
		case r < 7 && seen[key] != "":
			op = storeOp{kind: "cas", key: key, value: value, old: seen[key]}
		}
		call := l.h.now()
		var res storeResult
		var out outcome
		if op.kind == "get" && l.readers && id%2 == 0 {
			res, out = l.readAt(l.procs[rng.IntN(len(l.procs))], op)
		} else {
			res, out, at = l.do(at, op)
		}
		if out != outNothing {
			l.h.add(id, op, call, res)
		}
		if out == outDone && op.kind == "get" {
			seen[key] = res.value
		}
	}
}

// writeOnce writes a key that nobody else writes, and notes that it was acknowledged.
func (l *load) writeOnce(at *process, key, value string) (next *process) {
	_, out, next := l.do(at, storeOp{kind: "set", key: key, value: value})
	if out == outDone {
		l.mu.Lock()
		l.audit[key] = value
		l.mu.Unlock()
	}
	return next
}

// outcome is what a client knows of its operation.
type outcome int

const (
	outDone    outcome = iota // it was carried out
	outNothing                // it was not, and never will be
	outUnknown
)

// do sends an operation to a replica, once. next is whom to ask from now on.
func (l *load) do(at *process, op storeOp) (res storeResult, out outcome, next *process) {
	ctx, cancel := context.WithTimeout(context.Background(), l.patience)
	defer cancel()
	var err error
	switch op.kind {
	case "get":
		res.value, err = getFrom(ctx, at.client, op.key)
	case "set":
		err = at.client.Set(ctx, op.key, op.value, 0).Err()
	case "append":
		res.n, err = at.client.Append(ctx, op.key, op.value).Result()
	case "cas":
		res.n, err = at.client.Do(ctx, "CAS", op.key, op.old, op.value).Int64()
	}
	out, next = l.judge(err, at)
	res.unknown = out == outUnknown
	return res, out, next
}

// readAt reads from a replica that need not lead.
func (l *load) readAt(at *process, op storeOp) (res storeResult, out outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), l.patience)
	defer cancel()
	var err error
	res.value, err = getFrom(ctx, at.reader, op.key)
	out, _ = l.judge(err, at)
	res.unknown = out == outUnknown
	return res, out
}

// getFrom reads a key: "" if there is none.
func getFrom(ctx context.Context, c *redis.Client, key string) (string, error) {
	value, err := c.Get(ctx, key).Result()
	if errors.Is(err, redis.Nil) {
		return "", nil
	}
	return value, err
}

// judge says what an error means, and whom to ask next.
func (l *load) judge(err error, at *process) (out outcome, next *process) {
	elsewhere := l.procs[(slices.Index(l.procs, at)+1)%len(l.procs)]
	var dial *net.OpError
	var answer redis.Error
	switch {
	case err == nil:
		return outDone, at
	case errors.As(err, &answer):
		text := answer.Error()
		if strings.HasPrefix(text, "UNKNOWN ") {
			return outUnknown, elsewhere
		}
		if addr, ok := redis.IsMovedError(err); ok {
			l.moved.Add(1)
			for _, p := range l.procs {
				if p.redis == addr {
					return outNothing, p
				}
			}
			l.t.Errorf("redirected to %s, which is nobody's", addr)
		} else if !l.mayRefuse(text) {
			l.t.Errorf("unexpected answer: %s", text)
		}
		return outNothing, elsewhere
	case errors.As(err, &dial) && dial.Op == "dial":
		return outNothing, elsewhere
	}
	return outUnknown, elsewhere
}

// mayRefuse reports whether a replica may answer so to a command that it did not carry out.
func (l *load) mayRefuse(text string) bool {
	return strings.HasPrefix(text, "CLUSTERDOWN ") || strings.HasPrefix(text, "BUSY ") ||
		l.diskFull && strings.HasPrefix(text, "ERR nothing was done: ")
}

// batchWriter writes many keys at once to whoever leads, again and again until all writes of a batch are acknowledged at once: they are
// of a kind that may be repeated. Its zero value is ready to use.
type batchWriter struct{ at *client }

func (w *batchWriter) write(t testing.TB, procs []*process, commands [][]string) {
	t.Helper()
	waitLong(t, "values are written", func() bool {
		if w.at == nil {
			leader := leaderOf(procs)
			if leader == nil {
				return false
			}
			c, err := dialClient(leader.redis, 5*time.Second)
			if err != nil {
				return false
			}
			w.at = c
		}
		answers, err := w.at.doMany(30*time.Second, commands...)
		if err == nil && !slices.ContainsFunc(answers, func(a any) bool { return a != "OK" }) {
			return true
		}
		w.close()
		return false
	})
}

func (w *batchWriter) close() {
	if w.at != nil {
		w.at.close()
		w.at = nil
	}
}

// preload writes keys that nobody else writes, to the leader.
func (l *load) preload(n int) {
	l.t.Helper()
	var w batchWriter
	defer w.close()
	for from := 0; from < n; from += 500 {
		var commands [][]string
		for i := from; i < min(from+500, n); i++ {
			commands = append(commands, []string{"SET", fmt.Sprintf("preload-%d", i), fmt.Sprintf("%0100d", i)})
		}
		w.write(l.t, l.procs, commands)
		l.mu.Lock()
		for _, cmd := range commands {
			l.audit[cmd[1]] = cmd[2]
		}
		l.mu.Unlock()
	}
}

// more waits until the clients have done so many operations and audited writes more, which takes long on a slow disk: without them
// there is nothing to lose.
func (l *load) more(operations, writes int) {
	l.t.Helper()
	done, written := l.counts()
	waitLong(l.t, "the clients get on", func() bool {
		d, w := l.counts()
		return d > done+operations && w > written+writes
	})
}

// counts returns how many operations succeeded, and how many writes are to be audited.
func (l *load) counts() (operations, writes int) {
	operations, _ = l.h.counts()
	l.mu.Lock()
	defer l.mu.Unlock()
	return operations, len(l.audit)
}

// newWrite returns how long it takes from now until a write that begins now or later is acknowledged.
func (l *load) newWrite() time.Duration {
	start := time.Now()
	at := l.procs[0]
	for time.Since(start) < 2*time.Minute {
		l.probe++
		op := storeOp{kind: "set", key: "probe-" + strconv.Itoa(l.probe), value: "x"}
		call := l.h.now()
		res, out, next := l.do(at, op)
		if out != outNothing {
			l.h.add(killClients, op, call, res)
		}
		if out == outDone {
			return time.Since(start)
		}
		at = next
		<-time.After(time.Millisecond) // the pace of a client that asks again
	}
	l.t.Fatal("no write is accepted any more")
	return 0
}

// verify checks the histories, and that what was acknowledged is there in the end. There must have been enough
// operations, and writes to audit, to mean anything.
func (l *load) verify(operations, writes int) {
	t := l.t
	known, unknown := l.h.counts()
	t.Logf("%d operations succeeded and %d have an unknown outcome, in %v; %d keys written once; %d redirections",
		known, unknown, time.Since(l.h.start).Round(time.Second), len(l.audit), l.moved.Load())
	assert.Greater(t, known, operations, "operations: too few to mean anything")
	assert.Greater(t, len(l.audit), writes, "writes to audit: too few to mean anything")
	var leader *process
	waitFor(t, "a leader", func() bool { leader = leaderOf(l.procs); return leader != nil })
	stored := scan(t, leader.client)
	l.audited(leader, stored)
	end := l.h.now()
	keys := make(map[string]bool)
	for _, op := range l.h.ops {
		keys[op.Input.(storeOp).key] = true
	}
	for key := range keys { // the end belongs to the history too
		l.h.add(killClients+1, storeOp{kind: "get", key: key}, end, storeResult{value: stored[key]})
	}
	l.h.check(t)
}

// audited checks that what was acknowledged is in what a replica has stored.
func (l *load) audited(p *process, stored map[string]string) {
	missing := 0
	for key, value := range l.audit {
		if stored[key] != value {
			if missing++; missing <= 10 {
				l.t.Errorf("acknowledged write is lost: %s is %q on %s, want %q", key, stored[key], p.raft, value)
			}
		}
	}
	assert.Zero(l.t, missing, "acknowledged writes are lost")
}

// scan reads the whole store of a replica: of the leader, or of any if the client has said READONLY.
func scan(t *testing.T, c *redis.Client) map[string]string {
	t.Helper()
	ctx := context.Background()
	stored := make(map[string]string)
	var cursor uint64
	for {
		var keys []string
		var next uint64
		calm(t, "SCAN", func() (err error) {
			keys, next, err = c.Scan(ctx, cursor, "", 1000).Result()
			return err
		})
		if len(keys) > 0 {
			var values []any
			calm(t, "MGET", func() (err error) {
				values, err = c.MGet(ctx, keys...).Result()
				return err
			})
			for i, key := range keys {
				stored[key], _ = values[i].(string)
			}
		}
		if cursor = next; cursor == 0 {
			return stored
		}
	}
}

// calm reads again while the answer is that nothing was done: connections that the faults have broken may show that only now.
func calm(t *testing.T, what string, read func() error) {
	t.Helper()
	var err error
	waitFor(t, what, func() bool {
		err = read()
		return err == nil || !busy("-"+err.Error())
	})
	require.NoError(t, err)
}
