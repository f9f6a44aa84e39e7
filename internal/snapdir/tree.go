package snapdir

import (
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/graft-raft/graft/internal/vfs"
)

var errTooLong = errors.New("more bytes than a manifest may have")

// readFile reads a whole file of at most the given size.
func readFile(fs vfs.FS, name string, most int64) (data []byte, err error) {
	f, err := fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > most {
		return nil, errTooLong
	}
	data = make([]byte, size)
	n, err := f.ReadAt(data, 0)
	if n < len(data) && (err == nil || errors.Is(err, io.EOF)) {
		err = io.ErrUnexpectedEOF
	}
	if n == len(data) {
		err = nil
	}
	return data, err
}

// removeAll deletes a name and what is below. It tries to remove first, so that a
// symbolic link goes and not what it leads to.
func removeAll(fs vfs.FS, name string) error {
	err := fs.Remove(name)
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	info, statErr := fs.Stat(name)
	switch {
	case errors.Is(statErr, os.ErrNotExist): // a link that leads nowhere
		return err
	case statErr != nil:
		return statErr
	case !info.IsDir():
		return err
	}
	names, err := fs.ReadDir(name)
	if err != nil {
		return err
	}
	for _, entry := range names {
		if err := removeAll(fs, filepath.Join(name, entry)); err != nil {
			return err
		}
	}
	return fs.Remove(name)
}

// prune deletes what is in the snapshot's directory root and not in names, below
// the directory dir of it. It does not enter directories that hold no file of names.
func prune(fs vfs.FS, root, dir string, names *nameSet) error {
	entries, err := fs.ReadDir(filepath.Join(root, dir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := path.Join(dir, entry)
		full := filepath.Join(root, name)
		info, err := fs.Stat(full)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a link that leads nowhere does not exist
			return err
		}
		isDir := err == nil && info.IsDir()
		_, isFile := names.files[name]
		switch {
		case isDir && names.dirs[name] > 0:
			err = prune(fs, root, name, names)
		case isFile && !isDir:
			continue
		default:
			err = removeAll(fs, full)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// walk calls visit with the names of all files below the snapshot's directory root.
func walk(fs vfs.FS, root, dir string, visit func(name string) error) error {
	entries, err := fs.ReadDir(filepath.Join(root, dir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := path.Join(dir, entry)
		info, err := fs.Stat(filepath.Join(root, name))
		switch {
		case err == nil && info.IsDir():
			err = walk(fs, root, name, visit)
		case err == nil || errors.Is(err, os.ErrNotExist):
			err = visit(name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// syncDirs makes the entries of a snapshot's directory and of those inside durable,
// the innermost first.
func syncDirs(fs vfs.FS, root string, files []File) error {
	seen := map[string]bool{}
	var dirs []string
	for i := range files {
		parents(files[i].Name, func(dir string) bool {
			if seen[dir] {
				return false
			}
			seen[dir] = true
			dirs = append(dirs, dir)
			return true
		})
	}
	slices.SortFunc(dirs, func(a, b string) int {
		if d := strings.Count(b, "/") - strings.Count(a, "/"); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for _, dir := range append(dirs, ".") {
		if err := fs.SyncDir(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	return nil
}
