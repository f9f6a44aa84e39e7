package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"github.com/graft-raft/graft"
)

// memoryFiles is a snapshot in memory.
type memoryFiles map[string]*bytes.Buffer

func (m memoryFiles) Create(name string) (io.WriteCloser, error) {
	m[name] = new(bytes.Buffer)
	return bufferFile{m[name]}, nil
}

func (m memoryFiles) open(name string) (io.ReadCloser, error) {
	b, ok := m[name]
	if !ok {
		return nil, errors.New("no file " + name)
	}
	return io.NopCloser(bytes.NewReader(b.Bytes())), nil
}

type bufferFile struct{ *bytes.Buffer }

func (bufferFile) Close() error { return nil }

// bareMachine is a state machine without a node.
func bareMachine(self string) *machine {
	return newMachine(graft.MustParsePeerID(self), zap.NewNop(), func() {})
}

// saved is a machine's snapshot in memory. shards overrides how many files of keys there are, unless it is 0.
func saved(t testing.TB, m *machine, shards int) memoryFiles {
	t.Helper()
	f, err := m.freeze()
	require.NoError(t, err)
	if shards != 0 {
		f.state.shards = shards
	}
	files := make(memoryFiles)
	require.NoError(t, f.save(files))
	m.thaw(f, m.index, true)
	return files
}

// contentOf is all keys with their values.
func contentOf(k *keyspace) map[string]string {
	all := make(map[string]string)
	for _, b := range k.buckets {
		for key, it := range b {
			all[key] = string(it.value)
		}
	}
	return all
}

// requireSound demands that a keyspace's sums are those of what it holds.
func requireSound(t testing.TB, k *keyspace) {
	t.Helper()
	all := contentOf(k)
	size := int64(0)
	for key, value := range all {
		size += int64(len(key) + len(value))
	}
	require.Equal(t, len(all), k.size)
	require.Equal(t, size, k.bytes)
	require.Equal(t, naiveDigest(all), k.digest)
}

// A snapshot brings back everything: keys and values of every kind, the table of addresses, the configuration, the index.
func TestASnapshotHoldsEverything(t *testing.T) {
	for _, shards := range []int{0, 1, 2, 64, shardsMost} {
		m := bareMachine("127.0.0.1:1")
		apply := func(code opCode, args ...string) {
			o := op{code: code, delta: 41}
			for _, arg := range args {
				o.args = append(o.args, []byte(arg))
			}
			require.NotEqual(t, kindError, m.apply(m.index+1, &o).kind)
		}
		apply(opSet, "", "the empty key")
		apply(opSet, "the empty value", "")
		apply(opSet, strings.Repeat("k", maxKey), "the longest key")
		apply(opSet, "the largest value", strings.Repeat("v", maxValue))
		apply(opSet, "a block", strings.Repeat("b", fileBlock))
		apply(opMSet, "bytes \x00\r\n\xff", "\x00\r\n\xff", "ключ", "значение")
		apply(opIncr, "number")
		apply(opAppend, "grown", "a")
		apply(opAppend, "grown", "b")
		apply(opCAS, "grown", "ab", "swapped")
		apply(opSet, "gone", "x")
		apply(opDel, "gone")
		for i := range 3000 {
			apply(opSet, "k"+strconv.Itoa(i), strconv.Itoa(i))
		}
		apply(opAnnounce, "127.0.0.1:1", "127.0.0.1:2")
		m.OnConfigurationCommitted(graft.MustParseConfiguration("127.0.0.1:1,127.0.0.1:3:0:2"), m.index+1)
		apply(opSet, "last", "one")

		files := saved(t, m, shards)
		l, err := loadSnapshot(files.open, m.index+5)
		require.NoError(t, err)
		other := bareMachine("127.0.0.1:3")
		other.keys.set([]byte("old"), []byte("is replaced"))
		other.redis["old"] = "is replaced"
		other.replace(l, m.index+5)
		requireSound(t, &other.keys)
		assert.Equal(t, m.keys.digest, other.keys.digest)
		assert.True(t, maps.Equal(contentOf(&m.keys), contentOf(&other.keys)))
		assert.Equal(t, m.index, other.index)
		assert.Equal(t, m.redis, other.redis)
		assert.Equal(t, m.conf.String(), other.conf.String())
		at, ok := other.savedTime(m.index + 5)
		assert.True(t, ok)
		assert.WithinDuration(t, time.Now(), at, time.Minute)
	}
}

