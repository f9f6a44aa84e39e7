package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/graft-raft/graft"
)

// The demo's replicas, on this machine only.
var demoAddresses = []struct{ raft, redis string }{
	{"127.0.0.1:8101", "127.0.0.1:6381"},
	{"127.0.0.1:8102", "127.0.0.1:6382"},
	{"127.0.0.1:8103", "127.0.0.1:6383"},
}

const demoText = `graft kv: three replicas in this process, data in %s
  redis-cli -c -p 6381 set greeting hello
  redis-cli -c -p 6382 get greeting
  redis-cli -c -p 6383 info raft
  redis-benchmark -p <the leader's port> -t set,get -P 16 -n 200000
Ctrl-C ends it and removes the data.
`

// demo runs three replicas in this process until ctx ends, on a directory that it removes.
func demo(ctx context.Context, stdout io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "graft-kv-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	log, err := newLogger("error")
	if err != nil {
		return err
	}
	list := ""
	for _, a := range demoAddresses {
		list += "," + a.raft
	}
	peers, err := graft.ParseConfiguration(list[1:])
	if err != nil {
		return err
	}
	out := &lineWriter{w: stdout}
	var replicas []*replica
	defer func() {
		for _, r := range replicas {
			err = errors.Join(err, r.Close())
		}
	}()
	for i, a := range demoAddresses {
		r, err := startReplica(replicaConfig{
			raft: a.raft, redis: a.redis, dir: filepath.Join(dir, strconv.Itoa(i+1)), group: "kv",
			peers: peers, electionTimeout: time.Second, snapshots: defaultSnapshots, log: log,
			onLeader: func(term int64) {
				out.printf("term %d: %s leads, redis-cli -p %d\n", term, a.raft, portOf(a.redis))
			},
		})
		if err != nil {
			return fmt.Errorf("replica %d: %w", i+1, err)
		}
		replicas = append(replicas, r)
	}
	out.printf(demoText, dir)
	<-ctx.Done()
	out.printf("closing\n")
	return nil
}

// lineWriter writes whole texts of several replicas.
//
// Ownership: mu guards w.
type lineWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineWriter) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, format, args...)
}
