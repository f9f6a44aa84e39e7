package sim

import (
	"cmp"
	"container/heap"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/rpc"
)

// Transport is one process's access to the network.
//
// Invariants: a call's Done runs at most once, in its process, and exactly once if
// that lives on; none runs after the process was killed.
//
// Ownership: the simulation's goroutine.
type Transport struct {
	net    *Network
	at     *endpoint
	proc   *actor.Process
	o      rpc.StartOptions
	timer  *actor.Actor[struct{}]
	armed  time.Time // when the timer looks next
	nextID int64
	calls  map[int64]*pending
	due    dueCalls // some are over
	watch  []*watch
	away   []backoff

	appends []int // append_entries calls without an answer, by machine

	held   []func() // arrived while frozen
	frozen bool
	dead   bool
	closed bool
}

// pending is a call without an answer.
type pending struct {
	id       int64
	to       *Transport // nil: nobody was there
	at       time.Time
	appends  *int // it counts among these
	install  bool // it is install_snapshot
	deadline time.Time
	done     func(rpc.Reply)
	over     bool
}

// watch is an address whose process's death is to be reported.
type watch struct {
	address string
	count   int
	seen    uint64 // the incarnation that answered last
	gone    bool   // it was reported
}

// backoff is an address that refused a connection.
type backoff struct {
	address string
	pause   time.Duration
	until   time.Time // of the process's clock
}

var _ rpc.Transport = (*Transport)(nil)

// Start takes note of who serves.
func (t *Transport) Start(o rpc.StartOptions) error {
	t.o = o
	for _, e := range t.net.ends {
		if e != t.at {
			t.net.lookAgain(e, t.at)
		}
	}
	return nil
}

// run runs f in the process: later if that is frozen, never if it is dead.
func (t *Transport) run(f func()) {
	switch {
	case t.dead:
		t.net.count.LateForDead++
	case t.frozen:
		t.held = append(t.held, f)
	default:
		f()
		t.net.tap.arrived(t.at.index)
	}
}

// thaw lets everything in that has arrived meanwhile.
func (t *Transport) thaw() {
	t.frozen = false
	held := t.held
	t.held = nil
	for _, f := range held {
		t.run(f)
	}
}

// Call sends a request.
func (t *Transport) Call(address string, c rpc.Call) {
	switch {
	case t.dead:
		return
	case t.closed:
		c.Done(rpc.Reply{Err: rpc.ErrClosed})
		return
	}
	t.net.tap.called(t.at.index, &c)
	to := t.net.byName[address]
	if to == nil || t.awaits(address) {
		c.Done(rpc.Reply{Err: fmt.Errorf("%w: %s: last attempt to connect failed", rpc.ErrUnreachable, address)})
		return
	}
	t.nextID++
	p := &pending{id: t.nextID, to: to.t, at: t.net.sim.Now(), done: c.Done, install: c.Method == "install_snapshot"}
	if c.Method == "append_entries" {
		p.appends = &t.appends[to.index]
		*p.appends++
		t.net.tap.waiting(t.at.index, to.index, *p.appends)
	}
	t.calls[p.id] = p
	if c.Timeout > 0 {
		p.deadline = t.proc.Now().Add(c.Timeout)
		heap.Push(&t.due, p)
		if t.armed.IsZero() || p.deadline.Before(t.armed) {
			t.timer.Post(struct{}{})
		}
	}
	if to.t == nil {
		t.refused(p, to)
		return
	}
	bytes, target := encodeCall(&c, p.id), to.t
	t.net.send(t.at, to, target, len(bytes), func() { target.receive(t, bytes) })
}

// refused is what becomes of a call to a machine on which no process runs.
func (t *Transport) refused(p *pending, to *endpoint) {
	n := t.net
	if to.vanished || !n.open(t.at, to) || !n.open(to, t.at) {
		return // silence
	}
	n.sim.After(n.latency()+n.latency(), func() {
		t.run(func() {
			if !p.over {
				n.count.Refused++
				t.backOff(to.address)
			}
			t.finish(p, rpc.Reply{Err: fmt.Errorf("%w: %s: connection refused", rpc.ErrUnreachable, to.address)})
		})
	})
}

// backOff keeps from connecting for a while, longer each time.
func (t *Transport) backOff(address string) {
	for i := range t.away {
		b := &t.away[i]
		if b.address == address {
			b.pause = min(2*b.pause, time.Second)
			b.until = t.proc.Now().Add(b.pause)
			return
		}
	}
	t.away = append(t.away, backoff{address: address, pause: 10 * time.Millisecond, until: t.proc.Now().Add(10 * time.Millisecond)})
}

// awaits reports whether it is too early to connect again.
func (t *Transport) awaits(address string) bool {
	for i := range t.away {
		if b := &t.away[i]; b.address == address {
			return t.proc.Now().Before(b.until)
		}
	}
	return false
}

