package graft

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// lan is a network in memory, for hosts that must have certain addresses.
type lan struct {
	t     *testing.T
	mu    sync.Mutex
	ports map[string]*lanPort
	hosts map[string]*Host
}

// lanPort is one host's transport. Whatever it sends, requests and answers, a goroutine of its
// own delivers in order.
type lanPort struct {
	lan  *lan
	o    rpc.StartOptions
	mu   sync.Mutex
	out  []func()
	wake chan struct{} // capacity 1
	quit chan struct{}
	wg   sync.WaitGroup
}

func newLan(t *testing.T) *lan {
	l := &lan{t: t, ports: make(map[string]*lanPort), hosts: make(map[string]*Host)}
	t.Cleanup(func() {
		for _, h := range l.hosts {
			assert.NoError(t, h.Close())
		}
	})
	return l
}

// host starts a host with nothing on its disk.
func (l *lan) host(address string, disableAdmin bool) *Host {
	p := &lanPort{lan: l, wake: make(chan struct{}, 1), quit: make(chan struct{})}
	h, err := NewHost(HostOptions{Address: address, Transport: p, DisableAdmin: disableAdmin})
	require.NoError(l.t, err)
	l.hosts[address] = h
	return h
}

func (p *lanPort) Start(o rpc.StartOptions) error {
	p.o = o
	p.lan.mu.Lock()
	defer p.lan.mu.Unlock()
	p.lan.ports[o.Address] = p
	p.wg.Go(p.run)
	return nil
}

func (p *lanPort) run() {
	for {
		select {
		case <-p.wake:
		case <-p.quit:
			return
		}
		p.mu.Lock()
		out := p.out
		p.out = nil
		p.mu.Unlock()
		for _, f := range out {
			f()
		}
	}
}

func (p *lanPort) send(f func()) {
	p.mu.Lock()
	p.out = append(p.out, f)
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *lanPort) Call(address string, c rpc.Call) {
	p.lan.mu.Lock()
	to := p.lan.ports[address]
	p.lan.mu.Unlock()
	if to == nil {
		p.send(func() { c.Done(rpc.Reply{Err: rpc.ErrUnreachable}) })
		return
	}
	join := func(pieces [][]byte) (b []byte) {
		for _, piece := range pieces {
			b = append(b, piece...)
		}
		return b
	}
	req := rpc.NewRequest(c.Service, c.Method, join(c.Message), join(c.Attachment), p.o.Address,
		func(code int32, text string, message []byte, attachment [][]byte) {
			to.send(func() {
				c.Done(rpc.Reply{Code: code, Text: text, Message: message, Attachment: join(attachment)})
			})
		})
	p.send(func() { to.o.Serve(req) })
}

func (p *lanPort) Watch(string, bool) {}
func (p *lanPort) Retry(string)       {}

func (p *lanPort) Close() error {
	p.lan.mu.Lock()
	delete(p.lan.ports, p.o.Address)
	p.lan.mu.Unlock()
	close(p.quit)
	p.wg.Wait()
	return nil
}

// lanGroup says which replicas there are and who leads.
type lanGroup struct {
	voters   string // ports, the first is the leader's; "" if there is no configuration
	others   string // replicas without a configuration
	down     string // voters that do not run
	disabled bool
	catchup  time.Duration
}

func lanPeer(port string) PeerID { return MustParsePeerID("127.0.0.1:" + port) }

