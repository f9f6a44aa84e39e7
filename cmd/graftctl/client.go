package main

import (
	"context"
	"net"
	"regexp"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// server is where a replica of the group may be asked.
type server struct {
	graft.PeerID
	anyone bool // only the address is known: the replica meant is the only one there
}

// name is how requests name the replica, nil if they do not.
func (s server) name() *string {
	if s.anyone {
		return nil
	}
	return text(s.PeerID)
}

// serverOf is where a member of the group is asked.
func serverOf(p graft.PeerID) server { return server{PeerID: p.ID()} }

// client calls servers. It has one connection to each.
type client struct {
	group     *string
	servers   []server
	transport *rpc.TCP
}

func newClient(a *app) (*client, error) {
	config, err := a.tls.config()
	if err != nil {
		return nil, err
	}
	t := rpc.NewTCP(rpc.TCPOptions{
		TLS: config, ListenFunc: func(string, string) (net.Listener, error) { return newDeafListener(), nil },
		// A server may pause for longer than one peer tolerates of another.
		SilenceTimeout: 15 * time.Second,
	})
	err = t.Start(rpc.StartOptions{Serve: func(r *rpc.Request) { r.Fail(codeNoMethod, "graftctl serves nothing") }})
	if err != nil {
		return nil, err
	}
	return &client{group: &a.group, servers: a.servers, transport: t}, nil
}

func (c *client) close() { _ = c.transport.Close() } // what it could complain about is a deafListener

// deafListener stands where the transport of a server listens: nobody connects to a client.
type deafListener struct {
	once   sync.Once
	closed chan struct{}
}

func newDeafListener() *deafListener { return &deafListener{closed: make(chan struct{})} }

func (l *deafListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l *deafListener) Close() error              { l.once.Do(func() { close(l.closed) }); return nil }
func (l *deafListener) Addr() net.Addr            { return &net.TCPAddr{} }

// The services.
const (
	cliService   = "braft.CliService"
	adminService = "graft.AdminService"
)

// patience is how long a server may take for an answer that it has at hand.
const patience = time.Second

// send sends a request. limit is how long the answer may take, 0 for ever.
func (c *client) send(address, service, method string, m proto.Message, limit time.Duration) <-chan rpc.Reply {
	out := make(chan rpc.Reply, 1)
	b, err := proto.Marshal(m)
	if err != nil {
		out <- rpc.Reply{Err: err}
		return out
	}
	c.transport.Call(address, rpc.Call{
		Service: service, Method: method, Message: [][]byte{b}, Timeout: limit,
		Done: func(r rpc.Reply) { out <- r },
	})
	return out
}

// ask asks what a server has at hand, and waits for the answer.
func (c *client) ask(ctx context.Context, address, service, method string, m, answer proto.Message) error {
	return c.wait(ctx, address, c.send(address, service, method, m, patience), answer)
}

// order has a server do something, and waits until ctx ends: a disk may be slow.
func (c *client) order(ctx context.Context, address, service, method string, m, answer proto.Message) error {
	return c.wait(ctx, address, c.send(address, service, method, m, 0), answer)
}

func (c *client) wait(ctx context.Context, address string, reply <-chan rpc.Reply, answer proto.Message) error {
	select {
	case r := <-reply:
		return decode(address, r, answer)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// textPrefix is what a server puts before the text of an error: its address and the code.
var textPrefix = regexp.MustCompile(`^(\[\S*?\]\[E-?\d+\])+`)

// decode reads an answer, or says why there is none.
func decode(address string, r rpc.Reply, answer proto.Message) error {
	switch {
	case r.Err != nil:
		return &lostError{from: address, err: r.Err}
	case r.Code != 0:
		return &remoteError{from: address, code: r.Code, text: textPrefix.ReplaceAllString(r.Text, "")}
	}
	if err := proto.Unmarshal(r.Message, answer); err != nil {
		return &lostError{from: address, err: err}
	}
	return nil
}

// namedLeader asks a server whom it takes for the leader.
func (c *client) namedLeader(ctx context.Context, s server) (graft.PeerID, error) {
	m := new(raftpb.GetLeaderResponse)
	err := c.ask(ctx, s.Address, cliService, "get_leader", &raftpb.GetLeaderRequest{GroupId: c.group, PeerId: s.name()}, m)
	if err != nil {
		return graft.PeerID{}, err
	}
	p, err := graft.ParsePeerID(m.GetLeaderId())
	if err != nil {
		return graft.PeerID{}, &lostError{from: s.Address, err: err}
	}
	return p, nil
}

// status asks a server for its replica.
func (c *client) status(ctx context.Context, s server) (*raftpb.GroupStatusResponse, error) {
	m := new(raftpb.GroupStatusResponse)
	err := c.ask(ctx, s.Address, adminService, "Status", &raftpb.GroupStatusRequest{GroupId: c.group, PeerId: s.name()}, m)
	return m, err
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
