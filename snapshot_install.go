package graft

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/graft-raft/graft/internal/progress"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/raftpb"
)

// Linux's numbers for what only install_snapshot is answered with.
const (
	codeInterrupted = 4 // EINTR: a repeated request has taken the place of this one
)

// maxFullPause is how long at most no copy begins after one for which the disk had no space.
const maxFullPause = time.Minute

// install is a snapshot of the leader's that is being brought here: copied, then loaded. braft: DownloadingSnapshot.
//
// Ownership: the snapshotter's actor.
type install struct {
	req     *rpc.Request // who waits for the outcome
	term    int64        // of the leader
	base    logBase
	group   uint64
	uri     string
	address string
	reader  int64
	graft   bool // the sender answers reads in any order, several at a time
	placed  bool // it counts among the host's receives
	loading bool

	writing  *copyWriting
	copy     *snapdir.Copy   // nil until there is a manifest
	read     *snapdir.Reader // what was copied, until it is loaded
	unread   int             // times that it could not be read
	ranges   []snapdir.Range // still to be asked for
	out      int             // requests without an answer
	window   int             // how many there may be
	piece    int64           // how much each asks for
	patience time.Duration   // how long an answer may take
	quickest time.Duration   // how little time an answer has taken; 0: none has come
	short    time.Time       // so long it counts that the sender gives less than it is asked for
	done     int64           // bytes there were when the ranges were made
	barren   int             // rounds in a row after which there were no more of them
	failures int             // incidents in a row
	pausedBy time.Time       // the end of the pause that the last incident has brought
	waitTill time.Time
	began    time.Time
	rate     progress.Rate
}

// onInstall handles install_snapshot (braft: NodeImpl::handle_install_snapshot_request).
func (n *Node) onInstall(req *rpc.Request, m *raftpb.InstallSnapshotRequest) {
	from := sender{term: m.GetTerm(), wire: []byte(m.GetServerId()), group: m.GetGraftGroupId()}
	if !n.fromLeader(req, from, func() { n.answerInstall(req, false) }) {
		return
	}
	base, err := baseOf(m.GetMeta())
	if err != nil {
		req.Fail(codeBadRequest, err.Error())
		return
	}
	if base.term > m.GetTerm() {
		req.Fail(codeBadRequest, fmt.Sprintf("snapshot %d is of term %d, its leader of term %d", base.index, base.term, m.GetTerm()))
		return
	}
	if t := n.lm.term(base.index); t != 0 && t != base.term && base.index <= n.box.index() {
		n.fail(&Error{Code: ErrCorrupt, Op: opInstallSnapshot, Group: n.group, Peer: n.leader, Index: base.index,
			Err: fmt.Errorf("committed here with term %d, in the leader's snapshot with term %d", t, base.term)})
		req.Fail(int32(ErrInvalid), "the snapshot contradicts what is committed here")
		return
	}
	switch durable := n.lm.durableIndex(); {
	case base.index <= n.box.index() && base.index <= durable, n.lm.holds(base) && base.index <= durable:
		// What is here is as good: the leader goes on with what follows. braft calls such a
		// snapshot stale, and its leader sends it for ever.
		n.answerInstall(req, true)
		return
	case base.index <= n.box.index(): // and will be durable in a moment
		req.Fail(int32(ErrBusy), "Is writing what the snapshot includes")
		return
	}
	in := &install{
		req: req, term: n.term, base: base, group: n.groupID, uri: m.GetUri(),
		graft: m.GetGraftFeatures()&featurePipeline != 0,
	}
	if !n.snap.a.Post(func() { n.snap.requested(in) }) {
		req.Fail(int32(ErrInvalid), "node is shut down")
	}
}

// answerInstall answers install_snapshot once the term is durable.
func (n *Node) answerInstall(req *rpc.Request, success bool) {
	term := n.term // as it is being saved; it may be another when that is done
	n.afterSaveAnswer(req, func() { n.reply(req, &raftpb.InstallSnapshotResponse{Term: &term, Success: &success}) })
}

