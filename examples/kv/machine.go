package main

import (
	"bytes"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// machine is the state machine that the group replicates: the keys, and a table that says at which address
// each replica speaks Redis. Replicas that have left the group are dropped from the table.
//
// Invariant: index, the keys and their digest change together, under mu; equal indexes have equal
// digests on all replicas.
//
// Ownership: the node's goroutine writes, anybody reads. mu is a leaf lock; it is not held while a
// proposer is answered.
type machine struct {
	graft.BaseStateMachine
	self     graft.PeerID
	log      *zap.Logger
	changed  func()           // called when leader or table have changed; must not block
	onLeader func(term int64) // called when this replica begins to lead; may be nil
	onFreeze func()           // called when a snapshot's state is frozen; must not block; may be nil

	mu    sync.RWMutex
	keys  keyspace
	index int64               // of the last entry applied
	redis map[string]string   // raft address → redis address
	conf  graft.Configuration // the latest that was committed; empty: none yet

	savedAt []savedAt // of the latest snapshots, the newest last; mu guards it too

	saves   sync.WaitGroup // goroutines that write a snapshot
	left    atomic.Bool    // this replica was a member, and by conf is none any more; the node's goroutine sets it
	scratch op             // the node's goroutine's own
}

func newMachine(self graft.PeerID, log *zap.Logger, changed func()) *machine {
	return &machine{self: self, log: log, changed: changed, redis: make(map[string]string)}
}

// OnApply applies committed writes. One that cannot be understood stops the replica: to skip it would make it
// differ from the others.
func (m *machine) OnApply(it *graft.Iterator) {
	for it.Next() {
		if err := m.scratch.decode(it.Data()); err != nil {
			it.Rollback(1, fmt.Errorf("kv: entry %d: %w", it.Index(), err))
			return
		}
		it.Return(m.apply(it.Index(), &m.scratch))
		if m.scratch.code == opAnnounce {
			m.changed()
		}
	}
}

// OnConfigurationCommitted keeps the members up to date, and the index over entries that are not the store's.
func (m *machine) OnConfigurationCommitted(conf graft.Configuration, index int64) {
	members := make(map[string]bool)
	for _, p := range conf.Peers() {
		members[raftKey(p)] = true
	}
	m.mu.Lock()
	m.index = max(m.index, index)
	left := m.adopt(conf)
	maps.DeleteFunc(m.redis, func(raft, _ string) bool { return !members[raft] })
	m.mu.Unlock()
	m.log.Info("configuration", zap.Stringer("conf", conf), zap.Int64("index", index))
	if left {
		m.log.Warn("this replica is no member of the group any more; it sends clients to the others", zap.Int64("index", index))
	}
	m.changed()
}

// adopt takes over a configuration that was committed, with mu held, and reports whether this replica has left by it.
func (m *machine) adopt(conf graft.Configuration) (left bool) {
	left = m.conf.Contains(m.self) && !conf.Contains(m.self)
	m.conf = conf
	if left || conf.Contains(m.self) {
		m.left.Store(left)
	}
	return left
}

// OnLeaderStart has the replica's redis address proposed, if the table lacks it.
func (m *machine) OnLeaderStart(term int64) {
	m.log.Info("this replica leads", zap.Int64("term", term))
	if m.onLeader != nil {
		m.onLeader(term)
	}
	m.changed()
}

// OnLeaderStop says why.
func (m *machine) OnLeaderStop(reason error) {
	m.log.Info("this replica leads no more", zap.Error(reason))
}

// OnStartFollowing has the replica's redis address handed to the leader, if the table lacks it.
func (m *machine) OnStartFollowing(c graft.LeaderChange) {
	m.log.Info("following", zap.Stringer("leader", c.Leader), zap.Int64("term", c.Term))
	m.changed()
}

// OnError reports that the replica has failed. The process lives and refuses all commands.
func (m *machine) OnError(err error) { m.log.Error("the replica has failed", zap.Error(err)) }

// apply carries out one write and returns its answer.
func (m *machine) apply(index int64, o *op) *reply {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index = index
	switch o.code {
	case opSet:
		return m.set(o)
	case opDel:
		return m.del(o.args)
	case opIncr:
		return m.keys.incr(o.args[0], o.delta)
	case opAppend:
		return m.keys.append(o.args[0], o.args[1])
	case opMSet:
		for i := 0; i < len(o.args); i += 2 {
			m.keys.set(o.args[i], bytes.Clone(o.args[i+1]))
		}
		return replyOK
	case opCAS:
		return boolReply(m.keys.cas(o.args[0], o.args[1], o.args[2]))
	case opFlush:
		m.keys.clear()
		return replyOK
	case opAnnounce:
		m.redis[string(o.args[0])] = string(o.args[1])
		return replyOK
	}
	panic("kv: an operation passed decode that apply does not know")
}

// set is SET: the answer is the old value if it is asked for, else whether the new one was stored.
func (m *machine) set(o *op) *reply {
	key := o.args[0]
	old, exists := m.keys.get(key)
	store := (o.flags&setNX == 0 || !exists) && (o.flags&setXX == 0 || exists)
	if store {
		m.keys.set(key, bytes.Clone(o.args[1]))
	}
	switch {
	case o.flags&setGET != 0 && exists:
		return bulkReply(old)
	case o.flags&setGET != 0 || !store:
		return replyNull
	}
	return replyOK
}

// del is DEL: the answer is how many keys there were.
func (m *machine) del(keys [][]byte) *reply {
	var n int64
	for _, key := range keys {
		if m.keys.del(key) {
			n++
		}
	}
	return intReply(n)
}

// read runs f on the keys as they are at one moment.
func (m *machine) read(f func(*keyspace) *reply) *reply {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return f(&m.keys)
}

// scan appends the keys of the next bucket that has some, from cursor on, and returns where to go on; 0 is the end.
func (m *machine) scan(cursor uint64, dst []string) (keys []string, next uint64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	next = m.keys.scan(cursor, 1, func(key string) { dst = append(dst, key) })
	return dst, next
}

// digest returns the keys' digest and the index it belongs to.
func (m *machine) digest() (index int64, digest uint64, size int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.index, m.keys.digest, m.keys.size
}

// redisAddr returns where a replica speaks Redis, "" if that is not known yet.
func (m *machine) redisAddr(raft string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.redis[raft]
}

// members returns the latest configuration that was committed, and the whole table.
func (m *machine) members() (conf graft.Configuration, redis map[string]string) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.conf, maps.Clone(m.redis)
}
