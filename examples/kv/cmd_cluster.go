package main

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/tidwall/redcon"

	"github.com/graft-raft/graft"
)

// clusterCommands describe the group as a Redis cluster of one shard: the leader is the master of all slots, the
// others are its replicas.
var clusterCommands = []*command{
	{name: "cluster", arity: -2, group: "cluster", summary: "SLOTS, SHARDS, NODES, INFO, MYID, KEYSLOT.", local: doCluster},
}

// member is a replica as clients see it.
type member struct {
	id     string
	raft   string
	host   string // of the redis address; empty while that is not known
	port   int
	leader bool
	self   bool
	match  int64 // what the leader knows it to have
}

// members lists the replicas of the latest configuration that was committed here, learners included, the leader first.
// led is false if no leader is known, or not its address.
func (r *replica) members() (all []member, led bool, st graft.Status) {
	st = r.node.Status()
	conf, redis := r.machine.members()
	if conf.Empty() { // nothing was committed here yet: what the group is started with
		conf = st.Conf
	}
	peers := conf.Peers()
	if !st.Leader.IsZero() && !conf.Contains(st.Leader) { // it was added, and this replica has yet to apply that
		peers = append(peers, st.Leader)
	}
	match := make(map[string]int64)
	for _, f := range st.Followers {
		match[raftKey(f.Peer)] = f.Match
	}
	for _, p := range peers {
		m := member{id: nodeID(p), raft: raftKey(p), leader: p.Same(st.Leader), self: p.Same(r.self), match: match[raftKey(p)]}
		if host, port, err := net.SplitHostPort(redis[m.raft]); err == nil {
			m.host = host
			m.port, _ = strconv.Atoi(port)
		}
		if m.leader {
			led = m.host != ""
			all = append([]member{m}, all...)
		} else {
			all = append(all, m)
		}
	}
	return all, led, st
}

// nodeID is a replica's name in the cluster: 40 hexadecimal digits.
func nodeID(p graft.PeerID) string {
	sum := sha1.Sum([]byte(raftKey(p)))
	return hex.EncodeToString(sum[:])
}

func portOf(addr string) int {
	_, port, _ := net.SplitHostPort(addr)
	n, _ := strconv.Atoi(port)
	return n
}

// doCluster is CLUSTER with the subcommands that clients use.
func doCluster(s *session, args [][]byte) *reply {
	switch sub := strings.ToUpper(string(args[1])); {
	case (sub == "SLOTS" || sub == "SHARDS") && len(args) == 2:
		if refused := s.r.outside(); refused != nil {
			return refused
		}
		if sub == "SLOTS" {
			return rawReply(clusterSlots(s.r))
		}
		return rawReply(clusterShards(s.r, s.proto))
	case sub == "NODES" && len(args) == 2:
		return textReply(clusterNodes(s.r))
	case sub == "INFO" && len(args) == 2:
		return textReply(clusterInfo(s.r))
	case sub == "MYID" && len(args) == 2:
		return textReply(nodeID(s.r.self))
	case sub == "KEYSLOT" && len(args) == 3:
		return intReply(int64(slotOf(args[2])))
	}
	return errorReply("ERR unknown subcommand or wrong number of arguments for '" + string(args[1]) + "'. Try CLUSTER SLOTS, SHARDS, NODES, INFO, MYID or KEYSLOT.")
}

// clusterSlots is one range of all slots, with the leader and then the replicas that clients can reach.
func clusterSlots(r *replica) []byte {
	all, led, _ := r.members()
	if !led {
		return redcon.AppendArray(nil, 0)
	}
	reachable := all[:0:0]
	for _, m := range all {
		if m.host != "" {
			reachable = append(reachable, m)
		}
	}
	b := redcon.AppendArray(nil, 1)
	b = redcon.AppendArray(b, 2+len(reachable))
	b = redcon.AppendInt(b, 0)
	b = redcon.AppendInt(b, slots-1)
	for _, m := range reachable {
		b = redcon.AppendArray(b, 3)
		b = redcon.AppendBulkString(b, m.host)
		b = redcon.AppendInt(b, int64(m.port))
		b = redcon.AppendBulkString(b, m.id)
	}
	return b
}

