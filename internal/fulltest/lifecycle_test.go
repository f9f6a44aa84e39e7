package fulltest

import (
	"fmt"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/vfs"
)

// A replica that Close overlooked would go on without a log. Either Close ends it, or it is never started.
func TestStartNodeDuringClose(t *testing.T) {
	seeds(t, 30, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 1, 0, graft.NodeOptions{})
		w.open(0)
		h := w.hosts[0]
		var starting sync.WaitGroup
		for k := range 8 {
			o := h.nodeOptions()
			m := h.fsm
			starting.Go(func() {
				spin(w.seed, uint64(k))
				n, err := h.host.StartNode(fmt.Sprint("group ", k), o)
				if err != nil {
					require.ErrorIs(t, err, graft.ErrShutdown)
					m.unborn()
					return
				}
				c := w.ledger.begin("apply", ofApply...)
				n.Apply(graft.Task{Done: func(_ any, err error) { c.done(err) }})
				n.Join()
			})
		}
		spin(w.seed, 100)
		w.await(time.Minute, w.close(0))
		starting.Wait()
		_, err := h.host.StartNode(group, h.nodeOptions())
		require.ErrorIs(t, err, graft.ErrShutdown)
		h.all = h.all[:len(h.all)-1]
		require.Empty(t, h.host.Nodes())
		w.closeAll()
	})
}

// spin takes a moment of real time, of which a bubble has no other measure.
func spin(seed, purpose uint64) {
	for range dice(seed, purpose).IntN(200) {
		runtime.Gosched()
	}
}

// Several callers may end the same replica at once, while others use it.
func TestEndsMeet(t *testing.T) {
	seeds(t, 20, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		i := []int{lead, w.others(lead)[0]}[w.rng.IntN(2)]
		n := w.node(i)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 5 {
					w.propose(i)
					w.read(i)
				}
				c := w.ledger.begin("shutdown")
				n.Shutdown(c.done)
				n.Join()
			})
			all.Go(func() {
				c := w.ledger.begin("stop node", graft.ErrNotFound) // it has ended already
				c.done(w.hosts[i].host.StopNode(t.Context(), group))
			})
		}
		all.Go(func() { w.await(time.Minute, w.close(i)) })
		all.Wait()
		w.refusesAll([]int{i})
		w.finish()
	})
}

// A replica may be ended and started again as often as one likes, once its disk has come to rest.
func TestRestartedNodes(t *testing.T) {
	seeds(t, 8, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
		lead := w.settle()
		_, err := w.hosts[lead].host.StartNode(group, w.hosts[lead].nodeOptions())
		require.ErrorIs(t, err, graft.ErrBusy)
		w.forgetLife(lead)
		for range 6 {
			i := w.rng.IntN(w.members)
			for range 10 {
				w.propose(lead)
			}
			w.pass(time.Millisecond)
			w.await(time.Minute, w.stopNode(i)...)
			require.Nil(t, w.hosts[i].host.Node(group))
			time.Sleep(10*time.Millisecond + w.upTo(2*electionTimeout))
			w.startNode(i)
			lead = w.agree(w.first()...)
		}
		w.finish()
	})
}

// forgetLife takes back the state machine of a replica that was not started.
func (w *world) forgetLife(i int) {
	h := w.hosts[i]
	h.all = h.all[:len(h.all)-1]
	h.fsm = h.all[len(h.all)-1]
}

// Shutdown may be called from anywhere, also from the callbacks of the replica that it ends.
func TestShutdownFromCallbacks(t *testing.T) {
	for _, callback := range []string{"OnApply", "OnConfigurationCommitted", "OnLeaderStart", "OnLeaderStop", "OnStartFollowing",
		"OnStopFollowing", "OnError", "OnShutdown", "Task.Done", "read", "change", "shutdown"} {
		t.Run(callback, func(t *testing.T) {
			seeds(t, 2, func(t *testing.T, seed uint64) { shutdownFrom(t, seed, callback) })
		})
	}
}

