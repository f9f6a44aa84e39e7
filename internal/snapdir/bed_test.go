package snapdir

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

const (
	testDir  = "/data/snapshots"
	testLeaf = 4 << 10
)

// small has blocks of a disk's, of which a file has at most four before they double.
func small() Options { return Options{layout: layout{leaf: testLeaf, most: 4}} }

// content is what a snapshot should hold. Files whose names begin with "own" are
// written past the Writer and added.
type content map[string][]byte

// noise makes bytes that a seed decides.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

func metaOf(index int64) *raftpb.SnapshotMeta {
	return &raftpb.SnapshotMeta{
		LastIncludedIndex: proto.Int64(index), LastIncludedTerm: proto.Int64(index / 10),
		Peers: []string{"127.0.0.1:1:0", "127.0.0.1:2:0"}, OldPeers: []string{"127.0.0.1:1:0"},
	}
}

// save makes a snapshot of c. Errors end it as they would a state machine's save.
func save(s *Store, index int64, c content) (*Reader, error) {
	w, err := s.NewWriter()
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if err := saveFile(w, name, c[name]); err != nil {
			return nil, errors.Join(err, w.Abort())
		}
	}
	return w.Commit(metaOf(index), 7)
}

func saveFile(w *Writer, name string, data []byte) error {
	if strings.HasPrefix(name, "own") {
		if err := writeFile(w.store.fs, filepath.Join(w.Path(), name), data); err != nil {
			return err
		}
		return w.AddFile(name, []byte("meta of "+name))
	}
	f, err := w.Create(name)
	if err != nil {
		return err
	}
	for len(data) > 0 { // in pieces that fit no block
		n := min(len(data), 1500)
		if _, err := f.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
	}
	return f.Close()
}

func writeFile(fs vfs.FS, name string, data []byte) error {
	if err := fs.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	f, err := fs.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	return errors.Join(err, f.Close())
}

// read returns all that a snapshot holds.
func read(r *Reader) (content, error) {
	c := content{}
	for _, file := range r.Files() {
		f, err := r.Open(file.Name)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		c[file.Name] = data
	}
	return c, nil
}

// requireWhole demands that a snapshot verifies and holds c.
func requireWhole(t testing.TB, r *Reader, c content) {
	t.Helper()
	require.NoError(t, r.Scrub(Watch{}))
	got, err := read(r)
	require.NoError(t, err)
	require.True(t, same(got, c), "snapshot %d holds something else", r.Index())
}

func same(a, b content) bool {
	return maps.EqualFunc(a, b, func(x, y []byte) bool { return string(x) == string(y) })
}

func mustOpen(t testing.TB, fs vfs.FS, o Options) *Store {
	t.Helper()
	s, err := Open(fs, testDir, o)
	require.NoError(t, err)
	return s
}

func mustSave(t testing.TB, s *Store, index int64, c content) *Reader {
	t.Helper()
	r, err := save(s, index, c)
	require.NoError(t, err)
	return r
}

// mustServe returns a snapshot with the given content in a store of its own.
func mustServe(t testing.TB, index int64, c content) *Reader {
	t.Helper()
	return mustSave(t, mustOpen(t, vfs.NewMem(), small()), index, c)
}

func mustManifest(t testing.TB, r *Reader) []byte {
	t.Helper()
	data, err := r.Manifest()
	require.NoError(t, err)
	return data
}

// fetch takes what is needed from a snapshot in pieces of at most the given size, and
// at most so many of them.
func fetch(c *Copy, from *Reader, size int64, pieces int) (fetched int64, err error) {
	for {
		needed := c.Needed()
		if len(needed) == 0 || pieces == 0 {
			return fetched, nil
		}
		pieces--
		n := needed[0]
		if n.Len < 0 || n.Len > size {
			n.Len = size
		}
		data, eof, err := from.Serve(nil, n.Name, n.Off, n.Len, size)
		if err != nil {
			return fetched, err
		}
		fetched += int64(len(data))
		if err := c.Receive(n.Name, n.Off, int64(len(data)), eof, AppendSegment(nil, n.Off, data)); err != nil {
			return fetched, err
		}
	}
}

// indexes lists the snapshots, the newest first.
func indexes(s *Store) []int64 {
	list := []int64{}
	for _, info := range s.List() {
		list = append(list, info.Index)
	}
	return list
}

// plain is a manifest as braft makes it: without sizes, hashes, group and CRC.
func plain(t testing.TB, r *Reader, checksums map[string]string) []byte {
	t.Helper()
	pb := &raftpb.LocalSnapshotPbMeta{Meta: r.Meta()}
	for _, f := range r.Files() {
		meta := &raftpb.LocalFileMeta{UserMeta: f.UserMeta}
		if sum := checksums[f.Name]; sum != "" {
			meta.Checksum = proto.String(sum)
		}
		pb.Files = append(pb.Files, &raftpb.LocalSnapshotPbMeta_File{Name: proto.String(f.Name), Meta: meta})
	}
	data, err := proto.Marshal(pb)
	require.NoError(t, err)
	return data
}

// contents are snapshots that share files with each other.
func contents() (a, b, c content) {
	a = content{
		"empty": {}, "one": noise(1, 100), "dir/even": noise(2, 2*testLeaf),
		"dir/deep/odd": noise(3, 3*testLeaf+17), "own/big": noise(4, 9*testLeaf+1),
	}
	b = maps.Clone(a)
	b["one"] = noise(5, 100)
	b["dir/more"] = noise(6, testLeaf+1)
	b["dir/deep/odd"] = append(noise(3, 2*testLeaf), noise(7, testLeaf+17)...) // two blocks are a's
	c = maps.Clone(b)
	delete(c, "own/big")
	delete(c, "dir/even")
	c["own"] = noise(8, 5*testLeaf) // what was a directory is a file
	return a, b, c
}

// patch overwrites a part of a file.
func patch(fs vfs.FS, name string, data []byte, off int64) error {
	f, err := fs.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, off)
	return errors.Join(err, f.Close())
}
