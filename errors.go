package graft

import (
	"errors"
	"fmt"
	"strings"
)

// Code says what kind of failure happened. Codes travel on the wire, so a
// number once given is never reused: those below 20000 are braft's and Linux's.
// A Code is itself an error, so compare with
//
//	errors.Is(err, graft.ErrNotLeader)
//
// After a proposal or a change, the code tells three outcomes apart. With
// ErrUnknownOutcome it may have happened, or may yet happen. With any other code
// it has not happened and never will. Without an error it has happened.
type Code int32

// The codes of graft's errors.
const (
	ErrNotLeader Code = 1   // EPERM: this node does not lead; Error.Peer is the leader, if known
	ErrNotFound  Code = 2   // ENOENT: no such node, group or entry
	ErrIO        Code = 5   // EIO: the node's storage has failed
	ErrBusy      Code = 16  // EBUSY: something that excludes this is going on; retry later
	ErrInvalid   Code = 22  // EINVAL: an argument, option or request makes no sense
	ErrTimeout   Code = 110 // ETIMEDOUT: it did not happen in time
	ErrCanceled  Code = 125 // ECANCELED: it was called off by the user

	ErrUnreachable Code = 113 // EHOSTUNREACH: a peer cannot be reached

	ErrQuorumLost     Code = 10001 // ERAFTTIMEDOUT: contact to the leader, or to a majority, was lost
	ErrStateMachine   Code = 10002 // ESTATEMACHINE: the state machine failed
	ErrCatchup        Code = 10003 // ECATCHUP: a new peer did not catch up
	ErrLeaderRemoved  Code = 10004 // ELEADERREMOVED: the leader is not in the new configuration
	ErrReset          Code = 10005 // ESETPEER: the configuration was overridden by ResetPeers
	ErrShutdown       Code = 10006 // ENODESHUTDOWN: the node is shut down or shutting down
	ErrHigherTerm     Code = 10007 // EHIGHERTERMREQUEST: a peer has a higher term
	ErrNodeFailed     Code = 10009 // EBADNODE: the node is in its error state; Error.Err is the cause
	ErrNewLeader      Code = 10011 // ENEWLEADER: another node leads now
	ErrLeaderConflict Code = 10012 // ELEADERCONFLICT: two leaders claim one term
	ErrTransferring   Code = 10013 // ETRANSFERLEADERSHIP: leadership is being handed over
	ErrCompacted      Code = 10014 // ELOGDELETED: the entry is no longer in the log
	ErrNoMoreEntries  Code = 10015 // ENOMOREUSERLOG: no user entry follows; braft's number, not returned by graft yet
	ErrReadonly       Code = 10016 // EREADONLY: the node or a majority takes no proposals; braft's number, not returned by graft yet

	ErrUnknownOutcome Code = 20001 // it may have happened, or may yet happen
	ErrOverloaded     Code = 20002 // too much is pending; retry later
	ErrTooLarge       Code = 20003 // the entry is larger than MaxEntrySize
	ErrNoSpace        Code = 20004 // the disk is full; service resumes when space returns
	ErrNotSupported   Code = 20005 // a peer or this node cannot do that
	ErrCorrupt        Code = 20006 // stored data is damaged; Error.Err names file and offset
	ErrIdentity       Code = 20007 // the directory belongs to another node, or is in use
	ErrGroupMismatch  Code = 20008 // a peer holds another group's data under the same name
	ErrTermMismatch   Code = 20009 // the term is not Task.ExpectedTerm
	ErrConfMismatch   Code = 20010 // the configuration is not ChangeOptions.Expected
)

