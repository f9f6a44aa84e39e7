package sim

import (
	"errors"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/entry"
)

// app is the state machine of one process. It checks what it is told, and in what
// order.
//
// Ownership: the simulation's goroutine.
type app struct {
	graft.BaseStateMachine
	m *machine

	applied   int64 // index of the last entry applied
	confAt    int64 // index of the last configuration reported
	digest    uint64
	position  int64 // up to here all is in the state: applied, or behind it where a snapshot was loaded
	acked     int64 // index of the last write acknowledged in order
	leading   int64 // term, 0 when not
	following graft.PeerID
	failed    bool
	shut      bool
	ended     bool
	detached  []func() // calls taken over and not run yet
	loaded    int64    // index of the snapshot that was loaded, until its configuration was reported
}

// call notes a call and reports whether it may be looked at: what a process does in the step
// in which it is killed does not count.
func (a *app) call(what string) bool {
	if a.m.proc.Dead() {
		return false
	}
	if a.shut {
		a.m.c.fail("I15 state machine contract: machine %d: %s after OnShutdown", a.m.index, what)
	}
	return true
}

// OnApply checks that entries come in order, without gaps, and as committed.
func (a *app) OnApply(it *graft.Iterator) {
	if !a.call("OnApply") {
		return
	}
	c := a.m.c
	if a.failed {
		c.fail("I15 state machine contract: machine %d: OnApply after OnError", a.m.index)
	}
	left := -1
	if c.o.Load.EarlyReturn > 0 && a.m.rng.Float64() < c.o.Load.EarlyReturn {
		left = 1 + a.m.rng.IntN(3)
	}
	for left != 0 && it.Next() {
		left--
		if a.breaks(it.Index()) {
			a.breakDown(it)
			continue
		}
		a.apply(it)
	}
}

// breaks reports whether the state machine fails at an entry. Where it did not fail before it seldom does: else
// a long log would never be applied to its end again.
func (a *app) breaks(index int64) bool {
	p := a.m.c.o.Faults.App
	if index <= a.m.appliedOnce {
		p /= 100
		if a.m.kept.index > 0 {
			a.m.c.Count.GivenAgain++
		}
	}
	a.m.appliedOnce = max(a.m.appliedOnce, index)
	return p > 0 && !a.m.c.healed && a.m.rng.Float64() < p
}

// breakDown fails as a state machine can.
func (a *app) breakDown(it *graft.Iterator) {
	a.m.c.Count.AppFailures++
	a.m.injected = true
	if a.m.rng.IntN(2) == 0 {
		panic("simulated panic of the state machine")
	}
	it.Rollback(1, errors.New("simulated failure of the state machine"))
}

func (a *app) apply(it *graft.Iterator) {
	c, index := a.m.c, it.Index()
	committed := c.check.committed
	if index <= a.applied || index > int64(len(committed)) {
		c.fail("I15 state machine contract: machine %d: applies %d after %d, committed is %d", a.m.index, index, a.applied, len(committed))
		return
	}
	a.skipTo(index)
	info := committed[index-1]
	sum := sumOf(it.Data())
	if info.term != it.Term() || info.sum != sum || info.typ != entry.Data {
		c.fail("I6 state machine safety: machine %d applies another entry %d than was committed", a.m.index, index)
	}
	a.applied, a.position = index, index
	a.digest = (a.digest ^ sum ^ uint64(index)) * 1099511628211
	a.compare(c)
	c.Count.Applied++
	c.clients.applied(a.m, index, it.Data())
	a.keep()
	it.Return(index)
	if it.Local() && c.o.Load.Detach > 0 && a.m.rng.Float64() < c.o.Load.Detach {
		a.detach(it.Detach(), index)
	}
}

// skipTo checks that what lies before index is nothing of the user's.
func (a *app) skipTo(index int64) {
	for i := a.applied + 1; i < index; i++ {
		e := a.m.c.check.committed[i-1]
		if e.typ == entry.Data || e.typ == entry.Configuration && !e.conf.joint() && i > a.confAt {
			a.m.c.fail("I15 state machine contract: machine %d: entry %d is left out", a.m.index, i)
		}
	}
}

// detach answers an entry's proposer later.
func (a *app) detach(done func(any, error), index int64) {
	a.m.c.Count.Detached++
	ran := false
	run := func() {
		if !ran {
			ran = true
			a.m.c.clients.late = true
			done(index, nil)
			a.m.c.clients.late = false
		}
	}
	a.detached = append(a.detached, run)
	a.m.c.later(a.m.c.rng.between(1e5, 1e9), a.m, run)
}

