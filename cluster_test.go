package graft

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/vfs"
)

func TestMain(m *testing.M) {
	flag.Parse()
	// Tests that may run side by side wait most of the time, for elections and the like.
	if p := flag.Lookup("test.parallel"); p.Value.String() == p.DefValue {
		_ = p.Value.Set(strconv.Itoa(2 * runtime.GOMAXPROCS(0)))
	}
	goleak.VerifyTestMain(m)
}

// cluster is a group of real hosts over loopback, with their disks in memory or in a directory. The
// first members of them start with the configuration conf; the others start with none, and wait to be added.
type cluster struct {
	t        testing.TB
	addrs    []string
	members  int
	conf     Configuration
	net      faults
	disks    []*vfs.Mem
	ports    []*faultyTransport
	hosts    []*Host
	nodes    []*Node
	fsms     []*recorder
	dir      string
	opts     NodeOptions
	onApply  func(host int, data string) // of all state machines; nil: nothing
	prepare  func(host int, r *recorder) // what else a new state machine is to be; nil: nothing
	throttle SnapshotThrottle
	machine  func(host int, r *recorder) StateMachine // what is around the recorder; nil: nothing

	mu    sync.Mutex
	calls []*pending
}

// ms is a millisecond of what tests wait for; it takes longer where everything does.
const ms = slowness * time.Millisecond

// patient is an election timeout that outlasts the stalls of a busy machine: nobody loses his office, or the thread, for one.
const patient = 10 * time.Second

// ownHost is a loopback host that no other process of tests has, where there is more than one: nobody else takes the addresses of
// hosts that are down for a while.
var ownHost = sync.OnceValue(func() string {
	if runtime.GOOS != "linux" {
		return "127.0.0.1"
	}
	return fmt.Sprintf("127.%d.%d.%d", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254))
})

// ports keeps tests that run at the same time from taking the same port.
var ports struct {
	sync.Mutex
	taken map[int]bool
}

// freeAddrs returns loopback addresses that nobody listens on, outside the range that the kernel takes for
// outgoing connections, so that they are still free when a host is started again.
func freeAddrs(t testing.TB, n int) (addrs []string) {
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = make(map[int]bool)
	}
	for range 10_000 {
		if len(addrs) == n {
			return addrs
		}
		port := 15_000 + rand.IntN(17_000)
		addr := ownHost() + ":" + strconv.Itoa(port)
		if ports.taken[port] {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		require.NoError(t, l.Close())
		ports.taken[port] = true
		addrs = append(addrs, addr)
	}
	t.Fatal("no free ports")
	return nil
}

// newTestCluster makes a group of n hosts, all of them members.
func newTestCluster(t testing.TB, n int, opts NodeOptions) *cluster { return newGroup(t, n, n, opts) }

// newGroup makes hosts of which the first members form a group.
func newGroup(t testing.TB, members, hosts int, opts NodeOptions) *cluster {
	c := &cluster{
		t: t, addrs: freeAddrs(t, hosts), members: members, opts: opts,
		ports: make([]*faultyTransport, hosts), hosts: make([]*Host, hosts), nodes: make([]*Node, hosts), fsms: make([]*recorder, hosts),
	}
	c.net.addrs = c.addrs
	var first []int
	for i := range hosts {
		c.disks = append(c.disks, vfs.NewMem())
		if i < members {
			first = append(first, i)
		}
	}
	c.conf = c.voters(first...)
	t.Cleanup(c.close)
	return c
}

func (c *cluster) peer(i int) PeerID    { return PeerID{Address: c.addrs[i]} }
func (c *cluster) learner(i int) PeerID { return PeerID{Address: c.addrs[i], Role: Learner} }

// voters returns the configuration of some hosts.
func (c *cluster) voters(hosts ...int) Configuration {
	var peers []PeerID
	for _, i := range hosts {
		peers = append(peers, c.peer(i))
	}
	return c.confOf(peers...)
}

func (c *cluster) confOf(peers ...PeerID) Configuration {
	conf, err := NewConfiguration(peers...)
	require.NoError(c.t, err)
	return conf
}

