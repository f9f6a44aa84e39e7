package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

func TestUsage(t *testing.T) {
	for _, test := range []struct {
		args string
		want string
	}{
		{"", ""},
		{"--help", ""},
		{"help add", ""},
		{"leader", "--group is missing"},
		{"--group g leader", "--peers is missing"},
		{"--group g --peers x leader", `--peers: graft: peer "x": no port; want host:port[:index[:role]]`},
		{"--group g --peers 127.0.0.1:1, leader", `--peers: graft: peer ""`},
		{"--group g --peers 127.0.0.1:1 --timeout -1s leader", "--timeout is -1s, must not be negative"},
		{"--group g --peers 127.0.0.1:1 --timeout soon leader", `invalid argument "soon"`},
		{"--nope leader", "unknown flag: --nope"},
		{"depose", `unknown command "depose" for "graftctl"`},
		{"leader now", `unknown command "now" for "graftctl leader"`},
		{"learner", "say what to do with the learner: add, remove or promote"},
		{"snapshot", `say what to do with snapshots`},
		{"snapshot sav 127.0.0.1:1", `unknown command "sav", want save, list`},
		{"learner expel", `unknown command "expel", want add, remove or promote`},
		{"add", "accepts 1 arg(s), received 0"},
		{"add 127.0.0.1", `peer "127.0.0.1": no port`},
		{"transfer x y", "accepts at most 1 arg(s), received 2"},
		{"transfer x", `peer "x"`},
		{"change", "requires at least 1 arg(s)"},
		{"change 127.0.0.1:1,127.0.0.1:1", "names peer 127.0.0.1:1:0:0 twice"},
		{"change 127.0.0.1:1:0:2", "has no voter"},
		{"change 127.0.0.1:1 --expect x", `peer "x"`},
		{"change 127.0.0.1:1 --deadline -1s", "--deadline is -1s"},
		{"change 127.0.0.1:1 --deadline 1us", "--deadline is 1µs"},
		{"reset 127.0.0.1:1", "--peer is missing"},
		{"reset 127.0.0.1:1 --peer x", `peer "x"`},
		{"--group g --peers 127.0.0.1:1 --tls-ca /nowhere/ca leader", "--tls-ca: open /nowhere/ca"},
		{"--group g --peers 127.0.0.1:1 --tls-ca helpers_test.go leader", "has no certificate in PEM form"},
		{"--group g --peers 127.0.0.1:1 --tls-cert x leader", "--tls-cert and --tls-key belong together"},
		{"--group g --peers 127.0.0.1:1 --tls-cert x --tls-key x leader", "--tls-cert and --tls-key: open x"},
	} {
		t.Run(test.args, func(t *testing.T) {
			args := strings.Fields(test.args)
			e := begin(t, console{}, args...)
			if test.want == "" {
				assert.Contains(t, e.ok(), "graftctl")
				return
			}
			assert.Contains(t, e.fails(), test.want)
			f := begin(t, console{}, append(args, "--json")...).failsJSON()
			assert.Contains(t, f.Message, test.want)
		})
	}
	assert.Contains(t, begin(t, console{}, "add").fails(), "See graftctl add --help.")
}

func TestServersThatDoNotAnswer(t *testing.T) {
	gone := addresses(t, 2)
	said := ctl(t, strings.Join(gone, ","), "leader").fails()
	assert.Contains(t, said, "no server of group g can be reached:\n  "+gone[0]+": connection refused\n  "+gone[1]+": connection refused\n")
	assert.Contains(t, said, "Check --peers and the network.")
	assert.Contains(t, ctl(t, gone[0], "status").fails(), "no server of group g can be reached")

	// One that takes connections and says nothing.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	mute := l.Addr().String()
	for _, command := range []string{"leader", "status", "add 127.0.0.1:1"} {
		said = ctl(t, mute, append(strings.Fields(command), "--timeout", "2s")...).fails()
		assert.Contains(t, said, mute+": no answer in time", command)
	}
	f := ctl(t, mute, "leader", "--timeout", "50ms", "--json").failsJSON()
	assert.Contains(t, f.Message, "no answer in time")
	e := ctl(t, mute, "transfer")
	e.cancel()
	assert.Contains(t, e.fails(), "interrupted")
	e = ctl(t, mute, "add", "127.0.0.1:1")
	e.cancel()
	assert.Contains(t, e.fails(), "interrupted; nothing was changed")

	// One that speaks something else.
	f = begin(t, console{}, "--group", "g", "--peers", mute, "--tls-server-name", "x", "leader", "--timeout", "2s", "--json").failsJSON()
	assert.Contains(t, f.Message, "no server of group g can be reached")
}

