package vfs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/graft-raft/graft/internal/actor"
)

func TestCapacity(t *testing.T) {
	m := NewMem()
	m.SetCapacity(4 * 4096)
	f := create(t, m, "/f", strings.Repeat("x", 3*4096))
	g := create(t, m, "/g", "")
	n, err := g.WriteAt(make([]byte, 8192), 100)
	requireError(t, err, "/g", syscall.ENOSPC)
	require.Equal(t, 4096-100, n, "as much as fits")
	require.EqualValues(t, 4*4096, m.Used())
	requireError(t, g.Preallocate(0, 8192), "/g", syscall.ENOSPC)
	put(t, f, "over", 5000) // what has space can be written again
	require.NoError(t, f.Truncate(4097))
	require.EqualValues(t, 3*4096, m.Used())
	require.NoError(t, g.Preallocate(0, 8192))
	require.NoError(t, m.Remove("/f"))
	require.EqualValues(t, 4*4096, m.Used(), "still open")
	require.NoError(t, f.Close())
	require.EqualValues(t, 2*4096, m.Used())
	require.NoError(t, g.Truncate(1<<40), "a hole takes no space")
	require.EqualValues(t, 2*4096, m.Used())
	require.EqualValues(t, 2*4096, m.KillClone().Used())
	require.EqualValues(t, 2*4096, m.CrashClone(all).Used())
	require.Zero(t, m.CrashClone(nil).Used())
	_, err = m.CrashClone(nil).OpenFile("/h", os.O_CREATE|os.O_RDWR, 0o644)
	require.NoError(t, err)
}

func TestInjection(t *testing.T) {
	m := NewMem()
	f := create(t, m, "/f", "0123456789")
	m.SetInjector(Fail(ShortWrite{N: 4, Err: syscall.EIO}, KindWrite))
	n, err := f.WriteVAt([][]byte{[]byte("abc"), []byte("def")}, 0)
	requireError(t, err, "/f", syscall.EIO)
	require.Equal(t, 4, n)
	require.Equal(t, "abcd456789", content(t, m, "/f"))

	m.SetInjector(Fail(syscall.EIO, KindRead).On("f*").After(1).Times(1))
	p := make([]byte, 1)
	for i, want := range []error{nil, syscall.EIO, nil} {
		_, err = f.ReadAt(p, 0)
		require.ErrorIs(t, err, want, i)
	}

	var ops []Op
	m.OnOp(func(op Op) { ops = append(ops, op) })
	m.SetInjector(FirstOf(Fail(syscall.EACCES, KindRename, KindLink), Fail(syscall.EIO, KindClose), FailOp(m.Ops()+1, syscall.ENOSPC)))
	requireError(t, f.Preallocate(0, 5), "/f", syscall.ENOSPC)
	requireError(t, m.Rename("/f", "/g"), "/g", syscall.EACCES)
	requireError(t, m.Link("/f", "/g"), "/g", syscall.EACCES)
	requireError(t, f.Close(), "/f", syscall.EIO)
	requireError(t, f.Close(), "/f", os.ErrClosed)
	require.Equal(t, "f", names(t, m, "/"))
	require.Equal(t, Op{Kind: KindPreallocate, Name: "/f", Len: 5, N: ops[0].N}, ops[0])
	require.Equal(t, Op{Kind: KindRename, Name: "/f", To: "/g", N: ops[0].N + 1}, ops[1])
	require.Equal(t, ops[len(ops)-1].N, m.Ops())
	require.True(t, ops[0].Writes())
	require.False(t, ops[2+1].Writes()) // close
	require.Equal(t, "syncdir", KindSyncDir.String())
	require.Equal(t, "unknown", Kind(99).String())
}

func TestCorrupt(t *testing.T) {
	m := NewMem()
	f := durable(t, m, "/f", strings.Repeat("a", 5000))
	put(t, f, "b", 1)
	require.NoError(t, m.Corrupt("/f", 0, func(p []byte) {
		require.Len(t, p, 4096)
		p[0] ^= 3
	}))
	require.NoError(t, m.Corrupt("/f", 4999, func(p []byte) {
		require.Len(t, p, 1)
		p[0] = 'z'
	}))
	require.Equal(t, "bba", content(t, m, "/f")[:3])
	lost := content(t, m.CrashClone(nil), "/f")
	require.Equal(t, "baa", lost[:3])
	require.Equal(t, byte('z'), lost[4999])
	requireError(t, m.Corrupt("/f", 5000, nil), "/f", syscall.EINVAL)
	requireError(t, m.Corrupt("/g", 0, nil), "/g", os.ErrNotExist)
}

