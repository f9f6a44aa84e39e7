package graft

import (
	"math"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/election"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

const (
	// maxElectionDelay bounds the random part of an election timeout (braft:
	// raft_max_election_delay_ms).
	maxElectionDelay = time.Second
	// deadLeaderDelay is the random pause before a follower that knows its leader's
	// process dead campaigns.
	deadLeaderDelay = 20 * time.Millisecond
	// hurries is how often it tries again soon, should the others not know yet, or the
	// vote be split.
	hurries = 6
	// leaveBegun is how many election timeouts a node without entries leaves those alone who have some.
	leaveBegun = 20
	// maxTerm leaves room for terms to grow: a larger one comes from a damaged message.
	maxTerm = math.MaxInt64 - 1<<20
)

// resetElection draws the next election timeout, counted from now.
func (n *Node) resetElection() {
	n.electionWait = election.Timeout(n.o.ElectionTimeout, maxElectionDelay, n.rng.Float64())
	n.electionAt = time.Time{}
	if n.mayCampaign() {
		n.electionAt = n.now.Add(n.electionWait)
	}
}

// mayCampaign reports whether the node may try to become leader: as a voter of the
// configuration in force, or of any that came after the one known to be committed, and that one, as long as what follows may be
// undone. Who has the longest log may be a voter of an older one only. It is a leave to campaign
// only: votes are counted under the latest one. While a snapshot is installed that one may be long out of date (braft:
// NodeImpl::pre_vote).
func (n *Node) mayCampaign() bool {
	if n.told || n.mute() || n.snap.incoming.Load() != 0 {
		return false
	}
	return n.conf.hasVoter(n.peer) || n.lm.votes(n.peer, n.box.index())
}

// mute reports whether the node, having begun with nothing on its disk, can say nothing about
// who may lead. As long as its configuration is the initial one it may be the group's first start, where
// all voters together know all there is. A peer that is being added, or one whose log shows that the group has
// moved on, knows a part of its peers at most.
func (n *Node) mute() bool {
	return n.waiting && (n.o.InitialConf.Empty() || n.conf.joint() || !n.conf.conf.Equal(n.o.InitialConf))
}

// electionTimeout is called when no leader was heard, or no election won, for long enough.
func (n *Node) electionTimeout() {
	reason := &Error{Code: ErrQuorumLost, Group: n.group, Peer: n.leader}
	if n.role == RoleCandidate {
		n.stepDown(n.term, reason)
	}
	if n.unheardLongEnough() {
		n.unheard = nil
		n.elect(nil)
		return
	}
	dead := n.leaderDead
	n.unfollow(reason)
	n.leaderDead = dead // the evidence is about the leader of this term; it lets others' pre-votes pass
	n.preVote()
}

// preVote asks whether an election could be won, without disturbing anybody.
func (n *Node) preVote() {
	n.resetElection()
	if n.electionAt.IsZero() || n.role != RoleFollower {
		return
	}
	if again := n.begunAt.Add(leaveBegun * n.o.ElectionTimeout); n.blank() && !n.begunAt.IsZero() && n.now.Before(again) {
		n.electionAt, n.hurries = again, 0
		return
	}
	n.hurry()
	n.voteRound++
	n.votes = newBallot(n.conf)
	if n.grantSelf() {
		n.elect(nil)
		return
	}
	n.unheard = nil
	if n.blank() {
		n.unheard, n.unheardRound = n.othersVoting(), n.voteRound
	}
	n.askForVotes(methodPreVote, n.term+1, nil)
}

// blank reports whether the node holds nothing and cannot tell whether it ever did. Those whom its initial
// configuration names may be in the same state because their group has replaced them: so it asks them all,
// and any that holds something, or hears a leader, keeps it from founding a second group.
func (n *Node) blank() bool { return n.waiting && n.lm.lastIndex() == 0 }

// othersVoting is the set of the other voters.
func (n *Node) othersVoting() map[PeerID]bool {
	others := make(map[PeerID]bool)
	for _, p := range n.conf.peers() {
		if !p.Same(n.peer) && n.conf.hasVoter(p) {
			others[p.ID()] = true
		}
	}
	return others
}

// unheardLongEnough reports whether a blank node has got the votes it needs, and has waited for those who
// do not answer.
func (n *Node) unheardLongEnough() bool {
	return n.role == RoleFollower && len(n.unheard) > 0 && n.unheardRound == n.voteRound && n.votes.won() &&
		n.blank() && n.mayCampaign() && n.now.Sub(n.startedAt) >= n.o.ElectionTimeout
}

// hurry puts the next try soon after this one, a few times after the leader's process died.
func (n *Node) hurry() {
	if n.hurries > 0 && !n.electionAt.IsZero() {
		n.hurries--
		n.electionAt = n.now.Add(deadLeaderDelay + n.jitter(3*deadLeaderDelay))
	}
}

// grantSelf counts the node's own vote.
func (n *Node) grantSelf() (won bool) {
	term, index := n.lm.tail()
	if n.voter(n.peer).Weak(election.Request{Term: n.term, Last: election.Position{Term: term, Index: index}}) {
		return n.votes.grantWeak(n.peer)
	}
	return n.votes.grant(n.peer)
}

func (n *Node) jitter(most time.Duration) time.Duration {
	return 1 + time.Duration(n.rng.Int64N(int64(most)))
}

// elect begins an election in a term of its own. disrupted is the leader that asked for it.
func (n *Node) elect(disrupted *raftpb.TermLeader) {
	n.unfollow(&Error{Code: ErrQuorumLost, Group: n.group, Peer: n.leader})
	n.leaderDead = false
	n.role, n.term, n.vote = RoleCandidate, n.term+1, n.peer
	n.resetElection()
	n.hurry()
	n.voteRound++
	n.votes = newBallot(n.conf)
	n.log.Info("campaign", zap.Int64("term", n.term))
	n.save()
	round := n.voteRound
	n.afterSave(func() { // the term and the vote for itself come first
		if n.role != RoleCandidate || n.voteRound != round {
			return
		}
		if n.grantSelf() {
			n.becomeLeader()
			return
		}
		n.askForVotes(methodRequestVote, n.term, disrupted)
	})
}

// askForVotes sends pre_vote or request_vote to all other voters.
func (n *Node) askForVotes(method string, term int64, disrupted *raftpb.TermLeader) {
	lastTerm, lastIndex := n.lm.tail()
	round := n.voteRound
	for _, peer := range n.conf.peers() {
		if peer.Same(n.peer) || !n.conf.hasVoter(peer) {
			continue
		}
		m := &raftpb.RequestVoteRequest{
			GroupId: &n.group, ServerId: &n.name, PeerId: proto.String(peer.String()),
			Term: &term, LastLogTerm: &lastTerm, LastLogIndex: &lastIndex, DisruptedLeader: disrupted,
		}
		if n.groupID != 0 {
			m.GraftGroupId = &n.groupID
		}
		b, err := proto.Marshal(m)
		if err != nil {
			n.fail(&Error{Code: ErrInvalid, Op: "encode vote request", Group: n.group, Err: err})
			return
		}
		n.host.call(peer, rpc.Call{
			Service: raftService, Method: method, Message: [][]byte{b}, Timeout: n.o.ElectionTimeout,
			Done: func(r rpc.Reply) {
				if resp := new(raftpb.RequestVoteResponse); r.Err == nil && r.Code == 0 && proto.Unmarshal(r.Message, resp) == nil {
					n.post(func() { n.onVoteAnswer(round, peer, resp) })
				}
			},
		})
	}
}

// onVoteAnswer counts an answer to this round's requests; those to an earlier one are void.
func (n *Node) onVoteAnswer(round uint64, peer PeerID, m *raftpb.RequestVoteResponse) {
	if !n.active() || round != n.voteRound || n.role == RoleLeader {
		return
	}
	if n.otherGroup(m.GetGraftGroupId(), peer) {
		return
	}
	if m.GetGraftHasLog() {
		n.begunAt = n.now
	}
	if m.GetTerm() > n.term && validTerm(m.GetTerm()) {
		n.stepDown(m.GetTerm(), &Error{Code: ErrHigherTerm, Group: n.group, Peer: peer})
		return
	}
	if !m.GetGranted() {
		n.heedRemoval(peer, m)
		if n.role == RoleFollower && n.waiting {
			// Somebody has a log, or hears a leader: a node that may have forgotten
			// what it acknowledged does not run against that.
			n.voteRound++
			n.unheard = nil
		}
		return
	}
	delete(n.unheard, peer.ID())
	grant := n.votes.grant
	if m.GetGraftWaiting() {
		grant = n.votes.grantWeak
	}
	if !grant(peer) {
		return
	}
	if n.role == RoleFollower {
		if len(n.unheard) == 0 {
			n.elect(nil)
		}
		return
	}
	n.becomeLeader()
}

func validTerm(term int64) bool { return term >= 0 && term < maxTerm }

// otherGroup reports, loudly, that a peer holds the data of another group under this name.
func (n *Node) otherGroup(id uint64, peer PeerID) bool {
	if id == 0 || n.groupID == 0 || id == n.groupID {
		return false
	}
	n.log.Error("peer holds another group's data under the same name; nothing is exchanged with it",
		zap.Stringer("with", peer), zap.Uint64("its_group_id", id), zap.Uint64("group_id", n.groupID))
	return true
}

// voter is what the node knows when the candidate asks.
func (n *Node) voter(candidate PeerID) election.Voter {
	term, index := n.lm.tail()
	return election.Voter{
		Term: n.term, Voted: !n.vote.IsZero(), For: !n.vote.IsZero() && n.vote.Same(candidate),
		Last: election.Position{Term: term, Index: index}, Waiting: n.waiting, Mute: n.mute(),
		HearsLeader: n.hearsLeader() || n.expectsLeader(candidate),
	}
}

// expectsLeader reports whether somebody else got this node's vote a moment ago, and should have
// the time to say that it leads before it is deposed.
func (n *Node) expectsLeader(candidate PeerID) bool {
	return !n.vote.IsZero() && !n.vote.Same(candidate) && n.now.Sub(n.votedAt) < n.o.ElectionTimeout/20
}

// hearsLeader reports whether a live leader was heard within the minimum election timeout.
func (n *Node) hearsLeader() bool {
	if n.role == RoleLeader {
		return n.quorumAnswers()
	}
	return !n.leader.IsZero() && !n.leaderDead && n.now.Sub(n.lastContact) < n.o.ElectionTimeout
}

// onVoteRequest answers pre_vote and request_vote.
func (n *Node) onVoteRequest(req *rpc.Request, m *raftpb.RequestVoteRequest, pre bool) {
	candidate, err := ParsePeerID(m.GetServerId())
	switch {
	case !n.active():
		req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String())
		return
	case err != nil || !validTerm(m.GetTerm()):
		req.Fail(int32(ErrInvalid), "malformed vote request")
		return
	case n.otherGroup(m.GetGraftGroupId(), candidate):
		req.Fail(int32(ErrGroupMismatch), "this node holds another group's data under the same name")
		return
	}
	r := election.Request{
		Term: m.GetTerm(),
		Last: election.Position{Term: m.GetLastLogTerm(), Index: m.GetLastLogIndex()},
	}
	previous, led, granted := n.term, n.role == RoleLeader, false
	weak := n.voter(candidate).Weak(r)
	if weak && m.GraftGroupId == nil { // it would take the vote for a full one
		r.Last = election.Position{Term: -1}
	}
	if pre {
		granted = n.voter(candidate).PreVote(r)
	} else {
		if r.Term > n.term {
			n.stepDown(r.Term, &Error{Code: ErrHigherTerm, Group: n.group, Peer: candidate})
		}
		granted = n.voter(candidate).Vote(r)
		led = led && n.role != RoleLeader
		if granted && n.vote.IsZero() {
			n.vote, n.votedAt = candidate.ID(), n.now
			n.save()
			n.resetElection()
		}
	}
	term, lease, features := n.term, false, uint64(featurePipeline)
	resp := &raftpb.RequestVoteResponse{
		Term: &term, Granted: &granted, Disrupted: &led, PreviousTerm: &previous, RejectedByLease: &lease,
		GraftFeatures: &features,
	}
	if n.groupID != 0 {
		resp.GraftGroupId = proto.Uint64(n.groupID)
	}
	if weak && granted {
		resp.GraftWaiting = &weak
	}
	if pre && !granted && m.GraftGroupId != nil {
		n.tellRemoved(candidate, resp)
		resp.GraftHasLog = proto.Bool(n.lm.lastIndex() > 0)
	}
	n.afterSaveAnswer(req, func() { n.reply(req, resp) })
}

