package graft

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/rpc"
	"github.com/graft-raft/graft/raftpb"
)

// A host is busy as long as its log is written, and for a moment longer.
func TestAHostIsBusyWhileItsLogIsWritten(t *testing.T) {
	now := time.Unix(1000, 0)
	var tr traffic
	assert.False(t, tr.busy(now, 0), "nothing has been written")
	assert.True(t, tr.busy(now, 1))
	for n := range 10 {
		now = now.Add(busyFor / 2)
		assert.True(t, tr.busy(now, int64(n+2)))
	}
	assert.True(t, tr.busy(now.Add(busyFor-1), 11))
	assert.False(t, tr.busy(now.Add(busyFor), 11))
	assert.True(t, tr.busy(now.Add(time.Hour), 12))
}

// Whoever is polite has as many pieces on their way as the distance demands, and never more than others.
func TestPoliteCopiesOverDistances(t *testing.T) {
	for _, test := range []struct {
		window   int
		quickest time.Duration
		room     int
	}{
		{copyWindow, 0, 1},
		{copyWindow, time.Millisecond, 1},
		{copyWindow, 4 * politeWait, 5},
		{copyWindow, time.Second, copyWindow},
		{2, time.Second, 2},
	} {
		in := &install{window: test.window, quickest: test.quickest}
		assert.Equal(t, test.room, in.room(true), "%+v", test)
		assert.Equal(t, test.window, in.room(false))
	}
}

// How far away a sender is, only what came from it tells.
func TestWhatFailsTellsNothingOfTheDistance(t *testing.T) {
	in := &install{graft: true, window: copyWindow, piece: copyPiece}
	in.pace(time.Microsecond, false)
	in.pace(40*time.Millisecond, true)
	in.pace(time.Millisecond, false)
	assert.Equal(t, 1+int(40*time.Millisecond/politeWait), in.room(true))
	in.pace(20*time.Millisecond, true)
	in.pace(time.Second, true)
	assert.Equal(t, 1+int(20*time.Millisecond/politeWait), in.room(true))
}

// A sender that gives less than it is asked for counts as busy until it gives more, and not for ever if it is never asked for more.
func TestHowLongASenderCountsAsBusy(t *testing.T) {
	now := time.Unix(1000, 0)
	in := &install{graft: true, patience: copyPatience}
	in.given(now, copyPiece, copyPiece, false)
	assert.False(t, in.comesShort(now))
	in.given(now, copyPiece, politePiece, false)
	assert.True(t, in.comesShort(now))
	in.given(now, politePiece, politePiece, false)
	assert.True(t, in.comesShort(now), "it was not asked for more")
	assert.False(t, in.comesShort(now.Add(copyPatience)))
	in.given(now, copyPiece, 5, true)
	assert.False(t, in.comesShort(now), "there is not more")
	in.given(now, copyPiece, politePiece, false)
	in.given(now, copyPiece, copyPiece, false)
	assert.False(t, in.comesShort(now))
}

// appearBusy has the host count as busy from now on, or as idle.
func (h *Host) appearBusy(busy bool) {
	syncs := h.store.Stats().Syncs
	h.traffic.mu.Lock()
	defer h.traffic.mu.Unlock()
	h.traffic.syncs, h.traffic.at = syncs, time.Time{}
	if busy {
		h.traffic.at = h.env.Exec.Now().Add(time.Hour)
	}
}

// reads is what is seen of get_file. mu is a leaf lock.
type reads struct {
	mu      sync.Mutex
	from    int64 // a read counts from this offset on
	out     map[*rpc.Call]bool
	atOnce  int   // most at the same time
	largest int64 // that was answered
}

// watch is a rule that changes nothing.
func (r *reads) watch(m *message) fate {
	ask := new(raftpb.GetFileRequest)
	if m.method != methodGetFile || proto.Unmarshal(m.call.Message[0], ask) != nil || ask.GetFilename() == metaFile || ask.GetOffset() < r.from {
		return fate{}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.answer {
		delete(r.out, m.call)
		return fate{}
	}
	r.out[m.call] = true
	r.atOnce = max(r.atOnce, len(r.out))
	return fate{}
}

// see looks at an answer.
func (r *reads) see(m *message, rep *rpc.Reply) {
	if m.method == methodGetFile {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.largest = max(r.largest, int64(len(rep.Attachment)))
	}
}

// While one of the two hosts writes its log, pieces of a snapshot are small and few; while neither does, they are large.
func TestACopyYieldsToTheLog(t *testing.T) {
	const size = 12 << 20
	for _, test := range []struct {
		name             string
		sender, receiver bool
	}{
		{"the sender is busy", true, false},
		{"the receiver is busy", false, true},
		{"neither is", false, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := compacted(t, 2, size, NodeOptions{ElectionTimeout: 10 * time.Second})
			r := &reads{from: size / 2, out: make(map[*rpc.Call]bool)}
			c.net.set(c.keepBusy(test.sender, test.receiver), r.watch)
			c.net.corrupt = r.see
			require.NoError(t, c.add(0, 1).wait())
			c.sameData(0, 1)
			r.mu.Lock()
			defer r.mu.Unlock()
			if test.sender || test.receiver {
				assert.LessOrEqual(t, r.largest, int64(politePiece+1<<10))
				assert.LessOrEqual(t, r.atOnce, copyWindow/2)
				return
			}
			assert.Greater(t, r.largest, int64(politePiece+1<<10))
		})
	}
}
