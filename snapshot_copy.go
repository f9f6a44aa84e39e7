package graft

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/raftpb"
)

const (
	// A graft sender is asked for up to copyWindow pieces of copyPiece at a time: as many, and as large, as
	// come quickly. A slow way must not make all of them late.
	copyWindow = 16
	copyPiece  = 1 << 20
	quickPiece = time.Second
	slowPiece  = 3 * time.Second
	// braft's piece, of which one is asked for at a time (braft: raft_max_byte_count_per_rpc).
	braftPiece = 128 << 10
	// copyRetries failures in a row, copyPause apart, end a copy; a piece may take copyTimeout (braft: CopyOptions). A graft
	// sender's may take as long if that is how long they take, but at first, and on a quick way, copyPatience.
	copyRetries  = 3
	copyPause    = time.Second
	copyTimeout  = 10 * time.Second
	copyPatience = 2 * time.Second
	// manifestCount is what braft asks for when it wants the whole manifest.
	manifestCount = math.MaxUint32
)

// copyWriters is how many actors write what arrives: while some wait for a sync, the others go on.
const copyWriters = 4

// copyWriting writes the pieces of a copy. None of its writers waits for another: one that was woken takes whatever is next.
//
// Ownership: add and close are the snapshotter's; mu guards todo and is a leaf lock.
type copyWriting struct {
	writers []*actor.Actor[struct{}]
	turn    int

	mu   sync.Mutex
	todo []func()
}

func newCopyWriting(exec actor.Executor) *copyWriting {
	w := new(copyWriting)
	for range copyWriters {
		w.writers = append(w.writers, actor.New(exec, "copy", w.step))
	}
	return w
}

// add has f called by one of the writers.
func (w *copyWriting) add(f func()) {
	w.mu.Lock()
	w.todo = append(w.todo, f)
	w.mu.Unlock()
	w.writers[w.turn].Post(struct{}{})
	w.turn = (w.turn + 1) % len(w.writers)
}

func (w *copyWriting) step(time.Time, []struct{}) time.Time {
	for f := w.next(); f != nil; f = w.next() {
		f()
	}
	return time.Time{}
}

func (w *copyWriting) next() (f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.todo) > 0 {
		f = w.todo[0]
		w.todo = slices.Delete(w.todo, 0, 1)
	}
	return f
}

// close ends the writers once all is written.
func (w *copyWriting) close() {
	for _, a := range w.writers {
		a.Close()
	}
}

// write has a piece written, and done called here with what came of it. The copy may have ended by then; then nothing is
// written.
func (s *snapshotter) write(in *install, receive func() error, done func(error)) {
	in.writing.add(func() {
		err := receive()
		s.a.Post(func() {
			if s.inst == in && !in.loading {
				done(err)
			}
		})
	})
}

// pump asks for what the copy under way lacks, as far as there is room.
func (s *snapshotter) pump() {
	in := s.inst
	if in == nil || in.loading && in.read == nil || s.now.Before(in.waitTill) {
		return
	}
	in.waitTill = time.Time{}
	if in.read != nil {
		s.verify(in)
		return
	}
	if in.copy == nil {
		if in.out == 0 {
			s.get(in, snapdir.Range{Name: metaFile, Len: manifestCount}, s.onManifest)
		}
		return
	}
	polite := in.graft && (in.comesShort(s.now) || s.n.host.busy(s.now))
	for in.out < in.room(polite) {
		if len(in.ranges) == 0 {
			if in.out == 0 && !s.nextRound(in) {
				return
			}
			if len(in.ranges) == 0 {
				return
			}
		}
		next := &in.ranges[0]
		want := in.piece - next.Off%in.piece // so that pieces are whole blocks as soon as they are large enough
		if polite && !in.comesShort(s.now) { // else the sender says how much, and when it is busy no more
			want = min(want, politePiece)
		}
		if next.Len >= 0 {
			want = min(want, next.Len)
		}
		granted, again := s.n.host.receives.take(s.now, want)
		if granted == 0 {
			in.waitTill = again
			return
		}
		ask := snapdir.Range{Name: next.Name, Off: next.Off, Len: granted}
		if next.Len > granted {
			next.Off, next.Len = next.Off+granted, next.Len-granted
		} else {
			openEnd := next.Len < 0
			in.ranges = slices.Delete(in.ranges, 0, 1)
			if openEnd { // what follows is asked for when the answer tells whether there is anything
				s.get(in, ask, func(in *install, ask snapdir.Range, rep rpc.Reply) { s.onPiece(in, ask, true, rep) })
				continue
			}
		}
		s.get(in, ask, func(in *install, ask snapdir.Range, rep rpc.Reply) { s.onPiece(in, ask, false, rep) })
	}
}

// pumpAt is when to look again although nothing has come.
func (s *snapshotter) pumpAt() time.Time {
	if s.inst == nil || s.inst.loading && s.inst.read == nil {
		return time.Time{}
	}
	return s.inst.waitTill
}

