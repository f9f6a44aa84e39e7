package graft

import (
	"crypto/tls"

	"github.com/graft-raft/graft/internal/rpc"
)

// Transport carries requests and answers between processes. The default speaks
// brpc's baidu_std over TCP, as braft does. Other implementations exist for this
// module's own tests.
type Transport = rpc.Transport

// NewTCPTransport returns the default transport. A nil config means plain TCP.
func NewTCPTransport(config *tls.Config) Transport {
	return rpc.NewTCP(rpc.TCPOptions{TLS: config})
}

// The services and methods of the protocol.
const (
	raftService = "braft.RaftService"
	nodeService = "graft.NodeService"

	methodPreVote       = "pre_vote"
	methodRequestVote   = "request_vote"
	methodAppendEntries = "append_entries"
	methodTimeoutNow    = "timeout_now"
	methodInstall       = "install_snapshot"
	methodReadIndex     = "ReadIndex"
)

// featurePipeline says that requests of one connection are handled in order, so that they may
// be sent ahead of the answers. Every graft node has it.
const featurePipeline = 1

// brpc's codes for a request that cannot be dispatched.
const (
	codeNoMethod   = 1002
	codeBadRequest = 1003
)
