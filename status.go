package graft

import "github.com/graft-raft/graft/internal/wal"

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

	Conf    Configuration // in force: the latest in the log
	OldConf Configuration // while Conf is joint
	Stage   Stage         // of a change of the configuration, on the leader

	Waiting        bool // it began with nothing on its disk and does not vote freely yet; see NodeOptions.FirstStart
	PendingEntries int64
	PendingBytes   int64
	PendingReads   int64
	Err            error // why Role is RoleFailed, or why proposals are refused for now

	Followers []FollowerStatus // on the leader
}

// FollowerStatus is what a leader knows of a peer.
type FollowerStatus struct {
	Peer          PeerID
	State         string // probe, replicate or snapshot
	Match         int64  // known to be durable there
	Next          int64  // to be sent next
	InflightBytes int
	Failures      int // consecutive failed requests
}

// StorageStats counts what a host's log has done since it was opened.
type StorageStats = wal.Stats
