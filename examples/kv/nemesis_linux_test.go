package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	nemesisTimeout  = 300 * time.Millisecond // the replicas' election timeout
	nemesisHoldMin  = 200 * time.Millisecond // that faults last
	nemesisHoldMax  = 4 * time.Second        // on top; half of them less than a quarter of it
	nemesisPatience = time.Second            // of a client
	nemesisLimit    = time.Minute            // for everything to work again
	nemesisDuring   = 20                     // operations that must succeed during faults, on average of all rounds
	nemesisAfter    = 50                     // and after each
	nemesisMore     = 2 * time.Minute        // that rounds go on at most to reach what they must
)

// fault is one thing that can happen to processes or to the network between them. What exactly happens is drawn from
// rng; what comes of it depends on who leads at that time.
type fault struct {
	name   string
	strike func(n *nemesis, rng *rand.Rand) (what string, heal func())
}

// nemesis has faults happen to a group under load, round after round, alone and two at a time. The order and
// the kind of the faults, and how long they last, are functions of the seed.
type nemesis struct {
	t     *testing.T
	seed  uint64
	procs []*process
	menu  []fault
	mesh  *mesh // the network, or
	ether *ether
	l     *load

	diskFull bool        // a replica may say that it has no space
	lacks    func() bool // something has yet to happen; may be nil

	rounds int
	wanted int // operations that must succeed while there is a fault: nemesisDuring for each round of the time asked for
	hits   int // disks that failed
	during int // operations that succeeded while there was a fault
	struck map[string]int
	after  []time.Duration // from the end of the faults until a new write was acknowledged
}

// nemesisSeed is GRAFT_SEED, or a fresh one.
func nemesisSeed(t *testing.T, byDefault int) (seed uint64, d time.Duration) {
	t.Helper()
	s, seconds := fromEnv(t, "GRAFT_SEED", rand.IntN(1_000_000_000)), fromEnv(t, "GRAFT_NEMESIS", byDefault)
	t.Logf("to repeat these faults: GRAFT_SEED=%d GRAFT_NEMESIS=%d go test ./examples/kv -run '^%s$' -timeout 0 -v", s, seconds, t.Name())
	return uint64(s), time.Duration(seconds) * time.Second
}

// nemesisSize is how many replicas there are, three or five.
func nemesisSize(seed uint64) int { return []int{3, 3, 5}[seed%3] }

// begin starts the processes and the load.
func (n *nemesis) begin() {
	t := n.t
	n.struck = make(map[string]int)
	for _, p := range n.procs {
		p.start()
	}
	waitFor(t, "a leader", func() bool { return leaderOf(n.procs) != nil })
	n.l = newLoad(t, n.procs)
	n.l.seed, n.l.patience, n.l.readers = n.seed, nemesisPatience, true
	n.l.diskFull = n.diskFull
	n.l.begin(killClients)
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range n.procs {
				t.Logf("%s: %v", p.raft, p.info())
			}
		}
	})
}

// run has rounds happen for a while, and longer if those there were left no majority, or time for little, so that there was nothing
// to see.
func (n *nemesis) run(d time.Duration) {
	start := time.Now()
	goOn := func() bool {
		took := time.Since(start)
		if took < d {
			n.wanted = nemesisDuring * (n.rounds + 1)
			return true
		}
		return took < d+nemesisMore && (n.during < n.wanted || n.lacks != nil && n.lacks())
	}
	for ; goOn() && !n.t.Failed(); n.rounds++ {
		n.round(n.rounds)
	}
}

// round makes one or two faults, lets them last, heals them, and checks that the group works again.
func (n *nemesis) round(i int) {
	t := n.t
	rng := rand.New(rand.NewPCG(n.seed, uint64(i)))
	known, _ := n.l.h.counts()
	var whats []string
	var heals []func()
	for _, f := range n.deal(i, rng) {
		what, heal := f.strike(n, rng)
		whats, heals = append(whats, f.name+" "+what), append(heals, heal)
		n.struck[f.name]++
	}
	hold := nemesisHoldMin + upTo(rng, 1+upTo(rng, nemesisHoldMax))
	<-time.After(hold)
	for _, heal := range slices.Backward(heals) {
		heal()
	}
	healed, written := n.l.counts()
	n.during += healed - known
	took := n.l.newWrite()
	n.after = append(n.after, took)
	t.Logf("%d: %s, for %v: %d operations succeeded; a new write %v later", i, strings.Join(whats, " and "),
		hold.Round(time.Millisecond), healed-known, took.Round(time.Millisecond))
	assert.Less(t, took, nemesisLimit, "a new write after the faults")
	n.allLive()
	waitFor(t, "operations succeed after the faults", func() bool {
		now, audited := n.l.counts()
		return now >= healed+nemesisAfter && audited > written+nemesisAfter/5
	})
	<-time.After(upTo(rng, 500*time.Millisecond))
}

