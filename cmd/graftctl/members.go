package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

func (a *app) addCommand() *cobra.Command {
	return &cobra.Command{
		Use: "add PEER", Short: "Add a voter, or promote a learner", Args: cobra.ExactArgs(1),
		Long: "Adds a voter to the group. Its process must run and have started the group without a configuration of its own.\n" +
			"It copies the log first, and counts when it is near the end. Adding a member changes nothing.",
		RunE: a.onPeer(func(peer graft.PeerID, c *client) (job, error) {
			if peer.Role == graft.Learner {
				return job{}, &failure{Message: fmt.Sprintf("%v is written as a learner", peer), Hint: "Use graftctl learner add, or leave out the role.", Outcome: outcomeNone}
			}
			return job{title: "add " + peer.String(), nothing: peer.String() + " is a member already", plan: fixed(func(leader *string) order {
				m := &raftpb.AddPeerRequest{GroupId: c.group, LeaderId: leader, PeerId: text(peer)}
				return order{cliService, "add_peer", m, new(raftpb.AddPeerResponse)}
			})}, nil
		}),
	}
}

func (a *app) removeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove PEER", Short: "Remove a member, whatever its role", Args: cobra.ExactArgs(1),
		Long: "Removes a member. If it leads, it hands leadership over. Removing a peer that is no member changes nothing.",
		RunE: a.onPeer(func(peer graft.PeerID, c *client) (job, error) {
			return job{title: "remove " + peer.String(), nothing: peer.String() + " is no member", plan: fixed(func(leader *string) order {
				m := &raftpb.RemovePeerRequest{GroupId: c.group, LeaderId: leader, PeerId: text(peer)}
				return order{cliService, "remove_peer", m, new(raftpb.RemovePeerResponse)}
			})}, nil
		}),
	}
}

// onPeer runs a command that changes the group in respect of one peer.
func (a *app) onPeer(make func(peer graft.PeerID, c *client) (job, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		peer, err := parsePeer(cmd, args[0])
		if err != nil {
			return err
		}
		return a.perform(cmd, 0, func(ctx context.Context, c *client) (result, error) {
			j, err := make(peer, c)
			if err != nil {
				return nil, err
			}
			return a.change(ctx, c, j)
		})
	}
}

// fixed is a plan that does not depend on how the group is now.
func fixed(make func(leader *string) order) func(context.Context, graft.PeerID) (order, *changeResult, error) {
	return func(_ context.Context, leader graft.PeerID) (order, *changeResult, error) {
		return make(text(leader)), nil, nil
	}
}

func (a *app) changeCommand() *cobra.Command {
	var expect string
	var deadline time.Duration
	cmd := &cobra.Command{
		Use: "change PEERS", Short: "Make PEERS, all at once, the group's members", Args: cobra.MinimumNArgs(1),
		Long: "Makes PEERS, learners (host:port:0:2) included, the group's configuration: whoever is not named is removed. If several\n" +
			"voters differ, the group passes through a joint configuration, in which both majorities must agree.",
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := parsePeers(cmd, args)
			if err != nil {
				return err
			}
			var expected graft.Configuration
			if expect != "" {
				if expected, err = parsePeers(cmd, []string{expect}); err != nil {
					return err
				}
			}
			if deadline < 0 || deadline > 0 && deadline < time.Millisecond {
				return usage(cmd.CommandPath(), "--deadline is %v, must be at least 1ms", deadline)
			}
			return a.perform(cmd, 0, func(ctx context.Context, c *client) (result, error) {
				return a.change(ctx, c, changeJob(c, conf, expected, deadline))
			})
		},
	}
	cmd.Flags().StringVar(&expect, "expect", "", "refuse unless these peers, with roles, are the configuration now")
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "call the change off if the new peers are not ready by then (default none)")
	return cmd
}

// changeJob uses braft's message as long as that can say it.
func changeJob(c *client, conf, expected graft.Configuration, deadline time.Duration) job {
	plan := fixed(func(leader *string) order {
		if expected.Empty() && deadline == 0 {
			m := &raftpb.ChangePeersRequest{GroupId: c.group, LeaderId: leader, NewPeers: names(conf)}
			return order{cliService, "change_peers", m, new(raftpb.ChangePeersResponse)}
		}
		m := &raftpb.ChangeRequest{
			GroupId: c.group, LeaderId: leader, NewPeers: names(conf), ExpectedPeers: names(expected), DeadlineMs: proto.Int64(deadline.Milliseconds()),
		}
		return order{adminService, "Change", m, new(raftpb.ChangeResponse)}
	})
	return job{title: "change to " + conf.String(), nothing: "that is the configuration already", plan: plan}
}

func (a *app) cancelCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cancel", Short: "Call off the change under way", Args: cobra.NoArgs,
		Long: "Calls off the change of members under way. That works while new peers are catching up; once the change is in the log, nobody can take it back.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.perform(cmd, quick, a.cancel) },
	}
}

// cancelResult is the outcome of cancel.
type cancelResult struct {
	Group  string       `json:"group"`
	Leader graft.PeerID `json:"leader"`
}

func (r cancelResult) print(w io.Writer) {
	fmt.Fprintf(w, "the leader, %v, has called the change off\n", r.Leader)
}

func (a *app) cancel(ctx context.Context, c *client) (result, error) {
	r := cancelResult{Group: a.group}
	err := a.onLeader(ctx, c, 0, func(leader graft.PeerID) error {
		r.Leader = leader
		m := &raftpb.CancelChangeRequest{GroupId: c.group, LeaderId: text(leader)}
		err := c.order(ctx, leader.Address, adminService, "CancelChange", m, new(raftpb.CancelChangeResponse))
		switch code := remoteCode(err); code {
		case int32(graft.ErrBusy):
			return &failure{Message: err.Error(), Code: code, Hint: "It is too late to call it off. When it is done, change the group back."}
		case int32(graft.ErrNotFound):
			return &failure{Message: err.Error(), Code: code, Hint: "See how the group is: " + a.invocation("status")}
		}
		return err
	})
	return r, err
}
