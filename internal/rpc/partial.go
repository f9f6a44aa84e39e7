package rpc

import "sync"

// partials bounds the memory of large frames on accepted connections that have not arrived whole. Each may be as large as
// any, and take its time, so that a few strangers could else have all memory there is.
//
// Ownership: any goroutine may call hold. mu is a leaf lock, and guards what is below it and partial.
type partials struct {
	max int

	mu      sync.Mutex
	held    int
	begun   uint64 // frames so far
	holders map[*partial]struct{}
}

// partial is the part of one connection.
type partial struct {
	proven bool   // a whole frame has come; the reader's
	end    func() // ends the connection

	bytes int
	known bool   // by now, of a connection that holds something, what proven says
	began uint64 // which frame it is
}

// hold takes note of how much a connection's frame holds, 0 if there is none. What is too much ends connections: those first
// that have never sent a whole frame, and of these who takes longest. It returns false if this one is among them.
func (a *partials) hold(p *partial, bytes int) bool {
	var ended []*partial
	a.mu.Lock()
	switch {
	case bytes == 0:
		a.drop(p)
	case p.bytes == 0:
		if a.holders == nil {
			a.holders = make(map[*partial]struct{})
		}
		a.begun++
		p.began, p.known = a.begun, p.proven
		a.holders[p] = struct{}{}
	}
	a.held += bytes - p.bytes
	p.bytes = bytes
	for a.held > a.max && len(a.holders) > 1 { // one is always allowed
		worst := a.worst()
		a.drop(worst)
		ended = append(ended, worst)
	}
	a.mu.Unlock()
	spared := true
	for _, e := range ended {
		spared = spared && e != p
		e.end()
	}
	return spared
}

// worst returns whose connection is to end next. mu is held.
func (a *partials) worst() (worst *partial) {
	for p := range a.holders {
		if worst == nil || !p.known && worst.known || p.known == worst.known && p.began < worst.began {
			worst = p
		}
	}
	return worst
}

// drop forgets a part. mu is held.
func (a *partials) drop(p *partial) {
	a.held -= p.bytes
	p.bytes = 0
	delete(a.holders, p)
}
