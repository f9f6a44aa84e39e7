package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
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
	benchFill    = 64 // MiB
	benchRounds  = 3
	benchTimeout = 5 * time.Second // of elections: there are to be none
	benchWriters = 4
	benchPace    = time.Millisecond
	benchBehind  = 100_000         // entries behind the snapshot, when the follower is restarted
	benchBefore  = 3 * time.Second // for how long to take the time of writes when nothing else happens
)

// BenchmarkSnapshots fills a group of real processes with GRAFT_FILL MiB, and says what snapshots of that cost. In each
// of GRAFT_ROUNDS rounds a follower that has lost everything copies the leader's snapshot, a plain copy over TCP writes
// the same files to files that are synced, and the follower copies the snapshot once more while clients write. The
// medians of the rounds are reported:
//
//	copy/plain-%         how fast a snapshot is copied, the plain copy being 100
//	loaded-copy/plain-%  the same while clients write
//	p99-copying-ratio    99th percentile of writes while a snapshot is copied, as a multiple of p99-before-ms
//	p99-install-ratio    the same until it is installed, which takes all of the follower's processors
//	sender-MiB           by how much the leader's memory grows at most
//	receiver-MiB         how much memory the follower, which holds nothing else, has at most while it copies
//	restart-ms           how long the follower needs, with the snapshot and benchBehind entries behind it, until it answers
//	restart-open-ms      what the log takes of that, and restart-apply-ms what the entries take once the snapshot is loaded
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
	m := &snapshotMeasures{
		b: b, procs: procs, leader: leader, follower: exceptFor(procs, []*process{leader})[0],
		numbers: make(map[string][]float64),
	}
	for b.Loop() {
		m.saveUnderWrites()
		for range fromEnv(b, "GRAFT_ROUNDS", benchRounds) {
			m.install()
			m.plain()
			m.installUnderWrites()
		}
		m.restart()
	}
	m.report()
	waitCaughtUp(b, procs)
	sameEverywhere(b, procs)
}

// snapshotMeasures is what is measured, several times over.
type snapshotMeasures struct {
	b                *testing.B
	procs            []*process
	leader, follower *process
	receiver         int64                // the most memory that the follower had while it copied
	units            []string             // in the order in which they came
	numbers          map[string][]float64 // by unit
}

func (m *snapshotMeasures) note(unit string, v float64) {
	if m.numbers[unit] == nil {
		m.units = append(m.units, unit)
	}
	m.numbers[unit] = append(m.numbers[unit], v)
}

func (m *snapshotMeasures) noteTime(unit string, d time.Duration) {
	m.note(unit, float64(d.Microseconds())/1e3)
}