func TestAGroupThatNobodyKnows(t *testing.T) {
	c := startCluster(t, 1)
	e := begin(t, console{}, "--group", "it's", "--peers", c.first[0], "leader")
	said := e.fails()
	assert.Contains(t, said, "no server that answers has a replica of group it's:\n  "+c.first[0]+": No nodes in group it's")
	assert.Contains(t, said, "Check --group and --peers.")
	f := begin(t, console{}, "--group", "nope", "--peers", c.first[0], "status", "--json").failsJSON()
	assert.Equal(t, int32(graft.ErrNotFound), f.Code)
	assert.Equal(t, `graftctl --peers a:1,b:2 --group 'it'\''s' peers`, (&app{group: "it's", peers: []string{"a:1", "b:2"}}).invocation("peers"))
	assert.Equal(t, `graftctl --group g peers`, (&app{group: "g"}).invocation("peers"))
}

func TestOperatorsThatAreKeptOut(t *testing.T) {
	c := newCluster(t)
	c.host.DisableAdmin = true
	c.startVoters(1)
	assert.Equal(t, ids(c.first[0])+"\n", c.ctl("leader").ok())
	for _, command := range []string{"status", "peers", "add 127.0.0.1:1", "learner add 127.0.0.1:1", "transfer", "cancel"} {
		said := c.ctl(strings.Fields(command)...).fails()
		assert.Contains(t, said, "is not allowed to access node g:"+ids(c.first[0]), command)
		assert.Contains(t, said, "HostOptions.DisableAdmin", command)
	}
}

// TestSeveralReplicasInAProcess: the address alone does not say which one is meant.
func TestSeveralReplicasInAProcess(t *testing.T) {
	c := startCluster(t, 1)
	_, err := c.hosts[c.first[0]].StartNode("g", graft.NodeOptions{StateMachine: nothing{}, Index: 3})
	require.NoError(t, err)
	two := c.first[0] + ":3:0"
	c.ctl("add", two).ok()
	assert.Equal(t, ids(c.first[0], two), c.conf())
	for _, asked := range []string{c.first[0] + ":0", two} {
		text := ctl(t, asked, "status").ok()
		assert.Regexp(t, ids(c.first[0])+" +voter +leader", text)
		assert.Regexp(t, two+" +voter +follower", text)
		assert.Equal(t, 2, strings.Count(text, "voter"))
	}
	assert.Contains(t, ctl(t, c.first[0], "status").fails(), "peer must be specified")
}

// braft answers as a group of two braft servers does whose leader this one is.
func braft(t *testing.T) (f *fake, other string) {
	other = "127.0.0.1:9:0:0"
	f = startFake(t, handlers{})
	me := f.address + ":0:0"
	f.h = handlers{
		"braft.CliService/get_leader": says(&raftpb.GetLeaderResponse{LeaderId: &me}),
		"braft.CliService/add_peer": func(r *rpc.Request) {
			m := new(raftpb.AddPeerRequest)
			if proto.Unmarshal(r.Message, m) != nil || m.GetLeaderId() != me {
				r.Fail(1003, "bad request")
				return
			}
			answer := &raftpb.AddPeerResponse{OldPeers: []string{other, me}, NewPeers: []string{other, me}}
			if p := m.GetPeerId(); p != me && p != other {
				answer.NewPeers = append(answer.NewPeers, p)
			}
			says(answer)(r)
		},
		"braft.CliService/remove_peer":     says(&raftpb.RemovePeerResponse{OldPeers: []string{other, me}, NewPeers: []string{me}}),
		"braft.CliService/change_peers":    says(&raftpb.ChangePeersResponse{OldPeers: []string{other, me}, NewPeers: []string{me}}),
		"braft.CliService/reset_peer":      says(&raftpb.ResetPeerResponse{}),
		"braft.CliService/transfer_leader": says(&raftpb.TransferLeaderResponse{}),
	}
	return f, other
}

