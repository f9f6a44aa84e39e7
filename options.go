package graft

import (
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wal"
)

// HostOptions says where a process's replicas are reached and where they keep their
// data. Zero means default.
type HostOptions struct {
	// Address is host:port as PeerIDs name this process. The host may be an IPv4
	// address, [IPv6] or a name that peers can resolve. Required.
	Address string
	// Listen is where to bind, host:port. Default: Address.
	Listen string
	// Dir is the directory of the log. It belongs to this Address for ever, and to one process
	// at a time. Empty keeps everything in memory, lost at Close: for tests only,
	// since a voter that forgets can make its group lose acknowledged entries.
	Dir string
	// TLS, if set, secures all connections, as server and as client. It needs Certificates and RootCAs.
	// Clients, too, must have a certificate, by ClientCAs or else RootCAs, unless ClientAuth says otherwise. Certificates can
	// be reloaded through GetCertificate and GetClientCertificate, ClientCAs through GetConfigForClient.
	TLS *tls.Config
	// Logger gets what an operator should know. Default: none.
	Logger *zap.Logger
	// Transport carries messages between processes. Default: NewTCPTransport(TLS).
	Transport Transport

	// SegmentSize is the size of a log file in bytes, a multiple of 4096 from 16384 up to 4 GiB, that not included. Default 64 MiB.
	SegmentSize int64

	// SnapshotThrottle bounds what the copying of snapshots takes. SetSnapshotThrottle changes it.
	SnapshotThrottle SnapshotThrottle

	// DisableAdmin refuses the calls of operators' tools (braft_cli, graftctl) that arrive
	// over the network, on all nodes. Asking for the leader stays allowed (braft: NodeOptions::disable_cli).
	DisableAdmin bool

	// Env replaces clock, disk and dice in tests of this module. Leave it nil.
	Env *env.Env
}

