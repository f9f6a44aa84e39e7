package fulltest

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft"
)

var ofSnapshot = []graft.Code{graft.ErrBusy, graft.ErrIO, graft.ErrNoSpace, graft.ErrShutdown, graft.ErrNodeFailed}

// savedEntries is the file of a snapshot.
const savedEntries = "entries"

// withSnapshots are options of a group whose logs are cut behind every snapshot, and that saves one after so many entries; -1: when it is
// asked to.
func withSnapshots(entries int64) graft.NodeOptions {
	return graft.NodeOptions{SnapshotInterval: -1, SnapshotBytes: -1, SnapshotMargin: -1, SnapshotEntries: entries}
}

// OnSnapshotSave writes what was applied, on a goroutine of its own and in as many pieces as there are entries, slowly or not at all if the
// test wants that.
func (m *machine) OnSnapshotSave(s *graft.SnapshotWriter, done graft.Closure) {
	defer m.enter("OnSnapshotSave")()
	if !m.snapshots {
		m.BaseStateMachine.OnSnapshotSave(s, done)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	entries, shelf, pause := slices.Clone(m.entries), m.shelf, m.shelfPause
	m.saves.Go(func() {
		if shelf != nil {
			<-shelf
		}
		err := writeEntries(s, entries, pause)
		m.meddled("before done")
		done(err)
		m.meddled("after done")
	})
}

// meddled calls the test's function if that is what it is for.
func (m *machine) meddled(moment string) {
	m.mu.Lock()
	meddler := m.meddler
	if m.meddleIn != moment {
		meddler = nil
	}
	m.mu.Unlock()
	if meddler != nil {
		meddler()
	}
}

func writeEntries(s *graft.SnapshotWriter, entries []string, pause time.Duration) error {
	f, err := s.Create(savedEntries)
	if err != nil {
		return err
	}
	out := json.NewEncoder(f)
	for _, e := range entries {
		if pause > 0 {
			<-time.After(pause)
		}
		if err = out.Encode(e); err != nil {
			break
		}
	}
	return errors.Join(err, f.Close())
}

// OnSnapshotLoad takes a snapshot's entries for its own.
func (m *machine) OnSnapshotLoad(s *graft.SnapshotReader) error {
	defer m.enter("OnSnapshotLoad")()
	m.mu.Lock()
	shelf, pause := m.shelf, m.shelfPause
	m.mu.Unlock()
	if shelf != nil {
		<-shelf
	}
	f, err := s.Open(savedEntries)
	if err != nil {
		return err
	}
	var entries []string
	for in := json.NewDecoder(f); in.More(); {
		if pause > 0 {
			<-time.After(pause)
		}
		var e string
		if err := in.Decode(&e); err != nil {
			return errors.Join(err, f.Close())
		}
		entries = append(entries, e)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if s.Index() <= m.last {
		m.complainHeld("snapshot %d after entry %d", s.Index(), m.last)
	}
	m.last, m.entries = s.Index(), entries
	return f.Close()
}

// holdSnapshots has snapshots that are saved or loaded wait until open.
func (m *machine) holdSnapshots() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.shelf == nil {
		m.shelf = make(chan struct{})
	}
}

// slowSnapshots has each entry of a snapshot take a while.
func (m *machine) slowSnapshots(pause time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.shelfPause = pause
}

// save begins to save a snapshot on a host.
func (w *world) save(i int) *call {
	c := w.ledger.begin(fmt.Sprint("snapshot on host ", i), ofSnapshot...)
	w.node(i).Snapshot(c.done)
	return c
}

// filled is a group that has applied so many entries.
func (w *world) filled(entries int) (lead int) {
	w.t.Helper()
	lead = w.settle()
	for range entries {
		w.proposeBytes(lead, 500)
	}
	return w.agree(w.first()...)
}

// lagging is a group with a member that is away for so long that it needs a snapshot when it is started again.
func (w *world) lagging() (lead, lags int) {
	w.t.Helper()
	lead = w.settle()
	rest := w.others(lead)
	lags = rest[0]
	h := w.hosts[lags]
	w.await(time.Minute, w.close(lags))
	h.host, h.closing = nil, nil
	for range 100 {
		w.proposeBytes(lead, 500)
	}
	until(w.t, time.Millisecond, time.Minute, "all is applied where it can be", func() bool {
		last := w.node(lead).Status().LastIndex
		return w.node(lead).Status().AppliedIndex == last && w.node(rest[1]).Status().AppliedIndex == last
	})
	calls := []*call{w.save(lead), w.save(rest[1])}
	w.await(time.Minute, calls...)
	for _, c := range calls {
		require.NoError(w.t, c.outcome(), c.what)
	}
	return lead, lags
}

// state waits until a host does something about snapshots.
func (w *world) state(i int, state graft.SnapshotState) {
	w.t.Helper()
	until(w.t, step, 20*electionTimeout, fmt.Sprint(state), func() bool { return w.node(i).Status().Snapshot.State == state })
}

var snapshotScenes = []scene{
	{name: "snapshot that is saved", seeds: 6, members: 3, opts: withSnapshots(-1), window: 15 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotSaving },
		enter: func(w *world) int {
			lead := w.filled(50)
			subject := w.rng.IntN(w.members)
			w.hosts[subject].fsm.slowSnapshots(200 * time.Microsecond)
			w.save(subject)
			w.save(subject) // is refused, or has nothing to do
			w.propose(lead)
			return subject
		}},
	{name: "snapshot that is never finished", seeds: 4, members: 3, opts: withSnapshots(-1), window: time.Second,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotSaving },
		enter: func(w *world) int {
			w.filled(10)
			subject := w.rng.IntN(w.members)
			w.hosts[subject].fsm.holdSnapshots()
			w.save(subject)
			return subject
		}},
	{name: "log that is cut again and again", seeds: 8, members: 3, opts: withSnapshots(5), window: 50 * time.Millisecond,
		is: func(s graft.Status) bool { return s.FirstIndex > 5 },
		enter: func(w *world) int {
			lead := w.settle()
			w.load(3, 2*time.Millisecond)
			w.pass(50 * time.Millisecond)
			return lead
		}},
	{name: "log that is cut, on a slow disk", slow: 10 * time.Second, seeds: 4, members: 3, opts: withSnapshots(5), window: 300 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotSaving },
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.hosts[subject].disk.slow(w.upTo(100 * time.Millisecond))
			for range 40 {
				w.propose(lead)
				time.Sleep(time.Millisecond)
			}
			return subject
		}},
	{name: "log that is cut, on a stuck disk", seeds: 4, members: 3, opts: withSnapshots(5), window: 500 * time.Millisecond, held: true,
		is: func(s graft.Status) bool {
			return s.Snapshot.State == graft.SnapshotSaving || s.DurableIndex < s.LastIndex
		},
		enter: func(w *world) int {
			lead := w.settle()
			subject := w.rng.IntN(w.members)
			w.load(2, 2*time.Millisecond)
			w.pass(20 * time.Millisecond)
			w.hosts[subject].disk.hang()
			w.save(subject)
			w.propose(lead)
			return subject
		}},
	{name: "log that is cut, on a failing disk", seeds: 4, members: 3, opts: withSnapshots(5), window: 3 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Role == graft.RoleFailed || s.Snapshot.Err != nil },
		enter: func(w *world) int {
			w.settle()
			subject := w.rng.IntN(w.members)
			w.load(2, time.Millisecond)
			w.pass(20 * time.Millisecond)
			w.badDisk = true
			w.hosts[subject].disk.breakDown()
			w.save(subject)
			return subject
		}},
	{name: "snapshot that is copied", seeds: 8, members: 3, opts: withSnapshots(-1), window: 3 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotCopying || installing(s) },
		enter: func(w *world) int {
			lead, lags := w.lagging()
			w.start(lags)
			w.state(lags, graft.SnapshotCopying)
			return []int{lead, lags}[w.rng.IntN(2)]
		}},
	{name: "snapshot whose sender has fallen silent", seeds: 5, members: 3, opts: withSnapshots(-1), window: 4 * time.Second,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotCopying || installing(s) },
		enter: func(w *world) int {
			lead, lags := w.lagging()
			w.start(lags)
			w.state(lags, graft.SnapshotCopying)
			w.net.cut(w.hosts[lead].addr, w.hosts[lags].addr)
			return []int{lead, lags}[w.rng.IntN(2)]
		}},
	{name: "snapshot that is loaded", slow: time.Second, seeds: 6, members: 3, opts: withSnapshots(-1), window: 20 * time.Millisecond,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotLoading || installing(s) },
		enter: func(w *world) int {
			lead, lags := w.lagging()
			w.start(lags)
			w.hosts[lags].fsm.slowSnapshots(200 * time.Microsecond)
			w.state(lags, graft.SnapshotLoading)
			return []int{lead, lags}[w.rng.IntN(2)]
		}},
	{name: "snapshot whose loading hangs", seeds: 4, members: 3, opts: withSnapshots(-1), window: 3 * time.Second, held: true,
		is: func(s graft.Status) bool { return s.Snapshot.State == graft.SnapshotLoading || installing(s) },
		enter: func(w *world) int {
			lead, lags := w.lagging()
			w.start(lags)
			w.hosts[lags].fsm.holdSnapshots()
			w.state(lags, graft.SnapshotLoading)
			synctest.Wait() // the state machine is at it
			w.save(lags)    // is refused
			w.save(lead)
			return []int{lead, lags}[w.rng.IntN(2)]
		}},
	{name: "snapshot that was loaded, on a stuck disk", seeds: 5, members: 3, opts: withSnapshots(-1), window: 500 * time.Millisecond, held: true,
		is: func(s graft.Status) bool { return s.Snapshot.State != graft.SnapshotIdle },
		enter: func(w *world) int {
			lead, lags := w.lagging()
			w.start(lags)
			w.hosts[lags].fsm.holdSnapshots()
			w.state(lags, graft.SnapshotLoading)
			synctest.Wait() // the state machine is at it
			w.hosts[lags].disk.hang()
			w.hosts[lags].fsm.open() // the log is to begin behind it now
			w.propose(lead)
			return lags
		}},
}

