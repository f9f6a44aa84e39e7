package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// onBoth runs a test on each implementation, with an empty directory.
func onBoth(t *testing.T, test func(t *testing.T, fs FS, dir string)) {
	t.Run("OS", func(t *testing.T) { test(t, OS{}, t.TempDir()) })
	t.Run("Mem", func(t *testing.T) {
		m := NewMem()
		require.NoError(t, m.MkdirAll("/dir", 0o755))
		test(t, m, "/dir")
	})
}

func content(t *testing.T, fs FS, name string) string {
	t.Helper()
	f, err := fs.OpenFile(name, os.O_RDONLY, 0)
	require.NoError(t, err)
	size, err := f.Size()
	require.NoError(t, err)
	p := make([]byte, size)
	_, err = f.ReadAt(p, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	return string(p)
}

func create(t *testing.T, fs FS, name, data string) File {
	t.Helper()
	f, err := fs.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	put(t, f, data, 0)
	return f
}

func put(t *testing.T, f File, data string, off int64) {
	t.Helper()
	n, err := f.WriteAt([]byte(data), off)
	require.NoError(t, err)
	require.Equal(t, len(data), n)
}

func names(t *testing.T, fs FS, dir string) string {
	t.Helper()
	list, err := fs.ReadDir(dir)
	require.NoError(t, err)
	return strings.Join(list, " ")
}

// requireError demands an *os.PathError that names the file.
func requireError(t *testing.T, err error, name string, target error) {
	t.Helper()
	var p *os.PathError
	require.ErrorAs(t, err, &p)
	require.Equal(t, name, p.Path)
	require.ErrorIs(t, err, target)
}

func TestFileBasics(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS, dir string) {
		name := filepath.Join(dir, "f")
		f := create(t, fs, name, "hello")
		require.Equal(t, name, f.Name())
		n, err := f.WriteVAt([][]byte{[]byte("ab"), nil, []byte("cd")}, 6)
		require.NoError(t, err)
		require.Equal(t, 4, n)
		require.Equal(t, "hello\x00abcd", content(t, fs, name))
		p := make([]byte, 8)
		n, err = f.ReadAt(p, 6)
		require.Equal(t, io.EOF, err)
		require.Equal(t, "abcd", string(p[:n]))
		require.NoError(t, f.Preallocate(8, 5000))
		size, err := f.Size()
		require.NoError(t, err)
		require.EqualValues(t, 5008, size)
		require.NoError(t, f.Truncate(3))
		require.NoError(t, f.Truncate(6))
		require.Equal(t, "hel\x00\x00\x00", content(t, fs, name))
		require.NoError(t, f.Sync())
		require.NoError(t, fs.SyncDir(dir))
		require.NoError(t, f.Close())
		requireError(t, f.Close(), name, os.ErrClosed)
		requireError(t, f.Sync(), name, os.ErrClosed)
		_, err = f.WriteVAt([][]byte{p}, 0)
		requireError(t, err, name, os.ErrClosed)
		_, err = f.ReadAt(p, 0)
		requireError(t, err, name, os.ErrClosed)
	})
}

func TestManyBuffers(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS, dir string) {
		var bufs [][]byte
		var want []byte
		for i := range 3000 {
			b := bytes.Repeat([]byte{byte(i)}, i%7)
			bufs, want = append(bufs, b), append(want, b...)
		}
		f := create(t, fs, filepath.Join(dir, "f"), "")
		n, err := f.WriteVAt(bufs, 0)
		require.NoError(t, err)
		require.Equal(t, len(want), n)
		require.True(t, content(t, fs, f.Name()) == string(want))
		require.NoError(t, f.Close())
	})
}

