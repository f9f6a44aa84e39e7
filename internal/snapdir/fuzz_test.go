package snapdir

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// FuzzManifest feeds what another node may send: it is refused, or names only files
// inside, and comes out again the same. A Copy can be opened with it.
func FuzzManifest(f *testing.F) {
	a, _, _ := contents()
	r := mustServe(f, 10, a)
	f.Add(mustManifest(f, r), true)
	f.Add(plain(f, r, map[string]string{"one": "x", "own/big": checksumPrefix}), false)
	f.Add([]byte("\n\x04\b\n\x10\x01\x12\x05\n\x03a/b"), false)
	f.Add([]byte("\n\x04\b\n\x10\x01\x12\x06\n\x04../b"), true)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		if seal { // with a right CRC
			if len(data) >= crcSize {
				data = data[:len(data)-crcSize]
			}
			sum := crc32.Checksum(data, castagnoli())
			data = binary.LittleEndian.AppendUint32(append(bytes.Clone(data), crcTag[:]...), sum)
		}
		l := small().layout
		m, err := parse(data, l)
		if err != nil {
			return
		}
		encoded, err := m.encode()
		require.NoError(t, err)
		again, err := parse(encoded, l)
		require.NoError(t, err)
		require.Len(t, again.files, len(m.files))
		for i := range m.files {
			require.NoError(t, checkName(m.files[i].Name))
			require.Equal(t, m.files[i].blocks, again.files[i].blocks)
			require.Equal(t, m.files[i].Size, again.files[i].Size)
		}
		fs := vfs.NewMem()
		c, err := mustOpen(t, fs, small()).OpenCopy(data, CopyOptions{})
		require.NoError(t, err)
		_ = c.Needed()
		require.NoError(t, c.Abort(false))
		names, err := fs.ReadDir("/")
		require.NoError(t, err)
		require.Equal(t, []string{"data"}, names)
	})
}

// FuzzSegments feeds an attachment: it is refused, or lies in the range asked for.
func FuzzSegments(f *testing.F) {
	f.Add(AppendSegment(AppendSegment(nil, 10, []byte("abc")), 15, []byte("de")), int64(10), int64(20))
	f.Add(AppendSegment(nil, 1<<62, []byte("abc")), int64(1<<62), int64(3))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, int64(0), int64(1<<62))
	f.Fuzz(func(t *testing.T, data []byte, off, n int64) {
		at, bytes := off, int64(0)
		err := Segments(data, off, n, func(from int64, p []byte) error {
			require.GreaterOrEqual(t, from, at)
			at = from + int64(len(p))
			require.LessOrEqual(t, at, off+n)
			bytes += int64(len(p))
			return nil
		})
		if err != nil {
			require.ErrorIs(t, err, ErrSegments)
			require.Zero(t, bytes)
		}
	})
}

// FuzzOpenDamaged puts bytes over a manifest on disk: the store opens, and either names
// the damage or has the snapshot as it was.
func FuzzOpenDamaged(f *testing.F) {
	a, _, _ := crashContents()
	f.Add([]byte{0}, uint16(0))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3}, uint16(0))
	f.Add([]byte("x"), uint16(40))
	f.Fuzz(func(t *testing.T, data []byte, off uint16) {
		fs := vfs.NewMem()
		r := mustSave(t, mustOpen(t, fs, small()), 10, a)
		require.NoError(t, r.Close())
		require.NoError(t, patch(fs, r.Path()+"/"+manifestName, data, int64(off)))
		s := mustOpen(t, fs, small())
		if s.List()[0].Damage != nil || !s.List()[0].Checked { // without a group it is braft's
			return
		}
		r, err := s.Latest()
		require.NoError(t, err)
		requireWhole(t, r, a)
	})
}
