package graft

import "fmt"

// Stage is how far a membership change has come. The numbers are braft's.
type Stage uint8

// The stages of a change.
const (
	StageNone       Stage = iota // no change is going on
	StageCatchingUp              // new peers copy the log; they do not count yet
	StageJoint                   // C<old,new> is in the log and not yet committed
	StageStable                  // C<new> is in the log and not yet committed
	numStages
)

// String returns the stage's name.
func (s Stage) String() string {
	names := [numStages]string{"none", "catching-up", "joint", "stable"}
	if s < numStages {
		return names[s]
	}
	return fmt.Sprintf("Stage(%d)", uint8(s))
}

type confEvent uint8

const (
	evStart     confEvent = iota // the user asked for a change
	evReady                      // nobody is left to catch up: enter the joint configuration
	evReadyOne                   // nobody is left to catch up, and one voter differs at most: skip it
	evLead                       // became leader while the log's configuration is not joint
	evLeadJoint                  // became leader while it is
	evCommitted                  // the entry of this stage was committed
	evAbort                      // the change failed, or the leader stepped down
	numConfEvents
)

func (e confEvent) String() string {
	return [numConfEvents]string{"start", "ready", "ready-one", "lead", "lead-joint", "committed", "abort"}[e]
}

// confTransitions is the whole state machine: what it does not have cannot happen.
var confTransitions = [numStages]map[confEvent]Stage{
	StageNone:       {evStart: StageCatchingUp, evLead: StageStable, evLeadJoint: StageJoint, evAbort: StageNone},
	StageCatchingUp: {evReady: StageJoint, evReadyOne: StageStable, evAbort: StageNone},
	StageJoint:      {evCommitted: StageStable, evAbort: StageNone},
	StageStable:     {evCommitted: StageNone, evAbort: StageNone},
}

// next returns the stage after ev.
func (s Stage) next(ev confEvent) Stage {
	to, ok := confTransitions[s][ev]
	if !ok {
		panic(fmt.Sprintf("graft: configuration change: %v in stage %v", ev, s))
	}
	return to
}

// ConfigurationCtx drives one change of the configuration at a time: CatchingUp → Joint
// → Stable → None (braft: Node::ConfigurationCtx; Raft thesis §4.3). It is pure: it
// never blocks, sends or appends, but says what the Node must do. Stages advance when
// an entry is committed, so that a slow state machine delays nothing.
//
// Invariant: in StageJoint and StageStable an entry that it asked for is in the log;
// waiting is not empty in StageCatchingUp only.
//
// Ownership: the node's actor.
type ConfigurationCtx struct {
	stage     Stage
	version   uint64 // of the change: reports about an earlier one are void
	conf, old Configuration
	waiting   map[PeerID]bool // peers that have to catch up
}

// confAction is what the Node must do after a transition. The zero value is nothing.
type confAction struct {
	catchUp []PeerID   // bring these up, and report
	propose *confEntry // append this entry
	over    bool       // the change is over; err says how
	err     error
	drop    []PeerID // over: these do not belong to the group; stop to send to them
}

// Start begins a change from old to conf. Peers that will count and do not yet, and all new ones,
// have to catch up first.
func (c *ConfigurationCtx) Start(old, conf Configuration) confAction {
	c.stage = c.stage.next(evStart)
	c.version++
	c.old, c.conf, c.waiting = old, conf, make(map[PeerID]bool)
	var a confAction
	for _, p := range conf.peers {
		q, member := old.Find(p)
		if !member || q.Role == Learner && p.Role != Learner {
			c.waiting[p.ID()] = true
			a.catchUp = append(a.catchUp, p)
		}
	}
	return a
}

// CaughtUp reports that a peer is near enough to the end of the log (err is nil), or
// will not be.
func (c *ConfigurationCtx) CaughtUp(version uint64, peer PeerID, err error) confAction {
	if version != c.version || c.stage != StageCatchingUp || !c.waiting[peer.ID()] {
		return confAction{}
	}
	if err != nil {
		return c.Fail(err)
	}
	delete(c.waiting, peer.ID())
	return confAction{}
}

// Ready reports whether the change has only to be entered into the log.
func (c *ConfigurationCtx) Ready() bool { return c.stage == StageCatchingUp && len(c.waiting) == 0 }

// Proceed enters a change that is Ready into the log: by way of the joint configuration if
// more than one voter differs, or if alwaysJoint is set and one does.
func (c *ConfigurationCtx) Proceed(alwaysJoint bool) confAction {
	n := c.old.votersDiffering(c.conf)
	if n > 1 || alwaysJoint && n > 0 {
		c.stage = c.stage.next(evReady)
		return confAction{propose: &confEntry{conf: c.conf, old: c.old}}
	}
	c.stage = c.stage.next(evReadyOne)
	return confAction{propose: &confEntry{conf: c.conf}}
}

// Lead begins a leadership: the first entry of a term restates the configuration,
// and finishes a joint change that an earlier leader began. Only after it is committed, by
// both majorities, does C<new> follow (braft: ConfigurationCtx::flush).
func (c *ConfigurationCtx) Lead(conf, old Configuration) confAction {
	ev := evLead
	if !old.Empty() {
		ev = evLeadJoint
	}
	c.stage, c.conf, c.old = c.stage.next(ev), conf, old
	c.version++
	return confAction{propose: &confEntry{conf: conf, old: old}}
}

// Committed reports that the entry of the present stage was committed.
func (c *ConfigurationCtx) Committed() confAction {
	joint := c.stage == StageJoint
	c.stage = c.stage.next(evCommitted)
	if joint {
		return confAction{propose: &confEntry{conf: c.conf}}
	}
	return c.reset(nil)
}

// Fail ends a change that has appended nothing yet, as if it had never been asked for.
func (c *ConfigurationCtx) Fail(err error) confAction {
	drop := c.conf.minus(c.old)
	c.stage = c.stage.next(evAbort)
	a := c.reset(err)
	a.drop = drop
	return a
}

// Abort ends this node's part in the change, because it does not lead any more. If the change is in
// the log a later leader may finish it.
func (c *ConfigurationCtx) Abort(cause error) confAction {
	var a confAction
	switch c.stage {
	case StageNone:
		return a
	case StageCatchingUp:
		a = confAction{over: true, err: cause}
	default:
		a = confAction{over: true, err: &Error{Code: ErrUnknownOutcome, Op: "change peers", Err: cause}}
	}
	c.stage = c.stage.next(evAbort)
	c.reset(nil)
	return a
}

func (c *ConfigurationCtx) reset(err error) confAction {
	*c = ConfigurationCtx{stage: c.stage, version: c.version + 1}
	return confAction{over: true, err: err}
}

// Stage returns how far the change has come.
func (c *ConfigurationCtx) Stage() Stage { return c.stage }
