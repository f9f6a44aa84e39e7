package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// statusResult is the group as its replicas see it.
type statusResult struct {
	Group    string    `json:"group"`
	Leader   string    `json:"leader"` // empty if none is known
	Term     int64     `json:"term,omitempty"`
	Stage    string    `json:"stage,omitempty"`
	Awaited  []string  `json:"awaited,omitempty"`
	Peers    []string  `json:"peers"`
	OldPeers []string  `json:"old_peers,omitempty"`
	Change   *changing `json:"change,omitempty"`
	Replicas []replica `json:"replicas"`

	conf, old graft.Configuration
}

// changing is a change of the configuration under way.
type changing struct {
	From      []string `json:"from_peers"`
	To        []string `json:"to_peers"`
	ElapsedMs int64    `json:"elapsed_ms"`
}

// replica is one replica as it sees itself, and as the leader sees it.
type replica struct {
	Peer    string `json:"peer"`
	Kind    string `json:"kind,omitempty"` // voter, witness, learner; empty if it is no member
	Problem string `json:"problem,omitempty"`
	Braft   bool   `json:"braft,omitempty"` // it does not tell more than its leader

	Role           string `json:"role,omitempty"`
	Term           int64  `json:"term,omitempty"`
	Leader         string `json:"leader,omitempty"`
	FirstIndex     int64  `json:"first_index"`
	LastIndex      int64  `json:"last_index"`
	DurableIndex   int64  `json:"durable_index"`
	CommitIndex    int64  `json:"commit_index"`
	AppliedIndex   int64  `json:"applied_index"`
	PendingEntries int64  `json:"pending_entries"`
	PendingBytes   int64  `json:"pending_bytes"`
	PendingReads   int64  `json:"pending_reads"`
	Waiting        bool   `json:"waiting,omitempty"`
	Removed        bool   `json:"removed,omitempty"`
	Overridden     bool   `json:"overridden,omitempty"`

	Snapshot *snapshots `json:"snapshot,omitempty"`

	Lag        *int64 `json:"lag,omitempty"` // entries of the leader's log that it is not known to hold
	CatchingUp bool   `json:"catching_up,omitempty"`
	Leaving    bool   `json:"leaving,omitempty"`
}

// snapshots is what a replica says of its snapshots.
type snapshots struct {
	Index      int64   `json:"index"` // of the newest; 0: there is none
	Term       int64   `json:"term,omitempty"`
	Bytes      int64   `json:"bytes,omitempty"` // -1: not known
	State      string  `json:"state"`           // idle, saving, copying or loading
	NextIndex  int64   `json:"next_index,omitempty"`
	From       string  `json:"from,omitempty"`
	DoneBytes  int64   `json:"done_bytes,omitempty"`
	TotalBytes int64   `json:"total_bytes,omitempty"`   // 0: not known
	Resumed    int64   `json:"resumed_bytes,omitempty"` // of DoneBytes: what an earlier attempt had left
	Rate       float64 `json:"bytes_per_second,omitempty"`
	Error      string  `json:"error,omitempty"` // why the latest one was not saved or installed
}

func newSnapshots(m *raftpb.SnapshotStatus) *snapshots {
	if m == nil {
		return nil
	}
	return &snapshots{
		Index: m.GetIndex(), Term: m.GetTerm(), Bytes: m.GetBytes(), State: m.GetState(), NextIndex: m.GetNextIndex(), From: m.GetFrom(),
		DoneBytes: m.GetDoneBytes(), TotalBytes: m.GetTotalBytes(), Resumed: m.GetResumedBytes(), Rate: m.GetRate(), Error: m.GetError(),
	}
}

// note says what the replica is at, empty if nothing.
func (s *snapshots) note() string {
	if s == nil {
		return ""
	}
	switch s.State {
	case "saving":
		return "saving a snapshot"
	case "loading":
		return fmt.Sprintf("loading snapshot %d", s.NextIndex)
	case "copying":
		text := fmt.Sprintf("copying snapshot %d from %s: %s", s.NextIndex, s.From, copyText(s.DoneBytes, s.TotalBytes, s.Rate))
		if s.Resumed > 0 {
			text += ", of which an earlier attempt had left " + bytesText(s.Resumed)
		}
		return text
	}
	if s.Error != "" {
		return "snapshot: " + s.Error
	}
	return ""
}

// copyText is how far a copy is.
func copyText(done, total int64, rate float64) string {
	text := bytesText(done)
	if total > 0 {
		text += " of " + bytesText(total)
	}
	if rate > 0 {
		text += ", " + bytesText(int64(rate)) + "/s"
	}
	return text
}

// seen is what a server said about its replica.
type seen struct {
	server server
	status *raftpb.GroupStatusResponse // nil if it said something else
	leader graft.PeerID                // what a braft server said
	err    error
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the group and each of its replicas", Args: cobra.NoArgs,
		Long: "Asks the servers at --peers, and all members they know of, for their replicas. It needs no leader.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.perform(cmd, quick, a.status) },
	}
}