// TestConcurrentUse is for the race detector: writers, and clones taken meanwhile.
func TestConcurrentUse(t *testing.T) {
	m := NewMem()
	exec := actor.NewGoroutines()
	var failed atomic.Int64
	var actors []*actor.Actor[int]
	for i := range 4 {
		name := "/" + string(rune('a'+i))
		a := actor.New(exec, name, func(_ time.Time, batch []int) time.Time {
			f, err := m.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o644)
			if err != nil {
				failed.Add(1)
				return time.Time{}
			}
			for _, n := range batch {
				_, err := f.WriteAt(make([]byte, 3000), int64(n)*1000)
				if err != nil || f.Sync() != nil || m.SyncDir("/") != nil {
					failed.Add(1)
				}
				clone := m.CrashClone(nil)
				if g, err := clone.OpenFile(name, os.O_RDWR, 0); err != nil {
					failed.Add(1)
				} else if _, err := g.WriteAt([]byte("x"), int64(n)*1000); err != nil {
					failed.Add(1)
				}
			}
			if f.Close() != nil {
				failed.Add(1)
			}
			return time.Time{}
		})
		actors = append(actors, a)
	}
	for n := range 40 {
		for _, a := range actors {
			a.Post(n)
		}
	}
	for _, a := range actors {
		a.Close()
		<-a.Done()
	}
	require.Zero(t, failed.Load())
}

// BenchmarkMemAppend is what the simulator does: small records into a prepared segment.
func BenchmarkMemAppend(b *testing.B) {
	m := NewMem()
	f, err := m.OpenFile("/f", os.O_CREATE|os.O_RDWR, 0o644)
	require.NoError(b, err)
	require.NoError(b, f.Preallocate(0, 64<<20))
	require.NoError(b, f.Sync())
	bufs := [][]byte{make([]byte, 40), make([]byte, 100)}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, err := f.WriteVAt(bufs, int64(i)*140%(60<<20))
		if err != nil || f.Sync() != nil {
			b.Fatal(err)
		}
	}
}

func TestNotOpened(t *testing.T) {
	m := NewMem()
	require.NoError(t, m.MkdirAll("/d", 0o755))
	f := create(t, m, "/d/f", "x")
	for _, test := range []struct {
		what string
		err  error
		want bool
		call func() error
	}{
		{"open", syscall.EMFILE, true, func() error { _, err := m.OpenFile("/d/f", os.O_RDWR, 0); return err }},
		{"create", syscall.ENFILE, true, func() error { _, err := m.OpenFile("/d/g", os.O_RDWR|os.O_CREATE, 0); return err }},
		{"open without memory", syscall.ENOMEM, true, func() error { _, err := m.OpenFile("/d/f", os.O_RDWR, 0); return err }},
		{"wrapped", syscall.EMFILE, true, func() error { _, err := m.OpenFile("/d/f", os.O_RDWR, 0); return fmt.Errorf("x: %w", err) }},
		{"joined", syscall.EMFILE, false, func() error {
			_, err := m.OpenFile("/d/f", os.O_RDWR, 0)
			return errors.Join(err, os.ErrClosed)
		}},
		{"another error", syscall.EIO, false, func() error { _, err := m.OpenFile("/d/f", os.O_RDWR, 0); return err }},
		{"directory", syscall.EMFILE, true, func() error { return m.SyncDir("/d") }},
		{"sync of a directory", syscall.ENOMEM, false, func() error { return m.SyncDir("/d") }},
		{"sync", syscall.ENOMEM, false, f.Sync},
		{"write", syscall.EMFILE, false, func() error { _, err := f.WriteAt([]byte("y"), 0); return err }},
		{"nothing", nil, false, f.Sync},
	} {
		m.SetInjector(Fail(test.err))
		require.Equal(t, test.want, NotOpened(test.call()), test.what)
	}
}

// A directory that could not be opened is as it was: a later SyncDir makes durable what it holds.
func TestSyncDirThatWasNotOpened(t *testing.T) {
	for _, test := range []struct {
		err  error
		kept bool
	}{{syscall.EMFILE, true}, {syscall.EIO, false}} {
		m := NewMem()
		create(t, m, "/f", "")
		m.SetInjector(Fail(test.err, KindSyncDir))
		require.Error(t, m.SyncDir("/"))
		m.SetInjector(nil)
		require.NoError(t, m.SyncDir("/"))
		_, err := m.CrashClone(nil).Stat("/f")
		require.Equal(t, test.kept, err == nil, "%v", test.err)
	}
}