func TestErrors(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS, dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		f := create(t, fs, in("f"), "x")
		require.NoError(t, fs.MkdirAll(in("d/e"), 0o755))
		open := func(name string, flag int) error {
			_, err := fs.OpenFile(in(name), flag, 0o644)
			return err
		}
		requireError(t, open("none", os.O_RDWR), in("none"), os.ErrNotExist)
		requireError(t, open("no/file", os.O_RDWR|os.O_CREATE), in("no/file"), os.ErrNotExist)
		requireError(t, open("f", os.O_RDWR|os.O_CREATE|os.O_EXCL), in("f"), os.ErrExist)
		requireError(t, open("f", os.O_RDWR|os.O_APPEND), in("f"), syscall.EINVAL)
		requireError(t, open("d", os.O_RDWR), in("d"), syscall.EISDIR)
		requireError(t, open("f/x", os.O_RDWR), in("f/x"), syscall.ENOTDIR)
		requireError(t, fs.Link(in("f"), in("d")), in("d"), os.ErrExist)
		requireError(t, fs.Link(in("d"), in("d2")), in("d2"), syscall.EPERM)
		requireError(t, fs.Rename(in("none"), in("g")), in("g"), os.ErrNotExist)
		requireError(t, fs.Rename(in("f"), in("d")), in("d"), os.ErrExist)
		requireError(t, fs.Rename(in("d"), in("d/e/x")), in("d/e/x"), syscall.EINVAL)
		requireError(t, fs.Rename(in("d"), in("f")), in("f"), syscall.ENOTDIR)
		requireError(t, fs.Remove(in("d")), in("d"), syscall.ENOTEMPTY)
		requireError(t, fs.Remove(in("none")), in("none"), os.ErrNotExist)
		requireError(t, fs.MkdirAll(in("f/x"), 0o755), in("f/x"), syscall.ENOTDIR)
		requireError(t, fs.SyncDir(in("f")), in("f"), syscall.ENOTDIR)
		_, err := fs.ReadDir(in("f"))
		requireError(t, err, in("f"), syscall.ENOTDIR)
		_, err = fs.Stat(in("none"))
		requireError(t, err, in("none"), os.ErrNotExist)
		requireError(t, f.Preallocate(0, 0), in("f"), syscall.EINVAL)
		requireError(t, f.Truncate(-1), in("f"), syscall.EINVAL)
		_, err = f.WriteAt(nil, -1)
		requireError(t, err, in("f"), syscall.EINVAL)
		require.NoError(t, f.Close())
		r, err := fs.OpenFile(in("f"), os.O_RDONLY, 0)
		require.NoError(t, err)
		_, err = r.WriteVAt([][]byte{{1}}, 0)
		requireError(t, err, in("f"), syscall.EBADF)
		requireError(t, r.Truncate(0), in("f"), syscall.EINVAL)
		requireError(t, r.Preallocate(0, 1), in("f"), syscall.EBADF)
		require.NoError(t, r.Close())
	})
}

func TestLock(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS, dir string) {
		name := filepath.Join(dir, "LOCK")
		l, err := fs.Lock(name)
		require.NoError(t, err)
		_, err = fs.Lock(name)
		requireError(t, err, name, ErrLocked)
		require.NoError(t, l.Close())
		requireError(t, l.Close(), name, os.ErrClosed)
		l, err = fs.Lock(name)
		require.NoError(t, err)
		require.NoError(t, l.Close())
		require.Equal(t, "LOCK", names(t, fs, dir))
	})
}

// TestHandlesAndNames: handles are separate, a removed file lives while it is open.
func TestHandlesAndNames(t *testing.T) {
	onBoth(t, func(t *testing.T, fs FS, dir string) {
		in := func(name string) string { return filepath.Join(dir, name) }
		a := create(t, fs, in("a"), "one")
		b, err := fs.OpenFile(in("a"), os.O_RDWR, 0)
		require.NoError(t, err)
		require.NoError(t, a.Close())
		put(t, b, "two", 0)
		require.NoError(t, fs.Link(in("a"), in("b")))
		require.NoError(t, fs.Rename(in("a"), in("b"))) // the same file: nothing happens
		require.Equal(t, "a b", names(t, fs, dir))
		require.NoError(t, fs.Remove(in("a")))
		require.Equal(t, "two", content(t, fs, in("b")))
		require.NoError(t, create(t, fs, in("c"), "three").Close())
		require.NoError(t, fs.Rename(in("c"), in("b")))
		require.Equal(t, "three", content(t, fs, in("b")))
		p := make([]byte, 3)
		_, err = b.ReadAt(p, 0)
		require.NoError(t, err)
		require.Equal(t, "two", string(p))
		require.NoError(t, b.Close())
		require.Equal(t, "b", names(t, fs, dir))
	})
}

// script runs random operations and returns what they answered. Two file systems
// that agree give the same answers to the same seed.
type script struct {
	rng   *rand.Rand
	fs    FS
	dir   string
	files []File
	log   []string
}

func (s *script) name() string {
	list := []string{"a", "b", "c", "d", "d/a", "d/b", "e", "e/d", "e/d/a", "a/x"}
	return filepath.Join(s.dir, list[s.rng.IntN(len(list))])
}

