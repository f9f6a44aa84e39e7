// Package env is what a Host takes from its surroundings: who runs its actors and
// tells the time, where its files are, what is random. Tests replace all of it;
// production uses Default.
package env

import (
	"math/rand/v2"

	"github.com/graft-raft/graft/internal/actor"
	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/internal/wal"
)

// Env is a host's surroundings.
type Env struct {
	Exec actor.Executor
	FS   vfs.FS
	Rand func() uint64
	WAL  wal.Options // sizes and limits; the host fills in the rest

	// Close is called when the host has ended; may be nil.
	Close func()
}

// Default is the real world.
func Default() *Env {
	g := actor.NewGoroutines()
	return &Env{Exec: g, FS: vfs.OS{}, Rand: rand.Uint64, Close: g.Close}
}
