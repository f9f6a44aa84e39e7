package snapdir

import (
	"errors"
	"fmt"
)

// The errors that a caller can tell apart with errors.Is.
var (
	// ErrStale says that there is a snapshot of that index or of a later one.
	ErrStale = errors.New("snapshot is not newer than the latest")
	// ErrBusy says that another Writer or Copy is under way, or that a snapshot of
	// the same index is still being deleted.
	ErrBusy = errors.New("snapshot directory is busy")
	// ErrNone says that there is no such snapshot.
	ErrNone = errors.New("no such snapshot")
	// ErrClosed says that the Writer, Copy or Reader has ended.
	ErrClosed = errors.New("snapshot is closed")
	// ErrName says that a file's name is not allowed.
	ErrName = errors.New("file name is not allowed in a snapshot")
	// ErrNoFile says that the snapshot has no file of that name.
	ErrNoFile = errors.New("no such file in the snapshot")
	// ErrRange says that an offset or length makes no sense, or lies outside the file.
	ErrRange = errors.New("range is not in the file")
	// ErrManifest says that a manifest from another node is not one, or a damaged one.
	ErrManifest = errors.New("manifest is not valid")
	// ErrSegments says that the bytes another node sent are not framed as they must be.
	ErrSegments = errors.New("segments are not valid")
	// ErrGroup says that the manifest is another group's.
	ErrGroup = errors.New("snapshot is another group's")
	// ErrIncomplete says that files are missing yet.
	ErrIncomplete = errors.New("snapshot is incomplete")
	// ErrStopped says that Watch.Stop asked for the end.
	ErrStopped = errors.New("stopped")
)

// DamageError says that a snapshot on disk is not what was saved.
type DamageError struct {
	Path   string // of the file, or of the directory it is missing from
	Name   string // of the file in the snapshot; the manifest's name for the manifest
	Offset int64  // of the first bad block, or where the file ends or should
	Reason string
}

// Error names file, offset and reason.
func (e *DamageError) Error() string {
	return fmt.Sprintf("snapshot is damaged: %s at offset %d: %s", e.Path, e.Offset, e.Reason)
}

// BlockError says that a block arrived with other content than the manifest tells of.
// It is needed again, all of it.
type BlockError struct {
	Name     string
	Off, Len int64
}

// Error names the file and the range.
func (e *BlockError) Error() string {
	return fmt.Sprintf("received block of %q at [%d, %d) does not match its hash", e.Name, e.Off, e.Off+e.Len)
}

// Watch lets the caller of something long stop it and slow it down. The zero value
// does neither.
type Watch struct {
	Stop func() bool // asked before each piece of at most 1 MiB
	Read func(n int) // told of n bytes read; may block
}

func (w Watch) stopped() error {
	if w.Stop != nil && w.Stop() {
		return ErrStopped
	}
	return nil
}

func (w Watch) read(n int) {
	if w.Read != nil {
		w.Read(n)
	}
}