// start starts the group "Counter" and waits until its leader is ready for a change.
func (l *lan) start(g lanGroup) {
	var peers []PeerID
	for _, port := range strings.Fields(g.voters) {
		peers = append(peers, lanPeer(port))
	}
	conf, err := NewConfiguration(peers...)
	require.NoError(l.t, err)
	node := func(port string, conf Configuration, timeout time.Duration) *Node {
		n, err := l.host(lanPeer(port).Address, g.disabled).StartNode("Counter", NodeOptions{
			StateMachine: &recorder{}, InitialConf: conf, ElectionTimeout: timeout, FirstStart: true,
			CatchupTimeout: orDefault(g.catchup, 20*time.Second),
		})
		require.NoError(l.t, err)
		return n
	}
	voters := strings.Fields(g.voters)
	for i, port := range voters {
		if i > 0 && !strings.Contains(g.down, port) {
			node(port, conf, time.Hour) // never campaigns
		}
	}
	for _, port := range strings.Fields(g.others) {
		node(port, Configuration{}, time.Hour)
	}
	if len(voters) == 0 {
		return
	}
	// The others will not elect another one, nor this one again, should it lose its office for a stall.
	lead := node(voters[0], conf, 10*time.Second)
	lead.post(func() { lead.electionAt = lead.now })
	require.Eventually(l.t, func() bool {
		s := lead.Status()
		for _, h := range l.hosts {
			if n := h.Node("Counter"); strings.Contains(g.voters, n.PeerID().Address[10:]) && n.LeaderID().IsZero() {
				return false
			}
		}
		for _, f := range s.Followers {
			if f.Match < s.LastIndex && !strings.Contains(g.down, f.Peer.Address[10:]) {
				return false
			}
		}
		return s.Role == RoleLeader && s.Stage == StageNone
	}, 30*time.Second, time.Millisecond, "no leader")
}

// ask asks the host at a port and waits for the answer.
func (l *lan) ask(port, service, method string, message []byte) rpc.Reply {
	l.t.Helper()
	return askHost(l.t, l.hosts["127.0.0.1:"+port], service, method, message)
}

func askHost(t *testing.T, h *Host, service, method string, message []byte) rpc.Reply {
	t.Helper()
	c := make(chan rpc.Reply, 1)
	h.serve(rpc.NewRequest(service, method, message, nil, "test", func(code int32, text string, message []byte, _ [][]byte) {
		c <- rpc.Reply{Code: code, Text: text, Message: message}
	}))
	select {
	case r := <-c:
		return r
	case <-time.After(20 * time.Second):
		require.Fail(t, "no answer", "%s.%s", service, method)
		return rpc.Reply{}
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
	require.NoError(t, err)
	return b
}

// cliFrames returns what braft_cli and braft said to each other, by the exchange's name.
func cliFrames(t *testing.T) map[string][2]rpc.Frame { return framesOf(t, cliService) }

// framesOf returns the requests to a service of braft's that were recorded, with the answers, by the exchange's name.
func framesOf(t *testing.T, service string) map[string][2]rpc.Frame {
	file, err := os.Open("internal/baidustd/testdata/frames.jsonl")
	require.NoError(t, err)
	defer file.Close()
	frames := make(map[string][2]rpc.Frame)
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c struct{ Name, Direction, Service, Hex string }
		require.NoError(t, json.Unmarshal(lines.Bytes(), &c))
		if c.Service != service {
			continue
		}
		raw, err := hex.DecodeString(c.Hex)
		require.NoError(t, err)
		f, err := rpc.DecodeFrame(raw)
		require.NoError(t, err, c.Name)
		pair := frames[c.Name]
		if c.Direction == "request" {
			pair[0] = f
		} else {
			pair[1] = f
		}
		frames[c.Name] = pair
	}
	require.NoError(t, lines.Err())
	return frames
}