// A replica that was removed knows it after a restart from its own snapshot; whoever installs that snapshot takes it
// for the other's affair.
func TestASnapshotSaysWhetherItsWriterHasLeft(t *testing.T) {
	m := bareMachine("127.0.0.1:1")
	m.OnConfigurationCommitted(graft.MustParseConfiguration("127.0.0.1:1,127.0.0.1:2"), 1)
	m.OnConfigurationCommitted(graft.MustParseConfiguration("127.0.0.1:2"), 2)
	require.True(t, m.left.Load())
	files := saved(t, m, 0)
	for _, test := range []struct {
		self, conf string
		left       bool
	}{{"127.0.0.1:1", "", true}, {"127.0.0.1:2", "", false}, {"127.0.0.1:3", "", false}, {"127.0.0.1:3", "127.0.0.1:1,127.0.0.1:3", true}} {
		other := bareMachine(test.self)
		if test.conf != "" {
			other.OnConfigurationCommitted(graft.MustParseConfiguration(test.conf), 1)
		}
		l, err := loadSnapshot(files.open, 2)
		require.NoError(t, err)
		other.replace(l, 2)
		other.OnConfigurationCommitted(graft.MustParseConfiguration("127.0.0.1:2"), 2)
		assert.Equal(t, test.left, other.left.Load(), "%s, of %q", test.self, test.conf)
	}
}

// An empty store has a snapshot too.
func TestASnapshotOfNothing(t *testing.T) {
	files := saved(t, bareMachine("127.0.0.1:1"), 0)
	l, err := loadSnapshot(files.open, 1)
	require.NoError(t, err)
	assert.Zero(t, l.keys.size)
	assert.Zero(t, l.keys.digest)
	assert.True(t, l.conf.Empty())
}

// Replicas that hold the same write the same bytes, however it came there: what an interrupted copy has of one's
// snapshot is of use for another's.
func TestEqualKeysAreEqualFiles(t *testing.T) {
	files := make([]memoryFiles, 2)
	for i := range files {
		m := bareMachine("127.0.0.1:" + strconv.Itoa(i+1))
		for _, n := range rand.Perm(50_000) {
			m.keys.set([]byte("k"+strconv.Itoa(n)), []byte(strconv.Itoa(n)))
			if rand.IntN(4) == 0 {
				m.keys.set([]byte("gone"), []byte(strconv.Itoa(n)))
			}
		}
		m.keys.del([]byte("gone"))
		files[i] = saved(t, m, 4)
	}
	assert.Len(t, files[0], 5)
	for name, b := range files[0] {
		if name != stateFile {
			assert.True(t, bytes.Equal(b.Bytes(), files[1][name].Bytes()), name)
		}
	}
}

func TestHowManyFilesThereAre(t *testing.T) {
	for _, test := range []struct {
		bytes int64
		want  int
	}{{0, 1}, {shardBytes, 1}, {shardBytes + 1, 2}, {1 << 30, 64}, {1<<30 + 64, 128}, {1 << 40, shardsMost}} {
		assert.Equal(t, test.want, shardsFor(test.bytes), test.bytes)
	}
	seen := 0
	for i := range shardsMost {
		first, end := shardRange(i, shardsMost)
		assert.Equal(t, seen, first)
		seen = end
	}
	assert.Equal(t, scanBuckets, seen)
}

// While a snapshot is written the keys change in every way there is. It holds what there was when it was frozen, and the
// keys are what they are without it.
func TestASnapshotIsOfTheMomentItWasFrozen(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	m := bareMachine("127.0.0.1:1")
	model := make(map[string]string)
	change := func(n int) {
		m.mu.Lock()
		defer m.mu.Unlock()
		for range n {
			key, value := "k"+strconv.Itoa(rng.IntN(20_000)), strconv.Itoa(rng.IntN(1000))
			switch r := rng.IntN(40_000); {
			case r == 0:
				m.keys.clear()
				clear(model)
			case r < 10_000:
				m.keys.del([]byte(key))
				delete(model, key)
			case r < 20_000 && len(model[key]) < 50:
				m.keys.append([]byte(key), []byte(value))
				model[key] += value
			case r < 25_000:
				if m.keys.cas([]byte(key), []byte(model[key]), []byte(value)) {
					model[key] = value
				}
			default:
				m.keys.set([]byte(key), []byte(value))
				model[key] = value
			}
		}
		m.index += int64(n)
	}
	change(30_000)
	for round := range 10 {
		was, index := maps.Clone(model), m.index
		f, err := m.freeze()
		require.NoError(t, err)
		_, err = m.freeze()
		require.ErrorIs(t, err, errSaving)
		f.state.shards = 16
		files, written := make(memoryFiles), make(chan error, 1)
		go func() { written <- f.save(files) }()
		for end := false; !end; {
			change(500)
			select {
			case err := <-written:
				require.NoError(t, err)
				end = true
			default:
			}
		}
		m.thaw(f, index, true)
		requireSound(t, &m.keys)
		require.True(t, maps.Equal(model, contentOf(&m.keys)), "seed %d, round %d", seed, round)
		l, err := loadSnapshot(files.open, index)
		require.NoError(t, err, "seed %d, round %d", seed, round)
		require.True(t, maps.Equal(was, contentOf(l.keys)), "seed %d, round %d", seed, round)
		require.Equal(t, index, l.state.index)
	}
}