// clusterShards is what CLUSTER SLOTS says, in the form of Redis 7.
func clusterShards(r *replica, proto int) []byte {
	all, led, st := r.members()
	b := redcon.AppendArray(nil, 1)
	b = appendMap(b, proto, 2)
	b = redcon.AppendBulkString(b, "slots")
	if led {
		b = redcon.AppendArray(b, 2)
		b = redcon.AppendInt(b, 0)
		b = redcon.AppendInt(b, slots-1)
	} else {
		b = redcon.AppendArray(b, 0)
	}
	b = redcon.AppendBulkString(b, "nodes")
	b = redcon.AppendArray(b, len(all))
	for _, m := range all {
		role, health, offset := "replica", "online", m.match
		if m.leader {
			role, offset = "master", st.CommitIndex
		}
		if m.host == "" {
			health = "loading"
		}
		b = appendMap(b, proto, 7)
		b = appendTextPair(b, "id", m.id)
		b = redcon.AppendInt(redcon.AppendBulkString(b, "port"), int64(m.port))
		b = appendTextPair(b, "ip", m.host)
		b = appendTextPair(b, "endpoint", m.host)
		b = appendTextPair(b, "role", role)
		b = redcon.AppendInt(redcon.AppendBulkString(b, "replication-offset"), offset)
		b = appendTextPair(b, "health", health)
	}
	return b
}

// clusterNodes has one line per replica; its bus port is the raft address's.
func clusterNodes(r *replica) string {
	all, _, st := r.members()
	var leader string
	for _, m := range all {
		if m.leader {
			leader = m.id
		}
	}
	var b strings.Builder
	for _, m := range all {
		flags, master, served := "slave", "-", ""
		switch {
		case m.leader:
			flags, served = "master", fmt.Sprintf(" 0-%d", slots-1)
		case leader != "":
			master = leader
		default:
			flags = "noflags"
		}
		if m.self {
			flags = "myself," + flags
		}
		if m.host == "" {
			flags += ",noaddr"
		}
		fmt.Fprintf(&b, "%s %s:%d@%d %s %s 0 0 %d connected%s\n", m.id, m.host, m.port, portOf(m.raft), flags, master, st.Term, served)
	}
	return b.String()
}

func clusterInfo(r *replica) string {
	all, led, st := r.members()
	state, served := "ok", slots
	if !led {
		state, served = "fail", 0
	}
	return infoLines("cluster_state", state, "cluster_slots_assigned", served, "cluster_slots_ok", served,
		"cluster_slots_pfail", 0, "cluster_slots_fail", 0, "cluster_known_nodes", len(all), "cluster_size", 1,
		"cluster_current_epoch", st.Term, "cluster_my_epoch", st.Term)
}

// doRole is ROLE: the leader with its followers and what they have, or a follower with its leader.
func doRole(s *session, _ [][]byte) *reply {
	all, led, st := s.r.members()
	if st.Role == graft.RoleLeader {
		b := redcon.AppendArray(nil, 3)
		b = redcon.AppendBulkString(b, "master")
		b = redcon.AppendInt(b, st.CommitIndex)
		b = redcon.AppendArray(b, max(len(all)-1, 0))
		for _, m := range all {
			if !m.self {
				b = appendTexts(b, m.host, strconv.Itoa(m.port), strconv.FormatInt(m.match, 10))
			}
		}
		return rawReply(b)
	}
	host, port, state := "", 0, "connect"
	if led {
		host, port, state = all[0].host, all[0].port, "connected"
		if s.r.membership(st) == isWaiting { // it is being added
			state = "sync"
		}
	}
	b := redcon.AppendArray(nil, 5)
	b = redcon.AppendBulkString(b, "slave")
	b = redcon.AppendBulkString(b, host)
	b = redcon.AppendInt(b, int64(port))
	b = redcon.AppendBulkString(b, state)
	return rawReply(redcon.AppendInt(b, st.AppliedIndex))
}