// TestOperatorsGetBraftsAnswers replays every exchange of braft_cli with a real braft: the same
// group gives the same answer, byte for byte, save that an error may go on to say why.
func TestOperatorsGetBraftsAnswers(t *testing.T) {
	three := lanGroup{voters: "28101 28100 28102"}
	busy := func(l *lan) { // a change that does not end while the test runs
		c := make(chan error, 1)
		l.hosts["127.0.0.1:28101"].Node("Counter").AddPeer(lanPeer("28109"), func(err error) { c <- err })
		require.Eventually(l.t, func() bool {
			return l.hosts["127.0.0.1:28101"].Node("Counter").Status().Stage == StageCatchingUp
		}, 10*time.Second, time.Millisecond)
	}
	for _, test := range []struct {
		name  string
		port  string // who is asked
		group lanGroup
		first func(*lan)
	}{
		{"cli get_leader by real braft_cli, ok", "28100", lanGroup{voters: "28100 28101 28102"}, nil},
		{"cli add_peer by real braft_cli, ok", "28101", lanGroup{voters: "28101 28100 28102", others: "28103"}, nil},
		{"cli remove_peer by real braft_cli, ok", "28101", lanGroup{voters: "28101 28100 28102 28103"}, nil},
		{"cli change_peers by real braft_cli, ok", "28101", lanGroup{voters: "28101 28100 28102", others: "28103 28104"}, nil},
		{"cli transfer_leader by real braft_cli, ok", "28100", lanGroup{voters: "28100 28101 28102"}, nil},
		{"cli add_peer of a member: ok, old==new", "28101", lanGroup{voters: "28101 28100 28102 28103"}, nil},
		{"cli transfer_leader without peer_id (any)", "28121", lanGroup{voters: "28121 28120 28122"}, nil},
		{"cli reset_peer ok (equal configuration)", "28100", three, nil},
		{"cli reset_peer error: empty -> EINVAL", "28100", three, nil},
		{"cli get_leader error: ENOENT", "28100", three, nil},
		{"cli get_leader error: EAGAIN", "28103", lanGroup{others: "28103"}, nil},
		{"cli get_leader error: EINVAL", "28100", three, nil},
		{"cli add_peer error: EPERM", "28100", three, nil},
		{"cli add_peer error: ENOENT", "28101", three, nil},
		{"cli add_peer error: EINVAL", "28101", three, nil},
		{"cli add_peer error: ECATCHUP", "28101", lanGroup{voters: "28101 28100 28102", catchup: 100 * time.Millisecond}, nil},
		{"cli remove_peer error: EPERM", "28100", three, nil},
		{"cli remove_peer error: EBUSY", "28101", lanGroup{voters: "28101 28100 28102", catchup: time.Hour}, busy},
		{"cli change_peers error: EPERM", "28100", three, nil},
		{"cli change_peers error: EINVAL", "28101", three, nil},
		{"cli transfer_leader error: EPERM", "28100", three, nil},
		{"cli transfer_leader error: EBUSY", "28101", lanGroup{voters: "28101 28100 28102", catchup: time.Hour}, busy},
		{"cli transfer_leader error: EINVAL", "28101", three, nil},
		{"cli transfer_leader error: EHOSTUNREACH", "28101", lanGroup{voters: "28101 28100 28102", down: "28102"}, nil},
		{"cli snapshot error: ENOENT", "28100", three, nil},
		{"cli snapshot error: EACCES", "28101", lanGroup{voters: "28101 28100 28102", disabled: true}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			pair, ok := cliFrames(t)[test.name]
			require.True(t, ok, "no such exchange was recorded")
			l := newLan(t)
			l.start(test.group)
			if test.first != nil {
				test.first(l)
			}
			got := l.ask(test.port, pair[0].Service, pair[0].Method, pair[0].Message)
			want := pair[1]
			assert.Equal(t, want.Code, got.Code, "%s", got.Text)
			if want.Code == 0 {
				assert.Equal(t, hex.EncodeToString(want.Message), hex.EncodeToString(got.Message))
			} else {
				text := rpc.ErrorText("127.0.0.1:"+test.port, got.Code, got.Text)
				assert.Regexp(t, "^"+regexp.QuoteMeta(want.Text)+"($|[:,])", text)
			}
		})
	}
}

func TestOperatorsAreToldWhichReplicaIsMissing(t *testing.T) {
	l := newLan(t)
	l.start(lanGroup{voters: "1"})
	_, err := l.hosts["127.0.0.1:1"].StartNode("Counter", NodeOptions{StateMachine: &recorder{}, Index: 3})
	require.NoError(t, err)
	l.host("127.0.0.1:2", false)
	for _, test := range []struct {
		name, port, group, peer string
		code                    int32
		text                    string
	}{
		{"no id, several replicas", "1", "Counter", "", 22, "peer must be specified since there're 2 nodes in group Counter"},
		{"no id, no replica", "2", "Counter", "", 2, "Fail to find node in group Counter"},
		{"not an id", "1", "Counter", "garbage", 22, "Fail to parse garbage"},
		{"not an id, nor a text", "1", "Counter", "a\xffb", 22, "Fail to parse a?b"},
		{"longer than any id", "1", "Counter", strings.Repeat("x", 5000), 22, "Fail to parse " + strings.Repeat("x", maxPeerIDLen) + "..."},
		{"another index", "1", "Counter", "127.0.0.1:1:7", 2, "Fail to find node 127.0.0.1:1:7 in group Counter"},
		{"another host", "1", "Counter", "127.0.0.1:2", 2, "Fail to find node 127.0.0.1:2 in group Counter"},
		{"another group", "1", "nope", "127.0.0.1:1", 2, "Fail to find node 127.0.0.1:1 in group nope"},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, c := range adminCalls {
				if c.method == methodGetLeader {
					continue
				}
				r := l.ask(test.port, c.service, c.method, encode(t, c.request(test.group, test.peer)))
				assert.Equal(t, test.code, r.Code, c.method)
				assert.Equal(t, test.text, r.Text, c.method)
			}
		})
	}
}

