package actor

import (
	"container/heap"
	"time"
)

// deadlines holds at most one deadline per runner, earliest first.
type deadlines struct {
	heap  deadlineHeap
	index map[runner]*deadline
}

type deadline struct {
	r   runner
	at  time.Time
	seq uint64 // breaks ties in the order of arrival, never by address or map order
	pos int
}

func newDeadlines() deadlines { return deadlines{index: make(map[runner]*deadline)} }

// set puts r's deadline in place of an earlier one.
func (d *deadlines) set(r runner, at time.Time, seq uint64) {
	if e := d.index[r]; e != nil {
		e.at, e.seq = at, seq
		heap.Fix(&d.heap, e.pos)
		return
	}
	e := &deadline{r: r, at: at, seq: seq}
	d.index[r] = e
	heap.Push(&d.heap, e)
}

// remove drops r's deadline, if it has one.
func (d *deadlines) remove(r runner) {
	if e := d.index[r]; e != nil {
		heap.Remove(&d.heap, e.pos)
		delete(d.index, r)
	}
}

// first is the earliest deadline, or nil.
func (d *deadlines) first() *deadline {
	if len(d.heap) == 0 {
		return nil
	}
	return d.heap[0]
}

type deadlineHeap []*deadline

func (h deadlineHeap) Len() int { return len(h) }
func (h deadlineHeap) Less(i, j int) bool {
	return h[i].at.Before(h[j].at) || h[i].at.Equal(h[j].at) && h[i].seq < h[j].seq
}
func (h deadlineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].pos, h[j].pos = i, j
}

func (h *deadlineHeap) Push(x any) {
	e := x.(*deadline)
	e.pos = len(*h)
	*h = append(*h, e)
}

func (h *deadlineHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return e
}
