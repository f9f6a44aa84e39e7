package graft

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// proposalQueue is where proposals wait for the node's next step, and where their
// budget is kept. It covers twice over what takes memory: what is not settled, and what the node's own disk does not
// hold yet, which may have been committed and applied for long.
//
// Invariant: every task that is added is taken once, or refused.
//
// Ownership: any goroutine adds, the node's actor takes. mu is a leaf lock.
type proposalQueue struct {
	n          *Node
	maxEntries int64
	maxBytes   int64
	maxSize    int

	entries atomic.Int64 // added and not settled
	bytes   atomic.Int64

	mu     sync.Mutex
	tasks  []Task
	size   int // bytes of tasks
	spare  []Task
	closed error
}

func (q *proposalQueue) init(n *Node) {
	q.n = n
	q.maxEntries, q.maxBytes, q.maxSize = int64(n.o.MaxPendingEntries), n.o.MaxPendingBytes, n.o.MaxEntrySize
}

func (q *proposalQueue) add(t Task) {
	size := int64(len(t.Data))
	if len(t.Data) > q.maxSize {
		q.refuse(t, &Error{Code: ErrTooLarge, Op: "apply", Group: q.n.group,
			Err: fmt.Errorf("%d bytes, NodeOptions.MaxEntrySize is %d", len(t.Data), q.maxSize)})
		return
	}
	entries, bytes := q.entries.Add(1), q.bytes.Add(size)
	if entries > q.maxEntries || bytes > q.maxBytes {
		q.release(1, size)
		q.refuse(t, &Error{Code: ErrOverloaded, Op: "apply", Group: q.n.group})
		return
	}
	q.mu.Lock()
	if q.closed != nil {
		err := q.closed
		q.mu.Unlock()
		q.release(1, size)
		q.refuse(t, err)
		return
	}
	if q.diskBehind(size) {
		q.mu.Unlock()
		q.release(1, size)
		q.refuse(t, &Error{Code: ErrOverloaded, Op: "apply", Group: q.n.group, Err: errDiskBehind})
		return
	}
	q.tasks = append(q.tasks, t)
	// The node is woken by the first one, and again when there is a full batch, since it may be gathering.
	before := q.size
	q.size += len(t.Data)
	full := q.n.o.MaxAppendBytes
	wake := len(q.tasks) == 1 || before < full && q.size >= full
	q.mu.Unlock()
	if wake {
		q.n.postInline(nil)
	}
}

// errDiskBehind is why a leader of which everything is applied may refuse proposals.
var errDiskBehind = errors.New("this node's disk is too far behind")

// diskBehind reports whether one more proposal, behind those that wait, is more than the disk may be behind. The caller
// holds mu.
func (q *proposalQueue) diskBehind(size int64) bool {
	entries, bytes := q.n.lm.behind.load()
	over := entries+int64(len(q.tasks)) >= q.maxEntries || bytes+int64(q.size)+size > q.maxBytes
	return over && q.n.IsLeader() // others refuse it anyway, and say who leads
}

// refuse runs Done with an error, on the caller's goroutine.
func (q *proposalQueue) refuse(t Task, err error) {
	if t.Done != nil {
		defer q.n.caught("done")
		t.Done(nil, err)
	}
}

// take returns what was added since. recycle takes the slice back.
func (q *proposalQueue) take() []Task {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.tasks) == 0 {
		return nil
	}
	tasks := q.tasks
	q.tasks, q.spare, q.size = q.spare[:0], nil, 0
	return tasks
}

// waiting returns how much waits to be taken, and whether anything does.
func (q *proposalQueue) waiting() (bytes int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.size, len(q.tasks) > 0
}

// maxSpareTasks bounds the memory that an idle node keeps after a burst.
const maxSpareTasks = 1 << 12

func (q *proposalQueue) recycle(tasks []Task) {
	clear(tasks)
	if cap(tasks) > maxSpareTasks {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.spare == nil {
		q.spare = tasks[:0]
	}
}

// release returns budget.
func (q *proposalQueue) release(entries, bytes int64) {
	q.entries.Add(-entries)
	q.bytes.Add(-bytes)
}

func (q *proposalQueue) pending() (entries, bytes int64) { return q.entries.Load(), q.bytes.Load() }

// close refuses everything from now on, and what was not taken.
func (q *proposalQueue) close(err error) {
	q.mu.Lock()
	q.closed = err
	tasks := q.tasks
	q.tasks = nil
	q.mu.Unlock()
	q.n.refuseTasks(tasks, err)
}
