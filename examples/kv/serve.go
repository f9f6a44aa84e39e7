package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/graft-raft/graft"
)

// serveConfig is what kv serve is told.
type serveConfig struct {
	replicaConfig
	untilEOF bool // end when standard input does
}

// parseServe reads the flags of kv serve.
func parseServe(args []string, stderr io.Writer) (cfg serveConfig, err error) {
	flags := flag.NewFlagSet("kv serve", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // errors are printed once, by main
	flags.StringVar(&cfg.raft, "raft", "", "`host:port` at which the other replicas reach this one; required")
	flags.StringVar(&cfg.listen, "raft-listen", "", "`host:port` to bind for them, if it is another one than that of -raft: behind a proxy, in a container")
	flags.StringVar(&cfg.redis, "redis", "", "`host:port` at which clients reach it; required")
	flags.StringVar(&cfg.dir, "dir", "", "`directory` of this replica's data; required")
	flags.StringVar(&cfg.group, "group", "kv", "`name` of the group")
	peers := flags.String("peers", "", "raft addresses of the replicas that start the group, `a,b,c`, this one included;\nthe same for each; empty: wait to be added to a group")
	flags.DurationVar(&cfg.electionTimeout, "election-timeout", time.Second, "how long a follower waits for its leader")
	snapshotFlags(flags, &cfg.snapshots)
	flags.BoolVar(&cfg.untilEOF, "until-eof", false, "end when standard input ends, so as not to outlive the program that started it")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	cert := flags.String("tls-cert", "", "`file` with this replica's certificate, for TLS between the replicas")
	key := flags.String("tls-key", "", "`file` with its private key")
	ca := flags.String("tls-ca", "", "`file` with the certificates that the other replicas' must be signed by")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stderr)
			fmt.Fprintln(stderr, "usage: kv serve -raft host:port -redis host:port -dir directory [flags]")
			flags.PrintDefaults()
		}
		return cfg, err
	}
	if flags.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if cfg.dir == "" {
		return cfg, errors.New("-dir is missing")
	}
	if err := checkAddress("-raft", cfg.raft); err != nil {
		return cfg, err
	}
	if cfg.listen != "" {
		if err := checkAddress("-raft-listen", cfg.listen); err != nil {
			return cfg, err
		}
	}
	if err := checkAddress("-redis", cfg.redis); err != nil {
		return cfg, err
	}
	if cfg.group == "" {
		return cfg, errors.New("-group is empty")
	}
	if cfg.electionTimeout < 10*time.Millisecond {
		return cfg, fmt.Errorf("-election-timeout is %v, must be at least 10ms", cfg.electionTimeout)
	}
	if err := cfg.snapshots.check(); err != nil {
		return cfg, err
	}
	if cfg.peers, err = parsePeers(*peers, cfg.raft); err != nil {
		return cfg, fmt.Errorf("-peers: %w", err)
	}
	if cfg.log, err = newLogger(*level); err != nil {
		return cfg, fmt.Errorf("-log-level: %w", err)
	}
	if cfg.tls, err = loadTLS(*cert, *key, *ca); err != nil {
		return cfg, err
	}
	return cfg, nil
}

