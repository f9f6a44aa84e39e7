package graft

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
)

// braftPeer is a process that follows as a braft node does: it stores what it is sent, and knows nothing of graft's
// own fields.
type braftPeer struct {
	peer PeerID
	mu   sync.Mutex
	last int64
}

func startBraftPeer(t *testing.T) *braftPeer {
	b := &braftPeer{peer: PeerID{Address: freeAddrs(t, 1)[0]}}
	tcp := newScriptedPeer()
	require.NoError(t, tcp.Start(rpc.StartOptions{Listen: b.peer.Address, Address: b.peer.Address, Incarnation: 1, Serve: b.serve}))
	t.Cleanup(func() { assert.NoError(t, tcp.Close()) })
	return b
}

func (b *braftPeer) serve(req *rpc.Request) {
	if req.Service != raftService || req.Method != methodAppendEntries {
		req.Fail(codeNoMethod, "Fail to find method")
		return
	}
	m, err := wire.ParseAppendRequest(req.Message, req.Attachment)
	if err != nil {
		req.Fail(codeBadRequest, err.Error())
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	resp := wire.AppendResponse{Term: m.Term, Success: true}
	if m.PrevIndex > b.last {
		resp = wire.AppendResponse{Term: m.Term, LastIndex: b.last, HasLastIndex: true}
	} else {
		b.last = max(b.last, m.PrevIndex+int64(m.Entries.Count))
	}
	req.Reply(resp.Append(nil))
}

func (b *braftPeer) stored() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last
}

// addTo makes the peer a member, by a host's node.
func (b *braftPeer) addTo(c *cluster, i int) error {
	return c.begin(i, "add a braft peer", func(n *Node, done Closure) { n.AddPeer(b.peer, done) }).wait()
}

// A braft peer is a full member, but does not know of learners: both are never in one configuration.
func TestLearnersAndBraftPeersExcludeEachOther(t *testing.T) {
	c := newGroup(t, 1, 2, NodeOptions{ElectionTimeout: time.Minute}) // the peer never votes
	c.startLed()
	c.propose("one")
	b := startBraftPeer(t)
	n := c.nodes[0]

	require.NoError(t, c.addLearner(0, 1).wait())
	err := b.addTo(c, 0)
	assert.ErrorIs(t, err, ErrNotSupported, "there is a learner")
	assert.ErrorContains(t, err, b.peer.String())
	assert.Equal(t, 2, n.Status().Conf.Len())
	require.NoError(t, c.begin(0, "remove learner", func(n *Node, done Closure) { n.RemoveLearner(c.peer(1), done) }).wait())

	require.NoError(t, b.addTo(c, 0))
	c.propose("two") // which needs its acknowledgement
	assert.Equal(t, n.Status().LastIndex, b.stored())
	last := n.Status().LastIndex
	err = c.addLearner(0, 1).wait()
	assert.ErrorIs(t, err, ErrNotSupported, "there is a braft peer")
	assert.ErrorContains(t, err, b.peer.String())
	err = c.begin(0, "make it a learner", func(n *Node, done Closure) { n.AddLearner(b.peer, done) }).wait()
	assert.ErrorIs(t, err, ErrNotSupported, "it cannot be one")
	assert.Equal(t, last, n.Status().LastIndex)
	assert.NoError(t, c.add(0, 1).wait(), "voters can be added")

	require.NoError(t, c.begin(0, "remove it", func(n *Node, done Closure) { n.RemovePeer(b.peer, done) }).wait())
	assert.NoError(t, c.addLearner(0, 1).wait(), "without it there may be learners again")
}