// adminCalls has a request of each kind, to a replica of a group.
var adminCalls = []struct {
	service, method string
	request         func(group, peer string) proto.Message
}{
	{cliService, methodAddPeer, func(g, p string) proto.Message {
		return &raftpb.AddPeerRequest{GroupId: &g, LeaderId: &p, PeerId: proto.String("127.0.0.1:9")}
	}},
	{cliService, methodRemovePeer, func(g, p string) proto.Message {
		return &raftpb.RemovePeerRequest{GroupId: &g, LeaderId: &p, PeerId: proto.String("127.0.0.1:9")}
	}},
	{cliService, methodChangePeers, func(g, p string) proto.Message {
		return &raftpb.ChangePeersRequest{GroupId: &g, LeaderId: &p, NewPeers: []string{"127.0.0.1:1"}}
	}},
	{cliService, methodResetPeer, func(g, p string) proto.Message {
		return &raftpb.ResetPeerRequest{GroupId: &g, PeerId: &p, NewPeers: []string{"127.0.0.1:1"}}
	}},
	{cliService, methodSnapshot, func(g, p string) proto.Message {
		return &raftpb.SnapshotRequest{GroupId: &g, PeerId: &p}
	}},
	{cliService, methodGetLeader, func(g, p string) proto.Message {
		return &raftpb.GetLeaderRequest{GroupId: &g, PeerId: &p}
	}},
	{cliService, methodTransferLeader, func(g, p string) proto.Message {
		return &raftpb.TransferLeaderRequest{GroupId: &g, LeaderId: &p}
	}},
	{adminService, methodStatus, func(g, p string) proto.Message {
		return &raftpb.GroupStatusRequest{GroupId: &g, PeerId: &p}
	}},
	{adminService, methodChange, func(g, p string) proto.Message {
		return &raftpb.ChangeRequest{GroupId: &g, LeaderId: &p, NewPeers: []string{"127.0.0.1:1"}}
	}},
	{adminService, methodCancelChange, func(g, p string) proto.Message {
		return &raftpb.CancelChangeRequest{GroupId: &g, LeaderId: &p}
	}},
}

func TestOperatorsCanBeKeptOut(t *testing.T) {
	l := newLan(t)
	l.start(lanGroup{voters: "1", disabled: true})
	for _, c := range adminCalls {
		r := l.ask("1", c.service, c.method, encode(t, c.request("Counter", "127.0.0.1:1")))
		if c.method == methodGetLeader {
			assert.Zero(t, r.Code, "clients find the leader by it")
			continue
		}
		assert.Equal(t, int32(codeAccess), r.Code, c.method)
		assert.Contains(t, r.Text, "is not allowed to access node Counter:127.0.0.1:1:0:0", c.method)
	}
}

func TestOperatorsRubbishIsRefused(t *testing.T) {
	t.Parallel()
	l := newLan(t)
	l.start(lanGroup{voters: "1", catchup: time.Second}) // one or the other request may make sense
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range adminCalls {
		good := encode(t, c.request("Counter", "127.0.0.1:1"))
		for i := range good { // cut short, a required field is missing or a length is wrong
			if r := l.ask("1", c.service, c.method, good[:i]); c.method != methodGetLeader && c.method != methodSnapshot && r.Code == 0 {
				var m raftpb.GroupStatusRequest
				require.NoError(t, proto.Unmarshal(good[:i], &m), "%s carried out a request of %d bytes", c.method, i)
			}
		}
		for range 200 {
			b := append([]byte(nil), good...)
			for range 1 + rng.IntN(4) {
				b[rng.IntN(len(b))] = byte(rng.Uint32())
			}
			if c.method != methodResetPeer { // it might find sense in it, and obey
				l.ask("1", c.service, c.method, b)
			}
		}
		r := l.ask("1", c.service, c.method, append(good, make([]byte, maxRequest)...))
		assert.Equal(t, int32(codeBadRequest), r.Code, "%s: a request that is too large", c.method)
		r = l.ask("1", c.service, c.method, nil)
		assert.Equal(t, int32(codeBadRequest), r.Code, c.method)
		assert.Equal(t, "Fail to parse request message, CompressType=none, request_size=0", r.Text)
	}
	r := l.ask("1", cliService, "drop_table", nil)
	assert.Equal(t, int32(codeNoMethod), r.Code)
	assert.Equal(t, "Fail to find method=braft.CliService/drop_table", r.Text)
	assert.Equal(t, int32(codeNoMethod), l.ask("1", adminService, strings.Repeat("x", 1<<20), nil).Code)
	assert.Equal(t, RoleLeader, l.hosts["127.0.0.1:1"].Node("Counter").Status().Role)
}

