package main

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// saveCommands are about this replica's own snapshots.
var saveCommands = []*command{
	{name: "bgsave", arity: 1, group: "server", summary: "Saves a snapshot of this replica.", later: doBgsave},
	{name: "lastsave", arity: 1, group: "server", summary: "Says when this replica's newest snapshot was saved.", local: doLastsave},
}

var (
	replySaving = &reply{kind: kindStatus, text: "Background saving started"}
	replyInSave = errorReply("ERR Background save already in progress")
)

// saveWaiters are those who have asked for a snapshot and hear when it has begun.
//
// Ownership: mu, a leaf lock, guards them. Nobody is told with mu held.
type saveWaiters struct {
	mu  sync.Mutex
	all []*saveWaiter
}

type saveWaiter struct{ begun func() }

func (s *saveWaiters) add(w *saveWaiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, w)
}

func (s *saveWaiters) remove(w *saveWaiter) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(o *saveWaiter) bool { return o == w })
}

// begun tells everybody.
func (s *saveWaiters) begun() {
	s.mu.Lock()
	all := s.all
	s.all = nil
	s.mu.Unlock()
	for _, w := range all {
		w.begun()
	}
}

// doBgsave is BGSAVE. It is answered when the state is frozen: what is written from then on is not in the snapshot.
func doBgsave(s *session, _ [][]byte, answer func(*reply)) {
	r := s.r
	if r.node.Status().Snapshot.State != graft.SnapshotIdle {
		answer(replyInSave)
		return
	}
	var once sync.Once
	w := &saveWaiter{func() { once.Do(func() { answer(replySaving) }) }}
	r.saves.add(w)
	r.node.Snapshot(func(err error) {
		r.saves.remove(w)
		once.Do(func() { answer(r.saveReply(err)) })
		if err != nil {
			r.cfg.log.Warn("BGSAVE", zap.Error(err))
		}
	})
}

// saveReply is the answer to BGSAVE if it is over before it was answered.
func (r *replica) saveReply(err error) *reply {
	switch {
	case err == nil:
		return replySaving // and over: nothing has changed since the last one
	case graft.ErrorCode(err) == graft.ErrBusy:
		return replyInSave
	}
	return errorReply("ERR no snapshot was saved: " + oneLine(err))
}

// doLastsave is LASTSAVE: seconds of Unix time. As in Redis a store without a snapshot counts as saved when it was started.
func doLastsave(s *session, _ [][]byte) *reply { return intReply(s.r.lastSave().Unix()) }

func (r *replica) lastSave() time.Time {
	if t, ok := r.machine.savedTime(r.node.Status().Snapshot.Index); ok {
		return t
	}
	return r.started
}

// infoPersistence is what Redis's tools look for while they wait for BGSAVE.
func infoPersistence(r *replica) string {
	st, status := r.node.Status().Snapshot, "ok"
	if st.Err != nil {
		status = "err"
	}
	return infoLines("loading", boolReply(st.State == graft.SnapshotLoading).n, "rdb_bgsave_in_progress", boolReply(st.State == graft.SnapshotSaving).n,
		"rdb_last_save_time", r.lastSave().Unix(), "rdb_last_bgsave_status", status)
}

// snapshotLines are what INFO says of a replica's snapshots among the rest of its Raft section.
func snapshotLines(st graft.SnapshotStatus) string {
	text := infoLines("raft_snapshot_index", st.Index, "raft_snapshot_term", st.Term, "raft_snapshot_bytes", st.Bytes, "raft_snapshot_state", st.State)
	if st.State != graft.SnapshotIdle {
		text += infoLines("raft_snapshot_next_index", st.NextIndex)
	}
	if st.From != "" {
		text += infoLines("raft_snapshot_from", st.From, "raft_snapshot_done", st.Done, "raft_snapshot_total", st.Total,
			"raft_snapshot_resumed", st.Resumed, "raft_snapshot_rate", int64(st.Rate))
	}
	if st.Err != nil {
		text += infoLines("raft_snapshot_error", oneLine(st.Err))
	}
	return text
}
