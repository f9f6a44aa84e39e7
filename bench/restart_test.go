package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/graft-raft/graft"
)

// saver is a state machine whose snapshots hold the number of entries, and nothing else. Its goroutine is the node's.
type saver struct {
	graft.BaseStateMachine
	entries uint64
	want    uint64
	there   chan struct{} // closed once that many are applied
}

func newSaver(want uint64) *saver { return &saver{want: want, there: make(chan struct{})} }

func (s *saver) OnApply(it *graft.Iterator) {
	for it.Next() {
		if s.entries++; s.entries == s.want {
			close(s.there)
		}
	}
}

func (s *saver) OnSnapshotSave(w *graft.SnapshotWriter, done graft.Closure) {
	f, err := w.Create("entries")
	if err == nil {
		_, err = f.Write(binary.BigEndian.AppendUint64(nil, s.entries))
		err = errors.Join(err, f.Close())
	}
	done(err)
}

func (s *saver) OnSnapshotLoad(r *graft.SnapshotReader) error {
	f, err := r.Open("entries")
	if err != nil {
		return err
	}
	b := make([]byte, 8)
	_, err = io.ReadFull(f, b)
	s.entries = binary.BigEndian.Uint64(b)
	return errors.Join(err, f.Close())
}

// BenchmarkRestart opens a group of one with a snapshot and 100,000 entries behind it, and waits until all are applied. The
// snapshot is small, so this is what the log takes of a restart, however large the snapshot is: open-ms until the log store
// is open, apply-ms from when the snapshot is loaded. The files are in the system's cache, as after a restart of the process.
//
// With two processors, and others at work: 67 ms with 128-byte entries (24 open, 39 apply), 242 ms with 1 KiB (46, 193); 121 and 439 ms
// where the cache was dropped before. It is to be less than a second.
func BenchmarkRestart(b *testing.B) {
	for _, payload := range []int{128, 1024} {
		b.Run(fmt.Sprintf("payload=%d", payload), func(b *testing.B) { restart(b, payload) })
	}
}

func restart(b *testing.B, payload int) {
	const before, behind = 10, 100_000
	c := newCluster(b) // of which only an address and a directory are used
	addr, dir := c.addrs[0], c.dirs[0]
	start := func(fsm *saver) (host *graft.Host, node *graft.Node, opened, loaded time.Time) {
		host, err := graft.NewHost(graft.HostOptions{Address: addr, Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		opened = time.Now()
		node, err = host.StartNode("bench", graft.NodeOptions{
			StateMachine: fsm, InitialConf: graft.MustParseConfiguration(addr),
			SnapshotInterval: -1, SnapshotBytes: -1, SnapshotMargin: -1,
		})
		if err != nil {
			b.Fatal(errors.Join(err, host.Close()))
		}
		return host, node, opened, time.Now()
	}
	stop := func(host *graft.Host) {
		if err := host.Close(); err != nil {
			b.Fatal(err)
		}
	}
	first := newSaver(before)
	host, node, _, _ := start(first)
	for !node.IsLeader() {
		<-time.After(time.Millisecond)
	}
	write(b, node, before, payload)
	<-first.there
	if err := graft.Await(context.Background(), node.Snapshot); err != nil {
		b.Fatal(err)
	}
	write(b, node, behind, payload)
	stop(host)
	var open, apply time.Duration
	for b.Loop() {
		began, fsm := time.Now(), newSaver(before+behind)
		host, node, opened, loaded := start(fsm)
		<-fsm.there
		open, apply = open+opened.Sub(began), apply+time.Since(loaded)
		b.StopTimer()
		if s := node.Status(); s.FirstIndex <= before || s.LastIndex-s.FirstIndex < behind-1 {
			b.Fatalf("the log is %d to %d", s.FirstIndex, s.LastIndex)
		}
		stop(host)
		b.StartTimer()
	}
	b.ReportMetric(float64(open.Milliseconds())/float64(b.N), "open-ms")
	b.ReportMetric(float64(apply.Milliseconds())/float64(b.N), "apply-ms")
}

// write has the node apply so many entries.
func write(b *testing.B, node *graft.Node, entries, payload int) {
	var wg sync.WaitGroup
	window := make(chan struct{}, 1024)
	for range entries {
		window <- struct{}{}
		wg.Add(1)
		node.Apply(graft.Task{Data: make([]byte, payload), Done: func(_ any, err error) {
			if err != nil {
				b.Error(err)
			}
			<-window
			wg.Done()
		}})
	}
	wg.Wait()
}
