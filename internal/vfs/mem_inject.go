package vfs

import (
	"fmt"
	"path"
	"sync/atomic"
)

// Kind says what an operation does.
type Kind int

// The kinds of operations. Size of a File counts as KindStat, WriteVAt as
// KindWrite; OpenFile is KindCreate if it makes the file.
const (
	KindOpen Kind = iota + 1
	KindCreate
	KindRead
	KindWrite
	KindSync
	KindTruncate
	KindPreallocate
	KindRename
	KindLink
	KindRemove
	KindSyncDir
	KindReadDir
	KindStat
	KindMkdir
	KindLock
	KindClose
)

// String is the kind as it stands in errors.
func (k Kind) String() string {
	names := [...]string{"unknown", "open", "create", "read", "write", "sync", "truncate", "preallocate", "rename",
		"link", "remove", "syncdir", "readdir", "stat", "mkdir", "lock", "close"}
	if k < 0 || int(k) >= len(names) {
		k = 0
	}
	return names[k]
}

// Op is one operation on a Mem, as its injector and its OnOp hook see it.
type Op struct {
	Kind Kind
	Name string // as the caller gave it; of a rename or link the old name
	To   string // the new name of a rename or link
	Off  int64  // of a read, write or preallocation; the new size of a truncate
	Len  int64  // of a read, write or preallocation
	N    int64  // the operation's number in its Mem, from 1
}

// Writes reports whether the operation can change what a crash leaves. Opening
// can: it may truncate.
func (o Op) Writes() bool {
	switch o.Kind {
	case KindRead, KindReadDir, KindStat, KindClose:
		return false
	}
	return true
}

// Injector decides before each operation whether it fails: a non-nil result is
// returned to the caller in an *os.PathError. A failed Sync or SyncDir leaves
// what it should have made durable in the state ext4 leaves it in: readable, no
// longer dirty, not on the disk. But a SyncDir that fails with EMFILE or ENFILE has
// not opened the directory. A failed Close closes all the same. Other
// failed operations do nothing, except a write that fails with ShortWrite.
//
// It is called without locks and may be called concurrently.
type Injector func(op Op) error

// ShortWrite, returned by an Injector for a write, lets the first N bytes through.
type ShortWrite struct {
	N   int
	Err error
}

// Error describes the failure.
func (e ShortWrite) Error() string { return fmt.Sprintf("short write of %d bytes: %v", e.N, e.Err) }

// Unwrap is the cause, such as syscall.EIO.
func (e ShortWrite) Unwrap() error { return e.Err }

// Fail fails operations of the given kinds, or all if there are none, with err.
func Fail(err error, kinds ...Kind) Injector {
	return func(op Op) error {
		for _, k := range kinds {
			if k == op.Kind {
				return err
			}
		}
		if len(kinds) == 0 {
			return err
		}
		return nil
	}
}

// FailOp fails the operation with the given number.
func FailOp(n int64, err error) Injector {
	return func(op Op) error {
		if op.N == n {
			return err
		}
		return nil
	}
}

// On restricts the injector to files whose base name matches the path.Match
// pattern. A bad pattern matches nothing.
func (i Injector) On(pattern string) Injector {
	return func(op Op) error {
		if ok, err := path.Match(pattern, path.Base(op.Name)); err != nil || !ok {
			return nil
		}
		return i(op)
	}
}

// After lets the first skip failures pass.
func (i Injector) After(skip int64) Injector {
	var seen atomic.Int64
	return func(op Op) error {
		err := i(op)
		if err == nil || seen.Add(1) <= skip {
			return nil
		}
		return err
	}
}

// Times lets only the first n failures happen.
func (i Injector) Times(n int64) Injector {
	var seen atomic.Int64
	return func(op Op) error {
		err := i(op)
		if err == nil || seen.Add(1) > n {
			return nil
		}
		return err
	}
}

// FirstOf fails with what the first of the injectors that fails says.
func FirstOf(injectors ...Injector) Injector {
	return func(op Op) error {
		for _, i := range injectors {
			if err := i(op); err != nil {
				return err
			}
		}
		return nil
	}
}
