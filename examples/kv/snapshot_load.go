package main

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/graft-raft/graft"
)

// OnSnapshotLoad replaces everything by what a snapshot holds, once all of it has been read and found to be right.
func (m *machine) OnSnapshotLoad(r *graft.SnapshotReader) error {
	l, err := loadSnapshot(func(name string) (io.ReadCloser, error) { return r.Open(name) }, r.Index())
	if err != nil {
		return fmt.Errorf("kv: %w", err)
	}
	m.replace(l, r.Index())
	m.changed()
	return nil
}

// replace takes over what was loaded.
func (m *machine) replace(l *loaded, index int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.keys, m.redis, m.index = *l.keys, l.redis, l.state.index
	if !l.conf.Empty() {
		m.adopt(l.conf)
	}
	if l.state.by == raftKey(m.self) && l.state.left { // which the configuration alone does not tell
		m.left.Store(true)
	}
	m.noteSaved(index, l.state.saved)
}

// loaded is what a snapshot holds.
type loaded struct {
	keys  *keyspace
	redis map[string]string
	conf  graft.Configuration
	state snapshotState
}

// Bounds of what is in the state's file.
const (
	stateConfMost    = 64 << 10
	stateMembersMost = 1 << 10
)

// loadSnapshot reads a snapshot of the given index, with several goroutines if there are several files.
func loadSnapshot(open func(name string) (io.ReadCloser, error), index int64) (*loaded, error) {
	l := &loaded{redis: make(map[string]string)}
	if err := withFile(open, stateFile, nil, func(f *fileReader) error { return l.readState(f, index) }); err != nil {
		return nil, err
	}
	l.keys = new(keyspace)
	if err := l.readShards(open); err != nil {
		return nil, err
	}
	if s := l.state; int64(l.keys.size) != s.size || l.keys.bytes != s.bytes || l.keys.digest != s.digest {
		return nil, fmt.Errorf("snapshot %d has %d keys, %d bytes, digest %016x; its file %s says %d, %d, %016x",
			index, l.keys.size, l.keys.bytes, l.keys.digest, stateFile, s.size, s.bytes, s.digest)
	}
	return l, nil
}

// readShards reads all files of keys, several at a time.
func (l *loaded) readShards(open func(name string) (io.ReadCloser, error)) error {
	shards := l.state.shards
	sums, errs := make([]shardSums, shards), make([]error, shards)
	var next atomic.Int64
	var failed atomic.Bool
	var wg sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), shards) {
		wg.Go(func() {
			var buf []byte
			if shards > 1 { // all blocks but a few are full
				buf = make([]byte, fileBlock)
			}
			for !failed.Load() {
				n := int(next.Add(1)) - 1
				if n >= shards {
					return
				}
				errs[n] = withFile(open, shardName(n, shards), buf, func(f *fileReader) (err error) {
					sums[n], err = l.readShard(f, n)
					return err
				})
				if errs[n] != nil {
					failed.Store(true)
				}
			}
		})
	}
	wg.Wait()
	for _, s := range sums {
		l.keys.size += s.size
		l.keys.bytes += s.bytes
		l.keys.digest += s.digest
	}
	return errors.Join(errs...)
}

// shardSums is what the keys of one file come to.
type shardSums struct {
	size   int
	bytes  int64
	digest uint64
}

// withFile opens a file and reads it to its end.
func withFile(open func(name string) (io.ReadCloser, error), name string, buf []byte, read func(*fileReader) error) error {
	in, err := open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	f, err := newFileReader(in, name, buf)
	if err != nil {
		return err
	}
	if err := read(f); err != nil {
		return err
	}
	return f.end()
}

func (l *loaded) readState(f *fileReader, index int64) error {
	var numbers [6]uint64
	for i := range numbers {
		var err error
		if numbers[i], err = f.number(); err != nil {
			return err
		}
	}
	s := &l.state
	s.index, s.saved, s.size, s.bytes, s.digest = int64(numbers[0]), int64(numbers[1]), int64(numbers[2]), int64(numbers[3]), numbers[4]
	if s.index < 0 || s.index > index {
		return f.wrong(fmt.Errorf("the state is of index %d, the snapshot of %d", s.index, index))
	}
	if n := numbers[5]; n < 1 || n > shardsMost || n&(n-1) != 0 {
		return f.wrong(fmt.Errorf("%d files of keys", n))
	}
	s.shards = int(numbers[5])
	conf, err := f.text(stateConfMost)
	if err != nil {
		return err
	}
	if s.conf = string(conf); s.conf != "" {
		if l.conf, err = graft.ParseConfiguration(s.conf); err != nil {
			return f.wrong(err)
		}
	}
	by, err := f.text(maxAddress)
	if err != nil {
		return err
	}
	left, err := f.number()
	if err != nil {
		return err
	}
	s.by, s.left = string(by), left == 1
	return l.readTable(f)
}

func (l *loaded) readTable(f *fileReader) error {
	members, err := f.number()
	if err != nil {
		return err
	}
	if members > stateMembersMost {
		return f.wrong(errFileTooLong)
	}
	for range members {
		raft, err := f.text(maxAddress)
		if err != nil {
			return err
		}
		redis, err := f.text(maxAddress)
		if err != nil {
			return err
		}
		l.redis[string(raft)] = string(redis)
	}
	return nil
}

// readShard reads one file of keys into the buckets that are its own.
func (l *loaded) readShard(f *fileReader, shard int) (sums shardSums, err error) {
	if err := l.isShard(f, shard); err != nil {
		return sums, err
	}
	first, end := shardRange(shard, l.state.shards)
	for {
		n, err := f.number()
		if err != nil {
			return sums, err
		}
		if n == 0 {
			return sums, checkShard(f, sums)
		}
		if n-1 > maxKey {
			return sums, f.wrong(errFileTooLong)
		}
		key := make([]byte, n-1)
		if err := f.read(key); err != nil {
			return sums, err
		}
		value, err := f.text(maxValue)
		if err != nil {
			return sums, err
		}
		b := bucketOf(key)
		if b < first || b >= end || l.keys.buckets[b][string(key)] != nil {
			return sums, f.wrong(fmt.Errorf("key %.64q does not belong here", key))
		}
		sums.digest += l.keys.insert(b, key, value)
		sums.size++
		sums.bytes += int64(len(key) + len(value))
	}
}

func (l *loaded) isShard(f *fileReader, shard int) error {
	n, err := f.number()
	if err != nil {
		return err
	}
	of, err := f.number()
	if err != nil {
		return err
	}
	if n != uint64(shard) || of != uint64(l.state.shards) {
		return f.wrong(fmt.Errorf("the file is number %d of %d", n, of))
	}
	return nil
}

// checkShard compares what was read with what the end of the file says.
func checkShard(f *fileReader, got shardSums) error {
	count, err := f.number()
	if err != nil {
		return err
	}
	digest, err := f.number()
	if err != nil {
		return err
	}
	if count != uint64(got.size) || digest != got.digest {
		return f.wrong(fmt.Errorf("%d keys with digest %016x, but the file says %d, %016x", got.size, got.digest, count, digest))
	}
	return nil
}
