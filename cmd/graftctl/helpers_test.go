package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// nothing is the least state machine.
type nothing struct{ graft.BaseStateMachine }

func (nothing) OnApply(it *graft.Iterator) {
	for it.Next() {
	}
}

// cluster is a group called "g" of real servers on loopback.
type cluster struct {
	t     *testing.T
	nodes map[string]*graft.Node
	hosts map[string]*graft.Host
	first []string // the voters that it began with
	// change before start
	host graft.HostOptions
	node graft.NodeOptions
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, nodes: make(map[string]*graft.Node), hosts: make(map[string]*graft.Host)}
	// No stall of the machine is to cost a leader its office, nor to have a change fail because a new peer makes no progress. The first
	// election comes within a fifth of it all the same.
	c.node = graft.NodeOptions{ElectionTimeout: 10 * time.Second, FirstStart: true}
	t.Cleanup(func() {
		for a := range c.hosts {
			c.stop(a)
		}
	})
	return c
}

// startCluster starts a group of n voters and waits until it can be changed.
func startCluster(t *testing.T, n int) *cluster {
	c := newCluster(t)
	c.startVoters(n)
	return c
}

func (c *cluster) startVoters(n int) {
	c.first = addresses(c.t, n)
	conf := graft.MustParseConfiguration(strings.Join(c.first, ","))
	for _, a := range c.first {
		c.start(a, conf)
	}
	c.ready()
}

// spare starts a server without a configuration, which can be added.
func (c *cluster) spare() string {
	a := addresses(c.t, 1)[0]
	c.start(a, graft.Configuration{})
	return a
}

func (c *cluster) start(address string, conf graft.Configuration) {
	o := c.host
	o.Address = address
	h, err := graft.NewHost(o)
	require.NoError(c.t, err)
	c.hosts[address] = h
	n := c.node
	n.StateMachine, n.InitialConf = nothing{}, conf
	c.nodes[address], err = h.StartNode("g", n)
	require.NoError(c.t, err)
}

func (c *cluster) stop(address string) {
	assert.NoError(c.t, c.hosts[address].Close())
	delete(c.hosts, address)
	delete(c.nodes, address)
}

// ready waits for a leader that takes changes and is known to all, and returns its address.
func (c *cluster) ready() (address string) {
	c.t.Helper()
	eventually(c.t, func() bool {
		address = ""
		for a, n := range c.nodes {
			if s := n.Status(); s.Role == graft.RoleLeader && s.Stage == graft.StageNone {
				address = a
			}
		}
		leader := c.nodes[address]
		if leader == nil {
			return false
		}
		for _, p := range leader.Status().Conf.Peers() {
			if n := c.nodes[p.Address]; n != nil && n.LeaderID().Address != address {
				return false
			}
		}
		return true
	}, "no leader")
	return address
}

// follower is a voter that does not lead.
func (c *cluster) follower() string {
	leader := c.ready()
	for _, p := range c.nodes[leader].Status().Conf.Voters() {
		if p.Address != leader {
			return p.Address
		}
	}
	require.Fail(c.t, "no follower")
	return ""
}

// conf is the configuration that the leader has.
func (c *cluster) conf() string { return c.nodes[c.ready()].Status().Conf.String() }

// ids adds index and role to addresses.
func ids(addresses ...string) string {
	return graft.MustParseConfiguration(strings.Join(addresses, ",")).String()
}

func list(addresses ...string) []string { return strings.Split(ids(addresses...), ",") }

func addresses(t *testing.T, n int) (all []string) {
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		all = append(all, l.Addr().String())
	}
	return all
}

func eventually(t *testing.T, cond func() bool, what string) {
	t.Helper()
	require.Eventually(t, cond, time.Minute, 2*time.Millisecond, what)
}

// output can be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// execution is a run of the command.
type execution struct {
	t        *testing.T
	cancel   context.CancelFunc // as Ctrl-C does
	done     chan int
	out, err output
	asked    bool
	status   int
}