// get reads a piece of a file at the sender's.
func (s *snapshotter) get(in *install, ask snapdir.Range, done func(*install, snapdir.Range, rpc.Reply)) {
	in.out++
	b, err := proto.Marshal(&raftpb.GetFileRequest{
		ReaderId: &in.reader, Filename: &ask.Name, Count: &ask.Len, Offset: &ask.Off, ReadPartly: proto.Bool(true),
	})
	if err != nil {
		s.a.Post(func() { done(in, ask, rpc.Reply{Err: err}) })
		return
	}
	began, reader := s.now, in.reader
	s.n.host.rpc.Call(in.address, rpc.Call{
		Service: fileServiceName, Method: methodGetFile, Message: [][]byte{b}, Timeout: in.patience, Bulk: true,
		Done: func(rep rpc.Reply) {
			s.a.Post(func() {
				if s.inst == in && !in.loading {
					in.pace(s.now.Sub(began), rep.Err == nil && rep.Code == 0)
					if reader != in.reader && Code(rep.Code) == ErrNotFound { // it is not asked any more
						rep.Code = codeAgain
					}
					done(in, ask, rep)
				}
			})
		},
	})
}

// pace has more or less asked for at a time, and longer or less long waited for, by how long a piece took, or was waited for if
// it did not come.
func (in *install) pace(took time.Duration, came bool) {
	if !in.graft {
		return
	}
	if came && (in.quickest == 0 || took < in.quickest) {
		in.quickest = took
	}
	in.patience = min(max(4*took, copyPatience), copyTimeout)
	switch {
	case took < quickPiece:
		in.window = min(in.window+1, copyWindow)
		in.piece = min(2*in.piece, copyPiece)
	case took > slowPiece:
		in.window = max(in.window/2, 1)
		in.piece = max(in.piece/2, braftPiece)
	}
}

// onManifest begins to copy.
func (s *snapshotter) onManifest(in *install, _ snapdir.Range, rep rpc.Reply) {
	in.out--
	m, err := s.answerOf(in, rep)
	if err != nil {
		s.setBack(in, err)
		return
	}
	var manifest []byte
	err = snapdir.Segments(rep.Attachment, 0, m.GetReadSize(), func(_ int64, p []byte) error {
		manifest = append(manifest, p...)
		return nil
	})
	if err != nil {
		s.setBack(in, err)
		return
	}
	store, err := s.open()
	if err == nil {
		in.copy, err = store.OpenCopy(manifest, snapdir.CopyOptions{
			GroupID: in.group, Watch: s.watch(in.term), Turns: s.n.host.turns,
		})
	}
	switch {
	case errors.Is(err, snapdir.ErrManifest): // it may have been damaged on its way
		s.setBack(in, err)
		return
	case errors.Is(err, snapdir.ErrStopped):
		err = &Error{Code: ErrNewLeader, Op: opInstallSnapshot, Group: s.n.group}
		if s.stopping.Load() {
			err = &Error{Code: ErrShutdown, Op: opInstallSnapshot, Group: s.n.group}
		}
		s.giveUp(in, err)
		return
	case err != nil:
		s.giveUp(in, s.errorOf(opInstallSnapshot, in.base.index, err))
		return
	}
	base, err := baseOf(in.copy.Meta())
	if err == nil && (base.index != in.base.index || base.term != in.base.term) {
		err = fmt.Errorf("the files are those of snapshot %d, term %d", base.index, base.term)
	}
	if err != nil {
		s.giveUp(in, &Error{Code: ErrInvalid, Op: opInstallSnapshot, Group: s.n.group, Index: in.base.index, Err: err})
		return
	}
	s.mu.Lock()
	s.copying = in.copy
	s.view.Resumed = in.copy.Progress().Resumed
	s.mu.Unlock()
	in.failures = 0
	in.done = -1
}

// nextRound lists what is lacking now. It reports false if the copy has ended, for better or worse.
func (s *snapshotter) nextRound(in *install) bool {
	needed := in.copy.Needed()
	if len(needed) == 0 {
		s.complete(in)
		return false
	}
	if done := in.copy.Progress().Done; done > in.done {
		in.done, in.barren = done, 0
	} else if in.barren++; in.barren > copyRetries {
		s.giveUp(in, &Error{Code: ErrCorrupt, Op: opInstallSnapshot, Group: s.n.group, Index: in.base.index,
			Err: fmt.Errorf("what %s sends of %q is not what its manifest says", in.address, needed[0].Name)})
		return false
	}
	if in.graft {
		in.ranges = needed
		return true
	}
	// braft reads a file from its beginning to its end, and no other meanwhile.
	for _, r := range needed {
		if n := len(in.ranges); n == 0 || in.ranges[n-1].Name != r.Name {
			in.ranges = append(in.ranges, snapdir.Range{Name: r.Name, Len: -1})
		}
	}
	return true
}

