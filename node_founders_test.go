package graft

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Founders of a group that has replaced them come back with empty disks and the configuration that the
// group began with. They would be a majority of that; they must not found the group again.
func TestReplacedFoundersDoNotFoundTheGroupAgain(t *testing.T) {
	t.Parallel()
	const timeout = 300 * time.Millisecond
	c := newGroup(t, 3, 5, NodeOptions{ElectionTimeout: timeout})
	c.startLed()
	for _, data := range []string{"one", "two", "three"} {
		c.propose(data)
	}
	c.changeTo(c.voters(2, 3, 4))
	for _, i := range []int{0, 1} {
		c.wipe(i)
		c.startWith(i, c.conf)
	}
	c.never(10*timeout, func() bool { return c.nodes[0].IsLeader() || c.nodes[1].IsLeader() }, "a second group is founded")
	c.propose("four")
	assert.Equal(t, []string{"one", "two", "three", "four"}, c.sameData(2, 3, 4))
	for i := range 2 {
		assert.Zero(t, c.nodes[i].Status().LastIndex)
	}
}

// A first start does not need everybody: those who do not answer are waited for, and then done without.
func TestAGroupStartsThoughAFounderIsMissing(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, NodeOptions{ElectionTimeout: 200 * time.Millisecond})
	c.start(0)
	c.start(1)
	c.propose("one")
	c.start(2)
	assert.Equal(t, []string{"one"}, c.sameData(0, 1, 2))
}

// A peer that could not be read back from the log is refused before it gets there.
func TestPeersThatCannotBeReadBackAreRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 1, NodeOptions{ElectionTimeout: 200 * time.Millisecond})
	c.startAll()
	c.ready()
	n := c.nodes[0]
	last := n.Status().LastIndex
	for _, p := range []PeerID{
		{Address: "127.0.0.1:1", Role: 3},
		{Address: "[0:0::1]:1"},
		{Address: "127.0.0.1"},
		{Address: "127.0.0.1:1", Index: -1},
		{},
	} {
		err := Await(t.Context(), func(done Closure) { n.AddPeer(p, done) })
		assert.ErrorIs(t, err, ErrInvalid, "%+v", p)
		conf := Configuration{peers: slices.Concat(c.conf.peers, []PeerID{p})}
		err = Await(t.Context(), func(done Closure) { n.ChangePeers(conf, done) })
		assert.ErrorIs(t, err, ErrInvalid, "%+v", p)
		assert.ErrorIs(t, n.ResetPeers(conf), ErrInvalid, "%+v", p)
	}
	witnesses := c.confOf(PeerID{Address: c.addrs[0], Role: Witness})
	assert.ErrorIs(t, Await(t.Context(), func(done Closure) { n.ChangePeers(witnesses, done) }), ErrInvalid)
	require.Equal(t, RoleLeader, n.Status().Role)
	assert.Equal(t, last, n.Status().LastIndex, "nothing was appended")
}
