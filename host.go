package graft

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/env"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/snapdir"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
	"github.com/graft-raft/graft/internal/wire"
	"github.com/graft-raft/graft/raftpb"
)

// Host is what the replicas of one process share: listener, connections, and the
// log on disk. One per process is the rule; tests may have several.
//
// Ownership: its methods may be called from anywhere. mu is a leaf lock.
type Host struct {
	o     HostOptions
	env   *env.Env
	log   *zap.Logger
	store *wal.Store
	rpc   Transport
	base  time.Time // when it was made

	fs              vfs.FS // of snapshots
	snapshots       string // their directory
	files           fileService
	sends, receives throttle
	traffic         traffic
	turns           *snapdir.Turns

	mu       sync.RWMutex
	nodes    map[string][]*Node // by group; several only if they differ in Index
	begun    []nodeKey          // nodes that StartNode is making
	starting sync.WaitGroup     // StartNode calls; Add under mu while not closing
	closing  bool

	closed   chan struct{} // when Close has ended
	closeErr error
}

// NewHost opens the log in o.Dir and begins to listen. It fails with ErrIdentity if the directory
// is another address's or in use, with ErrCorrupt if what is stored is damaged, with ErrNoSpace if the disk is full and nothing
// was prepared on it, with ErrBusy if another process listens there, with ErrInvalid if that address
// cannot be listened on or o is not valid.
func NewHost(o HostOptions) (*Host, error) {
	if err := o.Validate(); err != nil {
		return nil, &Error{Code: ErrInvalid, Op: "new host", Err: err}
	}
	h := &Host{o: o, env: o.Env, log: o.Logger, nodes: make(map[string][]*Node), closed: make(chan struct{})}
	if h.env == nil {
		h.env = env.Default()
	}
	if h.log == nil {
		h.log = zap.NewNop()
	}
	h.log = h.log.With(zap.String("host", o.Address))
	h.base = h.env.Exec.Now()
	w := h.env.WAL
	w.FS, w.Exec, w.Rand, w.Identity = h.env.FS, h.env.Exec, h.env.Rand, o.Address
	w.Log = h.log.Sugar().Infof
	w.Dir, h.snapshots = filepath.Join(o.Dir, "log"), filepath.Join(o.Dir, "snapshots")
	if o.Dir == "" {
		w.FS, w.Dir, h.snapshots = vfs.NewMem(), "/log", "/snapshots"
		w.SegmentSize = orDefault(w.SegmentSize, 1<<20)
	}
	h.fs = w.FS
	throttle := o.SnapshotThrottle.withDefaults()
	h.sends.set(throttle.SendRate, throttle.Sends)
	h.receives.set(throttle.ReceiveRate, throttle.Receives)
	h.turns = snapdir.NewTurns(max(runtime.GOMAXPROCS(0)/2, 1))
	if o.SegmentSize != 0 {
		w.SegmentSize = o.SegmentSize
	}
	store, err := wal.Open(w)
	if err != nil {
		h.endEnv()
		return nil, storageError("new host", err)
	}
	opened := h.env.Exec.Now().Sub(h.base)
	h.store = store
	h.rpc = o.Transport
	if h.rpc == nil {
		h.rpc = NewTCPTransport(o.TLS)
	}
	listen := o.Listen
	if listen == "" {
		listen = o.Address
	}
	err = h.rpc.Start(rpc.StartOptions{
		Listen: listen, Address: o.Address, Incarnation: max(h.env.Rand(), 1),
		Serve: h.serve, Down: h.peerDown, Logf: h.log.Sugar().Infof,
	})
	if err != nil {
		defer h.endEnv()
		code := ErrInvalid
		if errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			code = ErrBusy
		}
		return nil, &Error{Code: code, Op: "new host: listen on " + listen, Err: errors.Join(err, store.Close())}
	}
	h.log.Info("opened the log", zap.String("dir", w.Dir), zap.Duration("took", opened))
	return h, nil
}