// Freezing copies next to nothing, however many keys there are, and neither does the first write afterwards.
func TestFreezingCopiesNothing(t *testing.T) {
	m := bareMachine("127.0.0.1:1")
	for i := range 100_000 {
		m.keys.set([]byte("k"+strconv.Itoa(i)), []byte("v"))
	}
	least := uint64(math.MaxUint64) // other tests take memory too
	for range 20 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f, err := m.freeze()
		require.NoError(t, err)
		m.keys.set([]byte("k1"), []byte("w"))
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
		m.thaw(f, 0, false)
	}
	t.Logf("frozen, and written to, for %d bytes", least)
	assert.Less(t, least, uint64(256<<10), "100,000 keys take some MiB")
}

// BenchmarkFreeze is what a state of 100,000 keys is held up for by a snapshot: freezing, and the first write afterwards.
func BenchmarkFreeze(b *testing.B) {
	m := bareMachine("127.0.0.1:1")
	for i := range 100_000 {
		m.keys.set([]byte("k"+strconv.Itoa(i)), []byte("v"))
	}
	for b.Loop() {
		f, err := m.freeze()
		require.NoError(b, err)
		m.keys.set([]byte("k1"), []byte("w"))
		m.thaw(f, 0, false)
	}
}

// discard is files that take no memory.
type discard struct{}

func (discard) Create(string) (io.WriteCloser, error) { return nopFile{io.Discard}, nil }

type nopFile struct{ io.Writer }

func (nopFile) Close() error { return nil }

// A snapshot is streamed: what it takes does not grow with what is stored.
func TestASnapshotTakesLittleMemory(t *testing.T) {
	m := bareMachine("127.0.0.1:1")
	for i := range 64 {
		m.keys.set([]byte("large"+strconv.Itoa(i)), make([]byte, 1<<20))
	}
	for i := range 20_000 {
		m.keys.set([]byte("small"+strconv.Itoa(i)), make([]byte, 100))
	}
	least := uint64(math.MaxUint64) // other tests take memory too
	for range 5 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f, err := m.freeze()
		require.NoError(t, err)
		require.NoError(t, f.save(discard{}))
		runtime.ReadMemStats(&after)
		least = min(least, after.TotalAlloc-before.TotalAlloc)
		m.thaw(f, 0, true)
	}
	assert.Less(t, least, uint64(8<<20))
}

// Whatever byte is damaged, wherever a file ends, and whichever file is another one's: it is found before
// anything is replaced, and the error says in which file and where.
func TestDamagedSnapshotsAreNotLoaded(t *testing.T) {
	m := bareMachine("127.0.0.1:1")
	for i := range 20 {
		m.keys.set([]byte("k"+strconv.Itoa(i)), []byte(strconv.Itoa(i)))
	}
	m.redis["127.0.0.1:1"] = "127.0.0.1:2"
	m.OnConfigurationCommitted(graft.MustParseConfiguration("127.0.0.1:1"), 7)
	files := saved(t, m, 1)
	_, err := loadSnapshot(files.open, 7)
	require.NoError(t, err)
	refused := func(name string, content []byte, what string) {
		t.Helper()
		damaged := maps.Clone(files)
		damaged[name] = bytes.NewBuffer(content)
		_, err := loadSnapshot(damaged.open, 7)
		var at *fileError
		require.ErrorAs(t, err, &at, "%s: %s", name, what)
		assert.Equal(t, name, at.name)
		assert.LessOrEqual(t, at.offset, int64(len(content)), "%s: %s: %v", name, what, err)
		assert.Contains(t, err.Error(), fmt.Sprintf("snapshot file %s, offset %d: ", name, at.offset))
	}
	for name, b := range files {
		for i := range b.Len() {
			for _, bit := range []byte{1, 0x80} {
				flipped := bytes.Clone(b.Bytes())
				flipped[i] ^= bit
				refused(name, flipped, fmt.Sprintf("byte %d", i))
			}
			refused(name, b.Bytes()[:i], fmt.Sprintf("cut at %d", i))
		}
		refused(name, append(bytes.Clone(b.Bytes()), 0), "a byte more")
		refused(name, nil, "nothing")
		for other, o := range files {
			if other != name {
				refused(name, o.Bytes(), "in its place "+other)
			}
		}
	}
}

