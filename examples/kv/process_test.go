package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// builtOnce is the program, for all tests, in a directory that TestMain makes and removes.
var builtOnce = sync.OnceValues(func() (binary string, err error) {
	binary = filepath.Join(buildDir, "kv")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

// buildKV builds the program, unless it was built before, and returns where it is.
func buildKV(t testing.TB) string {
	t.Helper()
	binary, err := builtOnce()
	require.NoError(t, err)
	return binary
}

// process is one kv serve.
type process struct {
	t      testing.TB
	binary string
	args   []string
	raft   string
	redis  string
	dir    string
	peers  string // what it is started with; empty: it waits to be added
	stderr string // the file it writes to
	client *redis.Client
	reader *redis.Client // has said READONLY: it reads here, whoever leads
	cmd    *exec.Cmd     // nil: not running
	pid    atomic.Int64  // 0: not running; for those who look on
	stdin  io.Closer     // the process ends with it, so it does not outlive the test

	tracer []string                  // what to run the program under, if anything
	launch func(cmd *exec.Cmd) error // how to start it; nil: just so
}

// newProcesses prepares a group of three processes, and starts none.
func newProcesses(t testing.TB, electionTimeout time.Duration) []*process {
	return newProcessesAndJoiners(t, electionTimeout, 3, 0)
}

// newProcessesAndJoiners prepares processes that start a group and others that wait to be added to it.
func newProcessesAndJoiners(t testing.TB, electionTimeout time.Duration, founders, joiners int) []*process {
	t.Helper()
	n := founders + joiners
	dir := t.TempDir()
	addrs, err := freeLoopback(ownHost(), 2*n)
	require.NoError(t, err)
	var procs []*process
	for i := range n {
		p := newProcess(t, filepath.Join(dir, strconv.Itoa(i)), addrs[i], addrs[n+i], electionTimeout, nil)
		if i < founders {
			p.peers = strings.Join(addrs[:founders], ",")
		}
		procs = append(procs, p)
	}
	return procs
}

// dialFunc is how clients reach a process.
type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// newProcess prepares one process. It is killed when the test ends.
func newProcess(t testing.TB, dir, raft, redis string, electionTimeout time.Duration, dial dialFunc) *process {
	t.Helper()
	p := &process{t: t, binary: buildKV(t), raft: raft, redis: redis, dir: dir, stderr: dir + ".log"}
	p.args = []string{"serve", "-raft", raft, "-redis", redis, "-dir", dir, "-election-timeout", electionTimeout.String(), "-until-eof",
		"-snapshot-entries", "2000", "-snapshot-margin", "500"} // so often that whoever is away for a while, or is added, needs one
	p.client, p.reader = newPlainClient(t, redis, dial, false), newPlainClient(t, redis, dial, true)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			p.tail()
		}
	})
	return p
}

// newPlainClient is a client that says what happened and does nothing on its own account: it follows no MOVED and
// repeats nothing. It says READONLY first if it is to.
func newPlainClient(t testing.TB, addr string, dial dialFunc, readonly bool) *redis.Client {
	o := &redis.Options{
		Addr: addr, MaxRetries: -1, DialTimeout: 200 * time.Millisecond, DialerRetries: 1, DialerRetryTimeout: time.Millisecond,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, PoolSize: 64, ContextTimeoutEnabled: true, Dialer: dial,
	}
	if readonly {
		o.OnConnect = func(ctx context.Context, conn *redis.Conn) error { return conn.ReadOnly(ctx).Err() }
	}
	c := redis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.stderr, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(p.t, err)
	defer log.Close()
	line := slices.Concat(p.tracer, []string{p.binary}, p.args, []string{"-peers", p.peers})
	p.cmd = exec.Command(line[0], line[1:]...)
	p.cmd.Stderr = log
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(p.t, err)
	launch := p.launch
	if launch == nil {
		launch = (*exec.Cmd).Start
	}
	require.NoError(p.t, launch(p.cmd))
	p.pid.Store(int64(p.cmd.Process.Pid))
}

// kill ends the process as a crash would: kill -9.
func (p *process) kill() {
	if p.cmd != nil {
		p.pid.Store(0)
		p.cmd.Process.Kill()
		p.stdin.Close()
		p.cmd.Wait()
		p.cmd = nil
	}
}

// wipe kills the process and removes what it stored. Started again it waits to be added.
func (p *process) wipe() {
	p.t.Helper()
	p.kill()
	require.NoError(p.t, os.RemoveAll(p.dir))
	p.peers = ""
}

// tail shows the end of what the process said.
func (p *process) tail() {
	b, err := os.ReadFile(p.stderr)
	if err != nil {
		return
	}
	p.t.Logf("%s, %s:\n%s", p.raft, p.redis, b[max(0, len(b)-4000):])
}

// info returns the Raft section of INFO, nil if the process does not answer.
func (p *process) info() map[string]string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	info, err := infoRaftOf(ctx, p.client)
	if err != nil {
		return nil
	}
	return info
}