func TestOperatorsRequestsMustMakeSense(t *testing.T) {
	l := newLan(t)
	l.start(lanGroup{voters: "1"})
	group, leader := proto.String("Counter"), proto.String("")
	tooMany := make([]string, maxPeers+1)
	for i := range tooMany {
		tooMany[i] = fmt.Sprintf("127.0.0.1:%d", i+1)
	}
	for _, test := range []struct {
		name, service, method string
		request               proto.Message
		text                  string
	}{
		{"a peer twice", cliService, methodChangePeers,
			&raftpb.ChangePeersRequest{GroupId: group, LeaderId: leader, NewPeers: []string{"a:1", "a:1:0:2"}}, "twice"},
		{"a zoo of peers", cliService, methodChangePeers,
			&raftpb.ChangePeersRequest{GroupId: group, LeaderId: leader, NewPeers: tooMany}, "at most 128"},
		{"a peer twice in a reset", cliService, methodResetPeer,
			&raftpb.ResetPeerRequest{GroupId: group, PeerId: leader, NewPeers: []string{"a:1", "a:1"}}, "twice"},
		{"an expectation that is none", adminService, methodChange,
			&raftpb.ChangeRequest{GroupId: group, LeaderId: leader, NewPeers: []string{"a:1"}, ExpectedPeers: []string{"b"}}, "Fail to parse b"},
		{"a deadline in the past", adminService, methodChange,
			&raftpb.ChangeRequest{GroupId: group, LeaderId: leader, NewPeers: []string{"a:1"}, DeadlineMs: proto.Int64(-1)}, "deadline_ms is -1"},
		{"a deadline beyond time", adminService, methodChange,
			&raftpb.ChangeRequest{GroupId: group, LeaderId: leader, NewPeers: []string{"a:1"}, DeadlineMs: proto.Int64(math.MaxInt64)}, "deadline_ms is"},
		{"a transfer to nothing", cliService, methodTransferLeader,
			&raftpb.TransferLeaderRequest{GroupId: group, LeaderId: leader, PeerId: proto.String("x")}, "Fail to parse x"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := l.ask("1", test.service, test.method, encode(t, test.request))
			assert.Equal(t, int32(ErrInvalid), r.Code)
			assert.Contains(t, r.Text, test.text)
		})
	}
	// A state machine without snapshots. Before anything is applied there is nothing to save.
	assert.Eventually(t, func() bool {
		r := l.ask("1", cliService, methodSnapshot, encode(t, &raftpb.SnapshotRequest{GroupId: group}))
		return r.Code == int32(ErrInvalid) && strings.Contains(r.Text, "Not supported")
	}, 10*time.Second, 5*time.Millisecond)
}

