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
	evLead      confEvent = iota // became leader while the log's configuration is not joint
	evLeadJoint                  // became leader while it is
	evCommitted                  // the entry of this stage was committed
	evAbort                      // the leader stepped down
	numConfEvents
)

func (e confEvent) String() string {
	return [numConfEvents]string{"lead", "lead-joint", "committed", "abort"}[e]
}

// next returns the stage after ev. What the table does not have cannot happen.
func (s Stage) next(ev confEvent) Stage {
	table := [numStages]map[confEvent]Stage{
		StageNone:   {evLead: StageStable, evLeadJoint: StageJoint, evAbort: StageNone},
		StageJoint:  {evCommitted: StageStable, evAbort: StageNone},
		StageStable: {evCommitted: StageNone, evAbort: StageNone},
	}
	to, ok := table[s][ev]
	if !ok {
		panic(fmt.Sprintf("graft: configuration change: %v in stage %v", ev, s))
	}
	return to
}

// ConfigurationCtx drives one change of the configuration at a time. It is pure:
// it never blocks, sends or appends, but says what the Node must do. So far a
// change is only what each leader begins with: the entry of its own term that
// restates the configuration found in the log (braft: Node::ConfigurationCtx::flush).
//
// Invariant: stage is StageNone, or an entry it asked for is in the log.
//
// Ownership: the node's actor.
type ConfigurationCtx struct {
	stage     Stage
	conf, old Configuration
}

// confAction is what the Node must do after a transition. The zero value is nothing.
type confAction struct {
	propose *confEntry // append this entry
	done    bool       // the change is over
}

// Lead begins a leadership: the first entry of a term restates the configuration,
// and finishes a joint change that an earlier leader began.
func (c *ConfigurationCtx) Lead(conf, old Configuration) confAction {
	ev := evLead
	if !old.Empty() {
		ev = evLeadJoint
	}
	c.stage, c.conf, c.old = c.stage.next(ev), conf, old
	return confAction{propose: &confEntry{conf: conf, old: old}}
}

// Committed reports that the entry of the present stage was committed.
func (c *ConfigurationCtx) Committed() confAction {
	joint := c.stage == StageJoint
	c.stage = c.stage.next(evCommitted)
	if joint {
		c.old = Configuration{}
		return confAction{propose: &confEntry{conf: c.conf}}
	}
	return confAction{done: true}
}

// Abort ends this node's part in the change, because it does not lead any more.
func (c *ConfigurationCtx) Abort() {
	*c = ConfigurationCtx{stage: c.stage.next(evAbort)}
}

// Stage returns how far the change has come.
func (c *ConfigurationCtx) Stage() Stage { return c.stage }
