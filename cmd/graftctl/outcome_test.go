package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// showing is a leader's status while it changes the group; while it does not, if to is empty.
func showing(from, to string) *raftpb.GroupStatusResponse {
	s := &raftpb.GroupStatusResponse{PeerId: proto.String("a:1:0:0"), Role: proto.String("leader"), Stage: proto.String("none")}
	if to != "" {
		s.Stage = proto.String("catching-up")
		s.Change = &raftpb.ChangeStatus{FromPeers: strings.Split(from, ","), ToPeers: strings.Split(to, ",")}
	}
	return s
}

// TestAChangeThatIsLeft: that it goes on is said only if the leader shows it.
func TestAChangeThatIsLeft(t *testing.T) {
	const peer = "127.0.0.1:8:0:0"
	add, remove, change := []string{"add", peer}, []string{"remove", peer}, []string{"change", "127.0.0.1:7," + peer}
	mute := func(*rpc.Request) {}
	for _, test := range []struct {
		name    string
		args    []string
		status  func(*rpc.Request)
		running bool
	}{
		{"nothing is heard of the leader", add, mute, false},
		{"it does not do it", add, says(showing("", "")), false},
		{"it cannot tell", add, refuses(codeNoMethod, "Fail to find method"), false},
		{"it does not lead any more", add, refuses(1, "Not leader"), false},
		{"it adds another", add, says(showing("a:1", "a:1,b:2")), false},
		{"it adds another to the peer", add, says(showing("a:1,"+peer, "a:1,b:2,"+peer)), false},
		{"it adds the peer", add, says(showing("a:1", "a:1,"+peer)), true},
		{"it promotes the peer", add, says(showing("a:1,127.0.0.1:8:0:2", "a:1,"+peer)), true},
		{"it removes another", remove, says(showing("a:1,b:2,"+peer, "a:1,"+peer)), false},
		{"it removes another than the peer, which is no member", remove, says(showing("a:1,b:2", "a:1")), false},
		{"it removes the peer", remove, says(showing("a:1,"+peer, "a:1")), true},
		{"it changes to others", change, says(showing("a:1", peer)), false},
		{"it changes to these", change, says(showing("a:1", peer+",127.0.0.1:7")), true},
		{"what it says makes no sense", change, says(showing("a:1", "rubbish")), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f, _ := braft(t)
			asked := make(chan struct{})
			for _, method := range []string{"add_peer", "remove_peer", "change_peers"} {
				f.set("braft.CliService/"+method, func(*rpc.Request) { close(asked) })
			}
			f.set("graft.AdminService/Status", test.status)
			e := ctl(t, f.address, append(test.args, "--json")...)
			<-asked
			e.cancel()
			got := e.failsJSON()
			assert.Contains(t, got.Message, "interrupted")
			if test.running {
				assert.Equal(t, outcomeRunning, got.Outcome)
				assert.Contains(t, got.Message, "the change goes on at the leader, "+f.address+":0:0")
				return
			}
			assert.Equal(t, outcomeUnknown, got.Outcome)
			assert.Contains(t, got.Hint, "graftctl --peers "+f.address+" --group g peers")
		})
	}
}

// TestAChangeEndsAsItIsLeft: what the leader has answered by then counts.
func TestAChangeEndsAsItIsLeft(t *testing.T) {
	f, _ := braft(t)
	var e *execution
	asked := make(chan *rpc.Request, 1)
	begun := make(chan struct{})
	f.set("braft.CliService/add_peer", func(r *rpc.Request) { asked <- r })
	f.set("graft.AdminService/Status", func(r *rpc.Request) {
		<-begun
		e.cancel()
		f.set("graft.AdminService/Status", func(r *rpc.Request) { // asked once more
			(<-asked).Fail(int32(graft.ErrCatchup), "Peer failed to catch up")
			says(showing("a:1", "a:1,127.0.0.1:8"))(r)
		})
	})
	e = ctl(t, f.address, "add", "127.0.0.1:8")
	close(begun)
	assert.Contains(t, e.fails(), "Peer failed to catch up")
}

// TestTheLeaderIsAskedAllTheTime: else nobody would notice that the connection is cut.
func TestTheLeaderIsAskedAllTheTime(t *testing.T) {
	const times = 5
	for _, method := range []string{"graft.AdminService/Status", "braft.CliService/get_leader"} {
		f, _ := braft(t)
		me := f.address + ":0:0"
		answer := says(&raftpb.GetLeaderResponse{LeaderId: &me}) // of a server of braft
		if method == "graft.AdminService/Status" {
			answer = says(showing("", ""))
		}
		f.set("braft.CliService/add_peer", func(added *rpc.Request) {
			n := 0
			f.set(method, func(r *rpc.Request) { // on the goroutine that served add_peer
				if n++; n == times {
					says(&raftpb.AddPeerResponse{NewPeers: []string{me}})(added)
				}
				answer(r)
			})
		})
		ctl(t, f.address, "add", "127.0.0.1:8", "--json").ok()
	}
}
