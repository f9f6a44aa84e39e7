package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"github.com/graft-raft/graft"
	"github.com/graft-raft/graft/internal/rpc"
)

// failure is an error as the operator gets to see it: what is wrong, and what to do.
type failure struct {
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Code    int32  `json:"code,omitempty"`    // the server's
	Outcome string `json:"outcome,omitempty"` // of a change, else empty
}

// What has become of a change that did not succeed.
const (
	outcomeNone    = "none"    // nothing has changed, and nothing will
	outcomeRunning = "running" // it goes on without us
	outcomeUnknown = "unknown" // it may have happened, or may yet happen
)

func (f *failure) Error() string { return f.Message }

// noted writes to w and remembers the first error, for who prints without looking.
type noted struct {
	w   io.Writer
	err error
}

func (n *noted) Write(b []byte) (int, error) {
	k, err := n.w.Write(b)
	if n.err == nil {
		n.err = err
	}
	return k, err
}

// unsaid is what becomes of a command whose result could not be written: who reads it must not take half of it, or
// nothing, for all.
func unsaid(err error) *failure {
	return &failure{Message: fmt.Sprintf("cannot write to standard output: %v", err),
		Hint: "What was asked for may be done; the status command shows how things are."}
}

func usage(path, format string, args ...any) *failure {
	return &failure{Message: fmt.Sprintf(format, args...), Hint: "See " + path + " --help."}
}

// remoteError is a server's refusal.
type remoteError struct {
	from string
	code int32
	text string
}

func (e *remoteError) Error() string { return e.from + ": " + e.text }

func (e *remoteError) is(code graft.Code) bool { return e.code == int32(code) }

// The codes of servers that graft has no name for.
const (
	codeAgain    = 11 // no leader is known
	codeAccess   = 13
	codeNoMethod = 1002
)

// remoteCode is the code with which a server refused, 0 if err is none.
func remoteCode(err error) int32 {
	var e *remoteError
	if errors.As(err, &e) {
		return e.code
	}
	return 0
}

// lostError says that a server did not answer.
type lostError struct {
	from string
	err  error
}

func (e *lostError) Error() string { return e.from + ": " + reason(e.err) }
func (e *lostError) Unwrap() error { return e.err }

// unsent reports that there was no connection, so that nothing can have arrived.
func (e *lostError) unsent() bool {
	var op *net.OpError
	return errors.As(e.err, &op) && op.Op == "dial"
}

// reason is the part of a transport's error that matters to an operator.
func reason(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, rpc.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	}
	text := err.Error()
	for _, e := range []error{rpc.ErrUnreachable, rpc.ErrBadReply} {
		text = strings.TrimPrefix(text, e.Error()+": ")
	}
	return text
}

// explain makes a failure of any error, with advice where there is some.
func (a *app) explain(err error) error {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	var remote *remoteError
	switch {
	case errors.As(err, &remote):
		return a.refusal(remote)
	case errors.Is(err, context.Canceled):
		return &failure{Message: "interrupted"}
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{Message: "not done in time", Hint: "Give it longer with --timeout."}
	}
	return &failure{Message: err.Error()}
}

// refusal is a server's refusal in words.
func (a *app) refusal(e *remoteError) *failure {
	if e.code == codeNoMethod {
		hint := ""
		if strings.HasSuffix(e.text, "/Change") {
			hint = "Without --expect and --deadline it can do it."
		}
		return &failure{Message: e.from + " is a server of braft, which cannot do that", Code: e.code, Hint: hint}
	}
	return &failure{Message: e.Error(), Code: e.code, Hint: a.advice(e.code)}
}

// advice says what to do about a server's refusal.
func (a *app) advice(code int32) string {
	switch graft.Code(code) {
	case graft.ErrNotLeader:
		return "Leadership is moving. Try again."
	case graft.ErrNotFound:
		return "Check --group, and that the server still has a replica of it."
	case codeAccess:
		return "The server lets no operator in over the network (HostOptions.DisableAdmin, braft's disable_cli)."
	case graft.ErrBusy:
		return "See how far it is: " + a.invocation("status") + "\nOr call the change off: " + a.invocation("cancel")
	case graft.ErrCatchup:
		return "Check that its process runs, can be reached from the leader at that address, has started the group without a configuration, " +
			"and takes entries faster than they are written."
	case graft.ErrUnreachable:
		return "Check that the peers run and can be reached from the leader: " + a.invocation("status")
	case graft.ErrConfMismatch:
		return "Somebody else has changed it. Look at it, and decide anew: " + a.invocation("peers")
	case graft.ErrTimeout:
		return "The new peers were not ready by --deadline. Give it longer, or see what holds them up: " + a.invocation("status")
	}
	return ""
}
