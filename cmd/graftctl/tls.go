package main

import (
	"crypto/tls"
	"crypto/x509"
	"os"

	"github.com/spf13/pflag"
)

// tlsFlags say how connections are secured.
type tlsFlags struct{ ca, cert, key, serverName string }

func (t *tlsFlags) register(f *pflag.FlagSet) {
	f.StringVar(&t.ca, "tls-ca", "", "file with the certificates that servers must be signed by; with any --tls flag TLS is used")
	f.StringVar(&t.cert, "tls-cert", "", "file with this client's certificate")
	f.StringVar(&t.key, "tls-key", "", "file with its key")
	f.StringVar(&t.serverName, "tls-server-name", "", "name that servers' certificates must have (default the host in their address)")
}

// config is what the flags ask for, nil for plain TCP.
func (t *tlsFlags) config() (*tls.Config, error) {
	if *t == (tlsFlags{}) {
		return nil, nil
	}
	c := &tls.Config{ServerName: t.serverName, MinVersion: tls.VersionTLS12}
	if t.ca == "" {
		roots, err := x509.SystemCertPool() // the transport must be told, for it serves others, too
		if err != nil {
			return nil, &failure{Message: "without --tls-ca: " + err.Error()}
		}
		c.RootCAs = roots
	} else {
		pem, err := os.ReadFile(t.ca)
		if err != nil {
			return nil, &failure{Message: "--tls-ca: " + err.Error()}
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, &failure{Message: "--tls-ca: " + t.ca + " has no certificate in PEM form"}
		}
	}
	if (t.cert == "") != (t.key == "") {
		return nil, &failure{Message: "--tls-cert and --tls-key belong together: give both, or none"}
	}
	if t.cert != "" {
		pair, err := tls.LoadX509KeyPair(t.cert, t.key)
		if err != nil {
			return nil, &failure{Message: "--tls-cert and --tls-key: " + err.Error()}
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