// TestALearnerComesAndGoesByBraftsMessages: what braft has no word for travels in the peer's role.
func TestALearnerComesAndGoesByBraftsMessages(t *testing.T) {
	l := newLan(t)
	l.start(lanGroup{voters: "1", others: "2"})
	group, leader := proto.String("Counter"), proto.String("127.0.0.1:1")
	add := func(peer string) *raftpb.AddPeerResponse {
		r := l.ask("1", cliService, methodAddPeer, encode(t, &raftpb.AddPeerRequest{GroupId: group, LeaderId: leader, PeerId: &peer}))
		require.Zero(t, r.Code, r.Text)
		m := new(raftpb.AddPeerResponse)
		require.NoError(t, proto.Unmarshal(r.Message, m))
		return m
	}
	m := add("127.0.0.1:2:0:2")
	assert.Equal(t, []string{"127.0.0.1:1:0:0"}, m.OldPeers)
	assert.Equal(t, []string{"127.0.0.1:1:0:0", "127.0.0.1:2:0:2"}, m.NewPeers)
	m = add("127.0.0.1:2")
	assert.Equal(t, []string{"127.0.0.1:1:0:0", "127.0.0.1:2:0:2"}, m.OldPeers)
	assert.Equal(t, []string{"127.0.0.1:1:0:0", "127.0.0.1:2:0:0"}, m.NewPeers)
	conf := l.hosts["127.0.0.1:1"].Node("Counter").Status().Conf
	assert.Equal(t, "127.0.0.1:1:0:0,127.0.0.1:2:0:0", conf.String())
}

func TestChangesHaveConditionsAndCanBeCalledOff(t *testing.T) {
	l := newLan(t)
	l.start(lanGroup{voters: "1", others: "2", catchup: time.Hour})
	h, group, leader := l.hosts["127.0.0.1:1"], proto.String("Counter"), proto.String("127.0.0.1:1")
	change := func(deadline int64, expected string, peers ...string) rpc.Reply {
		m := &raftpb.ChangeRequest{GroupId: group, LeaderId: leader, NewPeers: peers, DeadlineMs: &deadline}
		if expected != "" {
			m.ExpectedPeers = []string{expected}
		}
		return l.ask("1", adminService, methodChange, encode(t, m))
	}
	r := change(0, "127.0.0.1:2", "127.0.0.1:1", "127.0.0.1:2")
	assert.Equal(t, int32(ErrConfMismatch), r.Code, r.Text)
	r = change(20, "", "127.0.0.1:1", "127.0.0.1:9")
	assert.Equal(t, int32(ErrTimeout), r.Code, r.Text)

	cancel := encode(t, &raftpb.CancelChangeRequest{GroupId: group, LeaderId: leader})
	r = l.ask("1", adminService, methodCancelChange, cancel)
	assert.Equal(t, int32(ErrNotFound), r.Code, r.Text)
	called := make(chan rpc.Reply, 1)
	go func() { called <- change(0, "", "127.0.0.1:1", "127.0.0.1:9") }()
	require.Eventually(t, func() bool { return h.Node("Counter").Status().Change != nil }, 10*time.Second, time.Millisecond)
	m := new(raftpb.GroupStatusResponse)
	require.NoError(t, proto.Unmarshal(l.ask("1", adminService, methodStatus, encode(t, &raftpb.GroupStatusRequest{GroupId: group})).Message, m))
	assert.Equal(t, "catching-up", m.GetStage())
	assert.Equal(t, []string{"127.0.0.1:1:0:0", "127.0.0.1:9:0:0"}, m.GetChange().GetToPeers())
	r = l.ask("1", adminService, methodCancelChange, cancel)
	assert.Zero(t, r.Code, r.Text)
	assert.Equal(t, int32(ErrCanceled), receive(t, called).Code)

	r = change(20000, "127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:2")
	require.Zero(t, r.Code, r.Text)
	done := new(raftpb.ChangeResponse)
	require.NoError(t, proto.Unmarshal(r.Message, done))
	assert.Equal(t, []string{"127.0.0.1:1:0:0"}, done.OldPeers)
	assert.Equal(t, []string{"127.0.0.1:1:0:0", "127.0.0.1:2:0:0"}, done.NewPeers)
}

func TestNobodyToHandOverTo(t *testing.T) {
	l := newLan(t)
	l.start(lanGroup{voters: "1"})
	r := l.ask("1", cliService, methodTransferLeader, encode(t, &raftpb.TransferLeaderRequest{
		GroupId: proto.String("Counter"), LeaderId: proto.String("127.0.0.1:1"), PeerId: proto.String("0.0.0.0:0:0"),
	}))
	assert.Equal(t, int32(codeInternal), r.Code)
	assert.Contains(t, r.Text, "no other voter answers")
}

