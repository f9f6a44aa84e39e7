package graft

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// stickSyncs has syncs wait for the gate, and says so of each.
func stickSyncs(gate <-chan struct{}, syncing chan<- struct{}) vfs.Injector {
	return func(op vfs.Op) error {
		if op.Kind == vfs.KindSync {
			select {
			case syncing <- struct{}{}:
			default:
			}
			<-gate
		}
		return nil
	}
}

// R3, A7: a leader that cannot read its log fails, and says why. What it cannot read it does not take for the log's end: the
// follower that it was to bring up has nothing that is not in the group's log, and gets the rest from the next leader.
func TestALeaderThatCannotReadItsLogFails(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient, CacheBytes: 1, MaxAppendBytes: 2 << 10})
	lead := c.startGroup()
	behind, third := (lead+1)%3, (lead+2)%3
	c.stop(behind)
	for i := range 50 {
		c.propose(fmt.Sprint(i, strings.Repeat(" ", 1000)))
	}
	c.disks[lead].SetInjector(vfs.Fail(syscall.EIO, vfs.KindRead))
	c.start(behind)
	s := c.status(lead, func(s Status) bool { return s.Role == RoleFailed }, "the node does not report that it cannot read")
	assert.ErrorIs(t, s.Err, syscall.EIO)
	c.eventually(func() bool { return len(c.fsms[lead].errors()) == 1 }, "OnError was not called")
	assert.ErrorIs(t, c.fsms[lead].errors()[0], ErrIO)
	c.missed(lead)
	c.hurry(third)
	c.propose("after")
	assert.Len(t, c.sameData(behind, third), 51)
}

// R8: however many entries conflict, the follower gets on to those of the present leader.
func TestALongTailThatConflictsIsReplaced(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient, MaxAppendBytes: 256})
	old := c.startGroup()
	c.ahead(old, "lost", 500)
	c.cutOff(old)
	c.hurry((old + 1) % 3)
	for i := range 20 {
		c.propose(fmt.Sprint("kept-", i))
	}
	for _, p := range c.calls {
		require.ErrorIs(t, p.wait(), ErrUnknownOutcome)
	}
	c.net.set()
	for _, data := range c.sameData(0, 1, 2) {
		assert.NotContains(t, data, "lost")
	}
	c.eventually(func() bool {
		return c.nodes[old].Status().LastIndex == c.nodes[c.leader()].Status().LastIndex
	}, "a part of the old log is left")
}

// C5, X1, X2, X9: what is durable leaves the memory, whether it is applied or not, and whether all have it or not.
func TestMemoryDoesNotGrowWithTheLog(t *testing.T) {
	const cache, size = 8 << 10, 1000
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: patient, CacheBytes: cache})
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	var slow atomic.Int64
	slow.Store(-1)
	c.onApply = func(host int, _ string) {
		if int64(host) == slow.Load() {
			<-gate
		}
	}
	lead := c.startGroup()
	slow.Store(int64(lead+1) % 3)
	c.stop((lead + 2) % 3)
	for i := range 100 {
		c.propose(fmt.Sprint(i, strings.Repeat(" ", size)))
	}
	for _, i := range c.running() {
		c.eventually(func() bool { return c.nodes[i].lm.held() <= cache+2*size }, "entries that are durable are still in memory")
	}
	open()
	c.start((lead + 2) % 3)
	assert.Len(t, c.sameData(0, 1, 2), 100)
}

// held is how many bytes of entries are in memory.
func (l *logManager) held() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range l.cache {
		n += b.Size()
	}
	return n
}

// A8: that a node is started a second time leaves the first one as it is.
func TestASecondStartLeavesTheFirstNodeAlone(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{})
	lead := c.startGroup()
	other := (lead + 1) % 3
	_, err := c.hosts[other].StartNode("g", NodeOptions{StateMachine: &recorder{}, InitialConf: c.conf})
	require.ErrorIs(t, err, ErrBusy)
	c.stop((lead + 2) % 3) // from now on it is needed
	c.propose("with it")
	c.stop(lead)
	c.start((lead + 2) % 3)
	c.propose("with it again")
	assert.Contains(t, c.sameData(other), "with it again")
}

// X10: a follower that answers late delays nobody.
func TestASlowFollowerDelaysNobody(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{MaxInflightRequests: 4})
	lead := c.startGroup()
	c.net.set(slowEntries((lead+1)%3, time.Hour))
	for i := range 50 {
		c.propose(fmt.Sprint(i))
	}
	assert.Len(t, c.sameData(lead, (lead+2)%3), 50)
}