// name is a configuration with hosts by their number: "0,1,2", with an l behind a learner.
func (c *cluster) name(conf Configuration) string {
	var names []string
	for _, p := range conf.Peers() {
		name := strconv.Itoa(slices.Index(c.addrs, p.Address))
		if p.Role == Learner {
			name += "l"
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ",")
}

func (c *cluster) start(i int) {
	conf := Configuration{}
	if i < c.members {
		conf = c.conf
	}
	c.startWith(i, conf)
}

// startWith starts a host with an initial configuration.
func (c *cluster) startWith(i int, conf Configuration) {
	g := actor.NewGoroutines()
	e := &env.Env{Exec: g, FS: c.disks[i], Rand: env.Default().Rand, Close: g.Close}
	e.WAL.SegmentSize = 256 << 10
	e.WAL.Retry = 10 * time.Millisecond
	dir := "/data"
	if c.dir != "" {
		e.FS, dir = vfs.OS{}, filepath.Join(c.dir, fmt.Sprint(i))
		require.NoError(c.t, os.MkdirAll(dir, 0o755))
	}
	c.ports[i] = newFaultyTransport(&c.net, i)
	h, err := NewHost(HostOptions{
		Address: c.addrs[i], Dir: dir, Env: e, Transport: c.ports[i], SnapshotThrottle: c.throttle,
	})
	require.NoError(c.t, err)
	c.hosts[i], c.fsms[i] = h, &recorder{name: c.name}
	if c.onApply != nil {
		c.fsms[i].onApply = func(data string) { c.onApply(i, data) }
	}
	if c.prepare != nil {
		c.prepare(i, c.fsms[i])
	}
	o := c.opts
	o.StateMachine, o.InitialConf = c.fsms[i], conf
	if c.machine != nil {
		o.StateMachine = c.machine(i, c.fsms[i])
	}
	if o.ElectionTimeout == 0 {
		o.ElectionTimeout = 500 * ms
		if c.members == 1 { // a sole voter elects itself at once
			o.ElectionTimeout = patient
		}
	}
	if o.ElectionTimeout == patient && o.HeartbeatFactor == 0 {
		o.HeartbeatFactor = 40 // nobody waits longer for a heartbeat than elsewhere
	}
	if o.CatchupTimeout == 0 { // tests of what it bounds set it
		o.CatchupTimeout = 20 * time.Second
	}
	c.nodes[i], err = h.StartNode("g", o)
	require.NoError(c.t, err)
}

// startAll starts the members.
func (c *cluster) startAll() {
	for i := range c.members {
		c.start(i)
	}
	c.hurry(0)
	// Until it has heard what is committed, a replica that began with nothing does not
	// vote freely: a group just set up survives the loss of a member only from then on.
	c.eventually(func() bool {
		first := c.nodes[0].Status()
		for _, n := range c.nodes[:c.members] {
			// Those who start together may run against each other once, even if one has won already.
			if s := n.Status(); s.Waiting || s.Leader.IsZero() || !s.Leader.Same(first.Leader) || s.Term != first.Term {
				return false
			}
		}
		return true
	}, "a replica still waits, or follows somebody else")
}

// hurry has a host campaign now, in a patient group that has no leader yet.
func (c *cluster) hurry(i int) {
	c.t.Helper()
	if c.members == 1 || c.opts.ElectionTimeout >= patient {
		c.campaign(i)
	}
}

// campaign has a host campaign until somebody leads.
func (c *cluster) campaign(i int) {
	c.t.Helper()
	led := func() bool {
		return slices.ContainsFunc(c.running(), func(i int) bool { return c.nodes[i].IsLeader() })
	}
	c.eventually(func() bool {
		if !led() {
			c.timeOut(i)
		}
		return within(200*ms, ms, led)
	}, "nobody is elected")
}

// startGroup starts all hosts, joiners too, and returns a leader whose log all members hold.
func (c *cluster) startGroup() (lead int) {
	c.startAll()
	for i := c.members; i < len(c.addrs); i++ {
		c.start(i)
	}
	c.eventually(func() bool {
		lead = c.ready()
		return c.nodes[lead].hasAll()
	}, "not all members are up to date")
	return lead
}

// startLed is startGroup, and has host 0 lead.
func (c *cluster) startLed() {
	c.startGroup()
	c.handTo(0)
	c.eventually(c.nodes[0].hasAll, "not all members are up to date")
}

// hasAll reports whether all peers have answered their latest requests, and hold the whole log.
func (n *Node) hasAll() bool {
	s := n.Status()
	for _, f := range s.Followers {
		if f.Failures > 0 || f.Match < s.LastIndex {
			return false
		}
	}
	return s.Role == RoleLeader
}

// handTo has a host lead, and take changes.
func (c *cluster) handTo(to int) {
	c.t.Helper()
	c.eventually(func() bool {
		lead := c.ready()
		if lead == to {
			return true
		}
		_ = c.nodes[lead].TransferLeadership(c.peer(to)) // a follower that has only just started may not have answered yet
		return false
	}, "leadership cannot be transferred")
}

// forget begins a new list of what a leader's state machine was told, once it was told that it leads.
func (c *cluster) forget(lead int) {
	c.t.Helper()
	c.eventually(func() bool { return slices.Contains(c.fsms[lead].seen(), "lead") }, "its state machine does not know that it leads")
	c.fsms[lead].forget()
}

// cutOff isolates a leader, which loses its office. Nobody waits for that as long as a patient group would.
func (c *cluster) cutOff(lead int) {
	c.t.Helper()
	c.net.set(atOnce(isolate(lead)))
	c.outOfReach(lead)
}

// outOfReach has a leader that most voters do not answer any more find out now instead of an election timeout later, and those
// who follow it miss it now.
func (c *cluster) outOfReach(lead int) {
	c.t.Helper()
	n := c.nodes[lead]
	c.eventually(func() bool {
		n.post(func() {
			for _, r := range n.replicators {
				r.lastAnswer.Store(-int64(time.Hour))
			}
			n.quorumAt = n.now
		})
		return !n.IsLeader()
	}, "a leader without a majority goes on")
	c.missed(lead)
}

// missed has those who follow a leader that is none any more miss it now, as if its process had ended. What it sent before may
// come late: they are told until none of them follows it.
func (c *cluster) missed(lead int) {
	c.t.Helper()
	follow := func() (hosts []int) {
		for _, i := range c.running() {
			if s := c.nodes[i].Status(); i != lead && s.Role == RoleFollower && s.Leader.Same(c.peer(lead)) {
				hosts = append(hosts, i)
			}
		}
		return hosts
	}
	c.eventually(func() bool {
		for _, i := range follow() {
			n := c.nodes[i]
			n.post(func() {
				n.votedAt = n.now.Add(-n.o.ElectionTimeout) // just after a vote it would expect that one to lead
				n.onPeerDown(c.addrs[lead])
			})
		}
		if !within(100*ms, ms, func() bool { return len(follow()) == 0 }) {
			c.timeOut(follow()...) // who may not campaign is in no hurry
			return false
		}
		return true
	}, "its followers do not miss it")
}

// timeOut ends the time that hosts wait for a leader to be heard.
func (c *cluster) timeOut(hosts ...int) {
	for _, i := range hosts {
		n := c.nodes[i]
		n.post(func() {
			if !n.electionAt.IsZero() {
				n.electionAt = n.now
			}
		})
	}
}

// ready waits for a leader that takes changes.
func (c *cluster) ready() (lead int) {
	c.eventually(func() bool {
		lead = c.leader()
		s := c.nodes[lead].Status()
		return s.Stage == StageNone && s.Role == RoleLeader
	}, "no leader that takes changes")
	return lead
}

func (c *cluster) stop(i int) {
	if c.hosts[i] != nil {
		_ = c.hosts[i].Close() // a broken disk makes it fail, which some tests want
		require.NoError(c.t, c.fsms[i].misuse)
		c.hosts[i] = nil
	}
}

// wipe stops a host and takes its disk.
func (c *cluster) wipe(i int) {
	c.stop(i)
	c.disks[i] = vfs.NewMem()
}

func (c *cluster) close() {
	if c.t.Failed() {
		c.describe()
	}
	for i := range c.hosts {
		c.stop(i)
	}
	for _, p := range c.calls {
		assert.EqualValues(c.t, 1, p.ran.Load(), "calls of the callback of %s", p.what)
	}
}

// describe logs what the nodes say of themselves.
func (c *cluster) describe() {
	for i := range c.hosts {
		if c.hosts[i] != nil {
			c.t.Logf("host %d, %s: %+v\nconfigurations logged %v, events %v", i, c.addrs[i], c.nodes[i].Status(), c.logged(i), lastOf(20, c.fsms[i].seen()))
		}
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

// eventually waits until something holds.
func (c *cluster) eventually(cond func() bool, what string) {
	c.t.Helper()
	if !within(20*time.Second, 2*time.Millisecond, cond) {
		require.Fail(c.t, "not within 20 seconds", what)
	}
}

// never holds that something does not happen for a while.
func (c *cluster) never(d time.Duration, cond func() bool, what string) {
	c.t.Helper()
	if within(d, 5*time.Millisecond, cond) {
		require.Fail(c.t, "it has happened", what)
	}
}

// within looks every now and then, on this goroutine, until something holds, and reports whether it does in time.
func within(d, pause time.Duration, cond func() bool) bool {
	deadline, tick := time.Now().Add(d), time.NewTicker(pause)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}

// propose proposes until it is done, once. Where a busy machine cost a leader its office in between, a read tells
// what has become of it; so data must differ from what was proposed before.
func (c *cluster) propose(data string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		_, err := c.nodes[c.leader()].Propose(ctx, []byte(data))
		if err == nil || ErrorCode(err) == ErrUnknownOutcome && c.cameThrough(ctx, data) {
			return
		}
	}
	require.NoError(c.t, ctx.Err(), "proposing %s", data)
}

// cameThrough reports whether an entry of a lost leadership has been committed all the same.
func (c *cluster) cameThrough(ctx context.Context, data string) bool {
	for ctx.Err() == nil {
		lead := c.leader()
		if _, err := c.nodes[lead].ReadIndex(ctx); err == nil {
			return slices.Contains(c.fsms[lead].applied(), data)
		}
	}
	return false
}

// read waits for a read index on a host.
func (c *cluster) read(i int) int64 {
	c.t.Helper()
	var index int64
	c.eventually(func() (ok bool) {
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		var err error
		index, err = c.nodes[i].ReadIndex(ctx)
		return err == nil
	}, "no read")
	return index
}

// running lists the hosts that run.
func (c *cluster) running() (hosts []int) {
	for i, h := range c.hosts {
		if h != nil {
			hosts = append(hosts, i)
		}
	}
	return hosts
}

// pending is the outcome to come of a call with a callback, which has to run exactly once.
type pending struct {
	c    *cluster
	what string
	ran  atomic.Int32
	got  chan error
}

// begin makes a call on a host's node. Its outcome joins the events there as "done" or "failed".
func (c *cluster) begin(i int, what string, call func(n *Node, done Closure)) *pending {
	p := &pending{c: c, what: what, got: make(chan error, 1)}
	c.mu.Lock()
	c.calls = append(c.calls, p)
	c.mu.Unlock()
	fsm := c.fsms[i]
	call(c.nodes[i], func(err error) {
		if p.ran.Add(1) > 1 {
			return
		}
		if err != nil {
			fsm.note("failed: " + what)
		} else {
			fsm.note("done: " + what)
		}
		p.got <- err
	})
	return p
}

// wait returns the outcome.
func (p *pending) wait() error {
	p.c.t.Helper()
	select {
	case err := <-p.got:
		return err
	case <-time.After(20 * time.Second):
		require.Fail(p.c.t, "no outcome", p.what)
		return nil
	}
}

// open reports whether there is no outcome yet.
func (p *pending) open() bool { return p.ran.Load() == 0 }

// change begins a change to a configuration on a host's node.
func (c *cluster) change(i int, conf Configuration) *pending {
	return c.begin(i, "change to "+c.name(conf), func(n *Node, done Closure) { n.ChangePeers(conf, done) })
}

// changeTo changes the configuration by whoever leads, where a busy machine may cost leaders their office.
func (c *cluster) changeTo(conf Configuration) {
	c.t.Helper()
	var err error
	c.eventually(func() bool {
		err = c.change(c.ready(), conf).wait()
		return err == nil
	}, fmt.Sprintf("no change to %s: %v", c.name(conf), err))
}

// add begins to add a peer on a host's node.
func (c *cluster) add(i, peer int) *pending {
	return c.begin(i, fmt.Sprint("add ", peer), func(n *Node, done Closure) { n.AddPeer(c.peer(peer), done) })
}

// remove begins to remove a peer on a host's node.
func (c *cluster) remove(i, peer int) *pending {
	return c.begin(i, fmt.Sprint("remove ", peer), func(n *Node, done Closure) { n.RemovePeer(c.peer(peer), done) })
}

// confsLogged returns the configuration entries in a node's log.
func confsLogged(n *Node) []confEntry {
	n.lm.mu.Lock()
	defer n.lm.mu.Unlock()
	return slices.Clone(n.lm.confs.entries)
}

// status waits until a host's node says of itself what cond wants.
func (c *cluster) status(i int, cond func(s Status) bool, what string) (s Status) {
	c.t.Helper()
	c.eventually(func() bool { s = c.nodes[i].Status(); return cond(s) }, what)
	return s
}

// sameData waits until the hosts have applied all that any host knows to be committed, and checks that it is the same.
func (c *cluster) sameData(hosts ...int) []string {
	c.t.Helper()
	c.eventually(func() bool {
		var committed int64
		for _, i := range c.running() {
			committed = max(committed, c.nodes[i].Status().CommitIndex)
		}
		for _, i := range hosts {
			if c.nodes[i].Status().AppliedIndex < committed {
				return false
			}
		}
		return true
	}, "not all have applied everything")
	want := c.fsms[hosts[0]].applied()
	for _, i := range hosts[1:] {
		require.Equal(c.t, want, c.fsms[i].applied(), "host %d", i)
	}
	return want
}
