package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/graft-raft/graft/internal/baidustd"
)

// Reasons for which connections end, as Stats counts them.
const (
	ReasonClosed     = "closed by peer"
	ReasonReset      = "connection lost"
	ReasonMagic      = "not baidu_std"
	ReasonTooLarge   = "frame too large"
	ReasonMetaSize   = "meta size"
	ReasonMeta       = "malformed meta"
	ReasonDirection  = "request or answer in the wrong direction"
	ReasonTruncated  = "ended within a frame"
	ReasonStalled    = "frame stalled"
	ReasonNotReading = "peer does not read"
	ReasonSilent     = "peer is silent"
	ReasonHandshake  = "TLS handshake failed"
	ReasonLimit      = "too many connections"
	ReasonPartial    = "too much of large frames has not arrived"
	ReasonAccept     = "accept failed"
)

var (
	errDirection = errors.New("request on an outgoing connection, or answer on an accepted one")
	errSilent    = errors.New("no answer for too long")
	errHandshake = errors.New("TLS handshake failed")
	errLimit     = errors.New("too many connections")
	errPartial   = errors.New("too much memory is held by large frames that have not arrived whole")
	errAccept    = errors.New("accept failed")
	errWrite     = errors.New("write failed")
)

// reasons is in the order in which reasonOf looks.
var reasons = [...]struct {
	err    error
	reason string
}{
	{baidustd.ErrMagic, ReasonMagic}, {baidustd.ErrTooLarge, ReasonTooLarge},
	{baidustd.ErrMetaSize, ReasonMetaSize}, {baidustd.ErrMeta, ReasonMeta},
	{errDirection, ReasonDirection}, {errTruncated, ReasonTruncated}, {errStalled, ReasonStalled},
	{errSilent, ReasonSilent}, {errHandshake, ReasonHandshake}, {errLimit, ReasonLimit}, {errPartial, ReasonPartial},
	{errAccept, ReasonAccept}, {os.ErrDeadlineExceeded, ReasonNotReading}, {io.EOF, ReasonClosed},
}

func reasonOf(err error) string {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return r.reason
		}
	}
	return ReasonReset
}

// Stats counts what happened since the transport was made.
type Stats struct {
	Accepted, Dialed, DialFailed uint64            // connections
	Ended                        map[string]uint64 // connections by reason, those refused included
	LateReplies                  uint64            // nobody waited any more
	Timeouts                     uint64            // of calls
	Backlog                      uint64            // calls refused by a bound
	BadFrames                    uint64            // answered with an error: compressed, or a wrong attachment size
}

// stats is what Stats is made from, and the limit on what is logged.
//
// Ownership: any goroutine. mu is a leaf lock.
type stats struct {
	accepted, dialed, dialFailed, late, timeouts, backlog, bad atomic.Uint64

	mu    sync.Mutex
	ended map[string]*ending
}

// ending is one reason's count, and when it was logged last.
type ending struct {
	count, told uint64
	logged      time.Time
}

// logEvery is how often each reason may be logged.
const logEvery = time.Second

// end counts the end of a connection. It returns how many of the kind there were since
// the last that was logged if this one is to be logged, else 0.
func (s *stats) end(reason string, now time.Time) (unlogged uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.ended[reason]
	if e == nil {
		if s.ended == nil {
			s.ended = make(map[string]*ending)
		}
		e = new(ending)
		s.ended[reason] = e
	}
	e.count++
	if !e.logged.IsZero() && now.Sub(e.logged) < logEvery {
		return 0
	}
	unlogged, e.told, e.logged = e.count-e.told, e.count, now
	return unlogged
}

// Stats returns the counters.
func (t *TCP) Stats() Stats {
	s := &t.stats
	v := Stats{
		Accepted: s.accepted.Load(), Dialed: s.dialed.Load(), DialFailed: s.dialFailed.Load(),
		LateReplies: s.late.Load(), Timeouts: s.timeouts.Load(), Backlog: s.backlog.Load(),
		BadFrames: s.bad.Load(), Ended: make(map[string]uint64),
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for reason, e := range s.ended {
		v.Ended[reason] = e.count
	}
	return v
}

// ended counts a connection's end and logs it, if that is news. Ordinary ends, and those
// that Close makes, are not.
func (t *TCP) ended(kind, remote string, err error) {
	if errors.Is(err, ErrClosed) || t.ctx.Err() != nil && (errors.Is(err, net.ErrClosed) || errors.Is(err, context.Canceled)) {
		return
	}
	reason := reasonOf(err)
	n := t.stats.end(reason, time.Now())
	if n > 0 && reason != ReasonClosed {
		t.logf("rpc: %s %s: %v (%d such since the last report)", kind, remote, err, n)
	}
}
