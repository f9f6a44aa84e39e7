package graft

import (
	"time"

	"github.com/graft-raft/graft/internal/wal"
)

// NodeRole is what a replica does at present.
type NodeRole uint8

// The roles of a replica.
const (
	RoleFollower NodeRole = iota
	RoleCandidate
	RoleLeader
	RoleFailed   // an error stopped it; it must be started anew
	RoleShutdown // it is stopped
)

// String returns the role's name.
func (r NodeRole) String() string {
	switch r {
	case RoleFollower:
		return "follower"
	case RoleCandidate:
		return "candidate"
	case RoleLeader:
		return "leader"
	case RoleFailed:
		return "failed"
	case RoleShutdown:
		return "shutdown"
	}
	return "unknown"
}

// Status describes a replica at a moment; its parts may be a moment apart.
type Status struct {
	Group  string
	Peer   PeerID
	Role   NodeRole
	Term   int64
	Vote   PeerID // whom it voted for in Term
	Leader PeerID // zero when none is known

	FirstIndex   int64 // of the log; LastIndex is FirstIndex-1 when it is empty
	LastIndex    int64
	DurableIndex int64 // what this replica's own disk holds
	CommitIndex  int64
	AppliedIndex int64

	Conf      Configuration // in force: the latest in the log, or what ResetPeers put in its place
	OldConf   Configuration // while Conf is joint
	ConfIndex int64         // where in the log Conf stands; 0: nowhere

	// Stage says how far a change of the configuration has come, on the leader. From its
	// election until the first entry of its term is committed a leader restates the
	// configuration, which looks like a change without ChangeStatus.
	Stage   Stage
	Change  *ChangeStatus // the change that was asked for here, nil if there is none
	Awaited []PeerID      // voters that do not hold the configuration entry of this stage yet

	Transferring PeerID // whom the leader hands over to at present

	Waiting        bool // it began with nothing on its disk and does not vote freely yet; see NodeOptions.FirstStart
	Removed        bool // it has learned that it is no member any more, and keeps silent
	Overridden     bool // Conf was put in force by ResetPeers, and no leader has confirmed it yet
	PendingEntries int64
	PendingBytes   int64
	PendingReads   int64
	Err            error // why Role is RoleFailed, or why proposals are refused for now

	Snapshot  SnapshotStatus
	Followers []FollowerStatus // on the leader
}

// SnapshotState is what a replica does about snapshots.
type SnapshotState uint8

// The states of snapshots.
const (
	SnapshotIdle    SnapshotState = iota
	SnapshotSaving                // the state machine writes one
	SnapshotCopying               // the leader's is copied
	SnapshotLoading               // the leader's is loaded
)

// String returns the state's name.
func (s SnapshotState) String() string {
	switch s {
	case SnapshotIdle:
		return "idle"
	case SnapshotSaving:
		return "saving"
	case SnapshotCopying:
		return "copying"
	case SnapshotLoading:
		return "loading"
	}
	return "unknown"
}

// SnapshotStatus describes a replica's snapshots.
type SnapshotStatus struct {
	Index, Term int64 // of the newest that is whole; 0: there is none
	Bytes       int64 // its size; -1: unknown

	State       SnapshotState
	NextIndex   int64   // of the one being saved, about, or being installed
	From        string  // the address it is copied from
	Done, Total int64   // bytes of the copy; a Total of -1 is unknown
	Resumed     int64   // how many of Done were not copied again: an earlier attempt, of this run or one before, had left them
	Rate        float64 // bytes per second, of late
	Err         error   // why the latest one was not saved or installed
}

// ChangeStatus describes a change of the configuration under way.
type ChangeStatus struct {
	From, To Configuration
	Elapsed  time.Duration
}

// FollowerStatus is what a leader knows of a peer.
type FollowerStatus struct {
	Peer          PeerID
	State         string // probe, replicate or snapshot
	Match         int64  // known to be durable there
	Next          int64  // to be sent next
	InflightBytes int
	Failures      int   // consecutive failed requests
	Err           error // why the latest one failed, nil once one succeeds

	Lag       int64         // entries of the leader's log that it is not known to hold
	Rate      float64       // entries per second that it took lately
	Remaining time.Duration // until it has caught up, at that rate; 0 if unknown or nothing is missing
	Silent    time.Duration // since the latest request was sent that it answered

	SnapshotIndex               int64 // of the snapshot that it is to install, 0 if there is none
	SnapshotDone, SnapshotTotal int64 // bytes of it that are there

	CatchingUp bool // it is being added and does not count yet
	Leaving    bool // it was removed, and is sent the rest so that it knows
}

// StorageStats counts what a host's log has done since it was opened.
type StorageStats = wal.Stats

// ListPeers returns the peers of the configuration in force, on the leader; elsewhere
// ErrNotLeader.
func (n *Node) ListPeers() ([]PeerID, error) {
	v := n.view.Load()
	if v.role != RoleLeader {
		return nil, &Error{Code: ErrNotLeader, Op: "list peers", Group: n.group, Peer: v.leader}
	}
	return v.conf.conf.Peers(), nil
}

// Status describes the node.
func (n *Node) Status() Status {
	v := n.view.Load()
	s := Status{
		Group: n.group, Peer: n.peer, Role: v.role, Term: v.term, Vote: v.vote, Leader: v.leader,
		Conf: v.conf.conf, OldConf: v.conf.old, ConfIndex: v.conf.index, Stage: v.stage,
		Transferring: v.transfer, Waiting: v.waiting, Removed: v.removed, Overridden: v.overridden, Err: v.err,
		AppliedIndex: n.fsm.applied.Load(), CommitIndex: n.box.index(),
	}
	s.FirstIndex, s.LastIndex = n.lm.bounds()
	s.DurableIndex = n.lm.durableIndex()
	s.PendingEntries, s.PendingBytes = n.proposals.pending()
	s.PendingReads = n.reads.pending.Load()
	s.Snapshot = n.snap.status()
	if s.Err == nil {
		s.Err = n.host.spaceError()
	}
	now := n.host.env.Exec.Now()
	if c := v.change; c != nil {
		s.Change = &ChangeStatus{From: c.from, To: c.to, Elapsed: now.Sub(c.began)}
	}
	if f := n.followers.Load(); f != nil {
		for _, r := range *f {
			s.Followers = append(s.Followers, r.describe(v.conf, s.LastIndex, now))
		}
	}
	if s.Stage >= StageJoint {
		s.Awaited = n.awaited(v.conf)
	}
	return s
}

// describe is what Status says of the peer.
func (r *replicator) describe(conf confEntry, last int64, now time.Time) FollowerStatus {
	s := r.status.load()
	for _, p := range conf.peers() {
		if p.Same(s.Peer) {
			s.Peer = p // with its role
		}
	}
	s.Lag = max(last-s.Match, 0)
	if s.Lag > 0 && s.Rate > 0 {
		s.Remaining = time.Duration(float64(s.Lag) / s.Rate * float64(time.Second))
	}
	s.Silent = max(now.Sub(r.contact()), 0)
	return s
}

// awaited lists the voters that do not hold the configuration's entry yet.
func (n *Node) awaited(conf confEntry) (missing []PeerID) {
	for _, p := range conf.peers() {
		if conf.hasVoter(p) && n.box.acknowledgedBy(p) < conf.index {
			missing = append(missing, p)
		}
	}
	return missing
}
