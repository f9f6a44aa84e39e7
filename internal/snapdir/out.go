package snapdir

import "github.com/graft-raft/graft/internal/vfs"

const (
	// syncEvery bounds how much of a file is synced at once: a sync of a gigabyte
	// would hold up everybody else's. What was written out leaves little to be synced,
	// and syncOutEvery only bounds what a power cut takes of it.
	syncEvery    = 32 << 20
	syncOutEvery = 256 << 20
)

// syncDue reports whether a file is to be synced of which so many bytes were written since the last
// time; out says that they are written out as they come.
func syncDue(unsynced int64, out bool) bool {
	if out {
		return unsynced >= syncOutEvery
	}
	return unsynced >= syncEvery
}

// writeOut begins to write a piece to the disk and waits until the one before, of which leaving says that it was begun, is there:
// the disk has something to do while the next piece comes, and whoever syncs another file has to wait for two at most. It reports
// whether this one was begun.
func writeOut(f vfs.File, piece, leaving span) (begun bool, err error) {
	begun, err = vfs.BeginWriteOut(f, piece.lo, piece.hi-piece.lo)
	if err == nil && leaving.hi > leaving.lo {
		err = vfs.WriteOut(f, leaving.lo, leaving.hi-leaving.lo)
	}
	return begun, err
}