// answer notes a result: of an error only the number, since words differ.
func (s *script) answer(what string, err error, values ...any) {
	var no syscall.Errno
	var p *os.PathError
	switch {
	case err == nil || err == io.EOF:
	case errors.Is(err, os.ErrClosed):
		err = os.ErrClosed
	case !errors.As(err, &p) || !errors.As(err, &no):
		err = fmt.Errorf("neither path nor number: %w", err)
	default:
		err = no
	}
	s.log = append(s.log, fmt.Sprintln(what, err, values))
}

func (s *script) step() {
	if s.rng.IntN(2) == 0 && len(s.files) > 0 {
		s.fileStep(s.files[s.rng.IntN(len(s.files))])
		return
	}
	a, b := s.name(), s.name()
	rel := strings.TrimPrefix(a, s.dir) + " " + strings.TrimPrefix(b, s.dir)
	switch s.rng.IntN(9) {
	case 0:
		s.answer("rename "+rel, s.fs.Rename(a, b))
	case 1:
		s.answer("link "+rel, s.fs.Link(a, b))
	case 2:
		s.answer("remove "+rel, s.fs.Remove(a))
	case 3:
		s.answer("mkdir "+rel, s.fs.MkdirAll(filepath.Join(s.dir, []string{"d", "e", "e/d"}[s.rng.IntN(3)]), 0o755))
	case 4:
		list, err := s.fs.ReadDir(filepath.Dir(a))
		s.answer("readdir "+rel, err, list)
	case 5:
		info, err := s.fs.Stat(a)
		if err != nil {
			s.answer("stat "+rel, err)
		} else if info.IsDir() {
			s.answer("stat "+rel, nil, info.Name(), "dir")
		} else {
			s.answer("stat "+rel, nil, info.Name(), info.Size(), info.Mode())
		}
	case 6:
		s.answer("syncdir "+rel, s.fs.SyncDir(filepath.Dir(a)))
	default:
		flag := os.O_RDWR | []int{0, os.O_CREATE, os.O_CREATE, os.O_CREATE | os.O_EXCL, os.O_TRUNC}[s.rng.IntN(5)]
		f, err := s.fs.OpenFile(a, flag, 0o600)
		if err == nil {
			s.files = append(s.files, f)
		}
		s.answer("open "+rel, err)
	}
}

func (s *script) fileStep(f File) {
	off, n := s.rng.Int64N(20000), 1+s.rng.Int64N(9000)
	if s.rng.IntN(3) == 0 {
		off, n = off/4096*4096, n/4096*4096+4096
	}
	data := bytes.Repeat([]byte{byte(s.rng.Uint32())}, int(n))
	what := fmt.Sprintf("file [%d, +%d)", off, n)
	switch s.rng.IntN(8) {
	case 0, 1:
		done, err := f.WriteVAt([][]byte{data[:n/3], data[n/3:]}, off)
		s.answer("writev "+what, err, done)
	case 2:
		done, err := f.WriteAt(data, off)
		s.answer("write "+what, err, done)
	case 3:
		s.answer("truncate "+what, f.Truncate(off))
	case 4:
		s.answer("preallocate "+what, f.Preallocate(off, n))
	case 5:
		s.answer("sync "+what, f.Sync())
	case 6:
		size, err := f.Size()
		p := make([]byte, size+1)
		if err == nil {
			_, err = f.ReadAt(p, 0)
		}
		s.answer("read "+what, err, size, bytes.Compare(p, data), string(p))
	default:
		if s.rng.IntN(4) == 0 {
			s.answer("close "+what, f.Close())
		}
	}
}

func runScript(fs FS, dir string, seed uint64, steps int) []string {
	s := &script{rng: rand.New(rand.NewPCG(seed, 1)), fs: fs, dir: dir}
	for range steps {
		s.step()
	}
	for _, f := range s.files {
		s.answer("close", f.Close())
	}
	return s.log
}

func TestMemDoesWhatOSDoes(t *testing.T) {
	for seed := range uint64(40) {
		m := NewMem()
		require.NoError(t, m.MkdirAll("/dir", 0o755))
		want, got := runScript(OS{}, t.TempDir(), seed, 150), runScript(m, "/dir", seed, 150)
		for i := range want {
			if want[i] != got[i] {
				t.Fatalf("seed %d step %d: got %.200q, want %.200q", seed, i, got[i], want[i])
			}
		}
	}
}