func TestServersOfBraft(t *testing.T) {
	f, other := braft(t)
	me := f.address + ":0:0"
	assert.Equal(t, me+"\n", ctl(t, f.address, "leader").ok())
	assert.Regexp(t, "^"+other+" +voter *\n"+me+" +voter +leader\n$", ctl(t, f.address, "peers").ok())
	text := ctl(t, f.address, "status").ok()
	assert.Contains(t, text, "leader  "+me+"\n")
	assert.Regexp(t, me+` +- .* braft, follows `+me, text)
	var s statusResult
	strictly(t, ctl(t, f.address, "status", "--json").ok(), &s)
	assert.True(t, s.Replicas[0].Braft)

	add := ctl(t, f.address, "add", "127.0.0.1:8")
	assert.Equal(t, "before: "+other+","+me+"\nnow:    "+other+","+me+",127.0.0.1:8:0:0\n", add.ok())
	ctl(t, f.address, "remove", other).ok()
	ctl(t, f.address, "change", f.address).ok()
	ctl(t, f.address, "reset", f.address, "--peer", f.address, "--"+assent).ok()
	assert.Equal(t, me+" leads already\n", ctl(t, f.address, "transfer", f.address).ok())
	f.set("braft.CliService/transfer_leader", func(r *rpc.Request) {
		f.set("braft.CliService/get_leader", refuses(codeAgain, "Unknown leader"))
		says(&raftpb.TransferLeaderResponse{})(r)
	})
	said := ctl(t, f.address, "transfer", "--timeout", "5s").fails()
	assert.Contains(t, said, "leadership is being handed over, but group g has no leader that can be reached")

	f.set("braft.CliService/get_leader", says(&raftpb.GetLeaderResponse{LeaderId: &me}))
	said = ctl(t, f.address, "learner", "add", other).fails()
	assert.Contains(t, said, "is a server of braft, which has no learners")
	said = ctl(t, f.address, "cancel").fails()
	assert.Contains(t, said, f.address+" is a server of braft, which cannot do that")
	said = ctl(t, f.address, "change", f.address, "--expect", other).fails()
	assert.Contains(t, said, "Without --expect and --deadline it can do it.")
	assert.Equal(t, int32(codeNoMethod), ctl(t, f.address, "cancel", "--json").failsJSON().Code)
}

// TestBraftLosesItsLeaderMeanwhile: braft has one number for "I do not lead" and "I did, when it began".
func TestBraftLosesItsLeaderMeanwhile(t *testing.T) {
	f, _ := braft(t)
	f.set("braft.CliService/remove_peer", refuses(1, "leader stepped down"))
	got := ctl(t, f.address, "remove", "127.0.0.1:9", "--json").failsJSON()
	assert.Equal(t, outcomeUnknown, got.Outcome)
	assert.Contains(t, got.Message, "leader stepped down")
	assert.Contains(t, got.Hint, "may have been made")
	f.set("braft.CliService/remove_peer", refuses(int32(graft.ErrUnknownOutcome), "it may yet be committed"))
	assert.Equal(t, outcomeUnknown, ctl(t, f.address, "remove", "127.0.0.1:9", "--json").failsJSON().Outcome)
}

// TestWhoeverIsAskedForTheLeaderMayBeWrong: the one that is named has stopped to lead, then never led, then is gone.
func TestWhoeverIsAskedForTheLeaderMayBeWrong(t *testing.T) {
	f, _ := braft(t)
	c := startCluster(t, 1)
	real := ids(c.first[0])
	f.set("braft.CliService/remove_peer", func(r *rpc.Request) {
		f.set("braft.CliService/get_leader", says(&raftpb.GetLeaderResponse{LeaderId: &real}))
		r.Fail(1, "Not leader")
	})
	assert.Equal(t, "nothing to do: 127.0.0.1:9:0:0 is no member\n", ctl(t, f.address, "remove", "127.0.0.1:9").ok())
	assert.True(t, f.called("braft.CliService/remove_peer"))

	liar := startFake(t, handlers{"braft.CliService/get_leader": says(&raftpb.GetLeaderResponse{LeaderId: proto.String(f.address)})})
	assert.Equal(t, real+"\n", ctl(t, liar.address+","+c.first[0], "leader").ok())
	said := ctl(t, liar.address, "leader", "--timeout", "5s").fails()
	assert.Contains(t, said, liar.address+" names "+f.address+":0:0 as the leader, which names "+real)

	gone := addresses(t, 1)[0]
	liar.set("braft.CliService/get_leader", says(&raftpb.GetLeaderResponse{LeaderId: &gone}))
	said = ctl(t, liar.address, "leader", "--timeout", "5s").fails()
	assert.Contains(t, said, liar.address+" names "+gone+":0:0 as the leader, but "+gone+": connection refused")
	liar.set("braft.CliService/get_leader", says(&raftpb.GetLeaderResponse{LeaderId: proto.String("rubbish")}))
	assert.Contains(t, ctl(t, liar.address, "leader", "--timeout", "5s").fails(), `peer "rubbish"`)
	liar.set("braft.CliService/get_leader", func(r *rpc.Request) { r.Reply([]byte{0xff}) })
	assert.Contains(t, ctl(t, liar.address, "leader", "--timeout", "5s").fails(), liar.address+": ")

	forever := startFake(t, handlers{}) // a server that never led, and says so each time
	me := forever.address + ":0:0"
	forever.set("braft.CliService/get_leader", says(&raftpb.GetLeaderResponse{LeaderId: &me}))
	forever.set("braft.CliService/remove_peer", refuses(1, "Not leader"))
	got := ctl(t, forever.address, "remove", "127.0.0.1:9", "--json").failsJSON()
	assert.Equal(t, outcomeNone, got.Outcome)
	assert.Contains(t, got.Hint, "Leadership is moving")
}