func (h *Host) endEnv() {
	if h.env.Close != nil {
		h.env.Close()
	}
}

// storageError says which kind of failure it is.
func storageError(op string, err error) error {
	code := ErrIO
	var corrupt *wal.CorruptError
	switch {
	case errors.Is(err, wal.ErrIdentity), errors.Is(err, vfs.ErrLocked):
		code = ErrIdentity
	case errors.As(err, &corrupt):
		code = ErrCorrupt
	case errors.Is(err, wal.ErrNoSpace):
		code = ErrNoSpace
	case errors.Is(err, wal.ErrClosed):
		code = ErrShutdown
	}
	return &Error{Code: code, Op: op, Err: err}
}

// Address is what PeerIDs name this host.
func (h *Host) Address() string { return h.o.Address }

// StartNode starts this host's replica of a group. What it had stored before is taken up
// again, and the state machine has loaded the latest snapshot when it returns; its InitialConf counts only if it had nothing. It
// fails with ErrBusy while an earlier replica of the group has not ended, with ErrIO once the host's log has failed, with
// ErrCorrupt if what is stored is damaged so that the replica cannot go on from it, and with ErrStateMachine if the
// snapshot cannot be loaded. A group's name has up to 1024 bytes, none of them a control character.
func (h *Host) StartNode(group string, o NodeOptions) (*Node, error) {
	if err := o.Validate(); err != nil {
		return nil, &Error{Code: ErrInvalid, Op: "start node", Group: group, Err: err}
	}
	o = o.withDefaults()
	if err := checkGroupName(group); err != nil {
		return nil, &Error{Code: ErrInvalid, Op: "start node", Err: err}
	}
	if !o.InitialConf.Empty() {
		if err := o.InitialConf.validate(); err != nil {
			return nil, &Error{Code: ErrInvalid, Op: "start node", Group: group, Err: fmt.Errorf("NodeOptions.InitialConf: %w", err)}
		}
	}
	key := nodeKey{group, o.Index}
	if err := h.reserve(key); err != nil {
		return nil, err
	}
	defer h.starting.Done()
	n, err := h.makeNode(key, o)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.begun = slices.DeleteFunc(h.begun, func(k nodeKey) bool { return k == key })
	if err != nil {
		return nil, err
	}
	n.publish()
	h.nodes[group] = append(slices.Clone(h.nodes[group]), n)
	n.start() // if Close was called meanwhile, it waits, and shuts this one down with the others
	return n, nil
}

// nodeKey is what a host knows a replica by.
type nodeKey struct {
	group string
	index int
}

// reserve keeps others from starting the same replica while that is being made, which may take long.
func (h *Host) reserve(key nodeKey) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closing {
		return &Error{Code: ErrShutdown, Op: "start node", Group: key.group}
	}
	busy := slices.Contains(h.begun, key)
	for _, n := range h.nodes[key.group] {
		busy = busy || n.peer.Index == key.index
	}
	if busy {
		return &Error{Code: ErrBusy, Op: "start node", Group: key.group, Err: errors.New("the node is running, or has not ended yet")}
	}
	h.begun = append(h.begun, key)
	h.starting.Add(1)
	return nil
}

func (h *Host) makeNode(key nodeKey, o NodeOptions) (*Node, error) {
	if err := h.store.Err(); err != nil { // what an earlier replica wrote last may not be on disk
		return nil, storageError("start node", err)
	}
	g, err := h.store.Group(wal.ReplicaName(key.group, key.index))
	if err != nil {
		return nil, storageError("start node", err)
	}
	return newNode(h, key.group, g, o)
}

// isClosing reports whether Close was called.
func (h *Host) isClosing() bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.closing
}

// snapshotDir is where a replica's snapshots are.
func (h *Host) snapshotDir(group string, index int) string {
	return filepath.Join(h.snapshots, snapdir.DirName(group, index))
}

const maxGroupName = 1 << 10