// NodeOptions says what a replica is. Zero means default. Names and defaults are
// those of braft's NodeOptions where it has them.
type NodeOptions struct {
	// StateMachine is the application. Required.
	StateMachine StateMachine
	// InitialConf is the group's configuration at its very first start. It is used only
	// while there is no log. All replicas that start the group must be given the same one. Empty: wait to be added. It
	// must be empty for a replica whose data was lost or deleted after the group had begun.
	InitialConf Configuration
	// Index tells apart several replicas of one group in one process. Default 0.
	Index int

	// ElectionTimeout is how long a follower waits for its leader at least; it waits
	// at most twice as long. Default 1s, at least 10ms. All replicas should have the same.
	ElectionTimeout time.Duration
	// HeartbeatFactor: heartbeats are sent every ElectionTimeout/HeartbeatFactor.
	// Default 10.
	HeartbeatFactor int

	// CatchupTimeout is how long a peer that is being added may go without any progress
	// before the change fails with ErrCatchup. Default: ElectionTimeout (braft: catchup_timeout_ms).
	CatchupTimeout time.Duration
	// CatchupMargin is how many entries behind the leader a new peer may be when it
	// begins to count, and how far a peer may lag to be handed leadership. Default 1000.
	CatchupMargin int
	// AlwaysJoint has a change of a single voter go through a joint configuration too. By default only
	// changes of several voters do, as in braft.
	AlwaysJoint bool

	// MaxEntrySize bounds one proposal in bytes. Default 32 MiB.
	MaxEntrySize int
	// MaxPendingEntries and MaxPendingBytes bound what has been proposed here and is
	// not applied yet, and what is in the log and not yet on this node's own disk, which others' disks may be ahead of.
	// Past that Apply refuses with ErrOverloaded. Defaults 131072 and 256 MiB.
	MaxPendingEntries int
	MaxPendingBytes   int64
	// MaxPendingReads bounds the ReadIndex calls that wait. Default 131072.
	MaxPendingReads int
	// MaxInflightRequests and MaxInflightBytes bound what is on the way to one
	// follower. Defaults 128 and 16 MiB. Fewer bytes are on the way at first, and while answers come late, down to
	// twice MaxAppendBytes, or 64 KiB: heartbeats have to wait behind them. No more than that are where each request takes
	// 3/8 of an ElectionTimeout or longer, be it for a slow disk.
	MaxInflightRequests int
	MaxInflightBytes    int
	// MaxAppendBytes is how much one request carries, save for a single larger entry. Default 512 KiB (braft:
	// raft_max_body_size).
	MaxAppendBytes int
	// CacheBytes is how much of the newest log is kept in memory. Default 8 MiB.
	CacheBytes int

	// A snapshot is saved when, since the last one, something was applied SnapshotInterval ago (the first time, and each
	// time by chance up to half sooner), or SnapshotEntries entries were applied, or SnapshotBytes bytes of them.
	// Defaults 1h (braft: snapshot_interval_s), none, 1 GiB; negative: never.
	SnapshotInterval time.Duration
	SnapshotEntries  int64
	SnapshotBytes    int64
	// SnapshotMargin is how many entries that a snapshot includes are kept in the log all the same, for followers that are
	// a little behind; more while one installs a snapshot. Default 10000; negative: none.
	SnapshotMargin int
	// SnapshotKeep is how many snapshots are kept, and the log behind the oldest of them: with several, a
	// replica can start although the newest is damaged. Default 1.
	SnapshotKeep int

	// FirstStart vouches that this replica never held data of the group. Without it, a
	// replica that finds nothing on its disk takes into account that it may have lost it,
	// and until a leader has brought it up to date helps nobody to win an election
	// but those who have nothing as well.
	FirstStart bool
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

func (o NodeOptions) withDefaults() NodeOptions {
	o.ElectionTimeout = orDefault(o.ElectionTimeout, time.Second)
	o.HeartbeatFactor = orDefault(o.HeartbeatFactor, 10)
	o.CatchupTimeout = orDefault(o.CatchupTimeout, o.ElectionTimeout)
	o.CatchupMargin = orDefault(o.CatchupMargin, 1000)
	o.MaxEntrySize = orDefault(o.MaxEntrySize, 32<<20)
	o.MaxPendingEntries = orDefault(o.MaxPendingEntries, 1<<17)
	o.MaxPendingBytes = orDefault(o.MaxPendingBytes, 256<<20)
	o.MaxPendingReads = orDefault(o.MaxPendingReads, 1<<17)
	o.MaxInflightRequests = orDefault(o.MaxInflightRequests, 128)
	o.MaxInflightBytes = orDefault(o.MaxInflightBytes, 16<<20)
	o.MaxAppendBytes = orDefault(o.MaxAppendBytes, 512<<10)
	o.CacheBytes = orDefault(o.CacheBytes, 8<<20)
	o.SnapshotInterval = orDefault(o.SnapshotInterval, time.Hour)
	o.SnapshotEntries = orDefault(o.SnapshotEntries, -1)
	o.SnapshotBytes = orDefault(o.SnapshotBytes, 1<<30)
	o.SnapshotMargin = orDefault(o.SnapshotMargin, 10_000)
	o.SnapshotKeep = orDefault(o.SnapshotKeep, 1)
	return o
}

// Validate reports everything that is wrong with o.
func (o NodeOptions) Validate() error {
	o = o.withDefaults()
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf("NodeOptions."+format, args...))
		}
	}
	check(o.StateMachine != nil, "StateMachine is missing")
	check(o.Index >= 0, "Index is %d, must not be negative", o.Index)
	check(o.ElectionTimeout >= 10*time.Millisecond, "ElectionTimeout is %v, must be at least 10ms", o.ElectionTimeout)
	check(o.HeartbeatFactor >= 2, "HeartbeatFactor is %d, must be at least 2", o.HeartbeatFactor)
	check(o.CatchupTimeout > 0, "CatchupTimeout is %v, must be positive", o.CatchupTimeout)
	check(o.CatchupMargin > 0, "CatchupMargin is %d, must be positive", o.CatchupMargin)
	check(o.MaxEntrySize > 0 && o.MaxEntrySize <= maxEntrySize, "MaxEntrySize is %d, must be 1 to %d", o.MaxEntrySize, maxEntrySize)
	check(o.MaxPendingEntries > 0, "MaxPendingEntries is %d, must be positive", o.MaxPendingEntries)
	check(o.MaxPendingBytes >= int64(o.MaxEntrySize), "MaxPendingBytes is %d, must be at least MaxEntrySize, %d", o.MaxPendingBytes, o.MaxEntrySize)
	check(o.MaxPendingReads > 0, "MaxPendingReads is %d, must be positive", o.MaxPendingReads)
	check(o.MaxInflightRequests > 0, "MaxInflightRequests is %d, must be positive", o.MaxInflightRequests)
	check(o.MaxInflightBytes > 0, "MaxInflightBytes is %d, must be positive", o.MaxInflightBytes)
	check(o.MaxAppendBytes > 0 && o.MaxAppendBytes <= maxEntrySize, "MaxAppendBytes is %d, must be 1 to %d", o.MaxAppendBytes, maxEntrySize)
	check(o.CacheBytes > 0, "CacheBytes is %d, must be positive", o.CacheBytes)
	check(o.SnapshotKeep > 0, "SnapshotKeep is %d, must be positive", o.SnapshotKeep)
	return errors.Join(errs...)
}

// snapshotDue is the index at which the number of entries calls for a snapshot after one of index last.
func (o *NodeOptions) snapshotDue(last int64) int64 {
	if o.SnapshotEntries <= 0 {
		return math.MaxInt64
	}
	return last + o.SnapshotEntries
}

// maxEntrySize keeps a request with one entry below the 64 MiB that a braft peer accepts.
const maxEntrySize = 60 << 20

// Validate reports everything that is wrong with o.
func (o HostOptions) Validate() error {
	var errs []error
	if p, err := ParsePeerID(o.Address); err != nil {
		errs = append(errs, fmt.Errorf("HostOptions.Address: %w", err))
	} else if p.Address != o.Address {
		errs = append(errs, fmt.Errorf("HostOptions.Address is %q, must be host:port as in %q", o.Address, p.Address))
	}
	if o.Listen != "" {
		if _, port := splitAddress(o.Listen); port < 1 || port > 65535 {
			errs = append(errs, fmt.Errorf("HostOptions.Listen is %q, must be host:port", o.Listen))
		}
	}
	if err := o.SnapshotThrottle.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("HostOptions.%w", err))
	}
	if n := o.SegmentSize; n != 0 && (n < wal.SegmentSizeMin || n >= wal.SegmentSizeLimit || n%wal.SegmentSizeUnit != 0) {
		errs = append(errs, fmt.Errorf("HostOptions.SegmentSize is %d, must be a multiple of %d, at least %d and below %d",
			n, wal.SegmentSizeUnit, wal.SegmentSizeMin, int64(wal.SegmentSizeLimit)))
	}
	if o.Transport == nil {
		if err := rpc.CheckTLS(o.TLS); err != nil {
			errs = append(errs, fmt.Errorf("HostOptions.TLS: %w", err))
		}
	}
	return errors.Join(errs...)
}
