package main

import (
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft"
)

// parsePeer reads an argument that names a peer.
func parsePeer(cmd *cobra.Command, s string) (graft.PeerID, error) {
	p, err := graft.ParsePeerID(s)
	if err != nil {
		return p, usage(cmd.CommandPath(), "%v", err)
	}
	return p, nil
}

// parsePeers reads arguments that name all peers of a group, with commas or spaces between them.
func parsePeers(cmd *cobra.Command, args []string) (graft.Configuration, error) {
	conf, err := graft.ParseConfiguration(strings.Join(args, ","))
	switch {
	case err != nil:
		return conf, usage(cmd.CommandPath(), "%v", err)
	case len(conf.Voters()) == 0:
		return conf, usage(cmd.CommandPath(), "%q has no voter, but a group needs one", strings.Join(args, ","))
	}
	return conf, nil
}

// text is how requests name a peer.
func text(p graft.PeerID) *string { return proto.String(p.String()) }

// names is how requests name peers.
func names(c graft.Configuration) []string { return namesOf(c.Peers()) }

func namesOf(peers []graft.PeerID) []string {
	s := make([]string, len(peers))
	for i, p := range peers {
		s[i] = p.String()
	}
	return s
}

// with is the configuration with a peer in the role that it is given with.
func with(c graft.Configuration, p graft.PeerID) (graft.Configuration, error) {
	return graft.NewConfiguration(append(without(c, p), p)...)
}

// without is what the configuration has besides a peer.
func without(c graft.Configuration, p graft.PeerID) (rest []graft.PeerID) {
	for _, q := range c.Peers() {
		if !q.Same(p) {
			rest = append(rest, q)
		}
	}
	return rest
}
