package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// weather is what a link does to the bytes that travel on it.
type weather struct {
	stalled       bool
	budget        int           // bytes that pass although it is stalled, so that it stalls in the middle of a frame
	refuse        bool          // who connects is reset at once
	delay, jitter time.Duration // of each piece; jitter is the most that comes on top
	rate          int           // bytes per second; 0: as fast as can be
}

// link is one direction between two processes: all bytes from the one to the other, whoever has connected to whom.
//
// Ownership: mu, a leaf lock, guards the fields below it.
type link struct {
	mu      sync.Mutex
	w       weather
	changed chan struct{} // closed when w changes
}

func newLink() *link { return &link{changed: make(chan struct{})} }

func (l *link) set(w weather) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w = w
	close(l.changed)
	l.changed = make(chan struct{})
}

// pass waits until bytes may travel, and returns how many of n; ok is false if done was closed before. With n = 0 it waits
// until the end of a connection may.
func (l *link) pass(n int, done <-chan struct{}) (passed int, ok bool) {
	for {
		l.mu.Lock()
		w, changed := l.w, l.changed
		if w.stalled {
			passed = min(n, w.budget)
			l.w.budget -= passed
		}
		l.mu.Unlock()
		if passed > 0 {
			return passed, true
		}
		var timer <-chan time.Time // never, while it is stalled
		if !w.stalled {
			wait := w.delay
			if w.jitter > 0 {
				wait += rand.N(w.jitter)
			}
			if passed = n; w.rate > 0 {
				passed = min(n, max(w.rate/20, 1))
				wait += time.Duration(passed) * time.Second / time.Duration(w.rate)
			}
			if wait == 0 {
				return passed, true
			}
			timer = time.After(wait)
		}
		select {
		case <-timer:
			return passed, true
		case <-changed: // what waits, waits no longer than the new weather says
		case <-done:
			return 0, false
		}
	}
}

// mesh is TCP proxies in front of processes, with a link for each ordered pair of them.
//
// Ownership: mu, a leaf lock, guards the fields below it.
type mesh struct {
	t      *testing.T
	who    func(conn net.Conn) (int, bool) // which process has connected
	fronts []*front
	links  [][]*link // from, to
	wg     sync.WaitGroup

	mu      sync.Mutex
	tunnels map[*tunnel]struct{}
	closed  bool
}

// front is where a process is reached, as the others know it.
type front struct {
	addr   string
	target string // where it listens
	l      net.Listener
}

// newMesh puts proxies at addrs in front of what listens on targets.
func newMesh(t *testing.T, addrs, targets []string, who func(conn net.Conn) (int, bool)) *mesh {
	t.Helper()
	m := &mesh{t: t, who: who, tunnels: make(map[*tunnel]struct{})}
	t.Cleanup(m.close)
	for i := range addrs {
		m.fronts = append(m.fronts, &front{addr: addrs[i], target: targets[i]})
		var row []*link
		for range addrs {
			row = append(row, newLink())
		}
		m.links = append(m.links, row)
	}
	for i := range addrs {
		m.open(i)
	}
	return m
}

// open has connections to a process accepted.
func (m *mesh) open(to int) {
	m.t.Helper()
	f := m.fronts[to]
	if f.l != nil {
		return
	}
	l, err := net.Listen("tcp", f.addr)
	require.NoError(m.t, err)
	f.l = l
	m.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			m.wg.Go(func() { m.serve(to, conn) })
		}
	})
}

// shut makes a process look as if it had ended to all who connect or are connected to it, though it can still connect to them.
func (m *mesh) shut(to int) {
	f := m.fronts[to]
	if f.l == nil {
		return
	}
	f.l.Close()
	f.l = nil
	for _, t := range m.list() {
		if t.to == to {
			t.abort()
		}
	}
}

func (m *mesh) close() {
	for i := range m.fronts {
		m.shut(i)
	}
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	for _, t := range m.list() {
		t.abort()
	}
	m.wg.Wait()
}

func (m *mesh) list() (all []*tunnel) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for t := range m.tunnels {
		all = append(all, t)
	}
	return all
}

// set changes the weather from one process to another.
func (m *mesh) set(p pair, w weather) { m.links[p.from][p.to].set(w) }

// clear makes all links good again. What was broken stays broken, and processes that were shut off stay so.
func (m *mesh) clear() {
	for _, row := range m.links {
		for _, l := range row {
			l.set(weather{})
		}
	}
}

// reset breaks all connections that one process has made to another: both ends are told.
func (m *mesh) reset(p pair) {
	for _, t := range m.list() {
		if t.pair == p {
			t.abort()
		}
	}
}

