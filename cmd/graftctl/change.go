package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// order is a change as it is sent.
type order struct {
	service, method string
	request         proto.Message
	answer          answered
}

// answered is an answer that names the configurations before and after.
type answered interface {
	proto.Message
	GetOldPeers() []string
	GetNewPeers() []string
}

// job is a change that the operator asked for.
type job struct {
	title   string // for the progress
	nothing string // what to say if the group turns out to be like that already
	// plan makes an order for the leader, or says why there is nothing to do.
	plan func(ctx context.Context, leader graft.PeerID) (o order, nothing *changeResult, err error)
	// again is the refusal after which it helps to plan anew.
	again graft.Code
}

// changeResult is the outcome of a change.
type changeResult struct {
	Group   string       `json:"group"`
	Leader  graft.PeerID `json:"leader"` // who carried it out
	Changed bool         `json:"changed"`
	Old     []string     `json:"old_peers"`
	New     []string     `json:"new_peers"`
	nothing string       // why there was nothing to do
}

func (r changeResult) print(w io.Writer) {
	if !r.Changed {
		fmt.Fprintln(w, "nothing to do: "+r.nothing)
		return
	}
	fmt.Fprintln(w, "before: "+strings.Join(r.Old, ","))
	fmt.Fprintln(w, "now:    "+strings.Join(r.New, ","))
}

// statusInterval is how often the leader is asked how far it is.
const statusInterval = 200 * time.Millisecond

// change has the leader carry out a change, and shows how far that is until it is over.
func (a *app) change(ctx context.Context, c *client, j job) (result, error) {
	r := changeResult{Group: a.group, nothing: j.nothing}
	err := a.onLeader(ctx, c, j.again, func(leader graft.PeerID) error {
		r.Leader = leader
		o, nothing, err := j.plan(ctx, leader)
		if lost := new(lostError); errors.As(err, &lost) {
			return &failure{Message: lost.Error(), Hint: "Nothing was changed. Try again.", Outcome: outcomeNone}
		}
		if err != nil {
			return err
		}
		if nothing != nil {
			r.Old, r.New, r.nothing = nothing.Old, nothing.New, nothing.nothing
			return nil
		}
		if err := a.carryOut(ctx, c, leader, j.title, o); err != nil {
			return err
		}
		r.Old, r.New = o.answer.GetOldPeers(), o.answer.GetNewPeers()
		r.Changed = !slices.Equal(r.Old, r.New)
		return nil
	})
	if err != nil {
		return nil, a.explainChange(err)
	}
	return r, nil
}

// notLeading reports a server's answer that it does not lead, and thus has done nothing. With any other text
// braft says that it led when it began: nobody knows what became of that.
func (e *remoteError) notLeading() bool {
	return e.is(graft.ErrNotLeader) && (e.text == "Not leader" || strings.HasSuffix(e.text, ": Operation not permitted"))
}

// onLeader has do done by the leader, again if it was not the leader after all, or is too new to begin.
func (a *app) onLeader(ctx context.Context, c *client, again graft.Code, do func(leader graft.PeerID) error) error {
	const (
		maxTries = 20
		busyFor  = time.Second // a new leader takes less until it accepts changes
		between  = 50 * time.Millisecond
	)
	var busySince time.Time
	for tries := 1; ; tries++ {
		leader, err := c.findLeader(ctx)
		if err != nil {
			return err
		}
		err = do(leader)
		var remote *remoteError
		var lost *lostError
		if tries == maxTries || !errors.As(err, &remote) && !errors.As(err, &lost) {
			return err
		}
		switch {
		case remote == nil:
			if !lost.unsent() {
				return err
			}
		case remote.notLeading():
		case again != 0 && remote.is(again):
		case remote.is(graft.ErrBusy):
			if busySince.IsZero() {
				busySince = time.Now()
			} else if time.Since(busySince) > busyFor {
				return err
			}
		default:
			return err
		}
		if err := pause(ctx, between); err != nil {
			return err
		}
	}
}

