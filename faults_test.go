package graft

import (
	"slices"
	"sync"
	"time"

	"github.com/graft-raft/graft/internal/entry"
	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/wire"
)

// faults is what is wrong with the network of a cluster.
//
// Ownership: any goroutine may use it. mu is a leaf lock, but for the rules, which run under it.
type faults struct {
	mu    sync.Mutex
	addrs []string
	rules []rule
	// corrupt may change what arrives as an answer; nil: nothing is changed.
	corrupt func(m *message, r *rpc.Reply)
}

// rule says what becomes of a message. The first rule that does something to it decides.
type rule func(m *message) fate

// message is a request, or the answer to one.
type message struct {
	from, to int // of the request, also where this is the answer; -1 for a stranger
	answer   bool
	method   string
	call     *rpc.Call
	parsed   bool
	request  wire.AppendRequest
	confs    []confEntry
}

// fate is what becomes of a message. The zero value is delivery.
type fate struct {
	lost    bool          // its sender hears of it when the request times out
	refused bool          // its sender hears of it at once
	delay   time.Duration // it is late; later ones may overtake it
}

// parse reads an append_entries request.
func (m *message) parse() {
	if m.parsed || m.method != methodAppendEntries {
		return
	}
	m.parsed = true
	join := func(pieces [][]byte) []byte { return slices.Concat(pieces...) }
	req, err := wire.ParseAppendRequest(join(m.call.Message), join(m.call.Attachment))
	if err != nil {
		panic(err)
	}
	m.request = req
	sum, err := entry.Check(req.Entries)
	if err != nil {
		panic(err)
	}
	for _, mark := range sum.Confs {
		e, err := parseConfEntry(mark)
		if err != nil {
			panic(err)
		}
		m.confs = append(m.confs, e)
	}
}

// entries is how many entries a request carries.
func (m *message) entries() int { m.parse(); return m.request.Entries.Count }

// conf reports whether a request carries a configuration entry of a kind.
func (m *message) conf(kind func(confEntry) bool) bool {
	m.parse()
	return slices.ContainsFunc(m.confs, kind)
}

// isolate loses everything from and to the hosts.
func isolate(hosts ...int) rule {
	return func(m *message) fate {
		return fate{lost: slices.Contains(hosts, m.from) != slices.Contains(hosts, m.to)}
	}
}

// oneWay loses what one host says to another, requests and answers.
func oneWay(from, to int) rule {
	return func(m *message) fate {
		if m.answer {
			return fate{lost: m.to == from && m.from == to}
		}
		return fate{lost: m.from == from && m.to == to}
	}
}

// noEntries loses requests with entries to the hosts. Heartbeats and probes pass.
func noEntries(to ...int) rule {
	return func(m *message) fate {
		return fate{lost: !m.answer && slices.Contains(to, m.to) && m.entries() > 0}
	}
}

// noHeartbeats loses append_entries requests without entries to the hosts.
func noHeartbeats(to ...int) rule {
	return func(m *message) fate {
		return fate{lost: !m.answer && m.method == methodAppendEntries && slices.Contains(to, m.to) && m.entries() == 0}
	}
}

// noConf loses requests with a configuration entry of a kind to the hosts, thus all that follow it
// too. Heartbeats and probes pass.
func noConf(kind func(confEntry) bool, to ...int) rule {
	return func(m *message) fate {
		return fate{lost: !m.answer && slices.Contains(to, m.to) && m.conf(kind)}
	}
}

// noCall loses the requests of a method.
func noCall(method string) rule {
	return func(m *message) fate { return fate{lost: !m.answer && m.method == method} }
}

// slowEntries delays the answers of a host to requests with entries.
func slowEntries(to int, d time.Duration) rule {
	return func(m *message) fate {
		if m.answer && m.to == to && m.entries() > 0 {
			return fate{delay: d}
		}
		return fate{}
	}
}