// halve breaks all connections between two processes at the second one's end. The first is not told: what it sends
// vanishes.
func (m *mesh) halve(p pair) {
	for _, t := range m.list() {
		switch t.pair {
		case p:
			t.halve(t.accepted)
		case pair{p.to, p.from}:
			t.halve(t.dialed)
		}
	}
}

// serve connects a process that has connected to a front with what is behind it, until one of them ends the connection.
func (m *mesh) serve(to int, conn net.Conn) {
	from, ok := m.who(conn)
	if !ok || m.links[from][to].refuses() {
		abort(conn)
		return
	}
	target, err := net.DialTimeout("tcp", m.fronts[to].target, time.Second)
	if err != nil {
		abort(conn)
		return
	}
	t := &tunnel{pair: pair{from, to}, dialed: conn, accepted: target, done: make(chan struct{})}
	m.mu.Lock()
	closed := m.closed
	m.tunnels[t] = struct{}{}
	m.mu.Unlock()
	if closed {
		t.abort()
	}
	var wg sync.WaitGroup
	wg.Go(func() { t.pump(t.dialed, t.accepted, m.links[from][to]) })
	wg.Go(func() { t.pump(t.accepted, t.dialed, m.links[to][from]) })
	wg.Wait()
	t.abort()
	m.mu.Lock()
	delete(m.tunnels, t)
	m.mu.Unlock()
}

func (l *link) refuses() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.refuse
}

// pair is an ordered pair of processes.
type pair struct{ from, to int }

// tunnel is one connection through a proxy.
type tunnel struct {
	pair              // who has connected to whom
	dialed   net.Conn // to the one that has
	accepted net.Conn // to the other
	half     atomic.Bool
	once     sync.Once
	done     chan struct{} // closed by abort
}

// abort breaks the connection at both ends.
func (t *tunnel) abort() {
	t.once.Do(func() {
		close(t.done)
		abort(t.dialed)
		abort(t.accepted)
	})
}

// halve breaks the connection at one end.
func (t *tunnel) halve(end net.Conn) {
	t.half.Store(true)
	abort(end)
}

// abort closes a connection with a reset.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// pump moves bytes from one end to the other as the link allows, and then the news that the connection has ended.
func (t *tunnel) pump(src, dst net.Conn, l *link) {
	buf := make([]byte, 16<<10)
	for {
		n, err := src.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			passed, ok := l.pass(len(b), t.done)
			if !ok {
				return
			}
			if _, err := dst.Write(b[:passed]); err != nil {
				t.ended(src)
				return
			}
			b = b[passed:]
		}
		if err == nil {
			continue
		}
		if t.half.Load() {
			return
		}
		if _, ok := l.pass(0, t.done); !ok {
			return
		}
		if !errors.Is(err, io.EOF) || dst.(*net.TCPConn).CloseWrite() != nil {
			t.ended(src)
		}
		return
	}
}

// ended takes note that one end is gone. If it was broken off in secret, what the other sends is swallowed for as long as it
// likes.
func (t *tunnel) ended(src net.Conn) {
	if t.half.Load() {
		io.Copy(io.Discard, src)
	}
	t.abort()
}

// ownerOf returns which of the processes has made a connection that was accepted here. The kernel says to which
// socket the other end's address belongs, and who has that open.
func ownerOf(conn net.Conn, procs []*process) (index int, ok bool) {
	socket, err := socketOf(conn.RemoteAddr().(*net.TCPAddr))
	if err != nil {
		return 0, false
	}
	for i, p := range procs {
		pid := p.pid.Load()
		if pid == 0 {
			continue
		}
		files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, file := range files {
			if name, err := os.Readlink(file); err == nil && name == socket {
				return i, true
			}
		}
	}
	return 0, false
}

// socketOf returns the name that the kernel gives the socket with a local address.
func socketOf(addr *net.TCPAddr) (string, error) {
	f, err := os.Open("/proc/net/tcp")
	if err != nil {
		return "", err
	}
	defer f.Close()
	local := fmt.Sprintf("%08X:%04X", binary.NativeEndian.Uint32(addr.IP.To4()), addr.Port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 9 && fields[1] == local {
			return "socket:[" + fields[9] + "]", nil
		}
	}
	return "", errors.New("no socket has the address " + addr.String())
}

// proxied is a process, this one, that is connected through a mesh to a server in it.
type proxied struct {
	t      *testing.T
	mesh   *mesh
	client net.Conn
	server net.Conn // the server's end
}

// newProxied connects this process, as number 0, to a server that is number 1.
func newProxied(t *testing.T) *proxied {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	self := &process{}
	self.pid.Store(int64(os.Getpid()))
	addrs := freeAddresses(t, 2)
	who := func(conn net.Conn) (int, bool) { return ownerOf(conn, []*process{self}) }
	m := newMesh(t, addrs, []string{addrs[0], l.Addr().String()}, who)
	p := &proxied{t: t, mesh: m}
	for range 10 { // who dialled may not be told, and is hung up on then
		p.client = p.dial()
		t.Cleanup(func() { p.client.Close() })
		require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(10*time.Second)))
		if p.server, err = l.Accept(); err == nil {
			break
		}
		p.client.Close()
	}
	require.NoError(t, err)
	t.Cleanup(func() { p.server.Close() })
	return p
}