// carryOut sends an order and waits for its outcome. All the time the leader is asked how far it is, whether somebody
// looks or not: so a connection over which nothing comes any more is noticed.
func (a *app) carryOut(ctx context.Context, c *client, leader graft.PeerID, title string, o order) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	reply := c.send(leader.Address, o.service, o.method, o.request, 0)
	w := a.newProgress(title)
	defer w.clear()
	silent := false // the leader does not tell how far it is: it is a server of braft
	ask := func() <-chan rpc.Reply {
		return c.send(leader.Address, adminService, "Status", &raftpb.GroupStatusRequest{GroupId: c.group, PeerId: text(leader)}, patience)
	}
	look := func() <-chan rpc.Reply {
		if silent {
			return c.send(leader.Address, cliService, "get_leader", &raftpb.GetLeaderRequest{GroupId: c.group, PeerId: text(leader)}, patience)
		}
		return ask()
	}
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for status := look(); ; {
		select {
		case r := <-reply:
			return decode(leader.Address, r, o.answer)
		case r := <-status:
			status = nil
			m := new(raftpb.GroupStatusResponse)
			switch {
			case silent:
			case r.Err == nil && r.Code == codeNoMethod:
				silent = true
				w.silent(leader)
			case decode(leader.Address, r, m) == nil:
				w.show(m)
			}
		case <-tick.C:
			if status == nil { // while a reply is under way no other is asked for
				status = look()
			}
		case <-ctx.Done():
			return a.leave(ctx, leader, o, reply, ask())
		}
	}
}

// leave says what becomes of an order that is waited for no more. It waits for a last status: what the leader has
// answered by then counts, and that the change goes on is said only if that shows it.
func (a *app) leave(ctx context.Context, leader graft.PeerID, o order, reply, status <-chan rpc.Reply) error {
	shown := new(raftpb.GroupStatusResponse)
	select {
	case r := <-reply:
		return decode(leader.Address, r, o.answer)
	case r := <-status:
		if decode(leader.Address, r, shown) != nil {
			shown = nil
		}
	}
	select {
	case r := <-reply: // both have come
		return decode(leader.Address, r, o.answer)
	default:
	}
	why := "interrupted"
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		why = "not done within --timeout"
	}
	if !o.shownBy(shown) {
		return &failure{
			Message: fmt.Sprintf("%s; the leader, %v, does not show the change: it may have been made, or may yet be", why, leader),
			Hint:    "See what became of it: " + a.invocation("peers"), Outcome: outcomeUnknown,
		}
	}
	return &failure{
		Message: fmt.Sprintf("%s; the change goes on at the leader, %v", why, leader), Outcome: outcomeRunning,
		Hint: "See how far it is: " + a.invocation("status") + "\nCall it off:        " + a.invocation("cancel"),
	}
}

// shownBy reports whether a status shows the change that was ordered, and not another one.
func (o order) shownBy(s *raftpb.GroupStatusResponse) bool {
	from, err := configuration(s.GetChange().GetFromPeers())
	to, err2 := configuration(s.GetChange().GetToPeers())
	if err != nil || err2 != nil || to.Empty() {
		return false
	}
	switch m := o.request.(type) {
	case *raftpb.AddPeerRequest:
		p, err := graft.ParsePeerID(m.GetPeerId())
		return err == nil && !from.ContainsVoter(p) && to.ContainsVoter(p)
	case *raftpb.RemovePeerRequest:
		p, err := graft.ParsePeerID(m.GetPeerId())
		return err == nil && from.Contains(p) && !to.Contains(p)
	case interface{ GetNewPeers() []string }:
		want, err := configuration(m.GetNewPeers())
		return err == nil && to.Equal(want)
	}
	return false
}

// explainChange says what has become of a change that did not succeed.
func (a *app) explainChange(err error) error {
	var f *failure
	var lost *lostError
	var remote *remoteError
	switch {
	case errors.As(err, &f):
		if f.Outcome == "" {
			f.Outcome = outcomeNone // no leader was found, or the like
		}
		return f
	case errors.As(err, &lost) && lost.unsent():
		return &failure{Message: lost.Error(), Hint: "Nothing was changed. Try again.", Outcome: outcomeNone}
	case errors.As(err, &lost):
		return &failure{
			Message: "the connection to the leader was lost: " + lost.Error() + "; the change may have been made, or may yet be",
			Hint:    "See what became of it: " + a.invocation("peers"), Outcome: outcomeUnknown,
		}
	case errors.As(err, &remote):
		f := a.refusal(remote)
		f.Outcome = outcomeNone
		if remote.is(graft.ErrUnknownOutcome) || remote.is(graft.ErrNotLeader) && !remote.notLeading() {
			f.Outcome = outcomeUnknown
			f.Hint = "The change may have been made, or may yet be. See what became of it: " + a.invocation("peers")
		}
		return f
	case errors.Is(err, context.Canceled):
		return &failure{Message: "interrupted; nothing was changed", Outcome: outcomeNone}
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{Message: "no leader took the change within --timeout; nothing was changed", Outcome: outcomeNone}
	}
	return &failure{Message: err.Error(), Outcome: outcomeNone}
}
