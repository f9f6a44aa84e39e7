package rpc

import (
	"crypto/tls"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// slowWay is a connection over which no more than rate bytes a second arrive.
type slowWay struct {
	net.Conn
	rate int
}

func (s slowWay) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b[:min(len(b), 16<<10)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.rate))
	return n, err
}

// slowListener accepts connections that are slow ways.
type slowListener struct {
	net.Listener
	rate int
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return slowWay{c, l.rate}, nil
}

// slowly has listen's connections be slow ways.
func slowly(rate int, listen func(network, address string) (net.Listener, error)) func(network, address string) (net.Listener, error) {
	return func(network, address string) (net.Listener, error) {
		l, err := listen(network, address)
		if err != nil {
			return nil, err
		}
		return slowListener{l, rate}, nil
	}
}

// TestLargeCallOverASlowWay: it takes as long as it takes, whatever times out behind it.
func TestLargeCallOverASlowWay(t *testing.T) {
	a := newAuthority(t)
	secure := a.config(t)
	secure.ServerName = "127.0.0.1"
	secure.Time = func() time.Time { return a.cert.NotBefore.Add(time.Hour) } // a bubble's clock shows another
	for _, config := range []*tls.Config{nil, secure} {
		synctest.Test(t, func(t *testing.T) {
			n := newMemNet()
			o := n.options()
			o.TLS = config
			client := start(t, o, StartOptions{Listen: "client"})
			o.ListenFunc = slowly(1<<20, n.Listen)
			start(t, o, StartOptions{Listen: "server"})
			large := ask(client, "server", Call{Attachment: [][]byte{make([]byte, 24<<20)}, Timeout: 30 * time.Second})
			began := time.Now()
			for {
				small := ask(client, "server", Call{Timeout: time.Second})
				time.Sleep(100 * time.Millisecond)
				select {
				case r := <-large:
					require.NoError(t, r.Err, "after %v", time.Since(began))
					require.NoError(t, (<-ask(client, "server", Call{Timeout: time.Second})).Err)
					require.Empty(t, client.Stats().Ended)
					<-small
					return
				default:
				}
			}
		})
	}
}

// TestPeerThatTakesNothingIsSilent: what it has not taken does not count for it.
func TestPeerThatTakesNothingIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		l, err := n.Listen("tcp", "server")
		require.NoError(t, err)
		defer l.Close()
		client := boot(t, n, "client", 1)
		large := ask(client, "server", Call{Attachment: [][]byte{make([]byte, 8<<20)}, Timeout: time.Minute})
		c, err := l.Accept()
		require.NoError(t, err)
		defer c.Close()
		began := time.Now()
		for len(large) == 0 {
			ask(client, "server", Call{Timeout: time.Second})
			time.Sleep(100 * time.Millisecond)
			if time.Since(began) < 2*time.Second { // it takes some at first
				_, err := c.Read(make([]byte, 16<<10))
				require.NoError(t, err)
			}
		}
		require.ErrorIs(t, (<-large).Err, ErrUnreachable)
		require.Less(t, time.Since(began), 10*time.Second)
		require.EqualValues(t, 1, client.Stats().Ended[ReasonSilent])
	})
}

// TestWriterGivesUpWhatDoesNotGetOn, and nothing else: a peer has WriteTimeout for each 64 KiB.
func TestWriterGivesUpWhatDoesNotGetOn(t *testing.T) {
	for _, test := range []struct {
		every time.Duration // it takes 64 KiB
		ended map[string]uint64
	}{{9 * time.Second, map[string]uint64{}}, {12 * time.Second, map[string]uint64{ReasonNotReading: 1}}} {
		synctest.Test(t, func(t *testing.T) {
			n := newMemNet()
			server := start(t, n.options(), StartOptions{Listen: "server", Serve: func(r *Request) { r.Reply(make([]byte, 1<<20)) }})
			c := n.connect(t, "server")
			_, err := c.Write(request(1, "", ""))
			require.NoError(t, err)
			for range 15 {
				for range 64 {
					if _, err = c.Read(make([]byte, 1<<10)); err != nil {
						break
					}
				}
				time.Sleep(test.every)
			}
			require.Equal(t, test.ended, server.Stats().Ended)
		})
	}
}