// receive takes a frame from a process.
func (t *Transport) receive(from *Transport, bytes []byte) {
	f, err := decodeFrame(bytes)
	if err != nil {
		panic("sim: " + err.Error())
	}
	if f.meta.IsResponse {
		t.answered(from, f)
		return
	}
	id, at := f.meta.CorrelationID, t.net.sim.Now()
	if string(f.meta.Method) == "append_entries" {
		t.net.tap.appends(t.at.index, from, f.message, f.attachment)
	}
	service, method := string(f.meta.Service), string(f.meta.Method)
	asked := rpc.NewRequest(service, method, f.message, f.attachment, from.at.address, nil) // who answers may have let go of it
	req := rpc.NewRequest(service, method, f.message, f.attachment, from.at.address,
		func(code int32, text string, message []byte, attachment [][]byte) {
			if t.dead {
				return
			}
			t.net.tap.answered(t.at.index, from.at.index, asked, at, code, message)
			answer := encodeAnswer(code, text, id, message, attachment)
			t.net.send(t.at, from.at, from, len(answer), func() { from.receive(t, answer) })
		})
	if t.o.Serve != nil && !t.closed {
		t.o.Serve(req)
	}
}

func (t *Transport) answered(from *Transport, f frame) {
	p := t.calls[f.meta.CorrelationID]
	if p == nil {
		t.net.count.LateAnswers++
		return
	}
	if p.appends != nil && f.meta.ErrorCode == 0 {
		t.net.tap.heard(t.at.index, from.at.index, p.at, f.message)
	}
	if p.install && f.meta.ErrorCode == 0 {
		t.net.tap.took(t.at.index, from.at.index)
	}
	for i := range t.away { // it can be reached
		if t.away[i].address == from.at.address {
			t.away = append(t.away[:i], t.away[i+1:]...)
			break
		}
	}
	t.finish(p, rpc.Reply{
		Code: f.meta.ErrorCode, Text: string(f.meta.ErrorText), Message: f.message, Attachment: f.attachment,
	})
}

// finish ends a call, once.
func (t *Transport) finish(p *pending, r rpc.Reply) {
	if p.over || t.dead {
		return
	}
	p.over = true
	if p.appends != nil {
		*p.appends--
	}
	delete(t.calls, p.id)
	p.done(r)
}

// expire ends the calls that were not answered in time.
func (t *Transport) expire(now time.Time, _ []struct{}) time.Time {
	for len(t.due) > 0 {
		p := t.due[0]
		if !p.over && now.Before(p.deadline) {
			t.armed = p.deadline
			return p.deadline
		}
		heap.Pop(&t.due)
		if !p.over {
			t.net.count.Timeouts++
			t.finish(p, rpc.Reply{Err: rpc.ErrTimeout})
		}
	}
	t.armed = time.Time{}
	return time.Time{}
}

// waiting lists the calls without an answer in the order in which they were made.
func (t *Transport) waiting() []*pending {
	return slices.SortedFunc(maps.Values(t.calls), func(a, b *pending) int { return cmp.Compare(a.id, b.id) })
}

// Retry has nothing to forget: each call is an attempt here.
func (t *Transport) Retry(string) {}

// Watch has the death of the process at address reported.
func (t *Transport) Watch(address string, on bool) {
	w := t.watched(address)
	switch {
	case !on && w != nil:
		w.count = max(w.count-1, 0)
		return
	case !on:
		return
	case w == nil:
		w = &watch{address: address}
		t.watch = append(t.watch, w)
	}
	w.count++
	if to := t.net.byName[address]; to != nil {
		t.net.lookAgain(t.at, to)
	}
}

func (t *Transport) watched(address string) *watch {
	for _, w := range t.watch {
		if w.address == address {
			return w
		}
	}
	return nil
}

// look finds out who lives at a watched machine.
func (t *Transport) look(to *endpoint) {
	w := t.watched(to.address)
	if w == nil || !t.net.open(t.at, to) || !t.net.open(to, t.at) || to.vanished {
		return
	}
	down := false
	switch {
	case to.t == nil:
		down = w.seen != 0 && !w.gone
		w.gone = w.gone || down
	case to.t.o.Incarnation != 0 && to.t.o.Incarnation != w.seen && !to.t.frozen:
		down = w.seen != 0
		w.seen, w.gone = to.t.o.Incarnation, false
	}
	if down && w.count > 0 {
		t.down(w.address)
	}
}

// down tells the process that another is gone.
func (t *Transport) down(address string) {
	if t.o.Down != nil {
		t.net.count.Downs++
		t.net.tap.down(t.at.index)
		t.o.Down(address)
	}
}

// Close fails what is pending.
func (t *Transport) Close() error {
	if t.closed {
		return errors.New("closed twice")
	}
	t.closed = true
	for _, p := range t.waiting() {
		t.finish(p, rpc.Reply{Err: rpc.ErrClosed})
	}
	return nil
}

// dueCalls is a heap of calls, the earliest deadline first.
type dueCalls []*pending

func (d dueCalls) Len() int { return len(d) }
func (d dueCalls) Less(i, j int) bool {
	return d[i].deadline.Before(d[j].deadline) || d[i].deadline.Equal(d[j].deadline) && d[i].id < d[j].id
}
func (d dueCalls) Swap(i, j int) { d[i], d[j] = d[j], d[i] }

func (d *dueCalls) Push(x any) { *d = append(*d, x.(*pending)) }

func (d *dueCalls) Pop() any {
	old := *d
	p := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return p
}
