package rpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"time"

	"github.com/graft-raft/graft/internal/baidustd"
)

// TCPOptions configure a TCP transport. Zero means default.
type TCPOptions struct {
	// TLS is used for both directions, and both sides must show a certificate: where
	// it, or what its GetConfigForClient returns, does not say how clients are verified, they
	// are, against ClientCAs or else RootCAs. Start fails if there is neither, and no
	// VerifyConnection or VerifyPeerCertificate. nil means plain TCP.
	TLS *tls.Config

	MaxBody         int // of a frame, default 64 MiB and some
	MaxPending      int // unanswered calls per peer, default 65536
	MaxPendingBytes int // of these, default 256 MiB, those that have timed out before they were written included; one call is always allowed
	MaxServing      int // requests of a connection that are served at a time, default 4096
	MaxServingBytes int // of these, default 256 MiB; one request is always allowed
	MaxQueuedBytes  int // answers of a connection that wait for its writer, default 16 MiB; then it is not read from
	MaxConns        int // accepted connections, default 4096
	MaxPartialBytes int // of large frames on all accepted connections that have not arrived whole, default 512 MiB

	ConnectTimeout   time.Duration // default 1 s
	HandshakeTimeout time.Duration // of TLS, default 5 s
	FrameTimeout     time.Duration // for a frame, and for each 64 KiB of it, default 10 s
	WriteTimeout     time.Duration // for what is written at a time, and for each 64 KiB of it, default 10 s
	SilenceTimeout   time.Duration // a peer that lets calls time out, says nothing, and of what waits takes no 64 KiB, for so long is reconnected, default 3 s

	Dial       func(ctx context.Context, network, address string) (net.Conn, error)
	ListenFunc func(network, address string) (net.Listener, error)
}

// Back-off between attempts to connect.
const (
	backoffMin = 10 * time.Millisecond
	backoffMax = 250 * time.Millisecond
)

// helloTimeout is when a peer is taken not to answer a Hello.
const helloTimeout = 5 * time.Second

func (o TCPOptions) withDefaults() TCPOptions {
	o.MaxBody = orDefault(o.MaxBody, baidustd.DefaultMaxBody)
	o.MaxPending = orDefault(o.MaxPending, 1<<16)
	o.MaxPendingBytes = orDefault(o.MaxPendingBytes, 256<<20)
	o.MaxServing = orDefault(o.MaxServing, 4096)
	o.MaxServingBytes = orDefault(o.MaxServingBytes, 256<<20)
	o.MaxQueuedBytes = orDefault(o.MaxQueuedBytes, 16<<20)
	o.MaxConns = orDefault(o.MaxConns, 4096)
	o.MaxPartialBytes = orDefault(o.MaxPartialBytes, 512<<20)
	o.ConnectTimeout = orDefault(o.ConnectTimeout, time.Second)
	o.HandshakeTimeout = orDefault(o.HandshakeTimeout, 5*time.Second)
	o.FrameTimeout = orDefault(o.FrameTimeout, 10*time.Second)
	o.WriteTimeout = orDefault(o.WriteTimeout, 10*time.Second)
	o.SilenceTimeout = orDefault(o.SilenceTimeout, 3*time.Second)
	keepAlive := net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}
	if o.Dial == nil {
		d := net.Dialer{KeepAliveConfig: keepAlive}
		o.Dial = d.DialContext
	}
	if o.ListenFunc == nil {
		l := net.ListenConfig{KeepAliveConfig: keepAlive}
		o.ListenFunc = func(network, address string) (net.Listener, error) {
			return l.Listen(context.Background(), network, address)
		}
	}
	return o
}

func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

var errNoRoots = errors.New("the TLS configuration has neither ClientCAs nor RootCAs to verify clients against")

// CheckTLS reports why a configuration is none to accept connections with; nil for none at all.
func CheckTLS(c *tls.Config) error {
	if c == nil {
		return nil
	}
	_, err := serverTLS(c)
	return err
}

// serverTLS returns the configuration of the accepting side.
func serverTLS(c *tls.Config) (*tls.Config, error) {
	own, err := verifying(c, nil)
	choose := c.GetConfigForClient
	if choose == nil {
		return own, err
	}
	c = c.Clone()
	c.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		chosen, chooseErr := choose(hello)
		switch {
		case chooseErr != nil:
			return nil, chooseErr
		case chosen == nil:
			return own, err
		case own == nil:
			return verifying(chosen, nil)
		}
		return verifying(chosen, own.ClientCAs) // it takes the place of all that c says
	}
	return c, nil
}

// verifying returns a configuration of the accepting side under which clients are verified, against roots if it does not say
// against which. It does not fall back on the system's, which vouch for everybody.
func verifying(c *tls.Config, roots *x509.CertPool) (*tls.Config, error) {
	c = c.Clone()
	if c.ClientAuth == tls.NoClientCert {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	for _, pool := range []*x509.CertPool{c.RootCAs, roots} {
		if c.ClientCAs == nil {
			c.ClientCAs = pool
		}
	}
	if c.ClientCAs == nil && c.ClientAuth >= tls.VerifyClientCertIfGiven && c.VerifyConnection == nil && c.VerifyPeerCertificate == nil {
		return nil, errNoRoots
	}
	return c, nil
}

// clientTLS returns the configuration for a connection to address.
func clientTLS(c *tls.Config, address string) *tls.Config {
	if c.ServerName != "" || c.InsecureSkipVerify {
		return c
	}
	c = c.Clone()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	c.ServerName = host
	return c
}
