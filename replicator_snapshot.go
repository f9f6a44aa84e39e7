package graft

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/progress"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// snapshotOffer is the snapshot that a peer was told to install, for want of the entries it needs.
//
// Ownership: its replicator's actor.
type snapshotOffer struct {
	lent    *lentReader // nil: none. It outlives a failed attempt: what was copied of it is of use for the next one
	asked   uint64      // number of the latest request
	placed  bool        // it counts among the host's sends
	before  int64       // bytes that were read of it before the latest attempt
	holding bool        // the log is kept for the peer
}

// index of the snapshot on offer, 0 if there is none.
func (o *snapshotOffer) index() int64 {
	if o.lent == nil {
		return 0
	}
	return o.lent.base.index
}

// copyNews is what a peer says in its answers of the snapshot that it installs.
type copyNews struct {
	done, total atomic.Int64
	loads       atomic.Bool
}

func (c *copyNews) store(resp wire.AppendResponse) {
	if resp.InstallTotal != c.total.Load() || resp.InstallDone != c.done.Load() || resp.InstallLoads != c.loads.Load() {
		c.done.Store(resp.InstallDone)
		c.total.Store(resp.InstallTotal)
		c.loads.Store(resp.InstallLoads)
	}
}

const (
	// installPatience is how long an answer to install_snapshot may take before it is asked for again: the request or the
	// answer may be lost. The peer goes on with what it is at. A braft peer is asked less often, as it logs that.
	installPatience = 2 * time.Second
	braftPatience   = 10 * time.Second
	// noSnapshotDelay is the pause when there is no snapshot to offer, or no place for another copy.
	noSnapshotDelay = 200 * time.Millisecond
	// holdPatience is how long the log is kept for a peer that does not answer, and a place among the host's sends.
	holdPatience = time.Minute
)

// install offers the peer a snapshot: what it needs next is in the log no more.
func (r *replicator) install() {
	o := &r.offer
	if r.silent() { // a heartbeat tells when it is back
		r.withdraw()
		r.block(busyDelay)
		return
	}
	if o.lent != nil {
		r.keepLog(o.index())
		if first, _ := r.n.lm.bounds(); o.index()+1 < first {
			r.withdraw() // the log behind it was not kept
		}
	}
	if o.lent == nil {
		o.holding = true
		lent, err := r.n.snap.lend(r)
		if err == nil {
			if first, _ := r.n.lm.bounds(); lent.base.index+1 < first {
				lent.giveBack()
				err = fmt.Errorf("the newest snapshot is of %d, the log begins at %d", lent.base.index, first)
			}
		}
		if err != nil {
			r.noSnapshot(err)
			return
		}
		o.lent = lent
		r.log.Info("peer needs a snapshot", zap.Int64("next", r.p.Next), zap.Int64("index", o.index()))
	}
	if !o.placed && !r.n.host.sends.enter() {
		r.noSnapshot(ErrBusy)
		return
	}
	o.placed, o.before = true, o.lent.served.Load()
	r.copied.store(wire.AppendResponse{}) // what it said was of an earlier attempt, if of any
	r.p.BeginSnapshot()
	r.sendInstall()
}

// keepLog keeps the log behind an index for the peer, until checkOffer finds that it needs that no more.
func (r *replicator) keepLog(index int64) {
	r.offer.holding = true
	r.n.snap.hold(r, index)
}

// checkPlace lets another host's copy begin once the peer has all of this one: how long it takes to load it is nobody else's business.
func (r *replicator) checkPlace() {
	o := &r.offer
	if o.lent == nil || r.p.State != progress.Snapshot {
		return
	}
	done, total := r.copied.done.Load(), r.copied.total.Load()
	if !r.graft { // it does not say
		done, total = r.servedNow(), o.lent.bytes
	}
	switch {
	case r.copied.loads.Load(), total > 0 && done >= total:
		r.leavePlace()
	case !o.placed && total > 0: // it was restarted, and copies again
		o.placed = r.n.host.sends.enter() // it goes on if there is none
	}
}

