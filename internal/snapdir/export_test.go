package snapdir

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// What is exported verifies by itself, and becomes a snapshot of another group with
// another configuration.
func TestExportAndImport(t *testing.T) {
	a := content{"big": noise(1, 2<<20+5), "d/small": noise(2, 10), "empty": {}}
	fs := vfs.NewMem()
	s := mustOpen(t, fs, Options{})
	r := mustSave(t, s, 10, a)
	require.NoError(t, Export(r, fs, "/backup/one", Watch{}))
	require.ErrorIs(t, Export(r, fs, "/backup/one", Watch{}), os.ErrExist)
	info, err := VerifyDir(fs, "/backup/one", Watch{})
	require.NoError(t, err)
	require.True(t, info.Verified && info.Checked)
	require.EqualValues(t, 10, info.Index)

	meta := &raftpb.SnapshotMeta{LastIncludedIndex: proto.Int64(1), LastIncludedTerm: proto.Int64(1), Peers: []string{"10.0.0.1:1:0"}}
	other, err := Open(fs, "/other", Options{})
	require.NoError(t, err)
	imported, err := other.Import(fs, "/backup/one", meta, 99, Watch{})
	require.NoError(t, err)
	requireWhole(t, imported, a)
	require.True(t, proto.Equal(meta, imported.Meta()))
	require.EqualValues(t, 99, imported.Info().GroupID)
	require.NoError(t, imported.Close())
	infos, err := Inspect(fs, "/other")
	require.NoError(t, err)
	require.Len(t, infos, 1)
	require.EqualValues(t, 1, infos[0].Index)

	// Damage is neither exported nor imported, and nothing of it stays.
	require.NoError(t, fs.Corrupt("/backup/one/big", 1<<20, func(p []byte) { p[0] ^= 1 }))
	var damage *DamageError
	_, err = VerifyDir(fs, "/backup/one", Watch{})
	require.ErrorAs(t, err, &damage)
	meta.LastIncludedIndex = proto.Int64(2)
	_, err = other.Import(fs, "/backup/one", meta, 99, Watch{})
	require.ErrorAs(t, err, &damage)
	require.Equal(t, DamageError{Path: "/backup/one/big", Name: "big", Offset: 1 << 20, Reason: damage.Reason}, *damage)
	require.NoError(t, fs.Corrupt(filepath.Join(r.Path(), "big"), 0, func(p []byte) { p[0] ^= 1 }))
	require.ErrorAs(t, Export(r, fs, "/backup/two", Watch{}), &damage)
	require.Equal(t, filepath.Join(r.Path(), "big"), damage.Path)
	for dir, want := range map[string][]string{"/backup": {"one"}, "/other": {snapshotName(1)}} {
		names, err := fs.ReadDir(dir)
		require.NoError(t, err)
		require.Equal(t, want, names)
	}
	require.NoError(t, r.Close())
}

// The name under which an export begins may be that of somebody's directory, or file: it is refused then, and nothing is touched.
func TestExportTouchesNobodysFiles(t *testing.T) {
	a, _, _ := crashContents()
	fs := vfs.NewMem()
	r := mustSave(t, mustOpen(t, fs, small()), 10, a)
	taken := "/backup/kv" + ExportSuffix
	for _, precious := range []string{taken + "/log/precious", taken} {
		require.NoError(t, writeFile(fs, precious, []byte("precious")))
		err := Export(r, fs, "/backup/kv", Watch{})
		require.ErrorIs(t, err, os.ErrExist)
		var at *os.PathError
		require.ErrorAs(t, err, &at)
		require.Equal(t, taken, at.Path)
		data, err := readFile(fs, precious, 100)
		require.NoError(t, err)
		require.Equal(t, "precious", string(data))
		_, err = fs.Stat("/backup/kv")
		require.ErrorIs(t, err, os.ErrNotExist)
		require.NoError(t, removeAll(fs, taken))
	}
	require.NoError(t, Export(r, fs, "/backup/kv", Watch{}))
	require.NoError(t, r.Close())
}

// An export in which anything fails leaves nothing, and can be repeated.
func TestExportFaults(t *testing.T) {
	a, _, _ := crashContents()
	fs := vfs.NewMem()
	r := mustSave(t, mustOpen(t, fs, small()), 10, a)
	for n := int64(1); ; n++ {
		start := fs.Ops()
		fs.SetInjector(vfs.FailOp(start+n, syscall.EIO))
		err := Export(r, fs, "/backup", Watch{})
		done := fs.Ops()-start < n
		fs.SetInjector(nil)
		if done {
			require.NoError(t, err)
			require.Greater(t, n, int64(30))
			break
		}
		if _, statErr := fs.Stat("/backup"); statErr == nil {
			// Whole, if it is there: only the sync of its name can have failed.
			other, openErr := Open(vfs.NewMem(), testDir, small())
			require.NoError(t, openErr)
			imported, err := other.Import(fs, "/backup", metaOf(10), 7, Watch{})
			require.NoError(t, err)
			requireWhole(t, imported, a)
			require.NoError(t, imported.Close())
			require.NoError(t, removeAll(fs, "/backup"))
		} else {
			require.ErrorIs(t, err, syscall.EIO)
		}
	}
	require.NoError(t, r.Close())
}