// checkGroupName reports what is wrong with a group's name. In the log a NUL comes between it and a replica's index, so that a name with
// one could be another group's replica; other control characters only spoil what shows it.
func checkGroupName(group string) error {
	if group == "" || len(group) > maxGroupName {
		return fmt.Errorf("group name has %d bytes, must be 1 to %d", len(group), maxGroupName)
	}
	if strings.ContainsFunc(group, unicode.IsControl) {
		return fmt.Errorf("group name %q has control characters", group)
	}
	return nil
}

// Node returns this host's replica of a group, nil if there is none. If there are
// several it is the one with the lowest index.
func (h *Host) Node(group string) *Node {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var found *Node
	for _, n := range h.nodes[group] {
		if found == nil || n.peer.Index < found.peer.Index {
			found = n
		}
	}
	return found
}

// Nodes lists the host's replicas by group and index.
func (h *Host) Nodes() []*Node {
	h.mu.RLock()
	defer h.mu.RUnlock()
	var all []*Node
	for _, nodes := range h.nodes {
		all = append(all, nodes...)
	}
	slices.SortFunc(all, func(a, b *Node) int {
		if a.group != b.group {
			if a.group < b.group {
				return -1
			}
			return 1
		}
		return a.peer.Index - b.peer.Index
	})
	return all
}

// remove forgets a node that has ended.
func (h *Host) remove(n *Node) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(h.nodes[n.group]), func(o *Node) bool { return o == n })
	if len(rest) == 0 {
		delete(h.nodes, n.group)
	} else {
		h.nodes[n.group] = rest
	}
}

// StopNode shuts this host's replicas of a group down and waits for their end, or for ctx's.
// What they stored stays. A StateMachine's method or a callback must not call it: the end waits for those; Node.Shutdown does not.
func (h *Host) StopNode(ctx context.Context, group string) error {
	h.mu.RLock()
	nodes := h.nodes[group]
	h.mu.RUnlock()
	if len(nodes) == 0 {
		return &Error{Code: ErrNotFound, Op: "stop node", Group: group}
	}
	for _, n := range nodes {
		if err := Await(ctx, n.Shutdown); err != nil {
			return err
		}
	}
	return nil
}

// Close shuts all nodes down, closes all connections and then the log. It waits for the end of
// everything, also when called again. A StateMachine's method or a callback must not call it, since it waits for those.
func (h *Host) Close() error {
	h.mu.Lock()
	first := !h.closing
	h.closing = true
	h.mu.Unlock()
	if !first {
		<-h.closed
		return h.closeErr
	}
	h.starting.Wait()
	nodes := h.Nodes()
	for _, n := range nodes {
		n.Shutdown(nil)
	}
	for _, n := range nodes {
		n.Join()
	}
	h.closeErr = errors.Join(h.rpc.Close(), h.store.Close())
	h.endEnv()
	close(h.closed)
	return h.closeErr
}

// StorageStats returns what the host's log has done since it was opened.
func (h *Host) StorageStats() StorageStats { return h.store.Stats() }

// spaceError says why there is no room for proposals, nil while there is.
func (h *Host) spaceError() error { return h.store.Space() }

// call sends a request to a peer's process.
func (h *Host) call(peer PeerID, c rpc.Call) { h.rpc.Call(peer.Address, c) }

// retry has a connection to a peer's process tried at once: that it was not there a moment ago says nothing
// about a peer that is being added.
func (h *Host) retry(peer PeerID) { h.rpc.Retry(peer.Address) }

// watch has the death of the process at address reported, in place of the one watched
// before. Empty: none.
func (h *Host) watch(watched *string, address string) {
	if address == h.o.Address {
		address = ""
	}
	if *watched == address {
		return
	}
	if *watched != "" {
		h.rpc.Watch(*watched, false)
	}
	if address != "" {
		h.rpc.Watch(address, true)
	}
	*watched = address
}

// peerDown tells all nodes that a process is evidently gone.
func (h *Host) peerDown(address string) {
	for _, n := range h.Nodes() {
		n.post(func() { n.onPeerDown(address) })
	}
}

