package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"regexp"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// lockedBuffer is what the demo writes to while the test looks.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestDemo(t *testing.T) {
	for _, a := range demoAddresses {
		for _, addr := range []string{a.raft, a.redis} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Skipf("the demo's ports are taken: %v", err)
			}
			l.Close()
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var out lockedBuffer
	done := make(chan error, 1)
	go func() { done <- run(ctx, nil, &out, &out) }()
	leads := regexp.MustCompile(`term \d+: 127\.0\.0\.1:810\d leads, redis-cli -p 638\d\n`)
	waitFor(t, "a leader", func() bool { return leads.MatchString(out.String()) })
	c := dialRaw(t, demoAddresses[0].redis)
	assert.Equal(t, "+OK", c.do("readonly"))
	waitFor(t, "reads", func() bool { return c.do("get a") == "$null" })
	dir := regexp.MustCompile(`data in (\S+)`).FindStringSubmatch(out.String())
	require.Len(t, dir, 2, out.String())
	assert.DirExists(t, dir[1])
	cancel()
	require.NoError(t, <-done)
	_, err := os.Stat(dir[1])
	assert.ErrorIs(t, err, os.ErrNotExist)
}
