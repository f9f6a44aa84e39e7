package rpc

import "time"

// look is what was seen of a connection when calls had timed out.
type look struct {
	taken   bool
	waiting int // bytes that were still on their way to the peer
	progress
}

// mute ends a connection, with that pace, over which nothing comes any more, and reports whether it has. It can stay so for
// minutes, while TCP waits longer and longer to send again. Calls have timed out.
//
// Whoever takes in what waits for it is alive, although the answers are late: a large request may take its time over
// a slow way, and everything else has to wait behind it. What is small does not count. It always gets on as far as the
// next proxy.
func (p *peer) mute(now time.Duration, pace *pace) bool {
	at := pace.progress()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pace != pace || p.silent == 0 || p.stopped != nil {
		return false // it was replaced meanwhile, or has spoken
	}
	over, before := now-p.silent >= p.t.o.SilenceTimeout, p.seen
	if before.taken && !over {
		return false
	}
	p.seen = look{taken: true, waiting: p.out.queued + p.writing + at.kept, progress: at}
	if over {
		if !p.seen.alive(before) {
			p.stopHeld(errSilent)
			return true
		}
		p.silent = now
	}
	return false
}

// alive reports whether a peer has taken in some of what waited for it when it was looked at before.
func (l look) alive(before look) bool {
	if !before.taken { // then nobody knows yet
		return l.waiting >= stride
	}
	return before.waiting >= stride && (l.pushed-before.pushed >= stride || l.least-before.most >= stride)
}
