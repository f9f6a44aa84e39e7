package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	benchFill    = 64              // MiB
	benchTimeout = 5 * time.Second // of elections: there are to be none
	benchWriters = 4
	benchPace    = time.Millisecond
	benchBefore  = 3 * time.Second // for how long to take the time of writes when nothing else happens
)

// BenchmarkSnapshots fills a group of real processes with GRAFT_FILL MiB, and says how long it takes to save that, to
// install it, and to start with it; how long writes take before and meanwhile; how much memory sender and receiver
// take; and how long a plain copy of the same files over TCP, to files that are synced, takes in the same run.
//
//	GRAFT_FILL=1024 go test ./examples/kv -run '^$' -bench Snapshots -timeout 0
func BenchmarkSnapshots(b *testing.B) {
	fill := int64(fromEnv(b, "GRAFT_FILL", benchFill)) << 20
	procs := newProcesses(b, benchTimeout)
	for _, p := range procs {
		p.args = append(p.args, "-snapshot-interval", "0", "-snapshot-entries", "0", "-snapshot-bytes", "0", "-snapshot-margin", "10")
		p.start()
	}
	atRest(b, procs, changeLimit)
	start := time.Now()
	fillStore(b, procs, fill)
	b.ReportMetric(float64(fill)/(1<<20)/time.Since(start).Seconds(), "fill-MiB/s")
	leader, _ := atRest(b, procs, changeLimit)
	for b.Loop() {
		m := snapshotMeasures{b: b, procs: procs, leader: leader, follower: exceptFor(procs, []*process{leader})[0]}
		m.writes()
		m.install()
		m.plain()
		m.installUnderWrites()
		m.restart()
	}
	waitCaughtUp(b, procs)
	sameEverywhere(b, procs)
}

// snapshotMeasures is one measurement of everything.
type snapshotMeasures struct {
	b                *testing.B
	procs            []*process
	leader, follower *process
	before           time.Duration // the 99th percentile of writes when nothing else happens
	copied           time.Duration
	receiver         int64 // the most memory that the follower had while it copied
}

func (m *snapshotMeasures) report(d time.Duration, unit string) {
	m.b.ReportMetric(float64(d.Microseconds())/1e3, unit)
}

// writes takes the time of writes before a snapshot is saved and meanwhile.
func (m *snapshotMeasures) writes() {
	w := startPaced(m.b, m.leader)
	before := w.during(func() { <-time.After(benchBefore) })
	var took time.Duration
	was := m.leader.number("raft_snapshot_index")
	saving := w.during(func() {
		start := time.Now()
		require.NoError(m.b, m.leader.client.Do(m.b.Context(), "bgsave").Err())
		waitLong(m.b, "a snapshot", func() bool {
			info := m.leader.info()
			return info["raft_snapshot_state"] == "idle" && info["raft_snapshot_index"] != strconv.FormatInt(was, 10)
		})
		took = time.Since(start)
	})
	w.close()
	m.before = percentile(before, .99)
	m.b.Logf("writes before:       %s", summary(before))
	m.b.Logf("writes while saving: %s", summary(saving))
	m.report(took, "save-ms")
	m.report(m.before, "p99-before-ms")
	m.report(percentile(saving, .99), "p99-saving-ms")
}

// installed wipes the follower and waits until it has the leader's snapshot.
func (m *snapshotMeasures) installed() {
	m.follower.wipe()
	m.follower.start()
	m.receiver = 0
	waitLong(m.b, "the snapshot is installed", func() bool {
		info := m.follower.info()
		if info["raft_snapshot_state"] == "copying" { // what follows takes the memory of the keys
			m.receiver = max(m.receiver, memoryOf(m.follower))
		}
		return info["raft_snapshot_state"] == "idle" && info["raft_snapshot_index"] != "0"
	})
}

// install takes the time of an install in a group at rest.
func (m *snapshotMeasures) install() {
	sender, stop := memoryOf(m.leader), make(chan struct{})
	peak := make(chan int64, 1)
	go func() { peak <- peakMemory(m.leader, stop) }()
	m.installed()
	close(stop)
	if most := <-peak; sender > 0 {
		m.b.ReportMetric(float64(most-sender)/(1<<20), "sender-MiB")
		m.b.ReportMetric(float64(m.receiver)/(1<<20), "receiver-MiB")
	}
	m.copied = m.logged("copied a snapshot")
	m.report(m.copied, "copy-ms")
	m.report(m.logged("installed a snapshot"), "install-ms")
}

