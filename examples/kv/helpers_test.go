package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// buildDir is where builtOnce puts the program.
var buildDir string

func TestMain(m *testing.M) {
	redis.SetLogger(silent{})
	dir, err := os.MkdirTemp("", "kv-test-")
	if err != nil {
		panic(err)
	}
	buildDir = dir
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

// silent keeps go-redis from reporting that replicas are down, which the tests see to.
type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

// freeAddresses returns loopback addresses that nobody listens on.
func freeAddresses(t *testing.T, n int) []string {
	t.Helper()
	addrs, err := freeLoopback("127.0.0.1", n)
	require.NoError(t, err)
	return addrs
}

// ownHost is a loopback host that no other test has, where there is more than one. So nobody takes the addresses of replicas
// that are down for a while.
func ownHost() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}

// groupTimeout is the election timeout of groups in this process: no stall of the machine is to cost a leader its office, nor to
// have a change fail because a new member makes no progress. That none leads costs little for all that: at the first start
// an election comes within a fifth of it, and who hears that the leader's connections break does not wait.
const groupTimeout = 10 * time.Second

// testGroup is a group of replicas in this process.
type testGroup struct {
	t        *testing.T
	cfgs     []replicaConfig
	replicas []*replica // nil: not running
}

// newTestGroup makes a group of n and starts the first running of them.
func newTestGroup(t *testing.T, n, running int) *testGroup {
	t.Helper()
	addrs := freeAddresses(t, 2*n)
	peers, err := graft.ParseConfiguration(strings.Join(addrs[:n], ","))
	require.NoError(t, err)
	g := &testGroup{t: t, replicas: make([]*replica, n)}
	dir := t.TempDir()
	for i := range n {
		g.cfgs = append(g.cfgs, replicaConfig{
			raft: addrs[i], redis: addrs[n+i], dir: filepath.Join(dir, strconv.Itoa(i)), group: "kv", peers: peers,
			electionTimeout: groupTimeout, log: zap.NewNop(),
		})
	}
	t.Cleanup(func() {
		for i := range g.replicas {
			g.stop(i)
		}
	})
	for i := range running {
		g.start(i)
	}
	return g
}

func (g *testGroup) start(i int) {
	g.t.Helper()
	r, err := startReplica(g.cfgs[i])
	require.NoError(g.t, err)
	g.replicas[i] = r
}

func (g *testGroup) stop(i int) {
	if r := g.replicas[i]; r != nil {
		g.replicas[i] = nil
		if err := r.Close(); err != nil {
			g.t.Errorf("replica %d: close: %v", i, err)
		}
	}
}

// waitLeader returns the leader once every running replica knows it and its redis address, and it knows theirs.
func (g *testGroup) waitLeader() (leader int) {
	g.t.Helper()
	waitFor(g.t, "a leader that all know", func() bool {
		leader = -1
		for i, r := range g.replicas {
			if r != nil && r.node.IsLeader() {
				leader = i
			}
		}
		if leader < 0 {
			return false
		}
		for _, r := range g.replicas {
			if r == nil {
				continue
			}
			if !r.node.LeaderID().Same(g.replicas[leader].self) {
				return false
			}
			for i, o := range g.replicas {
				if o != nil && r.machine.redisAddr(g.cfgs[i].raft) != g.cfgs[i].redis {
					return false
				}
			}
		}
		return true
	})
	return leader
}

// clusterClient is a go-redis client that knows all replicas.
func (g *testGroup) clusterClient(redirects int) *redis.ClusterClient {
	var addrs []string
	for _, cfg := range g.cfgs {
		addrs = append(addrs, cfg.redis)
	}
	c := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addrs, MaxRedirects: redirects, MaxRetryBackoff: 100 * time.Millisecond,
		ReadTimeout: time.Minute, WriteTimeout: time.Minute})
	g.t.Cleanup(func() { c.Close() })
	return c
}

