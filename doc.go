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
// # Membership
//
// The leader changes the group's configuration while the group works: Node.AddPeer, RemovePeer,
// ChangePeers and Change. A new replica is started with an empty NodeOptions.InitialConf and waits to be added. A
// change passes through stages, which Node.Status shows: CatchingUp, in which new peers copy the log and do not
// count; Joint, if more than one voter differs, in which majorities of the old and of the new
// configuration must agree; Stable, in which the new one is being committed. It is atomic: whatever crashes,
// the group ends with the old configuration or with the new one, and a later leader finishes what is in the log. A
// configuration is in force from the moment its entry is appended.
//
// Node.TransferLeadership hands leadership over without a pause for a timeout. Learners get the log and count in no
// quorum. Node.ResetPeers is for a group that has lost its majority for good, and is unsafe.
//
// # Snapshots
//
// A snapshot is the state machine's state as a directory of files, with a manifest that has the hashes of all their blocks. One is
// saved now and then (NodeOptions.SnapshotInterval and what stands beside it) or by Node.Snapshot; then the log is cut behind it. A replica
// starts from its latest one. A follower that needs entries which are in the log no more copies the leader's: it resumes after
// any interruption, fetches only what it has not got, and compares every block with its hash.
//
// A state machine that keeps its state on disk itself says how much of it is there (DurableStateMachine). Its replica starts without a
// snapshot and without applying anything again, its log is cut up to that, and snapshots are made only for replicas that join.
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
//	internal/sim/mutants/main.go try  trials of the tests themselves, a command of its own; end with it
//
// Actors: node (one per node; owns its consensus state), replicator (one per peer while
// leading), fsm (one per node; calls the StateMachine), callback (one per node; calls back those
// who need not wait for the StateMachine), snapshot (one per node; saves and
// installs), file (one per snapshot that a follower reads), copy (some per
// snapshot being installed; write what arrives), wal-lane and wal-keeper (per host; write
// and prepare the log's files).
package graft
