package graft

import (
	"fmt"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/raftpb"
)

// SnapshotWriter is where StateMachine.OnSnapshotSave writes a snapshot to: a directory of files. Each file is made
// by Create, or written below Path by other means and registered with AddFile. What is not registered is deleted.
//
// Ownership: the state machine's until it calls done; safe for concurrent use. After that, and after the node has
// ended, every call fails.
type SnapshotWriter struct {
	w    *snapdir.Writer
	base logBase
}

// Index is that of the last entry that was applied, and so that of the snapshot.
func (w *SnapshotWriter) Index() int64 { return w.base.index }

// Term is that entry's.
func (w *SnapshotWriter) Term() int64 { return w.base.term }

// Path is the directory of the snapshot to be. What is put there must be files and directories of its own: of a symbolic link a
// snapshot would have only the name, and so a link that is registered, or one to a directory with something registered, fails it.
func (w *SnapshotWriter) Path() string { return w.w.Path() }

// Create makes a file, perhaps in a sub-directory, and registers it. It has to be closed before done is called. An error
// of a Write or of Close that nobody looks at fails the snapshot all the same.
func (w *SnapshotWriter) Create(name string) (io.WriteCloser, error) { return w.w.Create(name) }

// AddFile registers a file that was written below Path, or will have been by the time done is called. meta is for
// the state machine alone, which finds it with SnapshotReader.Meta; of a file that is registered it is set anew.
func (w *SnapshotWriter) AddFile(name string, meta []byte) error { return w.w.AddFile(name, meta) }

// RemoveFile takes a file out again, and deletes it.
func (w *SnapshotWriter) RemoveFile(name string) error { return w.w.RemoveFile(name) }

// Files lists what is registered.
func (w *SnapshotWriter) Files() []string { return w.w.Files() }

// SnapshotReader is what StateMachine.OnSnapshotLoad reads a snapshot from. All of it has been compared with its
// hashes.
//
// Ownership: the state machine's during the call. Files that it opened may stay open for longer, and keep the
// snapshot from being deleted as long as they are.
type SnapshotReader struct {
	r    *snapdir.Reader
	base logBase
}

// Index is that of the last entry the snapshot includes.
func (r *SnapshotReader) Index() int64 { return r.base.index }

// Term is that entry's.
func (r *SnapshotReader) Term() int64 { return r.base.term }

// Conf is the group's configuration at Index; old is empty unless it is joint.
func (r *SnapshotReader) Conf() (conf, old Configuration) { return r.base.conf.conf, r.base.conf.old }

// Path is the snapshot's directory. Nothing in it may be changed: snapshots share files.
func (r *SnapshotReader) Path() string { return r.r.Path() }

// Files lists the files.
func (r *SnapshotReader) Files() []string {
	var names []string
	for _, f := range r.r.Files() {
		names = append(names, f.Name)
	}
	return names
}

// Meta is what AddFile was given with a file, nil if there is no such file.
func (r *SnapshotReader) Meta(name string) []byte {
	f, _ := r.r.File(name)
	return f.UserMeta
}

// SnapshotFile is an open file of a snapshot.
type SnapshotFile interface {
	io.Reader
	io.ReaderAt
	io.Closer
	Size() int64
}

// Open opens a file.
func (r *SnapshotReader) Open(name string) (SnapshotFile, error) { return r.r.Open(name) }

// Snapshot saves a snapshot now, and then drops the entries that it includes from the log but for
// NodeOptions.SnapshotMargin. done gets the outcome, once:
//
//   - nil: it is durable, and was read back. Also if nothing was applied since the last one.
//   - ErrBusy: another one is being saved or installed.
//   - ErrNotSupported: the state machine has no snapshots.
//   - ErrNoSpace, ErrIO, ErrCorrupt and what else may be: there is no snapshot, and the log is as it was.
//
// It must not block. Nil is allowed.
//
// Source: braft Node::snapshot.
func (n *Node) Snapshot(done Closure) {
	if done == nil {
		done = func(error) {}
	}
	if !n.snap.a.Post(func() { n.snap.save(done) }) {
		err := &Error{Code: ErrShutdown, Op: opSaveSnapshot, Group: n.group}
		n.aside(func() { n.callBackWith(opSaveSnapshot, done, err) })
	}
}

// message is the position as manifests and install_snapshot have it.
func (b logBase) message() *raftpb.SnapshotMeta {
	m := &raftpb.SnapshotMeta{
		LastIncludedIndex: proto.Int64(b.index), LastIncludedTerm: proto.Int64(b.term),
		Peers: b.conf.conf.strings(), OldPeers: b.conf.old.strings(),
	}
	if b.conf.index != 0 {
		m.GraftConfIndex = proto.Int64(b.conf.index)
	}
	return m
}

// maxBase is the highest index that a snapshot may have: a log has to be able to go on behind it.
const maxBase = 1 << 62

// baseOf reads a position.
func baseOf(m *raftpb.SnapshotMeta) (logBase, error) {
	b := logBase{index: m.GetLastIncludedIndex(), term: m.GetLastIncludedTerm()}
	if b.index <= 0 || b.index > maxBase || !validTerm(b.term) {
		return b, fmt.Errorf("snapshot of index %d, term %d", b.index, b.term)
	}
	b.conf = confEntry{index: m.GetGraftConfIndex(), term: b.term}
	if b.conf.index <= 0 || b.conf.index > b.index { // braft does not say
		b.conf.index = b.index
	}
	var err error
	if b.conf.conf, err = configurationOf(m.GetPeers()); err != nil {
		return b, fmt.Errorf("snapshot %d: %w", b.index, err)
	}
	if b.conf.old, err = configurationOf(m.GetOldPeers()); err != nil {
		return b, fmt.Errorf("snapshot %d: %w", b.index, err)
	}
	return b, nil
}
