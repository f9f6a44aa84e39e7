package fulltest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
)

const group = "g"

// electionTimeout is the default.
const electionTimeout = time.Second

// world is a bubble's hosts with the network between them.
//
// Ownership: the test's goroutine starts and stops hosts; clients on others ask for nodes. mu is a leaf lock.
type world struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand // the test's goroutine's
	net     *network
	ledger  *ledger
	opts    graft.NodeOptions
	members int
	hosts   []*host
	badDisk bool // a disk fails, so that a host may not close well
	forked  bool // a configuration was reset by hand, so that the group is not one any more

	mu      sync.Mutex // guards the following, and of each host node, fsm and all
	loading bool
	changes []changing // of the configuration that were asked for
	number  int        // of the next proposal
	clients sync.WaitGroup
	seen    map[string]int           // calls of the transports
	heard   map[string]chan struct{} // closed at the next call
}

// host is one of them, with its disk, through all its lives.
type host struct {
	w      *world
	i      int
	addr   string // what peers call it
	listen string // where it listens, if not there
	disk   *disk
	exec   *executor
	tcp    *rpc.TCP
	host   *graft.Host // nil while it does not run, closed or not
	node   *graft.Node
	fsm    *machine
	all    []*machine // of all lives

	closing *call    // under way
	left    *vfs.Mem // what a power cut has left of the disk; nil: there was none
}

// executor counts the steps of actors.
type executor struct {
	*actor.Goroutines
	steps atomic.Int64
}

// Now is asked for once per step, and rarely else.
func (e *executor) Now() time.Time {
	e.steps.Add(1)
	return e.Goroutines.Now()
}

// spy is a host's transport, which remembers what was called.
type spy struct {
	graft.Transport
	w *world
	i int
}

func (s *spy) Call(address string, c rpc.Call) {
	s.w.mu.Lock()
	s.w.seen[c.Method]++
	if heard := s.w.heard[c.Method]; heard != nil {
		close(heard)
		delete(s.w.heard, c.Method)
	}
	s.w.mu.Unlock()
	s.Transport.Call(address, c)
}

// How fast disks and links may be, at an ordinary time.
var (
	syncTimes  = []time.Duration{0, 100 * time.Microsecond, time.Millisecond}
	linkDelays = []time.Duration{25 * time.Microsecond, 50 * time.Microsecond, 300 * time.Microsecond}
)

// newWorld makes hosts of which the first ones form the group. None of them runs yet.
func newWorld(t *testing.T, seed uint64, members, spares int, opts graft.NodeOptions) *world {
	w := &world{
		t: t, seed: seed, rng: dice(seed, 1), net: newNetwork(seed), ledger: newLedger(), opts: opts, members: members,
		seen: make(map[string]int), heard: make(map[string]chan struct{}),
	}
	for i := range members + spares {
		w.hosts = append(w.hosts, &host{w: w, i: i, addr: fmt.Sprintf("n%d.test:7000", i), disk: newDisk(syncTimes[w.rng.IntN(len(syncTimes))])})
	}
	for i := range w.hosts {
		delay := linkDelays[w.rng.IntN(len(linkDelays))]
		w.links(i, func(a, b string) { w.net.slow(a, b, delay) })
	}
	t.Cleanup(w.abandon)
	return w
}

// abandon ends what a failed test has left, so that the bubble can end.
func (w *world) abandon() {
	if !w.t.Failed() {
		return
	}
	for i := range w.hosts {
		if n := w.node(i); n != nil {
			w.t.Logf("host %d: %+v", i, n.Status())
		}
	}
	w.quiet()
	for _, h := range w.hosts {
		h.disk.mend()
		for _, m := range h.all {
			m.open()
		}
	}
	for _, h := range w.hosts {
		if h.host != nil {
			w.close(h.i)
		}
	}
	time.Sleep(time.Minute)
}

func (w *world) peer(i int) graft.PeerID { return graft.PeerID{Address: w.hosts[i].addr} }

