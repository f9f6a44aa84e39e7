package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// How long the tour waits for one answer, and for the group to come to rest.
const (
	tourAnswer = 2 * time.Second
	tourRest   = 30 * time.Second
)

// tourReplica is one kv serve in a process of its own.
type tourReplica struct {
	name  string // A, B, …
	raft  string
	redis string
	dir   string
	peers string // what it is started with; empty: it waits to be added
	cmd   *exec.Cmd
	stdin io.Closer     // the process ends with it, so it does not outlive the tour
	ended chan struct{} // closed when the process has ended, and was waited for
}

// tourGroup is the processes of the tour.
//
// Invariant: every process that was started and not yet waited for is in running.
//
// Ownership: the tour's goroutine changes it; mu, a leaf lock, guards running, which the writers read.
type tourGroup struct {
	binary  string
	dir     string
	started int

	mu      sync.Mutex
	running []*tourReplica
}

// freeLoopback returns addresses of a loopback host that nobody listens on, outside the range that the kernel takes for
// outgoing connections, so that they are still free when a replica is started again.
func freeLoopback(host string, n int) (addrs []string, err error) {
	for range 10_000 {
		if len(addrs) == n {
			return addrs, nil
		}
		addr := net.JoinHostPort(host, strconv.Itoa(15_000+rand.IntN(17_000)))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		defer l.Close() // until all are found, so that none is found twice
		addrs = append(addrs, addr)
	}
	return nil, errors.New("no free ports")
}

// prepare makes replicas without starting them. If together is set they are to start the group; else
// each waits to be added to it.
func (g *tourGroup) prepare(n int, together bool) ([]*tourReplica, error) {
	addrs, err := freeLoopback("127.0.0.1", 2*n)
	if err != nil {
		return nil, err
	}
	var all []*tourReplica
	for i := range n {
		r := &tourReplica{name: replicaName(g.started), raft: addrs[i], redis: addrs[n+i]}
		g.started++
		r.dir = filepath.Join(g.dir, r.name)
		if together {
			r.peers = strings.Join(addrs[:n], ",")
		}
		all = append(all, r)
	}
	return all, nil
}

// replicaName is A to Z, then A1 and so on.
func replicaName(i int) string {
	name := string(rune('A' + i%26))
	if i >= 26 {
		name += strconv.Itoa(i / 26)
	}
	return name
}

// start starts a replica's process, for the first time or again.
func (g *tourGroup) start(r *tourReplica) error {
	log, err := os.OpenFile(r.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	r.cmd = exec.Command(g.binary, "serve", "-raft", r.raft, "-redis", r.redis, "-dir", r.dir, "-peers", r.peers, "-until-eof")
	r.cmd.Stderr = log
	if r.stdin, err = r.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := r.cmd.Start(); err != nil {
		return fmt.Errorf("replica %s: %w", r.name, err)
	}
	cmd, ended := r.cmd, make(chan struct{})
	r.ended = ended
	go func() {
		defer close(ended)
		cmd.Wait() // how it ended is in cmd.ProcessState
	}()
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = append(g.running, r)
	return nil
}

// allRun returns an error if a process has ended that was not ended by the tour.
func (g *tourGroup) allRun() error {
	for _, r := range g.list() {
		select {
		case <-r.ended:
			return fmt.Errorf("replica %s has ended: %v", r.name, r.cmd.ProcessState)
		default:
		}
	}
	return nil
}

// add starts n new replicas that wait to be added.
func (g *tourGroup) add(n int) ([]*tourReplica, error) {
	all, err := g.prepare(n, false)
	for _, r := range all {
		err = errors.Join(err, g.start(r))
	}
	return all, err
}

// kill ends a replica as a crash would, kill -9, and returns its process number.
func (g *tourGroup) kill(r *tourReplica) (pid int) {
	pid = r.cmd.Process.Pid
	r.cmd.Process.Kill()
	r.stdin.Close()
	<-r.ended
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = slices.DeleteFunc(slices.Clone(g.running), func(o *tourReplica) bool { return o == r })
	return pid
}

// discard ends a replica that is no member, and removes what it stored.
func (g *tourGroup) discard(all ...*tourReplica) error {
	var err error
	for _, r := range all {
		g.kill(r)
		err = errors.Join(err, os.RemoveAll(r.dir))
	}
	return err
}

// close ends all processes.
func (g *tourGroup) close() {
	for _, r := range g.list() {
		g.kill(r)
	}
}

func (g *tourGroup) list() []*tourReplica {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running
}

// find returns the running replicas with these raft addresses, in this order.
func (g *tourGroup) find(rafts string) (found []*tourReplica) {
	for raft := range strings.SplitSeq(rafts, ",") {
		for _, r := range g.list() {
			if r.raft == raft {
				found = append(found, r)
			}
		}
	}
	return found
}

// ask sends one command on a connection of its own. It gives up when ctx ends.
func (r *tourReplica) ask(ctx context.Context, timeout time.Duration, args ...string) (any, error) {
	c, err := dialClient(r.redis, min(timeout, tourAnswer))
	if err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, c.close)()
	defer c.close()
	v, err := c.do(timeout, args...)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return v, err
}