// find returns the node that a request names by group and peer, nil if there is none.
func (h *Host) find(group, peer []byte) *Node {
	h.mu.RLock()
	nodes := h.nodes[string(group)]
	h.mu.RUnlock()
	for _, n := range nodes {
		if n.name == string(peer) {
			return n
		}
	}
	if len(nodes) == 0 {
		return nil
	}
	p, err := ParsePeerID(string(peer))
	if err != nil {
		return nil
	}
	for _, n := range nodes {
		if n.peer.Same(p) {
			return n
		}
	}
	return nil
}

// serve hands a request to the node it is for. It runs on the connection's reader.
func (h *Host) serve(req *rpc.Request) {
	switch {
	case req.Service == raftService && req.Method == methodAppendEntries:
		r, err := wire.ParseAppendRequest(req.Message, req.Attachment)
		if err != nil {
			req.Fail(codeBadRequest, "Fail to parse request message: "+err.Error())
			return
		}
		h.deliver(req, r.GroupID, r.PeerID, func(n *Node) { n.onAppend(req, &r) })
	case req.Service == raftService && (req.Method == methodPreVote || req.Method == methodRequestVote):
		m, pre := new(raftpb.RequestVoteRequest), req.Method == methodPreVote
		if parse(req, m) {
			h.deliver(req, []byte(m.GetGroupId()), []byte(m.GetPeerId()), func(n *Node) { n.onVoteRequest(req, m, pre) })
		}
	case req.Service == raftService && req.Method == methodTimeoutNow:
		m := new(raftpb.TimeoutNowRequest)
		if parse(req, m) {
			h.deliver(req, []byte(m.GetGroupId()), []byte(m.GetPeerId()), func(n *Node) { n.onTimeoutNow(req, m) })
		}
	case req.Service == raftService && req.Method == methodInstall:
		m := new(raftpb.InstallSnapshotRequest)
		if parse(req, m) {
			h.deliver(req, []byte(m.GetGroupId()), []byte(m.GetPeerId()), func(n *Node) { n.onInstall(req, m) })
		}
	case req.Service == fileServiceName:
		h.serveFile(req)
	case req.Service == nodeService && req.Method == methodReadIndex:
		m := new(raftpb.ReadIndexRequest)
		if parse(req, m) {
			h.deliver(req, []byte(m.GetGroupId()), []byte(m.GetPeerId()), func(n *Node) { n.onReadIndex(req, m) })
		}
	case req.Service == cliService:
		h.serveCli(req)
	case req.Service == adminService:
		h.serveAdmin(req)
	default:
		noMethod(req)
	}
}

// maxRequest bounds the message of a request that has no entries. The largest one that makes sense names maxPeers peers twice;
// decoding takes a multiple of the bytes that came.
const maxRequest = 256 << 10

// parse decodes a request, or answers that it cannot be.
func parse(req *rpc.Request, m proto.Message) bool {
	if len(req.Message) > maxRequest {
		req.Fail(codeBadRequest, fmt.Sprintf("request of %d bytes is larger than %d", len(req.Message), maxRequest))
		return false
	}
	if err := proto.Unmarshal(req.Message, m); err != nil {
		req.Fail(codeBadRequest, fmt.Sprintf("Fail to parse request message, CompressType=none, request_size=%d", len(req.Message)))
		return false
	}
	return true
}

// deliver has the node handle the request, or answers that there is none.
func (h *Host) deliver(req *rpc.Request, group, peer []byte, handle func(n *Node)) {
	n := h.find(group, peer)
	if n == nil {
		code := ErrNotFound
		if _, err := ParsePeerID(string(peer)); err != nil {
			code = ErrInvalid
		}
		req.Fail(int32(code), "peer_id not exist")
		return
	}
	if !n.postInline(func() { handle(n) }) {
		req.Fail(int32(ErrNotFound), "peer_id not exist")
	}
}
