package snapdir

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/graft-raft/graft/internal/vfs"
)

// CopyOptions configures a Copy.
type CopyOptions struct {
	// GroupID is the group's own; a manifest that names another is refused. 0 means
	// that any will do.
	GroupID uint64
	// Watch is for the reading of what is there already, and of a file without hashes
	// when all of it is there. It is asked as long as the Copy has not ended.
	Watch Watch
	// Turns are those of all copies that share processors and disk. nil: nobody else's.
	Turns *Turns
}

// Turns keeps copies from taking all of the processors and of the disk for themselves: so
// many hash at a time, and one writes to the disk, one piece at a time, so that a log's
// sync has not to wait for more than that.
//
// Ownership: safe for concurrent use. The channels are semaphores.
type Turns struct{ work, disk chan struct{} }

// NewTurns returns turns for so many at a time that hash.
func NewTurns(work int) *Turns {
	return &Turns{work: make(chan struct{}, work), disk: make(chan struct{}, 1)}
}

// take calls f while it is the caller's turn.
func take(turn chan struct{}, f func() error) error {
	turn <- struct{}{}
	defer func() { <-turn }()
	return f()
}

// OpenCopy begins to take in the snapshot with the given manifest, as another node
// serves it. It keeps what an interrupted copy, of this snapshot or of another, left
// and what matches, and finds the files that a local snapshot has too. There is one
// Copy at a time, else it fails with ErrBusy; a snapshot that is not newer than the
// latest is ErrStale. Nothing is written before the manifest was found valid.
func (s *Store) OpenCopy(data []byte, o CopyOptions) (*Copy, error) {
	m, err := parse(data, s.layout)
	if err != nil {
		return nil, fmt.Errorf("copy snapshot: %w: %w", ErrManifest, err)
	}
	if m.ours && o.GroupID != 0 && m.group != 0 && m.group != o.GroupID {
		return nil, fmt.Errorf("copy snapshot %d: %w: group %d, not %d", m.index(), ErrGroup, m.group, o.GroupID)
	}
	if !m.ours {
		m.group = o.GroupID
	}
	if err := s.newer(m.index()); err != nil {
		return nil, fmt.Errorf("copy snapshot: %w", err)
	}
	s.mu.Lock()
	busy := s.copying
	s.copying = true
	s.mu.Unlock()
	if busy {
		return nil, fmt.Errorf("copy snapshot %d: %w", m.index(), ErrBusy)
	}
	c := &Copy{store: s, manifest: m, dir: filepath.Join(s.dir, copyDir), turns: o.Turns, watch: o.Watch}
	if c.turns == nil {
		c.turns = NewTurns(1)
	}
	if err := c.takeOver(o.Watch); err != nil {
		c.letGo()
		return nil, fmt.Errorf("copy snapshot %d: %w", m.index(), err)
	}
	return c, nil
}

// letGo ends what the Copy holds.
func (c *Copy) letGo() {
	for _, f := range c.files {
		if f.source != nil {
			_ = f.source.Close() // should it be to delete: Prune tries again
		}
	}
	c.store.release(&c.store.copying)
}

// takeOver prepares the directory and finds out what is there.
func (c *Copy) takeOver(w Watch) error {
	s := c.store
	s.changes.Lock()
	err := s.discard(filepath.Join(s.dir, installDir))
	if err == nil {
		err = s.settle(c.dir)
	}
	s.changes.Unlock()
	if err != nil {
		return err
	}
	if err := s.fs.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	names := newNameSet()
	for _, file := range c.manifest.files {
		_ = names.add(file.Name) // they were checked with the manifest
	}
	if err := prune(s.fs, c.dir, ".", names); err != nil {
		return err
	}
	c.progress.Total = c.manifest.bytes()
	buf := make([]byte, s.layout.leaf)
	for _, file := range c.manifest.files {
		f := &incoming{File: file, sized: file.hashed(), written: map[int64]int64{}}
		c.files = append(c.files, f)
		if err := c.prepare(f, buf, w); err != nil {
			return err
		}
	}
	return nil
}

