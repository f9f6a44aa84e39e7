// Package snapdir keeps the snapshots of one group on disk: directories of files
// with a table of contents, the manifest, in braft's format and with the hashes of
// all blocks of all files. FORMAT.md describes what is on disk, and why a crash
// at any moment leaves a whole snapshot or none.
//
// A Store lists the snapshots and deletes old ones. A Writer makes one from what the
// state machine writes, a Copy from what another node sends, a Reader reads and
// serves one. Nothing here starts a goroutine; every call may block on the disk.
package snapdir
