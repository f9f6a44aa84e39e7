package rpc

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers with a small message, as a follower does.
func echo(r *Request) { r.Reply(r.Message[:min(len(r.Message), 8)]) }

// echoPair returns a client and the address of a server, over loopback.
func echoPair(t testing.TB, o TCPOptions) (*TCP, string) {
	server := start(t, o, StartOptions{Serve: echo})
	client := start(t, o, StartOptions{Serve: echo})
	return client, server.Addr().String()
}

// start starts a transport on loopback that is closed with the test.
func start(t testing.TB, o TCPOptions, s StartOptions) *TCP {
	if s.Listen == "" {
		s.Listen = "127.0.0.1:0"
	}
	if s.Serve == nil {
		s.Serve = echo
	}
	if o.ConnectTimeout == 0 && o.ListenFunc == nil { // no memNet: the machine may stall
		o.ConnectTimeout = 30 * time.Second
	}
	tcp := NewTCP(o)
	require.NoError(t, tcp.Start(s))
	t.Cleanup(func() { require.NoError(t, tcp.Close()) })
	return tcp
}
