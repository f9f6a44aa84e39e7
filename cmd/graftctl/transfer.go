package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

func (a *app) transferCommand() *cobra.Command {
	return &cobra.Command{
		Use: "transfer [PEER]", Short: "Hand leadership over, to the best follower or to PEER", Args: cobra.MaximumNArgs(1),
		Long: "Hands leadership over to PEER, or to the follower with the longest log, and waits until it leads.\n" +
			"Proposals are refused for a moment.",
		RunE: func(cmd *cobra.Command, args []string) error {
			var to graft.PeerID
			if len(args) == 1 {
				var err error
				if to, err = parsePeer(cmd, args[0]); err != nil {
					return err
				}
			}
			return a.perform(cmd, quick, func(ctx context.Context, c *client) (result, error) { return a.transfer(ctx, c, to) })
		},
	}
}

func (a *app) transfer(ctx context.Context, c *client, to graft.PeerID) (result, error) {
	var old graft.PeerID
	err := a.onLeader(ctx, c, 0, func(leader graft.PeerID) error {
		old = leader
		m := &raftpb.TransferLeaderRequest{GroupId: c.group, LeaderId: text(leader)}
		if !to.IsZero() {
			m.PeerId = text(to)
		}
		return c.order(ctx, leader.Address, cliService, "transfer_leader", m, new(raftpb.TransferLeaderResponse))
	})
	if err != nil {
		return nil, err
	}
	if to.Same(old) {
		return leaderResult{Group: a.group, Leader: old, Old: old}, nil
	}
	c.also(to)
	leader, err := c.newLeader(ctx, old)
	if err != nil {
		return nil, err
	}
	if !to.IsZero() && !leader.Same(to) {
		return nil, &failure{Message: fmt.Sprintf("%v leads now, and not %v", leader, to), Hint: "An election came in between. Try again."}
	}
	return leaderResult{Group: a.group, Leader: leader, Old: old}, nil
}

// newLeader waits until another than old leads, or old has taken leadership back.
func (c *client) newLeader(ctx context.Context, old graft.PeerID) (graft.PeerID, error) {
	const look = 50 * time.Millisecond
	for still, seen := 0, false; ; seen = true {
		leader, err := c.findLeader(ctx)
		switch {
		case err != nil:
			return leader, underWay(err, old, seen)
		case !leader.Same(old):
			return leader, nil
		}
		// What the old leader shows may be a moment old, so that it must show it again and again.
		s, err := c.status(ctx, serverOf(old))
		if err == nil && s.GetRole() == "leader" && s.GetTransferring() == "" {
			still++
		} else {
			still = 0
		}
		if still > 5 {
			return old, &failure{Message: fmt.Sprintf("%v leads still: the other did not take over in time", old),
				Hint: "Check that it can reach a majority of the voters, then try again."}
		}
		if err := pause(ctx, look); err != nil {
			return old, leadsStill(old)
		}
	}
}

// underWay is why nobody knows who leads although leadership is being handed over. seen is set if old was found to lead a moment ago.
func underWay(err error, old graft.PeerID, seen bool) error {
	var f *failure
	if !errors.As(err, &f) { // interrupted
		return err
	}
	if seen && errors.As(err, new(cutShortError)) {
		return leadsStill(old)
	}
	told := *f
	told.Message = "leadership is being handed over, but " + f.Message
	return &told
}

func leadsStill(old graft.PeerID) error {
	return &failure{Message: fmt.Sprintf("leadership is being handed over, but %v leads still", old), Hint: "Look again with graftctl leader."}
}