// begin runs the command in the background.
func begin(t *testing.T, c console, args ...string) *execution {
	ctx, cancel := context.WithCancel(context.Background())
	e := &execution{t: t, cancel: cancel, done: make(chan int, 1)}
	if c.in == nil {
		c.in = strings.NewReader("")
	}
	c.out, c.err = &e.out, &e.err
	go func() { e.done <- run(ctx, args, c) }()
	t.Cleanup(func() { cancel(); e.wait() })
	return e
}

// wait waits for the end and returns the exit status.
func (e *execution) wait() int {
	if !e.asked {
		e.asked = true
		select {
		case e.status = <-e.done:
		case <-time.After(90 * time.Second):
			assert.Fail(e.t, "the command does not end")
			e.status = -1
		}
	}
	return e.status
}

// ok expects success and returns what was printed.
func (e *execution) ok() string {
	e.t.Helper()
	require.Zero(e.t, e.wait(), "%s%s", e.err.String(), e.out.String())
	return e.out.String()
}

// fails expects failure and returns what was said about it.
func (e *execution) fails() string {
	e.t.Helper()
	require.Equal(e.t, 1, e.wait(), e.out.String())
	assert.Empty(e.t, e.out.String())
	return e.err.String()
}

// failsJSON expects failure and returns the error object, the only thing printed.
func (e *execution) failsJSON() failure {
	e.t.Helper()
	require.Equal(e.t, 1, e.wait(), e.out.String())
	assert.Empty(e.t, e.err.String())
	var got struct{ Error failure }
	strictly(e.t, e.out.String(), &got)
	assert.NotEmpty(e.t, got.Error.Message)
	return got.Error
}

// strictly decodes one JSON object that has no other fields than v.
func strictly(t *testing.T, s string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	require.NoError(t, d.Decode(v), s)
	_, err := d.Token()
	require.ErrorIs(t, err, io.EOF, "one object only")
}

// ctl runs the command for group "g", asking one server.
func ctl(t *testing.T, peers string, args ...string) *execution {
	return begin(t, console{}, append([]string{"--peers", peers, "--group", "g"}, args...)...)
}

func (c *cluster) ctl(args ...string) *execution { return ctl(c.t, c.first[0], args...) }

// handlers answer requests by service/method; the rest is unknown.
type handlers map[string]func(*rpc.Request)

// fake is a server that answers as it is told.
type fake struct {
	address string
	tcp     *rpc.TCP
	mu      sync.Mutex
	h       handlers
	calls   []string
}

func startFake(t *testing.T, h handlers) *fake {
	f := &fake{address: addresses(t, 1)[0], tcp: rpc.NewTCP(rpc.TCPOptions{}), h: h}
	require.NoError(t, f.tcp.Start(rpc.StartOptions{Listen: f.address, Address: f.address, Serve: f.serve}))
	t.Cleanup(func() { assert.NoError(t, f.tcp.Close()) })
	return f
}

func (f *fake) serve(r *rpc.Request) {
	name := r.Service + "/" + r.Method
	f.mu.Lock()
	h := f.h[name]
	f.calls = append(f.calls, name)
	f.mu.Unlock()
	if h == nil {
		r.Fail(codeNoMethod, "Fail to find method="+name)
		return
	}
	h(r)
}

// set has the server answer otherwise from now on.
func (f *fake) set(name string, h func(*rpc.Request)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.h[name] = h
}

func (f *fake) called(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == name {
			return true
		}
	}
	return false
}

// says answers with a message.
func says(m proto.Message) func(*rpc.Request) {
	return func(r *rpc.Request) {
		b, err := proto.Marshal(m)
		if err != nil {
			r.Fail(2001, err.Error())
			return
		}
		r.Reply(b)
	}
}

// refuses answers with an error.
func refuses(code int32, text string) func(*rpc.Request) {
	return func(r *rpc.Request) { r.Fail(code, text) }
}