// requested takes a request in: begins an install, joins the one under way, or takes its place.
func (s *snapshotter) requested(in *install) {
	cur := s.inst
	switch {
	case s.ended, s.failed:
		in.req.Fail(int32(ErrInvalid), "node is not active")
	case in.term < s.n.termNow.Load():
		if !s.n.post(func() { s.n.answerInstall(in.req, false) }) {
			in.req.Fail(int32(ErrInvalid), "node is shut down")
		}
	case s.saving != nil:
		in.req.Fail(int32(ErrBusy), "Is saving snapshot")
	case cur == nil:
		s.begin(in)
	case cur.loading && (in.base.index != cur.base.index || in.base.term != cur.base.term):
		in.req.Fail(int32(ErrBusy), "A former snapshot is under loading")
	case in.base.index == cur.base.index && in.base.term == cur.base.term && (in.term == cur.term || cur.loading):
		cur.req.Fail(codeInterrupted, "Interrupted by the retry InstallSnapshotRequest")
		cur.req, cur.term = in.req, in.term
		if address, reader, err := parseURI(in.uri); err == nil && in.graft && !cur.loading { // the old reader may be gone
			cur.address, cur.reader = address, reader
		}
	case in.base.index < cur.base.index && in.term == cur.term:
		in.req.Fail(int32(ErrInvalid), "A newer snapshot is under installing")
	default:
		s.giveUp(cur, &Error{Code: ErrCanceled, Op: opInstallSnapshot, Group: s.n.group, Err: errors.New("another snapshot takes its place")})
		s.begin(in)
	}
}

// begin begins an install.
func (s *snapshotter) begin(in *install) {
	var err error
	if in.address, in.reader, err = parseURI(in.uri); err != nil {
		in.req.Fail(int32(ErrInvalid), "Fail to copy from , "+clip(in.uri))
		return
	}
	if wait := s.fullTill.Sub(s.now); wait > 0 {
		in.req.Fail(int32(ErrNoSpace), fmt.Sprintf("Fail to install snapshot: the disk was full just now, the next attempt may be in %v", wait.Round(time.Second)))
		return
	}
	if !s.n.host.receives.enter() {
		in.req.Fail(int32(ErrBusy), "Fail to install snapshot: too many are under way")
		return
	}
	s.log.Info("install a snapshot", zap.Int64("index", in.base.index), zap.Int64("term", in.base.term), zap.String("from", in.address))
	in.began, in.window, in.piece, in.patience = s.now, 1, braftPiece, copyTimeout
	if in.graft {
		in.patience = copyPatience
	}
	in.placed, in.writing = true, newCopyWriting(s.n.host.env.Exec)
	s.inst, s.begun = in, in.base.index
	s.show(func(v *SnapshotStatus) {
		v.State, v.NextIndex, v.From = SnapshotCopying, in.base.index, in.address
		v.Done, v.Total, v.Resumed, v.Rate = 0, 0, 0, 0
	})
	s.incoming.Store(in.base.index) // a heartbeat's answer may show it now, and nothing of an earlier one
	s.termChanged()                 // it may have before the node could see that there is an install
}

// parseURI reads remote://address/reader.
func parseURI(uri string) (address string, reader int64, err error) {
	rest, ok := strings.CutPrefix(uri, "remote://")
	at := strings.LastIndexByte(rest, '/')
	if !ok || at < 0 {
		return "", 0, fmt.Errorf("uri %q is not remote://address/reader", clip(uri))
	}
	if reader, err = strconv.ParseInt(rest[at+1:], 10, 64); err != nil {
		return "", 0, err
	}
	p, err := ParsePeerID(rest[:at])
	if err != nil {
		return "", 0, err
	}
	return p.Address, reader, nil
}

