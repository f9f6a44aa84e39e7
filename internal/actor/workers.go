package actor

import (
	"sync"
	"time"
)

// workers are the goroutines that run actors. One that has become idle is kept for a moment
// and used again: its stack has grown to the size it needs, which a new one's would
// have to do over and over (measured: a quarter of the CPU time under load).
//
// Invariants: an idle worker waits on its own channel and is in idle once; after a
// quiet lingerTime there is none, and no timer.
//
// Ownership: safe for concurrent use. mu is a leaf lock.
type workers struct {
	mu    sync.Mutex // guards the fields below
	idle  []*worker  // the one used last is at the end
	fresh int        // how many at the front of idle have been there since the last sweep
	timer *time.Timer
	armed bool
	ended bool // nobody lingers any more
}

type worker struct{ next chan runner }

// lingerTime is how long an idle worker is kept at least.
const lingerTime = 50 * time.Millisecond

// run has r run by an idle worker, or by a new one.
func (w *workers) run(r runner) {
	w.mu.Lock()
	n := len(w.idle)
	if n == 0 {
		w.mu.Unlock()
		k := &worker{next: make(chan runner, 1)}
		go w.work(k, r)
		return
	}
	k := w.idle[n-1]
	w.idle[n-1] = nil
	w.idle = w.idle[:n-1]
	w.fresh = min(w.fresh, n-1)
	w.mu.Unlock()
	k.next <- r
}

// work runs actors until there has been none for a while. The goroutine ends by itself;
// whoever closes an actor waits for the actor's Done.
func (w *workers) work(k *worker, r runner) {
	for ok := true; ok; r, ok = <-k.next {
		for r.runOnce() {
		}
		if !w.rest(k) {
			return
		}
	}
}

// end lets the idle workers go now, and later ones as soon as they become idle.
func (w *workers) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	for _, k := range w.idle {
		close(k.next)
	}
	w.idle, w.fresh, w.armed = nil, 0, false
	if w.timer != nil {
		w.timer.Stop()
	}
}

// rest puts a worker among the idle ones, unless it is to end.
func (w *workers) rest(k *worker) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return false
	}
	w.idle = append(w.idle, k)
	if w.armed {
		return true
	}
	w.armed = true
	if w.timer == nil {
		w.timer = time.AfterFunc(lingerTime, w.sweep)
	} else {
		w.timer.Reset(lingerTime)
	}
	return true
}

// sweep ends the workers that were idle all the time since the last sweep: those at the
// front that nobody took.
func (w *workers) sweep() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	for _, k := range w.idle[:w.fresh] {
		close(k.next)
	}
	n := copy(w.idle, w.idle[w.fresh:])
	clear(w.idle[n:])
	w.idle = w.idle[:n]
	w.fresh = n
	w.armed = n > 0
	if w.armed {
		w.timer.Reset(lingerTime)
	}
}
