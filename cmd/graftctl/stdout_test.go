package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/snapdir"
)

// full takes so many bytes and then fails like a file on a full disk.
type full struct{ room int }

func (f *full) Write(b []byte) (int, error) {
	n := min(f.room, len(b))
	f.room -= n
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// A result that could not be written whole is no success, and is complained about where that can be read.
func TestAResultThatCannotBeWrittenIsAFailure(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(home, snapshotsDir, snapdir.DirName("g", 0)), 0o777))
	for name, args := range map[string][]string{
		"text": {"snapshot", "list", home},
		"json": {"--json", "snapshot", "list", home},
		"help": {"--help"},
	} {
		t.Run(name, func(t *testing.T) {
			var out, complaint bytes.Buffer
			c := console{in: strings.NewReader(""), out: &out, err: &complaint}
			if !assert.Zero(t, run(context.Background(), args, c), complaint.String()) {
				return
			}
			for room := range min(out.Len(), 40) {
				complaint.Reset()
				c.out = &full{room: room}
				assert.Equal(t, 1, run(context.Background(), args, c))
				assert.Contains(t, complaint.String(), "cannot write to standard output: no space left on device")
			}
		})
	}
}
