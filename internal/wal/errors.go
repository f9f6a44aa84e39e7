package wal

import (
	"errors"
	"fmt"
	"syscall"
)

// The errors that a caller can tell apart with errors.Is.
var (
	// ErrPoisoned says that a write or sync has failed: nothing is acknowledged any
	// more. It wraps the cause.
	ErrPoisoned = errors.New("log store failed")
	// ErrNoSpace says that a record was refused before it was placed. Nothing of it
	// was written, and service resumes when space returns.
	ErrNoSpace = errors.New("no space for the log")
	// ErrClosed says that the store is closed or closing.
	ErrClosed = errors.New("log store is closed")
	// ErrCompacted says that the entry is below the group's first one.
	ErrCompacted = errors.New("entry is no longer in the log")
	// ErrRemoved says that the group was removed.
	ErrRemoved = errors.New("group was removed")
	// ErrOrder says that an operation does not fit the log as submitted so far, as
	// happens after an earlier one was refused.
	ErrOrder = errors.New("operation does not follow the log")
	// ErrTooLarge says that a record exceeds Options.MaxRecord, or a name its length.
	ErrTooLarge = errors.New("record is too large")
	// ErrNotOpened says that a file could not be opened for reading, since there was no descriptor for it at the moment. It may be
	// tried again.
	ErrNotOpened = errors.New("cannot be read for now")
	// ErrIdentity says that the directory is not this host's, or not whole.
	ErrIdentity = errors.New("wrong log directory")
	// ErrVersion says that a newer version of the format was found.
	ErrVersion = errors.New("newer format version")
)

// CorruptError says that stored bytes which must be whole are not. Nothing has
// been changed on disk.
type CorruptError struct {
	File   string
	Offset int64
	Reason string
}

// Error names file, offset and reason.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("log is corrupt: %s at offset %d: %s", e.File, e.Offset, e.Reason)
}

// poisoned is what everybody gets once the store has failed.
func poisoned(cause error) error { return fmt.Errorf("%w: %w", ErrPoisoned, cause) }

// isSpace reports whether err says that the disk, or a quota, is full.
func isSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
