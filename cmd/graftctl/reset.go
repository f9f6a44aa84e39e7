package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/raftpb"
)

const resetDanger = `DANGER. A reset has one server believe that the group consists of other voters, and asks nobody else.
  - Entries that only the lost voters held are lost, although they were acknowledged.
  - If the lost voters are not lost and come back, the group splits in two, and both halves acknowledge. Nothing can
    keep them from it: stop them for good first, and never start them again.
  - Reset the server with the greatest last term and index (graftctl status). If the new configuration
    has several voters, reset each of them to the same one. Better: reset one server to itself alone, then add others.`

// assent is the flag that answers the question in advance.
const assent = "yes-i-know-it-may-lose-data"

func (a *app) resetCommand() *cobra.Command {
	var peer string
	var yes bool
	cmd := &cobra.Command{
		Use: "reset PEERS --peer PEER", Short: "Unsafe: set the configuration on one server, after a majority was lost for good",
		Long: "Sets the configuration to PEERS on the server at --peer alone, for a group that has lost its majority for good.\n\n" + resetDanger,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			conf, err := parsePeers(cmd, args)
			if err != nil {
				return err
			}
			if peer == "" {
				return usage(cmd.CommandPath(), "--peer is missing: the server to reset")
			}
			at, err := parsePeer(cmd, peer)
			if err != nil {
				return err
			}
			return a.perform(cmd, 0, func(ctx context.Context, c *client) (result, error) {
				if err := a.confirm(ctx, c, at, conf, yes); err != nil {
					return nil, err
				}
				ctx, cancel := context.WithTimeout(ctx, quick)
				defer cancel()
				return a.reset(ctx, c, at, conf)
			})
		},
	}
	cmd.Flags().StringVar(&peer, "peer", "", "the server to reset, host:port[:index]")
	cmd.Flags().BoolVar(&yes, assent, false, "do it without asking")
	return cmd
}

// confirm has the operator say that they know what they do.
func (a *app) confirm(ctx context.Context, c *client, at graft.PeerID, conf graft.Configuration, yes bool) error {
	alive := ""
	c.also(at)
	if leader, _ := c.searchOnce(ctx); !leader.IsZero() {
		alive = fmt.Sprintf("The group is alive: %v leads it. While a majority lives, use graftctl change instead.", leader)
	}
	if yes {
		if alive != "" {
			fmt.Fprintln(a.err, "warning: "+alive)
		}
		return nil
	}
	if a.json || !a.canAsk {
		return &failure{Message: "a reset may lose acknowledged data and split the group; it needs --" + assent, Hint: "Read graftctl reset --help first.", Outcome: outcomeNone}
	}
	fmt.Fprintln(a.err, resetDanger)
	if alive != "" {
		fmt.Fprintln(a.err, alive)
	}
	fmt.Fprintf(a.err, "To have %v follow %v, type the name of the group: ", at, conf)
	answer := make(chan string, 1)
	go func() { // ends with the process if nobody answers
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		answer <- strings.TrimSpace(line)
	}()
	select {
	case line := <-answer:
		if line == a.group {
			return nil
		}
		return &failure{Message: "that is not the name of the group; nothing was changed", Outcome: outcomeNone}
	case <-ctx.Done():
		return &failure{Message: "interrupted; nothing was changed", Outcome: outcomeNone}
	}
}

type resetResult struct {
	Group string              `json:"group"`
	Peer  graft.PeerID        `json:"peer"`
	Peers []string            `json:"peers"`
	conf  graft.Configuration // Peers
}

func (r resetResult) print(w io.Writer) {
	fmt.Fprintf(w, "%v follows %v now\n", r.Peer, r.conf)
	for _, p := range r.conf.Voters() {
		if !p.Same(r.Peer) {
			fmt.Fprintf(w, "%v must be reset to the same configuration as well\n", p)
		}
	}
}

func (a *app) reset(ctx context.Context, c *client, at graft.PeerID, conf graft.Configuration) (result, error) {
	err := c.order(ctx, at.Address, cliService, "reset_peer",
		&raftpb.ResetPeerRequest{GroupId: c.group, PeerId: text(at), NewPeers: names(conf)}, new(raftpb.ResetPeerResponse))
	lost, remote := new(lostError), new(remoteError)
	switch {
	case errors.As(err, &lost) && lost.unsent():
		return nil, &failure{Message: lost.Error(), Hint: "Nothing was changed. Check --peer.", Outcome: outcomeNone}
	case errors.As(err, &lost), ctx.Err() != nil && err != nil:
		return nil, &failure{Message: fmt.Sprintf("no answer from %v: it may have been reset, or may yet be", at),
			Hint: "See whether it was: " + a.invocation("status"), Outcome: outcomeUnknown}
	case errors.As(err, &remote) && remote.is(graft.ErrUnknownOutcome):
		return nil, &failure{Message: remote.Error(), Code: remote.code,
			Hint: "It may have been reset, or may yet be. See whether it was: " + a.invocation("status"), Outcome: outcomeUnknown}
	case err != nil:
		return nil, a.explainChange(err)
	}
	return resetResult{Group: a.group, Peer: at, Peers: names(conf), conf: conf}, nil
}