// median is that of all measurements so far.
func (m *snapshotMeasures) median(unit string) float64 {
	s := slices.Sorted(slices.Values(m.numbers[unit]))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func (m *snapshotMeasures) report() {
	for _, unit := range m.units {
		m.b.Logf("%-22s %8.1f, median of %.1f", unit, m.median(unit), m.numbers[unit])
		m.b.ReportMetric(m.median(unit), unit)
	}
	ratio := func(unit string, scale float64, of, by string) {
		if d := m.median(by); d > 0 {
			m.b.Logf("%-22s %8.2f", unit, scale*m.median(of)/d)
			m.b.ReportMetric(scale*m.median(of)/d, unit)
		}
	}
	ratio("copy/plain-%", 100, "plain-ms", "copy-ms")
	ratio("loaded-copy/plain-%", 100, "plain-ms", "loaded-copy-ms")
	ratio("p99-copying-ratio", 1, "p99-copying-ms", "p99-before-ms")
	ratio("p99-install-ratio", 1, "p99-install-ms", "p99-before-ms")
}

// saveUnderWrites takes the time of writes before a snapshot is saved and meanwhile.
func (m *snapshotMeasures) saveUnderWrites() {
	w := startPaced(m.b, m.leader)
	w.during(func() { <-time.After(benchBefore) })
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
	m.b.Logf("writes while saving:  %s", summary(saving))
	m.noteTime("save-ms", took)
	m.noteTime("p99-saving-ms", percentile(saving, .99))
}

// installed wipes the follower and waits until it has the leader's snapshot.
func (m *snapshotMeasures) installed() {
	m.follower.wipe()
	settleDisk()
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

// settleDisk lets the disk do what is left to do of what was before.
func settleDisk() {
	_ = exec.Command("sync").Run() // without it the numbers are less good, and not wrong
}

// install takes the time of an install in a group at rest.
func (m *snapshotMeasures) install() {
	waitCaughtUp(m.b, m.procs)
	sender, stop := memoryOf(m.leader), make(chan struct{})
	peak := make(chan int64, 1)
	go func() { peak <- peakMemory(m.leader, stop) }()
	m.installed()
	close(stop)
	if most := <-peak; sender > 0 {
		m.note("sender-MiB", float64(most-sender)/(1<<20))
		m.note("receiver-MiB", float64(m.receiver)/(1<<20))
	}
	_, copied := m.logged("copied a snapshot")
	_, all := m.logged("installed a snapshot")
	m.noteTime("copy-ms", copied)
	m.noteTime("install-ms", all)
}

// installUnderWrites takes the time of writes before an install and meanwhile.
func (m *snapshotMeasures) installUnderWrites() {
	waitCaughtUp(m.b, m.procs)
	w := startPaced(m.b, m.leader)
	before := w.during(func() { <-time.After(benchBefore) })
	during := w.during(m.installed)
	w.close()
	end, took := m.logged("copied a snapshot")
	copying := w.between(end.Add(-took), end)
	m.b.Logf("writes before:        %s", summary(before))
	m.b.Logf("writes while copying: %s", summary(copying))
	m.b.Logf("and until installed:  %s", summary(during))
	m.noteTime("loaded-copy-ms", took)
	m.noteTime("p99-before-ms", percentile(before, .99))
	m.noteTime("p99-copying-ms", percentile(copying, .99))
	m.noteTime("p99-install-ms", percentile(during, .99))
}

// restart takes the time from the start of a process with a snapshot until it answers.
func (m *snapshotMeasures) restart() {
	m.writeBehind()
	waitCaughtUp(m.b, m.procs)
	m.follower.kill()
	start := time.Now()
	m.follower.start()
	waitLong(m.b, "it answers", func() bool { return m.follower.info() != nil })
	m.noteTime("restart-ms", time.Since(start))
	waitCaughtUp(m.b, m.procs)
	_, open := m.logged("opened the log")
	_, apply := m.logged("applied what the log held")
	m.noteTime("restart-open-ms", open)
	m.noteTime("restart-apply-ms", apply)
}

// writeBehind writes benchBehind entries.
func (m *snapshotMeasures) writeBehind() {
	const atOnce = 1000
	c, err := dialClient(m.leader.redis, time.Second)
	require.NoError(m.b, err)
	defer c.close()
	var commands [][]string
	for i := range atOnce {
		commands = append(commands, []string{"SET", "behind-" + strconv.Itoa(i), strings.Repeat("x", 100)})
	}
	for range benchBehind / atOnce {
		answers, err := c.doMany(10*time.Second, commands...)
		require.NoError(m.b, err)
		require.False(m.b, slices.ContainsFunc(answers, func(a any) bool { return a != "OK" }))
	}
}

// logged is when the follower's log says that something was done, the last time, and how long it took.
func (m *snapshotMeasures) logged(what string) (end time.Time, took time.Duration) {
	log, err := os.ReadFile(m.follower.stderr)
	require.NoError(m.b, err)
	all := regexp.MustCompile(`(?m)^(\S+)\s.*`+what+`.*"took": ([0-9.e-]+)`).FindAllSubmatch(log, -1)
	require.NotEmpty(m.b, all, what)
	last := all[len(all)-1]
	end, err = time.Parse("2006-01-02T15:04:05.000Z0700", string(last[1]))
	require.NoError(m.b, err)
	seconds, err := strconv.ParseFloat(string(last[2]), 64)
	require.NoError(m.b, err)
	return end, time.Duration(seconds * float64(time.Second))
}

// plain copies the leader's snapshot over one connection into files that are synced, beside the follower's.
func (m *snapshotMeasures) plain() {
	files, err := filepath.Glob(filepath.Join(m.leader.dir, "*", "*", "snapshot_*", "*"))
	require.NoError(m.b, err)
	require.NotEmpty(m.b, files)
	dir, err := os.MkdirTemp(filepath.Dir(m.follower.dir), "plain")
	require.NoError(m.b, err)
	settleDisk()
	start := time.Now()
	n, err := plainCopy(files, dir)
	m.noteTime("plain-ms", time.Since(start))
	require.NoError(m.b, err)
	require.NoError(m.b, os.RemoveAll(dir))
	m.b.Logf("%s: %.0f ms as a snapshot, %.0f ms as a plain copy", mib(n), m.numbers["copy-ms"][len(m.numbers["copy-ms"])-1],
		m.numbers["plain-ms"][len(m.numbers["plain-ms"])-1])
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
	return w.between(start, time.Now())
}

// between returns, sorted, how long the writes took that were under way in between.
func (w *paced) between(start, end time.Time) (took []time.Duration) {
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