// errAgain says that the sender has nothing to give for the moment.
var errAgain = errors.New("the sender is throttled")

// answerOf reads an answer.
func (s *snapshotter) answerOf(in *install, rep rpc.Reply) (*raftpb.GetFileResponse, error) {
	m := new(raftpb.GetFileResponse)
	switch {
	case rep.Err != nil:
		return nil, &Error{Code: ErrUnreachable, Op: opInstallSnapshot, Group: s.n.group, Index: in.base.index, Err: rep.Err}
	case rep.Code == codeAgain:
		return nil, errAgain
	case rep.Code != 0:
		return nil, &Error{Code: Code(rep.Code), Op: opInstallSnapshot, Group: s.n.group, Index: in.base.index, Err: errors.New(rep.Text)}
	}
	if err := proto.Unmarshal(rep.Message, m); err != nil {
		return nil, err
	}
	if m.ReadSize == nil { // of an older braft
		m.ReadSize = proto.Int64(int64(max(len(rep.Attachment)-snapdir.SegmentHead, 0)))
	}
	return m, nil
}

// setBack has something asked for again after a pause, if that may help.
func (s *snapshotter) setBack(in *install, err error, lost ...snapdir.Range) {
	in.ranges = append(slices.Clone(lost), in.ranges...)
	if errors.Is(err, errAgain) {
		pause := copyPause
		if in.graft {
			pause = throttleCycle
		}
		in.waitTill = later(in.waitTill, s.now.Add(pause))
		return
	}
	if ErrorCode(err) == ErrNotFound { // the sender leads no more, or has given up
		s.giveUp(in, err)
		return
	}
	if s.now.Before(in.pausedBy) {
		return // of the same incident
	}
	if in.failures++; in.failures > copyRetries {
		s.giveUp(in, err)
		return
	}
	s.log.Info("a piece of a snapshot did not come; it is asked for again", zap.Int("failures", in.failures), zap.Error(err))
	in.pausedBy = s.now.Add(copyPause)
	in.waitTill = later(in.waitTill, in.pausedBy)
}

// onPiece takes in what was read. openEnd says that the file's end is not known.
func (s *snapshotter) onPiece(in *install, ask snapdir.Range, openEnd bool, rep rpc.Reply) {
	again := ask
	if openEnd {
		again.Len = -1
	}
	m, err := s.answerOf(in, rep)
	if err != nil {
		in.out--
		s.n.host.receives.give(ask.Len)
		s.setBack(in, err, again)
		return
	}
	got, eof := m.GetReadSize(), m.GetEof()
	if got < 0 || got > ask.Len || got == 0 && len(rep.Attachment) > 0 {
		in.out--
		s.n.host.receives.give(ask.Len)
		s.setBack(in, fmt.Errorf("%d bytes were read where %d were asked for", got, ask.Len), again)
		return
	}
	s.n.host.receives.give(ask.Len - got)
	in.given(s.now, ask.Len, got, eof)
	c := in.copy
	receive := func() error {
		defer rep.Recycle()
		return c.Receive(ask.Name, ask.Off, got, eof, rep.Attachment)
	}
	s.write(in, receive, func(err error) {
		in.out-- // not before: what waits to be written takes memory
		if s.written(in, err, got, again) && !eof && (openEnd || got < ask.Len) {
			s.askRest(in, ask, got, openEnd)
		}
	})
}

// written judges what came of writing a piece, and reports whether the copy goes on behind it.
func (s *snapshotter) written(in *install, err error, got int64, again snapdir.Range) bool {
	var bad *snapdir.BlockError
	switch {
	case err == nil:
		if got > 0 {
			in.failures = 0
		}
	case errors.As(err, &bad): // it is needed again, and so is listed in the next round
		s.log.Warn("a block of a snapshot was damaged on its way", zap.Error(err))
	case errors.Is(err, snapdir.ErrSegments), errors.Is(err, snapdir.ErrIncomplete), errors.Is(err, snapdir.ErrRange):
		s.setBack(in, err, again)
		return false
	default:
		s.giveUp(in, s.errorOf(opInstallSnapshot, in.base.index, err))
		return false
	}
	s.showRate(in)
	return true
}

// askRest asks for what an answer lacked.
func (s *snapshotter) askRest(in *install, ask snapdir.Range, got int64, openEnd bool) {
	rest := snapdir.Range{Name: ask.Name, Off: ask.Off + got, Len: ask.Len - got}
	if openEnd {
		rest.Len = -1
	}
	in.ranges = append([]snapdir.Range{rest}, in.ranges...)
	if got == 0 {
		in.waitTill = later(in.waitTill, s.now.Add(throttleCycle))
	}
}

// showRate shows how fast the copy is.
func (s *snapshotter) showRate(in *install) {
	rate := in.rate.Observe(s.now, in.copy.Progress().Done)
	s.show(func(v *SnapshotStatus) { v.Rate = rate })
}

// later returns the later of two times.
func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
