package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// replicaConfig says what a replica is.
type replicaConfig struct {
	raft            string // the address that the other replicas reach it at
	listen          string // where to bind for them; empty: there
	redis           string // the address that clients reach it at
	dir             string
	group           string
	peers           graft.Configuration // empty: wait to be added
	electionTimeout time.Duration
	snapshots       snapshotConfig
	tls             *tls.Config
	log             *zap.Logger
	onLeader        func(term int64) // called when it begins to lead; may be nil
}

// snapshotConfig says when snapshots are saved and what they may cost. As with graft.NodeOptions zero is the library's default, and
// negative is never or none.
type snapshotConfig struct {
	interval time.Duration
	entries  int64
	bytes    int64
	margin   int
	rate     int64 // bytes per second, in each direction; 0: no bound
}

// replica is one member of the group: the Raft node with its state machine, the Redis port, and the announcer
// that makes its Redis address known.
//
// Ownership: its fields do not change once it is started; its methods may be called from anywhere.
type replica struct {
	cfg      replicaConfig
	self     graft.PeerID
	host     *graft.Host
	node     *graft.Node
	machine  *machine
	server   *server
	announce *announcer
	saves    saveWaiters
	started  time.Time
}

// startReplica starts everything, or nothing.
func startReplica(cfg replicaConfig) (*replica, error) {
	r := &replica{cfg: cfg, started: time.Now()}
	if err := r.start(); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *replica) start() (err error) {
	if r.self, err = graft.ParsePeerID(r.cfg.raft); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", r.cfg.redis)
	if err != nil {
		return fmt.Errorf("redis port: %w", err)
	}
	r.server = newServer(r, listener)
	if _, port, _ := net.SplitHostPort(r.cfg.redis); port == "0" {
		r.cfg.redis = listener.Addr().String()
	}
	r.announce = newAnnouncer(r)
	r.machine = newMachine(r.self, r.cfg.log, r.announce.wake)
	r.machine.onLeader = r.cfg.onLeader
	r.machine.onFreeze = r.saves.begun
	r.host, err = graft.NewHost(graft.HostOptions{
		Address: r.cfg.raft, Listen: r.cfg.listen, Dir: r.cfg.dir, TLS: r.cfg.tls, Logger: r.cfg.log,
		SnapshotThrottle: graft.SnapshotThrottle{SendRate: r.cfg.snapshots.rate, ReceiveRate: r.cfg.snapshots.rate},
	})
	if err != nil {
		return err
	}
	snap := r.cfg.snapshots
	r.node, err = r.host.StartNode(r.cfg.group, graft.NodeOptions{
		StateMachine: r.machine, InitialConf: r.cfg.peers, ElectionTimeout: r.cfg.electionTimeout,
		SnapshotInterval: snap.interval, SnapshotEntries: snap.entries, SnapshotBytes: snap.bytes, SnapshotMargin: snap.margin,
	})
	if err != nil {
		return err
	}
	if r.node.Status().Conf.Empty() {
		r.cfg.log.Info("this replica is no member of a group yet: it waits to be added, by graftctl or by RAFT ADD on the leader's redis port",
			zap.Stringer("peer", r.self))
	}
	r.server.start()
	r.announce.start()
	return nil
}

// Close hangs up on all clients, then ends the replica. It waits for the end of everything.
func (r *replica) Close() error {
	if r.server != nil {
		r.server.close()
	}
	if r.announce != nil {
		r.announce.close()
	}
	var err error
	if r.host != nil {
		err = r.host.Close()
	}
	if r.machine != nil {
		r.machine.saves.Wait() // the host has taken away what they write to
	}
	return err
}

// propose proposes a write; done gets the outcome once.
func (r *replica) propose(data []byte, done func(result any, err error)) {
	r.node.Apply(graft.Task{Data: data, Done: done})
}

// redirect returns where a client has to go for a slot, nil if that is here. After READONLY a follower serves reads itself,
// but not one that was removed: it would wait for what it will never get.
func (r *replica) redirect(slot int, readonly bool) *reply {
	if readonly && !r.machine.left.Load() || r.node.IsLeader() {
		return nil
	}
	return r.moved(r.node.LeaderID(), slot)
}

var (
	replyNoLeader    = errorReply("CLUSTERDOWN The cluster is down: no leader is known, an election may be under way")
	replyNoLeaderYet = errorReply("CLUSTERDOWN The cluster is down: the leader's redis address is not known yet")
)

func (r *replica) moved(leader graft.PeerID, slot int) *reply {
	if leader.IsZero() || leader.Same(r.self) || r.machine.left.Load() { // if it is this one, it has just come to lead, or led until now
		return r.leaderless(slot)
	}
	addr := r.machine.redisAddr(raftKey(leader))
	if addr == "" {
		return replyNoLeaderYet
	}
	return movedReply(slot, addr)
}

func movedReply(slot int, addr string) *reply {
	return errorReply(fmt.Sprintf("MOVED %d %s", slot, addr))
}

// raftKey names a replica in the table of redis addresses, and for clients: by its address, since a process
// has only one replica of the group.
func raftKey(p graft.PeerID) string { return p.Address }

// refusal turns an error of the library into the client's answer. The texts' first words tell apart what a
// client has to do: ask somebody else (MOVED), retry (CLUSTERDOWN, BUSY), or find out (UNKNOWN).
func (r *replica) refusal(err error, slot int) *reply {
	var e *graft.Error
	errors.As(err, &e)
	switch code := graft.ErrorCode(err); code {
	case graft.ErrUnknownOutcome:
		return errorReply("UNKNOWN the write may have been carried out, or may yet be: " + err.Error())
	case graft.ErrOverloaded, graft.ErrBusy, graft.ErrTransferring, graft.ErrReadonly:
		return errorReply("BUSY nothing was done, retry later: " + err.Error())
	case graft.ErrTooLarge, graft.ErrNoSpace, graft.ErrInvalid, graft.ErrNotSupported:
		return errorReply("ERR nothing was done: " + err.Error())
	case graft.ErrNotLeader, graft.ErrNewLeader:
		if e != nil && code == graft.ErrNotLeader && !e.Peer.IsZero() {
			return r.moved(e.Peer, slot)
		}
		return r.moved(r.node.LeaderID(), slot)
	}
	return errorReply("CLUSTERDOWN nothing was done: " + err.Error())
}