// reply sends an answer that is not worth encoding by hand.
func (n *Node) reply(req *rpc.Request, m proto.Message) {
	b, err := proto.Marshal(m)
	if err != nil {
		req.Fail(int32(ErrIO), err.Error())
		return
	}
	req.Reply(b)
}

// onTimeoutNow starts an election at once, on the leader's request.
func (n *Node) onTimeoutNow(req *rpc.Request, m *raftpb.TimeoutNowRequest) {
	leader, err := ParsePeerID(m.GetServerId())
	switch {
	case !n.active():
		req.Fail(int32(ErrInvalid), "node is not active: "+n.role.String())
		return
	case err != nil || !validTerm(m.GetTerm()):
		req.Fail(int32(ErrInvalid), "malformed timeout_now request")
		return
	case n.otherGroup(m.GetGraftGroupId(), leader):
		req.Fail(int32(ErrGroupMismatch), "this node holds another group's data under the same name")
		return
	}
	if m.GetTerm() > n.term {
		n.stepDown(m.GetTerm(), &Error{Code: ErrHigherTerm, Group: n.group, Peer: leader})
	}
	ok := m.GetTerm() == n.term && n.role == RoleFollower && n.mayCampaign()
	term := n.term
	if ok {
		var disrupted *raftpb.TermLeader
		if m.GetOldLeaderSteppedDown() {
			disrupted = &raftpb.TermLeader{PeerId: proto.String(leader.String()), Term: proto.Int64(term)}
		}
		n.elect(disrupted)
		term++
	}
	n.afterSaveAnswer(req, func() { n.reply(req, &raftpb.TimeoutNowResponse{Term: &term, Success: &ok}) })
}