// absurd are numbers that no healthy peer sends as a term.
var absurd = []int64{math.MinInt64, -1, maxTerm, math.MaxInt64}

// T2, T3: whatever numbers and names a message holds, nobody panics or leaves the range of terms, and the group works on.
func TestAbsurdMessagesHarmNobody(t *testing.T) {
	c := newTestCluster(t, 3, NodeOptions{})
	lead := c.startGroup()
	c.propose("before")
	s := newScriptedLeader(c)
	term := c.nodes[lead].Status().Term
	for i := range c.hosts {
		for _, n := range absurd {
			for _, name := range []string{c.addrs[lead] + ":0", "", "nobody", "a:99999999999:0", strings.Repeat("a", 5000)} {
				for method, m := range absurdMessages(name, c.peer(i).String(), n) {
					s.raw(i, method, [][]byte{m}, nil)
				}
			}
			s.absurdEntries(i, lead, term, n)
		}
	}
	c.propose("after")
	assert.Equal(t, []string{"before", "after"}, c.sameData(0, 1, 2))
	for i, n := range c.nodes {
		assert.Less(t, n.Status().Term, term+100, "host %d", i)
	}
}

// absurdMessages are messages with an absurd term from somebody. A vote request of a good term would be
// granted if its log is said to be long: that is a candidate's right.
func absurdMessages(from, to string, n int64) map[string][]byte {
	group, all := "g", make(map[string][]byte)
	for method, m := range map[string]proto.Message{
		methodPreVote: &raftpb.RequestVoteRequest{
			GroupId: &group, ServerId: &from, PeerId: &to, Term: &n, LastLogTerm: &n, LastLogIndex: &n,
		},
		methodRequestVote: &raftpb.RequestVoteRequest{
			GroupId: &group, ServerId: &from, PeerId: &to, Term: &n, LastLogTerm: &n, LastLogIndex: &n,
			DisruptedLeader: &raftpb.TermLeader{PeerId: &from, Term: &n},
		},
		methodTimeoutNow: &raftpb.TimeoutNowRequest{GroupId: &group, ServerId: &from, PeerId: &to, Term: &n},
		methodInstall: &raftpb.InstallSnapshotRequest{
			GroupId: &group, ServerId: &from, PeerId: &to, Term: &n, Uri: &from,
			Meta: &raftpb.SnapshotMeta{LastIncludedIndex: &n, LastIncludedTerm: &n, Peers: []string{from}},
		},
		methodReadIndex: &raftpb.ReadIndexRequest{GroupId: &group, ServerId: &from, PeerId: &to},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			panic(err)
		}
		all[method] = b
	}
	return all
}

// absurdEntries sends requests that are wrong in one number each, as if by the leader.
func (s *scriptedLeader) absurdEntries(to, leader int, term, n int64) {
	var b entry.Builder
	b.Reset(math.MaxInt64 - 1)
	b.AppendData(term, []byte("x"))
	far := b.Build()
	b.Reset(2)
	b.AppendData(max(n, 1), []byte("x"))
	late := b.Build()
	for _, m := range []wire.AppendRequest{
		{Term: n},
		{Term: term, PrevTerm: n},
		{Term: term, PrevTerm: term, PrevIndex: n},
		{Term: term, Commit: n},
		{Term: term, PrevTerm: term, PrevIndex: math.MaxInt64 - 2, Entries: far},
		{Term: n, PrevTerm: 1, PrevIndex: 1, Entries: late},
	} {
		m.GroupID, m.ServerID, m.PeerID = []byte("g"), []byte(s.c.peer(leader).String()), []byte(s.c.peer(to).String())
		if to == leader {
			m.ServerID = []byte(s.c.peer((leader + 1) % 3).String())
			if m.Term == term { // it would have to believe in another leader of its term
				continue
			}
		}
		s.raw(to, methodAppendEntries, [][]byte{m.AppendHead(nil), m.Entries.Metas, m.AppendTail(nil)}, [][]byte{m.Entries.Data})
	}
}

// raw sends a message to a host, and waits for any answer.
func (s *scriptedLeader) raw(to int, method string, message, attachment [][]byte) {
	s.c.t.Helper()
	service := raftService
	if method == methodReadIndex {
		service = nodeService
	}
	answer := make(chan rpc.Reply, 1)
	s.tcp.Call(s.c.addrs[to], rpc.Call{
		Service: service, Method: method, Timeout: 10 * time.Second, Message: message, Attachment: attachment,
		Done: func(r rpc.Reply) { answer <- r },
	})
	require.NoError(s.c.t, receive(s.c.t, answer).Err, "no answer to %s", method)
}