// status is RAFT STATUS; empty if the replica does not answer.
func (r *tourReplica) status(ctx context.Context) map[string]string {
	v, err := r.ask(ctx, tourAnswer, "RAFT", "STATUS")
	text, ok := v.(string)
	if err != nil || !ok {
		return nil
	}
	return parseInfo(text)
}

// leader returns the replica that leads in the latest term and its status, nil if there is none.
func (g *tourGroup) leader(ctx context.Context) (leader *tourReplica, st map[string]string) {
	latest := -1
	for _, r := range g.list() {
		info := r.status(ctx)
		term, err := strconv.Atoi(info["raft_term"])
		if err == nil && info["raft_role"] == "leader" && term > latest {
			leader, st, latest = r, info, term
		}
	}
	return leader, st
}

// rest waits until there is a leader with no change under way, and returns it with the group's members.
func (g *tourGroup) rest(ctx context.Context) (leader *tourReplica, members []*tourReplica, err error) {
	var dead error
	err = until(ctx, tourRest, "a leader with no change under way", func() bool {
		if dead = g.allRun(); dead != nil {
			return true
		}
		var st map[string]string
		if leader, st = g.leader(ctx); leader == nil || st["raft_stage"] != "none" {
			return false
		}
		members = g.find(st["raft_peers"])
		return slices.Contains(members, leader) // else it is about to hand over
	})
	return leader, members, errors.Join(dead, err)
}

// until polls until ok, for a time at most.
func until(ctx context.Context, most time.Duration, what string, ok func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("%v passed and still not: %s", most, what))
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
	return nil
}

// admin has the leader carry out a command, whoever that is; what was certainly not done is tried again.
func (g *tourGroup) admin(ctx context.Context, args ...string) (err error) {
	for start := time.Now(); time.Since(start) < tourRest; {
		leader, _, restErr := g.rest(ctx)
		if restErr != nil {
			return errors.Join(err, restErr)
		}
		if _, err = leader.ask(ctx, tourRest, args...); !nothingDone(err) {
			return err
		}
	}
	return err
}

// raftList is the replicas' raft addresses as RAFT CHANGE wants them.
func raftList(all []*tourReplica) string {
	addrs := make([]string, 0, len(all))
	for _, r := range all {
		addrs = append(addrs, r.raft)
	}
	return strings.Join(addrs, ",")
}

// nameList is the replicas' names in order, the leader's with a star.
func nameList(all []*tourReplica, leader *tourReplica) string {
	names := make([]string, 0, len(all))
	for _, r := range all {
		if r == leader {
			names = append(names, r.name+"*")
		} else {
			names = append(names, r.name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// sameReplicas reports whether both have the same members, in any order.
func sameReplicas(a, b []*tourReplica) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(r *tourReplica) bool { return !slices.Contains(b, r) })
}

// without returns all but some.
func without(all []*tourReplica, some ...*tourReplica) []*tourReplica {
	return slices.DeleteFunc(slices.Clone(all), func(r *tourReplica) bool { return slices.Contains(some, r) })
}