func checkAddress(name, addr string) error {
	if addr == "" {
		return errors.New(name + " is missing")
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if n, ok := parseInt([]byte(port)); host == "" || !ok || n < 0 || n > 65535 {
		return fmt.Errorf("%s is %q, must be host:port", name, addr)
	}
	return nil
}

// defaultSnapshots are those of kv serve and of the demo.
var defaultSnapshots = snapshotConfig{interval: time.Hour, entries: 1_000_000, bytes: 1 << 30, margin: 10_000}

// snapshotFlags are the flags of kv serve that say when snapshots are saved. 0 is never.
func snapshotFlags(flags *flag.FlagSet, c *snapshotConfig) {
	*c = defaultSnapshots
	flags.DurationVar(&c.interval, "snapshot-interval", c.interval, "how long after the last snapshot the next is saved, at most, if anything has changed; 0: this is no reason")
	flags.Int64Var(&c.entries, "snapshot-entries", c.entries, "after how many log entries a snapshot is saved; 0: this is no reason")
	flags.Int64Var(&c.bytes, "snapshot-bytes", c.bytes, "after how many bytes of log entries a snapshot is saved; 0: this is no reason")
	flags.IntVar(&c.margin, "snapshot-margin", c.margin, "how many entries the log keeps behind a snapshot, for replicas that are a little behind")
	flags.Int64Var(&c.rate, "snapshot-rate", c.rate, "bytes per `second` that snapshots may be copied with, in each direction; 0: no bound")
}

// check refuses what makes no sense, and turns the flags' 0 into the library's never.
func (c *snapshotConfig) check() error {
	switch {
	case c.interval < 0:
		return fmt.Errorf("-snapshot-interval is %v, must not be negative", c.interval)
	case c.entries < 0:
		return fmt.Errorf("-snapshot-entries is %d, must not be negative", c.entries)
	case c.bytes < 0:
		return fmt.Errorf("-snapshot-bytes is %d, must not be negative", c.bytes)
	case c.margin < 0:
		return fmt.Errorf("-snapshot-margin is %d, must not be negative", c.margin)
	case c.rate < 0:
		return fmt.Errorf("-snapshot-rate is %d, must not be negative", c.rate)
	}
	c.interval, c.entries, c.bytes, c.margin = orNever(c.interval), orNever(c.entries), orNever(c.bytes), orNever(c.margin)
	return nil
}

func orNever[T int | int64 | time.Duration](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

// parsePeers reads the configuration that starts the group. This replica must be in it, or else it would wait for
// ever.
func parsePeers(list, self string) (conf graft.Configuration, err error) {
	if list == "" {
		return conf, nil
	}
	if conf, err = graft.ParseConfiguration(list); err != nil {
		return conf, err
	}
	me, err := graft.ParsePeerID(self)
	if err != nil {
		return conf, err
	}
	if !conf.Contains(me) {
		return conf, fmt.Errorf("%s is not among %s", self, list)
	}
	return conf, nil
}

// newLogger writes lines for people to stderr.
func newLogger(level string) (*zap.Logger, error) {
	l, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, err
	}
	enc := zap.NewProductionEncoderConfig()
	enc.EncodeTime = zapcore.ISO8601TimeEncoder
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(enc), zapcore.Lock(os.Stderr), l)), nil
}

// loadTLS reads what mutual TLS between the replicas takes; nil if no file is named.
func loadTLS(cert, key, ca string) (*tls.Config, error) {
	if cert == "" && key == "" && ca == "" {
		return nil, nil
	}
	if cert == "" || key == "" || ca == "" {
		return nil, errors.New("-tls-cert, -tls-key and -tls-ca must be given together")
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("-tls-cert, -tls-key: %w", err)
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("-tls-ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("-tls-ca: %s holds no certificate", ca)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair},
		RootCAs:      pool,
		ClientCAs:    pool,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		MinVersion:   tls.VersionTLS13,
	}, nil
}

// untilEOF returns a context that ends with ctx, or when r does. The goroutine that reads lives as long as the process.
func untilEOF(ctx context.Context, r io.Reader) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		io.Copy(io.Discard, r)
	}()
	return ctx
}

// serve runs one replica until ctx ends.
func serve(ctx context.Context, cfg serveConfig) error {
	r, err := startReplica(cfg.replicaConfig)
	if err != nil {
		return err
	}
	cfg.log.Info("serving", zap.String("raft", cfg.raft), zap.String("redis", r.cfg.redis), zap.String("dir", cfg.dir),
		zap.Stringer("peers", cfg.peers))
	if cfg.untilEOF {
		ctx = untilEOF(ctx, os.Stdin)
	}
	<-ctx.Done()
	cfg.log.Info("closing")
	return r.Close()
}