// What is wrong with a file of several blocks is said of the right block.
func TestDamageIsSaidOfItsBlock(t *testing.T) {
	m := bareMachine("127.0.0.1:1")
	value := make([]byte, 3*fileBlock)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	m.keys.set([]byte("k"), value)
	files := saved(t, m, 0)
	name := shardName(0, 1)
	good := files[name].Bytes()
	const head, block = int64(len(fileMagic) + 1), int64(blockHead + fileBlock)
	for _, test := range []struct {
		name   string
		damage func(b []byte) []byte
		offset int64
		err    error
	}{
		{"the second block's data", func(b []byte) []byte { b[head+block+100]++; return b }, head + block, errFileSum},
		{"its length", func(b []byte) []byte { b[head+block]++; return b }, head + block, errFileBlock},
		{"two blocks have changed places", func(b []byte) []byte {
			return slices.Concat(b[:head], b[head+block:head+2*block], b[head:head+block], b[head+2*block:])
		}, head, errFileSum},
		{"a block is missing", func(b []byte) []byte { return slices.Concat(b[:head], b[head+block:]) }, head, errFileSum},
		{"cut between blocks", func(b []byte) []byte { return b[:head+block] }, head + block, errFileCut},
		{"cut in a block", func(b []byte) []byte { return b[:head+block+50] }, head + block + 50, errFileCut},
		{"no such file at all", func([]byte) []byte { return []byte("REDIS0011 and more") }, 0, errFileKind},
	} {
		damaged := maps.Clone(files)
		damaged[name] = bytes.NewBuffer(test.damage(bytes.Clone(good)))
		_, err := loadSnapshot(damaged.open, 0)
		var at *fileError
		require.ErrorAs(t, err, &at, test.name)
		assert.Equal(t, test.offset, at.offset, test.name)
		assert.ErrorIs(t, err, test.err, test.name)
	}
	good[len(fileMagic)]++
	_, err := loadSnapshot(files.open, 0)
	assert.ErrorContains(t, err, "the file is of version 2, this program reads version 1")
}

// A disk that fails is not mistaken for damage, and named all the same.
func TestAnErrorOfTheDiskIsPassedOn(t *testing.T) {
	m := bareMachine("127.0.0.1:1")
	m.keys.set([]byte("k"), []byte("v"))
	files, broken := saved(t, m, 0), errors.New("bad sector")
	_, err := loadSnapshot(func(name string) (io.ReadCloser, error) {
		if name == stateFile {
			return files.open(name)
		}
		return io.NopCloser(io.MultiReader(io.LimitReader(files[name], 12), failingReader{broken})), nil
	}, 0)
	assert.ErrorIs(t, err, broken)
	assert.ErrorContains(t, err, "snapshot file keys-000-of-001, offset 12: bad sector")
	f, err := m.freeze()
	require.NoError(t, err)
	assert.ErrorIs(t, f.save(failingSink{broken}), broken)
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

type failingSink struct{ err error }

func (s failingSink) Create(string) (io.WriteCloser, error) { return s, nil }
func (s failingSink) Write([]byte) (int, error)             { return 0, s.err }
func (s failingSink) Close() error                          { return nil }

func FuzzSnapshotFiles(f *testing.F) {
	m := bareMachine("127.0.0.1:1")
	for i := range 20 {
		m.keys.set([]byte("k"+strconv.Itoa(i)), []byte(strconv.Itoa(i)))
	}
	files := saved(f, m, 1)
	data := func(name string) []byte { return files[name].Bytes()[len(fileMagic)+1+blockHead:] }
	f.Add(data(stateFile), data(shardName(0, 1)))
	f.Fuzz(func(t *testing.T, state, keys []byte) { // sealed with right checksums, so that what is in the blocks is looked at
		damaged := memoryFiles{stateFile: sealed(state), shardName(0, 1): sealed(keys)}
		l, err := loadSnapshot(damaged.open, 1<<40)
		if err == nil {
			requireSound(t, l.keys)
		}
	})
}

// sealed is a file with the given data.
func sealed(data []byte) *bytes.Buffer {
	b := new(bytes.Buffer)
	w := newFileWriter(bufferFile{b}, nil)
	w.write(data)
	if err := w.close(); err != nil {
		panic(err)
	}
	return b
}