func (a *app) status(ctx context.Context, c *client) (result, error) {
	all := c.look(ctx, c.servers)
	for range 3 { // who was asked may know of others, which may know of others
		unknown := unasked(all)
		if len(unknown) == 0 {
			break
		}
		all = append(all, c.look(ctx, unknown)...)
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return nil, ctx.Err()
	}
	if !slices.ContainsFunc(all, func(s seen) bool { return s.err == nil }) {
		var round search
		for _, s := range all {
			round.said = append(round.said, complaint(s.server, s.err))
			round.heard(s.err)
		}
		if round.refused != nil && !round.refused.is(graft.ErrNotFound) {
			return nil, round.refused
		}
		return nil, c.noLeader(round)
	}
	return newStatusResult(a.group, all), nil
}

// look asks servers for their replicas, all at once.
func (c *client) look(ctx context.Context, servers []server) []seen {
	all := make([]seen, len(servers))
	replies := make([]<-chan rpc.Reply, len(servers))
	for i, s := range servers {
		replies[i] = c.send(s.Address, adminService, "Status", &raftpb.GroupStatusRequest{GroupId: c.group, PeerId: s.name()}, patience)
	}
	for i, s := range servers {
		m := new(raftpb.GroupStatusResponse)
		all[i] = seen{server: s, status: m}
		if all[i].err = c.wait(ctx, s.Address, replies[i], m); all[i].err != nil {
			all[i].status = nil
		}
		if remoteCode(all[i].err) == codeNoMethod {
			all[i].leader, all[i].err = c.namedLeader(ctx, s)
			if remoteCode(all[i].err) == codeAgain { // that it knows no leader is what it has to say
				all[i].err = nil
			}
		}
	}
	return all
}

// ambiguous reports that the server has several replicas, and was not told which one is meant.
func (s seen) ambiguous() bool {
	return s.server.anyone && remoteCode(s.err) == int32(graft.ErrInvalid)
}

// unasked lists the members that were named and not asked yet.
func unasked(all []seen) (servers []server) {
	add := func(id string) {
		p, err := graft.ParsePeerID(id)
		if err != nil {
			return
		}
		known := slices.ContainsFunc(all, func(s seen) bool {
			return s.server.Same(p) && !s.ambiguous() || s.status != nil && s.status.GetPeerId() == p.ID().String()
		})
		if !known && !slices.ContainsFunc(servers, func(s server) bool { return s.Same(p) }) {
			servers = append(servers, serverOf(p))
		}
	}
	for _, s := range all {
		for _, id := range s.status.GetPeers() {
			add(id)
		}
		for _, id := range s.status.GetOldPeers() {
			add(id)
		}
		for _, f := range s.status.GetFollowers() {
			add(f.GetPeerId())
		}
		if !s.leader.IsZero() {
			add(s.leader.String())
		}
	}
	return servers
}

// newStatusResult puts together what the servers said. The leader of the highest term knows best, else the replica
// of the highest.
func newStatusResult(group string, all []seen) statusResult {
	r := statusResult{Group: group, Peers: []string{}, Replicas: []replica{}}
	var best *raftpb.GroupStatusResponse
	for _, s := range all {
		m := s.status
		switch {
		case m == nil:
			if r.Leader == "" && !s.leader.IsZero() {
				r.Leader = s.leader.String()
			}
		case best == nil, rank(m) > rank(best):
			best = m
		}
	}
	if best != nil {
		r.Term, r.Peers, r.OldPeers = best.GetTerm(), best.GetPeers(), best.GetOldPeers()
		r.conf, _ = configuration(r.Peers) // for show only
		r.old, _ = configuration(r.OldPeers)
	}
	if id := best.GetLeaderId(); id != "" {
		r.Leader = id
	}
	if best.GetRole() == "leader" {
		r.Leader, r.Stage, r.Awaited = best.GetPeerId(), best.GetStage(), best.GetAwaited()
		if c := best.GetChange(); c != nil {
			r.Change = &changing{From: c.GetFromPeers(), To: c.GetToPeers(), ElapsedMs: c.GetElapsedMs()}
		}
	}
	for _, s := range all {
		if s.ambiguous() && len(r.conf.Peers()) > 0 {
			continue // those of the group have been asked by name
		}
		r.Replicas = append(r.Replicas, newReplica(s, best, r))
	}
	kinds := []string{"voter", "witness", "learner", ""}
	slices.SortFunc(r.Replicas, func(x, y replica) int {
		return cmp.Or(slices.Index(kinds, x.Kind)-slices.Index(kinds, y.Kind), strings.Compare(x.Peer, y.Peer))
	})
	return r
}

// rank says whose view of the group counts: that of the highest term, a leader's before others'.
func rank(m *raftpb.GroupStatusResponse) int64 {
	n := 2 * m.GetTerm()
	if m.GetRole() == "leader" {
		n++
	}
	return n
}