// TestALongChangeHoldsNobodyUp: on the connection on which a change was asked for, others are answered.
func TestALongChangeHoldsNobodyUp(t *testing.T) {
	c := newTestCluster(t, 1, NodeOptions{CatchupTimeout: time.Hour})
	c.startAll()
	c.leader()
	c.eventually(func() bool { return c.nodes[0].Status().Stage == StageNone }, "the first entry is not committed")
	client := newScriptedPeer()
	require.NoError(t, client.Start(rpc.StartOptions{Listen: "127.0.0.1:0", Serve: func(r *rpc.Request) { r.Fail(codeNoMethod, "") }}))
	defer func() { assert.NoError(t, client.Close()) }()
	ask := func(service, method string, m proto.Message) <-chan rpc.Reply {
		out := make(chan rpc.Reply, 1)
		client.Call(c.addrs[0], rpc.Call{Service: service, Method: method, Message: [][]byte{encode(t, m)}, Done: func(r rpc.Reply) { out <- r }})
		return out
	}
	group, leader := proto.String("g"), proto.String(c.addrs[0])
	added := ask(cliService, methodAddPeer, &raftpb.AddPeerRequest{GroupId: group, LeaderId: leader, PeerId: &freeAddrs(t, 1)[0]})
	c.eventually(func() bool {
		r := receive(t, ask(adminService, methodStatus, &raftpb.GroupStatusRequest{GroupId: group}))
		m := new(raftpb.GroupStatusResponse)
		require.NoError(t, proto.Unmarshal(r.Message, m))
		return m.GetStage() == "catching-up"
	}, "the change does not show")
	r := receive(t, ask(adminService, methodCancelChange, &raftpb.CancelChangeRequest{GroupId: group, LeaderId: leader}))
	assert.Zero(t, r.Code, r.Text)
	r = receive(t, added)
	assert.Equal(t, int32(ErrCanceled), r.Code, r.Text)
}

func TestFailuresInBraftsWords(t *testing.T) {
	idle, handing := new(Node), new(Node)
	idle.view.Store(new(nodeView))
	peer := MustParsePeerID("a:1")
	handing.view.Store(&nodeView{transfer: peer})
	change := func(r *rpc.Request, err error) { idle.failChange(r, err) }
	for _, test := range []struct {
		fail func(*rpc.Request, error)
		err  error
		code int32
		text string
	}{
		{change, &Error{Code: ErrNotLeader, Peer: peer}, 1, "Not leader"},
		{change, &Error{Code: ErrBusy, Op: "x"}, 16, "Doing another configuration change"},
		{change, &Error{Code: ErrBusy, Err: errors.New("it is joint")}, 16, "Doing another configuration change: it is joint"},
		{handing.failChange, &Error{Code: ErrBusy}, 16, "Is transferring leadership"},
		{change, &Error{Code: ErrCatchup, Peer: peer}, 10003, "Peer a:1:0:0 failed to catch up"},
		{change, &Error{Code: ErrCatchup, Peer: peer, Lag: 7, Err: errors.New("refused")}, 10003, "Peer a:1:0:0 failed to catch up, 7 entries behind: refused"},
		{change, &Error{Code: ErrUnknownOutcome}, 20001, "graft: outcome unknown: it may yet be committed"},
		{change, fmt.Errorf("why: %w", &Error{Code: ErrShutdown}), 10006, "why: graft: node is shut down"},
		{change, errors.New("odd"), 2001, "odd"},
		{failTransfer, &Error{Code: ErrNotLeader}, 1, "Fail to invoke transfer_leadership_to : Operation not permitted"},
		{failTransfer, &Error{Code: ErrInvalid, Err: errors.New("a learner")}, 22, "Fail to invoke transfer_leadership_to : Invalid argument: a learner"},
		{failTransfer, &Error{Code: ErrShutdown}, 10006, "Fail to invoke transfer_leadership_to : node is shut down"},
		{failTransfer, errors.New("odd"), 2001, "odd"},
	} {
		var code int32
		var text string
		test.fail(rpc.NewRequest("", "", nil, nil, "", func(c int32, s string, _ []byte, _ [][]byte) { code, text = c, s }), test.err)
		assert.Equal(t, test.code, code, test.text)
		assert.Equal(t, test.text, text)
	}
}

