package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	a.key, a.n = key, 1
	a.write("ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) write(name, kind string, der []byte) string {
	path := filepath.Join(a.dir, name)
	require.NoError(a.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

// issue makes a certificate for this machine's loopback address and returns its files.
func (a *authority) issue() (cert, key, ca string) {
	a.t.Helper()
	a.n++
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(a.n), Subject: pkix.Name{CommonName: "replica"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, &k.PublicKey, a.key)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalECPrivateKey(k)
	require.NoError(a.t, err)
	name := strconv.FormatInt(a.n, 10)
	return a.write(name+".pem", "CERTIFICATE", der), a.write(name+".key", "EC PRIVATE KEY", keyDER), filepath.Join(a.dir, "ca.pem")
}

func TestReplicasTalkTLS(t *testing.T) {
	a := newAuthority(t)
	g := newTestGroup(t, 3, 0)
	for i := range g.cfgs {
		conf, err := loadTLS(a.issue())
		require.NoError(t, err)
		g.cfgs[i].tls = conf
	}
	for i := range g.cfgs {
		g.start(i)
	}
	leader := g.waitLeader()
	assert.Equal(t, "+OK", dialRaw(t, g.cfgs[leader].redis).do("set a 1"))

	// A client without a certificate of that authority is not listened to.
	conn, err := tls.Dial("tcp", g.cfgs[leader].raft, &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		defer conn.Close()
		require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		_, err = conn.Read(make([]byte, 1))
	}
	assert.Error(t, err)
	assert.NotContains(t, err.Error(), "timeout")
}

func TestTLSFilesThatMakeNoSense(t *testing.T) {
	a := newAuthority(t)
	cert, key, ca := a.issue()
	_, otherKey, _ := a.issue()
	empty := filepath.Join(a.dir, "empty")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	for _, test := range []struct{ cert, key, ca, want string }{
		{cert, key, "", "given together"},
		{cert, otherKey, ca, "does not match"},
		{cert, key, empty, "holds no certificate"},
		{cert, key, "none", "no such file"},
	} {
		_, err := loadTLS(test.cert, test.key, test.ca)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: want an error with %q", err, test.want)
		}
	}
}