// Every mistake costs one clear line and exit status 1.
func TestMistakesAreReportedInOneLine(t *testing.T) {
	binary, addrs, dir := buildKV(t), freeAddresses(t, 4), t.TempDir()
	g := newTestGroup(t, 1, 1)
	used := g.cfgs[0]
	good := func(more ...string) []string {
		return append([]string{"serve", "-raft", addrs[0], "-redis", addrs[1], "-dir", dir}, more...)
	}
	g2 := newTestGroup(t, 1, 1) // its directory is another node's, and free again
	g2.stop(0)
	other := g2.cfgs[0].dir
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"no such command", []string{"sevre"}, `unknown command "sevre"`},
		{"no such flag", good("-foo"), "flag provided but not defined: -foo"},
		{"stray argument", good("foo"), `unexpected argument "foo"`},
		{"no raft", []string{"serve", "-redis", addrs[1], "-dir", dir}, "-raft is missing"},
		{"no redis", []string{"serve", "-raft", addrs[0], "-dir", dir}, "-redis is missing"},
		{"no dir", []string{"serve", "-raft", addrs[0], "-redis", addrs[1]}, "-dir is missing"},
		{"raft without port", []string{"serve", "-raft", "localhost", "-redis", addrs[1], "-dir", dir}, "-raft: address localhost: missing port"},
		{"bad port to bind", good("-raft-listen", "localhost"), "-raft-listen: address localhost: missing port"},
		{"bad port", []string{"serve", "-raft", addrs[0], "-redis", "127.0.0.1:99999", "-dir", dir}, "-redis is \"127.0.0.1:99999\""},
		{"bad timeout", good("-election-timeout", "1ms"), "-election-timeout is 1ms"},
		{"no interval", good("-snapshot-interval", "-1s"), "-snapshot-interval is -1s, must not be negative"},
		{"no number of entries", good("-snapshot-entries", "-1"), "-snapshot-entries is -1"},
		{"no number of bytes", good("-snapshot-bytes", "-1"), "-snapshot-bytes is -1"},
		{"no margin", good("-snapshot-margin", "-1"), "-snapshot-margin is -1"},
		{"no rate", good("-snapshot-rate", "-1"), "-snapshot-rate is -1"},
		{"no duration", good("-election-timeout", "x"), "-election-timeout"},
		{"bad level", good("-log-level", "loud"), "-log-level"},
		{"bad peers", good("-peers", "nonsense"), "-peers"},
		{"not among the peers", good("-peers", addrs[2]), "is not among"},
		{"half of TLS", good("-tls-cert", "x"), "must be given together"},
		{"no certificate", good("-tls-cert", "x", "-tls-key", "y", "-tls-ca", "z"), "-tls-cert"},
		{"busy redis port", []string{"serve", "-raft", addrs[0], "-redis", used.redis, "-dir", dir}, "address already in use"},
		{"busy raft port", []string{"serve", "-raft", used.raft, "-redis", addrs[1], "-dir", dir}, "address already in use"},
		{"directory in use", []string{"serve", "-raft", used.raft, "-redis", addrs[1], "-dir", used.dir}, "in use"},
		{"directory of another node", []string{"serve", "-raft", addrs[0], "-redis", addrs[1], "-dir", other}, "belongs to"},
		{"tour with two members", []string{"tour", "-members", "2"}, "-members is 2, must be 1 or 3"},
		{"tour without writers", []string{"tour", "-writers", "0"}, "-writers is 0"},
		{"tour with a stray argument", []string{"tour", "foo"}, `unexpected argument "foo"`},
		{"directory is a file", []string{"serve", "-raft", addrs[0], "-redis", addrs[1], "-dir", binary}, "not a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, binary, test.args...)
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			assert.Error(t, err)
			assert.Equal(t, 1, cmd.ProcessState.ExitCode(), "%s", stderr.String())
			assert.Empty(t, stdout.String())
			assert.Equal(t, 1, strings.Count(stderr.String(), "\n"), "%s", stderr.String())
			assert.True(t, strings.HasPrefix(stderr.String(), "kv: "), stderr.String())
			assert.Contains(t, stderr.String(), test.want)
		})
	}
}

func TestSignalsEndAReplicaCleanly(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		procs := newProcesses(t, 300*time.Millisecond)
		for _, p := range procs {
			p.start()
		}
		waitFor(t, "a leader", func() bool { return leaderOf(procs) != nil })
		for _, p := range procs { // one that has just begun may not know yet what to do at a signal
			waitFor(t, p.raft+" answers", func() bool { return p.info() != nil })
		}
		for _, p := range procs {
			require.NoError(t, p.cmd.Process.Signal(signal))
			assert.NoError(t, p.cmd.Wait(), "%v", signal)
			p.cmd = nil
		}
	}
}

func TestAReplicaEndsWithItsStarter(t *testing.T) {
	p := newProcessesAndJoiners(t, 300*time.Millisecond, 0, 1)[0]
	p.start()
	waitFor(t, "it answers", func() bool { return p.info() != nil })
	require.NoError(t, p.stdin.Close())
	assert.NoError(t, p.cmd.Wait())
	p.cmd = nil
	log, err := os.ReadFile(p.stderr)
	require.NoError(t, err)
	assert.Contains(t, string(log), "this replica is no member of a group yet: it waits to be added")
}

// leaderOf returns the process that leads, nil if there is none.
func leaderOf(procs []*process) *process {
	for _, p := range procs {
		if p.cmd != nil && p.info()["raft_role"] == "leader" {
			return p
		}
	}
	return nil
}