func TestStatusTravelsWhole(t *testing.T) {
	p, q := MustParsePeerID("a:1"), MustParsePeerID("b:2:3:2")
	conf, old := MustParseConfiguration("a:1,b:2:3:2"), MustParseConfiguration("a:1")
	s := Status{
		Group: "g", Peer: p, Role: RoleLeader, Term: 3, Vote: p, Leader: p,
		FirstIndex: 1, LastIndex: 9, DurableIndex: 8, CommitIndex: 7, AppliedIndex: 6,
		Conf: conf, OldConf: old, ConfIndex: 5, Stage: StageJoint, Awaited: []PeerID{q}, Transferring: q,
		Change: &ChangeStatus{From: old, To: conf, Elapsed: 1500 * time.Millisecond}, Waiting: true, Removed: true, Overridden: true,
		PendingEntries: 1, PendingBytes: 2, PendingReads: 4, Err: errors.New("why"),
		Followers: []FollowerStatus{{
			Peer: q, State: "replicate", Match: 4, Next: 5, InflightBytes: 10, Failures: 2, Err: errors.New("gone"),
			Lag: 5, Rate: 2.5, Remaining: 2 * time.Second, Silent: time.Second, CatchingUp: true, Leaving: true,
			SnapshotIndex: 3, SnapshotDone: 1, SnapshotTotal: 2,
		}},
		Snapshot: SnapshotStatus{
			Index: 1, Term: 2, Bytes: 3, State: SnapshotCopying, NextIndex: 4, From: "c:1", Done: 5, Total: 6, Resumed: 8, Rate: 7,
			Err: errors.New("full"),
		},
	}
	got := statusMessage(s)
	want := &raftpb.GroupStatusResponse{
		PeerId: proto.String("a:1:0:0"), Role: proto.String("leader"), Term: proto.Int64(3), Vote: proto.String("a:1:0:0"), LeaderId: proto.String("a:1:0:0"),
		FirstIndex: proto.Int64(1), LastIndex: proto.Int64(9), DurableIndex: proto.Int64(8), CommitIndex: proto.Int64(7), AppliedIndex: proto.Int64(6),
		Peers: []string{"a:1:0:0", "b:2:3:2"}, OldPeers: []string{"a:1:0:0"}, ConfIndex: proto.Int64(5), Stage: proto.String("joint"),
		Awaited: []string{"b:2:3:2"}, Transferring: proto.String("b:2:3:2"),
		Change:  &raftpb.ChangeStatus{FromPeers: []string{"a:1:0:0"}, ToPeers: []string{"a:1:0:0", "b:2:3:2"}, ElapsedMs: proto.Int64(1500)},
		Waiting: proto.Bool(true), Removed: proto.Bool(true), Overridden: proto.Bool(true), Error: proto.String("why"),
		PendingEntries: proto.Int64(1), PendingBytes: proto.Int64(2), PendingReads: proto.Int64(4),
		Followers: []*raftpb.Follower{{
			PeerId: proto.String("b:2:3:2"), State: proto.String("replicate"), Match: proto.Int64(4), Next: proto.Int64(5), Lag: proto.Int64(5),
			Rate: proto.Float64(2.5), RemainingMs: proto.Int64(2000), CatchingUp: proto.Bool(true), Leaving: proto.Bool(true),
			InflightBytes: proto.Int64(10), Failures: proto.Int64(2), SilentMs: proto.Int64(1000), Error: proto.String("gone"),
			SnapshotIndex: proto.Int64(3), SnapshotDoneBytes: proto.Int64(1), SnapshotTotalBytes: proto.Int64(2),
		}},
		Snapshot: &raftpb.SnapshotStatus{
			Index: proto.Int64(1), Term: proto.Int64(2), Bytes: proto.Int64(3), State: proto.String("copying"), NextIndex: proto.Int64(4),
			From: proto.String("c:1"), DoneBytes: proto.Int64(5), TotalBytes: proto.Int64(6), ResumedBytes: proto.Int64(8), Rate: proto.Float64(7),
			Error: proto.String("full"),
		},
	}
	assert.True(t, proto.Equal(want, got), "%v", got)

	m := statusMessage(Status{Peer: p, Followers: []FollowerStatus{{Peer: q, Remaining: time.Microsecond}, {Peer: q}}})
	assert.Nil(t, m.LeaderId, "nobody is not a peer")
	assert.Nil(t, m.Error)
	assert.Equal(t, int64(1), m.Followers[0].GetRemainingMs(), "0 would say that it is unknown")
	assert.Nil(t, m.Followers[1].RemainingMs)
}
