package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace with a device whose packets come to this process. It ends with the last process in
// it and the last file that names it, so nothing of it outlives the test.
type namespace struct {
	name *os.File
	addr string
	tun  *os.File
}

// newNamespace makes a namespace whose only address, besides loopback, is an IPv4 address of a /24 network.
func newNamespace(addr string) (s *namespace, err error) {
	s = &namespace{addr: addr}
	onThread(func() {
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("unshare: %w", err)
			return
		}
		if s.name, err = os.Open("/proc/thread-self/ns/net"); err == nil {
			err = s.configure()
		}
	})
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// onThread runs f on a thread of its own, which ends with it. It is not the main thread, whose state is taken for that of the
// process.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f() // whatever it does to the thread goes away with it, since the thread is never unlocked
			return
		}
		onThread(f) // elsewhere, as long as the main thread is taken
		runtime.UnlockOSThread()
	}()
	<-done
}

// do runs f within the namespace: the sockets that it makes and the processes that it starts belong there.
func (s *namespace) do(f func() error) (err error) {
	onThread(func() {
		if err = unix.Setns(int(s.name.Fd()), unix.CLONE_NEWNET); err == nil {
			err = f()
		}
	})
	return err
}

// configure makes the device and turns everything on, on a thread that is in the namespace.
func (s *namespace) configure() error {
	tun, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	device, err := unix.NewIfreq("graft0")
	if err != nil {
		return err
	}
	device.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tun, unix.TUNSETIFF, device); err != nil {
		unix.Close(tun)
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	s.tun = os.NewFile(uintptr(tun), "/dev/net/tun")
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	set := func(name string, request uint, value func(*unix.Ifreq) error) error {
		r, err := unix.NewIfreq(name)
		if err == nil {
			if err = value(r); err == nil {
				err = unix.IoctlIfreq(control, request, r)
			}
		}
		return err
	}
	address := func(a string) func(*unix.Ifreq) error {
		return func(r *unix.Ifreq) error { return r.SetInet4Addr(net.ParseIP(a).To4()) }
	}
	up := func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	for _, step := range []func() error{
		func() error { return set("lo", unix.SIOCSIFFLAGS, up) },
		func() error { return set("graft0", unix.SIOCSIFADDR, address(s.addr)) },
		func() error { return set("graft0", unix.SIOCSIFNETMASK, address("255.255.255.0")) },
		func() error { return set("graft0", unix.SIOCSIFFLAGS, up) },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("network device: %w", err)
		}
	}
	return nil
}

func (s *namespace) close() {
	for _, f := range []*os.File{s.tun, s.name} {
		if f != nil {
			f.Close()
		}
	}
}