// deal returns a round's faults. The first goes through the whole menu, in an order that changes, before one comes again.
func (n *nemesis) deal(round int, rng *rand.Rand) []fault {
	lap, at := round/len(n.menu), round%len(n.menu)
	deck := rand.New(rand.NewPCG(n.seed, ^uint64(lap))).Perm(len(n.menu))
	faults := []fault{n.menu[deck[at]]}
	if second := rng.IntN(2 * len(n.menu)); second < len(n.menu) && second != deck[at] {
		faults = append(faults, n.menu[second])
	}
	return faults
}

// allLive checks that every process runs, answers, and has not failed.
func (n *nemesis) allLive() {
	n.t.Helper()
	for _, p := range n.procs {
		var info map[string]string
		deadline := time.Now().Add(nemesisLimit)
		for info = p.info(); info == nil && time.Now().Before(deadline); info = p.info() {
			<-time.After(10 * time.Millisecond)
		}
		require.NotNil(n.t, info, "%s does not answer", p.raft)
		require.Empty(n.t, info["raft_error"], "%s has failed", p.raft)
	}
}

// finish ends the load and checks everything: what the clients saw, and what all replicas hold, as they are and after they were
// all killed and started again.
func (n *nemesis) finish() {
	t := n.t
	n.l.newWrite()
	waitCaughtUp(t, n.procs)
	n.l.stop()
	t.Logf("%d rounds: %v", n.rounds, n.struck)
	t.Logf("new writes after the faults: %s", durations(n.after))
	assert.GreaterOrEqual(t, n.during, n.wanted, "operations that succeeded during faults: too few to mean anything")
	n.l.verify(n.wanted+nemesisAfter*n.rounds, nemesisAfter*n.rounds/5)
	n.same()
	for _, p := range n.procs {
		n.kill(p)
	}
	for _, p := range n.procs {
		p.start()
	}
	waitCaughtUp(t, n.procs)
	n.same()
}

// same checks that all replicas hold the same, and all that was acknowledged.
func (n *nemesis) same() {
	sameEverywhere(n.t, n.procs)
	for _, p := range n.procs {
		// A client that has often failed to connect goes on saying so for up to a second.
		waitFor(n.t, p.raft+" is connected to", func() bool { return p.reader.Ping(n.t.Context()).Err() == nil })
		n.l.audited(p, scan(n.t, p.reader))
	}
}

// kill kills a process, which must not have ended before.
func (n *nemesis) kill(p *process) {
	n.t.Helper()
	cmd := p.cmd
	if cmd == nil {
		return
	}
	p.kill()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGKILL {
		n.t.Errorf("%s had ended before it was killed: %v", p.raft, cmd.ProcessState)
	}
}

// start starts a process unless it runs.
func (n *nemesis) start(p *process) {
	if p.cmd == nil {
		p.start()
	}
}

// pause stops a process with SIGSTOP. It goes on when resume is called, or when this process ends.
func (n *nemesis) pause(p *process) (resume func()) {
	n.t.Helper()
	cmd := p.cmd
	if cmd == nil {
		return func() {}
	}
	guard := exec.Command("sh", "-c", `cat; kill -CONT "$1" 2>&-`, "sh", strconv.Itoa(cmd.Process.Pid))
	end, err := guard.StdinPipe()
	require.NoError(n.t, err)
	require.NoError(n.t, guard.Start())
	require.NoError(n.t, cmd.Process.Signal(syscall.SIGSTOP))
	return func() {
		end.Close()
		guard.Wait() // fails if the process was killed meanwhile
	}
}