// prepare finds out what of a file is there already.
func (c *Copy) prepare(f *incoming, buf []byte, w Watch) error {
	full := filepath.Join(c.dir, f.Name)
	linked, err := c.findLocal(f, buf, w)
	if err != nil {
		return err
	}
	if linked || !f.sized {
		return removeAll(c.store.fs, full)
	}
	f.left = count(f.Size, f.blockSize)
	h, err := c.store.fs.OpenFile(full, os.O_RDWR, 0)
	switch {
	case errors.Is(err, os.ErrNotExist):
		f.done = f.left == 0
		return nil
	case err != nil:
		return err
	}
	return errors.Join(c.resume(f, h, buf, w), h.Close())
}

// resume counts the blocks that match.
func (c *Copy) resume(f *incoming, h vfs.File, buf []byte, w Watch) error {
	size, err := h.Size()
	if err != nil {
		return err
	}
	if size > f.Size {
		if err := h.Truncate(f.Size); err != nil {
			return err
		}
		size = f.Size
	}
	for i := range count(f.Size, f.blockSize) {
		off, n, want := f.block(i)
		if off+n > size {
			break
		}
		sum, err := c.store.layout.sumAt(h, off, n, buf, w)
		if errors.Is(err, ErrStopped) {
			return err
		}
		if err == nil && bytes.Equal(sum, want) { // what cannot be read is written anew
			f.claimed.add(off, off+n)
			f.left--
			c.progress.Done += n
			c.progress.Resumed += n
		}
	}
	f.done = f.left == 0
	return nil
}

// findLocal looks for the file in the local snapshots: one of the same name and
// checksum, whose content is what its hashes say.
func (c *Copy) findLocal(f *incoming, buf []byte, w Watch) (bool, error) {
	if f.Checksum == "" {
		return false, nil
	}
	for _, info := range c.store.List() {
		if info.Damage != nil && info.Index >= c.manifest.index() {
			continue // this one takes its place, so that it must not be read then
		}
		r, err := c.store.Reader(info.Index)
		if err != nil {
			continue // damaged, or just deleted
		}
		local := r.snap.manifest.file(f.Name)
		ok := local != nil && local.Checksum == f.Checksum
		if ok {
			ok, err = c.sameContent(r, local, f, buf, w)
		}
		if ok {
			f.source, f.done, f.synced = r, true, true
			c.progress.Done += max(f.Size, 0)
			c.progress.Linked += max(f.Size, 0)
			return true, nil
		}
		_ = r.Close() // should it be to delete: Prune tries again
		if errors.Is(err, ErrStopped) {
			return false, err
		}
		// One that cannot be read is of no use, and no reason to do without a snapshot.
	}
	return false, nil
}

// sameContent reports whether the local file has what f is to have. Checksums of
// braft's are no hashes that could be computed: there the local manifest's hashes
// say whether the file still is what had that checksum, and if it has none either,
// the equal checksums alone decide, as in braft.
func (c *Copy) sameContent(r *Reader, local *File, f *incoming, buf []byte, w Watch) (bool, error) {
	known := *local
	switch {
	case f.sized && !local.hashed():
		known = f.File
	case f.sized && (local.Size != f.Size || local.blockSize == f.blockSize && !bytes.Equal(local.blocks, f.blocks)):
		return false, nil
	}
	// Also if it was verified before: if it has rotted since, every install that
	// links it would fail.
	err := verifyFile(c.store.fs, r.snap.path, &known, c.store.layout, true, buf, w)
	var damage *DamageError
	if errors.As(err, &damage) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if !f.sized && local.hashed() {
		f.Size, f.blockSize, f.blocks = local.Size, local.blockSize, local.blocks
	}
	return true, nil
}
