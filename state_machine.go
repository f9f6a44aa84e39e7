package graft

// Closure is a callback that gets the outcome of an operation. The library runs it
// exactly once. It must not block: it may run on a node's own goroutines.
type Closure func(err error)

// Task is a proposal (braft: Task).
type Task struct {
	// Data is the entry's payload. The library copies it; it must not change before Done ran.
	Data []byte
	// Done gets what the state machine returned for the entry, or why there is
	// nothing. It runs exactly once, after the entry was applied here or has failed:
	//
	//   - nil: committed and applied; result is what Iterator.Return got.
	//   - ErrUnknownOutcome: leadership was lost, or the node stopped, after the entry
	//     was proposed. It may have been committed, or may yet be.
	//   - any other error: it was never proposed, and never will be applied.
	//
	// Of applied entries it runs in log order on the goroutine that calls the state
	// machine. A refusal does not wait for that, and may come before what was proposed
	// earlier is applied. It must not block and must not wait for the node. Nil is allowed.
	Done func(result any, err error)
	// ExpectedTerm refuses the proposal with ErrTermMismatch unless the leader is in
	// that term. 0 means any.
	ExpectedTerm int64
}

// LeaderChange says whom a node follows, or has stopped to follow, and why.
type LeaderChange struct {
	Leader PeerID
	Term   int64
	Reason error // ErrNewLeader, ErrQuorumLost, …
}

// StateMachine is the replicated application. It corresponds to braft's
// StateMachine.
//
// Contract. One goroutine per node makes all calls, one at a time, in log order (that of Host.StartNode first, for the
// snapshot). A
// method may block: that delays this node's later entries and nothing else. It may
// call Node.Apply and the other methods that take a callback; it must not wait for
// the node it belongs to: no Propose, no ReadIndex, no Join, no Host.StopNode or
// Host.Close. No call follows
// OnShutdown. A panic in a method is reported to OnError and stops the node, not the process.
// Embed BaseStateMachine to implement only what is needed.
type StateMachine interface {
	// OnApply applies committed entries. The iterator is valid during the call only.
	OnApply(it *Iterator)
	// OnSnapshotSave saves the state as it is now: all entries up to w.Index applied, and none behind. It takes a
	// view of it quickly, and may go on to write on a goroutine of its own, while entries are applied. When all is written,
	// or has failed, done is called, once, from anywhere. A snapshot that fails leaves nothing behind.
	OnSnapshotSave(w *SnapshotWriter, done Closure)
	// OnSnapshotLoad replaces the whole state, whatever it was, by a snapshot's. It is called by Host.StartNode before any
	// other method, and when the leader's log does not reach back to what this replica needs. OnConfigurationCommitted
	// follows. An error stops the node.
	OnSnapshotLoad(r *SnapshotReader) error
	// OnConfigurationCommitted reports the group's configuration as of index. A joint
	// configuration is never reported.
	OnConfigurationCommitted(conf Configuration, index int64)
	// OnLeaderStart says that this node leads in term and that all entries of earlier
	// terms have been applied. OnLeaderStart and OnLeaderStop strictly alternate.
	OnLeaderStart(term int64)
	// OnLeaderStop says that it leads no more. What was committed before has been applied.
	OnLeaderStop(reason error)
	// OnStartFollowing says that the node has heard of a leader.
	OnStartFollowing(c LeaderChange)
	// OnStopFollowing says that it follows that leader no more.
	OnStopFollowing(c LeaderChange)
	// OnError says that the node has failed for good: nothing is applied any more. It
	// is called once at most; OnShutdown still follows.
	OnError(err error)
	// OnShutdown is the last call.
	OnShutdown()
}

// BaseStateMachine does nothing, for embedding. OnApply is left to the user.
type BaseStateMachine struct{}

// OnSnapshotSave reports ErrNotSupported.
func (BaseStateMachine) OnSnapshotSave(_ *SnapshotWriter, done Closure) {
	done(&Error{Code: ErrNotSupported, Op: "save snapshot"})
}

// OnSnapshotLoad reports ErrNotSupported.
func (BaseStateMachine) OnSnapshotLoad(*SnapshotReader) error {
	return &Error{Code: ErrNotSupported, Op: "load snapshot"}
}

// OnConfigurationCommitted does nothing.
func (BaseStateMachine) OnConfigurationCommitted(Configuration, int64) {}

// OnLeaderStart does nothing.
func (BaseStateMachine) OnLeaderStart(int64) {}

// OnLeaderStop does nothing.
func (BaseStateMachine) OnLeaderStop(error) {}

// OnStartFollowing does nothing.
func (BaseStateMachine) OnStartFollowing(LeaderChange) {}

// OnStopFollowing does nothing.
func (BaseStateMachine) OnStopFollowing(LeaderChange) {}

// OnError does nothing.
func (BaseStateMachine) OnError(error) {}

// OnShutdown does nothing.
func (BaseStateMachine) OnShutdown() {}