// conf returns the configuration with some hosts as its voters.
func (w *world) conf(hosts ...int) graft.Configuration {
	var peers []graft.PeerID
	for _, i := range hosts {
		peers = append(peers, w.peer(i))
	}
	conf, err := graft.NewConfiguration(peers...)
	require.NoError(w.t, err)
	return conf
}

// at is where the host is in the network.
func (h *host) at() string {
	if h.listen != "" {
		return h.listen
	}
	return h.addr
}

// first lists the hosts that form the group.
func (w *world) first() (hosts []int) {
	for i := range w.members {
		hosts = append(hosts, i)
	}
	return hosts
}

// options returns what host i is made with.
func (w *world) options(i int) graft.HostOptions {
	h := w.hosts[i]
	h.exec = &executor{Goroutines: actor.NewGoroutines()}
	var mu sync.Mutex
	rng := dice(w.seed, uint64(1000*i+len(h.all)))
	e := &env.Env{Exec: h.exec, FS: h.disk.fs, Close: h.exec.Close, Rand: func() uint64 {
		mu.Lock()
		defer mu.Unlock()
		return rng.Uint64()
	}}
	e.WAL.SegmentSize = 64 << 10
	e.WAL.Retry = 20 * time.Millisecond
	h.tcp = rpc.NewTCP(w.net.options(h.at()))
	return graft.HostOptions{
		Address: h.addr, Listen: h.at(), Dir: "/data", Env: e, Transport: &spy{Transport: h.tcp, w: w, i: i}, Logger: logger(w.t),
	}
}

// newMachine gives host i a state machine for its next life.
func (h *host) newMachine() *machine {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.fsm = &machine{who: fmt.Sprintf("host %d, life %d", h.i, len(h.all)), snapshots: h.w.opts.SnapshotMargin < 0}
	h.all = append(h.all, h.fsm)
	return h.fsm
}

// nodeOptions returns what the replica of host i is started with.
func (h *host) nodeOptions() graft.NodeOptions {
	o := h.w.opts
	o.StateMachine = h.newMachine()
	if h.i < h.w.members {
		o.InitialConf = h.w.conf(h.w.first()...)
	}
	return o
}

// open makes host i without a replica.
func (w *world) open(i int) {
	w.t.Helper()
	h, err := graft.NewHost(w.options(i))
	require.NoError(w.t, err)
	w.hosts[i].host = h
}

// start makes host i and starts its replica.
func (w *world) start(hosts ...int) {
	w.t.Helper()
	for _, i := range hosts {
		w.open(i)
		w.startNode(i)
	}
}

func (w *world) startNode(i int) {
	w.t.Helper()
	h := w.hosts[i]
	n, err := h.host.StartNode(group, h.nodeOptions())
	require.NoError(w.t, err)
	w.mu.Lock()
	defer w.mu.Unlock()
	h.node = n
}

// node returns the latest replica of host i, nil if there never was one.
func (w *world) node(i int) *graft.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.hosts[i].node
}

