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
	Messages, Lost, Duplicated, Reordered, Spikes, Cuts, CutOff, Resets, Refused, Timeouts int64
	LateAnswers, LateForDead, Downs                                                        int64

	// What was done to machines.
	PowerCuts, Kills, CutsAtOp, CutsInRecovery, Restarts, Stops, Vanished, Wipes, Freezes, SlowDisks, RateChanges int64
	DiskErrors, DiskFull, AppFailures, SlowApps, NodeFailures, TornTails, TornCuts                                int64

	// What the group did.
	Leaderships, Campaigns, Truncations, TruncatedEntries, TruncatedDurable, Recovered, Commits, Applied, VotesGranted int64

	// What clients saw.
	Writes, Acked, UnknownOutcomes, NotLeader, NoSpace, Overloaded, TermMismatch, OtherRefusals int64
	Reads, LeaderReads, FollowerReads, FailedReads                                              int64
	Detached, Chained                                                                           int64
	Audits, Duels,
	LostWithProcess, ReadsAfterStop int64
}

// Add adds up what happened in several runs.
func (c *Counters) Add(o *Counters) {
	a, b := reflect.ValueOf(c).Elem(), reflect.ValueOf(o).Elem()
	for i := range a.NumField() {
		a.Field(i).SetInt(a.Field(i).Int() + b.Field(i).Int())
	}
}

// Zero lists what never happened.
func (c *Counters) Zero() (names []string) {
	v := reflect.ValueOf(c).Elem()
	for i := range v.NumField() {
		if v.Field(i).Int() == 0 {
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