// stepDown makes the node a follower without a leader, in the given term if that is higher.
func (n *Node) stepDown(term int64, reason error) {
	if n.role == RoleLeader {
		n.stopLeading(reason)
	}
	n.unfollow(reason)
	if n.role < RoleFailed {
		n.role = RoleFollower
	}
	n.voteRound++
	n.unheard = nil
	n.dirty = true
	if term > n.term {
		n.term, n.vote = term, PeerID{}
		n.save()
	}
	n.resetElection()
}

// follow takes note of the leader of this term.
func (n *Node) follow(leader PeerID, wire []byte) {
	n.leader, n.leaderWire = leader, append([]byte(nil), wire...)
	n.matched, n.early, n.told, n.gone = 0, 0, false, false
	n.publish() // OnStartFollowing is to see it
	n.host.watch(&n.watched, leader.Address)
	c := LeaderChange{Leader: leader, Term: n.term, Reason: &Error{Code: ErrNewLeader, Group: n.group, Peer: leader}}
	n.fsm.post(func() { n.fsm.guard("OnStartFollowing", func() { n.fsm.fsm.OnStartFollowing(c) }) })
}

// unfollow forgets the leader.
func (n *Node) unfollow(reason error) {
	if !n.leader.IsZero() && !n.leader.Same(n.peer) {
		c := LeaderChange{Leader: n.leader, Term: n.term, Reason: reason}
		n.fsm.post(func() { n.fsm.guard("OnStopFollowing", func() { n.fsm.fsm.OnStopFollowing(c) }) })
		n.host.watch(&n.watched, "")
		// Reads that wait for entries which that leader had promised: they may never come here.
		n.fsm.failWaiters(n.box.index(), &Error{Code: ErrNotLeader, Op: "read index", Group: n.group, Err: reason})
	}
	n.leader, n.leaderWire, n.leaderDead, n.matched, n.early = PeerID{}, nil, false, 0, 0
	n.dirty = true
}

// heard notes a message of this term's leader: it is alive.
func (n *Node) heard() {
	n.lastContact = n.now
	n.leaderDead, n.hurries = false, 0
	// Who may not campaign is to notice as well that there is no leader any more.
	n.electionAt = n.now.Add(n.electionWait)
}

// onPeerDown is told that the process at address is evidently gone. It takes the place of the
// silence that a follower waits for, and of nothing else.
func (n *Node) onPeerDown(address string) {
	if n.role != RoleFollower || n.leader.Address != address || n.leader.Same(n.peer) {
		return
	}
	n.log.Info("leader's process is gone", zap.Stringer("leader", n.leader))
	n.leaderDead, n.hurries = true, hurries
	if n.mayCampaign() {
		n.electionAt = n.now.Add(n.jitter(deadLeaderDelay))
	}
}
