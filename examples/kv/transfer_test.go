package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const (
	transfersByDefault = 4               // interruptions
	transferFill       = 48              // MiB of data
	transferTimeout    = 3 * time.Second // of elections: nobody who is alive is to lose the others
	transferTime       = 3 * time.Second // that a copy takes, at least
	transferLimit      = 5 * time.Minute // for one transfer, with its interruptions
	transferValue      = 16 << 10
	resentMost         = 0.05        // of the snapshot, for each interruption
	stallMost          = time.Second // for which all may stand still; after 2 s a copy gives up up to 16 pieces of 1 MiB, and asks for them again
	replaysMost        = 10          // rounds that are played again because of that
)

// counter is a proxy in front of a replica that counts what the replica sends to those who have connected to it: what a
// snapshot costs on the wire.
type counter struct {
	listener net.Listener
	target   string
	sent     atomic.Int64
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool // nil: closed
}

func newCounter(t testing.TB, addr, target string) *counter {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	c := &counter{listener: l, target: target, conns: make(map[net.Conn]bool)}
	c.wg.Go(c.accept)
	t.Cleanup(c.close)
	return c
}

func (c *counter) accept() {
	for {
		in, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.wg.Go(func() { c.serve(in) })
	}
}

// keep notes a connection, for close. It reports whether the proxy is open.
func (c *counter) keep(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conns == nil {
		return false
	}
	c.conns[conn] = true
	return true
}

func (c *counter) drop(conn net.Conn) {
	conn.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
}

func (c *counter) serve(in net.Conn) {
	defer c.drop(in)
	out, err := net.DialTimeout("tcp", c.target, time.Second)
	if err != nil || !c.keep(in) {
		return
	}
	defer c.drop(out)
	if !c.keep(out) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(out, in) // whoever ends it, both ends are closed
		out.Close()
	}()
	_, _ = io.Copy(in, io.TeeReader(out, countingWriter{&c.sent}))
	in.Close()
	<-done
}

func (c *counter) close() {
	c.listener.Close()
	c.mu.Lock()
	for conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
	c.mu.Unlock()
	c.wg.Wait()
}

type countingWriter struct{ n *atomic.Int64 }

func (w countingWriter) Write(p []byte) (int, error) {
	w.n.Add(int64(len(p)))
	return len(p), nil
}