// codeText has one phrase per code.
func codeText(c Code) string {
	switch c {
	case ErrNotLeader:
		return "not leader"
	case ErrNotFound:
		return "not found"
	case ErrIO:
		return "storage failed"
	case ErrBusy:
		return "busy"
	case ErrInvalid:
		return "invalid"
	case ErrTimeout:
		return "timed out"
	case ErrCanceled:
		return "canceled"
	case ErrUnreachable:
		return "unreachable"
	case ErrQuorumLost:
		return "lost contact to a majority or to the leader"
	case ErrStateMachine:
		return "state machine failed"
	case ErrCatchup:
		return "peer failed to catch up"
	case ErrLeaderRemoved:
		return "leader is not in the new configuration"
	case ErrReset:
		return "configuration was reset"
	case ErrShutdown:
		return "node is shut down"
	case ErrHigherTerm:
		return "a peer has a higher term"
	case ErrNodeFailed:
		return "node has failed"
	case ErrNewLeader:
		return "another node leads"
	case ErrLeaderConflict:
		return "two leaders in one term"
	case ErrTransferring:
		return "leadership is being transferred"
	case ErrCompacted:
		return "entry was compacted away"
	case ErrNoMoreEntries:
		return "no more user entries"
	case ErrReadonly:
		return "readonly"
	case ErrUnknownOutcome:
		return "outcome unknown: it may yet be committed"
	case ErrOverloaded:
		return "overloaded: too much is pending"
	case ErrTooLarge:
		return "entry is too large"
	case ErrNoSpace:
		return "no space left on the disk"
	case ErrNotSupported:
		return "not supported"
	case ErrCorrupt:
		return "stored data is damaged"
	case ErrIdentity:
		return "directory belongs to another node or is in use"
	case ErrGroupMismatch:
		return "peer holds another group's data"
	case ErrTermMismatch:
		return "term is not the expected one"
	case ErrConfMismatch:
		return "configuration is not the expected one"
	}
	return fmt.Sprintf("raft error %d", int32(c))
}

// Error returns the code's phrase.
func (c Code) Error() string { return codeText(c) }

// Temporary reports whether the same call may succeed later, or at another node.
func (c Code) Temporary() bool {
	switch c {
	case ErrNotLeader, ErrBusy, ErrTimeout, ErrUnreachable, ErrQuorumLost, ErrNewLeader, ErrTransferring,
		ErrReadonly, ErrOverloaded, ErrNoSpace, ErrHigherTerm, ErrTermMismatch:
		return true
	}
	return false
}

// Error is every error that nodes and hosts make; what parses or validates a value makes plain ones. Fields that are zero are unknown
// or do not apply. Read it with errors.As, and compare codes with errors.Is.
type Error struct {
	Code  Code
	Op    string // what was attempted: "apply", "read index", "start node"
	Group string // the group concerned
	Peer  PeerID // the peer concerned; for ErrNotLeader the leader to ask
	Index int64  // the log index concerned
	Lag   int64  // for ErrCatchup, how many entries the peer was short of
	Err   error  // the cause, if it came from below
}

// Error returns one line: what was attempted, what went wrong, where, and why.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("graft: ")
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	b.WriteString(e.Code.Error())
	var where []string
	if e.Group != "" {
		where = append(where, "group "+e.Group)
	}
	switch {
	case e.Code == ErrNotLeader && e.Peer.IsZero():
		where = append(where, "no leader is known")
	case e.Code == ErrNotLeader:
		where = append(where, "ask "+e.Peer.String())
	case !e.Peer.IsZero():
		where = append(where, "peer "+e.Peer.String())
	}
	if e.Lag != 0 {
		where = append(where, fmt.Sprintf("%d entries behind", e.Lag))
	}
	if e.Index != 0 {
		where = append(where, fmt.Sprintf("index %d", e.Index))
	}
	if len(where) > 0 {
		b.WriteString(" (" + strings.Join(where, ", ") + ")")
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is e's code.
func (e *Error) Is(target error) bool { return target == error(e.Code) }

// ErrorCode returns the outermost Code in err's chain, or 0 if there is none.
func ErrorCode(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	var c Code
	if errors.As(err, &c) {
		return c
	}
	return 0
}