// waitFor polls until ok, for a minute.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	again, over := time.NewTicker(5*time.Millisecond), time.NewTimer(time.Minute)
	defer again.Stop()
	defer over.Stop()
	for !ok() {
		select {
		case <-again.C:
		case <-over.C:
			t.Fatalf("still not: %s", what)
		}
	}
}

// rawLimit is how long one call of a rawConn may take.
const rawLimit = time.Minute

// rawConn speaks the protocol byte by byte.
type rawConn struct {
	t    *testing.T
	conn net.Conn
	rd   *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *rawConn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return &rawConn{t, conn, bufio.NewReader(conn)}
}

func (c *rawConn) send(commands ...string) {
	c.t.Helper()
	var b []byte
	for _, cmd := range commands {
		b = appendTexts(b, strings.Fields(cmd)...)
	}
	require.NoError(c.t, c.conn.SetWriteDeadline(time.Now().Add(rawLimit)))
	_, err := c.conn.Write(b)
	require.NoError(c.t, err)
}

// recv reads one answer and shows it without line ends: "+OK", ":1", "$abc", "*[$a,_]".
func (c *rawConn) recv() string {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(rawLimit)))
	s, err := c.read()
	require.NoError(c.t, err)
	return s
}

func (c *rawConn) read() (string, error) {
	line, err := c.rd.ReadString('\n')
	if err != nil {
		return "", err
	}
	line = strings.TrimSuffix(line, "\r\n")
	n, _ := strconv.Atoi(line[1:])
	switch line[0] {
	case '$':
		if n < 0 {
			return "$null", nil
		}
		b := make([]byte, n+2)
		_, err := io.ReadFull(c.rd, b)
		return "$" + string(b[:n]), err
	case '*', '%':
		if line[0] == '%' {
			n *= 2
		}
		var items []string
		for range n {
			item, err := c.read()
			if err != nil {
				return "", err
			}
			items = append(items, item)
		}
		return fmt.Sprintf("%c[%s]", line[0], strings.Join(items, ",")), nil
	}
	return line, nil
}

// do sends one command and returns its answer.
func (c *rawConn) do(cmd string) string {
	c.t.Helper()
	c.send(cmd)
	return c.recv()
}

// retry is do, again and again while the answer says that nothing was done: a busy machine can make replicas lose each
// other for a moment.
func (c *rawConn) retry(cmd string) (answer string) {
	c.t.Helper()
	waitFor(c.t, cmd, func() bool {
		answer = c.do(cmd)
		return !busy(answer)
	})
	return answer
}

// busy reports whether an answer says that nothing was done for the moment.
func busy(answer string) bool {
	return strings.HasPrefix(answer, "-CLUSTERDOWN ") || strings.HasPrefix(answer, "-BUSY ")
}

// idempotent reports whether a command may be said again although it may have been carried out: it does and says the same.
func idempotent(cmd string) bool {
	cmd = strings.ToLower(cmd)
	return slices.ContainsFunc([]string{"mset ", "raft add ", "raft remove ", "raft change "}, func(p string) bool { return strings.HasPrefix(cmd, p) }) &&
		!strings.Contains(cmd, " expected ")
}

// do says something to the leader, whoever that is, until it is not refused for the moment. What may be said again is, also when it
// is unknown whether it was done.
func (g *testGroup) do(cmd string) (answer string) {
	g.t.Helper()
	waitFor(g.t, cmd, func() bool {
		i := g.leader()
		if i < 0 {
			return false
		}
		answer = dialRaw(g.t, g.cfgs[i].redis).do(cmd)
		unknown := strings.HasPrefix(answer, "-UNKNOWN ")
		return !busy(answer) && !strings.HasPrefix(answer, "-MOVED ") && !(unknown && idempotent(cmd))
	})
	return answer
}

// infoRaftOf asks a replica for the Raft section of INFO.
func infoRaftOf(ctx context.Context, c *redis.Client) (map[string]string, error) {
	text, err := c.Info(ctx, "raft").Result()
	if err != nil {
		return nil, err
	}
	return parseInfo(text), nil
}
