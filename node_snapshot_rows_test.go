package graft

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// M3: a joint configuration that only a snapshot tells of any more is whole after a restart: both halves elect, and the change is
// finished.
func TestAJointConfigurationOutlivesTheLogInASnapshot(t *testing.T) {
	c := snapshotGroup(t, 3, 5, NodeOptions{ElectionTimeout: patient})
	c.startLed()
	next := c.voters(0, 3, 4)
	isNext := func(e confEntry) bool { return !e.joint() && e.conf.Equal(next) }
	c.net.set(atOnce(noConf(isJoint, 3, 4)))
	p := c.change(0, next)
	for _, i := range []int{1, 2} {
		c.status(i, func(s Status) bool { return !s.OldConf.Empty() }, "the joint configuration is not there")
	}
	c.net.set(atOnce(noConf(isJoint, 4)), noConf(isNext, 1, 2, 3, 4)) // a majority of the new voters without host 4
	c.inStage(0, StageStable)
	for _, i := range []int{1, 2, 3} {
		c.status(i, func(s Status) bool { return !s.OldConf.Empty() && s.AppliedIndex >= s.ConfIndex }, "the joint configuration is not committed there")
		c.saveAndCut(i)
	}
	for i := range 5 {
		c.stop(i)
	}
	assert.ErrorIs(t, p.wait(), ErrUnknownOutcome)
	c.net.set()
	c.opts.ElectionTimeout = 400 * ms // what follows is right whoever leads
	c.start(1)                        // alone it can do nothing
	s := c.nodes[1].Status()
	assert.Equal(t, "0,1,2 → 0,3,4", fmt.Sprint(c.name(s.OldConf), " → ", c.name(s.Conf)))
	assert.Empty(t, c.fsms[1].committedConfs(), "a joint configuration is not told")
	for _, i := range []int{2, 3, 4} { // host 4 gets it by a snapshot
		c.start(i)
	}
	c.settled(next, 3, 4)
	c.start(0)
	c.settled(next, 0, 3, 4)
}

// C11: a single node that starts from a snapshot, with nothing in the log behind it, answers no read by an older index.
func TestASingleNodeReadsNothingOlderThanItsSnapshot(t *testing.T) {
	c := snapshotGroup(t, 1, 1, NodeOptions{})
	c.startLed()
	c.proposeMany("a", 3)
	c.saveAndCut(0)
	saved := c.nodes[0].Status().Snapshot.Index
	c.stop(0)
	c.start(0)
	var index int64
	var data []string
	c.eventually(func() bool { // it may be asked before it leads
		return nil == c.begin(0, "read", func(n *Node, done Closure) {
			n.ReadIndexAsync(func(at int64, err error) {
				index, data = at, c.fsms[0].applied()
				done(err)
			})
		}).wait()
	}, "it answers no read")
	assert.GreaterOrEqual(t, index, saved)
	assert.Len(t, data, 3)
}

// X7: a node keeps as many snapshots as it is told, also over a restart, and what was left of others goes.
func TestANodeKeepsOnlyItsNewestSnapshots(t *testing.T) {
	for _, keep := range []int{1, 3} {
		t.Run(fmt.Sprint(keep), func(t *testing.T) {
			c := snapshotGroup(t, 1, 1, NodeOptions{SnapshotKeep: keep})
			c.startLed()
			kept := func() (n int) {
				names, err := c.disks[0].ReadDir(c.snapshotDir(0))
				require.NoError(t, err)
				for _, name := range names {
					if strings.HasPrefix(name, "snapshot_") {
						n++
					}
				}
				return n
			}
			for round := range 5 {
				c.propose(fmt.Sprint(round))
				require.NoError(t, c.save(0))
				assert.Equal(t, min(round+1, keep), kept())
			}
			c.stop(0)
			c.start(0)
			c.ready()
			assert.Equal(t, keep, kept())
			c.propose("more")
			require.NoError(t, c.save(0))
			assert.Equal(t, keep, kept())
		})
	}
}
