package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"regexp"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A short tour succeeds, says what it is to say, and leaves nothing behind.
func TestTour(t *testing.T) {
	var out, stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, buildKV(t), "tour", "-members", "1", "-preload", "5000", "-pace", "100ms")
	cmd.Stdout, cmd.Stderr = &out, &stderr
	require.NoError(t, cmd.Run(), "%s%s", out.String(), stderr.String())
	assert.Empty(t, stderr.String())
	for _, want := range []string{
		"catching-up: . lacks [0-9,]+ entries", "stable", "done", `members are .*\*.* \(\* leads\)`, "is stopped, its data is removed",
		`joint: . leads, kill -9 \d+`, `the (old|new) configuration is in force`, `RAFT TRANSFER from . to .`,
		`from .\*: ([0-9,]+) of ([0-9,]+) acknowledged writes are there`, "longest pause", "Nothing was lost, and all members hold the same.",
	} {
		assert.Regexp(t, want, out.String())
	}
	assertNothingLeft(t, out.String())
}

// Ctrl-C ends it early, and leaves nothing behind either.
func TestInterruptedTourCleansUp(t *testing.T) {
	var out lockedBuffer
	cmd := exec.Command(buildKV(t), "tour", "-pace", "1m", "-preload", "1000")
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	defer cmd.Process.Kill()
	waitFor(t, "it writes", func() bool { return regexp.MustCompile("the writers have begun").MatchString(out.String()) })
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	assert.Error(t, cmd.Wait())
	assert.Equal(t, 1, cmd.ProcessState.ExitCode())
	assert.Regexp(t, "kv: interrupted\n$", out.String())
	assertNothingLeft(t, out.String())
}

// assertNothingLeft checks that the tour's directory is gone, and that nobody listens where its replicas did.
func assertNothingLeft(t *testing.T, out string) {
	t.Helper()
	dir := regexp.MustCompile(`data below (\S+)\.\n`).FindStringSubmatch(out)
	require.Len(t, dir, 2, out)
	_, err := os.Stat(dir[1])
	assert.ErrorIs(t, err, os.ErrNotExist)
	addrs := regexp.MustCompile(`redis (127\.0\.0\.1:\d+)`).FindAllStringSubmatch(out, -1)
	assert.NotEmpty(t, addrs)
	for _, addr := range addrs {
		conn, err := net.Dial("tcp", addr[1])
		if err == nil {
			conn.Close()
		}
		assert.Error(t, err, addr[1])
	}
}

// A tour whose replicas do not start fails and says what they said.
func TestTourThatFailsSaysWhy(t *testing.T) {
	var out bytes.Buffer
	err := runTour(t.Context(), tourOptions{members: 3, writers: 1}, "/bin/false", &out)
	require.Error(t, err)
	assert.Regexp(t, `^step 1, three replicas start: replica [ABC] has ended: exit status 1$`, err.Error()) // whichever ends first
	assertNothingLeft(t, out.String())
}

// The tour's check must see what it is there for.
func TestReadBackSeesWhatIsLost(t *testing.T) {
	g := newTestGroup(t, 1, 1)
	c := dialRaw(t, g.cfgs[g.waitLeader()].redis)
	assert.Equal(t, "+OK", c.do("mset a 1 b 2 c 3"))
	tr := &tour{ctx: t.Context(), w: &tourWriters{
		acked:   map[string]string{"a": "1", "b": "other", "d": "4"},
		unknown: map[string]string{"c": "3", "e": "5"},
	}}
	lost, found, err := tr.readBack(&tourReplica{name: "A", redis: g.cfgs[0].redis})
	require.NoError(t, err)
	assert.Equal(t, 2, lost, "b and d")
	assert.Equal(t, 1, found, "c")
}