// leavePlace lets another host's copy begin.
func (r *replicator) leavePlace() {
	if r.offer.placed {
		r.offer.placed = false
		r.n.host.sends.leave()
	}
}

// noSnapshot is for when there is none to offer.
func (r *replicator) noSnapshot(err error) {
	r.block(noSnapshotDelay)
	if errors.Is(err, ErrBusy) || errors.Is(err, ErrShutdown) {
		r.lastErr = &Error{Code: ErrBusy, Op: opInstallSnapshot, Group: r.n.group, Peer: r.peer, Err: errors.New("too many snapshots are being sent")}
		if r.watched != nil && r.heard.Load() {
			r.watched.Works(r.now)
		}
		return
	}
	r.log.Error("peer needs entries that are compacted away, and there is no snapshot", zap.Int64("next", r.p.Next), zap.Error(err))
	r.lastErr = &Error{Code: ErrCompacted, Op: opInstallSnapshot, Group: r.n.group, Peer: r.peer, Index: r.p.Next, Err: err}
	r.block(busyDelay)
	r.n.snap.a.Post(r.n.snap.saveUnasked)
}

// withdraw ends an offer.
func (r *replicator) withdraw() {
	o := &r.offer
	o.asked++
	r.leavePlace()
	if o.lent != nil {
		o.lent.giveBack()
		o.lent = nil
	}
}

// sendInstall sends install_snapshot.
func (r *replicator) sendInstall() {
	o := &r.offer
	o.asked++
	asked, life, sentAt := o.asked, r.life, r.now
	m := &raftpb.InstallSnapshotRequest{
		GroupId: &r.n.group, ServerId: &r.n.name, PeerId: &r.wire, Term: &r.term,
		Meta: o.lent.base.message(), Uri: proto.String(o.lent.uri()), GraftFeatures: proto.Uint64(featurePipeline),
	}
	if id := r.n.groupIDNow.Load(); id != 0 {
		m.GraftGroupId = &id
	}
	b, err := proto.Marshal(m)
	if err != nil {
		r.n.post(func() { r.n.fail(&Error{Code: ErrInvalid, Op: "encode install_snapshot", Group: r.n.group, Err: err}) })
		return
	}
	patience := max(installPatience, 2*r.n.o.ElectionTimeout)
	if !r.graft {
		patience = max(patience, braftPatience)
	}
	r.n.host.call(r.peer, rpc.Call{
		Service: raftService, Method: methodInstall, Message: [][]byte{b}, Timeout: patience,
		Done: func(rep rpc.Reply) { r.a.Post(func() { r.installAnswered(asked, life, sentAt, rep) }) },
	})
}

// installAnswered takes the answer to install_snapshot into account.
//
// Source: braft Replicator::_on_install_snapshot_returned.
func (r *replicator) installAnswered(asked, life uint64, sentAt time.Time, rep rpc.Reply) {
	o := &r.offer
	if r.stopped || asked != o.asked || life != r.life || o.lent == nil || r.p.State != progress.Snapshot {
		return
	}
	resp := new(raftpb.InstallSnapshotResponse)
	switch {
	case errors.Is(rep.Err, rpc.ErrTimeout) && !r.silent():
		r.sendInstall() // the peer joins it with the one before
		return
	case rep.Err != nil || rep.Code != 0:
		r.installFailed(rep)
		return
	case proto.Unmarshal(rep.Message, resp) != nil || resp.GetTerm() < r.term || !validTerm(resp.GetTerm()):
		r.attemptOver()
		return
	case resp.GetTerm() > r.term:
		r.n.post(func() { r.n.onHigherTerm(resp.GetTerm(), r.peer) })
		return
	}
	r.touch(sentAt)
	r.heard.Store(true)
	if !resp.GetSuccess() {
		r.attemptOver()
		return
	}
	index := o.index()
	r.log.Info("peer has installed the snapshot", zap.Int64("index", index))
	r.succeeded()
	if r.watched != nil {
		r.watched.fruitless = 0
	}
	r.withdraw()
	r.p.SnapshotInstalled(index)
	r.keepLog(r.p.Match)
	r.n.acknowledged(r.term, r.peer, life, index)
	r.send()
}

