package graft

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/vfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a state machine that remembers everything.
type recorder struct {
	BaseStateMachine
	mu       sync.Mutex
	entries  []string
	confs    []Configuration
	leading  bool
	failures []error
	shut     bool
	onApply  func(data string) // may panic
	rollback func(data string) error
	misuse   error
}

func (r *recorder) OnApply(it *Iterator) {
	for it.Next() {
		if r.rollback != nil {
			it.Rollback(1, r.rollback(string(it.Data())))
			continue
		}
		if r.onApply != nil {
			r.onApply(string(it.Data()))
		}
		r.mu.Lock()
		r.entries = append(r.entries, string(it.Data()))
		n := len(r.entries)
		r.mu.Unlock()
		it.Return(n)
	}
}

func (r *recorder) OnConfigurationCommitted(c Configuration, _ int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confs = append(r.confs, c)
}

func (r *recorder) OnLeaderStart(int64) { r.lead(true) }
func (r *recorder) OnLeaderStop(error)  { r.lead(false) }

func (r *recorder) lead(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leading == on {
		r.misuse = fmt.Errorf("leading is already %v", on)
	}
	r.leading = on
}

func (r *recorder) OnError(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, err)
}

func (r *recorder) OnShutdown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
}

func (r *recorder) applied() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.entries...)
}

func (r *recorder) errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]error(nil), r.failures...)
}

// cluster is a group of real hosts over loopback, with their disks in memory or in a directory.
type cluster struct {
	t     testing.TB
	addrs []string
	conf  Configuration
	disks []*vfs.Mem
	hosts []*Host
	nodes []*Node
	fsms  []*recorder
	dir   string
	opts  NodeOptions
}

func freeAddrs(t testing.TB, n int) []string {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs
}

func newTestCluster(t testing.TB, n int, opts NodeOptions) *cluster {
	c := &cluster{t: t, addrs: freeAddrs(t, n), opts: opts}
	var peers []PeerID
	for _, a := range c.addrs {
		peers = append(peers, PeerID{Address: a})
	}
	var err error
	c.conf, err = NewConfiguration(peers...)
	require.NoError(t, err)
	c.hosts, c.nodes, c.fsms = make([]*Host, n), make([]*Node, n), make([]*recorder, n)
	for range n {
		c.disks = append(c.disks, vfs.NewMem())
	}
	t.Cleanup(c.close)
	return c
}

func (c *cluster) start(i int) {
	g := actor.NewGoroutines()
	e := &env.Env{Exec: g, FS: c.disks[i], Rand: env.Default().Rand, Close: g.Close}
	e.WAL.SegmentSize = 256 << 10
	e.WAL.Retry = 10 * time.Millisecond
	dir := "/data"
	if c.dir != "" {
		e.FS, dir = vfs.OS{}, filepath.Join(c.dir, fmt.Sprint(i))
		require.NoError(c.t, os.MkdirAll(dir, 0o755))
	}
	h, err := NewHost(HostOptions{Address: c.addrs[i], Dir: dir, Env: e})
	require.NoError(c.t, err)
	c.hosts[i], c.fsms[i] = h, &recorder{}
	o := c.opts
	o.StateMachine, o.InitialConf = c.fsms[i], c.conf
	if o.ElectionTimeout == 0 {
		o.ElectionTimeout = 200 * time.Millisecond
	}
	c.nodes[i], err = h.StartNode("g", o)
	require.NoError(c.t, err)
}

func (c *cluster) startAll() {
	for i := range c.addrs {
		c.start(i)
	}
	// Until it has heard what is committed, a replica that began with nothing does not
	// vote freely: a group just set up survives the loss of a member only from then on.
	c.eventually(func() bool {
		for _, n := range c.nodes {
			if n.Status().Waiting {
				return false
			}
		}
		return true
	}, "a replica still waits")
}

func (c *cluster) stop(i int) {
	if c.hosts[i] != nil {
		_ = c.hosts[i].Close() // a broken disk makes it fail, which some tests want
		require.NoError(c.t, c.fsms[i].misuse)
		c.hosts[i] = nil
	}
}

func (c *cluster) close() {
	for i := range c.hosts {
		c.stop(i)
	}
}

// leader waits for a leader among the running nodes.
func (c *cluster) leader() int {
	found := -1
	c.eventually(func() bool {
		for i, n := range c.nodes {
			if c.hosts[i] != nil && n.IsLeader() {
				found = i
				return true
			}
		}
		return false
	}, "no leader")
	return found
}

func (c *cluster) eventually(cond func() bool, what string) {
	c.t.Helper()
	require.Eventually(c.t, cond, 20*time.Second, 2*time.Millisecond, what)
}

// propose proposes until somebody takes it.
func (c *cluster) propose(data string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		_, err := c.nodes[c.leader()].Propose(ctx, []byte(data))
		if err == nil {
			return
		}
		if ErrorCode(err) == ErrUnknownOutcome {
			require.NoError(c.t, err)
		}
	}
	require.NoError(c.t, ctx.Err())
}