// nodes returns what node returns, of all hosts.
func (w *world) nodes() (nodes []*graft.Node) {
	for i := range w.hosts {
		if n := w.node(i); n != nil {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

// who returns the host that the condition holds for, -1 if there is none.
func (w *world) who(cond func(n *graft.Node, s graft.Status) bool) int {
	for i := range w.hosts {
		if n := w.node(i); n != nil && cond(n, n.Status()) {
			return i
		}
	}
	return -1
}

// leader returns the host that leads in the highest term and takes changes, -1 if there is none.
func (w *world) leader() int {
	term := int64(0)
	for _, n := range w.nodes() {
		term = max(term, n.Status().Term)
	}
	return w.who(func(_ *graft.Node, s graft.Status) bool {
		return s.Role == graft.RoleLeader && s.Term == term && s.Stage == graft.StageNone
	})
}

// settle starts the group and waits until everybody follows one leader.
func (w *world) settle() (lead int) {
	w.t.Helper()
	w.start(w.first()...)
	return w.agree(w.first()...)
}

// agree waits until the hosts follow one leader, have applied all it has, and vote freely.
func (w *world) agree(hosts ...int) (lead int) {
	w.t.Helper()
	timeout := max(w.opts.ElectionTimeout, electionTimeout)
	until(w.t, timeout/100, 60*timeout, "one leader that everybody follows", func() bool {
		if lead = w.leader(); lead < 0 {
			return false
		}
		l := w.node(lead).Status()
		for _, i := range hosts {
			s := w.node(i).Status()
			if !s.Leader.Same(w.peer(lead)) || s.Term != l.Term || s.AppliedIndex < l.LastIndex || s.Waiting {
				return false
			}
		}
		return true
	})
	return lead
}

// others returns the running members but for one, in an order of the seed's.
func (w *world) others(one int) (hosts []int) {
	for _, i := range w.rng.Perm(w.members) {
		if i != one {
			hosts = append(hosts, i)
		}
	}
	return hosts
}

// upTo draws a duration.
func (w *world) upTo(most time.Duration) time.Duration {
	return time.Duration(w.rng.Int64N(int64(most) + 1))
}

// pass lets time pass, at random.
func (w *world) pass(most time.Duration) { time.Sleep(w.upTo(most)) }

// isolate cuts a host off all others.
func (w *world) isolate(i int) { w.links(i, w.net.cut) }

// healAll makes all links sound.
func (w *world) healAll() {
	for i := range w.hosts {
		w.links(i, w.net.heal)
	}
}

func (w *world) links(i int, do func(a, b string)) {
	for j := range w.hosts {
		if i != j {
			do(w.hosts[i].at(), w.hosts[j].at())
		}
	}
}

// sees returns how often a method was called so far.
func (w *world) sees(method string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[method]
}

// hear waits for the next call of a method.
func (w *world) hear(method string) {
	w.t.Helper()
	w.mu.Lock()
	heard := w.heard[method]
	if heard == nil {
		heard = make(chan struct{})
		w.heard[method] = heard
	}
	w.mu.Unlock()
	select {
	case <-heard:
	case <-time.After(20 * electionTimeout):
		w.t.Fatalf("no %s", method)
	}
}

// propose proposes something unique on a host and returns the call.
func (w *world) propose(i int) *call { return w.proposeBytes(i, 0) }

// proposeBytes is propose with some more payload.
func (w *world) proposeBytes(i, more int) *call {
	w.mu.Lock()
	n, fsm := w.hosts[i].node, w.hosts[i].fsm
	w.number++
	data := fmt.Sprint("proposal ", w.number) + strings.Repeat(".", more)
	w.mu.Unlock()
	c := w.ledger.begin(fmt.Sprintf("apply %.20q on host %d", data, i), ofApply...)
	n.Apply(graft.Task{Data: []byte(data), Done: func(result any, err error) {
		index, _ := result.(int64)
		if err == nil {
			fsm.settled(index)
		}
		w.ledger.proposed(data, index, err)
		c.done(err)
	}})
	return c
}

// read asks a host for a read index. What was acknowledged before must be at or below it, and applied there.
func (w *world) read(i int) *call {
	n, least := w.node(i), w.ledger.ackedUpTo()
	c := w.ledger.begin(fmt.Sprint("read on host ", i), ofRead...)
	n.ReadIndexAsync(func(index int64, err error) {
		if err == nil && index < least {
			err = fmt.Errorf("read index %d, but %d was acknowledged before", index, least)
		}
		if err == nil && n.Status().AppliedIndex < index {
			err = fmt.Errorf("read index %d is not applied", index)
		}
		c.done(err)
	})
	return c
}

// change begins a change of the configuration on a host.
func (w *world) change(i int, hosts ...int) *call {
	conf := w.conf(hosts...)
	w.mu.Lock()
	n, fsm := w.hosts[i].node, w.hosts[i].fsm
	w.mu.Unlock()
	c := w.ledger.begin(fmt.Sprintf("change to %v on host %d", hosts, i), ofChange...)
	w.mu.Lock()
	w.changes = append(w.changes, changing{c, conf})
	w.mu.Unlock()
	n.ChangePeers(conf, func(err error) {
		if err == nil && n.Status().Err == nil { // a state machine that has failed is told nothing more
			fsm.changed(conf)
		}
		c.done(err)
	})
	return c
}

// changing is a change that was asked for.
type changing struct {
	*call
	to graft.Configuration
}

// checkConf holds the group's configuration against what was said about changes to it.
func (w *world) checkConf(conf graft.Configuration) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	possible, done := []graft.Configuration{w.conf(w.first()...)}, 0
	for _, c := range w.changes {
		switch err := c.outcome(); {
		case err == nil:
			done++
			fallthrough
		case graft.ErrorCode(err) == graft.ErrUnknownOutcome:
			possible = append(possible, c.to)
		}
	}
	if len(possible) == 2 && done == 1 {
		possible = possible[1:]
	}
	if !slices.ContainsFunc(possible, conf.Equal) {
		w.t.Errorf("the configuration is %v; by what was said of changes it can only be one of %v", conf, possible)
	}
}

// reset puts a configuration in force by hand.
func (w *world) reset(i int, hosts ...int) *call {
	n, conf := w.node(i), w.conf(hosts...)
	return w.blocking(fmt.Sprintf("reset to %v on host %d", hosts, i), ofReset, func() error { return n.ResetPeers(conf) })
}

// blocking runs a call that waits for its outcome.
func (w *world) blocking(what string, allowed []graft.Code, f func() error) *call {
	c := w.ledger.begin(what, allowed...)
	go func() { c.done(f()) }()
	return c
}

// transfer hands leadership over.
func (w *world) transfer(from, to int) *call {
	n := w.node(from)
	return w.blocking(fmt.Sprintf("transfer from host %d to %d", from, to), ofTransfer, func() error {
		return n.TransferLeadership(w.peer(to))
	})
}

// cancel calls a change off.
func (w *world) cancel(i int) *call {
	return w.blocking(fmt.Sprint("cancel on host ", i), ofCancel, w.node(i).CancelChange)
}

// load has clients propose and read at any host until quiet, with pauses of up to pause.
func (w *world) load(clients int, pause time.Duration) {
	w.mu.Lock()
	w.loading = true
	w.mu.Unlock()
	for k := range clients {
		rng := dice(w.seed, uint64(100+k))
		w.clients.Go(func() {
			for w.busy() {
				i := rng.IntN(len(w.hosts))
				if lead := w.leader(); lead >= 0 && rng.IntN(3) > 0 {
					i = lead
				}
				if w.node(i) == nil {
					i = 0
				}
				for range 1 + rng.IntN(4) {
					w.propose(i)
				}
				w.read(i)
				time.Sleep(time.Duration(rng.Int64N(int64(pause))))
			}
		})
	}
}

// administer has an operator who changes the group and calls it off again, at random, until quiet.
func (w *world) administer(pause time.Duration) {
	rng := dice(w.seed, 99)
	w.clients.Go(func() {
		for w.busy() {
			i := rng.IntN(len(w.hosts))
			if lead := w.leader(); lead >= 0 && rng.IntN(3) > 0 {
				i = lead
			}
			switch rng.IntN(4) {
			case 0:
				w.transfer(i, rng.IntN(len(w.hosts)))
			case 1:
				w.cancel(i)
			default:
				w.change(i, rng.Perm(len(w.hosts))[:1+rng.IntN(len(w.hosts))]...)
			}
			time.Sleep(time.Duration(rng.Int64N(int64(pause))))
		}
	})
}

func (w *world) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.loading
}

// quiet ends the load, if there is any.
func (w *world) quiet() {
	w.mu.Lock()
	w.loading = false
	w.mu.Unlock()
	w.clients.Wait()
}

// stopNode ends a host's replica.
func (w *world) stopNode(i int) []*call {
	h := w.hosts[i].host
	return []*call{w.blocking(fmt.Sprint("stop node of host ", i), nil, func() error {
		return h.StopNode(context.Background(), group)
	})}
}

// mayFail are the errors with which a host may close whose disk has failed.
var mayFail = []graft.Code{0}

// close closes a host, unless that is being done, from two goroutines at once; whether its disk lets it is not asked.
func (w *world) close(i int) *call {
	h := w.hosts[i]
	if h.closing == nil {
		h.closing = w.blocking(fmt.Sprint("close host ", i), mayFail, func() error {
			other := make(chan error, 1)
			go func() { other <- h.host.Close() }()
			err := h.host.Close()
			for _, m := range h.all {
				if !m.over() {
					m.complain("Close returned before OnShutdown was called")
				}
			}
			if atOnce, again := <-other, h.host.Close(); again != err || atOnce != err {
				w.t.Errorf("close host %d: %v, at the same time: %v, and again: %v", i, err, atOnce, again)
			}
			return err
		})
	}
	return h.closing
}

// closeAll closes all hosts that run, each on its own, and holds that this comes to an end, that every callback
// ran, and that nothing is left.
func (w *world) closeAll() {
	w.t.Helper()
	var closing []*call
	for _, h := range w.hosts {
		if h.host != nil {
			closing = append(closing, w.close(h.i))
		}
	}
	w.await(time.Minute, closing...)
	for _, h := range w.hosts {
		h.host, h.closing = nil, nil
		for _, m := range h.all {
			m.saves.Wait() // its own business
		}
	}
	w.checkEnd()
}

// await waits for calls to be over, and shows where they hang if they are not.
func (w *world) await(most time.Duration, calls ...*call) {
	w.t.Helper()
	over := func() bool { return !slices.ContainsFunc(calls, func(c *call) bool { return !c.over() }) }
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		synctest.Wait()
		if over() {
			return
		}
		if time.Since(began) > most {
			var open []string
			for _, c := range calls {
				if !c.over() {
					open = append(open, c.what)
				}
			}
			w.t.Fatalf("not over after %v: %q\n\n%s", most, open, strings.Join(goroutines(), "\n\n"))
		}
	}
}

