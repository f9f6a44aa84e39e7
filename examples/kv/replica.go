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
	redis           string // the address that clients reach it at
	dir             string
	group           string
	peers           graft.Configuration // empty: wait to be added
	electionTimeout time.Duration
	tls             *tls.Config
	log             *zap.Logger
	onLeader        func(term int64) // called when it begins to lead; may be nil
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
	r.machine = newMachine(r.cfg.log, r.announce.wake)
	r.machine.onLeader = r.cfg.onLeader
	r.host, err = graft.NewHost(graft.HostOptions{Address: r.cfg.raft, Dir: r.cfg.dir, TLS: r.cfg.tls, Logger: r.cfg.log})
	if err != nil {
		return err
	}
	r.node, err = r.host.StartNode(r.cfg.group, graft.NodeOptions{
		StateMachine: r.machine, InitialConf: r.cfg.peers, ElectionTimeout: r.cfg.electionTimeout,
	})
	if err != nil {
		return err
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
	if r.host != nil {
		return r.host.Close()
	}
	return nil
}

// propose proposes a write; done gets the outcome once.
func (r *replica) propose(data []byte, done func(result any, err error)) {
	r.node.Apply(graft.Task{Data: data, Done: done})
}

// redirect returns where a client has to go for a slot, nil if that is here.
func (r *replica) redirect(slot int) *reply {
	if r.node.IsLeader() {
		return nil
	}
	return r.moved(r.node.LeaderID(), slot)
}

var (
	replyNoLeader    = errorReply("CLUSTERDOWN The cluster is down: no leader is known, an election may be under way")
	replyNoLeaderYet = errorReply("CLUSTERDOWN The cluster is down: the leader's redis address is not known yet")
)

func (r *replica) moved(leader graft.PeerID, slot int) *reply {
	if leader.IsZero() || leader.Same(r.self) { // if it is this one, it has just come to lead, or led until now
		return replyNoLeader
	}
	addr := r.machine.redisAddr(raftKey(leader))
	if addr == "" {
		return replyNoLeaderYet
	}
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
