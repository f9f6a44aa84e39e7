package graft

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"time"
)

// recorder is a state machine that remembers everything.
type recorder struct {
	BaseStateMachine
	name func(Configuration) string // for events; nil: as it is

	mu       sync.Mutex
	entries  []string
	confs    []Configuration
	events   []string       // callbacks in their order, but for OnApply
	stops    []error        // what OnLeaderStop was given
	followed []LeaderChange // what OnStartFollowing was given
	follows  PeerID         // from OnStartFollowing to OnStopFollowing
	leading  bool
	failures []error
	shut     bool
	onApply  func(data string) // may panic
	rollback func(data string) error
	misuse   error

	snapshots bool                           // it has some
	filler    int                            // bytes of each snapshot beside the entries
	onSave    func(write func() error) error // what runs on a goroutine of its own; nil: write
	onLoad    func(r *SnapshotReader) error  // before a snapshot is loaded
	skipLoad  bool                           // it does not look at what it loads
	loads     []int64                        // the indexes of the snapshots that were loaded
	saves     int                            // how many were begun
}

// OnSnapshotSave writes the entries as they are now, later.
func (r *recorder) OnSnapshotSave(w *SnapshotWriter, done Closure) {
	if !r.snapshots {
		r.BaseStateMachine.OnSnapshotSave(w, done)
		return
	}
	r.mu.Lock()
	entries, confs, filler := slices.Clone(r.entries), len(r.confs), r.filler
	r.saves++
	onSave := r.onSave
	r.mu.Unlock()
	write := func() error {
		f, err := w.Create("entries")
		if err != nil {
			return err
		}
		if err := errors.Join(json.NewEncoder(f).Encode(entries), f.Close()); err != nil {
			return err
		}
		if filler == 0 {
			return nil
		}
		if f, err = w.Create("more/filler"); err != nil {
			return err
		}
		_, err = io.CopyN(f, rand.New(rand.NewSource(int64(filler))), int64(filler))
		return errors.Join(err, f.Close(), w.AddFile("more/filler", []byte{byte(confs)}))
	}
	if onSave == nil {
		onSave = func(write func() error) error { return write() }
	}
	go func() { done(onSave(write)) }()
}

// OnSnapshotLoad takes a snapshot's entries for its own.
func (r *recorder) OnSnapshotLoad(s *SnapshotReader) error {
	if !r.snapshots {
		return r.BaseStateMachine.OnSnapshotLoad(s)
	}
	if r.onLoad != nil {
		if err := r.onLoad(s); err != nil {
			return err
		}
	}
	if r.skipLoad {
		return nil
	}
	f, err := s.Open("entries")
	if err != nil {
		return err
	}
	var entries []string
	if err := errors.Join(json.NewDecoder(f).Decode(&entries), f.Close()); err != nil {
		return err
	}
	if slices.Contains(s.Files(), "more/filler") {
		f, err := s.Open("more/filler")
		if err != nil {
			return err
		}
		want, got := sha256.New(), sha256.New()
		_, err = io.Copy(got, f)
		_, wantErr := io.CopyN(want, rand.New(rand.NewSource(f.Size())), f.Size())
		if err := errors.Join(err, wantErr, f.Close()); err != nil {
			return err
		}
		if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
			return errors.New("the filler is not what was saved")
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries = entries
	r.loads = append(r.loads, s.Index())
	return nil
}

// loaded returns the indexes of the snapshots that were loaded.
func (r *recorder) loaded() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.loads)
}

func (r *recorder) OnApply(it *Iterator) {
	for it.Next() {
		if r.rollback != nil {
			it.Rollback(1, r.rollback(string(it.Data())))
			continue
		}
		if r.onApply != nil {
			r.onApply(string(it.Data()))
		}
		r.mu.Lock()
		r.entries = append(r.entries, string(it.Data()))
		n := len(r.entries)
		r.mu.Unlock()
		it.Return(n)
	}
}

func (r *recorder) OnConfigurationCommitted(c Configuration, _ int64) {
	name := c.String()
	if r.name != nil {
		name = r.name(c)
	}
	r.note("conf " + name)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.confs = append(r.confs, c)
}

func (r *recorder) OnLeaderStart(int64) { r.lead(true, nil) }
func (r *recorder) OnLeaderStop(reason error) {
	r.lead(false, reason)
}

func (r *recorder) lead(on bool, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on && !r.follows.IsZero() {
		r.misuse = fmt.Errorf("leads, and follows %v", r.follows)
	}
	if r.leading == on {
		r.misuse = fmt.Errorf("leading is already %v", on)
	}
	r.leading = on
	if on {
		r.events = append(r.events, "lead")
		return
	}
	r.events = append(r.events, "stop: "+ErrorCode(reason).Error())
	r.stops = append(r.stops, reason)
}

func (r *recorder) OnStartFollowing(c LeaderChange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.follows.IsZero() || c.Leader.IsZero() || r.leading {
		r.misuse = fmt.Errorf("starts to follow %v, follows %v, leads: %v", c.Leader, r.follows, r.leading)
	}
	r.follows, r.followed = c.Leader, append(r.followed, c)
}

func (r *recorder) OnStopFollowing(c LeaderChange) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.follows.Same(c.Leader) || r.follows.IsZero() {
		r.misuse = fmt.Errorf("stops to follow %v, follows %v", c.Leader, r.follows)
	}
	r.follows = PeerID{}
}

func (r *recorder) OnError(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, err)
}

func (r *recorder) OnShutdown() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
}

// note remembers what happened.
func (r *recorder) note(event string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event)
}

func (r *recorder) applied() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.entries)
}

func (r *recorder) errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.failures)
}

// seen returns what happened so far, in order.
func (r *recorder) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// forget begins a new list of events.
func (r *recorder) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

// lastStop returns what the latest OnLeaderStop was given.
func (r *recorder) lastStop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.stops) == 0 {
		return nil
	}
	return r.stops[len(r.stops)-1]
}

// leaders returns whom OnStartFollowing has named, in order.
func (r *recorder) leaders() (peers []PeerID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.followed {
		peers = append(peers, c.Leader)
	}
	return peers
}

// committedConfs returns the configurations that OnConfigurationCommitted has reported.
func (r *recorder) committedConfs() []Configuration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.confs)
}

// holdup is a place where a test holds something up: a state machine's call, mostly.
type holdup struct {
	t       testing.TB
	at, let chan struct{}
	arrive  func()
	release func() // lets what is held up, now and later, go on
}

// newHoldup returns a place that the end of the test opens too: a test that fails before would else wait for ever for a node that
// cannot end.
func newHoldup(t testing.TB) *holdup {
	h := &holdup{t: t, at: make(chan struct{}), let: make(chan struct{})}
	h.arrive = sync.OnceFunc(func() { close(h.at) })
	h.release = sync.OnceFunc(func() { close(h.let) })
	t.Cleanup(h.release)
	return h
}

// pass is called by what is held up.
func (h *holdup) pass() {
	h.arrive()
	<-h.let
}

// load holds up a state machine that loads a snapshot.
func (h *holdup) load(*SnapshotReader) error {
	h.pass()
	return nil
}

// reached waits until something is held up.
func (h *holdup) reached() {
	h.t.Helper()
	receive(h.t, h.at)
}

// receive returns what comes through a channel, and fails a test to which nothing comes: better than one that hangs.
func receive[T any](t testing.TB, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing has come within 20 seconds")
		panic("not reached")
	}
}
