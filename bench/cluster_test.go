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
}

func newCluster(b *testing.B) *cluster {
	b.Helper()
	c := &cluster{b: b, hosts: make([]*graft.Host, 3), nodes: make([]*graft.Node, 3),
		fsms: make([]*counter, 3), trans: make([]graft.Transport, 3)}
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
	c.hosts[i], c.fsms[i] = host, &counter{}
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
	for start := time.Now(); time.Since(start) < time.Minute; {
		for i, n := range c.nodes {
			if n == nil || !n.IsLeader() {
				continue
			}
			if _, err := n.Propose(context.Background(), []byte("warm")); err == nil {
				return i
			}
		}
		time.Sleep(time.Millisecond) // a benchmark runs in real time
	}
	c.b.Fatal("no leader")
	return -1
}

func name(c, payload int) string { return fmt.Sprintf("c=%d/payload=%d", c, payload) }
