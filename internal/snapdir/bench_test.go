package snapdir

import (
	"crypto/sha256"
	"fmt"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

const benchSize = 64 << 20

func benchStore(b *testing.B) *Store {
	s, err := Open(vfs.OS{}, b.TempDir(), Options{})
	require.NoError(b, err)
	return s
}

func benchSave(b *testing.B, s *Store, index int64, data []byte, size int) *Reader {
	w, err := s.NewWriter()
	require.NoError(b, err)
	f, err := w.Create("data")
	require.NoError(b, err)
	for done := 0; done < size; done += len(data) {
		_, err = f.Write(data)
		require.NoError(b, err)
	}
	require.NoError(b, f.Close())
	r, err := w.Commit(metaOf(index), 7)
	require.NoError(b, err)
	return r
}

// BenchmarkHash is the bound that hashing sets to all others.
func BenchmarkHash(b *testing.B) {
	data := noise(1, 1<<20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		sha256.Sum256(data)
	}
}

// BenchmarkPlainWrite is what the disk does without any snapshot: the same bytes into
// a file that is synced.
func BenchmarkPlainWrite(b *testing.B) {
	data, dir := noise(1, 64<<10), b.TempDir()
	b.SetBytes(benchSize)
	for b.Loop() {
		f, err := vfs.OS{}.OpenFile(dir+"/f", 0x42, 0o644) // O_RDWR|O_CREAT
		require.NoError(b, err)
		require.NoError(b, f.Truncate(0))
		for off := int64(0); off < benchSize; off += int64(len(data)) {
			_, err = f.WriteAt(data, off)
			require.NoError(b, err)
		}
		require.NoError(b, f.Sync())
		require.NoError(b, f.Close())
	}
}

func BenchmarkSave(b *testing.B) {
	s, data := benchStore(b), noise(1, 64<<10)
	b.SetBytes(benchSize)
	for index := int64(1); b.Loop(); index++ {
		require.NoError(b, benchSave(b, s, index, data, benchSize).Close())
		require.NoError(b, s.Prune())
	}
}

func BenchmarkVerify(b *testing.B) {
	r := benchSave(b, benchStore(b), 1, noise(1, 64<<10), benchSize)
	b.SetBytes(benchSize)
	for b.Loop() {
		require.NoError(b, r.Scrub(Watch{}))
	}
	require.NoError(b, r.Close())
}

// BenchmarkCopy is serving, framing, writing and verifying, with nothing in between.
func BenchmarkCopy(b *testing.B) {
	for _, test := range []struct {
		workers int
		piece   int64
	}{{1, 128 << 10}, {1, 1 << 20}, {2, 1 << 20}} {
		b.Run(fmt.Sprintf("workers=%d/piece=%dKiB", test.workers, test.piece>>10), func(b *testing.B) {
			r := benchSave(b, benchStore(b), 1, noise(1, 64<<10), benchSize)
			manifest, err := r.Manifest()
			require.NoError(b, err)
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				c, err := benchStore(b).OpenCopy(manifest, CopyOptions{})
				require.NoError(b, err)
				var wg sync.WaitGroup
				for w := range test.workers {
					wg.Go(func() { benchFetch(b, c, r, test.piece, int64(w), int64(test.workers)) })
				}
				wg.Wait()
				got, err := c.Commit()
				require.NoError(b, err)
				require.NoError(b, got.Close())
			}
			require.NoError(b, r.Close())
		})
	}
}

func benchFetch(b *testing.B, c *Copy, r *Reader, piece, from, step int64) {
	var buf, framed []byte
	for off := from * piece; off < benchSize; off += step * piece {
		data, eof, err := r.Serve(buf[:0], "data", off, piece, piece)
		if err != nil {
			b.Error(err)
			return
		}
		buf, framed = data, AppendSegment(framed[:0], off, data)
		if err := c.Receive("data", off, int64(len(data)), eof, framed); err != nil {
			b.Error(err)
			return
		}
	}
}
