package bench

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// counter is the cheapest state machine.
type counter struct {
	graft.BaseStateMachine
	entries atomic.Int64
	news    chan struct{} // gets something when a replica begins to lead or to follow, unless it is full
}

func (c *counter) OnLeaderStart(int64)                 { c.tell() }
func (c *counter) OnStartFollowing(graft.LeaderChange) { c.tell() }

func (c *counter) tell() {
	select {
	case c.news <- struct{}{}:
	default:
	}
}

func (c *counter) OnApply(it *graft.Iterator) {
	n := int64(0)
	for it.Next() {
		n++
	}
	c.entries.Add(n)
}

// cluster is three replicas in this process: real sockets, real disks, real syncs.
type cluster struct {
	b     *testing.B
	dirs  []string
	addrs []string
	hosts []*graft.Host
	trans []graft.Transport
	nodes []*graft.Node
	fsms  []*counter
	news  chan struct{}
}

func newCluster(b *testing.B) *cluster {
	b.Helper()
	c := &cluster{b: b, hosts: make([]*graft.Host, 3), nodes: make([]*graft.Node, 3),
		fsms: make([]*counter, 3), trans: make([]graft.Transport, 3), news: make(chan struct{}, 1)}
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		defer l.Close()
		c.addrs = append(c.addrs, l.Addr().String())
		c.dirs = append(c.dirs, b.TempDir())
	}
	b.Cleanup(c.close)
	return c
}

func (c *cluster) conf() graft.Configuration {
	return graft.MustParseConfiguration(c.addrs[0] + "," + c.addrs[1] + "," + c.addrs[2])
}

func (c *cluster) start(i int) {
	c.b.Helper()
	c.trans[i] = graft.NewTCPTransport(nil)
	host, err := graft.NewHost(graft.HostOptions{Address: c.addrs[i], Dir: c.dirs[i], Transport: c.trans[i]})
	if err != nil {
		c.b.Fatal(err)
	}
	c.hosts[i], c.fsms[i] = host, &counter{news: c.news}
	c.nodes[i], err = host.StartNode("bench", graft.NodeOptions{StateMachine: c.fsms[i], InitialConf: c.conf()})
	if err != nil {
		c.b.Fatal(err)
	}
}

func (c *cluster) startAll() {
	for i := range c.addrs {
		c.start(i)
	}
	c.leader()
}

func (c *cluster) stop(i int) {
	if c.hosts[i] == nil {
		return
	}
	if err := c.hosts[i].Close(); err != nil {
		c.b.Error(err)
	}
	c.hosts[i], c.nodes[i] = nil, nil
}

func (c *cluster) close() {
	for i := range c.hosts {
		c.stop(i)
	}
}

// leader waits for a leader that takes proposals.
func (c *cluster) leader() int {
	c.b.Helper()
	for late := time.After(time.Minute); ; {
		for i, n := range c.nodes {
			if n == nil || !n.IsLeader() {
				continue
			}
			if _, err := n.Propose(context.Background(), []byte("warm")); err == nil {
				return i
			}
		}
		c.await(late)
	}
}

// await waits until some replica begins to lead or to follow.
func (c *cluster) await(late <-chan time.Time) {
	c.b.Helper()
	select {
	case <-c.news:
	case <-late:
		c.b.Fatal("no leader")
	}
}

// settle waits until all replicas know what was written.
func (c *cluster) settle() {
	c.b.Helper()
	late := time.After(time.Minute)
	for _, n := range c.nodes {
		for n != nil {
			if _, err := n.ReadIndex(context.Background()); err == nil {
				break
			}
			c.await(late)
		}
	}
}

func name(c, payload int) string { return fmt.Sprintf("c=%d/payload=%d", c, payload) }
