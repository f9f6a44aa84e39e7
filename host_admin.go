package graft

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// Codes that only operators' tools are answered with, beside those in errors.go.
const (
	codeAgain    = 11   // EAGAIN: no leader is known
	codeAccess   = 13   // EACCES: HostOptions.DisableAdmin
	codeInternal = 2001 // EINTERNAL
)

// serveCli answers braft_cli. It runs on the connection's reader: what takes long is answered
// from the node's callback. Codes and texts are braft's.
//
// Source: braft cli_service.cpp.
func (h *Host) serveCli(req *rpc.Request) {
	switch req.Method {
	case methodAddPeer:
		h.cliAddPeer(req)
	case methodRemovePeer:
		h.cliRemovePeer(req)
	case methodChangePeers:
		h.cliChangePeers(req)
	case methodResetPeer:
		h.cliResetPeer(req)
	case methodSnapshot:
		h.cliSnapshot(req)
	case methodGetLeader:
		h.cliGetLeader(req)
	case methodTransferLeader:
		h.cliTransferLeader(req)
	default:
		noMethod(req)
	}
}

// serveAdmin answers graftctl, as far as braft's service does not do.
func (h *Host) serveAdmin(req *rpc.Request) {
	switch req.Method {
	case methodStatus:
		h.adminStatus(req)
	case methodChange:
		h.adminChange(req)
	case methodCancelChange:
		h.adminCancelChange(req)
	default:
		noMethod(req)
	}
}

func (h *Host) cliAddPeer(req *rpc.Request) {
	m := new(raftpb.AddPeerRequest)
	n, old := h.leading(req, m)
	if n == nil {
		return
	}
	peer, err := ParsePeerID(m.GetPeerId())
	if err != nil {
		req.Fail(int32(ErrInvalid), "Fail to parse peer_id "+clip(m.GetPeerId()))
		return
	}
	n.noteOperator(req, zap.Stringer("peer", peer))
	n.AddPeer(peer, func(err error) {
		if err == nil {
			grown, _ := old.with(peer) // the node found it to be valid
			answer(req, &raftpb.AddPeerResponse{OldPeers: old.strings(), NewPeers: grown.strings()})
			return
		}
		n.failChange(req, err)
	})
}

func (h *Host) cliRemovePeer(req *rpc.Request) {
	m := new(raftpb.RemovePeerRequest)
	n, old := h.leading(req, m)
	if n == nil {
		return
	}
	peer, err := ParsePeerID(m.GetPeerId())
	if err != nil {
		req.Fail(int32(ErrInvalid), "Fail to parse peer_id "+clip(m.GetPeerId()))
		return
	}
	n.noteOperator(req, zap.Stringer("peer", peer))
	n.RemovePeer(peer, func(err error) {
		if err == nil {
			answer(req, &raftpb.RemovePeerResponse{OldPeers: old.strings(), NewPeers: Configuration{peers: old.without(peer)}.strings()})
			return
		}
		n.failChange(req, err)
	})
}

func (h *Host) cliChangePeers(req *rpc.Request) {
	m := new(raftpb.ChangePeersRequest)
	n, old := h.leading(req, m)
	if n == nil {
		return
	}
	conf, ok := parsePeers(req, m.GetNewPeers())
	if !ok {
		return
	}
	n.noteOperator(req, zap.Stringer("conf", conf))
	n.ChangePeers(conf, func(err error) {
		if err == nil {
			answer(req, &raftpb.ChangePeersResponse{OldPeers: old.strings(), NewPeers: conf.strings()})
			return
		}
		n.failChange(req, err)
	})
}

func (h *Host) cliResetPeer(req *rpc.Request) {
	m := new(raftpb.ResetPeerRequest)
	if !parse(req, m) {
		return
	}
	n := h.administered(req, m.GetGroupId(), m.GetPeerId())
	if n == nil {
		return
	}
	conf, ok := parsePeers(req, m.GetNewPeers())
	if !ok {
		return
	}
	if conf.Empty() {
		req.Fail(int32(ErrInvalid), "new_peers is empty")
		return
	}
	n.noteOperator(req, zap.Stringer("conf", conf))
	n.resetPeers(conf, func(err error) {
		if err == nil {
			answer(req, &raftpb.ResetPeerResponse{})
			return
		}
		n.failChange(req, err)
	})
}

