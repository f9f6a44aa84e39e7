package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
)

const (
	// findLimit bounds the search for a leader: an election takes less.
	findLimit = 10 * time.Second
	// giveUp is when the search ends early because no answer gives hope of a leader.
	giveUp = 500 * time.Millisecond
)

// search is one round of asking for the leader.
type search struct {
	said    []string // what each server said, for the operator
	hopeful bool     // somebody knows the group: a leader may come up
	reached bool     // somebody answered at all
	refused *remoteError
}

// cutShortError is what noLeader says when time was over before all servers had been asked once: there may well be a leader.
type cutShortError struct{ error }

func (e cutShortError) Unwrap() error { return e.error }

// findLeader asks the servers in turn who leads, again and again, until one is named that says so itself.
func (c *client) findLeader(ctx context.Context) (graft.PeerID, error) {
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, findLimit)
	defer cancel()
	began := time.Now()
	var last search
	whole := false // whether all were asked in time, once at least
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 500*time.Millisecond) {
		leader, round := c.searchOnce(ctx)
		if !leader.IsZero() {
			return leader, nil
		}
		if ctx.Err() == nil || last.said == nil { // else it was cut short, and the one before tells more
			last = round
		}
		whole = whole || ctx.Err() == nil
		if errors.Is(outer.Err(), context.Canceled) {
			return graft.PeerID{}, outer.Err()
		}
		if !round.hopeful && time.Since(began) > giveUp || pause(ctx, wait) != nil {
			if errors.Is(outer.Err(), context.Canceled) {
				return graft.PeerID{}, outer.Err()
			}
			err := c.noLeader(last)
			if !whole {
				err = cutShortError{err}
			}
			return graft.PeerID{}, err
		}
	}
}

// searchOnce asks each server once, and whom they name.
func (c *client) searchOnce(ctx context.Context) (graft.PeerID, search) {
	var s search
	for _, srv := range c.servers {
		leader, err := c.namedLeader(ctx, srv)
		s.heard(err)
		switch {
		case err != nil:
			s.said = append(s.said, complaint(srv, err))
			continue
		case leader.Address == srv.Address:
			return leader, s
		}
		confirmed, err := c.namedLeader(ctx, serverOf(leader))
		s.heard(err)
		switch {
		case err != nil:
			s.said = append(s.said, fmt.Sprintf("%s names %v as the leader, but %v", srv.Address, leader, complaint(serverOf(leader), err)))
		case confirmed.Same(leader):
			return leader, s
		default:
			s.said = append(s.said, fmt.Sprintf("%s names %v as the leader, which names %v", srv.Address, leader, confirmed))
		}
	}
	return graft.PeerID{}, s
}

// complaint is what came of asking a server.
func complaint(s server, err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return s.Address + ": " + reason(err)
	}
	return err.Error()
}

// heard takes note of what an answer tells about the group.
func (s *search) heard(err error) {
	var remote *remoteError
	switch {
	case err == nil:
		s.hopeful, s.reached = true, true
	case errors.As(err, &remote):
		s.reached = true
		s.hopeful = s.hopeful || remote.code == codeAgain
		if remote.code != codeAgain {
			s.refused = remote
		}
	}
}

// noLeader says why none was found.
func (c *client) noLeader(s search) error {
	said := "\n  " + strings.Join(s.said, "\n  ")
	switch {
	case s.hopeful:
		return &failure{
			Message: fmt.Sprintf("group %s has no leader that can be reached:%s", *c.group, said), Code: codeAgain,
			Hint: "A majority of its voters must run and reach each other. If one is lost for good, see graftctl reset --help.",
		}
	case s.refused != nil && s.refused.is(graft.ErrNotFound):
		return &failure{
			Message: fmt.Sprintf("no server that answers has a replica of group %s:%s", *c.group, said), Code: s.refused.code,
			Hint: "Check --group and --peers.",
		}
	case s.reached:
		return &failure{Message: fmt.Sprintf("no server tells who leads group %s:%s", *c.group, said), Code: s.refused.code,
			Hint: "Check that --peers are servers of graft or braft."}
	}
	return &failure{
		Message: fmt.Sprintf("no server of group %s can be reached:%s", *c.group, said),
		Hint:    "Check --peers and the network. If the servers use TLS, give --tls-ca, --tls-cert and --tls-key.",
	}
}

// leaderResult is the outcome of leader and of transfer.
type leaderResult struct {
	Group  string       `json:"group"`
	Leader graft.PeerID `json:"leader"`
	Old    graft.PeerID `json:"old_leader,omitzero"`
}

func (r leaderResult) print(w io.Writer) {
	switch {
	case r.Old.IsZero():
		fmt.Fprintln(w, r.Leader)
	case r.Old.Same(r.Leader):
		fmt.Fprintf(w, "%v leads already\n", r.Leader)
	default:
		fmt.Fprintf(w, "%v leads now, in place of %v\n", r.Leader, r.Old)
	}
}

func (a *app) leaderCommand() *cobra.Command {
	return &cobra.Command{
		Use: "leader", Short: "Print the group's leader", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.perform(cmd, quick, func(ctx context.Context, c *client) (result, error) {
				leader, err := c.findLeader(ctx)
				return leaderResult{Group: a.group, Leader: leader}, err
			})
		},
	}
}

// also adds a server to those that are asked, unless it is there or names nobody.
func (c *client) also(p graft.PeerID) {
	if !p.IsZero() && !slices.ContainsFunc(c.servers, func(s server) bool { return s.Address == p.Address }) {
		c.servers = append(c.servers, serverOf(p))
	}
}