func shutdownFrom(t *testing.T, seed uint64, callback string) {
	w := newWorld(t, seed, 3, 0, graft.NodeOptions{})
	lead := w.settle()
	h := w.hosts[lead]
	n := w.node(lead)
	var once sync.Once
	done := false
	end := func() {
		once.Do(func() {
			done = true
			c := w.ledger.begin("shutdown from " + callback)
			n.Shutdown(c.done)
			n.Apply(graft.Task{Data: []byte("late"), Done: w.ledger.begin("apply after it", ofApply...).settle})
			n.ReadIndexAsync(func(_ int64, err error) { c.l.begin("read after it", ofRead...).done(err) })
		})
	}
	h.fsm.meddle(callback, end)
	switch callback {
	case "Task.Done":
		n.Apply(graft.Task{Data: []byte("x"), Done: func(any, error) { end() }})
	case "read":
		n.ReadIndexAsync(func(int64, error) { end() })
	case "change":
		n.ChangePeers(w.conf(0, 1, 2), func(error) { end() })
	case "shutdown":
		n.Shutdown(func(error) { end() })
	case "OnShutdown":
		n.Shutdown(nil)
	case "OnError":
		h.fsm.sabotage("an entry")
		w.propose(lead)
	case "OnApply", "OnConfigurationCommitted":
		w.propose(lead)
		w.change(lead, w.others(lead)...)
	default: // it comes to lead and to follow
		w.isolate(lead)
		w.propose(lead)
		time.Sleep(3 * electionTimeout)
		w.healAll()
		time.Sleep(electionTimeout)
		w.transfer(w.leader(), lead)
	}
	time.Sleep(5 * electionTimeout)
	synctest.Wait()
	require.True(t, done, "%s never ran", callback)
	require.Equal(t, graft.RoleShutdown, n.Status().Role)
	w.finish()
}

// Whatever operation of the disk fails when a host is made, it says so and leaves nothing behind, and the
// next attempt works.
func TestNewHostOnAFailingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		empty := w.hosts[0].disk.fs.KillClone()
		w.settle()
		w.await(time.Minute, w.propose(0))
		w.closeAll()
		for _, before := range []*vfs.Mem{empty, w.hosts[0].disk.fs} {
			operation := 0
			for w.failsToOpen(before.KillClone(), operation) {
				operation++
			}
			require.Greater(t, operation, 20)
		}
		w.recover()
	})
}

// failsToOpen has an operation of the disk fail, and reports whether a host was to be made then. If so it
// has to fail, and to be made after that.
func (w *world) failsToOpen(fs *vfs.Mem, operation int) bool {
	w.t.Helper()
	h := w.hosts[0]
	h.disk.use(fs)
	h.disk.failAt(operation)
	made, err := graft.NewHost(w.options(0))
	if err == nil {
		hit := h.disk.failed()
		h.host = made
		w.badDisk = true
		w.closeAll()
		require.False(w.t, hit && operation < 10, "operation %d failed unnoticed", operation)
		return hit
	}
	require.Contains(w.t, []graft.Code{graft.ErrIO, graft.ErrIdentity, graft.ErrCorrupt}, graft.ErrorCode(err), "%v", err)
	noGoroutines(w.t)
	h.disk.mend()
	w.open(0)
	w.closeAll()
	return true
}

// An address that is taken costs nothing but the error.
func TestNewHostOnATakenAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, 1, 0, graft.NodeOptions{})
		l, err := w.net.listen("tcp", w.hosts[0].addr)
		require.NoError(t, err)
		_, err = graft.NewHost(w.options(0))
		require.ErrorIs(t, err, graft.ErrBusy)
		require.NotContains(t, err.Error(), "storage")
		require.ErrorIs(t, err, syscall.EADDRINUSE)
		noGoroutines(t)
		require.NoError(t, l.Close())
		w.settle()
		w.finish()
	})
}