func (h *Host) cliSnapshot(req *rpc.Request) {
	m := new(raftpb.SnapshotRequest)
	if !parse(req, m) {
		return
	}
	n := h.administered(req, m.GetGroupId(), m.GetPeerId())
	if n == nil {
		return
	}
	n.noteOperator(req)
	n.Snapshot(func(err error) {
		switch code := ErrorCode(err); code {
		case 0:
			answer(req, &raftpb.SnapshotResponse{})
		case ErrNotSupported: // braft's answer of a node without snapshot storage
			req.Fail(int32(ErrInvalid), "Not supported")
		default:
			req.Fail(int32(code), err.Error())
		}
	})
}

// cliGetLeader is allowed even where the rest is not: clients find the leader by it.
func (h *Host) cliGetLeader(req *rpc.Request) {
	m := new(raftpb.GetLeaderRequest)
	if !parse(req, m) {
		return
	}
	var nodes []*Node
	if m.PeerId == nil {
		nodes = h.replicas(m.GetGroupId())
	} else {
		if _, err := ParsePeerID(m.GetPeerId()); err != nil {
			req.Fail(int32(ErrInvalid), "Fail to parse "+clip(m.GetPeerId()))
			return
		}
		if n := h.find([]byte(m.GetGroupId()), []byte(m.GetPeerId())); n != nil {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		req.Fail(int32(ErrNotFound), "No nodes in group "+clip(m.GetGroupId()))
		return
	}
	for _, n := range nodes {
		if leader := n.LeaderID(); !leader.IsZero() {
			answer(req, &raftpb.GetLeaderResponse{LeaderId: proto.String(leader.String())})
			return
		}
	}
	req.Fail(codeAgain, "Unknown leader")
}

func (h *Host) cliTransferLeader(req *rpc.Request) {
	m := new(raftpb.TransferLeaderRequest)
	if !parse(req, m) {
		return
	}
	n := h.administered(req, m.GetGroupId(), m.GetLeaderId())
	if n == nil {
		return
	}
	var peer PeerID // zero: the leader chooses
	if m.PeerId != nil && !namesNobody(m.GetPeerId()) {
		var err error
		if peer, err = ParsePeerID(m.GetPeerId()); err != nil {
			req.Fail(int32(ErrInvalid), "Fail to parse "+clip(m.GetPeerId()))
			return
		}
	}
	n.noteOperator(req, zap.Stringer("peer", peer))
	n.transferTo(peer, func(err error) {
		switch {
		case err == nil:
			answer(req, &raftpb.TransferLeaderResponse{})
		case peer.IsZero() && ErrorCode(err) == ErrUnreachable: // no candidate; braft has no errno for that
			req.Fail(codeInternal, "Fail to invoke transfer_leadership_to : "+err.Error())
		default:
			failTransfer(req, err)
		}
	})
}

func (h *Host) adminStatus(req *rpc.Request) {
	m := new(raftpb.GroupStatusRequest)
	if !parse(req, m) {
		return
	}
	if n := h.administered(req, m.GetGroupId(), m.GetPeerId()); n != nil {
		answer(req, statusMessage(n.Status()))
	}
}

func (h *Host) adminChange(req *rpc.Request) {
	m := new(raftpb.ChangeRequest)
	n, old := h.leading(req, m)
	if n == nil {
		return
	}
	conf, ok := parsePeers(req, m.GetNewPeers())
	if !ok {
		return
	}
	expected, ok := parsePeers(req, m.GetExpectedPeers())
	if !ok {
		return
	}
	deadline := m.GetDeadlineMs()
	if deadline < 0 || deadline > math.MaxInt64/int64(time.Millisecond) {
		req.Fail(int32(ErrInvalid), fmt.Sprintf("deadline_ms is %d, must be positive, or 0 for none", deadline))
		return
	}
	n.noteOperator(req, zap.Stringer("conf", conf), zap.Stringer("expected", expected), zap.Int64("deadline_ms", deadline))
	o := ChangeOptions{Expected: expected, Deadline: time.Duration(deadline) * time.Millisecond}
	n.Change(conf, o, func(err error) {
		if err == nil {
			answer(req, &raftpb.ChangeResponse{OldPeers: old.strings(), NewPeers: conf.strings()})
			return
		}
		n.failChange(req, err)
	})
}

func (h *Host) adminCancelChange(req *rpc.Request) {
	m := new(raftpb.CancelChangeRequest)
	if !parse(req, m) {
		return
	}
	n := h.administered(req, m.GetGroupId(), m.GetLeaderId())
	if n == nil {
		return
	}
	n.noteOperator(req)
	n.cancelChange(func(err error) {
		switch code := ErrorCode(err); {
		case err == nil:
			answer(req, &raftpb.CancelChangeResponse{})
		case code == ErrNotLeader:
			n.failChange(req, err)
		default: // here ErrBusy says that it is too late, not that another change is going on
			req.Fail(int32(orDefault(code, codeInternal)), err.Error())
		}
	})
}

// leaderRequest is a request that only the leader carries out.
type leaderRequest interface {
	proto.Message
	GetGroupId() string
	GetLeaderId() string
}

// leading decodes a request to the leader, and returns the node with the configuration in force. It
// answers the request itself and returns nil if there is no such leader here.
func (h *Host) leading(req *rpc.Request, m leaderRequest) (*Node, Configuration) {
	if !parse(req, m) {
		return nil, Configuration{}
	}
	n := h.administered(req, m.GetGroupId(), m.GetLeaderId())
	if n == nil {
		return nil, Configuration{}
	}
	v := n.view.Load()
	if v.role != RoleLeader {
		n.failChange(req, &Error{Code: ErrNotLeader})
		return nil, Configuration{}
	}
	return n, v.conf.conf
}

// administered returns the node that an operator means: the one named by peer, or the group's
// only one. It answers the request itself and returns nil if there is none, or if
// operators are not let in.
func (h *Host) administered(req *rpc.Request, group, peer string) *Node {
	var n *Node
	if peer == "" {
		nodes := h.replicas(group)
		switch len(nodes) {
		case 0:
			req.Fail(int32(ErrNotFound), "Fail to find node in group "+clip(group))
			return nil
		case 1:
			n = nodes[0]
		default:
			req.Fail(int32(ErrInvalid), fmt.Sprintf("peer must be specified since there're %d nodes in group %s", len(nodes), clip(group)))
			return nil
		}
	} else {
		if _, err := ParsePeerID(peer); err != nil { // a braft server crashes here
			req.Fail(int32(ErrInvalid), "Fail to parse "+clip(peer))
			return nil
		}
		if n = h.find([]byte(group), []byte(peer)); n == nil {
			req.Fail(int32(ErrNotFound), fmt.Sprintf("Fail to find node %s in group %s", clip(peer), clip(group)))
			return nil
		}
	}
	if h.o.DisableAdmin {
		_, service, _ := strings.Cut(req.Service, ".")
		req.Fail(codeAccess, fmt.Sprintf("%s is not allowed to access node %s:%s", service, n.group, n.name))
		return nil
	}
	return n
}

// replicas returns this host's replicas of a group.
func (h *Host) replicas(group string) []*Node {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.nodes[group]
}

// noteOperator logs what an operator asked for: it explains what the node does next.
func (n *Node) noteOperator(req *rpc.Request, fields ...zap.Field) {
	n.log.Info("an operator asked for "+req.Method, append(fields, zap.String("remote", req.Remote))...)
}

// parsePeers reads a configuration out of a request, or answers that it is none.
func parsePeers(req *rpc.Request, peers []string) (Configuration, bool) {
	for _, s := range peers {
		if _, err := ParsePeerID(s); err != nil {
			req.Fail(int32(ErrInvalid), "Fail to parse "+clip(s))
			return Configuration{}, false
		}
	}
	conf, err := configurationOf(peers)
	if err != nil {
		req.Fail(int32(ErrInvalid), err.Error())
	}
	return conf, err == nil
}

// namesNobody reports whether s is how braft writes that it means no peer.
func namesNobody(s string) bool {
	return s == "0.0.0.0:0" || s == "0.0.0.0:0:0" || s == "0.0.0.0:0:0:0"
}

// answer sends a message.
func answer(req *rpc.Request, m proto.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		req.Fail(codeInternal, err.Error())
		return
	}
	req.Reply(b)
}

