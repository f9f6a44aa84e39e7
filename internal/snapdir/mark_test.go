package snapdir

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/vfs"
)

// The mark is the one that was noted last, also after an opening, and damage to any byte of it is seen.
func TestMark(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open(fs, testDir, small())
	require.NoError(t, err)
	_, _, err = s.Mark()
	require.ErrorIs(t, err, ErrNone)
	require.NoError(t, s.SetMark(metaOf(10), 7))
	require.NoError(t, s.SetMark(metaOf(20), 7))
	s, err = Open(fs, testDir, small())
	require.NoError(t, err)
	assert.Empty(t, s.List(), "it is no snapshot")
	meta, group, err := s.Mark()
	require.NoError(t, err)
	assert.EqualValues(t, 20, meta.GetLastIncludedIndex())
	assert.Equal(t, metaOf(20).GetOldPeers(), meta.GetOldPeers())
	assert.EqualValues(t, 7, group)

	name := filepath.Join(testDir, markDir, manifestName)
	data, err := readFile(fs, name, maxManifest)
	require.NoError(t, err)
	for i := range data {
		data[i] ^= 4
		require.NoError(t, writeFile(fs, name, data))
		_, _, err := s.Mark()
		var damage *DamageError
		assert.ErrorAs(t, err, &damage, "byte %d", i)
		data[i] ^= 4
	}
}

// Whenever the power fails while a mark is noted, the mark is that one or the one before, and once SetMark has returned it
// stays.
func TestMarkSurvivesPowerCuts(t *testing.T) {
	for at := int64(1); ; at++ {
		fs := vfs.NewMem()
		s, err := Open(fs, testDir, small())
		require.NoError(t, err)
		require.NoError(t, s.SetMark(metaOf(10), 7))
		var images []*vfs.Mem
		n := int64(0)
		fs.OnOp(func(op vfs.Op) {
			if op.Writes() {
				if n++; n == at {
					for _, keep := range []bool{false, true} {
						images = append(images, fs.CrashClone(func(vfs.Unit) bool { return keep }))
					}
				}
			}
		})
		require.NoError(t, s.SetMark(metaOf(20), 7))
		fs.OnOp(nil)
		want := []int64{10, 20}
		if images == nil {
			images, want = append(images, fs.CrashClone(func(vfs.Unit) bool { return false })), []int64{20}
		}
		for _, image := range images {
			s, err := Open(image, testDir, small())
			require.NoError(t, err)
			meta, _, err := s.Mark()
			require.NoError(t, err, "operation %d", at)
			assert.Contains(t, want, meta.GetLastIncludedIndex(), "operation %d", at)
		}
		if len(want) == 1 {
			assert.Greater(t, at, int64(3))
			return
		}
	}
}
