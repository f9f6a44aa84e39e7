package main

import (
	"math/rand/v2"

	"github.com/graft-raft/graft"
)

// membership is what a replica is to its group.
type membership string

// A replica that is no member waits to be added, or knows that it was removed, or knows of a configuration
// without it but not whether that was committed.
const (
	isVoter   membership = "voter"
	isWitness membership = "witness"
	isLearner membership = "learner"
	isWaiting membership = "waiting"
	isLeaving membership = "leaving"
	isRemoved membership = "removed"
)

// membership goes by the configuration in force, and by the old one too while it is joint.
func (r *replica) membership(st graft.Status) membership {
	for _, conf := range []graft.Configuration{st.Conf, st.OldConf} {
		if p, ok := conf.Find(st.Peer); ok {
			return membership(p.Role.String())
		}
	}
	switch committed, _ := r.machine.members(); {
	case st.Removed || r.machine.left.Load():
		return isRemoved
	case committed.Contains(r.self):
		return isLeaving
	}
	return isWaiting
}

// leaderless is the answer while no leader is known here. One that was removed will never know one, so it sends clients
// to somebody who will.
func (r *replica) leaderless(slot int) *reply {
	m := r.membership(r.node.Status())
	if m == isRemoved || m == isLeaving {
		if addr := r.machine.anyMember(raftKey(r.self)); addr != "" {
			return movedReply(slot, addr)
		}
	}
	switch m {
	case isWaiting:
		return errorReply("CLUSTERDOWN this replica is no member of the group: it waits to be added; say RAFT ADD " + raftKey(r.self) + " to the leader")
	case isRemoved:
		return replyRemoved
	}
	return replyNoLeader
}

var replyRemoved = errorReply("CLUSTERDOWN this replica was removed from the group, ask another one")

// outside is the answer to those who ask for the cluster's slots here though they are to ask elsewhere, nil if this
// replica can tell: of one that is no member and hears no leader, what it remembers may be long out of date.
func (r *replica) outside() *reply {
	st := r.node.Status()
	switch m := r.membership(st); {
	case m == isRemoved:
		return replyRemoved
	case m == isWaiting && st.Leader.IsZero():
		return r.leaderless(0)
	}
	return nil
}

// anyMember returns the redis address of a replica other than self, "" if none is known.
func (m *machine) anyMember(self string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var addrs []string
	for raft, redis := range m.redis {
		if raft != self {
			addrs = append(addrs, redis)
		}
	}
	if len(addrs) == 0 {
		return ""
	}
	return addrs[rand.IntN(len(addrs))]
}
