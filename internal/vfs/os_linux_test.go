package vfs

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAfterShortWrite: what is left is right, and the caller's buffers are untouched.
func TestAfterShortWrite(t *testing.T) {
	join := func(bufs [][]byte) (s string) {
		for _, b := range bufs {
			s += string(b)
		}
		return s
	}
	bufs := [][]byte{[]byte("abc"), nil, []byte("de"), []byte("f")}
	for n := range 7 {
		require.Equal(t, "abcdef"[n:], join(after(bufs, n)))
		require.Equal(t, "abcdef", join(bufs))
	}
}

// TestDiskFull writes to a device that is always full.
func TestDiskFull(t *testing.T) {
	f, err := OS{}.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	n, err := f.WriteVAt([][]byte{[]byte("a"), []byte("b")}, 0)
	requireError(t, err, "/dev/full", syscall.ENOSPC)
	require.Zero(t, n)
	require.NoError(t, f.Close())
}

// TestInterruptedCall: a signal is no failure.
func TestInterruptedCall(t *testing.T) {
	f := create(t, OS{}, filepath.Join(t.TempDir(), "f"), "").(*osFile)
	calls := 0
	require.NoError(t, f.call(func(int) error {
		if calls++; calls < 3 {
			return syscall.EINTR
		}
		return nil
	}))
	require.Equal(t, 3, calls)
	require.NoError(t, f.Close())
}

// TestZeroFill is Preallocate where the file system cannot reserve.
func TestZeroFill(t *testing.T) {
	f := create(t, OS{}, filepath.Join(t.TempDir(), "f"), "data").(*osFile)
	require.NoError(t, f.zeroFill(2, 3<<20))
	require.NoError(t, f.zeroFill(0, 8))
	got := content(t, OS{}, f.Name())
	require.Len(t, got, 2+(3<<20))
	require.Equal(t, "data\x00", got[:5])
	require.NoError(t, f.Close())
}

// TestWriteOut: it changes nothing that can be seen, and where it cannot be begun that is no failure.
func TestWriteOut(t *testing.T) {
	begin := func(f File, off, n int64) bool {
		begun, err := BeginWriteOut(f, off, n)
		require.NoError(t, err)
		return begun
	}
	f := create(t, OS{}, filepath.Join(t.TempDir(), "f"), "some data")
	if begin(f, 2, 3) { // not on each file system
		require.NoError(t, WriteOut(f, 2, 3))
		require.True(t, begin(f, 0, 1<<20))
		require.NoError(t, WriteOut(f, 0, 1<<20))
	}
	require.Equal(t, "some data", content(t, OS{}, f.Name()))
	require.False(t, begin(f, 0, 0))
	require.NoError(t, f.Close())
	_, err := BeginWriteOut(f, 0, 1)
	requireError(t, err, f.Name(), os.ErrClosed)
	requireError(t, WriteOut(f, 0, 1), f.Name(), os.ErrClosed)

	null, err := OS{}.OpenFile(os.DevNull, os.O_RDWR, 0)
	require.NoError(t, err)
	require.False(t, begin(null, 0, 1))
	require.Error(t, WriteOut(null, 0, 1), "what was begun does not turn out to be impossible: this is about the bytes")
	require.NoError(t, null.Close())

	m := NewMem()
	f = create(t, m, "/f", "some data")
	require.False(t, begin(f, 0, 4))
	require.NoError(t, f.Close())
}

// TestWhereNothingIsWrittenOut: there a sync has everything to do.
func TestWhereNothingIsWrittenOut(t *testing.T) {
	require.True(t, writesOutNothing(unix.OVERLAYFS_SUPER_MAGIC))
	require.True(t, writesOutNothing(0x2fc12fc1), "ZFS")
	require.False(t, writesOutNothing(unix.EXT4_SUPER_MAGIC))
	require.False(t, writesOutNothing(unix.XFS_SUPER_MAGIC))
}

// TestWithoutDescriptors has a process of its own use up all descriptors.
func TestWithoutDescriptors(t *testing.T) {
	const child = "VFS_WITHOUT_DESCRIPTORS"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestWithoutDescriptors$")
		cmd.Env = append(os.Environ(), child+"=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		return
	}
	dir := t.TempDir()
	f := create(t, OS{}, filepath.Join(dir, "f"), "x")
	var free []File
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	limit.Cur = 64
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
	for {
		g, err := OS{}.OpenFile(f.Name(), os.O_RDWR, 0)
		if err != nil {
			require.True(t, NotOpened(err), "%v", err)
			break
		}
		free = append(free, g)
	}
	_, err := OS{}.OpenFile(filepath.Join(dir, "g"), os.O_RDWR|os.O_CREATE, 0o644)
	require.True(t, NotOpened(err), "%v", err)
	_, err = OS{}.Stat(filepath.Join(dir, "g"))
	require.ErrorIs(t, err, os.ErrNotExist)
	err = OS{}.SyncDir(dir)
	require.True(t, NotOpened(err), "%v", err)
	require.NoError(t, f.Sync())
	require.NotEmpty(t, free)
	require.NoError(t, free[0].Close())
	require.NoError(t, OS{}.SyncDir(dir))
	for _, g := range free[1:] {
		require.NoError(t, g.Close())
	}
}