// checkEnd is for when all hosts are closed.
func (w *world) checkEnd() {
	w.t.Helper()
	noGoroutines(w.t)
	w.ledger.settled(w.t)
	for _, h := range w.hosts {
		for _, m := range h.all {
			m.ended(w.t)
		}
	}
	if n := w.net.ends(); n != 0 {
		w.t.Errorf("%d ends of connections are open", n)
	}
}

// recover makes everything sound, starts all hosts on the disks they left, and holds that nothing that was
// acknowledged is lost.
func (w *world) recover() {
	w.t.Helper()
	w.healAll()
	for _, h := range w.hosts {
		if h.left == nil && h.disk.broken() { // what could not be synced is lost
			h.left = h.disk.fs.CrashClone(nil)
		}
		if h.left != nil {
			h.disk.use(h.left)
			h.left = nil
		}
		h.disk.mend()
	}
	for i, h := range w.hosts {
		if i < w.members || len(h.all) > 0 {
			w.start(i)
		}
	}
	var lead int
	timeout := max(w.opts.ElectionTimeout, electionTimeout)
	until(w.t, timeout/100, 60*timeout, "a leader after the restart", func() bool {
		lead = w.leader()
		return lead >= 0
	})
	voters := w.voters(lead)
	lead = w.agree(voters...)
	c := w.propose(lead)
	w.await(10*timeout, c)
	require.NoError(w.t, c.outcome(), "a proposal after the restart")
	w.agree(voters...)
	w.checkConf(w.node(lead).Status().Conf)
	want := w.hosts[lead].fsm.applied()
	for _, i := range voters {
		m := w.hosts[i].fsm
		w.ledger.holds(w.t, m.who, m.applied())
		require.Equal(w.t, want, m.applied(), "host %d differs from the leader, %d", i, lead)
	}
	w.closeAll()
}

// voters lists the hosts that vote in the configuration of a host.
func (w *world) voters(i int) (hosts []int) {
	for _, p := range w.node(i).Status().Conf.Voters() {
		hosts = append(hosts, slices.IndexFunc(w.hosts, func(h *host) bool { return h.addr == p.Address }))
	}
	return hosts
}

// finish ends a scenario: everything is closed, and started again on what is on the disks.
func (w *world) finish() {
	w.t.Helper()
	w.quiet()
	for _, h := range w.hosts {
		h.disk.release()
		for _, m := range h.all {
			m.open()
		}
	}
	w.closeAll()
	if !w.forked {
		w.recover()
	}
}
