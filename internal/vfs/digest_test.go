package vfs

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The digest is that of names, sizes and bytes, and of nothing else.
func TestDigestIsOfNamesSizesAndBytes(t *testing.T) {
	write := func(m *Mem, name, data string, off int64) {
		f, err := m.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte(data), off)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	m := NewMem()
	seen := map[uint64]string{}
	fresh := func(what string) uint64 {
		d := m.Digest()
		require.NotContains(t, seen, d, what)
		require.Equal(t, d, m.Digest())
		require.Equal(t, d, m.KillClone().Digest(), "unsynced counts like synced")
		require.Equal(t, d, m.CrashClone(all).Digest())
		seen[d] = what
		return d
	}
	fresh("empty")
	require.NoError(t, m.MkdirAll("/d", 0o755))
	fresh("a directory")
	write(m, "/d/f", "", 0)
	fresh("an empty file")
	write(m, "/d/f", "x", 0)
	fresh("a byte")
	write(m, "/d/f", "x", 300000)
	fresh("another")
	write(m, "/d/f", "x", 100000)
	was := fresh("another, elsewhere")
	write(m, "/d/f", "\x00", 200000)
	require.Equal(t, was, m.Digest(), "a hole reads as zeros")
	write(m, "/d/f", "y", 100000)
	fresh("another byte")
	require.NoError(t, m.Rename("/d/f", "/d/g"))
	fresh("another name")
	require.NoError(t, m.Rename("/d/g", "/f"))
	fresh("another directory")
	require.NoError(t, m.Rename("/f", "/d/f"))
	write(m, "/d/f", "x", 100000)
	require.Equal(t, was, m.Digest(), "all as it was")
	f, err := m.OpenFile("/d/f", os.O_RDWR, 0)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(400000))
	require.NoError(t, f.Close())
	fresh("longer by zeros")
}

// A unit's number is its own and stays until the unit is synced.
func TestUnitIDsStay(t *testing.T) {
	m := NewMem()
	f, err := m.OpenFile("/f", os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 3*blockSize), 0)
	require.NoError(t, err)
	before := m.UnitIDs()
	require.Len(t, before, len(m.Units()))
	require.NoError(t, m.Rename("/f", "/g"))
	_, err = f.WriteAt(make([]byte, 1), 0)
	require.NoError(t, err)
	after := m.UnitIDs()
	require.Equal(t, before, after[:len(before)])
	require.Len(t, after, len(before)+2)
	seen := map[uint64]bool{}
	for _, id := range after {
		require.False(t, seen[id])
		seen[id] = true
	}
	require.NoError(t, f.Sync())
	require.Len(t, m.UnitIDs(), 2, "the names")
	require.Contains(t, before, m.UnitIDs()[0])
}
