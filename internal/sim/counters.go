package sim

import (
	"fmt"
	"reflect"
	"strings"
)

// Counters says what happened in a run, so that a suite can tell that it was not
// too quiet to find anything. Every field is an int64.
type Counters struct {
	// What the network did.
	Messages, Lost, Duplicated, Reordered, Spikes, Queued, Cuts, CutOff, Resets, Refused, Timeouts int64
	LateAnswers, LateForDead, Downs, Lulls                                                         int64

	// What was done to machines.
	PowerCuts, Kills, CutsAtOp, CutsInRecovery, Restarts, Stops, Vanished, Wipes, Freezes, SlowDisks, RateChanges int64
	DiskErrors, DiskFull, AppFailures, SlowApps, NodeFailures, FailedStops, TornTails, TornCuts                   int64

	Overwrites, Comebacks, Rivalries, SplitVotes, FalseDeaths, HeldAnswers, LostAcks int64

	Partitions, SlowLinks, ClockJumps, CrashLoops, StuckDisks, SpaceErrors, Rotted, RotRefused, WrongDirs, DoublyOpened, WipedLearners int64

	// What the group did.
	Leaderships, Campaigns, Truncations, TruncatedEntries, TruncatedDurable, TruncatedInFlight, TruncatedTerms, Recovered, Commits, Applied, VotesGranted int64

	// What became of snapshots.
	SavesBegun, Saved, SavesFailed, LogsCut, Loaded, LoadedAtStart, TailsReplaced, InstallsAnswered, CopiesResumed, SavesAsked int64

	// What became of durable state machines: they went on from what they held, were given again what they had not kept, had the log cut
	// up to that without a snapshot, and waited for their disks.
	Resumed, GivenAgain, CutAtMark, HeldBack int64

	// What clients saw.
	Writes, Acked, UnknownOutcomes, NotLeader, NoSpace, Overloaded, TermMismatch, OtherRefusals int64
	Reads, LeaderReads, FollowerReads, FailedReads                                              int64
	Detached, Chained                                                                           int64
	Audits, Duels,
	LostWithProcess int64

	// How the membership changed: what was asked for, by kind, and what came of it.
	AddsOK, AddsFailed, AddsUnknown                        int64
	RemovesOK, RemovesFailed, RemovesUnknown               int64
	LearnersOK, LearnersFailed, LearnersUnknown            int64 // added or demoted
	LearnersRemoved, LearnersNotRemoved                    int64
	ChangesOK, ChangesFailed, ChangesUnknown               int64
	NoChanges                                              int64 // already so
	Untold                                                 int64 // unknown, since the state machine could not be told of what was committed
	CatchupsFailed, Unreachable, Canceled, CancelsRefused  int64
	ChangesBusy, ChangesInvalid, ChangesLate, ConfMismatch int64
	TransfersOK, TransfersFailed, TransfersRefused         int64
	JointEntered, JointInherited, ConfCommitted            int64
	ConfTruncated, OutsiderCampaigns                       int64
	LeadersLostCatchingUp, LeadersLostJoint                int64
	LeadersLostStable, LeadersLostAtCommit, LeadersRemoved int64
	Promoted, Demoted, ReAdded, WipedJoiners               int64
	Told, Retired, Zombies, Storms, Hits                   int64
}

// Add adds up what happened in several runs.
func (c *Counters) Add(o *Counters) {
	a, b := reflect.ValueOf(c).Elem(), reflect.ValueOf(o).Elem()
	for i := range a.NumField() {
		a.Field(i).SetInt(a.Field(i).Int() + b.Field(i).Int())
	}
}

// rare is what happens less than once in a day of the group's time; TestChangeThatAFullDiskNeverHeld makes sure that it does.
const rare = "Untold"

// Zero lists what never happened, and might have.
func (c *Counters) Zero() (names []string) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 && v.Type().Field(i).Name != rare {
			names = append(names, v.Type().Field(i).Name)
		}
	}
	return names
}

// String lists all counters.
func (c *Counters) String() string {
	v := reflect.ValueOf(c).Elem()
	var parts []string
	for i := range v.NumField() {
		parts = append(parts, fmt.Sprintf("%s %d", v.Type().Field(i).Name, v.Field(i).Int()))
	}
	return strings.Join(parts, ", ")
}