// OnConfigurationCommitted checks that each one is reported once.
func (a *app) OnConfigurationCommitted(conf graft.Configuration, index int64) {
	if !a.call("OnConfigurationCommitted") {
		return
	}
	c := a.m.c
	committed := c.check.committed
	if a.loaded != 0 {
		a.reported(conf, index)
		return
	}
	if index <= a.confAt || index <= a.applied || index > int64(len(committed)) || committed[index-1].typ != entry.Configuration {
		c.fail("I15 state machine contract: machine %d: configuration %d is reported after configuration %d and entry %d", a.m.index, index, a.confAt, a.applied)
		return
	}
	a.skipTo(index)
	a.confAt = index
	if is := committed[index-1].conf; is.joint() || !conf.Equal(is.conf) {
		c.fail("I15 state machine contract: machine %d: configuration %v is reported, committed is %v", a.m.index, conf, is)
	}
}

// OnLeaderStart and OnLeaderStop must alternate.
func (a *app) OnLeaderStart(term int64) {
	if !a.call("OnLeaderStart") {
		return
	}
	if t := a.m.c.check.terms[term]; a.leading != 0 || t == nil || t.leader != a.m || t.boot != a.m.boot {
		a.m.c.fail("I15 state machine contract: machine %d: OnLeaderStart(%d), was leading %d", a.m.index, term, a.leading)
	}
	for i := len(a.m.log); i > int(a.applied); i-- {
		if e := a.m.log[i-1]; e.term < term && e.typ == entry.Data {
			a.m.c.fail("I15 state machine contract: machine %d: OnLeaderStart(%d) before entry %d of term %d is applied", a.m.index, term, e.index, e.term)
		}
	}
	a.leading = term
	if a.m.rng.IntN(2) == 0 {
		a.m.c.clients.write(a.m, 0)
	}
}

// OnLeaderStop ends what OnLeaderStart began.
func (a *app) OnLeaderStop(reason error) {
	if !a.call("OnLeaderStop") {
		return
	}
	c, term := a.m.c, a.leading
	if term == 0 || reason == nil {
		c.fail("I15 state machine contract: machine %d: OnLeaderStop(%v), was leading %d", a.m.index, reason, term)
	}
	a.leading = 0
	switch graft.ErrorCode(reason) {
	case graft.ErrTransferring:
		c.Count.TransfersOK++
	case graft.ErrLeaderRemoved:
		c.Count.LeadersRemoved++
		for _, ch := range a.m.changes {
			if !ch.over && ch.first != nil && ch.first.entry.term == term {
				c.fail("I15 state machine contract: machine %d: OnLeaderStop(%v) before the change that it follows was answered", a.m.index, reason)
			}
		}
	}
}

// OnStartFollowing and OnStopFollowing must alternate.
func (a *app) OnStartFollowing(l graft.LeaderChange) {
	if !a.call("OnStartFollowing") {
		return
	}
	if !a.following.IsZero() || l.Leader.IsZero() {
		a.m.c.fail("I15 state machine contract: machine %d: OnStartFollowing(%v), was following %v", a.m.index, l, a.following)
	}
	a.following = l.Leader
}

// OnStopFollowing ends what OnStartFollowing began.
func (a *app) OnStopFollowing(l graft.LeaderChange) {
	if !a.call("OnStopFollowing") {
		return
	}
	if a.following.IsZero() || !a.following.Same(l.Leader) {
		a.m.c.fail("I15 state machine contract: machine %d: OnStopFollowing(%v), was following %v", a.m.index, l, a.following)
	}
	a.following = graft.PeerID{}
}

// OnError may come once.
func (a *app) OnError(err error) {
	if !a.call("OnError") {
		return
	}
	if a.failed {
		a.m.c.fail("I15 state machine contract: machine %d: a second OnError: %v", a.m.index, err)
	}
	a.failed = true
}

// OnShutdown is the last call.
func (a *app) OnShutdown() {
	if !a.call("OnShutdown") {
		return
	}
	a.shut = true
	if a.leading != 0 {
		a.m.c.fail("I15 state machine contract: machine %d: OnShutdown while leading %d", a.m.index, a.leading)
	}
}

// stopped checks what must be over when a replica has ended in good order.
func (a *app) stopped(err error) {
	c := a.m.c
	for _, run := range a.detached {
		run()
	}
	if err != nil || !a.shut || a.ended {
		c.fail("I15 state machine contract: machine %d: shutdown reports %v, OnShutdown ran: %v, before: %v", a.m.index, err, a.shut, a.ended)
	}
	a.ended = true
}
