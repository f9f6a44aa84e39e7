package snapdir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/graft-raft/graft/internal/vfs"
	"github.com/graft-raft/graft/raftpb"
)

// markDir holds the mark, which is a manifest without files.
const markDir = "mark"

// SetMark notes a position, durably, in place of the one before: the log begins behind it, or will, and no snapshot is
// of it, since the state machine keeps what it has applied itself. After a crash it is there, or the one before is.
func (s *Store) SetMark(meta *raftpb.SnapshotMeta, groupID uint64) error {
	s.changes.Lock()
	defer s.changes.Unlock()
	if err := s.setMark(newManifest(meta, groupID, nil)); err != nil {
		return fmt.Errorf("write mark %d: %w", meta.GetLastIncludedIndex(), err)
	}
	return nil
}

func (s *Store) setMark(m *manifest) error {
	dir := filepath.Join(s.dir, markDir)
	if err := vfs.MakeDir(s.fs, dir); err != nil {
		return err
	}
	if err := writeManifest(s.fs, dir, m); err != nil {
		return err
	}
	return s.fs.SyncDir(dir)
}

// Mark returns the position that SetMark has noted last. Without one it fails with ErrNone, if it cannot be relied on
// with a *DamageError.
func (s *Store) Mark() (*raftpb.SnapshotMeta, uint64, error) {
	s.changes.Lock()
	defer s.changes.Unlock()
	dir := filepath.Join(s.dir, markDir)
	if _, err := s.fs.Stat(filepath.Join(dir, manifestName)); errors.Is(err, os.ErrNotExist) {
		return nil, 0, ErrNone
	}
	// A process that was killed between rename and sync leaves a name that is not durable.
	if err := s.fs.SyncDir(dir); err != nil {
		return nil, 0, fmt.Errorf("read mark: %w", err)
	}
	m, err := readManifest(s.fs, dir, s.layout)
	if err != nil {
		return nil, 0, fmt.Errorf("read mark: %w", err)
	}
	if !m.ours {
		return nil, 0, &DamageError{Path: filepath.Join(dir, manifestName), Name: manifestName, Reason: "its CRC is missing"}
	}
	return m.meta, m.group, nil
}
