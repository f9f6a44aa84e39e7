package graft

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/raftpb"
)

// serving watches how the snapshots of a host are served to one follower: there is never more than one to read, and who has been told
// to read another does not go back to the former one.
type serving struct {
	c     *cluster
	files *fileService

	mu       sync.Mutex
	installs int            // requests to install a snapshot
	most     int            // snapshots that could be read at the same time
	reading  int64          // the reader that was asked last
	former   map[int64]bool // those that were asked before
	wrong    []int64        // readers that were asked again after others
}

// rule is the watch as a rule, which is to be the first one.
func (s *serving) rule(m *message) fate {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.most = max(s.most, s.files.lent())
	switch {
	case m.answer:
	case m.method == methodInstall:
		s.installs++
	case m.method == methodGetFile:
		var req raftpb.GetFileRequest
		if proto.Unmarshal(m.call.Message[0], &req) != nil || req.GetReaderId() == s.reading {
			break
		}
		if s.former[req.GetReaderId()] {
			s.wrong = append(s.wrong, req.GetReaderId())
		}
		s.former[s.reading] = true
		s.reading = req.GetReaderId()
	}
	return fate{}
}

// set has the network obey the rules, and be watched.
func (s *serving) set(rules ...rule) { s.c.net.set(append([]rule{s.rule}, rules...)...) }

func (s *serving) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.installs
}

// one holds that the follower was served once at a time, and that nothing is left of it.
func (s *serving) one(t *testing.T) {
	t.Helper()
	s.c.eventually(func() bool { return s.files.lent() == 0 && s.c.hosts[0].sends.inUse() == 0 }, "it is still lent")
	s.mu.Lock()
	defer s.mu.Unlock()
	assert.Equal(t, 1, s.most, "snapshots that could be read at the same time")
	assert.Empty(t, s.wrong, "readers that were asked again after others")
}

// needy is a group of one voter, host 0, with a learner, host 1, that copies a snapshot and gets no more of it than the manifest.
func needy(t *testing.T) (*cluster, *serving) {
	c := snapshotGroup(t, 1, 2, NodeOptions{ElectionTimeout: time.Second, CatchupTimeout: time.Minute})
	c.startLed()
	require.NoError(t, c.addLearner(0, 1).wait())
	c.stop(1)
	c.fsms[0].filler = 3 << 20
	c.proposeMany("a", 10)
	c.saveAndCut(0)
	s := &serving{files: &c.hosts[0].files, former: make(map[int64]bool), c: c}
	s.set(manifestOnly())
	c.start(1)
	c.status(1, func(s Status) bool { return s.Snapshot.State == SnapshotCopying }, "it does not begin")
	return c, s
}

// loseOffice has host 0 lose its leadership and win another.
func (c *cluster) loseOffice() {
	n := c.nodes[0]
	lost := make(chan struct{})
	n.post(func() {
		n.stepDown(n.term+1, &Error{Code: ErrHigherTerm})
		close(lost)
	})
	receive(c.t, lost)
	c.ready()
}

// again waits until the follower is asked once more.
func (s *serving) again(before int) {
	s.c.t.Helper()
	s.c.eventually(func() bool { return s.asked() > before }, "it is not asked again")
}

// R11: a follower that needs a snapshot is served once at a time, whatever becomes of the requests, of its membership, and of the
// leadership meanwhile; and in the end it loads one.
func TestAFollowerIsServedOnceAtATime(t *testing.T) {
	for _, test := range []struct {
		name string
		do   func(c *cluster, s *serving)
	}{
		{"requests time out", func(_ *cluster, s *serving) {
			s.set(noFiles(), noCall(methodInstall))
			s.again(s.asked() + 1)
		}},
		{"requests are refused", func(_ *cluster, s *serving) {
			s.set(noFiles(), atOnce(noCall(methodInstall)))
			s.again(s.asked() + 1)
		}},
		{"the peer is removed and added again", func(c *cluster, s *serving) {
			require.NoError(c.t, c.remove(0, 1).wait())
			for range 3 {
				before := s.asked()
				add := c.addLearner(0, 1)
				s.again(before)
				require.NoError(c.t, c.nodes[0].CancelChange())
				assert.ErrorIs(c.t, add.wait(), ErrCanceled)
			}
			add := c.addLearner(0, 1)
			s.set()
			require.NoError(c.t, add.wait())
		}},
		{"leadership goes and comes back", func(c *cluster, s *serving) {
			for range 3 {
				before := s.asked()
				c.loseOffice()
				s.again(before)
			}
		}},
		{"newer snapshots are saved", func(c *cluster, s *serving) {
			for _, data := range []string{"x", "y"} {
				before := s.asked()
				c.propose(data)
				require.NoError(c.t, c.save(0))
				s.again(before)
			}
		}},
		{"the follower is restarted", func(c *cluster, s *serving) {
			for range 2 {
				before := s.asked()
				c.stop(1)
				c.start(1)
				s.again(before)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // each waits for a few timeouts
			c, s := needy(t)
			test.do(c, s)
			s.set()
			c.propose("b")
			c.sameData(0, 1)
			s.one(t)
			assert.Len(t, c.fsms[1].loaded(), 1)
		})
	}
}

// R11: a replicator that was dropped serves nobody beside its successor, even if its disk has kept it from noticing: what it has lent
// cannot be read any more, and it lends nothing else.
func TestADroppedReplicatorDoesNotServeBesideItsSuccessor(t *testing.T) {
	c, s := needy(t)
	old := c.replicatorTo(0, 1)
	held := newHoldup(t)
	old.a.Post(held.pass)
	held.reached()
	before := s.asked()
	c.loseOffice()
	s.again(before)
	_, err := c.nodes[0].snap.lend(old) // which it was about to
	assert.ErrorIs(t, err, ErrShutdown)
	assert.Equal(t, 1, s.files.lent())
	s.set()
	c.propose("b")
	c.sameData(0, 1)
	held.release()
	s.one(t)
	assert.Len(t, c.fsms[1].loaded(), 1)
}