// attemptOver has the peer probed again after a pause.
func (r *replicator) attemptOver() {
	r.leavePlace()
	r.p.SnapshotFailed()
	r.block(r.interval())
}

// installFailed handles an error in place of an answer.
func (r *replicator) installFailed(rep rpc.Reply) {
	r.failedWith(rep)
	r.log.Info("peer has not installed the snapshot", zap.Int64("index", r.offer.index()), zap.Error(r.lastErr))
	r.attemptOver()
	if w := r.watched; w != nil && rep.Err == nil && Code(rep.Code) != ErrBusy && Code(rep.Code) != codeInterrupted {
		w.failed(r.copied.total.Load() > 0 || r.servedNow() > 0)
	}
	switch code := Code(rep.Code); {
	case rep.Err != nil: // what it has copied is of use, and it may be copying still
	case code == ErrNoSpace: // another one would need it as well
		r.block(busyDelay)
	case code == ErrBusy, code == codeInterrupted:
		r.block(busyDelay)
		if w := r.watched; w != nil { // it is at something
			w.Works(r.now)
			r.block(min(busyDelay, w.Timeout/2))
		}
	case code == ErrCorrupt:
		lent := r.offer.lent
		r.n.snap.a.Post(func() { r.n.snap.suspect(lent.base.index, r.lastErrOf(rep)) })
		r.withdraw()
	default:
		r.withdraw() // another one may do better
	}
}

func (r *replicator) lastErrOf(rep rpc.Reply) error {
	return &Error{Code: Code(rep.Code), Op: opInstallSnapshot, Group: r.n.group, Peer: r.peer, Err: errors.New(rep.Text)}
}

// checkOffer ends what is done for a peer that needs it no more: the snapshot on offer, and the log that is kept.
func (r *replicator) checkOffer() {
	o := &r.offer
	r.checkPlace()
	if o.lent != nil && r.p.State == progress.Replicate {
		r.withdraw() // it went on without
	}
	if !o.holding {
		return
	}
	last := r.n.lm.lastIndex()
	switch {
	case r.p.State == progress.Replicate && r.p.Match+int64(r.n.o.CatchupMargin) >= last,
		r.silent():
		o.holding = false
		r.withdrawIfIdle()
		r.n.snap.release(r)
	case r.p.State == progress.Replicate:
		r.n.snap.hold(r, r.p.Match)
	}
}

// silent reports whether the peer has not answered anything for so long that nothing is held ready for it.
func (r *replicator) silent() bool {
	return r.now.Sub(r.contact()) > max(holdPatience, 10*r.n.o.ElectionTimeout)
}

// withdrawIfIdle gives back the snapshot on offer of a peer that is not installing it.
func (r *replicator) withdrawIfIdle() {
	if r.p.State != progress.Snapshot {
		r.withdraw()
	}
}

// servedNow is how much has been read of the snapshot on offer in this attempt: what one in vain has read is read again.
func (r *replicator) servedNow() int64 {
	if r.offer.lent == nil {
		return 0
	}
	return r.offer.lent.served.Load() - r.offer.before
}

// checkInstall counts what a peer that is being added does beside taking entries.
func (r *replicator) checkInstall(w *catchupWatch) {
	if r.p.State != progress.Snapshot {
		return
	}
	bytes, loads := max(r.servedNow(), r.copied.done.Load()), r.copied.loads.Load()
	w.Received(r.now, bytes)
	if bytes > w.installed {
		w.installed, w.fruitless = bytes, 0
	}
	// braft does not say what it is at: that it answers has to do. So it is with one that looks at what an earlier copy has left. One
	// that loads may be at its first part, to read back what it has copied, and find each time that it cannot.
	unknown := r.copied.total.Load() == 0
	if at := r.contact(); (loads || unknown) && w.fruitless < maxFruitless && at.After(w.alive) {
		w.alive = at
		w.Works(r.now)
	}
}
