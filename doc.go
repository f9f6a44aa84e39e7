// Package graft is an embeddable Raft consensus library: a program that imports it
// gets a replicated, fault-tolerant log, and applies it to a state machine of its own.
// It is built after Baidu's braft and speaks its wire protocol.
//
// # The nouns
//
// A Host is what one process has once: listener, connections, and the log on disk. A
// Node is one replica of one group; a host has as many as it takes part in groups. A
// group is named by a string, a replica by a PeerID, the set of replicas by a
// Configuration. The program implements StateMachine, proposes entries with Node.Apply
// or Node.Propose, and reads after Node.ReadIndex.
//
// # Callbacks
//
// All calls of a StateMachine come from one goroutine per node, one at a time, in log
// order; so do the Done functions of applied entries. A Done function runs exactly once. It
// tells three outcomes apart: applied (nil), not proposed and never to be
// applied (any error but one), and unknown (ErrUnknownOutcome).
//
// # Goroutines
//
// Whatever runs is an actor: a mailbox with one owner, which has a goroutine only while
// it has work. Every go statement of the module stands in this table; a test holds it
// to that.
//
//	internal/actor/workers.go run     runs actors that have work; ends when there was none for a moment
//	internal/rpc/tcp.go Start         acceptor and timeouts; end at Close, which waits
//	internal/rpc/tcp.go admit         reader of an accepted connection; ends with it
//	internal/rpc/server.go answer     writer of an accepted connection, once it has answers; ends with it
//	internal/rpc/peer.go act          dialer and writer of the way to a peer; ends when it is idle, or at Close
//	internal/rpc/peer.go use          reader of an outgoing connection; ends with it
//
// Actors: node (one per node; owns its consensus state), replicator (one per peer while
// leading), fsm (one per node; calls the StateMachine), wal-lane and wal-keeper (per host; write
// and prepare the log's files).
package graft