// dial connects to the server's front. Being hung up on at once may be told before the connection is.
func (p *proxied) dial() net.Conn {
	p.t.Helper()
	for range 10 {
		conn, err := net.Dial("tcp", p.mesh.fronts[1].addr)
		if errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		require.NoError(p.t, err)
		return conn
	}
	require.Fail(p.t, "every connection was reset")
	return nil
}

// expect reads what must come, and no more.
func (p *proxied) expect(conn net.Conn, want string) {
	p.t.Helper()
	buf := make([]byte, len(want))
	require.NoError(p.t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.ReadFull(conn, buf)
	require.NoError(p.t, err)
	require.Equal(p.t, want, string(buf))
}

// silent checks that nothing comes, not even news of an end.
func (p *proxied) silent(conn net.Conn) {
	p.t.Helper()
	require.NoError(p.t, conn.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(p.t, err, os.ErrDeadlineExceeded)
}

// broken waits until an end hears that the connection is broken.
func (p *proxied) broken(conn net.Conn) {
	p.t.Helper()
	require.NoError(p.t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := conn.Read(make([]byte, 1))
	require.ErrorIs(p.t, err, syscall.ECONNRESET)
}

func (p *proxied) send(conn net.Conn, text string) {
	p.t.Helper()
	_, err := conn.Write([]byte(text))
	require.NoError(p.t, err)
}

// The proxies do to connections what their names say: else the tests with them would prove nothing.
func TestProxies(t *testing.T) {
	there, back := pair{0, 1}, pair{1, 0}
	for _, test := range []struct {
		name string
		run  func(p *proxied)
	}{
		{"stall in the middle, one way", func(p *proxied) {
			p.mesh.set(there, weather{stalled: true, budget: 3})
			p.send(p.client, "request")
			p.expect(p.server, "req")
			p.silent(p.server)
			p.send(p.server, "answer")
			p.expect(p.client, "answer")
			p.mesh.clear()
			p.expect(p.server, "uest")
		}},
		{"an end is news that a stall holds up", func(p *proxied) {
			p.mesh.set(back, weather{stalled: true})
			p.send(p.server, "answer")
			p.server.Close()
			p.silent(p.client)
			p.mesh.clear()
			p.expect(p.client, "answer")
			_, err := p.client.Read(make([]byte, 1))
			require.ErrorIs(p.t, err, io.EOF)
		}},
		{"refuse", func(p *proxied) {
			p.mesh.set(there, weather{refuse: true})
			p.mesh.reset(there)
			p.broken(p.client)
			p.broken(p.server)
			again, err := net.Dial("tcp", p.mesh.fronts[1].addr)
			if err != nil { // the reset may be faster
				require.ErrorIs(p.t, err, syscall.ECONNRESET)
				return
			}
			defer again.Close()
			p.broken(again)
		}},
		{"half-open", func(p *proxied) {
			p.mesh.halve(there)
			p.broken(p.server)
			p.send(p.client, "request")
			p.silent(p.client)
			p.send(p.client, "request")
		}},
		{"half-open at the other end", func(p *proxied) {
			p.mesh.halve(back)
			p.broken(p.client)
			p.send(p.server, "answer")
			p.silent(p.server)
			p.send(p.server, "answer")
		}},
		{"delay", func(p *proxied) {
			p.mesh.set(there, weather{delay: 50 * time.Millisecond})
			start := time.Now()
			p.send(p.client, "request")
			p.expect(p.server, "request")
			require.GreaterOrEqual(p.t, time.Since(start), 50*time.Millisecond)
		}},
		{"slow", func(p *proxied) {
			p.mesh.set(there, weather{rate: 10_000})
			start := time.Now()
			text := strings.Repeat("request", 200)
			p.send(p.client, text)
			p.expect(p.server, text)
			require.GreaterOrEqual(p.t, time.Since(start), 140*time.Millisecond)
		}},
		{"seem dead", func(p *proxied) {
			p.mesh.shut(1)
			p.broken(p.client)
			_, err := net.Dial("tcp", p.mesh.fronts[1].addr)
			require.ErrorIs(p.t, err, syscall.ECONNREFUSED)
			p.mesh.open(1)
			p.dial().Close()
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newProxied(t)
			p.send(p.client, "hello")
			p.expect(p.server, "hello")
			p.send(p.server, "hello yourself")
			p.expect(p.client, "hello yourself")
			test.run(p)
		})
	}
}