func newReplica(s seen, best *raftpb.GroupStatusResponse, r statusResult) replica {
	m := s.status
	x := replica{
		Peer: s.server.String(), Braft: m == nil && s.err == nil, Role: m.GetRole(), Term: m.GetTerm(), Leader: m.GetLeaderId(),
		FirstIndex: m.GetFirstIndex(), LastIndex: m.GetLastIndex(), DurableIndex: m.GetDurableIndex(),
		CommitIndex: m.GetCommitIndex(), AppliedIndex: m.GetAppliedIndex(), PendingEntries: m.GetPendingEntries(),
		PendingBytes: m.GetPendingBytes(), PendingReads: m.GetPendingReads(), Waiting: m.GetWaiting(), Removed: m.GetRemoved(), Snapshot: newSnapshots(m.GetSnapshot()),
		Overridden: m.GetOverridden(), Problem: m.GetError(),
	}
	if m != nil {
		x.Peer = m.GetPeerId()
	}
	if !s.leader.IsZero() {
		x.Leader = s.leader.String()
	}
	var remote *remoteError
	switch {
	case errors.As(s.err, &remote):
		x.Problem = remote.text
	case s.err != nil:
		x.Problem = strings.TrimPrefix(complaint(s.server, s.err), s.server.Address+": ")
	}
	p, err := graft.ParsePeerID(x.Peer)
	if err != nil {
		return x
	}
	if q, ok := r.conf.Find(p); ok {
		x.Kind, x.Peer = q.Role.String(), q.String()
	} else if q, ok := r.old.Find(p); ok {
		x.Kind, x.Peer = q.Role.String(), q.String()
	}
	for _, f := range best.GetFollowers() {
		if q, err := graft.ParsePeerID(f.GetPeerId()); err == nil && q.Same(p) {
			x.Lag, x.CatchingUp, x.Leaving = proto.Int64(f.GetLag()), f.GetCatchingUp(), f.GetLeaving()
		}
	}
	return x
}

func (r statusResult) print(w io.Writer) {
	leader := r.Leader
	if leader == "" {
		leader = "none"
	}
	fmt.Fprintf(w, "group   %s\nleader  %s\n", r.Group, leader)
	if r.Term != 0 {
		fmt.Fprintf(w, "term    %d\n", r.Term)
	}
	if r.Stage != "" && r.Stage != "none" {
		waiting := ""
		if len(r.Awaited) > 0 {
			waiting = ", waiting for " + strings.Join(r.Awaited, ", ")
		}
		fmt.Fprintf(w, "stage   %s%s\n", r.Stage, waiting)
	}
	if c := r.Change; c != nil {
		fmt.Fprintf(w, "change  from %s\n        to   %s\n        for  %.1fs\n", strings.Join(c.From, ","), strings.Join(c.To, ","),
			(time.Duration(c.ElapsedMs) * time.Millisecond).Seconds())
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "PEER\tKIND\tROLE\tTERM\tLAST\tDURABLE\tCOMMIT\tAPPLIED\tBEHIND\tNOTES")
	for _, x := range r.Replicas {
		fmt.Fprintln(t, strings.Join(x.cells(), "\t"))
	}
	t.Flush()
}

// cells is the replica as a line of a table.
func (x replica) cells() []string {
	num := func(n int64) string {
		if x.Role == "" { // it did not say
			return "-"
		}
		return fmt.Sprint(n)
	}
	orDash := func(s string) string {
		if s == "" {
			return "-"
		}
		return s
	}
	behind := "-"
	if x.Lag != nil {
		behind = fmt.Sprint(*x.Lag)
	}
	return []string{
		x.Peer, orDash(x.Kind), orDash(x.Role), num(x.Term), num(x.LastIndex), num(x.DurableIndex), num(x.CommitIndex),
		num(x.AppliedIndex), behind, orDash(strings.Join(x.notes(), "; ")),
	}
}

func (x replica) notes() (notes []string) {
	for _, n := range []struct {
		holds bool
		text  string
	}{
		{x.Problem != "", x.Problem},
		{x.Braft && x.Leader == "", "braft, knows no leader"},
		{x.Braft && x.Leader != "", "braft, follows " + x.Leader},
		{x.Snapshot.note() != "", x.Snapshot.note()},
		{x.CatchingUp, "catching up"},
		{x.Leaving, "leaving"},
		{x.Removed, "has learned that it was removed"},
		{x.Overridden, "its configuration was reset by hand"},
		{x.Waiting, "began empty, waits for a leader before it votes freely"},
		{x.PendingEntries > 0, fmt.Sprintf("%d entries pending", x.PendingEntries)},
	} {
		if n.holds {
			notes = append(notes, n.text)
		}
	}
	return notes
}

// configuration reads the peers that a server named.
func configuration(peers []string) (graft.Configuration, error) {
	return graft.ParseConfiguration(strings.Join(peers, ","))
}