// atOnce has senders told at once of what a rule loses.
func atOnce(r rule) rule {
	return func(m *message) fate {
		f := r(m)
		return fate{refused: f.lost}
	}
}

// set replaces the rules; none: the network is sound.
func (f *faults) set(rules ...rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = rules
}

func (f *faults) judge(m *message) fate {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if fate := r(m); fate.lost || fate.refused || fate.delay > 0 {
			return fate
		}
	}
	return fate{}
}

func (f *faults) find(address string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Index(f.addrs, address)
}

// faultyTransport is a host's transport on a network with faults. Every call is answered once, as from
// the transport that it wraps.
type faultyTransport struct {
	Transport
	net  *faults
	self int

	mu      sync.Mutex
	closed  bool
	pending map[*time.Timer]func(closed bool)
	lost    map[*time.Timer]bool // those of pending that stand for what was lost
	running sync.WaitGroup
}

func newFaultyTransport(net *faults, self int) *faultyTransport {
	return &faultyTransport{
		Transport: NewTCPTransport(nil), net: net, self: self, pending: make(map[*time.Timer]func(bool)), lost: make(map[*time.Timer]bool),
	}
}

func (t *faultyTransport) Call(address string, c rpc.Call) {
	m := message{from: t.self, to: t.net.find(address), method: c.Method, call: &c}
	done, began := c.Done, time.Now()
	lose := func() {
		wait := time.Hour
		if c.Timeout > 0 {
			wait = max(c.Timeout-time.Since(began), 0)
		}
		t.after(wait, true, func(closed bool) {
			if closed {
				done(rpc.Reply{Err: rpc.ErrClosed})
			} else {
				done(rpc.Reply{Err: rpc.ErrTimeout})
			}
		})
	}
	call := c
	call.Done = func(r rpc.Reply) {
		answer := m
		answer.answer = true
		switch f := t.net.judge(&answer); {
		case r.Err != nil:
			done(r)
		case f.lost || f.refused:
			lose()
		case f.delay > 0:
			t.after(f.delay, false, func(bool) { done(r) })
		default:
			if t.net.corrupt != nil {
				t.net.corrupt(&answer, &r)
			}
			done(r)
		}
	}
	switch f := t.net.judge(&m); {
	case f.refused:
		done(rpc.Reply{Err: rpc.ErrUnreachable})
	case f.lost:
		lose()
	case f.delay > 0:
		t.after(f.delay, false, func(bool) { t.Transport.Call(address, call) })
	default:
		t.Transport.Call(address, call)
	}
}

// after runs f later, or when the transport is closed.
func (t *faultyTransport) after(d time.Duration, lost bool, f func(closed bool)) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		f(true)
		return
	}
	defer t.mu.Unlock()
	t.running.Add(1)
	var timer *time.Timer
	timer = time.AfterFunc(d, func() {
		defer t.running.Done()
		t.mu.Lock()
		delete(t.pending, timer)
		delete(t.lost, timer)
		t.mu.Unlock()
		f(false)
	})
	t.pending[timer] = f
	if lost {
		t.lost[timer] = true
	}
}

// giveUp has calls that were lost time out now.
func (t *faultyTransport) giveUp() {
	t.mu.Lock()
	var ended []func(bool)
	for timer := range t.lost {
		if timer.Stop() {
			ended = append(ended, t.pending[timer])
			delete(t.pending, timer)
			delete(t.lost, timer)
			defer t.running.Done()
		}
	}
	t.mu.Unlock()
	for _, f := range ended {
		f(false)
	}
}

func (t *faultyTransport) Close() error {
	t.mu.Lock()
	t.closed = true
	var ended []func(bool)
	for timer, f := range t.pending {
		if timer.Stop() {
			ended = append(ended, f)
			t.running.Done()
		}
	}
	t.mu.Unlock()
	for _, f := range ended {
		f(true)
	}
	err := t.Transport.Close()
	t.running.Wait()
	return err
}
