package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

func (a *app) learnerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "learner", Short: "Add, remove or promote members that do not vote", Args: cobra.ArbitraryArgs,
		Long: "Learners copy the log, apply it and serve reads, and count in no majority.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(cmd.CommandPath(), "say what to do with the learner: add, remove or promote")
			}
			return usage(cmd.CommandPath(), "unknown command %q, want add, remove or promote", args[0])
		},
	}
	for _, sub := range []struct {
		use, short, long string
		to               func(conf graft.Configuration, has graft.PeerID, member bool, peer graft.PeerID) (graft.Configuration, string, error)
	}{
		{"add PEER", "Add a learner", "Adds a peer that does not vote. A voter is not made a learner by it.", addLearner},
		{"remove PEER", "Remove a learner", "Removes a learner. A voter is not removed by it.", removeLearner},
		{"promote PEER", "Make a learner a voter", "Makes a learner a voter.", promoteLearner},
	} {
		cmd.AddCommand(&cobra.Command{
			Use: sub.use, Short: sub.short, Long: sub.long, Args: cobra.ExactArgs(1),
			RunE: a.onPeer(func(peer graft.PeerID, c *client) (job, error) {
				return a.learnerJob(c, peer, sub.use[:len(sub.use)-len("PEER")]+peer.String(), sub.to)
			}),
		})
	}
	return cmd
}

// learnerJob changes the configuration that the leader has now, and no other: what the peer is must still be true
// when its role changes.
func (a *app) learnerJob(c *client, peer graft.PeerID, title string,
	to func(conf graft.Configuration, has graft.PeerID, member bool, peer graft.PeerID) (graft.Configuration, string, error),
) (job, error) {
	plan := func(ctx context.Context, leader graft.PeerID) (order, *changeResult, error) {
		s, err := c.status(ctx, serverOf(leader))
		if remoteCode(err) == codeNoMethod {
			return order{}, nil, &failure{Message: fmt.Sprintf("the leader, %v, is a server of braft, which has no learners", leader), Outcome: outcomeNone}
		}
		if err != nil {
			return order{}, nil, err
		}
		conf, err := configuration(s.GetPeers())
		if err != nil {
			return order{}, nil, &lostError{from: leader.Address, err: err}
		}
		has, member := conf.Find(peer)
		next, nothing, err := to(conf, has, member, peer)
		if err != nil {
			return order{}, nil, err
		}
		if nothing != "" {
			return order{}, &changeResult{Old: names(conf), New: names(conf), nothing: nothing}, nil
		}
		return order{adminService, "Change", &raftpb.ChangeRequest{
			GroupId: c.group, LeaderId: text(leader), NewPeers: names(next), ExpectedPeers: names(conf),
		}, new(raftpb.ChangeResponse)}, nil, nil
	}
	return job{title: "learner " + title, plan: plan, again: graft.ErrConfMismatch}, nil
}

func addLearner(conf graft.Configuration, has graft.PeerID, member bool, peer graft.PeerID) (graft.Configuration, string, error) {
	switch {
	case member && has.Role == graft.Learner:
		return conf, fmt.Sprintf("%v is a learner already", has), nil
	case member:
		return conf, "", &failure{
			Message: fmt.Sprintf("%v is a %v", has, has.Role), Outcome: outcomeNone,
			Hint: "If it is to vote no more, say so: graftctl change, with role 2 for it.",
		}
	}
	peer.Role = graft.Learner
	next, err := with(conf, peer)
	return next, "", err
}

func removeLearner(conf graft.Configuration, has graft.PeerID, member bool, peer graft.PeerID) (graft.Configuration, string, error) {
	switch {
	case !member:
		return conf, fmt.Sprintf("%v is no member", peer), nil
	case has.Role != graft.Learner:
		return conf, "", &failure{Message: fmt.Sprintf("%v is a %v", has, has.Role), Outcome: outcomeNone, Hint: "To remove it all the same: graftctl remove."}
	}
	next, err := graft.NewConfiguration(without(conf, peer)...)
	return next, "", err
}

func promoteLearner(conf graft.Configuration, has graft.PeerID, member bool, peer graft.PeerID) (graft.Configuration, string, error) {
	switch {
	case !member:
		return conf, "", &failure{Message: fmt.Sprintf("%v is no member of the group", peer), Outcome: outcomeNone, Hint: "To add it as a voter: graftctl add."}
	case has.Role != graft.Learner:
		return conf, fmt.Sprintf("%v is a %v already", has, has.Role), nil
	}
	has.Role = graft.Voter
	next, err := with(conf, has)
	return next, "", err
}