func noMethod(req *rpc.Request) {
	req.Fail(codeNoMethod, "Fail to find method="+clip(req.Service)+"/"+clip(req.Method))
}

// failChange answers why a configuration was not changed: in braft's words where it has some,
// and what is known beyond them.
func (n *Node) failChange(req *rpc.Request, err error) {
	var e *Error
	if !errors.As(err, &e) {
		req.Fail(codeInternal, err.Error())
		return
	}
	switch {
	case e.Code == ErrNotLeader:
		req.Fail(int32(ErrNotLeader), "Not leader")
	case e.Code == ErrBusy && !n.view.Load().transfer.IsZero():
		req.Fail(int32(ErrBusy), because("Is transferring leadership", e.Err))
	case e.Code == ErrBusy:
		req.Fail(int32(ErrBusy), because("Doing another configuration change", e.Err))
	case e.Code == ErrCatchup && !e.Peer.IsZero():
		text := "Peer " + e.Peer.String() + " failed to catch up"
		if e.Lag > 0 {
			text += fmt.Sprintf(", %d entries behind", e.Lag)
		}
		req.Fail(int32(ErrCatchup), because(text, e.Err))
	default:
		req.Fail(int32(e.Code), err.Error())
	}
}

// failTransfer answers why leadership is not handed over. braft says it in the words of Linux.
func failTransfer(req *rpc.Request, err error) {
	var e *Error
	if !errors.As(err, &e) {
		req.Fail(codeInternal, err.Error())
		return
	}
	text := ""
	switch e.Code {
	case ErrNotLeader:
		text = "Operation not permitted"
	case ErrBusy:
		text = "Device or resource busy"
	case ErrInvalid:
		text = "Invalid argument"
	case ErrUnreachable:
		text = "No route to host"
	default:
		text = e.Code.Error()
	}
	req.Fail(int32(e.Code), because("Fail to invoke transfer_leadership_to : "+text, e.Err))
}