// A member is wiped, again and again, and gets the leader's snapshot, be it as a member that comes back with nothing or as
// one that is removed and added again. At random points the process that receives it or the one that sends it is killed
// with kill -9 and started again. The copy goes on where it was: for each interruption at most a twentieth of the snapshot
// is sent twice. In the end all replicas hold the same. GRAFT_TRANSFERS is how many interruptions there are, GRAFT_FILL how
// many MiB.
func TestInterruptedTransfersAreResumed(t *testing.T) {
	fill := int64(fromEnv(t, "GRAFT_FILL", transferFill)) << 20
	tr := newTransfers(t, fill, fill*int64(time.Second)/int64(transferTime))
	fillStore(t, tr.procs, fill)
	tr.saveAll()
	for total := fromEnv(t, "GRAFT_TRANSFERS", transfersByDefault); tr.interruptions < total; tr.rounds++ {
		tr.round(min(1+rand.IntN(3), total-tr.interruptions))
	}
	t.Logf("%d transfers of %s with %d interruptions, %d of the receiver, %d of the sender; sent again: %s, %.2f %% of a snapshot for each interruption, %.2f %% at most",
		tr.rounds, mib(tr.size), tr.interruptions, tr.receiverKills, tr.interruptions-tr.receiverKills, mib(tr.resent),
		100*float64(tr.resent)/float64(tr.size)/float64(max(tr.interruptions, 1)), 100*tr.worst)
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// transfers is a group whose snapshots are sent through proxies that count.
type transfers struct {
	t        *testing.T
	procs    []*process
	counters []*counter
	size     int64 // of a snapshot

	rounds, interruptions, receiverKills int
	replays                              int
	longest                              time.Duration // between two looks at the replicas, in this round
	resent                               int64
	worst                                float64 // bytes sent again, for one interruption, as a part of the snapshot
}

func newTransfers(t *testing.T, fill, rate int64) *transfers {
	tr := &transfers{t: t, procs: newProcesses(t, transferTimeout)}
	listen, err := freeLoopback(ownHost(), len(tr.procs))
	require.NoError(t, err)
	for i, p := range tr.procs {
		p.args = append(p.args, "-raft-listen", listen[i], "-snapshot-entries", strconv.FormatInt(max(100, fill/transferValue/4), 10),
			"-snapshot-margin", "10", "-snapshot-rate", strconv.FormatInt(rate, 10))
		tr.counters = append(tr.counters, newCounter(t, p.raft, listen[i]))
		p.start()
	}
	atRest(t, tr.procs, transferLimit)
	return tr
}

// fillBatch is how many values are written at once.
const fillBatch = 64

// fillStore writes so many bytes of data that cannot be compressed, to whoever leads.
func fillStore(t testing.TB, procs []*process, bytes int64) {
	t.Helper()
	noise := rand.NewChaCha8([32]byte{1})
	var w batchWriter
	defer w.close()
	for n := 0; int64(n)*transferValue < bytes; n += fillBatch {
		var commands [][]string
		for i := range fillBatch {
			value := make([]byte, transferValue)
			_, _ = noise.Read(value) // it never fails
			commands = append(commands, []string{"SET", "fill-" + strconv.Itoa(n+i), string(value)})
		}
		w.write(t, procs, commands)
	}
}

// number is a number of INFO's, 0 if it is not there.
func (p *process) number(name string) int64 {
	n, err := strconv.ParseInt(p.info()[name], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// waitLong is waitFor with more patience.
func waitLong(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.NoError(t, until(context.Background(), transferLimit, what, ok))
}

// saveAll saves a snapshot on every replica.
func (tr *transfers) saveAll() {
	t := tr.t
	t.Helper()
	waitCaughtUp(t, tr.procs)
	for _, p := range tr.procs {
		waitLong(t, "a snapshot of all", func() bool {
			info := p.info()
			if info["raft_snapshot_state"] == "idle" && info["raft_snapshot_index"] != info["raft_applied_index"] {
				_ = p.client.Do(context.Background(), "bgsave").Err() // it is asked for until it is there
			}
			return info != nil && info["raft_snapshot_index"] == info["raft_applied_index"]
		})
		tr.size = p.number("raft_snapshot_bytes")
	}
}

func (tr *transfers) sent() (n int64) {
	for _, c := range tr.counters {
		n += c.sent.Load()
	}
	return n
}

// round is one transfer with so many interruptions.
func (tr *transfers) round(kills int) {
	t := tr.t
	leader, members := atRest(t, tr.procs, transferLimit)
	victim := exceptFor(members, []*process{leader})[rand.IntN(len(members)-1)]
	added := make(chan error, 1)
	if tr.rounds%2 == 0 {
		victim.wipe()
		added <- nil
	} else {
		rest := exceptFor(members, []*process{victim})
		mustChange(t, tr.procs, members, rest)
		victim.wipe()
		go func() { added <- tr.add(members, rest) }()
	}
	before, receiverKills, stalled := tr.sent(), tr.receiverKills, watchStalls()
	defer stalled()
	tr.longest = 0
	victim.start()
	for i := range kills {
		tr.interrupt(victim, i, kills)
	}
	require.NoError(t, <-added)
	tr.wait(victim.raft+" has a snapshot", func() bool {
		info := victim.info()
		return info["raft_snapshot_state"] == "idle" && info["raft_snapshot_index"] != "0"
	})
	again := max(tr.sent()-before-tr.size, 0)
	each := float64(again) / float64(tr.size) / float64(kills)
	t.Logf("%d: %d interruptions, %s sent again, %.2f %% for each", tr.rounds, kills, mib(again), 100*each)
	if still := max(stalled(), tr.longest); still > stallMost && each > resentMost && tr.replays < replaysMost {
		t.Logf("that is not judged: all stood still for %v", still)
		tr.replays++
		tr.receiverKills = receiverKills
	} else {
		tr.interruptions += kills
		tr.resent += again
		tr.worst = max(tr.worst, each)
		assert.LessOrEqual(t, each, resentMost, "bytes sent again for each interruption, as a part of the snapshot")
	}
	waitCaughtUp(t, tr.procs)
	sameEverywhere(t, tr.procs)
}

// wait is waitLong, and notes how long it was between two looks.
func (tr *transfers) wait(what string, ok func() bool) {
	tr.t.Helper()
	last := time.Now()
	waitLong(tr.t, what, func() bool {
		done, now := ok(), time.Now()
		tr.longest, last = max(tr.longest, now.Sub(last)), now
		return done
	})
}

// watchStalls watches from now on whether this process gets the processor. The function that it returns ends that, and says for how long
// it did not at most.
func watchStalls() (end func() time.Duration) {
	done, longest := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		var most time.Duration
		for last := time.Now(); ; {
			select {
			case <-done:
				longest <- max(most, time.Since(last))
				return
			case <-tick.C:
			}
			now := time.Now()
			most, last = max(most, now.Sub(last)), now
		}
	}()
	return sync.OnceValue(func() time.Duration {
		close(done)
		return <-longest
	})
}

// add has the victim added again, however often a change fails because somebody was killed.
func (tr *transfers) add(members, rest []*process) (err error) {
	for start := time.Now(); time.Since(start) < transferLimit; {
		if err = changeWithin(transferLimit, tr.procs, rest, members); err == nil {
			return nil
		}
		if info := leaderInfo(tr.procs); info["raft_stage"] == "none" && info["raft_peers"] == raftsOf(members) {
			return nil
		}
	}
	return err
}

func leaderInfo(procs []*process) map[string]string {
	for _, p := range procs {
		if info := p.info(); info["raft_role"] == "leader" {
			return info
		}
	}
	return nil
}

// interrupt kills the receiver or the sender when a random part of the i-th of n parts of the transfer is done.
func (tr *transfers) interrupt(victim *process, i, n int) {
	t := tr.t
	at := int64((float64(i) + 0.9*rand.Float64()) / float64(n) * float64(tr.size))
	var done int64
	sender := ""
	tr.wait(fmt.Sprintf("%d bytes are copied", at), func() bool {
		info := victim.info()
		done, _ = strconv.ParseInt(info["raft_snapshot_done"], 10, 64)
		sender = info["raft_snapshot_from"]
		return done > 0 && done >= at || info["raft_snapshot_state"] == "idle" && info["raft_snapshot_index"] != "0"
	})
	killed := victim
	if rand.IntN(2) == 0 {
		for _, p := range tr.procs {
			if p.raft == sender {
				killed = p
			}
		}
	}
	if killed == victim {
		tr.receiverKills++
	}
	killed.kill()
	<-time.After(time.Duration(rand.IntN(300)) * time.Millisecond)
	killed.start()
	var resumed int64
	tr.wait("the copy goes on", func() bool {
		info := victim.info()
		resumed, _ = strconv.ParseInt(info["raft_snapshot_done"], 10, 64)
		if info["raft_snapshot_state"] == "idle" && info["raft_snapshot_index"] != "0" {
			resumed = tr.size // it is over
		}
		return resumed > 0
	})
	assert.GreaterOrEqual(t, resumed, done-int64(resentMost*float64(tr.size)), "what was copied is kept")
	what := "sender"
	if killed == victim {
		what = "receiver"
	}
	t.Logf("the %s was killed with %s copied; it went on with %s", what, mib(done), mib(resumed))
}