// termChanged ends an install of an earlier leader's: that one's files will be gone soon, and what was copied of them is
// kept. What is complete is loaded.
func (s *snapshotter) termChanged() {
	if in := s.inst; in != nil && !in.loading && s.n.termNow.Load() > in.term {
		s.giveUp(in, &Error{Code: ErrNewLeader, Op: opInstallSnapshot, Group: s.n.group})
	}
}

// giveUp ends the install, and tells who waits for it. What was copied is kept for the next one, unless the disk is full of it. Then
// that one comes after as long as this one has taken: at most half of the time is spent in vain.
func (s *snapshotter) giveUp(in *install, err error) {
	s.over(in)
	if in.copy != nil {
		if abortErr := in.copy.Abort(true); abortErr != nil {
			err = errors.Join(err, abortErr)
		}
		in.copy = nil
	}
	if in.read != nil {
		if closeErr := in.read.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		in.read = nil
	}
	if ErrorCode(err) == 0 {
		err = s.errorOf(opInstallSnapshot, in.base.index, err)
	}
	s.mu.Lock()
	s.copying = nil
	s.view.State, s.view.NextIndex, s.view.From, s.view.Resumed, s.view.Rate = SnapshotIdle, 0, "", 0, 0
	s.mu.Unlock()
	s.makeRoom(err)
	code := ErrorCode(err)
	if code == ErrNoSpace {
		now := s.n.host.env.Exec.Now()
		s.fullTill = now.Add(min(max(now.Sub(in.began), copyPause), maxFullPause))
	}
	if code != ErrShutdown && code != ErrNewLeader {
		s.log.Warn("a snapshot could not be installed", zap.Int64("index", in.base.index), zap.Error(err))
		s.note(err)
	}
	s.n.post(s.n.afterInstall)
	switch {
	case code == ErrNewLeader && s.n.post(func() { s.n.answerInstall(in.req, false) }):
	case code == ErrShutdown, code == ErrNodeFailed, code == ErrNewLeader:
		in.req.Fail(int32(ErrInvalid), "node is not active")
	default:
		in.req.Fail(int32(code), err.Error())
	}
}

// over is the part of the end that both ends have.
func (s *snapshotter) over(in *install) {
	s.inst = nil
	s.incoming.Store(0)
	s.leavePlace(in)
	in.writing.close()
}

// leavePlace lets another copy to this host begin.
func (s *snapshotter) leavePlace(in *install) {
	if in.placed {
		in.placed = false
		s.n.host.receives.leave()
	}
}

// complete publishes what was copied, and has the state machine load it.
func (s *snapshotter) complete(in *install) {
	s.leavePlace(in)
	copied := in.copy.Progress()
	r, err := in.copy.Commit()
	in.copy = nil
	s.mu.Lock()
	s.copying = nil
	s.view.Done, s.view.Total = copied.Done, copied.Total
	if err == nil {
		s.view.State, s.view.Rate = SnapshotLoading, 0 // to read it back is the first part of that
	}
	s.mu.Unlock()
	if err != nil {
		s.giveUp(in, err)
		return
	}
	in.loading, in.read = true, r // from here on it is there, and no other takes its place
	s.verify(in)
}

// verify has what was copied compared with its manifest, and then loaded. It is deleted, to be copied anew, only if it is damaged, or
// cannot be read several times in a row: for want of descriptors, that may pass.
func (s *snapshotter) verify(in *install) {
	err := in.read.Verify(s.watch(0))
	switch {
	case err == nil:
		s.load(in)
	case errors.Is(err, snapdir.ErrStopped): // the next start reads it
		s.giveUp(in, &Error{Code: ErrShutdown, Op: opInstallSnapshot, Group: s.n.group})
	case isDamage(err) || in.unread == copyRetries:
		r := in.read
		in.read = nil
		s.giveUp(in, errors.Join(err, r.Close(), s.opened().Remove(in.base.index)))
	default:
		in.unread++
		in.waitTill = s.now.Add(copyPause)
		s.log.Info("a snapshot that was copied cannot be read now; that is tried again", zap.Int64("index", in.base.index), zap.Error(err))
	}
}

