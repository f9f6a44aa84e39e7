package rpc

import (
	"context"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sized sets a buffer of a socket.
func sized(option, size int) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, size) })
		if err != nil {
			return err
		}
		return set
	}
}

// TestWhatTheSystemKeepsIsOnItsWay: a request that the system has taken whole may still take long to arrive, here 8 s. The peer must not
// be taken for dead because of a stall of this machine, and so has 6 s.
func TestWhatTheSystemKeepsIsOnItsWay(t *testing.T) {
	in := net.ListenConfig{Control: sized(unix.SO_RCVBUF, 64<<10)}
	out := net.Dialer{Control: sized(unix.SO_SNDBUF, 2<<20)}
	o := TCPOptions{SilenceTimeout: 6 * time.Second, Dial: out.DialContext}
	client := start(t, o, StartOptions{})
	o.ListenFunc = slowly(128<<10, func(network, address string) (net.Listener, error) {
		return in.Listen(context.Background(), network, address)
	})
	server := start(t, o, StartOptions{})
	address := server.Addr().String()
	require.NoError(t, (<-ask(client, address, Call{})).Err)
	large := ask(client, address, Call{Attachment: [][]byte{make([]byte, 1<<20)}, Timeout: time.Minute})
	for {
		select {
		case r := <-large:
			require.NoError(t, r.Err)
			require.NoError(t, (<-ask(client, address, Call{Timeout: time.Minute})).Err)
			require.Zero(t, client.Stats().Ended[ReasonSilent])
			require.NotZero(t, client.Stats().Timeouts, "they have to wait behind it")
			return
		case <-ask(client, address, Call{Timeout: 100 * time.Millisecond}):
		}
	}
}
