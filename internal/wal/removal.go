package wal

import (
	"cmp"
	"errors"
	"os"
	"time"

	"github.com/graft-raft/graft/internal/vfs"
)

// retire makes blanks of released segments that nobody reads any more, or removes them.
func (k *keeper) retire() error {
	s := k.s
	var unread []*segment
	var files []vfs.File
	s.mu.Lock()
	rest := k.retired[:0]
	for _, seg := range k.retired {
		if seg.refs > 0 {
			rest = append(rest, seg)
			continue
		}
		unread = append(unread, seg)
		if seg.file != nil {
			files = append(files, seg.file)
			seg.file = nil
		}
	}
	clear(k.retired[len(rest):])
	k.retired = rest
	s.mu.Unlock()
	for _, f := range files {
		if err := f.Close(); err != nil {
			return err
		}
	}
	var useless []*segment
	for _, seg := range unread {
		if len(k.blanks) < s.o.Keep && seg.size <= 2*s.o.SegmentSize {
			k.blanks = append(k.blanks, blank{path: seg.path, size: seg.size, written: seg.written})
			k.retryAt = time.Time{} // it may need no more space
			continue
		}
		useless = append(useless, seg)
	}
	if len(useless) == 0 {
		return nil
	}
	k.retryAt = time.Time{} // there is space in a moment
	return k.remove(useless)
}

// remove deletes some of the segments; the others are left for later. It empties them too, since an idle lane may have one open
// and so would keep its space; but only once the name is gone for good: a file of the log that is empty looks like damage.
//
// Whatever comes of it, it keeps none open: for want of descriptors nobody might ever get one again.
func (k *keeper) remove(segs []*segment) error {
	files, err := k.unlink(segs)
	if err != nil && !passes(err) {
		return errors.Join(err, closeAll(files))
	}
	if len(files) == 0 {
		return err
	}
	files, serr := k.syncRemoved(files)
	for _, f := range files {
		if serr == nil {
			serr = f.Truncate(0)
		}
	}
	if cerr := closeAll(files); serr != nil || cerr != nil {
		return cmp.Or(serr, cerr)
	}
	return err
}

// passes reports whether an operation on a directory may succeed when it is tried again. Even a removal may want space, where file
// systems never write in place.
func passes(err error) bool { return vfs.NotOpened(err) || isSpace(err) }

// unlink takes the names of a few segments away and returns their files. The rest is still to be removed: at once, or, if no more
// can be opened or removed now, later. A file that has kept its name is not among them, and so is not emptied.
func (k *keeper) unlink(segs []*segment) (files []vfs.File, err error) {
	for i, seg := range segs {
		if i == removeAtOnce {
			k.a.Post(keepWork)
			k.keepRetired(segs[i:])
			return files, nil
		}
		f, err := k.unlinkOne(seg)
		if passes(err) {
			k.keepRetired(segs[i:])
		}
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

func (k *keeper) unlinkOne(seg *segment) (vfs.File, error) {
	f, err := k.s.o.FS.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if err := k.s.o.FS.Remove(seg.path); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (k *keeper) keepRetired(segs []*segment) {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	k.retired = append(k.retired, segs...)
}

// syncRemoved makes the removal of files durable and returns those that may be emptied. That takes a descriptor too: while there
// is none, it closes one of the files for it. If that one is open in an idle lane, its space is free when the lane goes on.
func (k *keeper) syncRemoved(files []vfs.File) ([]vfs.File, error) {
	for {
		err := k.s.o.FS.SyncDir(k.s.o.Dir)
		if !vfs.NotOpened(err) || len(files) == 0 {
			return files, err
		}
		f := files[0]
		files = files[1:]
		if err := f.Close(); err != nil {
			return files, err
		}
	}
}

func closeAll(files []vfs.File) (err error) {
	for _, f := range files {
		err = errors.Join(err, f.Close())
	}
	return err
}
