package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/graft-raft/graft"
)

// A snapshot is a file with the state as a whole, and the keys in one or more files of some shardBytes, each with the keys of
// successive buckets. Of two snapshots, on whichever replicas, the same keys are in files with the same bytes, so that
// a replica that installs one needs not copy what it has from another.
const (
	stateFile  = "state"
	shardBytes = 16 << 20
	shardsMost = 256
)

func shardName(shard, shards int) string { return fmt.Sprintf("keys-%03d-of-%03d", shard, shards) }

// shardsFor is how many files keys and values of so many bytes are spread over: a power of two.
func shardsFor(bytes int64) int {
	n := 1
	for n < shardsMost && bytes/int64(n) > shardBytes {
		n *= 2
	}
	return n
}

// shardRange is the buckets [first, end) that a shard has.
func shardRange(shard, shards int) (first, end int) {
	size := scanBuckets / shards
	return shard * size, (shard + 1) * size
}

// frozen is everything that a snapshot holds, as it was at one moment.
type frozen struct {
	keys  *view
	redis map[string]string
	state snapshotState
}

// snapshotState is the state as a whole, without keys and table.
type snapshotState struct {
	index  int64 // of the last entry applied, as INFO tells it together with the digest
	saved  int64 // when: Unix time in nanoseconds
	size   int64
	bytes  int64
	digest uint64
	shards int
	conf   string // the latest that was committed
	by     string // who wrote this
	left   bool   // the writer was a member, and is none any more
}

var errSaving = errors.New("kv: a snapshot is being saved already")

// OnSnapshotSave freezes the state, and has a goroutine write it while entries are applied.
func (m *machine) OnSnapshotSave(w *graft.SnapshotWriter, done graft.Closure) {
	f, err := m.freeze()
	if err != nil {
		done(err)
		return
	}
	m.saves.Add(1)
	go func() {
		defer m.saves.Done()
		err := f.save(w)
		m.thaw(f, w.Index(), err == nil)
		done(err)
	}()
	if m.onFreeze != nil {
		m.onFreeze()
	}
}

// freeze takes a view of everything. It takes microseconds, whatever is stored.
func (m *machine) freeze() (*frozen, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys.view != nil {
		return nil, errSaving
	}
	v := m.keys.freeze()
	f := &frozen{keys: v, redis: maps.Clone(m.redis), state: snapshotState{
		index: m.index, saved: time.Now().UnixNano(), size: int64(v.size), bytes: v.bytes, digest: v.digest,
		shards: shardsFor(v.bytes), by: raftKey(m.self), left: m.left.Load(),
	}}
	if !m.conf.Empty() {
		f.state.conf = m.conf.String()
	}
	return f, nil
}

// thaw ends what freeze began.
func (m *machine) thaw(f *frozen, index int64, written bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys.thaw(f.keys)
	if written {
		m.noteSaved(index, f.state.saved)
	}
}

// savedKept is how many times of snapshots are remembered: of the one before the newest too, since
// a snapshot that was written may yet fail to be published.
const savedKept = 4

type savedAt struct{ index, unixNano int64 }

func (m *machine) noteSaved(index, unixNano int64) {
	m.savedAt = append(m.savedAt, savedAt{index, unixNano})
	m.savedAt = slices.Clone(m.savedAt[max(0, len(m.savedAt)-savedKept):])
}

// savedTime is when the snapshot of an index was saved, here or by the replica it came from.
func (m *machine) savedTime(index int64) (t time.Time, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	for _, s := range slices.Backward(m.savedAt) {
		if s.index == index {
			return time.Unix(0, s.unixNano), true
		}
	}
	return time.Time{}, false
}

// snapshotSink is where a snapshot's files are written: a graft.SnapshotWriter.
type snapshotSink interface {
	Create(name string) (io.WriteCloser, error)
}

// save writes all files. It holds one block of a file in memory, whatever is stored.
func (f *frozen) save(w snapshotSink) error {
	buf := make([]byte, 0, blockHead+fileBlock)
	for shard := range f.state.shards {
		out, err := w.Create(shardName(shard, f.state.shards))
		if err != nil {
			return err
		}
		if err := f.saveShard(newFileWriter(out, buf), shard); err != nil {
			return err
		}
	}
	out, err := w.Create(stateFile)
	if err != nil {
		return err
	}
	return f.saveState(newFileWriter(out, buf))
}

// saveShard writes one file of keys: which one it is, then each key with its value, buckets and keys in order, then
// 0, the number of keys and their digest.
func (f *frozen) saveShard(out *fileWriter, shard int) error {
	out.number(uint64(shard))
	out.number(uint64(f.state.shards))
	first, end := shardRange(shard, f.state.shards)
	count, digest := 0, uint64(0)
	var keys []string
	for n := first; n < end && out.err == nil; n++ {
		b := f.keys.buckets[n]
		keys = slices.AppendSeq(keys[:0], maps.Keys(b))
		slices.Sort(keys)
		for _, key := range keys {
			it := b[key]
			out.number(uint64(len(key)) + 1)
			out.write([]byte(key))
			out.text(it.value)
			digest += it.hash
		}
		count += len(b)
		f.keys.pass(n)
	}
	out.number(0)
	out.number(uint64(count))
	out.number(digest)
	return out.close()
}

func (f *frozen) saveState(out *fileWriter) error {
	s := &f.state
	for _, n := range []uint64{uint64(s.index), uint64(s.saved), uint64(s.size), uint64(s.bytes), s.digest, uint64(s.shards)} {
		out.number(n)
	}
	out.text([]byte(s.conf))
	out.text([]byte(s.by))
	out.number(uint64(boolReply(s.left).n))
	out.number(uint64(len(f.redis)))
	for _, raft := range slices.Sorted(maps.Keys(f.redis)) {
		out.text([]byte(raft))
		out.text([]byte(f.redis[raft]))
	}
	return out.close()
}
