package snapdir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/graft-raft/graft/internal/vfs"
)

// Commit publishes the snapshot, which it returns open, once all files are there;
// before that it fails with ErrIncomplete and the Copy goes on. Any other error ends
// the Copy without a snapshot, and the older ones stay; what was received is kept
// for the next OpenCopy as far as it can be trusted.
func (c *Copy) Commit() (*Reader, error) {
	if !c.complete() {
		return nil, fmt.Errorf("copy snapshot %d: %w", c.manifest.index(), ErrIncomplete)
	}
	if err := c.end(); err != nil {
		return nil, err
	}
	r, err := c.commit()
	if err != nil {
		err = errors.Join(err, c.closeFiles(), c.dropLost())
		err = fmt.Errorf("copy snapshot %d: %w", c.manifest.index(), err)
	}
	c.letGo()
	return r, err
}

// complete reports whether Commit has not to wait for more, be it because of an error.
func (c *Copy) complete() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err != nil || c.ended || !slices.ContainsFunc(c.files, func(f *incoming) bool { return !f.done })
}

// Abort ends the Copy. With keep what was received stays for the next OpenCopy, also
// in another process. After Commit or Abort it does nothing.
func (c *Copy) Abort(keep bool) error {
	if c.end() != nil {
		return nil
	}
	defer c.letGo()
	err := errors.Join(c.closeFiles(), c.dropLost())
	if !keep {
		c.store.changes.Lock()
		err = errors.Join(err, c.store.discard(c.dir))
		c.store.changes.Unlock()
	}
	if err != nil {
		return fmt.Errorf("give up copy of snapshot: %w", err)
	}
	return nil
}

// end lets no further call begin and waits for those that run.
func (c *Copy) end() error {
	c.mu.Lock()
	was := c.ended
	c.ended = true
	c.mu.Unlock()
	if was {
		return fmt.Errorf("copy snapshot: %w", ErrClosed)
	}
	c.active.Wait()
	return nil
}

func (c *Copy) closeFiles() error {
	var errs []error
	for _, f := range c.files {
		if f.f != nil {
			errs = append(errs, f.f.Close())
			f.f = nil
		}
	}
	return errors.Join(errs...)
}

// dropLost deletes the received files if the disk has failed: what reads well now
// may not be there after a power cut, and a later sync would not tell.
func (c *Copy) dropLost() error {
	if c.err == nil {
		return nil
	}
	c.store.changes.Lock()
	defer c.store.changes.Unlock()
	return errors.Join(c.store.discard(c.dir), c.store.discard(filepath.Join(c.store.dir, installDir)))
}

// seal writes the manifest. If names cannot be made durable, no later sync tells
// whether they are.
func (c *Copy) seal(dir string, m *manifest) error {
	if err := writeManifest(c.store.fs, dir, m); err != nil {
		return err
	}
	if err := syncDirs(c.store.fs, dir, m.files); err != nil {
		return c.notSynced(err)
	}
	return nil
}

// notSynced is lose, but for what could not be opened to be synced: the next Commit does that, and nothing is lost.
func (c *Copy) notSynced(err error) error {
	if vfs.NotOpened(err) {
		return err
	}
	return c.lose(err)
}

func (c *Copy) commit() (*Reader, error) {
	if c.err != nil {
		return nil, c.err
	}
	files := make([]File, len(c.files))
	links := false
	for i, f := range c.files {
		if err := c.secure(f); err != nil {
			return nil, c.notSynced(err)
		}
		files[i] = f.File
		links = links || f.source != nil
	}
	m := newManifest(c.manifest.meta, c.manifest.group, files)
	if links {
		return c.install(m)
	}
	if err := c.seal(c.dir, m); err != nil {
		return nil, err
	}
	return c.publish(c.dir, m)
}

// publish is the Store's, for what was compared block by block.
func (c *Copy) publish(dir string, m *manifest) (*Reader, error) {
	r, err := c.store.publish(dir, m, true)
	if err == nil && !c.duplicated {
		c.store.mu.Lock()
		r.snap.matched = true
		c.store.mu.Unlock()
	}
	return r, err
}

// secure makes a file durable that an interrupted copy had completed, or that is empty.
func (c *Copy) secure(f *incoming) error {
	if f.synced {
		return nil
	}
	h, err := c.open(f)
	if err != nil {
		return err
	}
	f.f = nil
	return errors.Join(h.Sync(), h.Close())
}

// install publishes a snapshot that shares files with local ones. The directory
// gets another name, durably, before the first link: what is left of copy/ may be
// written to, and must not hold a file of a snapshot.
func (c *Copy) install(m *manifest) (*Reader, error) {
	s := c.store
	dir := filepath.Join(s.dir, installDir)
	if err := s.fs.Rename(c.dir, dir); err != nil {
		return nil, err
	}
	err := s.fs.SyncDir(s.dir)
	if err != nil {
		return nil, errors.Join(err, s.fs.Rename(dir, c.dir))
	}
	for _, f := range c.files {
		if f.source != nil && err == nil {
			var duplicated bool
			duplicated, err = link(s.fs, filepath.Join(f.source.Path(), f.Name), dir, f.Name)
			c.duplicated = c.duplicated || duplicated
		}
	}
	if err == nil {
		err = c.seal(dir, m)
	}
	if err == nil {
		var r *Reader
		if r, err = c.publish(dir, m); err == nil {
			return r, nil
		}
	}
	if c.err != nil {
		return nil, err // dropLost takes all
	}
	return nil, errors.Join(err, c.unlink(dir))
}

// unlink takes the links out again, durably, and then gives the directory its old
// name back. Where that fails the directory stays what nobody resumes from.
func (c *Copy) unlink(dir string) error {
	fs := c.store.fs
	if _, err := fs.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil // published and deleted
	}
	c.store.changes.Lock()
	err := c.store.settle(dir)
	c.store.changes.Unlock()
	if err != nil {
		return err
	}
	for _, f := range c.files {
		if f.source != nil {
			if err := removeAll(fs, filepath.Join(dir, f.Name)); err != nil {
				return err
			}
		}
	}
	var linked []File
	for _, f := range c.files {
		if f.source != nil {
			linked = append(linked, f.File)
		}
	}
	if err := syncExisting(fs, dir, linked); err != nil {
		return err
	}
	return fs.Rename(dir, c.dir)
}

// syncExisting is syncDirs where some directories may not have been made.
func syncExisting(fs vfs.FS, dir string, files []File) error {
	var there []File
	for _, f := range files {
		if _, err := fs.Stat(filepath.Dir(filepath.Join(dir, f.Name))); err == nil {
			there = append(there, f)
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDirs(fs, dir, there)
}

// link gives a file of a snapshot a second name, or duplicates it where there are no links.
func link(fs vfs.FS, from, dir, name string) (duplicated bool, err error) {
	to := filepath.Join(dir, name)
	if parent := filepath.Dir(to); parent != dir {
		if err := fs.MkdirAll(parent, 0o755); err != nil {
			return false, err
		}
	}
	err = fs.Link(from, to)
	if !slices.ContainsFunc([]error{syscall.EXDEV, syscall.EMLINK, syscall.EPERM, errors.ErrUnsupported}, func(no error) bool { return errors.Is(err, no) }) {
		return false, err
	}
	return true, duplicate(fs, from, to)
}

func duplicate(fs vfs.FS, from, to string) error {
	src, err := fs.OpenFile(from, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }() // it was only read
	dst, err := fs.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(dst, 0), io.NewSectionReader(src, 0, maxFileSize))
	if err == nil {
		err = dst.Sync()
	}
	return errors.Join(err, dst.Close())
}