// because adds the cause, if there is one.
func because(text string, cause error) string {
	if cause == nil {
		return text
	}
	return text + ": " + cause.Error()
}

// clip keeps what a stranger sent from filling an answer.
func clip(s string) string {
	if len(s) > maxPeerIDLen {
		s = s[:maxPeerIDLen] + "..."
	}
	return strings.ToValidUTF8(s, "?")
}

// statusMessage is a Status as it travels.
func statusMessage(s Status) *raftpb.GroupStatusResponse {
	m := &raftpb.GroupStatusResponse{
		PeerId: proto.String(s.Peer.String()), Role: proto.String(s.Role.String()), Term: &s.Term,
		FirstIndex: &s.FirstIndex, LastIndex: &s.LastIndex, DurableIndex: &s.DurableIndex,
		CommitIndex: &s.CommitIndex, AppliedIndex: &s.AppliedIndex,
		Peers: s.Conf.strings(), OldPeers: s.OldConf.strings(), ConfIndex: &s.ConfIndex,
		Stage: proto.String(s.Stage.String()), Vote: optionalPeer(s.Vote), LeaderId: optionalPeer(s.Leader),
		Transferring: optionalPeer(s.Transferring),
		Waiting:      &s.Waiting, Removed: &s.Removed, Overridden: &s.Overridden, Error: optionalError(s.Err),
		PendingEntries: &s.PendingEntries, PendingBytes: &s.PendingBytes, PendingReads: &s.PendingReads,
	}
	m.Snapshot = snapshotMessage(s.Snapshot)
	for _, p := range s.Awaited {
		m.Awaited = append(m.Awaited, p.String())
	}
	for _, f := range s.Followers {
		m.Followers = append(m.Followers, followerMessage(f))
	}
	if c := s.Change; c != nil {
		m.Change = &raftpb.ChangeStatus{
			FromPeers: c.From.strings(), ToPeers: c.To.strings(), ElapsedMs: proto.Int64(c.Elapsed.Milliseconds()),
		}
	}
	return m
}

func snapshotMessage(s SnapshotStatus) *raftpb.SnapshotStatus {
	m := &raftpb.SnapshotStatus{
		Index: &s.Index, Term: &s.Term, Bytes: &s.Bytes, State: proto.String(s.State.String()), NextIndex: &s.NextIndex,
		DoneBytes: &s.Done, ResumedBytes: &s.Resumed, Rate: &s.Rate, Error: optionalError(s.Err),
	}
	if s.From != "" {
		m.From = &s.From
	}
	if s.Total > 0 {
		m.TotalBytes = &s.Total
	}
	return m
}

func followerMessage(f FollowerStatus) *raftpb.Follower {
	m := &raftpb.Follower{
		PeerId: proto.String(f.Peer.String()), State: &f.State, Match: &f.Match, Next: &f.Next,
		Lag: &f.Lag, Rate: &f.Rate, CatchingUp: &f.CatchingUp, Leaving: &f.Leaving,
		InflightBytes: proto.Int64(int64(f.InflightBytes)), Failures: proto.Int64(int64(f.Failures)),
		SilentMs: proto.Int64(f.Silent.Milliseconds()), Error: optionalError(f.Err),
	}
	if f.SnapshotIndex != 0 {
		m.SnapshotIndex, m.SnapshotDoneBytes, m.SnapshotTotalBytes = &f.SnapshotIndex, &f.SnapshotDone, &f.SnapshotTotal
	}
	if f.Remaining > 0 {
		m.RemainingMs = proto.Int64(max(f.Remaining.Milliseconds(), 1))
	}
	return m
}

func optionalPeer(p PeerID) *string {
	if p.IsZero() {
		return nil
	}
	return proto.String(p.String())
}

func optionalError(err error) *string {
	if err == nil {
		return nil
	}
	return proto.String(err.Error())
}
