package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

// peersResult is the configuration in force, and while it is joint the one before.
type peersResult struct {
	Group    string       `json:"group"`
	Leader   graft.PeerID `json:"leader"`
	Peers    []string     `json:"peers"`
	OldPeers []string     `json:"old_peers,omitempty"`
}

func (r peersResult) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	show := func(peers []string, note string) {
		for _, id := range peers {
			p, err := graft.ParsePeerID(id)
			if err != nil {
				fmt.Fprintln(t, id)
				continue
			}
			leads := ""
			if p.Same(r.Leader) {
				leads = "\tleader"
			}
			fmt.Fprintf(t, "%s\t%v%s%s\n", id, p.Role, note, leads)
		}
	}
	if len(r.OldPeers) == 0 {
		show(r.Peers, "")
	} else {
		show(r.OldPeers, ", old configuration")
		show(r.Peers, ", new configuration")
	}
	t.Flush()
}

func (a *app) peersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "peers", Short: "List the members that the leader has", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.perform(cmd, quick, a.list) },
	}
}

func (a *app) list(ctx context.Context, c *client) (result, error) {
	r := peersResult{Group: a.group}
	err := a.onLeader(ctx, c, 0, func(leader graft.PeerID) error {
		r.Leader = leader
		s, err := c.status(ctx, serverOf(leader))
		switch {
		case remoteCode(err) == codeNoMethod:
			r.Peers, err = c.braftPeers(ctx, leader)
			return err
		case err != nil:
			return err
		case s.GetRole() != "leader":
			return &remoteError{from: leader.Address, code: int32(graft.ErrNotLeader), text: "Not leader"}
		}
		r.Peers, r.OldPeers = s.GetPeers(), s.GetOldPeers()
		return nil
	})
	return r, err
}

// braftPeers has a leader tell its configuration in the one way that braft's protocol has: by adding it
// to the group that it leads, which changes nothing and is answered with the members.
func (c *client) braftPeers(ctx context.Context, leader graft.PeerID) ([]string, error) {
	m := new(raftpb.AddPeerResponse)
	err := c.order(ctx, leader.Address, cliService, "add_peer",
		&raftpb.AddPeerRequest{GroupId: c.group, LeaderId: text(leader), PeerId: text(leader)}, m)
	return m.GetNewPeers(), err
}