// TestTheLeaderIsBusyForAMoment: a new leader refuses changes until its first entry is committed.
func TestTheLeaderIsBusyForAMoment(t *testing.T) {
	f, _ := braft(t)
	f.set("braft.CliService/remove_peer", func(r *rpc.Request) {
		f.set("braft.CliService/remove_peer", says(&raftpb.RemovePeerResponse{}))
		r.Fail(16, "Doing another configuration change")
	})
	ctl(t, f.address, "remove", "127.0.0.1:9").ok()
}

// TestTheLeaderDiesMeanwhile: whether it happened nobody can tell.
func TestTheLeaderDiesMeanwhile(t *testing.T) {
	f, _ := braft(t)
	asked := make(chan struct{})
	f.set("braft.CliService/add_peer", func(*rpc.Request) { close(asked) })
	e := ctl(t, f.address, "add", "127.0.0.1:8", "--json")
	<-asked
	require.NoError(t, f.tcp.Close())
	got := e.failsJSON()
	assert.Equal(t, outcomeUnknown, got.Outcome)
	assert.Contains(t, got.Message, "the connection to the leader was lost")
	assert.Contains(t, got.Hint, "graftctl --peers "+f.address+" --group g peers")
}

func TestAResetThatIsNotAnswered(t *testing.T) {
	f, _ := braft(t)
	f.set("braft.CliService/reset_peer", func(*rpc.Request) {})
	got := begin(t, console{}, "--group", "g", "reset", f.address, "--peer", f.address, "--"+assent, "--timeout", "5s").fails()
	assert.Contains(t, got, "it may have been reset")
	assert.Contains(t, got, "See whether it was: graftctl --group g status")
}

// TestALearnerIsChangedByAnotherOperatorMeanwhile: the change is planned anew on what the group is now.
func TestALearnerIsChangedByAnotherOperatorMeanwhile(t *testing.T) {
	f, _ := braft(t)
	me, leads := f.address+":0:0", proto.String("leader")
	show := func(peers ...string) {
		f.set("graft.AdminService/Status", says(&raftpb.GroupStatusResponse{PeerId: &me, Role: leads, Peers: peers}))
	}
	show(me, "127.0.0.1:8:0:2")
	f.set("graft.AdminService/Change", func(r *rpc.Request) {
		show(me) // somebody has removed it
		r.Fail(int32(graft.ErrConfMismatch), "configuration is not the expected one")
	})
	said := ctl(t, f.address, "learner", "promote", "127.0.0.1:8").fails()
	assert.Contains(t, said, "127.0.0.1:8:0:0 is no member of the group")
	assert.True(t, f.called("graft.AdminService/Change"))
}

