package graft

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// saver is a recorder whose snapshots are saved at once, on a stage.
type saver struct {
	*recorder
	broken bool
	begun  int
}

func (s *saver) OnSnapshotSave(w *SnapshotWriter, done Closure) {
	s.begun++
	if s.broken {
		done(errors.New("no snapshot today"))
		return
	}
	f, err := w.Create("data")
	if err == nil {
		_, err = f.Write(make([]byte, 1000))
		err = errors.Join(err, f.Close())
	}
	done(err)
}

// newSaver is a leader alone, on a stage, that saves snapshots.
func newSaver(t *testing.T, o NodeOptions) (*stage, *saver) {
	sv := &saver{recorder: &recorder{}}
	o.StateMachine = sv
	s := newStage(t, 1, o)
	s.fsm = sv.recorder
	s.until(func() bool { return s.node.role == RoleLeader }, "the node does not lead")
	return s, sv
}

// applyMany applies entries of 100 bytes, one after the other.
func (s *stage) applyMany(count int) {
	for i := range count {
		s.apply(fmt.Sprintf("%0100d", i))
		s.pass(10 * time.Millisecond)
	}
}

// An unasked snapshot that fails is tried again, after a pause.
func TestAnUnaskedSnapshotIsTriedAgain(t *testing.T) {
	for _, o := range []NodeOptions{{SnapshotEntries: 10}, {SnapshotBytes: 1000}, {SnapshotInterval: time.Second}} {
		s, sv := newSaver(t, o)
		sv.broken = true
		s.applyMany(12)
		s.pass(2 * time.Second)
		assert.Equal(t, 1, sv.begun, "%+v", o)
		s.applyMany(30)
		assert.Equal(t, 1, sv.begun, "not at each entry")
		s.pass(snapshotRetry)
		assert.Equal(t, 2, sv.begun)
		sv.broken = false
		s.pass(snapshotRetry)
		assert.Equal(t, 3, sv.begun)
		assert.Equal(t, s.node.Status().AppliedIndex, s.node.Status().Snapshot.Index)
		s.end()
	}
}

// What was applied before the last snapshot does not count for the next one.
func TestBytesCountForOneSnapshot(t *testing.T) {
	s, sv := newSaver(t, NodeOptions{SnapshotBytes: 2000})
	s.applyMany(100)
	assert.InDelta(t, 5, sv.begun, 1, "one for each 2000 bytes")
	s.end()
}

// S16: reads that were refused because too many wait do not count as waiting.
func TestRefusedReadsOfASnapshotLeaveNoTrace(t *testing.T) {
	s, _ := newSaver(t, NodeOptions{SnapshotEntries: 10})
	s.applyMany(12)
	lent, err := s.node.snap.lend(new(replicator))
	require.NoError(t, err)
	defer lent.giveBack()
	b, err := proto.Marshal(&raftpb.GetFileRequest{
		ReaderId: &lent.id, Filename: proto.String("data"), Count: proto.Int64(10), Offset: proto.Int64(0), ReadPartly: proto.Bool(true),
	})
	require.NoError(t, err)
	for round := range 3 {
		codes := make(map[int32]int)
		for range 3 * maxQueuedReads {
			s.serve(rpc.NewRequest(fileServiceName, methodGetFile, b, nil, stagePeers[1], func(code int32, _ string, _ []byte, _ [][]byte) {
				codes[code]++
			}))
		}
		s.pass(time.Second)
		assert.Equal(t, map[int32]int{0: maxQueuedReads, codeAgain: 2 * maxQueuedReads}, codes, "round %d", round)
	}
}
