package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// buildKV builds the program and returns where it is.
func buildKV(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "kv")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, "%s", out)
	return binary
}

// process is one kv serve.
type process struct {
	t      *testing.T
	binary string
	args   []string
	raft   string
	redis  string
	stderr string // the file it writes to
	client *redis.Client
	cmd    *exec.Cmd // nil: not running
}

// newProcesses prepares a group of three processes, and starts none.
func newProcesses(t *testing.T, electionTimeout time.Duration) []*process {
	t.Helper()
	binary, addrs, dir := buildKV(t), freeAddresses(t, 6), t.TempDir()
	var procs []*process
	for i := range 3 {
		p := &process{t: t, binary: binary, raft: addrs[i], redis: addrs[3+i], stderr: filepath.Join(dir, strconv.Itoa(i)+".log")}
		p.args = []string{"serve", "-raft", p.raft, "-redis", p.redis, "-dir", filepath.Join(dir, strconv.Itoa(i)),
			"-peers", strings.Join(addrs[:3], ","), "-election-timeout", electionTimeout.String()}
		p.client = newPlainClient(t, p.redis)
		procs = append(procs, p)
		t.Cleanup(func() {
			p.kill()
			if t.Failed() {
				p.tail()
			}
		})
	}
	return procs
}

// newPlainClient is a client that says what happened and does nothing on its own account: it follows no MOVED and
// repeats nothing.
func newPlainClient(t *testing.T, addr string) *redis.Client {
	c := redis.NewClient(&redis.Options{
		Addr: addr, MaxRetries: -1, DialTimeout: 200 * time.Millisecond, DialerRetries: 1, DialerRetryTimeout: time.Millisecond,
		ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second, PoolSize: 64, ContextTimeoutEnabled: true,
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func (p *process) start() {
	p.t.Helper()
	log, err := os.OpenFile(p.stderr, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	require.NoError(p.t, err)
	defer log.Close()
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Stderr = log
	require.NoError(p.t, p.cmd.Start())
}

// kill ends the process as a crash would: kill -9.
func (p *process) kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
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
		{"bad port", []string{"serve", "-raft", addrs[0], "-redis", "127.0.0.1:99999", "-dir", dir}, "-redis is \"127.0.0.1:99999\""},
		{"bad timeout", good("-election-timeout", "1ms"), "-election-timeout is 1ms"},
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
		{"directory is a file", []string{"serve", "-raft", addrs[0], "-redis", addrs[1], "-dir", binary}, "not a directory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
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
		for _, p := range procs {
			require.NoError(t, p.cmd.Process.Signal(signal))
			assert.NoError(t, p.cmd.Wait(), "%v", signal)
			p.cmd = nil
		}
	}
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