// TestATransferThatComesToNothing: the old leader takes leadership back.
func TestATransferThatComesToNothing(t *testing.T) {
	f, _ := braft(t)
	me := f.address + ":0:0"
	f.set("graft.AdminService/Status", says(&raftpb.GroupStatusResponse{PeerId: &me, Role: proto.String("leader")}))
	said := ctl(t, f.address, "transfer", "127.0.0.1:9").fails()
	assert.Contains(t, said, me+" leads still: the other did not take over in time")
	f.set("graft.AdminService/Status", says(&raftpb.GroupStatusResponse{PeerId: &me, Role: proto.String("leader"), Transferring: proto.String("x")}))
	said = ctl(t, f.address, "transfer", "--timeout", "5s").fails()
	assert.Contains(t, said, "leadership is being handed over, but "+me+" leads still")

	c := startCluster(t, 1)
	another := ids(c.first[0])
	f.set("braft.CliService/transfer_leader", func(r *rpc.Request) {
		f.set("braft.CliService/get_leader", says(&raftpb.GetLeaderResponse{LeaderId: &another}))
		says(&raftpb.TransferLeaderResponse{})(r)
	})
	said = ctl(t, f.address, "transfer", "127.0.0.1:9").fails()
	assert.Contains(t, said, another+" leads now, and not 127.0.0.1:9:0:0")
}

// overdue is a context whose deadline passes when it is told to.
type overdue struct {
	context.Context
	done chan struct{}
}

func (o overdue) Done() <-chan struct{} { return o.done }

func (o overdue) Err() error {
	select {
	case <-o.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// TestATransferThatTakesLonger: time is over while somebody is asked who leads now. That he has not answered says nothing.
func TestATransferThatTakesLonger(t *testing.T) {
	for _, test := range []struct {
		seen bool // the old leader was found to lead still, before that
		want string
	}{
		{true, "leadership is being handed over, but ME leads still"},
		{false, "leadership is being handed over, but no server of group g can be reached:\n  ADDRESS: no answer in time"},
	} {
		f, _ := braft(t)
		me := f.address + ":0:0"
		f.set("graft.AdminService/Status", says(&raftpb.GroupStatusResponse{PeerId: &me, Role: proto.String("leader"), Transferring: proto.String("x")}))
		ctx := overdue{t.Context(), make(chan struct{})}
		silent := func(*rpc.Request) { close(ctx.done) }
		f.set("braft.CliService/get_leader", func(r *rpc.Request) {
			if !test.seen {
				silent(r)
				return
			}
			f.set("braft.CliService/get_leader", silent)
			says(&raftpb.GetLeaderResponse{LeaderId: &me})(r)
		})
		old := graft.MustParsePeerID(me)
		c, err := newClient(&app{group: "g", servers: []server{serverOf(old)}})
		require.NoError(t, err)
		_, err = c.newLeader(ctx, old)
		c.close()
		assert.EqualError(t, err, strings.NewReplacer("ME", me, "ADDRESS", f.address).Replace(test.want))
	}
}

// TestTLS runs a group that lets nobody in without a certificate.
func TestTLS(t *testing.T) {
	ca, cert, key := certificates(t)
	flags := tlsFlags{ca: ca, cert: cert, key: key}
	c := newCluster(t)
	var err error
	c.host.TLS, err = flags.config()
	require.NoError(t, err)
	c.host.TLS.ClientAuth, c.host.TLS.ClientCAs = tls.RequireAndVerifyClientCert, c.host.TLS.RootCAs
	c.startVoters(1)
	ours := []string{"--tls-ca", ca, "--tls-cert", cert, "--tls-key", key}
	assert.Equal(t, ids(c.first[0])+"\n", c.ctl(append(ours, "leader")...).ok())
	c.ctl(append(ours, "status", "--tls-server-name", "graft.test")...).ok()

	said := c.ctl("leader").fails()
	assert.Contains(t, said, "give --tls-ca, --tls-cert and --tls-key")
	said = c.ctl("leader", "--tls-ca", ca).fails()
	assert.Contains(t, said, "no server of group g can be reached")
	said = c.ctl(append(ours, "leader", "--tls-server-name", "elsewhere.test")...).fails()
	assert.Contains(t, said, "elsewhere.test")
}

// certificates makes an authority and a certificate for loopback that it has signed.
func certificates(t *testing.T) (ca, cert, key string) {
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	parent := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, parent, parent, &caKey.PublicKey, caKey)
	require.NoError(t, err)
	ca = write("ca.pem", "CERTIFICATE", der)
	ours, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"graft.test"},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, parent, &ours.PublicKey, caKey)
	require.NoError(t, err)
	cert = write("cert.pem", "CERTIFICATE", der)
	der, err = x509.MarshalPKCS8PrivateKey(ours)
	require.NoError(t, err)
	return ca, cert, write("key.pem", "PRIVATE KEY", der)
}