// installing reports whether a leader has somebody install a snapshot.
func installing(s graft.Status) bool {
	return slices.ContainsFunc(s.Followers, func(f graft.FollowerStatus) bool { return f.SnapshotIndex > 0 })
}

// So may it be called from what has to do with snapshots: the callbacks, and the goroutine that writes one.
func TestShutdownFromSnapshotCallbacks(t *testing.T) {
	for _, callback := range []string{"OnSnapshotSave", "before done", "after done", "Snapshot", "OnSnapshotLoad"} {
		t.Run(callback, func(t *testing.T) {
			seeds(t, 4, func(t *testing.T, seed uint64) { shutdownFromSnapshot(t, seed, callback) })
		})
	}
}

func shutdownFromSnapshot(t *testing.T, seed uint64, callback string) {
	w := newWorld(t, seed, 3, 0, withSnapshots(-1))
	lead, subject := w.lagging()
	if callback != "OnSnapshotLoad" {
		subject = lead
		w.await(time.Minute, w.propose(lead)) // there is something to save
	} else {
		w.start(subject)
	}
	n, done := w.node(subject), false
	end := func() {
		done = true
		n.Shutdown(w.ledger.begin("shutdown from " + callback).done)
		n.Snapshot(w.ledger.begin("snapshot after it", ofSnapshot...).done)
		n.Apply(graft.Task{Data: []byte("late"), Done: w.ledger.begin("apply after it", ofApply...).settle})
		read := w.ledger.begin("read after it", ofRead...)
		n.ReadIndexAsync(func(_ int64, err error) { read.done(err) })
	}
	if callback == "Snapshot" {
		c := w.ledger.begin("snapshot", ofSnapshot...)
		n.Snapshot(func(err error) { c.done(err); end() })
	} else {
		w.hosts[subject].fsm.meddle(callback, end)
		w.save(subject)
	}
	time.Sleep(5 * electionTimeout)
	synctest.Wait()
	require.True(t, done, "%s never came", callback)
	require.Equal(t, graft.RoleShutdown, n.Status().Role)
	w.finish()
}
