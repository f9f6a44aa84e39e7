package graft

import (
	"crypto/tls"

	"github.com/graft-raft/graft/internal/rpc"
)

// Transport carries requests and answers between processes. The default speaks
// brpc's baidu_std over TCP, as braft does. Other implementations exist for this
// module's own tests.
type Transport = rpc.Transport

// NewTCPTransport returns the default transport. A nil config means plain TCP. See HostOptions.TLS for what it must say.
func NewTCPTransport(config *tls.Config) Transport {
	return rpc.NewTCP(rpc.TCPOptions{TLS: config})
}

// The services and methods of the protocol.
const (
	raftService  = "braft.RaftService"
	cliService   = "braft.CliService"
	nodeService  = "graft.NodeService"
	adminService = "graft.AdminService"

	fileServiceName = "braft.FileService"

	methodPreVote       = "pre_vote"
	methodRequestVote   = "request_vote"
	methodAppendEntries = "append_entries"
	methodTimeoutNow    = "timeout_now"
	methodInstall       = "install_snapshot"
	methodGetFile       = "get_file"
	methodReadIndex     = "ReadIndex"

	methodAddPeer        = "add_peer"
	methodRemovePeer     = "remove_peer"
	methodChangePeers    = "change_peers"
	methodResetPeer      = "reset_peer"
	methodSnapshot       = "snapshot"
	methodGetLeader      = "get_leader"
	methodTransferLeader = "transfer_leader"

	methodStatus       = "Status"
	methodChange       = "Change"
	methodCancelChange = "CancelChange"
)

// featurePipeline says that requests of one connection are handled in order, so that they may
// be sent ahead of the answers. Every graft node has it.
const featurePipeline = 1

// featureVoteless, in an answer to append_entries, says that the node may have lost its disk and has not been brought
// up to date yet: it does not vote freely, so it should not be given a vote that the group may need.
const featureVoteless = 2

// brpc's codes for a request that cannot be dispatched.
const (
	codeNoMethod   = 1002
	codeBadRequest = 1003
)