// load has the state machine load what was copied.
func (s *snapshotter) load(in *install) {
	r := in.read
	in.read = nil
	info := r.Info()
	s.show(func(v *SnapshotStatus) { v.State, v.Done, v.Total, v.Rate = SnapshotLoading, info.Bytes, info.Bytes, 0 })
	s.log.Info("copied a snapshot", zap.Int64("index", in.base.index), zap.Int64("bytes", info.Bytes), zap.Duration("took", s.n.host.env.Exec.Now().Sub(in.began)))
	s.n.fsm.loadSnapshot(r, in.base, func(err error) {
		s.a.Post(func() { s.loaded(in, info, err) })
	})
}

// loaded has the node take over what the state machine has loaded.
func (s *snapshotter) loaded(in *install, info snapdir.Info, err error) {
	if s.inst != in {
		return
	}
	if err != nil { // the node fails by itself
		s.giveUp(in, err)
		return
	}
	s.took(in.base, info)
	s.bytes.Store(0)
	term := in.term // which a repeated request may change
	s.n.post(func() {
		s.n.adoptSnapshot(in.base, term, info.GroupID, func() { s.a.Post(func() { s.installed(in) }) })
	})
}

// installed answers that the snapshot is in force, and that all of it would survive.
func (s *snapshotter) installed(in *install) {
	if s.inst != in {
		return
	}
	s.over(in)
	s.show(func(v *SnapshotStatus) { v.State, v.NextIndex, v.From, v.Err = SnapshotIdle, 0, "", nil })
	s.unasked(in.base.index)
	s.log.Info("installed a snapshot", zap.Int64("index", in.base.index), zap.Duration("took", s.now.Sub(in.began)))
	s.n.post(s.n.afterInstall)
	if !s.n.post(func() { s.n.answerInstall(in.req, true) }) {
		in.req.Fail(int32(ErrInvalid), "node is shut down")
	}
}

// adoptSnapshot has the log go on behind a snapshot that the state machine has loaded. durable is called when that
// would survive; not if the node stops before.
func (n *Node) adoptSnapshot(base logBase, term int64, group uint64, durable func()) {
	if !n.active() {
		return
	}
	n.adoptGroup(group)
	n.rememberMembership(base.conf)
	committed := n.box.index()
	n.box.follow(base.index)
	if n.term == term { // what is committed is the leader's
		n.matched = max(n.matched, base.index)
	}
	switch {
	case base.index <= committed, n.lm.holds(base):
		n.compact()
		durable()
	default:
		first, last := n.lm.bounds()
		n.log.Info("the log goes on behind the snapshot", zap.Int64("index", base.index), zap.Int64("was_first", first), zap.Int64("was_last", last))
		for _, a := range n.lm.startAfter(base, durable) {
			a.req.Fail(int32(ErrBusy), "a snapshot was installed")
		}
	}
	n.adoptConf()
	n.confirmOverride()
	n.dirty = true
}

// adoptGroup takes over the identity that a snapshot names, if the node has none.
func (n *Node) adoptGroup(id uint64) {
	if n.groupID == 0 && id != 0 {
		n.groupID = id
		n.groupIDNow.Store(id)
	}
}

// afterInstall has the node campaign again, which it does not while its configuration may be long out of date.
func (n *Node) afterInstall() {
	if n.active() && n.role == RoleFollower && n.electionAt.IsZero() {
		n.resetElection()
	}
}

// compact drops the entries that snapshots include and nobody needs any more.
func (n *Node) compact() {
	if n.active() && n.snap.opened() != nil {
		n.rememberMembership(n.lm.confAt(n.box.index())) // a restart takes a snapshot's for the first, be the log longer
		n.lm.truncatePrefix(n.snap.keepFrom() + 1)
	}
}