// dial connects to something in the namespace.
func (s *namespace) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = s.do(func() (err error) {
		conn, err = (&net.Dialer{Timeout: 200 * time.Millisecond}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// wire is what happens to the packets from one namespace to another.
type wire struct {
	loss, double float64       // the parts of the packets that are lost, and that arrive twice
	delay        time.Duration // the most that a packet is late; then they overtake each other
}

// ether carries packets between namespaces.
//
// Ownership: mu, a leaf lock, guards closed, and wg against being waited for too soon.
type ether struct {
	spaces []*namespace
	wires  [][]atomic.Pointer[wire] // from, to
	wg     sync.WaitGroup

	mu     sync.Mutex
	closed bool
}

// newEther makes n namespaces that can reach each other, or says why that cannot be done here.
func newEther(t *testing.T, n int) (*ether, error) {
	e := &ether{}
	t.Cleanup(e.close)
	for i := range n {
		s, err := newNamespace("10.77.0." + strconv.Itoa(1+i))
		if err != nil {
			return nil, err
		}
		e.spaces = append(e.spaces, s)
		e.wires = append(e.wires, make([]atomic.Pointer[wire], n))
	}
	e.clear()
	for from := range n {
		e.wg.Go(func() { e.carry(from) })
	}
	return e, nil
}

func (e *ether) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	for _, s := range e.spaces {
		s.close()
	}
	e.wg.Wait()
}

// clear makes all wires good again.
func (e *ether) clear() {
	for i := range e.wires {
		for j := range e.wires[i] {
			e.wires[i][j].Store(new(wire))
		}
	}
}

// carry takes the packets that come from one namespace to where they go.
func (e *ether) carry(from int) {
	buf := make([]byte, 64<<10)
	for {
		n, err := e.spaces[from].tun.Read(buf)
		if err != nil {
			return
		}
		packet := buf[:n]
		if n < 20 || packet[0]>>4 != 4 { // not IPv4
			continue
		}
		to := int(packet[19]) - 1 // the end of the destination's address
		if to < 0 || to >= len(e.spaces) || to == from {
			continue
		}
		w := e.wires[from][to].Load()
		for range w.copies() {
			e.deliver(to, packet, w.delay)
		}
	}
}

// copies is how often a packet arrives.
func (w *wire) copies() int {
	switch {
	case rand.Float64() < w.loss:
		return 0
	case rand.Float64() < w.double:
		return 2
	}
	return 1
}

// deliver hands a packet over, at once or at some time within delay. A namespace that cannot take it loses it.
func (e *ether) deliver(to int, packet []byte, delay time.Duration) {
	if delay == 0 {
		e.spaces[to].tun.Write(packet)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.wg.Add(1)
	packet = slices.Clone(packet)
	time.AfterFunc(rand.N(delay), func() {
		defer e.wg.Done()
		e.spaces[to].tun.Write(packet)
	})
}

// etherFault is a fault that does the same to all wires of a partition.
func etherFault(name string, draw func(rng *rand.Rand) wire) fault {
	return fault{name, func(n *nemesis, rng *rand.Rand) (string, func()) {
		pairs, what := n.partition(rng)
		w := draw(rng)
		for _, p := range pairs {
			n.ether.wires[p.from][p.to].Store(&w)
		}
		return fmt.Sprintf("%s %+v", what, w), n.ether.clear
	}}
}

// etherFaults can happen to packets. Nobody is told of them: there is no reset when a wire is cut.
var etherFaults = []fault{
	etherFault("cut", func(*rand.Rand) wire { return wire{loss: 1} }),
	etherFault("loss", func(rng *rand.Rand) wire { return wire{loss: rng.Float64() / 2} }),
	etherFault("doubles", func(rng *rand.Rand) wire { return wire{double: rng.Float64()} }),
	etherFault("disorder", func(rng *rand.Rand) wire { return wire{delay: 1 + upTo(rng, 200*time.Millisecond)} }),
	etherFault("all at once", func(rng *rand.Rand) wire {
		return wire{loss: rng.Float64() / 5, double: rng.Float64() / 5, delay: 1 + upTo(rng, 50*time.Millisecond)}
	}),
	{"cut, then kill", func(n *nemesis, rng *rand.Rand) (string, func()) { // so that nobody hears of its end
		i := n.victim(rng)
		for j := range n.procs {
			n.ether.wires[i][j].Store(&wire{loss: 1})
			n.ether.wires[j][i].Store(&wire{loss: 1})
		}
		n.kill(n.procs[i])
		<-time.After(upTo(rng, time.Second))
		n.start(n.procs[i])
		return fmt.Sprint(i), n.ether.clear
	}},
}

// Real processes in network namespaces of their own lose, double, delay and reorder packets, and lose sight of each other without
// being told. What must hold is what TestNemesisOfProcessesAndConnections says.
func TestNemesisOfPackets(t *testing.T) {
	seed, d := nemesisSeed(t, 6)
	size, dir := nemesisSize(seed), t.TempDir()
	e, err := newEther(t, size)
	if err != nil {
		t.Skipf("this takes root, Linux and /dev/net/tun: %v", err)
	}
	n := &nemesis{t: t, seed: seed, menu: slices.Concat(processFaults, etherFaults), ether: e}
	var rafts []string
	for _, s := range e.spaces {
		rafts = append(rafts, s.addr+":7001")
	}
	for i, s := range e.spaces {
		p := newProcess(t, filepath.Join(dir, strconv.Itoa(i)), rafts[i], s.addr+":7002", nemesisTimeout, s.dial)
		p.peers = strings.Join(rafts, ",")
		p.launch = func(cmd *exec.Cmd) error { return s.do(cmd.Start) }
		n.procs = append(n.procs, p)
	}
	n.begin()
	n.run(d)
	n.finish()
}

// What the test above says of its wires is true: a packet that is to be lost is, and one namespace reaches another else.
func TestEther(t *testing.T) {
	e, err := newEther(t, 2)
	if err != nil {
		t.Skipf("this takes root, Linux and /dev/net/tun: %v", err)
	}
	var l net.Listener
	require.NoError(t, e.spaces[1].do(func() (err error) {
		l, err = net.Listen("tcp", e.spaces[1].addr+":7001")
		return err
	}))
	defer l.Close()
	reaches := func() bool {
		conn, err := e.spaces[0].dial(t.Context(), "tcp", l.Addr().String())
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	waitFor(t, "one reaches the other", reaches)
	here, err := os.Readlink("/proc/thread-self/ns/net")
	require.NoError(t, err)
	all, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	require.Equal(t, all, here, "what is not done in a namespace is done outside")
	for _, p := range []pair{{0, 1}, {1, 0}} {
		e.wires[p.from][p.to].Store(&wire{loss: 1})
		_, err = e.spaces[0].dial(t.Context(), "tcp", l.Addr().String())
		require.ErrorContains(t, err, "timeout")
		e.clear()
	}
	e.wires[0][1].Store(&wire{double: .5, delay: 20 * time.Millisecond})
	waitFor(t, "one reaches the other", reaches)
}