// victim is the leader in half of the cases, else anybody.
func (n *nemesis) victim(rng *rand.Rand) int {
	i, wanted := rng.IntN(len(n.procs)), rng.IntN(2) == 0
	if leader := leaderOf(n.procs); wanted && leader != nil {
		return slices.Index(n.procs, leader)
	}
	return i
}

// victims is one, or any number, up to all.
func (n *nemesis) victims(rng *rand.Rand) (some []*process, what string) {
	one, others, count := n.victim(rng), rng.Perm(len(n.procs)), rng.IntN(2*len(n.procs))
	if count >= len(n.procs) || count == 0 {
		return n.procs[one : one+1], fmt.Sprint(one)
	}
	for _, i := range others[:count+1] {
		some = append(some, n.procs[i])
	}
	return some, fmt.Sprint(others[:count+1])
}

// processFaults can happen to processes wherever they run.
var processFaults = []fault{
	{"kill", func(n *nemesis, rng *rand.Rand) (string, func()) {
		some, what := n.victims(rng)
		for _, p := range some {
			n.kill(p)
		}
		return what, func() {
			for _, p := range some {
				n.start(p)
			}
		}
	}},
	{"kill again and again", func(n *nemesis, rng *rand.Rand) (string, func()) {
		i := n.victim(rng)
		p := n.procs[i]
		for range 2 + rng.IntN(4) {
			n.kill(p)
			<-time.After(upTo(rng, 100*time.Millisecond))
			n.start(p)
			<-time.After(upTo(rng, 300*time.Millisecond))
		}
		return fmt.Sprint(i), func() { n.start(p) }
	}},
	{"pause", func(n *nemesis, rng *rand.Rand) (string, func()) {
		some, what := n.victims(rng)
		var resume []func()
		for _, p := range some {
			resume = append(resume, n.pause(p))
		}
		return what, func() {
			for _, r := range resume {
				r()
			}
		}
	}},
	{"pause again and again", func(n *nemesis, rng *rand.Rand) (string, func()) {
		i := n.victim(rng)
		for range 2 + rng.IntN(4) {
			resume := n.pause(n.procs[i])
			<-time.After(upTo(rng, 1000*time.Millisecond))
			resume()
			<-time.After(upTo(rng, 100*time.Millisecond))
		}
		return fmt.Sprint(i), func() {}
	}},
}

// upTo draws a duration below d.
func upTo(rng *rand.Rand, d time.Duration) time.Duration { return time.Duration(rng.Int64N(int64(d))) }

// partition draws which ordered pairs of processes a fault of the network concerns.
func (n *nemesis) partition(rng *rand.Rand) (pairs []pair, what string) {
	one, order, shape := n.victim(rng), rng.Perm(len(n.procs)), max(0, rng.IntN(len(shapes)+4)-4)
	cut := 1 + rng.IntN(len(n.procs)-1) // of order, where there are two sides
	for i := range n.procs {
		for j := range n.procs {
			if i != j && shapes[shape].concerns(i, j, one, slices.Index(order, i), slices.Index(order, j), cut) {
				pairs = append(pairs, pair{i, j})
			}
		}
	}
	return pairs, fmt.Sprintf("%s %v", shapes[shape].name, pairs)
}

// shapes are the ways in which processes can lose sight of each other, the first being the most frequent. Each says whether
// the pair i, j is concerned; one is a chosen process, and a and b are the places of i and j in a random order.
var shapes = []struct {
	name     string
	concerns func(i, j, one, a, b, cut int) bool
}{
	{"around one", func(i, j, one, _, _, _ int) bool { return i == one || j == one }},
	{"from one", func(i, _, one, _, _, _ int) bool { return i == one }},
	{"to one", func(_, j, one, _, _, _ int) bool { return j == one }},
	{"between two sides", func(_, _, _, a, b, cut int) bool { return (a < cut) != (b < cut) }},
	{"from one side to the other", func(_, _, _, a, b, cut int) bool { return a < cut && b >= cut }},
	{"but for a hub", func(i, j, one, _, _, _ int) bool { return i != one && j != one }},
	{"but for a chain", func(_, _, _, a, b, _ int) bool { return a-b != 1 && b-a != 1 }},
	{"along a chain, one way", func(_, _, _, a, b, _ int) bool { return a == b+1 }},
	{"of two", func(_, _, _, a, b, _ int) bool { return a+b == 1 }},
	{"from one to another", func(_, _, _, a, b, _ int) bool { return a == 0 && b == 1 }},
	{"everywhere", func(_, _, _, _, _, _ int) bool { return true }},
}

