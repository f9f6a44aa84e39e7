package graft

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/raftpb"
)

// fileService lets other processes read the snapshots that this host's leaders offer them (braft: FileServiceImpl).
//
// Ownership: any goroutine may use it. mu is a leaf lock.
type fileService struct {
	pieces sync.Pool // of *[]byte with room for pooledPiece

	mu      sync.Mutex
	readers map[int64]*lentReader
}

// lentReader is a snapshot that a follower was told to read. As long as it is lent, it is not deleted.
//
// Invariants: it is in the host's fileService until it is given back; then no file of it is read any more, and
// ended runs once what was being read is done.
//
// Ownership: its actor reads files; the rest may be used from anywhere.
type lentReader struct {
	id     int64
	host   *Host
	base   logBase
	to     *replicator
	bytes  int64 // of all files; -1: not known
	r      *snapdir.Reader
	a      *actor.Actor[*rpc.Request]
	served atomic.Int64 // bytes
	queued atomic.Int32
	given  atomic.Bool
	ended  func()
	// failed is told that a file could not be read.
	failed func(err error)
}

const (
	// maxPiece is what one get_file answers at most, whatever is asked.
	maxPiece = 4 << 20
	// pooledPiece is the largest answer, with its head, for which memory is used again.
	pooledPiece = snapdir.SegmentHead + copyPiece
	// maxQueuedReads is how many get_file of one reader may wait.
	maxQueuedReads = 16
	// metaFile is the manifest's name.
	metaFile = "__raft_snapshot_meta"
)

// lend makes a snapshot readable for others until it is given back.
func (h *Host) lend(l *lentReader) {
	l.host = h
	l.a = actor.New(h.env.Exec, "file", l.step)
	f := &h.files
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.readers == nil {
		f.readers = make(map[int64]*lentReader)
	}
	for l.id == 0 || f.readers[l.id] != nil {
		l.id = int64(h.env.Rand() & math.MaxInt64)
	}
	f.readers[l.id] = l
}

// uri is how a follower is told where to read.
func (l *lentReader) uri() string { return fmt.Sprintf("remote://%s/%d", l.host.o.Address, l.id) }

// giveBack ends the lending; it may be called again.
func (l *lentReader) giveBack() {
	if l.given.Swap(true) {
		return
	}
	f := &l.host.files
	f.mu.Lock()
	delete(f.readers, l.id)
	f.mu.Unlock()
	l.a.Post(nil)
	l.a.Close()
}

// serveFile answers get_file. It runs on the connection's reader, and leaves the disk to the reader's actor. Codes and
// texts are braft's.
//
// Source: braft file_service.cpp.
func (h *Host) serveFile(req *rpc.Request) {
	m := new(raftpb.GetFileRequest)
	if req.Method != methodGetFile {
		noMethod(req)
		return
	}
	if !parse(req, m) {
		return
	}
	h.files.mu.Lock()
	l := h.files.readers[m.GetReaderId()]
	h.files.mu.Unlock()
	switch {
	case l == nil:
		failNoReader(req, m.GetReaderId())
	case m.GetCount() <= 0 || m.GetOffset() < 0:
		req.Fail(codeBadRequest, fmt.Sprintf("Invalid request=reader_id: %d filename: %q count: %d offset: %d read_partly: %v",
			m.GetReaderId(), clip(m.GetFilename()), m.GetCount(), m.GetOffset(), m.GetReadPartly()))
	case l.queued.Add(1) > maxQueuedReads:
		l.queued.Add(-1)
		req.Fail(codeAgain, "too many reads at a time")
	case !l.a.Post(req):
		l.queued.Add(-1)
		failNoReader(req, m.GetReaderId())
	}
}

func failNoReader(req *rpc.Request, id int64) {
	req.Fail(int32(ErrNotFound), fmt.Sprintf("Fail to find reader=%d", id))
}

// step reads what was asked for, one after the other. nil is the end.
func (l *lentReader) step(now time.Time, batch []*rpc.Request) time.Time {
	for _, req := range batch {
		if req == nil {
			_ = l.r.Close() // should it be to delete: the next Prune tries again
			l.ended()
			continue
		}
		l.queued.Add(-1)
		m := new(raftpb.GetFileRequest)
		switch {
		case !parse(req, m): // it was parsed before
		case l.given.Load():
			failNoReader(req, l.id)
		default:
			l.serve(now, req, m)
		}
	}
	return time.Time{}
}

func (l *lentReader) serve(now time.Time, req *rpc.Request, m *raftpb.GetFileRequest) {
	name, off := m.GetFilename(), m.GetOffset()
	count := min(m.GetCount(), maxPiece)
	if name == metaFile {
		count = m.GetCount()
	} else {
		if m.GetReadPartly() && l.host.busy(now) {
			count = min(count, politePiece)
		}
		granted, _ := l.host.sends.take(now, count)
		if granted == 0 || granted < count && !m.GetReadPartly() {
			l.host.sends.give(granted)
			req.Fail(codeAgain, "throttled")
			return
		}
		count = granted
	}
	if name == metaFile && off != 0 { // braft gives it whole in any case
		off = 0
	}
	lent, back := l.host.files.buffer(snapdir.SegmentHead + l.room(name, off, count))
	buf, eof, err := l.r.Serve(lent[:snapdir.SegmentHead], name, off, count, count)
	n := int64(len(buf)) - snapdir.SegmentHead
	if name != metaFile {
		l.host.sends.give(count - max(n, 0))
	}
	if err != nil {
		back()
		l.fail(req, name, err)
		return
	}
	l.served.Add(n)
	b, err := proto.Marshal(&raftpb.GetFileResponse{Eof: &eof, ReadSize: &n})
	if err != nil {
		back()
		req.Fail(codeInternal, err.Error())
		return
	}
	if n == 0 { // braft sends no attachment then
		back()
		req.Reply(b)
		return
	}
	snapdir.PutSegmentHead(buf, off)
	req.ReplyLent(b, buf, back)
}

// buffer returns one with room for so many bytes, and how to give it back.
func (f *fileService) buffer(room int64) (_ []byte, back func()) {
	if room > pooledPiece || room < pooledPiece/16 { // of small answers nobody says when they are written
		return make([]byte, 0, room), func() {}
	}
	b, ok := f.pieces.Get().(*[]byte)
	if !ok {
		piece := make([]byte, 0, pooledPiece)
		b = &piece
	}
	return *b, func() { f.pieces.Put(b) }
}

// room is how many bytes an answer is likely to have.
func (l *lentReader) room(name string, off, count int64) int64 {
	f, ok := l.r.File(name)
	if !ok {
		return 0
	}
	if f.Size >= 0 {
		count = min(count, max(f.Size-off, 0))
	}
	return count
}

// fail answers why a file cannot be read.
func (l *lentReader) fail(req *rpc.Request, name string, err error) {
	code, text := int32(ErrIO), "Input/output error"
	switch {
	case errors.Is(err, snapdir.ErrNoFile):
		code, text = int32(ErrNotLeader), "Operation not permitted" // EPERM
	case errors.Is(err, snapdir.ErrRange):
		code, text = codeBadRequest, err.Error()
	case errors.Is(err, snapdir.ErrClosed):
		failNoReader(req, l.id)
		return
	default:
		l.failed(err)
	}
	req.Fail(code, fmt.Sprintf("Fail to read from path=%s filename=%s : %s", l.r.Path(), clip(name), text))
}
