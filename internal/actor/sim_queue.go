package actor

// event is something that a Sim is going to do: run an actor, wake one, or call a function.
//
// Invariants: it is in at most one queue, at pos-1; pos is 0 when it is in none.
type event struct {
	t    *task  // nil: f is called
	wake bool   // t is woken, not run
	f    func() // of a one-off call
	pos  int
}

// slot is an event's place in the queue. The key stands beside the pointer, so that the heap
// compares without following it.
type slot struct {
	at  int64  // nanoseconds since the Sim began
	seq uint64 // breaks ties in the order of arrival, never by address or map order
	e   *event
}

func (s *slot) before(o *slot) bool { return s.at < o.at || s.at == o.at && s.seq < o.seq }

// queue is a heap of events with four children per node, the earliest first.
type queue []slot

// set puts e at the given time, in place of where it was.
func (q *queue) set(e *event, at int64, seq uint64) {
	s := slot{at: at, seq: seq, e: e}
	if e.pos > 0 {
		i := e.pos - 1
		if s.before(&(*q)[i]) {
			q.up(i, s)
		} else {
			q.down(i, s)
		}
		return
	}
	*q = append(*q, s)
	q.up(len(*q)-1, s)
}

// remove takes e out, if it is in.
func (q *queue) remove(e *event) {
	if e.pos == 0 {
		return
	}
	i, n := e.pos-1, len(*q)-1
	last := (*q)[n]
	(*q)[n] = slot{}
	*q = (*q)[:n]
	e.pos = 0
	switch {
	case i == n:
	case i > 0 && last.before(&(*q)[(i-1)/4]):
		q.up(i, last)
	default:
		q.down(i, last)
	}
}

// up finds s a place at i or above.
func (q *queue) up(i int, s slot) {
	h := *q
	for i > 0 {
		parent := (i - 1) / 4
		if !s.before(&h[parent]) {
			break
		}
		h[i] = h[parent]
		h[i].e.pos = i + 1
		i = parent
	}
	h[i] = s
	s.e.pos = i + 1
}

// down finds s a place at i or below.
func (q *queue) down(i int, s slot) {
	h := *q
	for {
		first := 4*i + 1
		if first >= len(h) {
			break
		}
		least := first
		for c := first + 1; c < min(first+4, len(h)); c++ {
			if h[c].before(&h[least]) {
				least = c
			}
		}
		if !h[least].before(&s) {
			break
		}
		h[i] = h[least]
		h[i].e.pos = i + 1
		i = least
	}
	h[i] = s
	s.e.pos = i + 1
}
