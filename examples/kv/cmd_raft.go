package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/graft-raft/graft"
)

// raftCommands change the group's configuration. The leader carries them out; another replica answers MOVED.
var raftCommands = []*command{
	{name: "raft", arity: -2, group: "cluster", summary: "STATUS, ADD, LEARNER, REMOVE, CHANGE, CANCEL, TRANSFER: the group's configuration.", later: doRaft},
}

const raftUsage = "Try RAFT STATUS, ADD peer, LEARNER peer, REMOVE peer, CHANGE peer,peer,… [EXPECTED peer,peer,…] [TIMEOUT milliseconds], CANCEL or TRANSFER [peer]."

// doRaft is RAFT with its subcommands. A change is answered when it is over, however long that takes; RAFT STATUS on
// another connection shows how far it has come.
func doRaft(s *session, args [][]byte, answer func(*reply)) {
	r, done := s.r, func(err error) { answer(s.r.changeReply(err)) }
	sub := strings.ToUpper(string(args[1]))
	switch {
	case sub == "STATUS" && len(args) == 2:
		answer(textReply(infoRaft(r)))
	case sub == "CHANGE" && len(args) >= 3:
		conf, o, err := parseChange(args[2:])
		if err != nil {
			answer(errorReply("ERR " + err.Error()))
			return
		}
		r.node.Change(conf, o, done)
	case sub == "CANCEL" && len(args) == 2:
		done(r.node.CancelChange())
	case sub == "TRANSFER" && len(args) == 2:
		done(r.node.TransferLeadership(graft.PeerID{}))
	case (sub == "ADD" || sub == "LEARNER" || sub == "REMOVE" || sub == "TRANSFER") && len(args) == 3:
		peer, err := graft.ParsePeerID(string(args[2]))
		if err != nil {
			answer(errorReply("ERR " + err.Error()))
			return
		}
		switch sub {
		case "ADD":
			r.node.AddPeer(peer, done)
		case "LEARNER":
			r.node.AddLearner(peer, done)
		case "REMOVE":
			r.node.RemovePeer(peer, done)
		case "TRANSFER":
			done(r.node.TransferLeadership(peer))
		}
	default:
		answer(errorReply("ERR unknown subcommand or wrong number of arguments for '" + string(args[1]) + "'. " + raftUsage))
	}
}

// parseChange reads what follows RAFT CHANGE.
func parseChange(args [][]byte) (conf graft.Configuration, o graft.ChangeOptions, err error) {
	if conf, err = graft.ParseConfiguration(string(args[0])); err != nil {
		return conf, o, err
	}
	for args = args[1:]; len(args) >= 2; args = args[2:] {
		switch option := strings.ToUpper(string(args[0])); option {
		case "EXPECTED":
			if o.Expected, err = graft.ParseConfiguration(string(args[1])); err != nil {
				return conf, o, err
			}
		case "TIMEOUT":
			n, ok := parseInt(args[1])
			if !ok || n < 1 {
				return conf, o, errors.New("TIMEOUT must be a number of milliseconds")
			}
			o.Deadline = time.Duration(n) * time.Millisecond
		default:
			return conf, o, fmt.Errorf("unknown option '%s'. %s", option, raftUsage)
		}
	}
	if len(args) > 0 {
		return conf, o, fmt.Errorf("option '%s' lacks its value", args[0])
	}
	return conf, o, nil
}

// changeRefusals are the errors after which it makes no sense to say the same again, or not before something else is done.
var changeRefusals = []graft.Code{graft.ErrInvalid, graft.ErrNotSupported, graft.ErrNotFound, graft.ErrConfMismatch, graft.ErrGroupMismatch,
	graft.ErrCatchup, graft.ErrUnreachable, graft.ErrTimeout, graft.ErrCanceled}

// changeReply is the answer to a change of the configuration. As with writes its first word says what to do; what the
// library refuses for good, or because a new peer did not catch up, is an ERR.
func (r *replica) changeReply(err error) *reply {
	switch code := graft.ErrorCode(err); {
	case err == nil:
		return replyOK
	case code == graft.ErrUnknownOutcome:
		return errorReply("UNKNOWN the change may have been made, or may yet be: " + err.Error())
	case slices.Contains(changeRefusals, code):
		return errorReply("ERR nothing was changed: " + err.Error())
	}
	return r.refusal(err, 0)
}
