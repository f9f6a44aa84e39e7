package graft_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/graft-raft/graft"
)

// counter adds up the lengths of what is proposed.
type counter struct {
	graft.BaseStateMachine
	sum     atomic.Int64
	leads   func()
	follows func()
}

func (c *counter) OnLeaderStart(int64)                   { c.leads() }
func (c *counter) OnStartFollowing(_ graft.LeaderChange) { c.follows() }

func (c *counter) OnApply(it *graft.Iterator) {
	for it.Next() {
		it.Return(c.sum.Add(int64(len(it.Data()))))
	}
}

// loopback is a host on this machine that nobody else has, where there is more than one.
var loopback = func() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
}()

// freeAddress returns an address on this machine that nobody uses.
func freeAddress() string {
	l, err := net.Listen("tcp", loopback+":0")
	if err != nil {
		panic(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A replicated state machine in one screen: one process, one replica, in memory.
func Example() {
	address := freeAddress()
	host, err := graft.NewHost(graft.HostOptions{Address: address}) // Dir: where the log is kept
	if err != nil {
		fmt.Println(err)
		return
	}
	defer host.Close()

	leads := make(chan struct{})
	node, err := host.StartNode("counters", graft.NodeOptions{
		StateMachine: &counter{leads: sync.OnceFunc(func() { close(leads) })},
		InitialConf:  graft.MustParseConfiguration(address),
	})
	if err != nil {
		fmt.Println(err)
		return
	}

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	<-leads
	for _, word := range []string{"to", "be", "or"} {
		sum, err := node.Propose(ctx, []byte(word))
		fmt.Println(sum, err)
	}
	// Output:
	// 2 <nil>
	// 4 <nil>
	// 6 <nil>
}

// group is three replicas in one process; usually each has a process of its own.
type group struct {
	hosts []*graft.Host
	nodes []*graft.Node
	fsms  []*counter
	led   chan struct{}  // has room for one: somebody began to lead
	lost  sync.WaitGroup // those that neither lead nor follow yet
}

func startGroup(addresses ...string) *group {
	g := &group{led: make(chan struct{}, 1)}
	conf := graft.Configuration{}
	for _, a := range addresses {
		peers := append(conf.Peers(), graft.MustParsePeerID(a))
		conf, _ = graft.NewConfiguration(peers...)
	}
	for _, a := range addresses {
		g.start(a, conf)
	}
	return g
}

func (g *group) start(address string, conf graft.Configuration) {
	host, err := graft.NewHost(graft.HostOptions{Address: address})
	if err != nil {
		panic(err)
	}
	g.lost.Add(1)
	found := sync.OnceFunc(g.lost.Done)
	fsm := &counter{follows: found, leads: func() {
		found()
		select {
		case g.led <- struct{}{}:
		default:
		}
	}}
	node, err := host.StartNode("counters", graft.NodeOptions{
		StateMachine: fsm, InitialConf: conf,
		ElectionTimeout: 10 * time.Second, CatchupTimeout: 30 * time.Second, // for a machine that is very busy
	})
	if err != nil {
		panic(err)
	}
	g.hosts, g.nodes, g.fsms = append(g.hosts, host), append(g.nodes, node), append(g.fsms, fsm)
}

func (g *group) close() {
	for _, h := range g.hosts {
		h.Close()
	}
}

// leader waits until a replica begins to lead.
func (g *group) leader() *graft.Node {
	for {
		<-g.led
		for _, n := range g.nodes {
			if n.IsLeader() {
				return n
			}
		}
	}
}

// Three replicas: the leader takes proposals, and a read after ReadIndex sees all that was acknowledged, on any
// replica.
func Example_threeNodes() {
	g := startGroup(freeAddress(), freeAddress(), freeAddress())
	defer g.close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	sum, err := g.leader().Propose(ctx, []byte("hello"))
	fmt.Println(sum, err)
	g.lost.Wait() // a replica that has just started may not know whom to ask yet
	for i, n := range g.nodes {
		if _, err := n.ReadIndex(ctx); err != nil {
			fmt.Println(err)
		}
		fmt.Println("replica", i, "has", g.fsms[i].sum.Load())
	}
	// Output:
	// 5 <nil>
	// replica 0 has 5
	// replica 1 has 5
	// replica 2 has 5
}

// Apply proposes without waiting; Done runs exactly once, whatever happens.
func ExampleNode_Apply() {
	g := startGroup(freeAddress())
	defer g.close()
	leader := g.leader()

	var wg sync.WaitGroup
	for _, word := range []string{"one", "two", "three"} {
		wg.Add(1)
		leader.Apply(graft.Task{Data: []byte(word), Done: func(result any, err error) {
			defer wg.Done()
			switch graft.ErrorCode(err) {
			case 0:
				fmt.Println("applied:", result)
			case graft.ErrUnknownOutcome:
				fmt.Println("may have happened, or may yet happen:", err)
			default:
				fmt.Println("did not happen:", err)
			}
		}})
	}
	wg.Wait()
	// Output:
	// applied: 3
	// applied: 6
	// applied: 11
}

// A group grows while it runs: the new replica starts without a configuration, copies the log, and
// counts once it is near its end.
func ExampleNode_AddPeer() {
	first, second := freeAddress(), freeAddress()
	g := startGroup(first)
	defer g.close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	leader := g.leader()
	if _, err := leader.Propose(ctx, []byte("before")); err != nil {
		fmt.Println(err)
	}

	g.start(second, graft.Configuration{})
	err := graft.Await(ctx, func(done graft.Closure) {
		leader.AddPeer(graft.MustParsePeerID(second), done)
	})
	peers, _ := leader.ListPeers()
	fmt.Println(len(peers), "peers", err)

	_, err = g.nodes[1].ReadIndex(ctx)
	fmt.Println("the new one has", g.fsms[1].sum.Load(), err)
	// Output:
	// 2 peers <nil>
	// the new one has 6 <nil>
}

// ledger is a state machine that keeps what it has applied itself. Here db stands for its database, in which state and
// index change together.
type ledger struct {
	graft.BaseStateMachine // a real one has snapshots as well, for replicas that join
	db                     *database
	leads                  chan struct{}
}

func (l *ledger) OnLeaderStart(int64) { close(l.leads) }

type database struct {
	mu    sync.Mutex
	sum   int
	index int64
}

func (l *ledger) OnApply(it *graft.Iterator) {
	l.db.mu.Lock()
	defer l.db.mu.Unlock()
	for it.Next() {
		l.db.sum, l.db.index = l.db.sum+len(it.Data()), it.Index()
		it.Return(l.db.sum)
	}
}

func (l *ledger) DurableIndex() (int64, error) {
	l.db.mu.Lock()
	defer l.db.mu.Unlock()
	return l.db.index, nil
}

// A state machine with a DurableIndex is not given again what it holds: the second replica process goes on where the first
// one ended.
func ExampleDurableStateMachine() {
	address, db := freeAddress(), new(database)
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	for _, word := range []string{"hello", "again"} {
		host, err := graft.NewHost(graft.HostOptions{Address: address, Dir: dir})
		if err != nil {
			fmt.Println(err)
			return
		}
		leads := make(chan struct{})
		node, err := host.StartNode("ledger", graft.NodeOptions{
			StateMachine: &ledger{db: db, leads: leads}, InitialConf: graft.MustParseConfiguration(address),
		})
		if err != nil {
			fmt.Println(err)
			return
		}
		<-leads
		sum, err := node.Propose(context.Background(), []byte(word))
		fmt.Println(sum, err)
		if err := host.Close(); err != nil {
			fmt.Println(err)
		}
	}
	// Output:
	// 5 <nil>
	// 10 <nil>
}
