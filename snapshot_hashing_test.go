package graft

import (
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/internal/vfs"
)

// hashing has a follower copy a snapshot with a large file from a braft leader of term 3, and returns when that file is being hashed,
// where it is held up. It counts the pieces of it that are read.
func hashing(t *testing.T) (b *installBed, held *holdup, reads *atomic.Int32, answer chan rpc.Reply) {
	b, held, reads = newInstallBed(t), newHoldup(t), new(atomic.Int32)
	b.serve(braftFiles(t, 100, []string{b.leads.String()}, map[string]string{"big": strings.Repeat("x", 8<<20), "entries": `[]`}, "big", "entries"))
	b.disks[0].SetInjector(func(op vfs.Op) error {
		if strings.HasSuffix(op.Name, "/copy/big") && op.Kind == vfs.KindRead {
			reads.Add(1)
			held.pass()
		}
		return nil
	})
	answer = b.install(3, 100)
	held.reached()
	return b, held, reads, answer
}

// A node that ends does not wait until a file without hashes, which it has copied, is hashed.
func TestShutdownEndsTheHashingOfACopy(t *testing.T) {
	b, held, reads, answer := hashing(t)
	n, closed := b.nodes[0], make(chan struct{})
	go func() {
		b.stop(0)
		close(closed)
	}()
	b.eventually(n.snap.stopping.Load, "it does not end")
	held.release()
	receive(t, closed)
	receive(t, answer)
	assert.EqualValues(t, 1, reads.Load(), "pieces of it that were read")
}

// Nor does the snapshot of the next leader. The one before hears that there is another.
func TestTheNextLeaderEndsTheHashingOfACopy(t *testing.T) {
	b, held, reads, first := hashing(t)
	b.serve(braftFiles(t, 200, []string{b.leads.String()}, map[string]string{"entries": `["new"]`}, "entries"))
	second := b.install(4, 200)
	b.eventually(func() bool { return b.nodes[0].termNow.Load() == 4 }, "it does not hear of the next leader")
	held.release()
	resp := answered(t, first)
	assert.False(t, resp.GetSuccess())
	assert.EqualValues(t, 4, resp.GetTerm())
	installed(t, second)
	assert.EqualValues(t, 200, b.nodes[0].Status().Snapshot.Index)
	assert.EqualValues(t, 1, reads.Load(), "pieces of it that were read")
}
