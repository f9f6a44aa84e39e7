package rpc

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{cert: cert, key: key}
}

// config returns a configuration with a certificate of a, and trust in a.
func (a *authority) config(t *testing.T) *tls.Config {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "node"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: pool}
}

func TestMutualTLS(t *testing.T) {
	a := newAuthority(t)
	server := start(t, TCPOptions{TLS: a.config(t)}, StartOptions{Serve: func(r *Request) {
		r.ReplyAttachment(r.Message, [][]byte{r.Attachment})
	}})
	client := start(t, TCPOptions{TLS: a.config(t)}, StartOptions{})
	for _, size := range []int{0, 100, 20_000, 3 << 20} {
		r := <-ask(client, server.Addr().String(), Call{Message: [][]byte{{1}, {2}}, Attachment: [][]byte{make([]byte, size)}})
		require.NoError(t, r.Err)
		require.Equal(t, []byte{1, 2}, r.Message)
		require.Len(t, r.Attachment, size)
	}
}

func TestTLSRefusesStrangers(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	server := start(t, TCPOptions{TLS: ours.config(t)}, StartOptions{})
	address := server.Addr().String()
	noCertificate := ours.config(t)
	noCertificate.Certificates = nil
	wrongCertificate := theirs.config(t)
	wrongCertificate.RootCAs = ours.config(t).RootCAs // it trusts us, we do not trust it
	for name, config := range map[string]*tls.Config{
		"plain": nil, "no certificate": noCertificate, "wrong certificate": wrongCertificate, "does not trust us": theirs.config(t),
	} {
		client := start(t, TCPOptions{TLS: config}, StartOptions{})
		require.ErrorIs(t, (<-ask(client, address, Call{})).Err, ErrUnreachable, name)
	}
	good := start(t, TCPOptions{TLS: ours.config(t)}, StartOptions{})
	require.NoError(t, (<-ask(good, address, Call{})).Err)
	refused := func() bool { return server.Stats().Ended[ReasonHandshake] == 4 } // the client may know it first
	require.Eventually(t, refused, 10*time.Second, time.Millisecond)
}

// TestChosenTLSRefusesStrangersToo: a configuration that is chosen for each client takes the place of the other one.
func TestChosenTLSRefusesStrangersToo(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	full := ours.config(t)
	bare := &tls.Config{Certificates: full.Certificates}
	noCertificate := ours.config(t)
	noCertificate.Certificates = nil
	theirCertificate := theirs.config(t)
	theirCertificate.RootCAs = full.RootCAs // it trusts us
	for name, test := range map[string]struct{ outer, chosen *tls.Config }{
		"bare, within a full one": {full, bare},
		"full, within a bare one": {bare, full},
		"full":                    {&tls.Config{}, full},
		"none":                    {full, nil},
	} {
		config := test.outer.Clone()
		config.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return test.chosen, nil }
		server := start(t, TCPOptions{TLS: config}, StartOptions{})
		address := server.Addr().String()
		for who, config := range map[string]*tls.Config{"no certificate": noCertificate, "another's": theirCertificate} {
			client := start(t, TCPOptions{TLS: config}, StartOptions{})
			require.ErrorIs(t, (<-ask(client, address, Call{})).Err, ErrUnreachable, "%s: %s", name, who)
		}
		good := start(t, TCPOptions{TLS: ours.config(t)}, StartOptions{})
		require.NoError(t, (<-ask(good, address, Call{})).Err, name)
	}
}

// TestTLSNeedsRoots: the system's are no answer to who may be a peer.
func TestTLSNeedsRoots(t *testing.T) {
	full := newAuthority(t).config(t)
	bare := &tls.Config{Certificates: full.Certificates}
	err := NewTCP(TCPOptions{TLS: bare}).Start(StartOptions{Listen: "127.0.0.1:0", Serve: echo})
	require.ErrorIs(t, err, errNoRoots)
	checked := bare.Clone()
	checked.ClientAuth = tls.RequireAnyClientCert
	checked.VerifyConnection = func(tls.ConnectionState) error { return nil }
	start(t, TCPOptions{TLS: checked}, StartOptions{})

	chosen := bare.Clone()
	chosen.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return bare, nil }
	server := start(t, TCPOptions{TLS: chosen}, StartOptions{})
	client := start(t, TCPOptions{TLS: full}, StartOptions{})
	require.ErrorIs(t, (<-ask(client, server.Addr().String(), Call{})).Err, ErrUnreachable, "nobody says whom to trust")
}

// TestHandshakeHoldsNobodyUp: strangers that connect and say nothing are given up, and
// others are served meanwhile.
func TestHandshakeHoldsNobodyUp(t *testing.T) {
	a := newAuthority(t)
	server := start(t, TCPOptions{TLS: a.config(t), HandshakeTimeout: 3 * time.Second}, StartOptions{})
	var strangers []net.Conn
	for range 20 {
		c, err := net.Dial("tcp", server.Addr().String())
		require.NoError(t, err)
		defer c.Close()
		strangers = append(strangers, c)
	}
	client := start(t, TCPOptions{TLS: a.config(t)}, StartOptions{})
	require.NoError(t, (<-ask(client, server.Addr().String(), Call{})).Err)
	for _, c := range strangers {
		_, err := c.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
	}
}

func TestCloseDuringHandshake(t *testing.T) {
	a := newAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close() // it never answers
	client := start(t, TCPOptions{TLS: a.config(t)}, StartOptions{})
	outcome := ask(client, l.Addr().String(), Call{})
	c, err := l.Accept()
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, client.Close())
	require.Error(t, (<-outcome).Err)
}

// TestHandshakeThatIsNotAnswered is given up, and the peer is connected to anew.
func TestHandshakeThatIsNotAnswered(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client := start(t, TCPOptions{TLS: newAuthority(t).config(t), HandshakeTimeout: 100 * time.Millisecond}, StartOptions{})
	client.Watch(l.Addr().String(), true)
	for range 3 {
		require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(10*time.Second)))
		c, err := l.Accept()
		require.NoError(t, err)
		defer c.Close()
	}
}