// installUnderWrites takes the time of writes during an install.
func (m *snapshotMeasures) installUnderWrites() {
	w := startPaced(m.b, m.leader)
	during := w.during(m.installed)
	w.close()
	m.b.Logf("writes while sending: %s", summary(during))
	m.report(percentile(during, .99), "p99-sending-ms")
	m.b.Logf("p99 of writes is %.1f times what it was while a snapshot is sent", float64(percentile(during, .99))/float64(max(m.before, 1)))
}

// restart takes the time from the start of a process with a snapshot until it answers.
func (m *snapshotMeasures) restart() {
	m.follower.kill()
	start := time.Now()
	m.follower.start()
	waitLong(m.b, "it answers", func() bool { return m.follower.info() != nil })
	m.report(time.Since(start), "restart-ms")
}

// logged is how long the follower's log says that something took, the last time.
func (m *snapshotMeasures) logged(what string) time.Duration {
	log, err := os.ReadFile(m.follower.stderr)
	require.NoError(m.b, err)
	all := regexp.MustCompile(what+`.*"took": ([0-9.e-]+)`).FindAllSubmatch(log, -1)
	require.NotEmpty(m.b, all, what)
	seconds, err := strconv.ParseFloat(string(all[len(all)-1][1]), 64)
	require.NoError(m.b, err)
	return time.Duration(seconds * float64(time.Second))
}

// plain copies the leader's snapshot over one connection into files that are synced.
func (m *snapshotMeasures) plain() {
	files, err := filepath.Glob(filepath.Join(m.leader.dir, "*", "*", "snapshot_*", "*"))
	require.NoError(m.b, err)
	require.NotEmpty(m.b, files)
	start := time.Now()
	n, err := plainCopy(files, m.b.TempDir())
	took := time.Since(start)
	require.NoError(m.b, err)
	m.report(took, "plain-copy-ms")
	m.b.ReportMetric(float64(took)/float64(m.copied), "copy/plain")
	m.b.Logf("%s: %v as a snapshot, %v as a plain copy", mib(n), m.copied.Round(time.Millisecond), took.Round(time.Millisecond))
}

// plainCopy sends files over TCP and syncs what arrives.
func plainCopy(files []string, dir string) (n int64, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	sent := make(chan error, 1)
	go func() { sent <- sendFiles(l.Addr().String(), files) }()
	conn, err := l.Accept()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	for i, name := range files {
		info, err := os.Stat(name)
		if err != nil {
			return n, err
		}
		f, err := os.Create(filepath.Join(dir, strconv.Itoa(i)))
		if err != nil {
			return n, err
		}
		_, err = io.CopyN(f, conn, info.Size())
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return n, err
		}
		n += info.Size()
	}
	return n, <-sent
}

func sendFiles(addr string, files []string) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		_, err = io.Copy(conn, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// memoryOf is how many bytes a process has in memory without what it maps from files, 0 if that is not known here.
func memoryOf(p *process) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid.Load()))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "RssAnon:")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0
	}
	return kib << 10
}

// peakMemory is the most that memoryOf is until stop.
func peakMemory(p *process, stop <-chan struct{}) (most int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		most = max(most, memoryOf(p))
		select {
		case <-stop:
			return most
		case <-tick.C:
		}
	}
}

// paced is clients that write at a pace and take the time.
//
// Ownership: mu guards the writes.
type paced struct {
	b    *testing.B
	done chan struct{}
	wg   sync.WaitGroup

	mu     sync.Mutex
	writes []interval
}

func startPaced(b *testing.B, leader *process) *paced {
	w := &paced{b: b, done: make(chan struct{})}
	for id := range benchWriters {
		c, err := dialClient(leader.redis, time.Second)
		require.NoError(b, err)
		w.wg.Go(func() {
			defer c.close()
			w.run(c, id)
		})
	}
	return w
}

func (w *paced) run(c *client, id int) {
	tick := time.NewTicker(benchPace)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-w.done:
			return
		case <-tick.C:
		}
		start := time.Now()
		if _, err := c.do(10*time.Second, "SET", fmt.Sprintf("paced-%d-%d", id, n%10_000), strings.Repeat("x", 100)); err != nil {
			w.b.Errorf("a write: %v", err)
			return
		}
		w.mu.Lock()
		w.writes = append(w.writes, interval{start, time.Now()})
		w.mu.Unlock()
	}
}

func (w *paced) close() {
	close(w.done)
	w.wg.Wait()
}

// during returns, sorted, how long the writes took that were under way while f ran.
func (w *paced) during(f func()) (took []time.Duration) {
	start := time.Now()
	f()
	end := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.writes {
		if i.start.Before(end) && i.end.After(start) {
			took = append(took, i.end.Sub(i.start))
		}
	}
	slices.Sort(took)
	return took
}