// linkFaults can happen to connections that go through a mesh.
var linkFaults = []fault{
	{"stall", func(n *nemesis, rng *rand.Rand) (string, func()) {
		_, what := n.stall(rng)
		return what, n.mesh.clear
	}},
	{"stall, then reset", func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.stall(rng)
		return what, func() {
			n.reset(pairs)
			n.mesh.clear()
		}
	}},
	{"cut", func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.partition(rng)
		for _, p := range pairs {
			n.mesh.set(p, weather{refuse: true})
		}
		n.reset(pairs)
		return what, n.mesh.clear
	}},
	{"half-open", func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.partition(rng)
		for _, p := range pairs {
			n.mesh.halve(p)
		}
		return what, func() {}
	}},
	{"reset", func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.partition(rng)
		for range 1 + rng.IntN(10) {
			n.reset(pairs)
			<-time.After(upTo(rng, 200*time.Millisecond))
		}
		return what, func() {}
	}},
	{"delay", func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.partition(rng)
		w := weather{delay: upTo(rng, 300*time.Millisecond), jitter: upTo(rng, 300*time.Millisecond)}
		for _, p := range pairs {
			n.mesh.set(p, w)
		}
		return fmt.Sprintf("%s by %v to %v", what, w.delay, w.delay+w.jitter), n.mesh.clear
	}},
	{"slow", func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.partition(rng)
		w := weather{rate: 1000 << rng.IntN(10)}
		for _, p := range pairs {
			n.mesh.set(p, w)
		}
		return fmt.Sprintf("%s, %d bytes/s", what, w.rate), n.mesh.clear
	}},
	{"seem dead", func(n *nemesis, rng *rand.Rand) (string, func()) {
		i := n.victim(rng)
		n.mesh.shut(i)
		return fmt.Sprint(i), func() { n.mesh.open(i) }
	}},
}

// stall stops links after some bytes.
func (n *nemesis) stall(rng *rand.Rand) (pairs []pair, what string) {
	pairs, what = n.partition(rng)
	for _, p := range pairs {
		n.mesh.set(p, weather{stalled: true, budget: rng.IntN(300)})
	}
	return pairs, what
}

func (n *nemesis) reset(pairs []pair) {
	for _, p := range pairs {
		n.mesh.reset(p)
	}
}

// Real processes with proxies between them go through kills, pauses longer than the election timeout, and all that
// can happen to TCP connections, under load. No acknowledged write is lost, what the clients saw is linearizable, reads of followers
// included, a short while after each fault everything works, and in the end all replicas hold the same. GRAFT_NEMESIS is how many
// seconds it lasts, GRAFT_SEED what the faults come from.
func TestNemesisOfProcessesAndConnections(t *testing.T) {
	seed, d := nemesisSeed(t, 10)
	size, dir := nemesisSize(seed), t.TempDir()
	addrs, err := freeLoopback(ownHost(), 3*size)
	require.NoError(t, err)
	rafts, redises, listens := addrs[:size], addrs[size:2*size], addrs[2*size:]
	n := &nemesis{t: t, seed: seed, menu: slices.Concat(processFaults, linkFaults)}
	for i := range size {
		p := newProcess(t, filepath.Join(dir, strconv.Itoa(i)), rafts[i], redises[i], nemesisTimeout, nil)
		p.args = append(p.args, "-raft-listen", listens[i])
		p.peers = strings.Join(rafts, ",")
		n.procs = append(n.procs, p)
	}
	n.mesh = newMesh(t, rafts, listens, func(conn net.Conn) (int, bool) { return ownerOf(conn, n.procs) })
	n.begin()
	n.run(d)
	n.finish()
	if n.rounds >= 2*len(n.menu) {
		assert.Len(t, slices.Collect(maps.Keys(n.struck)), len(n.menu), "kinds of faults")
	}
}
