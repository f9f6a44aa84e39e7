package graft

import (
	"errors"
	"fmt"
	"time"

	"github.com/graft-raft/graft/internal/progress"
)

// catchupWatch is the node's wish to hear when the peer has caught up, or does not get on.
type catchupWatch struct {
	progress.Catchup
	version uint64 // of the change
	began   time.Time

	nearSince time.Time // since when it has had the log

	pace   int // how many requests with entries may be on the way
	beside int // how many peers catch up at the same time, this one included
	lag    int64
	lookAt time.Time // when to compare the lag with what it was
	alive  time.Time // of the latest answer while it was at something that has no measure

	fruitless int   // attempts to install in a row that failed, and had no more than one before
	restarts  int   // attempts that failed and have begun anew, since what they had may be gone
	installed int64 // bytes that it had of a snapshot at most
}

// maxFruitless is how many such attempts in a row count as being at something; and how many may begin anew.
const maxFruitless = 3

// failed notes that an attempt to install has failed at the peer, and whether it had something. That may be gone: a full disk
// is made room on, and what comes then is progress though there was more before. But not for ever.
func (w *catchupWatch) failed(had bool) {
	w.fruitless++
	if had && w.restarts < maxFruitless {
		w.restarts++
		w.fruitless, w.installed = 0, 0
		w.Regressed()
	}
}

const (
	// paceCheck is how long a pace is kept before it is judged.
	paceCheck = 100 * time.Millisecond
	// slowChecks is how many such times it may take to catch up before the pace is too slow: a minute.
	slowChecks = 600
)

// adapt allows for more at a time if the peer hardly comes nearer: the way to it may be long, or writers fast.
func (w *catchupWatch) adapt(now time.Time, lag int64) {
	if now.Before(w.lookAt) {
		return
	}
	if !w.lookAt.IsZero() && w.lag-lag < lag/slowChecks {
		w.pace = min(2*w.pace, 1<<20)
	}
	w.lag, w.lookAt = lag, now.Add(paceCheck)
}

// leaveWatch is the node's wish to hear when a removed peer knows that it is.
type leaveWatch struct {
	index int64 // the configuration entry without it
	until time.Time
}

// catchUp has the node told when the peer has caught up. beside is how many do at the same time, this one included.
func (r *replicator) catchUp(version uint64, beside int) {
	r.a.Post(func() {
		o := &r.n.o
		r.leaving, r.blockedTill = nil, time.Time{}
		r.watched = &catchupWatch{
			Catchup: progress.NewCatchup(int64(o.CatchupMargin), o.CatchupTimeout, r.now), version: version, began: r.now,
			pace: catchupRequests, beside: beside,
		}
		r.heartbeatAt = r.now // what it answered before says nothing
	})
}

// forgetCatchup ends catchUp's wish.
func (r *replicator) forgetCatchup() {
	r.a.Post(func() { r.watched = nil })
}

// leave has the node told when the peer knows that entry index, which removes it, is committed, or
// when it has been given the time for that.
func (r *replicator) leave(index int64, bound time.Duration) {
	r.a.Post(func() { r.watched, r.leaving = nil, &leaveWatch{index: index, until: r.now.Add(bound)} })
}

// rest leaves a peer that catches up to itself for a while, unless it has to hurry. Several together take no more than
// one would.
func (r *replicator) rest(sent sentRequest) {
	if r.watched != nil && r.watched.pace <= catchupRequests {
		r.block(time.Duration(catchupRest*r.watched.beside) * min(r.now.Sub(sent.at), longestRest))
	}
}

// longestRest bounds what counts as the time for a piece: a way that is merely long needs no rest.
const longestRest = 5 * time.Millisecond

// appliesLongEnough is how many times CatchupTimeout a peer that has the log may take for its state machine.
const appliesLongEnough = 10

// checkCatchup reports what has become of a peer that is being added.
func (r *replicator) checkCatchup() {
	w := r.watched
	if w == nil {
		return
	}
	_, last := r.n.lm.bounds()
	w.adapt(r.now, last-r.p.Match)
	r.checkInstall(w)
	if r.p.Match+w.Margin < last {
		w.nearSince = time.Time{}
	} else if w.nearSince.IsZero() {
		w.nearSince = r.now
	}
	answered, ready := r.heard.Load() && !r.contact().Before(w.began), r.worksAsVoter()
	verdict := w.Judge(r.now, &r.p, last, r.applied.Load(), answered, ready)
	if verdict == progress.Lagging && answered && !ready && r.asking == 0 && r.p.Match+w.Margin >= last {
		// It has the log, and may be ready by now: ask again soon.
		if soon := r.now.Add(commitDelay); soon.Before(r.heartbeatAt) {
			r.heartbeatAt = soon
		}
	}
	if verdict == progress.Lagging && !errors.Is(r.lastErr, ErrGroupMismatch) { // waiting does not mend that
		return
	}
	r.watched = nil
	var err error
	if verdict != progress.CaughtUp {
		cause := r.lastErr
		if cause == nil {
			cause = &Error{Code: ErrTimeout, Op: "append", Err: fmt.Errorf("no progress for %v", w.Timeout)}
		}
		err = &Error{Code: ErrCatchup, Op: "change peers", Group: r.n.group, Peer: r.peer, Lag: max(last-r.p.Match, 0), Err: cause}
	}
	r.n.post(func() { r.n.onCaughtUp(w.version, r, err) })
}

// worksAsVoter reports whether the peer could take over, if it had the log: it votes freely, and its state machine
// is about as far as this one. Else it would be a voter by name only, and keep everybody waiting as a leader.
// A state machine that stays slower than this one's does not keep it from that for ever.
func (r *replicator) worksAsVoter() bool {
	if !r.canVote() || r.braft.Load() {
		return r.canVote()
	}
	if near := r.watched.nearSince; !near.IsZero() && r.now.Sub(near) > appliesLongEnough*r.n.o.CatchupTimeout {
		return true
	}
	return r.applied.Load()+int64(r.n.o.CatchupMargin) >= r.n.fsm.applied.Load()
}

// checkLeaving reports that a removed peer needs nothing more.
func (r *replicator) checkLeaving() {
	w := r.leaving
	if w == nil || r.known < w.index && r.now.Before(w.until) {
		return
	}
	r.leaving = nil
	r.n.post(func() { r.n.onLeft(r, w.index) })
}
